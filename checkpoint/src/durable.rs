//! Writes that survive a crash: a file or folder is complete under a temporary
//! name before it has its own, and both it and its parent are synced.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Everything of this prefix in a folder is unfinished and can be removed.
pub const TEMPORARY_PREFIX: &str = ".tmp_";

/// Flushes a folder's entries to the disk.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(Error::io("syncing", dir))
}

/// Flushes a file's bytes to the disk.
pub fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("syncing", path))
}

/// Writes and syncs a file in place. For use inside a temporary folder.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io("creating", path))?;
    file.write_all(bytes).map_err(Error::io("writing", path))?;
    file.sync_all().map_err(Error::io("syncing", path))
}

/// Replaces a file: readers see the old bytes or the new ones, never a mixture.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path)?;
    write_synced(&temporary, bytes)?;
    publish(&temporary, path)
}

/// Gives a finished file or folder its name, and syncs the parent.
pub fn publish(temporary: &Path, path: &Path) -> Result<()> {
    fs::rename(temporary, path).map_err(Error::io("renaming to", path))?;
    sync_dir(parent(path)?)
}

/// Removes a folder so that a crash in between leaves no half of it under its
/// own name.
pub fn remove_dir(path: &Path) -> Result<()> {
    let temporary = temporary_beside(path)?;
    fs::rename(path, &temporary).map_err(Error::io("renaming", path))?;
    sync_dir(parent(path)?)?;
    fs::remove_dir_all(&temporary).map_err(Error::io("removing", &temporary))
}

/// Removes what interrupted writes left in a folder.
pub fn clear_temporaries(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            continue;
        }
        let path = entry.path();
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io("removing", &path))?;
    }
    Ok(())
}

/// The temporary name of a path, in the same folder (so that a rename stays on
/// one file system).
pub fn temporary_beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(parent(path)?.join(format!("{TEMPORARY_PREFIX}{name}")))
}

fn parent(path: &Path) -> Result<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(Error::NotFound { path: path.to_owned() }),
    }
}
