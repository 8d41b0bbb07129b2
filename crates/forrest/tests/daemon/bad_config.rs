//! Configurations that cannot be used, at the start and while the daemon runs.

use std::process::Command;

use forrest_testbed::Testbed;

use crate::scene::{
    BUILD, booting, empty_plan, end, forget_webhooks, logged, machine, plan, polled, queue,
    reconfigure, refusal, testbed,
};

#[tokio::test]
async fn a_broken_new_version_changes_nothing() {
    let Some(testbed) = testbed("broken-reload").await else { return };
    let sound = std::fs::read_to_string(testbed.config()).expect("the configuration");
    reconfigure(&testbed, "  ram: 4G", "  ram: [4G");
    logged(&testbed, "the configuration stays as it was").await;
    logged(&testbed, "config.yaml:4:").await;
    std::fs::write(testbed.config(), sound.replace("  ram: 4G", "  ram: much\n  rum: 4G"))
        .expect("written");
    logged(&testbed, "no field \"rum\"").await;

    queue(&testbed, BUILD, "as before");
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn a_sound_new_version_serves_jobs_that_wait_already() {
    let Some(plan) = plan("live-reload") else { return };
    let testbed = Testbed::start(plan.with(machine("acme/widgets/late"))).await.expect("it starts");
    polled(&testbed).await;
    let whole = std::fs::read_to_string(testbed.config()).expect("the configuration");
    let at = whole.find("        late:\n").expect("the second machine type");
    std::fs::write(testbed.config(), &whole[..at]).expect("written");
    logged(&testbed, "the configuration was loaded again").await;

    queue(&testbed, "acme/widgets/late", "nobody's");
    queue(&testbed, BUILD, "somebody's");
    booting(&testbed, BUILD).await;
    let view = testbed.client().status().await.expect("a status").view;
    assert!(view.runs.iter().all(|run| run.machine.to_string() == BUILD), "{:?}", view.runs);

    std::fs::write(testbed.config(), whole).expect("written");
    booting(&testbed, "acme/widgets/late").await;
    end(testbed).await;
}

#[tokio::test]
async fn sighup_loads_the_configuration_again() {
    let Some(testbed) = testbed("sighup").await else { return };
    let pid = testbed.daemon.as_ref().and_then(forrest_testbed::Daemon::pid).expect("a daemon");
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signalled");
    logged(&testbed, "the configuration was loaded again").await;
    queue(&testbed, BUILD, "afterwards");
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn a_changed_secret_takes_effect_at_once() {
    let Some(testbed) = testbed("secret").await else { return };
    forget_webhooks(&testbed);
    reconfigure(&testbed, forrest_testbed::WEBHOOK_SECRET, "the-other-secret-of-the-testbed");
    logged(&testbed, "the configuration was loaded again").await;
    // The log's line comes before the change itself: the driver answers in order.
    testbed.client().status().await.expect("a status");
    assert_eq!(crate::http::deliver(&testbed, "ping", b"{}").await, Some(401));
    end(testbed).await;
}

/// A daemon does not start with what it cannot use, and says where the mistake is.
#[tokio::test]
async fn a_daemon_does_not_start_with_a_broken_configuration() {
    let Some(plan) = plan("refused-config") else { return };
    let testbed = Testbed::prepare(plan).await.expect("a configuration");
    let sound = std::fs::read_to_string(testbed.config()).expect("the configuration");
    for (from, to, words) in [
        ("  ram: 4G", "  ram: [4G", &["config.yaml:4:"] as &[&str]),
        ("  ram: 4G", "  rum: 4G", &["config.yaml:3:", "\"rum\"", "\"ram\""]),
        ("ram: 128M", "ram: 128E", &["config.yaml:", "ram: 128E"]),
        ("base_image: ", "base_machine: acme/widgets/nowhere # ", &["acme/widgets/nowhere"]),
        ("base_image: ", "base_machine: acme/widgets/build # ", &["acme/widgets/build"]),
        ("webhook_secret:", "webhook_secrets:", &["\"webhook_secret\""]),
    ] {
        assert!(sound.contains(from), "{from:?} is not in\n{sound}");
        std::fs::write(testbed.config(), sound.replacen(from, to, 1)).expect("written");
        let said = refusal(&testbed.config());
        for word in words {
            assert!(said.contains(word), "{to}: {word:?} is not in\n{said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_daemon_does_not_start_without_its_key() {
    let Some(plan) = plan("refused-key") else { return };
    let testbed = Testbed::prepare(plan).await.expect("a configuration");
    let key = testbed.plan().dir.join("app-key.pem");
    std::fs::write(&key, "this is no key").expect("written");
    let said = refusal(&testbed.config());
    assert!(said.contains("key") && !said.contains("panicked"), "{said}");
    std::fs::remove_file(&key).expect("removed");
    let said = refusal(&testbed.config());
    assert!(said.contains("app-key.pem"), "{said}");
}

#[tokio::test]
async fn a_second_daemon_is_kept_away() {
    let Some(testbed) = testbed("second-daemon").await else { return };
    let pid = testbed.daemon.as_ref().and_then(forrest_testbed::Daemon::pid).expect("a daemon");
    let said = refusal(&testbed.config());
    assert!(said.contains(&format!("process {pid}")), "{said}");
    // The first one has kept its sockets.
    assert_eq!(crate::http::deliver(&testbed, "ping", b"{}").await, Some(200));
    testbed.client().status().await.expect("a status");
    end(testbed).await;
}

/// `forrest check` has the same words, without a host.
#[test]
fn check_and_run_agree() {
    let Some(plan) = empty_plan("check") else { return };
    let config = plan.dir.join("config.yaml");
    std::fs::write(&config, "host:\n  ram: [\n").expect("written");
    let check = Command::new(env!("CARGO_BIN_EXE_forrest")).arg("check").arg(&config).output();
    let check = check.expect("it runs");
    assert_eq!(check.status.code(), Some(1));
    let said = String::from_utf8_lossy(&check.stderr).into_owned()
        + &String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("config.yaml:"), "{said}");
    assert!(refusal(&config).contains("config.yaml:"));
}
