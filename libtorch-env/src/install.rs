//! Installs libtorch as pip's `torch` package into a virtual environment.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, VERSION, record};

/// The file whose presence says that an install is complete.
const STAMP: &str = "lightc-complete";

/// The lines of a failed command that its error shows.
const TAIL_LINES: usize = 20;

/// How often a silent command's progress is reported.
const TICK: Duration = Duration::from_secs(1);

/// What an install reports while it runs.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A step begins.
    Step(&'a str),
    /// A line that a command printed.
    Output(&'a str),
    /// A command still runs.
    Working {
        /// Time since the command began.
        elapsed: Duration,
        /// Bytes in the virtual environment so far.
        bytes: u64,
    },
}

type Report<'a> = &'a mut dyn FnMut(Progress<'_>);

/// Whether an install in `venv` ran to its end.
pub(crate) fn is_complete(venv: &Path) -> bool {
    fs::read_to_string(venv.join(STAMP)).is_ok_and(|text| text == stamp_text())
}

/// Installs into `venv`, unless another process does so first.
pub(crate) fn install(python: &Path, venv: &Path, report: Report<'_>) -> Result<(), Error> {
    check_python(python)?;
    let parent = venv.parent().ok_or(Error::NoCacheFolder)?;
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    // Released when the file is closed, also by a crash.
    let _lock = lock(&venv.with_extension("lock"), report)?;
    if is_complete(venv) {
        return Ok(());
    }
    prepare(venv, report)?;
    if !venv.join("bin/python").exists() {
        create_venv(python, venv, report)?;
    }
    pip_install(venv, report)?;
    report(Progress::Step("comparing the installed files with what their packages record"));
    if let Some(damage) = record::first_damage(&site_packages(venv)?)? {
        return Err(Error::Damaged { venv: venv.to_owned(), damage });
    }
    write_stamp(venv)
}

/// The folder that holds the packages of `venv`.
pub(crate) fn site_packages(venv: &Path) -> Result<PathBuf, Error> {
    let lib = venv.join("lib");
    let entries = fs::read_dir(&lib).map_err(Error::io("read", &lib))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("site-packages"))
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found.pop().ok_or_else(|| Error::Damaged {
        venv: venv.to_owned(),
        damage: format!("{}/python*/site-packages does not exist", lib.display()),
    })
}

fn stamp_text() -> String {
    format!("torch {VERSION}\n")
}

fn write_stamp(venv: &Path) -> Result<(), Error> {
    let stamp = venv.join(STAMP);
    let draft = venv.join(format!("{STAMP}.draft"));
    let mut file = File::create(&draft).map_err(Error::io("create", &draft))?;
    file.write_all(stamp_text().as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &draft))?;
    fs::rename(&draft, &stamp).map_err(Error::io("rename to", &stamp))
}

fn check_python(python: &Path) -> Result<(), Error> {
    let failed = |reason: String| Error::Python { python: python.to_owned(), reason };
    if !cfg!(target_os = "linux") {
        return Err(failed(format!(
            "this is {}, and only Linux is supported",
            std::env::consts::OS
        )));
    }
    let output = Command::new(python)
        .args(["-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"])
        .output()
        .map_err(|e| failed(format!("it does not start ({e})")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(failed(text.lines().last().unwrap_or("it fails").to_owned()));
    }
    match parse_python_version(&String::from_utf8_lossy(&output.stdout)) {
        Some(version) if version >= (3, 10) => Ok(()),
        Some((major, minor)) => Err(failed(format!("it is Python {major}.{minor}, 3.10 needed"))),
        None => Err(failed("it does not state its version".to_owned())),
    }
}

fn parse_python_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(' ')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn lock(path: &Path, report: Report<'_>) -> Result<File, Error> {
    let file = File::create(path).map_err(Error::io("create", path))?;
    if file.try_lock().is_err() {
        report(Progress::Step("another process is installing libtorch; waiting for it"));
        file.lock().map_err(Error::io("lock", path))?;
    }
    Ok(file)
}

/// Keeps what an earlier install left if it is whole, else deletes it.
fn prepare(venv: &Path, report: Report<'_>) -> Result<(), Error> {
    if !venv.exists() {
        return Ok(());
    }
    let Some(damage) = damage_left_behind(venv)? else {
        return Ok(());
    };
    report(Progress::Step(&format!("an earlier install was cut short ({damage}); starting over")));
    fs::remove_dir_all(venv).map_err(Error::io("delete", venv))
}

/// pip installs `torch` after everything that it needs, so an install that has
/// it, undamaged, got to its end.
fn damage_left_behind(venv: &Path) -> Result<Option<String>, Error> {
    let packages = match site_packages(venv) {
        Ok(packages) => packages,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let torch = packages.join(format!("torch-{VERSION}.dist-info"));
    if !torch.exists() {
        return Ok(Some(format!("{} does not exist", torch.display())));
    }
    record::first_damage(&packages)
}

fn create_venv(python: &Path, venv: &Path, report: Report<'_>) -> Result<(), Error> {
    report(Progress::Step(&format!("creating a Python environment in {}", venv.display())));
    let mut command = Command::new(python);
    let _ = command.args(["-m", "venv"]).arg(venv);
    run(&mut command, venv, report, "install Python's venv module, or set LIBTORCH")
}

fn pip_install(venv: &Path, report: Report<'_>) -> Result<(), Error> {
    report(Progress::Step(&format!(
        "installing torch=={VERSION} with pip: about 2.5 GB to download, 5 GB on disk"
    )));
    let mut command = Command::new(venv.join("bin/python"));
    let _ = command
        .args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check"])
        .args(["--progress-bar", "off"])
        .arg(format!("torch=={VERSION}"))
        .env_remove("PYTHONHOME")
        .env_remove("PYTHONPATH");
    run(
        &mut command,
        venv,
        report,
        "check the network and the free disk space and run the command again, \
         or set LIBTORCH to a folder with libtorch",
    )
}

/// Runs a command, reporting its lines as they come and its progress between.
fn run(
    command: &mut Command,
    watched: &Path,
    report: Report<'_>,
    fix: &'static str,
) -> Result<(), Error> {
    let program = PathBuf::from(command.get_program());
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("start", &program))?;
    let (sender, lines) = mpsc::channel();
    forward(child.stdout.take(), sender.clone());
    forward(child.stderr.take(), sender);
    let mut tail: Vec<String> = Vec::new();
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                report(Progress::Output(&line));
                if tail.len() == TAIL_LINES {
                    let _ = tail.remove(0);
                }
                tail.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                let bytes = folder_bytes(watched);
                report(Progress::Working { elapsed: began.elapsed(), bytes });
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(Error::io("wait for", &program))?;
    if status.success() { Ok(()) } else { Err(failure(command, status, &tail, fix)) }
}

fn failure(command: &Command, status: ExitStatus, tail: &[String], fix: &'static str) -> Error {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    Error::Command {
        command: line.join(" "),
        status: status.to_string(),
        tail: tail.join("\n"),
        fix,
    }
}

