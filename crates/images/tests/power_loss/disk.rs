//! A model of a disk that loses power.
//!
//! A [`Recorder`] keeps the whole directory tree as it is before each change, and knows what was forced to
//! the disk. [`Recorder::after`] builds the trees that a power loss at one of those moments may leave:
//!
//! - What a file holds is certain only up to its last `fsync`: it may hold that, anything that it held
//!   since, or a torn mixture: the right length, and zeros from the middle on.
//! - What a name in a directory stands for is certain only up to the directory's last `fsync`. Each name by
//!   itself may have kept any of its meanings since, whatever became of the others: renames are not even
//!   assumed to take away the old name together with giving the new one, nor to happen in their order.
//!
//! That is less than ext4, XFS and btrfs promise; what survives here survives there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, FileTimes, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use forrest_images::durable::{FileOp, Hook};

/// Granularity in which files are written back, and holes are kept.
const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A file's or a directory's inode: never used again, since the recorder holds it open.
type Inode = u64;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Entry {
    Dir(Inode),
    File(Inode),
    Link(PathBuf),
}

#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    mode: u32,
    modified: SystemTime,
    /// Equal for equal bytes.
    id: usize,
    torn: OnceLock<Arc<Content>>,
}

/// A number for each different content: few are seen, and comparing them takes less than a hash does
/// where nothing is optimised.
pub fn id_of(bytes: &[u8]) -> usize {
    static SEEN: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    let mut seen = SEEN.lock().expect("no panic");
    seen.iter().position(|known| known == bytes).unwrap_or_else(|| {
        seen.push(bytes.to_owned());
        seen.len() - 1
    })
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        (self.id, self.mode, self.modified) == (other.id, other.mode, other.modified)
    }
}

impl Eq for Content {}

impl Content {
    fn new(bytes: Vec<u8>, mode: u32, modified: SystemTime) -> Arc<Self> {
        let id = id_of(&bytes);
        Arc::new(Self { bytes, mode, modified, id, torn: OnceLock::new() })
    }

    /// Only its first half was written.
    fn torn(&self) -> Arc<Self> {
        let tear = || {
            let mut bytes = self.bytes.clone();
            bytes[self.bytes.len() / 2..].fill(0);
            Self::new(bytes, self.mode, self.modified)
        };
        Arc::clone(self.torn.get_or_init(tear))
    }
}

/// A change that was about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An `fsync` of a file or a directory.
    Sync(u64, PathBuf),
    /// Any other.
    Other,
}

type Names = BTreeMap<OsString, Entry>;

/// Everything at one moment.
#[derive(Debug, Clone, Default)]
struct Moment {
    dirs: BTreeMap<Inode, Names>,
    files: BTreeMap<Inode, Arc<Content>>,
}

#[derive(Default)]
struct History {
    /// The tree before each change.
    moments: Vec<Moment>,
    changes: Vec<Change>,
    /// Keeps inode numbers from being used again.
    open: BTreeMap<Inode, File>,
}

/// What becomes of that which was not forced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone.
    Everything,
    /// Names are as they were last, files are not.
    Content,
    /// Names are as they were last, files are torn.
    Torn,
    /// Files are as they were last, names are not.
    Names,
    /// Each name and each file has its own fate.
    Dice(u64),
}

/// Watches a directory tree.
pub struct Recorder {
    base: PathBuf,
    history: Mutex<History>,
}

impl Recorder {
    /// Begins with the tree as it is: that is on the disk.
    pub fn begin(base: &Path) -> Arc<Self> {
        let recorder = Self { base: base.to_owned(), history: Mutex::default() };
        recorder.look(Change::Other);
        Arc::new(recorder)
    }

    /// What tells it of changes.
    pub fn hook(self: &Arc<Self>) -> Hook {
        let recorder = Arc::clone(self);
        Arc::new(move |op| {
            let change = match op {
                FileOp::SyncFile { path } | FileOp::SyncDir { path } => {
                    let inode = std::fs::metadata(path)?.ino();
                    Change::Sync(
                        inode,
                        path.strip_prefix(&recorder.base).unwrap_or(path).to_owned(),
                    )
                }
                _ => Change::Other,
            };
            recorder.look(change);
            Ok(())
        })
    }

    /// Takes the last look.
    pub fn end(&self) {
        self.look(Change::Other);
    }

