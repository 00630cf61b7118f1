//! What a libtorch folder must hold, and which version it is.
//!
//! Two layouts exist. The archive of libtorch has `build-version`, `include/`
//! and `lib/` and brings every library it needs. The `torch` package of pip has
//! `version.py` in place of `build-version`, and finds the CUDA libraries in
//! sibling packages (`nvidia/*/lib`) through the run path of its own libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Settings, VERSION};

/// What named a libtorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// The variable `LIBTORCH`.
    Variable,
    /// The `torch` package of Python, through `LIBTORCH_USE_PYTORCH`.
    Python,
    /// The virtual environment in the cache folder.
    Cache,
}

impl Origin {
    /// The origin in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Variable => "LIBTORCH",
            Self::Python => "LIBTORCH_USE_PYTORCH",
            Self::Cache => "the cache folder",
        }
    }

    fn fix(self) -> String {
        match self {
            Self::Variable => {
                format!(
                    "point LIBTORCH at libtorch {VERSION}, or unset it to have {VERSION} installed"
                )
            }
            Self::Python => {
                format!("install torch=={VERSION} in that Python, or unset LIBTORCH_USE_PYTORCH")
            }
            Self::Cache => "delete that virtual environment and run the command again".to_owned(),
        }
    }
}

/// A libtorch of the right version with the files that a build opens first.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Libtorch {
    /// The folder to give to torch-sys as `LIBTORCH`.
    pub root: PathBuf,
    /// The version without its build suffix, for example `2.11.0`.
    pub version: String,
    /// What named it.
    pub origin: Origin,
    /// Folders with shared libraries: libtorch's own first, then CUDA's.
    pub library_folders: Vec<PathBuf>,
}

/// Inspects the folder that `LIBTORCH` names, with the two variables by which
/// headers or libraries can lie elsewhere.
pub(crate) fn inspect_named(root: &Path, settings: &Settings) -> Result<Libtorch, Error> {
    let include = settings.libtorch_include.as_deref().unwrap_or(root);
    let lib = settings.libtorch_lib.as_deref().unwrap_or(root);
    inspect_parts(root, include, lib, Origin::Variable)
}

/// Inspects a folder that has its headers and libraries in the usual places.
pub(crate) fn inspect(root: &Path, origin: Origin) -> Result<Libtorch, Error> {
    inspect_parts(root, root, root, origin)
}

/// Asks Python where its `torch` package is. The package is not imported:
/// that takes seconds and can fail for reasons of no interest here.
pub(crate) fn inspect_python(python: &Path) -> Result<Libtorch, Error> {
    let script = "import importlib.util as u; s = u.find_spec('torch'); \
                  print(s.submodule_search_locations[0] if s else '')";
    let failed = |reason: String| Error::NoTorchPackage { python: python.to_owned(), reason };
    let output = Command::new(python)
        .args(["-c", script])
        .output()
        .map_err(|e| failed(format!("it does not start ({e})")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if answer.is_empty() {
        return Err(failed("the package is not installed".to_owned()));
    }
    inspect(Path::new(&answer), Origin::Python)
}

fn inspect_parts(
    root: &Path,
    include: &Path,
    lib: &Path,
    origin: Origin,
) -> Result<Libtorch, Error> {
    let library_folder = lib.join("lib");
    let needed = [
        library_folder.join("libtorch_cpu.so"),
        library_folder.join("libtorch.so"),
        library_folder.join("libc10.so"),
        include.join("include/torch/csrc/api/include/torch/torch.h"),
    ];
    if let Some(missing) = needed.into_iter().find(|path| !path.exists()) {
        return Err(incomplete(root, missing, origin));
    }
    let version = version_of(root, include)
        .ok_or_else(|| incomplete(root, root.join("build-version"), origin))?;
    if !is_accepted(&version) {
        return Err(Error::Version {
            root: root.to_owned(),
            found: version,
            origin: origin.describe(),
            fix: origin.fix(),
        });
    }
    let mut library_folders = vec![library_folder];
    library_folders.extend(cuda_folders(root));
    Ok(Libtorch { root: root.to_owned(), version, origin, library_folders })
}

fn incomplete(root: &Path, missing: PathBuf, origin: Origin) -> Error {
    Error::Incomplete {
        root: root.to_owned(),
        missing,
        origin: origin.describe(),
        fix: origin.fix(),
    }
}

/// A patch release keeps the C++ interface that tch is generated from.
fn is_accepted(version: &str) -> bool {
    let series = VERSION.rsplit_once('.').map_or(VERSION, |(series, _)| series);
    version.strip_prefix(series).is_some_and(|rest| rest.starts_with('.'))
}

/// Reads the version from whichever of the three files is there.
fn version_of(root: &Path, include: &Path) -> Option<String> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let found = read(root.join("build-version"))
        .map(|text| text.trim().to_owned())
        .or_else(|| version_in_python(&read(root.join("version.py"))?))
        .or_else(|| {
            version_in_header(&read(include.join("include/torch/headeronly/version.h"))?)
        })?;
    // 2.11.0+cu130 -> 2.11.0
    let plain = found.split_once('+').map_or(found.as_str(), |(version, _)| version);
    (!plain.is_empty()).then(|| plain.to_owned())
}

fn version_in_python(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    let (_, value) = line.split_once('=')?;
    Some(value.trim().trim_matches(['\'', '"']).to_owned())
}

fn version_in_header(text: &str) -> Option<String> {
    let part = |name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name))?;
        line.trim().parse::<u32>().ok()
    };
    let major = part("TORCH_VERSION_MAJOR")?;
    let minor = part("TORCH_VERSION_MINOR")?;
    let patch = part("TORCH_VERSION_PATCH")?;
    Some(format!("{major}.{minor}.{patch}"))
}

