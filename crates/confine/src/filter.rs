//! The egress filter of one VM: putting it in place, keeping it there, taking it away.
//!
//! The rules are the kernel's: they stay whatever becomes of Forrest. Somebody else may take them away,
//! though (`nft flush ruleset`, or a firewall's reload, which does that): [`Filter::keep`] hears of it
//! from the kernel and puts them back. Until that is done, some hundredths of a second, the guest is not
//! filtered; what it sends afterwards is, also on connections that it made meanwhile.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use forrest_core::model::UidRange;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::events::{Change, Events};
use crate::rules::{self, Destination, GuestRules};
use crate::uids::Claim;
use crate::{ConfineError, files, resolvers};

/// How long `nft` may take; it takes hundredths of a second.
const NFT_LIMIT: Duration = Duration::from_secs(20);
/// How often in a row the filter is tried to be put back.
const RESTORE_TRIES: u32 = 3;
/// Pause after the filter was put back, or could not be: somebody who takes it away again and again
/// costs no more than a part of a processor.
const RESTORE_PAUSE: Duration = Duration::from_millis(50);
/// Our own processes that are remembered.
const OWN_MAX: usize = 32;
/// How often the host's name servers are looked at.
const RESOLVERS_EVERY: Duration = Duration::from_secs(30);
/// The most of what `nft` complains about that is kept, in bytes.
const COMPLAINT_LEN_MAX: usize = 600;
/// Where `nft` is looked for besides `PATH`, which does not lead there for ordinary users.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The egress filter of one VM.
#[derive(Debug)]
pub struct Filter {
    nft: PathBuf,
    rules: GuestRules,
    /// The host's name servers when the VM began, where QEMU may go on asking these, since it can open
    /// the file that names them and not the one that replaces it ([`files::resolver_directory`]).
    lasting_resolvers: Vec<IpAddr>,
    events: Events,
    /// The last processes that changed the filter for us: word of what one did may come when the next one has
    /// run already.
    own: VecDeque<u32>,
}

impl Filter {
    /// Puts the filter for the VM of this user in place, whatever was there before.
    ///
    /// # Errors
    /// [`ConfineError::NoNft`], [`ConfineError::Nft`], [`ConfineError::Refused`];
    /// [`ConfineError::Watch`] where nobody would notice its loss.
    pub async fn put_in_place(uid: u32, allow: Vec<Destination>) -> Result<Self, ConfineError> {
        let nft = find_nft()?;
        // Before the rules, so that no loss goes unnoticed.
        let events = Events::open().map_err(ConfineError::Watch)?;
        let resolvers = resolvers::configured();
        let lasting = files::resolver_directory().is_none();
        let lasting_resolvers = if lasting { resolvers.clone() } else { Vec::new() };
        let rules = GuestRules { uid, allow, resolvers };
        let mut filter = Self { nft, rules, lasting_resolvers, events, own: VecDeque::new() };
        filter.apply().await?;
        Ok(filter)
    }

    async fn apply(&mut self) -> Result<(), ConfineError> {
        let own = &mut self.own;
        let mut note = |pid: Option<u32>| {
            own.truncate(OWN_MAX - 1);
            if let Some(pid) = pid {
                own.push_front(pid);
            }
        };
        match run_nft(&self.nft, &rules::put_in_place(&self.rules), &mut note).await {
            Err(ConfineError::Refused(_)) => {
                run_nft(&self.nft, &rules::replace(&self.rules), &mut note).await
            }
            done => done,
        }
    }

    /// Keeps the filter in place and up to date with the host's name servers; `told` hears of what was
    /// done. Ends only where that is not possible any more.
    pub async fn keep(&mut self, mut told: impl FnMut(&str)) -> ConfineError {
        let mut look = interval(RESOLVERS_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let why = tokio::select! {
                changes = self.events.next() => match changes {
                    Ok(Some(changes)) if !self.concerned(&changes) => continue,
                    Ok(Some(_)) => "somebody changed the egress filter",
                    Ok(None) => "changes of the packet filter went unnoticed",
                    Err(err) => return ConfineError::Watch(err),
                },
                _ = look.tick() => {
                    if let Some(what) = self.follow_resolvers().await {
                        told(&what);
                        sleep(RESTORE_PAUSE).await;
                    }
                    continue;
                }
            };
            if let Err(err) = self.restore().await {
                return err;
            }
            told(&format!("{why}: it is in place again"));
            sleep(RESTORE_PAUSE).await;
        }
    }

