//! A source file with everything that it imports.

use crate::failure::{Failure, Fault, codes, has_errors, show_diags};
use lightc_codegen::emit::Origin;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use lightc_dsl::resolve::{Program, load_program};
use lightc_dsl::source::{Loader, Sources, join_path};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// No source comes near. It bounds what is read before the language's own limit is checked.
const MAX_BYTES: u64 = 16 << 20;

/// A program, the texts it came from, and what is wrong with them.
pub(crate) struct Loaded {
    /// All definitions.
    pub(crate) program: Program,
    /// All texts, the root first.
    pub(crate) sources: Sources,
    /// What is wrong with definitions, whatever uses them.
    pub(crate) diags: Vec<Diag>,
}

impl Loaded {
    /// Reads a file and what it imports.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = read_text(path)?;
        let (program, sources, diags) = load_program(&name_of(path)?, &text, &Files);
        Ok(Loaded { program, sources, diags })
    }

    /// Reads a file and resolves one stage. Warnings are shown.
    pub(crate) fn read_stage(path: &Path, stage: &str) -> Result<(Self, StageModel), Failure> {
        let loaded = Self::read(path)?;
        match loaded.program.resolve_stage(stage) {
            Ok(model) => {
                show_diags(&loaded.diags, &loaded.sources);
                Ok((loaded, model))
            }
            Err(found) => Err(loaded.failure(found)),
        }
    }

    /// The failure of `found`, with everything that was wrong before.
    pub(crate) fn failure(self, found: Vec<Diag>) -> Failure {
        let mut diags = self.diags;
        diags.extend(found);
        lightc_dsl::diag::normalize(&mut diags);
        Failure::Source { diags, sources: self.sources }
    }

    /// Fails if any definition is wrong; shows warnings.
    pub(crate) fn without_errors(self) -> Result<Self, Failure> {
        if has_errors(&self.diags) {
            return Err(self.failure(Vec::new()));
        }
        show_diags(&self.diags, &self.sources);
        Ok(self)
    }

    /// What headers of generated files say about where they come from.
    pub(crate) fn origin(&self, source: String) -> Origin {
        Origin {
            source,
            source_hash: lightc_codegen::emit::source_digest(&self.sources),
            compiler: crate::VERSION.to_owned(),
        }
    }
}

/// The last part of a path: what generated files call their source wherever it lies.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The name of a root file: its path, with `.` and `..` taken out so that an import that leads
/// back to it is known as the same file.
pub(crate) fn name_of(path: &Path) -> Result<String, Failure> {
    let name = path.to_str().ok_or_else(|| {
        Fault::new(codes::NOT_TEXT, format!("the path `{}` is not UTF-8", path.display()))
    })?;
    Ok(join_path("", name))
}

/// The text of a regular file.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = read_bytes(path)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Fault::new(
            codes::NOT_TEXT,
            format!("`{}` is not UTF-8 text: byte {at} begins no character", path.display()),
        )
        .help("save the file as UTF-8")
        .into()
    })
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |reason: String| {
        Failure::from(Fault::new(
            codes::UNREADABLE,
            format!("cannot read `{}`: {reason}", path.display()),
        ))
    };
    read_limited(path).map_err(unreadable)
}

/// The bytes of a regular file, or why they cannot be had. Devices and pipes may never end.
fn read_limited(path: &Path) -> Result<Vec<u8>, String> {
    let reason = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::NotADirectory => "a part of the path is not a folder".to_owned(),
        _ => error.to_string(),
    };
    let metadata = std::fs::metadata(path).map_err(reason)?;
    if metadata.is_dir() {
        return Err("it is a folder, a file is needed".to_owned());
    }
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(reason)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(reason)?;
    if bytes.len() as u64 > MAX_BYTES {
        let (found, limit) = (metadata.len(), MAX_BYTES);
        return Err(format!("it has {found} bytes, the limit is {limit}"));
    }
    Ok(bytes)
}

/// Imports are files.
struct Files;

impl Loader for Files {
    fn load(&self, from: &str, path: &str) -> Result<(String, String), String> {
        let name = join_path(from, path);
        let bytes = read_limited(Path::new(&name))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            format!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to())
        })?;
        Ok((name, text))
    }
}