/// The library folders of NVIDIA's packages beside the `torch` package, sorted.
/// libtorch finds them by itself; libraries that are opened by name need them.
fn cuda_folders(root: &Path) -> Vec<PathBuf> {
    let Some(packages) = root.parent() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(packages.join("nvidia")) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("lib"))
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Lays out a folder as pip's `torch` package does.
    pub(crate) fn fake_torch(root: &Path, version: &str) {
        for file in [
            "lib/libtorch_cpu.so",
            "lib/libtorch.so",
            "lib/libc10.so",
            "include/torch/csrc/api/include/torch/torch.h",
        ] {
            write(&root.join(file), "");
        }
        write(&root.join("version.py"), &format!("from x import y\n__version__ = '{version}'\n"));
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn inspected(root: &Path) -> Result<Libtorch, Error> {
        inspect(root, Origin::Variable)
    }

    #[test]
    fn a_pip_package_is_read_with_its_cuda_folders() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("torch");
        fake_torch(&root, "2.11.0+cu130");
        for name in ["nccl", "cu13"] {
            fs::create_dir_all(dir.path().join("nvidia").join(name).join("lib")).unwrap();
        }
        fs::create_dir_all(dir.path().join("nvidia/no_lib")).unwrap();
        let found = inspected(&root).unwrap();
        assert_eq!(found.version, "2.11.0");
        assert_eq!(
            found.library_folders,
            [
                root.join("lib"),
                dir.path().join("nvidia/cu13/lib"),
                dir.path().join("nvidia/nccl/lib")
            ]
        );
    }

    #[test]
    fn an_archive_states_its_version_in_build_version_or_in_a_header() {
        let dir = tempfile::tempdir().unwrap();
        fake_torch(dir.path(), "unused");
        fs::remove_file(dir.path().join("version.py")).unwrap();
        write(
            &dir.path().join("include/torch/headeronly/version.h"),
            "#define TORCH_VERSION_MAJOR 2\n\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 3\n",
        );
        assert_eq!(inspected(dir.path()).unwrap().version, "2.11.3");
        write(&dir.path().join("build-version"), "2.11.0+cpu\n");
        assert_eq!(inspected(dir.path()).unwrap().version, "2.11.0");
    }

    #[test]
    fn another_version_is_refused_with_both_values_and_a_fix() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["2.10.0+cpu", "2.1.1", "2.110.0", "3.11.0"] {
            fake_torch(dir.path(), version);
            let text = inspected(dir.path()).unwrap_err().to_string();
            let plain = version.split('+').next().unwrap();
            assert!(text.contains(&format!("libtorch {plain} found, 2.11.0 needed")), "{text}");
            assert!(text.contains("fix: point LIBTORCH at libtorch 2.11.0"), "{text}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fake_torch(dir.path(), "2.11.0");
        fs::remove_file(dir.path().join("lib/libc10.so")).unwrap();
        let text = inspected(dir.path()).unwrap_err().to_string();
        assert!(text.contains("lib/libc10.so does not exist"), "{text}");
    }

    #[test]
    fn a_folder_without_a_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fake_torch(dir.path(), "2.11.0");
        fs::remove_file(dir.path().join("version.py")).unwrap();
        let text = inspected(dir.path()).unwrap_err().to_string();
        assert!(text.contains("build-version does not exist"), "{text}");
    }

    #[test]
    fn a_python_that_does_not_start_is_named() {
        let text = inspect_python(Path::new("/nonexistent/python")).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/python"), "{text}");
        assert!(text.contains("unset LIBTORCH_USE_PYTORCH"), "{text}");
    }
}
