//! The demo's text: the repository's own tracked sources and documentation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// Files whose text is taken.
const EXTENSIONS: [&str; 4] = ["llm", "md", "rs", "toml"];

/// One file in this many is held out.
const HELD_OUT_EVERY: usize = 10;

/// The two parts of a corpus, each one file of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Corpus {
    /// The text to train on.
    pub(crate) train: Part,
    /// The text that the loss is measured on and that training never sees.
    pub(crate) held_out: Part,
}

/// One part of a corpus.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where the text was written.
    pub(crate) path: PathBuf,
    /// How many files it came from.
    pub(crate) n_files: usize,
    /// Its length.
    pub(crate) n_bytes: usize,
}

/// Writes `train.txt` and `held_out.txt` into `folder`.
///
/// Whole files are held out, every tenth in the order of their paths, so that no
/// held-out line has its neighbours in the training part.
pub(crate) fn write(folder: &Path) -> Result<Corpus> {
    let files = tracked_files()?;
    ensure!(
        files.len() > HELD_OUT_EVERY,
        "the corpus needs more than {HELD_OUT_EVERY} tracked text files, and git lists {}",
        files.len()
    );
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (held_out, train) = split(files);
    Ok(Corpus {
        train: write_part(folder.join("train.txt"), &train)?,
        held_out: write_part(folder.join("held_out.txt"), &held_out)?,
    })
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    let _ = command
        .args(["ls-files", "-z"])
        .current_dir(process::root());
    let text = process::output(&mut command)
        .context("the demo's text is what git tracks; fix: install git and run in a git clone")?;
    let mut files: Vec<PathBuf> = text
        .split('\0')
        .map(PathBuf::from)
        .filter(|path| is_text(path))
        .collect();
    files.sort();
    Ok(files)
}

fn is_text(path: &Path) -> bool {
    path.extension()
        .is_some_and(|found| EXTENSIONS.iter().any(|known| found == *known))
}

/// The held-out files and the others.
fn split(files: Vec<PathBuf>) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let numbered = files.into_iter().enumerate();
    let (held_out, train): (Vec<_>, Vec<_>) =
        numbered.partition(|(idx, _)| idx % HELD_OUT_EVERY == HELD_OUT_EVERY - 1);
    let paths = |part: Vec<(usize, PathBuf)>| part.into_iter().map(|(_, path)| path).collect();
    (paths(held_out), paths(train))
}

fn write_part(path: PathBuf, files: &[PathBuf]) -> Result<Part> {
    let mut text = String::new();
    for file in files {
        let full = process::root().join(file);
        let content = fs::read_to_string(&full)
            .with_context(|| format!("cannot read {} as UTF-8 text", file.display()))?;
        text.push_str(&content);
        text.push('\n');
    }
    fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Part {
        path,
        n_files: files.len(),
        n_bytes: text.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_file_is_held_out_whole() {
        let files: Vec<PathBuf> = (0..25)
            .map(|n| PathBuf::from(format!("{n:02}.rs")))
            .collect();
        let (held_out, train) = split(files);
        assert_eq!(held_out, [PathBuf::from("09.rs"), PathBuf::from("19.rs")]);
        assert_eq!(train.len(), 23);
        assert!(held_out.iter().all(|file| !train.contains(file)));
    }

    #[test]
    fn both_parts_are_written_from_the_tracked_files() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = write(dir.path()).unwrap();
        for part in [&corpus.train, &corpus.held_out] {
            assert!(part.n_files > 0);
            assert_eq!(fs::read_to_string(&part.path).unwrap().len(), part.n_bytes);
        }
        assert!(corpus.train.n_files >= 9 * corpus.held_out.n_files);
    }

    #[test]
    fn only_sources_and_documents_are_text() {
        for (path, expected) in [
            ("a/b.llm", true),
            ("README.md", true),
            ("Cargo.lock", false),
            ("LICENSE", false),
            ("a.snap", false),
        ] {
            assert_eq!(is_text(Path::new(path)), expected, "{path}");
        }
    }
}
