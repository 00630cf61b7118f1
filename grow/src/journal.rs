//! What of a target is finished, so that an interrupted growth goes on where it was.
//!
//! ```text
//! .grow_NAME/           beside the target NAME
//!   lock                held by the process that writes
//!   journal.jsonl       the plan's digest, then a line per finished file
//!   data/               the files; renamed to NAME at the end
//! ```
//!
//! Every line is its own BLAKE3 and JSON text, and is synced before the next file counts: a line
//! that a crash has cut is not one. A file on a line was synced before the line was written, and
//! is verified by its digest before it is used.

use crate::error::{Error, Result};
use lightc_checkpoint::{FileEntry, durable};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The work folder of one growth, held by this process.
#[derive(Debug)]
pub(crate) struct Work {
    folder: PathBuf,
    /// Keeps the lock.
    _lock: File,
    journal: Mutex<File>,
    /// Finished files of an earlier process, by name.
    pub(crate) finished: BTreeMap<String, FileEntry>,
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Checkpoint(lightc_checkpoint::Error::Io { action, path, source })
}

/// The work folder of a target.
pub(crate) fn folder_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or(target.as_os_str()).to_string_lossy();
    target.with_file_name(format!(".grow_{name}"))
}

impl Work {
    /// Opens the work folder of a target for a plan of this digest. What was written for another
    /// plan is removed.
    pub(crate) fn open(target: &Path, plan: &str) -> Result<Self> {
        let folder = folder_of(target);
        fs::create_dir_all(&folder).map_err(io("creating", &folder))?;
        let lock = lock(&folder, target)?;
        let path = folder.join("journal.jsonl");
        let data = folder.join("data");
        let mut lines = lines(&path);
        let same = lines.next().is_some_and(|line| line == plan);
        let finished = lines.filter_map(|line| serde_json::from_str::<FileEntry>(&line).ok());
        let finished: BTreeMap<String, FileEntry> = if same {
            finished.map(|entry| (entry.name.clone(), entry)).collect()
        } else {
            BTreeMap::new()
        };
        if !same && data.exists() {
            fs::remove_dir_all(&data).map_err(io("removing", &data))?;
        }
        fs::create_dir_all(&data).map_err(io("creating", &data))?;
        // Written anew: a cut line at its end is gone.
        let mut text = line_of(plan);
        for entry in finished.values() {
            text.push_str(&line_of(&json(entry)));
        }
        durable::replace_file(&path, text.as_bytes())?;
        let journal = OpenOptions::new().append(true).open(&path).map_err(io("opening", &path))?;
        Ok(Work { folder, _lock: lock, journal: Mutex::new(journal), finished })
    }

    /// The folder of finished and unfinished files.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Notes a file that is written and synced.
    pub(crate) fn finish(&self, entry: &FileEntry) -> Result<()> {
        let path = self.folder.join("journal.jsonl");
        let mut journal = self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let line = line_of(&json(entry));
        let written = journal.write_all(line.as_bytes()).and_then(|()| journal.sync_data());
        written.map_err(io("writing", &path))
    }

    /// Gives the data its name, which nothing may have, and removes the rest.
    pub(crate) fn publish(self, target: &Path) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let data = self.data();
        durable::sync_dir(&data)?;
        match renameat_with(CWD, &data, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let why = "it was made in the meantime".to_owned();
                return Err(Error::TargetExists { path: target.to_owned(), why });
            }
            // A file system without that flag: `rename` replaces at most an empty folder.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !target.exists() => {
                fs::rename(&data, target).map_err(io("renaming to", target))?;
            }
            Err(error) => return Err(io("renaming to", target)(error.into())),
        }
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            durable::sync_dir(parent)?;
        }
        remove(target)
    }
}

/// Removes the work folder of a target, if there is one.
pub(crate) fn remove(target: &Path) -> Result<()> {
    let folder = folder_of(target);
    if !folder.exists() {
        return Ok(());
    }
    fs::remove_dir_all(&folder).map_err(io("removing", &folder))
}

fn lock(folder: &Path, target: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(io("creating", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Busy { path: target.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(io("locking", &path)(error)),
    }
}

fn json(entry: &FileEntry) -> String {
    serde_json::to_string(entry).unwrap_or_default()
}

fn line_of(text: &str) -> String {
    format!("{} {text}\n", blake3::hash(text.as_bytes()).to_hex())
}

/// The lines up to the first that is cut or damaged.
fn lines(path: &Path) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<String> = text
        .split_inclusive('\n')
        .map_while(|line| {
            let (digest, text) = line.strip_suffix('\n')?.split_once(' ')?;
            (blake3::hash(text.as_bytes()).to_hex().as_str() == digest).then(|| text.to_owned())
        })
        .collect();
    lines.into_iter()
}
