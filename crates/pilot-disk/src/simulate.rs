//! Disks as tests need them: one that loses its power ([`Recorder`]), one that refuses ([`Fault`]).
//!
//! The model of a power cut is as unkind as the rules of POSIX allow: of what was not synced, any part may be lost or kept
//! whatever its order; the last write may be torn; a file's name is lost unless its directory was synced, whatever was
//! synced of its content. A rename happens whole or not at all.

use crate::{Op, Watch};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SplitMix64: numbers from a seed.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A step, kept.
#[derive(Debug, Clone)]
enum Step {
    CreateDir(PathBuf),
    Create(PathBuf, u64),
    Reopen(PathBuf, u64),
    Write(u64, u64, Vec<u8>),
    SetLen(u64, u64),
    Sync(u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
}

/// Records what is done below a directory, and tells what a power cut at any point would leave of it.
#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    before: Image,
    steps: Mutex<Vec<Step>>,
}

impl Recorder {
    /// Begins with what is in `root` now, all of it durable.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn new(root: &Path) -> io::Result<Recorder> {
        Ok(Recorder { root: root.to_owned(), before: Image::read(root)?, steps: Mutex::default() })
    }

    /// Steps so far. What was acknowledged at this count must survive every cut at this or a later count.
    pub fn steps(&self) -> usize {
        lock(&self.steps).len()
    }

    /// What a power cut after the first `at` steps may leave.
    pub fn cut(&self, at: usize, random: &mut Random) -> Image {
        let mut model = Model::new(&self.before);
        for step in lock(&self.steps).iter().take(at) {
            model.apply(step);
        }
        model.crash(random)
    }

    fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }
}

impl Watch for Recorder {
    fn after(&self, op: &Op<'_>) {
        let step = match *op {
            Op::CreateDir { path } => Step::CreateDir(self.inside(path)),
            Op::Open { .. } => return,
            Op::Create { path, file } => Step::Create(self.inside(path), file),
            Op::Reopen { path, file } => Step::Reopen(self.inside(path), file),
            Op::Write { file, offset, data } => Step::Write(file, offset, data.to_vec()),
            Op::SetLen { file, len } => Step::SetLen(file, len),
            Op::Sync { file } => Step::Sync(file),
            Op::Rename { from, to } => Step::Rename(self.inside(from), self.inside(to)),
            Op::Remove { path } => Step::Remove(self.inside(path)),
            Op::SyncDir { path } => Step::SyncDir(self.inside(path)),
        };
        lock(&self.steps).push(step);
    }
}

