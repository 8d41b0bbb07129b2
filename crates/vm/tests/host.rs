//! What the host can do, asked of the real QEMU.

#[path = "fixture/mod.rs"]
#[expect(dead_code, reason = "this file needs only a part")]
mod fixture;

use forrest_vm::VmError;
use forrest_vm::host::{boot_id, cpu_model, find_qemu, probe_kvm, probe_qemu};

#[tokio::test]
async fn qemu_tells_what_it_can_do() {
    let Some(program) = fixture::qemu() else { return };
    assert_eq!(find_qemu(), Some(program.clone()));
    let qemu = probe_qemu(&program).await.expect("an answer");
    assert_eq!(qemu.usable(), Ok(()));
    assert!(qemu.version.major >= 6, "{qemu:?}");
    let version = std::process::Command::new(&program).arg("--version").output().expect("runs");
    let version = String::from_utf8(version.stdout).expect("UTF-8");
    assert!(version.contains(&format!("version {}", qemu.version)), "{version} {qemu:?}");
}

#[tokio::test]
async fn what_is_not_qemu_is_refused() {
    for program in ["/bin/true", "/nonexistent/qemu"] {
        let error = probe_qemu(program.as_ref()).await.expect_err(program);
        assert!(matches!(error, VmError::Program { .. } | VmError::Monitor(_)), "{error}");
    }
}

#[test]
fn the_host_describes_itself() {
    assert!(!probe_kvm().reason.is_empty());
    assert!(cpu_model().contains("features"));
    assert!(boot_id().is_some_and(|id| id.len() == 36));
}
