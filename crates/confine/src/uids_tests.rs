use super::*;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Users whom nobody has.
const FIRST: u32 = 1_800_000_000;

/// One test at a time starts programs: for a moment they have what other tests of this process have open.
static STARTING: Mutex<()> = Mutex::new(());

/// A place for the directory, and the directory in it.
fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("vm-users");
    (place, path)
}

fn refusal(path: &Path) -> String {
    Directory::open(path).map(drop).expect_err("refused").to_string()
}

/// A `cat` that waits, and that has what is not closed for it.
fn waiting(command: &mut Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    // What is closed for it is closed a moment after the kernel has let its parent go on.
    child.stdin.as_mut().expect("a pipe").write_all(b"!").expect("written");
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("read");
    child
}

/// Lets it end.
fn ended(mut child: Child) {
    drop(child.stdin.take());
    child.wait().expect("it ends");
}

#[test]
fn a_user_is_taken_once_and_free_when_its_claim_is_gone() {
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let (_place, path) = place();
    let directory = Directory::open(&path).expect("made");
    let range: UidRange = format!("{FIRST}-{}", FIRST + 1).parse().expect("a range");
    let first = directory.any(range).expect("a user");
    // Another daemon's.
    let elsewhere = Directory::open(&path).expect("the same");
    let second = elsewhere.any(range).expect("another user");
    assert_eq!((first.uid(), second.uid()), (FIRST, FIRST + 1));
    assert!(matches!(directory.any(range), Err(ConfineError::NoUidLeft(_))));
    // What the supervisor starts gets no part of it, and frees nobody's.
    let child = waiting(&mut Command::new("cat"));
    assert!(elsewhere.claim(FIRST).expect("asked").is_none());
    drop(first);
    assert!(elsewhere.claim(FIRST).expect("asked").is_some());
    ended(child);
    let files = std::fs::read_dir(&path).expect("entered").count();
    assert_eq!(files, 2, "one for each user");
}

/// What claims were before can be taken by everybody.
#[test]
fn a_name_that_somebody_squats_keeps_no_user_from_being_taken() {
    let (_place, path) = place();
    let uid = FIRST + 10;
    let name = format!("forrest/vm-user/{uid}");
    let name = SocketAddr::from_abstract_name(name).expect("a name");
    let _squatter = UnixListener::bind_addr(&name).expect("squatted");
    assert!(Directory::open(&path).expect("made").claim(uid).expect("asked").is_some());
}

#[test]
fn a_user_with_a_process_is_taken() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, NOT TESTED: another user's process needs root");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "not testable in CI");
        return;
    }
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let (_place, path) = place();
    let directory = Directory::open(&path).expect("made");
    let uid = FIRST + 20;
    // As the QEMU of a supervisor that was just killed, or of one of an earlier version.
    let qemu = waiting(Command::new("cat").uid(uid).gid(uid).current_dir("/"));
    assert!(directory.claim(uid).expect("asked").is_none());
    assert!(directory.claim(uid + 1).expect("asked").is_some());
    ended(qemu);
    assert!(directory.claim(uid).expect("asked").is_some());
}

#[test]
fn a_directory_that_others_could_enter_is_refused_with_what_to_do() {
    let (place, path) = place();
    Directory::open(&path).expect("made");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    std::fs::set_permissions(&path, Permissions::from_mode(0o750)).expect("opened");
    let said = refusal(&path);
    assert!(said.contains("its mode is 750") && said.contains("vm-users"), "{said}");
    let link = place.path().join("link");
    symlink(&path, &link).expect("a link");
    assert!(refusal(&link).contains("no directory"), "{}", refusal(&link));
    let file = place.path().join("file");
    std::fs::write(&file, b"").expect("a file");
    assert!(refusal(&file).contains("no directory"), "{}", refusal(&file));
    let nowhere = place.path().join("missing").join("vm-users");
    let said = refusal(&nowhere);
    assert!(said.contains("cannot be made") && said.contains("install -d"), "{said}");
}

#[test]
fn the_directory_is_ones_own_or_given_by_root() {
    let (place, path) = place();
    Directory::open(&path).expect("made");
    let stat = |path: &Path| rustix::fs::stat(path).expect("there");
    let (mut found, mut above) = (stat(&path), stat(place.path()));
    let (root, service) = (Uid::ROOT, Uid::from_raw(997));
    (found.st_uid, above.st_uid, above.st_mode) = (997, 0, 0o40_755);
    assert_eq!(check(&found, Some(&above), service), Ok(()));
    assert_eq!(check(&found, Some(&above), root), Ok(()));
    let refused = check(&found, Some(&above), Uid::from_raw(1000)).expect_err("another user's");
    assert!(refused.contains("belongs to the user 997"), "{refused}");
    // Anybody could have made it there.
    above.st_mode = 0o41_777;
    assert!(check(&found, Some(&above), root).is_err());
    assert!(check(&found, None, root).is_err());
    // Root's is not the service's.
    found.st_uid = 0;
    assert!(check(&found, Some(&above), service).is_err());
    assert_eq!(check(&found, Some(&above), root), Ok(()));
}