/// Files and directories below a root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Without the root itself.
    pub dirs: Vec<PathBuf>,
    /// Content by path.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Image {
    /// What is below `root`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(root: &Path) -> io::Result<Image> {
        let mut image = Image::default();
        let mut todo = vec![PathBuf::new()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(root.join(&dir))? {
                let entry = entry?;
                let path = dir.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    image.dirs.push(path.clone());
                    todo.push(path);
                } else if entry.file_type()?.is_file() {
                    image.files.insert(path, fs::read(entry.path())?);
                }
            }
        }
        Ok(image)
    }

    /// Writes it below `root` (files 0600, directories 0700).
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, root: &Path) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        let dir = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        dir(root)?;
        for path in &self.dirs {
            dir(&root.join(path))?;
        }
        for (path, content) in &self.files {
            let path = root.join(path);
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::SetLen(len) => content.resize(usize::try_from(*len).unwrap_or(usize::MAX), 0),
            Change::Write(offset, data) => {
                let start = usize::try_from(*offset).unwrap_or(usize::MAX);
                let end = start + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(data);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Entry {
    Link(PathBuf, Node),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, Node),
}

impl Entry {
    /// The directory whose sync makes it durable.
    fn home(&self) -> &Path {
        let (Entry::Link(path, _) | Entry::Unlink(path) | Entry::Rename(_, path, _)) = self;
        path.parent().unwrap_or(Path::new(""))
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Entry::Link(path, node) => {
                names.insert(path.clone(), *node);
            }
            Entry::Unlink(path) => {
                names.remove(path);
            }
            Entry::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

/// A file system: what programs see, and what would be left.
#[derive(Debug, Default)]
struct Model {
    inodes: Vec<Inode>,
    open: HashMap<u64, usize>,
    seen: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    pending: Vec<Entry>,
}

impl Model {
    fn new(start: &Image) -> Model {
        let mut model = Model::default();
        for dir in &start.dirs {
            model.durable.insert(dir.clone(), Node::Dir);
        }
        for (path, content) in &start.files {
            model.durable.insert(path.clone(), Node::File(model.inodes.len()));
            model.inodes.push(Inode { durable: content.clone(), pending: Vec::new() });
        }
        model.seen = model.durable.clone();
        model
    }

    fn enter(&mut self, entry: Entry) {
        entry.apply(&mut self.seen);
        self.pending.push(entry);
    }

    fn change(&mut self, file: u64, change: Change) {
        if let Some(&inode) = self.open.get(&file) {
            self.inodes[inode].pending.push(change);
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::CreateDir(path) => self.enter(Entry::Link(path.clone(), Node::Dir)),
            Step::Create(path, file) | Step::Reopen(path, file) => {
                let inode = match self.seen.get(path) {
                    Some(Node::File(inode)) => *inode,
                    _ => {
                        self.inodes.push(Inode::default());
                        let inode = self.inodes.len() - 1;
                        self.enter(Entry::Link(path.clone(), Node::File(inode)));
                        inode
                    }
                };
                self.open.insert(*file, inode);
                if matches!(step, Step::Create(..)) {
                    self.change(*file, Change::SetLen(0));
                }
            }
            Step::Write(file, offset, data) => self.change(*file, Change::Write(*offset, data.clone())),
            Step::SetLen(file, len) => self.change(*file, Change::SetLen(*len)),
            Step::Sync(file) => {
                if let Some(&inode) = self.open.get(file) {
                    let inode = &mut self.inodes[inode];
                    for change in std::mem::take(&mut inode.pending) {
                        change.apply(&mut inode.durable);
                    }
                }
            }
            Step::Rename(from, to) => {
                if let Some(&node) = self.seen.get(from) {
                    self.enter(Entry::Rename(from.clone(), to.clone(), node));
                }
            }
            Step::Remove(path) => self.enter(Entry::Unlink(path.clone())),
            Step::SyncDir(path) => {
                for entry in std::mem::take(&mut self.pending) {
                    if entry.home() == path {
                        entry.apply(&mut self.durable);
                    } else {
                        self.pending.push(entry);
                    }
                }
            }
        }
    }

    fn crash(mut self, random: &mut Random) -> Image {
        // Everything lost, everything kept, or any part.
        let kept = [0, 50, 50, 100][random.below(4) as usize];
        for entry in std::mem::take(&mut self.pending) {
            if random.chance(kept) {
                entry.apply(&mut self.durable);
            }
        }
        for inode in &mut self.inodes {
            let last = inode.pending.len().wrapping_sub(1);
            for (at, change) in std::mem::take(&mut inode.pending).into_iter().enumerate() {
                match change {
                    Change::Write(offset, data) if at == last && random.chance(50) => {
                        let torn = random.below(data.len() as u64 + 1) as usize;
                        Change::Write(offset, data[..torn].to_vec()).apply(&mut inode.durable);
                    }
                    change if random.chance(kept) => change.apply(&mut inode.durable),
                    _ => {}
                }
            }
        }
        let mut image = Image::default();
        for (path, node) in &self.durable {
            let mut above = path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
            if !above.all(|path| self.durable.get(path) == Some(&Node::Dir)) {
                continue;
            }
            match node {
                Node::Dir => image.dirs.push(path.clone()),
                Node::File(inode) => {
                    image.files.insert(path.clone(), self.inodes[*inode].durable.clone());
                }
            }
        }
        image
    }
}

/// A disk that refuses to take anything while a cause is set; deleting works.
#[derive(Debug, Default)]
pub struct Fault(Mutex<Option<io::ErrorKind>>);

impl Fault {
    /// Sets or lifts the cause.
    pub fn set(&self, cause: Option<io::ErrorKind>) {
        *lock(&self.0) = cause;
    }
}

impl Watch for Fault {
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        match (*lock(&self.0), op) {
            (Some(_), Op::Remove { .. } | Op::SyncDir { .. }) | (None, _) => Ok(()),
            (Some(cause), _) => Err(cause.into()),
        }
    }
}
