//! The demo's text: the repository's own tracked sources and documentation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// Files whose text is taken.
const EXTENSIONS: [&str; 4] = ["llm", "md", "rs", "toml"];

/// A list of documents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Corpus {
    /// The file that holds it, one path per line.
    pub(crate) list: PathBuf,
    /// How many files are on it.
    pub(crate) n_files: usize,
    /// Bytes in those files together.
    pub(crate) n_bytes: u64,
}

/// Lists every tracked text file in `list`. Whole files are documents; `lightc prepare` decides
/// which are held out.
pub(crate) fn write_list(list: PathBuf) -> Result<Corpus> {
    let files = tracked_files()?;
    ensure!(!files.is_empty(), "git lists no text file");
    let mut text = String::new();
    let mut n_bytes = 0;
    for file in &files {
        let full = process::root().join(file);
        let metadata = fs::metadata(&full)
            .with_context(|| format!("{} is tracked but cannot be read", file.display()))?;
        n_bytes += metadata.len();
        text.push_str(&full.to_string_lossy());
        text.push('\n');
    }
    if let Some(folder) = list.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(&list, text).with_context(|| format!("cannot write {}", list.display()))?;
    Ok(Corpus { list, n_files: files.len(), n_bytes })
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    let _ = command.args(["ls-files", "-z"]).current_dir(process::root());
    let text = process::output(&mut command)
        .context("the demo's text is what git tracks; fix: install git and run in a git clone")?;
    let mut files: Vec<PathBuf> =
        text.split('\0').map(PathBuf::from).filter(|path| is_text(path)).collect();
    files.sort();
    Ok(files)
}

/// Sources and documents; what is generated and pinned beside a source is neither.
fn is_text(path: &Path) -> bool {
    let pinned = path.parent().is_some_and(|p| p.extension().is_some_and(|e| e == "snapshots"));
    !pinned && path.extension().is_some_and(|found| EXTENSIONS.iter().any(|known| found == *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_tracked_files_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = write_list(dir.path().join("below").join("files.txt")).unwrap();
        let text = fs::read_to_string(&corpus.list).unwrap();
        assert_eq!(text.lines().count(), corpus.n_files);
        let bytes: u64 = text.lines().map(|line| fs::metadata(line).unwrap().len()).sum();
        assert_eq!(bytes, corpus.n_bytes);
        assert!(text.lines().any(|line| line.ends_with("README.md")));
    }

    #[test]
    fn only_sources_and_documents_are_text() {
        for (path, expected) in [
            ("a/b.llm", true),
            ("README.md", true),
            ("Cargo.lock", false),
            ("LICENSE", false),
            ("a.snap", false),
            ("models/a.llm.snapshots/a.rust.rs", false),
        ] {
            assert_eq!(is_text(Path::new(path)), expected, "{path}");
        }
    }
}
