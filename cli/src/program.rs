//! The program of a stage: generated, compiled once per content, run in this process's place.
//!
//! ```text
//! ${XDG_CACHE_HOME:-~/.cache}/lightc/build/
//!   lock                    held while a program is compiled
//!   target/                 cargo's, where no checkout's own is at hand
//!   tiny_2b-0123456789ab/   the generated crate, named by stage and content
//!     program               the compiled program
//! ```
//!
//! The content is the generated files (and with them the sources and the version of the compiler)
//! and the sources of the runtime. cargo is asked every time: it knows best what is up to date.
//! Where lightc runs from the target folder of a checkout, cargo builds into that same folder,
//! so that what the checkout has compiled in release is not compiled again.

use crate::failure::{Failure, Fault, codes};
use crate::files::{self, NewFile};
use crate::runtime::{self, Runtime};
use crate::source::{Loaded, file_name};
use crate::target::Target;
use crate::terminal;
use lightc_codegen::emit::{Origin, emit_crate};
use lightc_codegen::rewrite::share::Share;
use lightc_codegen::{pipeline, schedule};
use lightc_dsl::model::StageModel;
use lightc_libtorch::{Environment, Settings};
use std::fs::{self, File, TryLockError};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The name of the compiled program in its crate's folder.
const PROGRAM: &str = "program";

/// A compiled program.
pub(crate) struct Program {
    path: PathBuf,
    environment: Environment,
}

impl Program {
    /// Generates and compiles the program of a stage.
    pub(crate) fn build(
        file: &Path,
        stage: &str,
        target: Target,
        share: Option<Share>,
        runtime: &runtime::Choice,
    ) -> Result<Self, Failure> {
        let runtime = runtime.find()?;
        let (loaded, model) = Loaded::read_stage(file, stage)?;
        // The name alone: the same stage is the same program wherever it is started.
        let origin = loaded.origin(file_name(file));
        let files = generate(loaded, &model, &origin, &runtime, (target.into(), share))?;
        let environment = environment()?;
        let cache = cache_folder()?;
        let folder = cache.join(format!("{stage}-{}", key(&files, &runtime)?));
        files::create_folder(&cache)?;
        // Released when it is dropped, also by a crash.
        let _lock = lock(&cache.join("lock"))?;
        files::replace_folder(&folder, &files)?;
        let built = cargo_build(&folder, &runtime, &environment, &target_folder(&cache))?;
        let path = folder.join(PROGRAM);
        files::install(&built, &path)?;
        Ok(Program { path, environment })
    }

    /// The program with one of its subcommands.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.path);
        self.environment.apply(command.arg(subcommand));
        command
    }

    /// Becomes the program. Returns only if that fails.
    pub(crate) fn run(&self, mut command: Command) -> Failure {
        let error = command.exec();
        let message = format!("cannot start `{}`: {error}", self.path.display());
        Fault::new(codes::NOT_BUILT, message).into()
    }
}

/// The files of a standalone crate, of a whole stage or of one rank's share.
pub(crate) fn generate(
    loaded: Loaded,
    model: &StageModel,
    origin: &Origin,
    runtime: &Runtime,
    (target, share): (schedule::Target, Option<Share>),
) -> Result<Vec<NewFile>, Failure> {
    let compiled = match pipeline::compile_share(model, target, share) {
        Ok(compiled) => compiled,
        Err(found) => return Err(loaded.failure(found)),
    };
    let program = match pipeline::program_for(&compiled, target) {
        Ok(program) => program,
        Err(found) => return Err(loaded.failure(found)),
    };
    let path = runtime.path.to_str().ok_or_else(|| {
        Fault::new(codes::NO_RUNTIME, format!("the path `{}` is not UTF-8", runtime.path.display()))
    })?;
    let files = emit_crate(&program, origin, path).map_err(compiler_fault)?;
    let mut files: Vec<NewFile> =
        files.into_iter().map(|file| NewFile { path: file.path, text: file.text }).collect();
    // The versions that the runtime was tested with, and that are compiled already.
    let lock = runtime.workspace().map(|folder| folder.join("Cargo.lock"));
    if let Some(text) = lock.and_then(|lock| fs::read_to_string(lock).ok()) {
        files.push(NewFile { path: "Cargo.lock".to_owned(), text });
    }
    Ok(files)
}

/// A fault of emit: what it is given was checked.
pub(crate) fn compiler_fault(message: String) -> Failure {
    Fault::new("E0701", message).help("please report it with the source").into()
}

/// The environment of libtorch, which must be there: an install is asked for, not a surprise.
fn environment() -> Result<Environment, Failure> {
    match lightc_libtorch::find(&Settings::from_env()) {
        Ok(Some(libtorch)) => Ok(libtorch.environment()),
        Ok(None) => Err(Fault::new(codes::NO_LIBTORCH, "libtorch is not installed")
            .help(format!(
                "`lightc doctor --install` installs {} into the cache folder (5 GB),\n\
                 or set LIBTORCH to a folder that has it",
                lightc_libtorch::VERSION
            ))
            .into()),
        Err(error) => Err(Fault::new(codes::NO_LIBTORCH, error.to_string()).into()),
    }
}