/// Sends the lines of a stream until it ends.
fn forward(stream: Option<impl Read + Send + 'static>, sender: Sender<String>) {
    let Some(stream) = stream else { return };
    let _ = thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
}

/// The size of the files below a folder; what cannot be read counts as empty.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::fake_torch;
    use crate::{Origin, Settings, find};

    fn settings(venv: &Path) -> Settings {
        Settings {
            libtorch: None,
            libtorch_include: None,
            libtorch_lib: None,
            use_pytorch: false,
            python: "python3".into(),
            venv: Some(venv.to_owned()),
        }
    }

    fn fake_venv(venv: &Path) -> PathBuf {
        let packages = venv.join("lib/python3.12/site-packages");
        fake_torch(&packages.join("torch"), "2.11.0+cu130");
        packages
    }

    #[test]
    fn an_install_without_its_stamp_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let _ = fake_venv(dir.path());
        assert_eq!(find(&settings(dir.path())).unwrap(), None);
        fs::write(dir.path().join(STAMP), "torch 2.10.0\n").unwrap();
        assert_eq!(find(&settings(dir.path())).unwrap(), None);
        write_stamp(dir.path()).unwrap();
        let found = find(&settings(dir.path())).unwrap().unwrap();
        assert_eq!((found.version.as_str(), found.origin), ("2.11.0", Origin::Cache));
    }

    #[test]
    fn a_stamped_install_that_lost_files_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let packages = fake_venv(dir.path());
        write_stamp(dir.path()).unwrap();
        fs::remove_dir_all(packages.join("torch/include")).unwrap();
        let text = find(&settings(dir.path())).unwrap_err().to_string();
        assert!(text.contains("torch.h does not exist"), "{text}");
        assert!(text.contains("fix: delete that virtual environment"), "{text}");
    }

    #[test]
    fn the_libtorch_variable_comes_before_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let venv = dir.path().join("venv");
        let _ = fake_venv(&venv);
        write_stamp(&venv).unwrap();
        let named = dir.path().join("named");
        fake_torch(&named, "2.11.0");
        let mut settings = settings(&venv);
        settings.libtorch = Some(named.clone());
        assert_eq!(find(&settings).unwrap().unwrap().root, named);
        settings.libtorch = Some(dir.path().join("absent"));
        assert!(find(&settings).is_err(), "a named libtorch that is absent is not skipped");
    }

    #[test]
    fn what_an_interrupted_install_left_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let venv = dir.path().join("venv");
        let packages = fake_venv(&venv);
        fs::create_dir_all(packages.join("torch-2.11.0.dist-info")).unwrap();
        let mut steps = Vec::new();
        prepare(&venv, &mut |progress| steps.push(format!("{progress:?}"))).unwrap();
        assert!(!venv.exists());
        assert!(steps.concat().contains("RECORD does not exist"), "{steps:?}");
    }

    #[test]
    fn an_environment_without_the_package_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let venv = dir.path().join("venv");
        fs::create_dir_all(venv.join("lib/python3.12/site-packages")).unwrap();
        prepare(&venv, &mut |_| {}).unwrap();
        assert!(!venv.exists());
    }

    #[test]
    fn a_whole_install_without_a_stamp_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let packages = fake_venv(dir.path());
        let info = packages.join("torch-2.11.0.dist-info");
        fs::create_dir_all(&info).unwrap();
        fs::write(info.join("RECORD"), "torch/lib/libc10.so,sha256=x,0\n").unwrap();
        prepare(dir.path(), &mut |_| {}).unwrap();
        assert!(packages.exists());
    }

    #[test]
    fn a_failed_command_shows_its_last_lines() {
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        let _ = command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let error = run(
            &mut command,
            Path::new("."),
            &mut |progress| seen.push(format!("{progress:?}")),
            "try again",
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("two") && text.contains("fix: try again"), "{text}");
        assert!(seen.contains(&"Output(\"one\")".to_owned()), "{seen:?}");
    }

    #[test]
    fn python_versions_are_compared_as_numbers() {
        assert!(parse_python_version("3 9\n") < Some((3, 10)));
        assert!(parse_python_version("3 14\n") > Some((3, 10)));
        assert_eq!(parse_python_version("?"), None);
    }
}
