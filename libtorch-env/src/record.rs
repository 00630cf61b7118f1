//! Compares installed files with what their packages record.
//!
//! Each package that pip installs leaves a `RECORD` with the path, digest and
//! size of every file, and writes it last. An install that was killed, or a disk
//! that was full, shows as a missing `RECORD`, a missing file or another size.
//! Digests are not computed: gigabytes would be read at every check.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// The first difference between `packages` and its records, in words.
pub(crate) fn first_damage(packages: &Path) -> Result<Option<String>, Error> {
    for folder in dist_infos(packages)? {
        let record = folder.join("RECORD");
        let Ok(text) = fs::read_to_string(&record) else {
            return Ok(Some(format!("{} does not exist", record.display())));
        };
        let damage = text.lines().filter_map(parse_line).find_map(|file| damage(packages, &file));
        if damage.is_some() {
            return Ok(damage);
        }
    }
    Ok(None)
}

fn dist_infos(packages: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(packages).map_err(Error::io("read", packages))?;
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", packages))?.path();
        if path.extension().is_some_and(|extension| extension == "dist-info") {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

#[derive(Debug, PartialEq, Eq)]
struct RecordedFile {
    path: String,
    bytes: u64,
}

/// `path,digest,bytes`; `None` for a line that states no size, as for compiled
/// files and for `RECORD` itself.
fn parse_line(line: &str) -> Option<RecordedFile> {
    let mut from_the_end = line.rsplitn(3, ',');
    let bytes = from_the_end.next()?.trim().parse().ok()?;
    let _digest = from_the_end.next()?;
    let path = from_the_end.next()?;
    let path = match path.strip_prefix('"').and_then(|p| p.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => path.to_owned(),
    };
    Some(RecordedFile { path, bytes })
}

fn damage(packages: &Path, file: &RecordedFile) -> Option<String> {
    let path = packages.join(&file.path);
    match fs::metadata(&path) {
        Err(_) => Some(format!("{} does not exist", path.display())),
        Ok(metadata) if metadata.len() != file.bytes => Some(format!(
            "{} has {} bytes, {} recorded",
            path.display(),
            metadata.len(),
            file.bytes
        )),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages_with(record: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("torch-2.11.0.dist-info")).unwrap();
        fs::write(dir.path().join("a.so"), "12345").unwrap();
        if let Some(text) = record {
            fs::write(dir.path().join("torch-2.11.0.dist-info/RECORD"), text).unwrap();
        }
        dir
    }

    fn check(record: Option<&str>) -> Option<String> {
        let dir = packages_with(record);
        let text = first_damage(dir.path()).unwrap()?;
        Some(text.replace(&dir.path().display().to_string(), "DIR"))
    }

    #[test]
    fn a_whole_install_has_no_damage() {
        assert_eq!(check(Some("a.so,sha256=x,5\ntorch-2.11.0.dist-info/RECORD,,\n")), None);
    }

    #[test]
    fn a_cut_file_is_named_with_both_sizes() {
        assert_eq!(
            check(Some("a.so,sha256=x,9\n")).as_deref(),
            Some("DIR/a.so has 5 bytes, 9 recorded")
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        assert_eq!(check(Some("b.so,sha256=x,9\n")).as_deref(), Some("DIR/b.so does not exist"));
    }

    #[test]
    fn a_package_without_a_record_was_cut_short() {
        assert_eq!(
            check(None).as_deref(),
            Some("DIR/torch-2.11.0.dist-info/RECORD does not exist")
        );
    }

    #[test]
    fn a_path_with_a_comma_is_quoted() {
        assert_eq!(
            parse_line("\"a,\"\"b\"\".py\",sha256=x,7"),
            Some(RecordedFile { path: "a,\"b\".py".into(), bytes: 7 })
        );
        assert_eq!(parse_line("a.pyc,,"), None);
    }
}