/// Where crates are built.
pub(crate) fn cache_folder() -> Result<PathBuf, Failure> {
    let variable = |name: &str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    let cache = variable("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let cache = cache.ok_or_else(|| {
        Fault::new(
            codes::UNWRITABLE,
            "there is no cache folder: neither XDG_CACHE_HOME nor HOME is set",
        )
    })?;
    Ok(cache.join("lightc").join("build"))
}

/// Names the content that a program is made of.
fn key(files: &[NewFile], runtime: &Runtime) -> Result<String, Failure> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &[u8]| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    for file in files {
        add(file.path.as_bytes());
        add(file.text.as_bytes());
    }
    // The runtime and the crates that it shares with this command.
    let beside = ["checkpoint", "kernels"].map(|name| runtime.path.with_file_name(name));
    for folder in std::iter::once(runtime.path.clone()).chain(beside) {
        for path in rust_files(&folder) {
            let text = fs::read(&path).map_err(|error| {
                let message = format!("cannot read `{}`: {error}", path.display());
                Fault::new(codes::UNREADABLE, message)
            })?;
            add(path.strip_prefix(&folder).unwrap_or(&path).as_os_str().as_encoded_bytes());
            add(&text);
        }
    }
    let digest = hasher.finalize().to_hex();
    Ok(digest.chars().take(12).collect())
}

/// The manifest and sources of a crate, in the order of their paths.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.join("Cargo.toml")];
    let mut folders = vec![folder.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

fn lock(path: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| {
        Fault::new(codes::UNWRITABLE, format!("cannot lock `{}`: {error}", path.display()))
    };
    let file = File::options().create(true).append(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            terminal::say("waiting for another lightc that builds a program\n");
            file.lock().map_err(failed)?;
        }
        Err(TryLockError::Error(error)) => return Err(failed(error).into()),
    }
    Ok(file)
}

/// The target folder that this command was itself built into, or one in the cache. `None` leaves
/// the choice to `CARGO_TARGET_DIR`.
fn target_folder(cache: &Path) -> Option<PathBuf> {
    if std::env::var_os("CARGO_TARGET_DIR").is_some_and(|value| !value.is_empty()) {
        return None;
    }
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(Path::parent).and_then(Path::parent);
    let own = own.filter(|folder| folder.join(".rustc_info.json").is_file());
    Some(own.map_or_else(|| cache.join("target"), Path::to_owned))
}

/// Compiles a generated crate, showing cargo's progress, and gives the path of the program.
fn cargo_build(
    folder: &Path,
    runtime: &Runtime,
    environment: &Environment,
    target: &Option<PathBuf>,
) -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.args(["build", "--release", "--message-format", "json-render-diagnostics"]);
    command.arg("--manifest-path").arg(folder.join("Cargo.toml"));
    // The toolchain is chosen by the folder that cargo starts in: the runtime's.
    command.current_dir(runtime.workspace().unwrap_or(&runtime.path));
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target);
    }
    environment.apply(&mut command);
    terminal::say(&format!("building {}\n", folder.display()));
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| {
        Fault::new(codes::NOT_BUILT, format!("cannot start cargo: {error}"))
            .help("install Rust (https://rustup.rs); `lightc doctor` says what else is needed")
    })?;
    let built = executable(&String::from_utf8_lossy(&output.stdout));
    match built {
        Some(path) if output.status.success() => Ok(path),
        _ => Err(Fault::new(
            codes::NOT_BUILT,
            format!("cargo did not build `{}`: {}", folder.display(), output.status),
        )
        .help("cargo's own message is above; `lightc doctor` says what a build needs")
        .into()),
    }
}

/// The cargo that runs this command, or the one on the path.
pub(crate) fn cargo() -> Command {
    let found = std::env::var_os("CARGO").filter(|value| !value.is_empty());
    Command::new(found.unwrap_or_else(|| "cargo".into()))
}

/// The program that cargo's messages name.
fn executable(messages: &str) -> Option<PathBuf> {
    let mut named = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    named.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_last_executable_that_cargo_names() {
        let messages = r#"{"reason":"compiler-artifact","executable":null}
not json
{"reason":"compiler-artifact","executable":"/t/release/tiny_2b"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some("/t/release/tiny_2b".into()));
        assert_eq!(executable("{}"), None);
    }

    #[test]
    fn the_key_covers_generated_files_and_the_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runtime");
        fs::create_dir_all(path.join("src")).unwrap();
        fs::write(path.join("src/lib.rs"), "a").unwrap();
        let runtime = Runtime { path: path.clone(), origin: "test" };
        let file = |text: &str| [NewFile { path: "x".into(), text: text.into() }];
        let first = key(&file("1"), &runtime).unwrap();
        assert_eq!(first, key(&file("1"), &runtime).unwrap());
        assert_ne!(first, key(&file("2"), &runtime).unwrap());
        fs::write(path.join("src/lib.rs"), "b").unwrap();
        assert_ne!(first, key(&file("1"), &runtime).unwrap());
    }
}
