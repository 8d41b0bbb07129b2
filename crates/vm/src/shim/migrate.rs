//! Saving a guest as a template, and loading one: QEMU's migration to and from a file, with the RAM
//! left where it is (`x-ignore-shared`).
//!
//! Needs QEMU 8.2 for `file` channels.

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::VmError;
use crate::argv::state_file;
use crate::qmp::Qmp;

/// The status of the migration that is under way, as QEMU last reported it.
pub(crate) type Status = watch::Receiver<String>;

fn channels() -> Value {
    json!({ "channels": [{
        "channel-type": "main",
        "addr": { "transport": "file", "filename": state_file(), "offset": 0 },
    }] })
}

async fn prepare(qmp: &Qmp) -> Result<(), VmError> {
    let capability = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = [capability("x-ignore-shared"), capability("events")];
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
    Ok(())
}

async fn completed(status: &mut Status) -> Result<(), VmError> {
    let over = |status: &String| matches!(status.as_str(), "completed" | "failed" | "cancelled");
    match status.wait_for(over).await {
        Ok(status) if *status == "completed" => Ok(()),
        Ok(status) => Err(VmError::Monitor(format!("the migration ended as {:?}", *status))),
        Err(_) => Err(VmError::Monitor("QEMU closed it during the migration".to_owned())),
    }
}

/// Stops the guest and saves its devices.
pub(crate) async fn save(qmp: &Qmp, mut status: Status) -> Result<(), VmError> {
    qmp.execute("stop", json!({})).await?;
    prepare(qmp).await?;
    qmp.execute("migrate", channels()).await?;
    completed(&mut status).await
}

/// Loads devices into a QEMU that waits for them.
pub(crate) async fn load(qmp: &Qmp, mut status: Status) -> Result<(), VmError> {
    prepare(qmp).await?;
    qmp.execute("migrate-incoming", channels()).await?;
    completed(&mut status).await
}