    /// How many moments were seen.
    pub fn len(&self) -> usize {
        self.history.lock().expect("no panic").moments.len()
    }

    /// What each `fsync` was of, with the number of its moment.
    pub fn syncs(&self) -> Vec<(usize, PathBuf)> {
        let history = self.history.lock().expect("no panic");
        let syncs = history.changes.iter().enumerate().filter_map(|(at, change)| match change {
            Change::Sync(_, path) => Some((at, path.clone())),
            Change::Other => None,
        });
        syncs.collect()
    }

    /// Forgets that there was an `fsync` at these moments: the proof that it is needed.
    pub fn without_syncs(&self, moments: &[usize], action: impl FnOnce()) {
        let changes = self.history.lock().expect("no panic").changes.clone();
        for at in moments {
            self.history.lock().expect("no panic").changes[*at] = Change::Other;
        }
        action();
        self.history.lock().expect("no panic").changes = changes;
    }

    fn look(&self, change: Change) {
        let mut history = self.history.lock().expect("no panic");
        let mut moment = Moment::default();
        let before = history.moments.last().cloned().unwrap_or_default();
        read_tree(&self.base, &before, &mut moment, &mut history.open);
        history.moments.push(moment);
        history.changes.push(change);
    }

    /// A tree that a power loss before change `at` may leave.
    pub fn after(&self, at: usize, loss: Loss) -> Remains {
        let history = self.history.lock().expect("no panic");
        let mut dice = Dice(match loss {
            Loss::Dice(seed) => seed,
            _ => 0,
        });
        let root = std::fs::metadata(&self.base).expect("the base").ino();
        let mut remains = Remains::default();
        remains.dir(&history, at, loss, &mut dice, root, &self.base);
        remains
    }
}

/// Reads a directory with all below it. Files that have not changed share their content with `before`.
fn read_tree(
    path: &Path,
    before: &Moment,
    moment: &mut Moment,
    open: &mut BTreeMap<Inode, File>,
) -> Inode {
    let inode = std::fs::metadata(path).expect("a directory").ino();
    open.entry(inode).or_insert_with(|| File::open(path).expect("a directory"));
    let mut names = Names::new();
    for found in std::fs::read_dir(path).expect("a directory").flatten() {
        let path = found.path();
        let metadata = path.symlink_metadata().expect("nobody else is here");
        let entry = if metadata.is_symlink() {
            Entry::Link(std::fs::read_link(&path).expect("a link"))
        } else if metadata.is_dir() {
            Entry::Dir(read_tree(&path, before, moment, open))
        } else {
            let inode = metadata.ino();
            open.entry(inode).or_insert_with(|| File::open(&path).expect("a file"));
            let bytes = std::fs::read(&path).expect("a file");
            let modified = metadata.modified().expect("a time");
            let content = Content::new(bytes, metadata.mode() & 0o7777, modified);
            let same = before.files.get(&inode).filter(|earlier| **earlier == content).cloned();
            moment.files.insert(inode, same.unwrap_or(content));
            Entry::File(inode)
        };
        names.insert(found.file_name(), entry);
    }
    moment.dirs.insert(inode, names);
    inode
}

impl History {
    /// The moment at which the inode was last forced to the disk, and whether it ever was.
    fn synced(&self, inode: Inode, at: usize) -> Option<usize> {
        let syncs = self.changes[..at].iter().enumerate().rev();
        let mut syncs =
            syncs.filter(|(_, change)| matches!(change, Change::Sync(of, _) if *of == inode));
        let at_start = || {
            let start = &self.moments[0];
            (start.dirs.contains_key(&inode) || start.files.contains_key(&inode)).then_some(0)
        };
        syncs.next().map(|(moment, _)| moment).or_else(at_start)
    }

    /// What the name may stand for, the oldest first; `None` where it may be missing.
    fn meanings(&self, dir: Inode, name: &OsString, at: usize) -> Vec<Option<Entry>> {
        let synced = self.synced(dir, at);
        let mut meanings = Vec::new();
        if synced.is_none() {
            meanings.push(None);
        }
        for moment in &self.moments[synced.unwrap_or(0)..=at] {
            let Some(names) = moment.dirs.get(&dir) else { continue };
            let meaning = names.get(name).cloned();
            if meanings.last() != Some(&meaning) {
                meanings.push(meaning);
            }
        }
        meanings
    }