    /// Lets new name servers of the host through; what was done, where there was something to do.
    async fn follow_resolvers(&mut self) -> Option<String> {
        let now = resolvers::configured();
        // A file that is being replaced may be empty for a moment.
        if now.is_empty() {
            return None;
        }
        let now = resolvers::with_former(now, &self.lasting_resolvers);
        if now == self.rules.resolvers {
            return None;
        }
        let before = std::mem::replace(&mut self.rules.resolvers, now);
        if let Err(err) = self.restore().await {
            // The filter is whole, with the old ones. The next look tries again.
            self.rules.resolvers = before;
            return Some(format!("the host's new name servers cannot be let through yet: {err}"));
        }
        let but = if self.lasting_resolvers.is_empty() {
            ""
        } else {
            "; this guest may go on asking the former ones"
        };
        Some(format!("the host's name servers changed: it is in place again{but}"))
    }

    fn concerned(&self, changes: &[Change]) -> bool {
        let table = rules::table(self.rules.uid);
        changes.iter().any(|change| change.table == table && !self.own.contains(&change.by))
    }

    async fn restore(&mut self) -> Result<(), ConfineError> {
        let mut tries = 1;
        loop {
            match self.apply().await {
                Err(_) if tries < RESTORE_TRIES => tries += 1,
                done => return done,
            }
            sleep(RESTORE_PAUSE).await;
        }
    }

    /// Takes the filter away. The VM must be gone.
    ///
    /// # Errors
    /// As [`Filter::put_in_place`]; what is left does no harm to anybody.
    pub async fn remove(self) -> Result<(), ConfineError> {
        run_nft(&self.nft, &rules::remove(self.rules.uid), |_| {}).await
    }
}

/// Whether filters can be put in place here, found out by trying it with a transaction that changes
/// nothing.
///
/// # Errors
/// Why not: as [`Filter::put_in_place`].
pub async fn rehearse(range: UidRange) -> Result<(), ConfineError> {
    let nft = find_nft()?;
    Events::open().map_err(ConfineError::Watch)?;
    // Not a user of a VM: of the group that all have.
    let Some(claim) = range.iter().find_map(|uid| Claim::of(uid).transpose()).transpose()? else {
        // All have a filter, so it is possible.
        return Ok(());
    };
    let rules =
        GuestRules { uid: claim.uid(), allow: Vec::new(), resolvers: resolvers::configured() };
    run_nft(&nft, &rules::rehearsal(&rules), |_| {}).await
}

/// Takes away filters whose VM is gone: those of supervisors that were killed.
///
/// # Errors
/// As [`Filter::put_in_place`].
pub async fn sweep(range: UidRange) -> Result<u32, ConfineError> {
    let nft = find_nft()?;
    let listed = output_of(Command::new(&nft).args(["list", "tables", "inet"])).await?;
    let mut removed = 0;
    let tables = listed.split_whitespace().filter_map(rules::user_of_table);
    for uid in tables.filter(|uid| range.contains(*uid)) {
        // Nobody can begin a VM as this user meanwhile.
        if let Some(_claim) = Claim::of(uid)? {
            run_nft(&nft, &rules::remove(uid), |_| {}).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Finds `nft`, also where `PATH` does not lead for ordinary users.
///
/// # Errors
/// [`ConfineError::NoNft`].
pub fn find_nft() -> Result<PathBuf, ConfineError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(ADMIN_DIRS.iter().map(PathBuf::from));
    dirs.map(|dir| dir.join("nft")).find(|file| file.is_file()).ok_or(ConfineError::NoNft)
}

/// Runs one transaction; `started` is told the process id.
async fn run_nft(
    nft: &Path,
    text: &str,
    started: impl FnOnce(Option<u32>),
) -> Result<(), ConfineError> {
    let failed = |err: std::io::Error| ConfineError::Nft(err.to_string());
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    started(child.id());
    let stdin = child.stdin.take();
    let ended = async {
        if let Some(mut stdin) = stdin {
            // It may give up before it has read everything, and says why.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match timeout(NFT_LIMIT, ended).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(ConfineError::Refused(complaint(&output.stderr))),
        Ok(Err(err)) => Err(failed(err)),
        Err(_) => Err(ConfineError::Nft(format!("no end after {} s", NFT_LIMIT.as_secs()))),
    }
}

async fn output_of(command: &mut Command) -> Result<String, ConfineError> {
    let command = command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    match timeout(NFT_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => Err(ConfineError::Refused(complaint(&output.stderr))),
        Ok(Err(err)) => Err(ConfineError::Nft(err.to_string())),
        Err(_) => Err(ConfineError::Nft(format!("no end after {} s", NFT_LIMIT.as_secs()))),
    }
}

/// What `nft` says, in one line.
fn complaint(stderr: &[u8]) -> String {
    let kept = stderr.get(..COMPLAINT_LEN_MAX).unwrap_or(stderr);
    let text = String::from_utf8_lossy(kept);
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() { "it does not say why".to_owned() } else { words.join(" ") }
}
