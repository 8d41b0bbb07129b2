//! Files that a machine type needs and that are not there, or are not what they should be.

use std::path::Path;
use std::process::Command;

use forrest_daemon::control::Status;
use forrest_testbed::{Plan, Testbed, hanging_image};

use crate::scene::{BUILD, STEP, booting, end, plan, queue};

/// A job whose machine type lacks something has to wait, `status` says for what, and it is served once
/// that is mended.
async fn mended(plan: Plan, trouble: &[&str], mend: impl FnOnce()) {
    let testbed = Testbed::start(plan).await.expect("the daemon starts nevertheless");
    queue(&testbed, BUILD, "patient");
    let said = |status: &Status| {
        let machine = status.view.machines.iter().find(|one| one.name.to_string() == BUILD)?;
        machine.trouble.clone()
    };
    let said = testbed.wait(STEP, "a trouble", said).await.expect("a trouble");
    for word in trouble {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    mend();
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn a_missing_base_image() {
    let Some(plan) = plan("image-missing") else { return };
    let image = plan.guest_image.clone();
    std::fs::remove_file(&image).expect("removed");
    mended(plan, &["hangs.raw"], || put_image(&image)).await;
}

#[tokio::test]
async fn an_empty_base_image() {
    let Some(plan) = plan("image-empty") else { return };
    let image = plan.guest_image.clone();
    std::fs::write(&image, b"").expect("emptied");
    mended(plan, &["hangs.raw"], || put_image(&image)).await;
}

#[tokio::test]
async fn a_directory_for_a_base_image() {
    let Some(plan) = plan("image-directory") else { return };
    let image = plan.guest_image.clone();
    std::fs::remove_file(&image).expect("removed");
    std::fs::create_dir(&image).expect("a directory");
    let mend = || {
        std::fs::remove_dir(&image).expect("removed");
        put_image(&image);
    };
    mended(plan, &["hangs.raw"], mend).await;
}

/// It could be made to show any file of the host to a guest.
#[tokio::test]
async fn a_base_image_with_a_backing_file() {
    let Some(plan) = plan("image-backing") else { return };
    let image = plan.guest_image.clone();
    let secret = plan.dir.join("secret.raw");
    std::fs::rename(&image, &secret).expect("renamed");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&secret, &image])
        .status();
    assert!(made.is_ok_and(|status| status.success()), "qemu-img makes an image");
    mended(plan, &["hangs.raw", "backing file"], || put_image(&image)).await;
}

#[tokio::test]
async fn a_missing_template() {
    let Some(mut plan) = plan("template-missing") else { return };
    let good = plan.template.clone();
    plan.template = plan.dir.join("template");
    let template = plan.template.clone();
    let mend = || std::os::unix::fs::symlink(&good, &template).expect("a link");
    mended(plan, &["template"], mend).await;
}

#[tokio::test]
async fn a_disk_smaller_than_its_image() {
    let Some(plan) = plan("image-large") else { return };
    let image = plan.guest_image.clone();
    let file = std::fs::File::options().write(true).open(&image).expect("the image");
    file.set_len(65 << 20).expect("enlarged");
    mended(plan, &["64"], || put_image(&image)).await;
}

fn put_image(path: &Path) {
    // As a person would: under another name first.
    let new = path.with_extension("new");
    std::fs::write(&new, hanging_image()).expect("an image");
    std::fs::rename(&new, path).expect("renamed");
}
