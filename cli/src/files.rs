//! Writes that are whole or not at all.
//!
//! New content is written and synced under a temporary name in the same folder, and renamed. A
//! folder of generated files carries a list of them ([`LIST`]), so that files of anybody else
//! are never replaced.

use crate::failure::{Failure, Fault, codes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

/// The file that lists what lightc wrote into a folder.
pub(crate) const LIST: &str = ".lightc-generated.json";

/// A file that is to be in a folder.
pub(crate) struct NewFile {
    /// Path in the folder, with `/`.
    pub(crate) path: String,
    /// Whole content.
    pub(crate) text: String,
}

/// What a folder's list says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    compiler: String,
    files: BTreeSet<String>,
}

/// Replaces or makes a file. A link is followed, permissions are kept.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().readonly()) {
        return Err(unwritable(&path, "it is read-only"));
    }
    let staged = Staged::write(&path, text.as_bytes())?;
    staged.publish()
}

/// Puts a copy of a program at `path`, whole or not at all.
pub(crate) fn install(program: &Path, path: &Path) -> Result<(), Failure> {
    let temporary = temporary_beside(path);
    let staged = Staged { temporary, path: path.to_owned() };
    fs::copy(program, &staged.temporary).map_err(|error| unwritable(path, &error.to_string()))?;
    staged.publish()
}

/// Makes a folder hold the given files, and not those that lightc wrote there before and that
/// are no longer made. Other files stay. Gives the paths of files that changed.
pub(crate) fn replace_folder(folder: &Path, files: &[NewFile]) -> Result<Vec<String>, Failure> {
    let before = listed(folder)?;
    for file in files {
        refuse_foreign(folder, file, before.as_ref())?;
    }
    let new: BTreeSet<String> = files.iter().map(|file| file.path.clone()).collect();
    create_folder(folder)?;
    // Everything that can fail for want of space comes before the first rename.
    let mut staged = Vec::new();
    let mut changed = Vec::new();
    for file in files {
        let path = folder.join(&file.path);
        if fs::read(&path).is_ok_and(|old| old == file.text.as_bytes()) {
            continue;
        }
        path.parent().map_or(Ok(()), create_folder)?;
        staged.push(Staged::write(&path, file.text.as_bytes())?);
        changed.push(file.path.clone());
    }
    // Whenever this is cut short, every file that lightc wrote is on the list.
    let old = before.map(|list| list.files).unwrap_or_default();
    write_list(folder, old.union(&new).cloned().collect())?;
    for file in staged {
        file.publish()?;
    }
    for path in old.difference(&new).filter(|path| is_inside(path)) {
        // Gone already is as good as removed.
        let _ = fs::remove_file(folder.join(path));
    }
    write_list(folder, new)?;
    Ok(changed)
}

fn write_list(folder: &Path, files: BTreeSet<String>) -> Result<(), Failure> {
    let list = List { compiler: crate::VERSION.to_owned(), files };
    let text = crate::terminal::pretty_json(&list)?;
    let path = folder.join(LIST);
    if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    Staged::write(&path, text.as_bytes())?.publish()
}

/// The list of a folder; `None` for one that does not exist or is empty.
fn listed(folder: &Path) -> Result<Option<List>, Failure> {
    let list = folder.join(LIST);
    match fs::read_to_string(&list) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(list) => Ok(Some(list)),
            Err(error) => Err(foreign(folder, &format!("its `{LIST}` is damaged: {error}"))),
        },
        Err(_) => match fs::read_dir(folder) {
            Ok(mut entries) => match entries.next() {
                None => Ok(None),
                Some(_) => Err(foreign(folder, &format!("it is not empty and has no `{LIST}`"))),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unwritable(folder, &error.to_string())),
        },
    }
}

fn refuse_foreign(folder: &Path, file: &NewFile, list: Option<&List>) -> Result<(), Failure> {
    let known = list.is_some_and(|list| list.files.contains(&file.path));
    if !known && folder.join(&file.path).exists() {
        return Err(foreign(folder, &format!("`{}` in it is not listed as generated", file.path)));
    }
    Ok(())
}

/// A listed path leads nowhere but into the folder, whoever wrote the list.
fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn foreign(folder: &Path, reason: &str) -> Failure {
    Fault::new(
        codes::FOREIGN_FOLDER,
        format!("`{}` was not written by lightc: {reason}", folder.display()),
    )
    .help("name a new or an empty folder, or remove this one")
    .into()
}

fn unwritable(path: &Path, reason: &str) -> Failure {
    Fault::new(codes::UNWRITABLE, format!("cannot write `{}`: {reason}", path.display())).into()
}

/// Makes a folder and those above it.
pub(crate) fn create_folder(folder: &Path) -> Result<(), Failure> {
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error.to_string()))
}

/// A finished file under a temporary name; removed if it is never published.
struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    fn write(path: &Path, bytes: &[u8]) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| unwritable(path, &error.to_string());
        if path.is_dir() {
            return Err(unwritable(path, "it is a folder"));
        }
        let staged = Staged { temporary: temporary_beside(path), path: path.to_owned() };
        let mut file = File::create_new(&staged.temporary).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        if let Ok(metadata) = fs::metadata(path) {
            file.set_permissions(metadata.permissions()).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        Ok(staged)
    }

    fn publish(self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| unwritable(&self.path, &error.to_string());
        fs::rename(&self.temporary, &self.path).map_err(failed)?;
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // The rename has happened; a folder that cannot be synced is not worth an error.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is nothing under this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// In the same folder, so that a rename stays on one file system.
fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".tmp_{name}.{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn file(path: &str, text: &str) -> NewFile {
        NewFile { path: path.into(), text: text.into() }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_changed_files_are_written_and_stale_ones_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/crate");
        let first = [file("Cargo.toml", "a"), file("src/lib.rs", "b")];
        assert_eq!(replace_folder(&folder, &first).unwrap(), ["Cargo.toml", "src/lib.rs"]);
        fs::create_dir(folder.join("target")).unwrap();
        let second = [file("Cargo.toml", "a"), file("src/main.rs", "c")];
        assert_eq!(replace_folder(&folder, &second).unwrap(), ["src/main.rs"]);
        assert_eq!(names(&folder), [LIST, "Cargo.toml", "src", "target"]);
        assert_eq!(names(&folder.join("src")), ["main.rs"]);
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        let Err(Failure::Fault(fault)) = replace_folder(dir.path(), &[file("a", "b")]) else {
            panic!("not refused")
        };
        assert_eq!(fault.code, codes::FOREIGN_FOLDER);
        assert_eq!(names(dir.path()), ["mine"]);
    }

    #[test]
    fn an_unlisted_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        replace_folder(dir.path(), &[file("a", "b")]).unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        assert!(replace_folder(dir.path(), &[file("a", "c"), file("mine", "y")]).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "b");
        assert_eq!(fs::read_to_string(dir.path().join("mine")).unwrap(), "x");
    }

    #[test]
    fn a_list_cannot_reach_out_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("victim"), "x").unwrap();
        let folder = dir.path().join("crate");
        fs::create_dir(&folder).unwrap();
        let list = r#"{"compiler": "0", "files": ["../victim"]}"#;
        fs::write(folder.join(LIST), list).unwrap();
        replace_folder(&folder, &[file("a", "b")]).unwrap();
        assert!(dir.path().join("victim").exists());
    }

    #[test]
    fn replacing_keeps_links_and_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&real, &link).unwrap();
        replace(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(dir.path()), ["link", "real"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        assert!(replace(&path, "new").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["f"]);
    }
}
