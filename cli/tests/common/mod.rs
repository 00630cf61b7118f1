//! Runs the command in a folder of its own and writes down what it did.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with a copy of `models/`, in which commands run.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A copy of all sources.
    pub(crate) fn whole() -> Self {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        copy_sources(&root().join("models"), &place.path("models"));
        place
    }

    /// A copy in which the files of the lineage are cut down to their first stage: what the others
    /// are is tested in `lightc-codegen`.
    pub(crate) fn new() -> Self {
        let place = Place::whole();
        for file in ["models/tiny/tiny.llm", "models/lightning/lightning.llm"] {
            let text = place.read(file);
            let stage = text.find("\nstage ").unwrap();
            let end = stage + text[stage..].find("\n}\n").unwrap() + 3;
            place.write(file, &text[..end]);
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Replaces the one place in a file that has `from`.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert_eq!(text.matches(from).count(), 1, "`{from}` in {name}");
        self.write(name, text.replace(from, to));
    }

    /// Names in a folder, with a `/` after folders.
    pub(crate) fn list(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| {
                let entry = entry.unwrap();
                let mark = if entry.path().is_dir() { "/" } else { "" };
                entry.file_name().into_string().unwrap() + mark
            })
            .collect();
        names.sort();
        names
    }

    /// `lightc` in an environment that has nothing of this machine's but the search path.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lightc"));
        command.args(arguments).current_dir(self.dir.path());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path("home")).env("XDG_CACHE_HOME", self.path("cache"));
        // rustup's shims look below HOME unless told otherwise.
        for (name, folder) in [("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")] {
            let home = std::env::home_dir().unwrap_or_default().join(folder);
            command.env(name, std::env::var_os(name).unwrap_or(home.into()));
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What is printed on stdout by a command that succeeds.
    pub(crate) fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = self.transcript_of(arguments, &output);
        assert!(output.status.success(), "{text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The command, what it printed where, and its exit code.
    pub(crate) fn transcript(&self, arguments: &[&str]) -> String {
        self.transcript_of(arguments, &self.run(arguments))
    }

    pub(crate) fn transcript_of(&self, arguments: &[&str], output: &Output) -> String {
        let mut text = format!("$ lightc {}\n", arguments.join(" "));
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        if !output.stderr.is_empty() {
            text.push_str("--- stderr\n");
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        if !output.status.success() {
            text.push_str(&format!("--- {}\n", output.status));
        }
        self.without_paths(&text)
    }

    /// Names of this machine taken out.
    pub(crate) fn without_paths(&self, text: &str) -> String {
        let here = self.dir.path().canonicalize().unwrap().display().to_string();
        let root = root().canonicalize().unwrap().display().to_string();
        text.replace(&here, "[HERE]").replace(&root, "[CHECKOUT]")
    }
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn copy_sources(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() && !path.ends_with("src") {
            copy_sources(&path, &to);
        } else if path.extension().is_some_and(|extension| extension == "llm") {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&path, &to).unwrap();
        }
    }
}