    /// What the file may hold, the oldest first, a torn mixture last but one.
    fn contents(&self, file: Inode, at: usize) -> Vec<Arc<Content>> {
        let synced = self.synced(file, at);
        let moments = &self.moments[synced.unwrap_or(0)..=at];
        let mut seen: Vec<Arc<Content>> = Vec::new();
        for content in moments.iter().filter_map(|moment| moment.files.get(&file)) {
            if seen.last() != Some(content) {
                seen.push(Arc::clone(content));
            }
        }
        let newest = seen.last().expect("the file was seen").clone();
        if synced.is_none() {
            seen.insert(0, Content::new(Vec::new(), newest.mode, newest.modified));
        }
        if seen.len() > 1 {
            seen.insert(seen.len() - 1, newest.torn());
        }
        seen
    }
}

/// What a power loss left.
#[derive(Debug, Default)]
pub struct Remains {
    dirs: Vec<PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
    files: BTreeMap<Inode, (Arc<Content>, Vec<PathBuf>)>,
}

impl Remains {
    fn dir(
        &mut self,
        history: &History,
        at: usize,
        loss: Loss,
        dice: &mut Dice,
        dir: Inode,
        path: &Path,
    ) {
        self.dirs.push(path.to_owned());
        let known = history.moments[..=at].iter().filter_map(|moment| moment.dirs.get(&dir));
        let mut names: Vec<&OsString> = known.flat_map(BTreeMap::keys).collect();
        names.sort();
        names.dedup();
        for name in names {
            let meanings = history.meanings(dir, name, at);
            let meaning = match loss {
                Loss::Everything | Loss::Names => meanings.first(),
                Loss::Content | Loss::Torn => meanings.last(),
                Loss::Dice(_) => Some(dice.pick(&meanings)),
            };
            let path = path.join(name);
            match meaning.cloned().flatten() {
                None => {}
                Some(Entry::Link(target)) => self.links.push((path, target)),
                Some(Entry::Dir(inode)) => self.dir(history, at, loss, dice, inode, &path),
                Some(Entry::File(inode)) => {
                    let mut content = || {
                        let contents = history.contents(inode, at);
                        let torn = contents.len().saturating_sub(2);
                        match loss {
                            Loss::Everything | Loss::Content => Arc::clone(&contents[0]),
                            Loss::Torn => Arc::clone(&contents[torn]),
                            Loss::Names => Arc::clone(&contents[contents.len() - 1]),
                            Loss::Dice(_) => Arc::clone(dice.pick(&contents)),
                        }
                    };
                    let file = self.files.entry(inode);
                    file.or_insert_with(|| (content(), Vec::new())).1.push(path);
                }
            }
        }
    }

    /// Equal for equal trees.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.dirs, &self.links).hash(&mut hasher);
        for (content, paths) in self.files.values() {
            (content.id, content.mode, paths).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Makes the tree at its place, instead of what is there.
    pub fn build(&self, base: &Path) {
        for entry in std::fs::read_dir(base).expect("the base").flatten() {
            let path = entry.path();
            let removed = match entry.file_type().expect("a type").is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.expect("removable");
        }
        for dir in self.dirs.iter().filter(|dir| *dir != base) {
            std::fs::create_dir(dir).expect("a new directory");
        }
        for (path, target) in &self.links {
            std::os::unix::fs::symlink(target, path).expect("a new link");
        }
        for (content, paths) in self.files.values() {
            let file = File::create_new(&paths[0]).expect("a new file");
            file.set_len(content.bytes.len() as u64).expect("a sparse file");
            for (number, block) in content.bytes.chunks(BLOCK).enumerate() {
                if block != &ZEROS[..block.len()] {
                    file.write_all_at(block, (number * BLOCK) as u64).expect("room for it");
                }
            }
            file.set_permissions(Permissions::from_mode(content.mode)).expect("a mode");
            file.set_times(FileTimes::new().set_modified(content.modified)).expect("a time");
            for path in &paths[1..] {
                std::fs::hard_link(&paths[0], path).expect("a second name");
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        &all[usize::try_from((z ^ (z >> 31)) % all.len() as u64).expect("an index")]
    }
}
