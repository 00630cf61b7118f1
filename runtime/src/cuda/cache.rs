//! Compiled kernels on disk, so that a program compiles each source once per machine.
//!
//! A file's name is a digest of all that its code depends on: source, headers, options, the versions of
//! NVRTC, of this program and of the driver. A file is a header of three lines and the code:
//!
//! ```text
//! lightc kernel cache 1
//! KEY COMPILER
//! DIGEST                      BLAKE3 of the line above and the code
//! ```
//!
//! What does not read back as it was written, or was written for another key, is not loaded: a note says
//! so and the source is compiled again. A cache that cannot be written costs time and nothing else.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use super::error::CACHE_NOTE;

const FORMAT: &str = "lightc kernel cache 1";

/// What code depends on beside its source.
#[derive(Debug, Clone)]
pub(super) struct Builder {
    /// NVRTC and this program, with their versions.
    pub(super) compiler: String,
    /// The driver's version, as it counts it.
    pub(super) driver: i32,
}

/// `${XDG_CACHE_HOME:-~/.cache}/lightc/kernels`; none where neither variable is set.
pub(super) fn folder() -> Option<PathBuf> {
    let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = path("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| path("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("lightc").join("kernels"))
}

/// The name of a source's code.
pub(super) fn key(source: &str, builder: &Builder) -> String {
    let driver = builder.driver.to_string();
    let headers = lightc_kernels::HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
    let options = lightc_kernels::OPTIONS.iter().copied();
    let parts = [source, builder.compiler.as_str(), driver.as_str()];
    digest_of(parts.into_iter().chain(headers).chain(options))
}

/// A digest of texts.
pub(super) fn digest_of<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // The length keeps the parts apart.
        let _ = hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Where the code under a key is.
pub(super) fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.code"))
}

/// The code under a key: from the folder, else what `compile` gives, which is then kept. `note` is told
/// what cannot be used or kept.
pub(super) fn get<E>(
    folder: Option<&Path>,
    key: &str,
    builder: &Builder,
    note: &mut dyn FnMut(&str),
    compile: impl FnOnce() -> std::result::Result<Vec<u8>, E>,
) -> std::result::Result<Vec<u8>, E> {
    let Some(folder) = folder else { return compile() };
    let path = path(folder, key);
    match fs::read(&path) {
        Ok(bytes) => match unwrapped(&bytes, key, builder) {
            Ok(code) => return Ok(code.to_vec()),
            Err(reason) => note(&format!(
                "note[{CACHE_NOTE}]: {} is not used: {reason}; the kernel is compiled again",
                path.display()
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            note(&format!("note[{CACHE_NOTE}]: {} cannot be read: {error}", path.display()));
        }
    }
    let code = compile()?;
    if let Err(error) = write(&path, &wrapped(&code, key, builder)) {
        note(&format!("note[{CACHE_NOTE}]: {} cannot be written: {error}", path.display()));
    }
    Ok(code)
}

fn line(key: &str, builder: &Builder) -> String {
    format!("{key} {}, driver {}", builder.compiler, builder.driver)
}

fn digest(line: &str, code: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    let _ = hasher.update(line.as_bytes()).update(b"\n").update(code);
    hasher.finalize().to_hex().to_string()
}

fn wrapped(code: &[u8], key: &str, builder: &Builder) -> Vec<u8> {
    let line = line(key, builder);
    let mut bytes = format!("{FORMAT}\n{line}\n{}\n", digest(&line, code)).into_bytes();
    bytes.extend_from_slice(code);
    bytes
}

/// The code in a file, or why it is not what was asked for.
fn unwrapped<'a>(
    bytes: &'a [u8],
    key: &str,
    builder: &Builder,
) -> std::result::Result<&'a [u8], String> {
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut text = || parts.next().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
    let (format, found, stated) = (text(), text(), text());
    let code = parts.next().unwrap_or_default();
    if format != FORMAT {
        return Err("it is not an entry of the kernel cache".to_owned());
    }
    if digest(&found, code) != stated {
        return Err("its bytes are not those that were written".to_owned());
    }
    if found != line(key, builder) {
        let other = found.split_once(' ').map_or(found.as_str(), |(_, rest)| rest);
        return Err(format!("it was written for another source or compiler ({other})"));
    }
    Ok(code)
}

/// Writes beside the file and renames, so that no reader sees a part.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let draft = path.with_extension(format!("{}.draft", std::process::id()));
    fs::write(&draft, bytes)?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(compiler: &str) -> Builder {
        Builder { compiler: compiler.to_owned(), driver: 13000 }
    }

    /// What is had from a folder, how often it was compiled for that, and the notes.
    fn had(folder: &Path, key: &str, builder: &Builder) -> (Vec<u8>, usize, Vec<String>) {
        let (mut n_compiled, mut notes) = (0, Vec::new());
        let code = get(Some(folder), key, builder, &mut |note| notes.push(note.to_owned()), || {
            n_compiled += 1;
            Ok::<_, ()>(b"\x7fELF\ncode\n".to_vec())
        });
        (code.unwrap_or_default(), n_compiled, notes)
    }

    #[test]
    fn the_second_time_nothing_is_compiled() {
        let dir = tempfile::tempdir().expect("a folder");
        let (folder, builder) = (dir.path().join("deep"), builder("NVRTC 13.0"));
        let key = key("source", &builder);
        let first = had(&folder, &key, &builder);
        assert_eq!((first.1, first.2.len()), (1, 0));
        assert_eq!(had(&folder, &key, &builder), (first.0, 0, vec![]));
    }

    #[test]
    fn a_key_depends_on_source_compiler_and_driver() {
        let base = key("source", &builder("NVRTC 13.0"));
        assert_ne!(base, key("sourcf", &builder("NVRTC 13.0")));
        assert_ne!(base, key("source", &builder("NVRTC 13.1")));
        assert_ne!(base, key("source", &Builder { driver: 13010, ..builder("NVRTC 13.0") }));
    }

    #[test]
    fn what_is_damaged_or_foreign_is_compiled_again_and_mended() {
        let dir = tempfile::tempdir().expect("a folder");
        let own = builder("NVRTC 13.0");
        let key = key("source", &own);
        let path = dir.path().join(format!("{key}.code"));
        let whole = wrapped(b"\x7fELF\ncode\n", &key, &own);
        let foreign = wrapped(b"\x7fELF\ncode\n", &key, &builder("NVRTC 12.9"));
        let mut flipped = whole.clone();
        if let Some(last) = flipped.last_mut() {
            *last ^= 1;
        }
        let cases = [
            (whole[..whole.len() - 3].to_vec(), "not those that were written"),
            (flipped, "not those that were written"),
            (Vec::new(), "not an entry"),
            (b"\x7fELF".to_vec(), "not an entry"),
            (foreign, "another source or compiler (NVRTC 12.9, driver 13000)"),
        ];
        for (bytes, reason) in cases {
            fs::write(&path, bytes).expect("writes");
            let (code, n_compiled, notes) = had(dir.path(), &key, &own);
            assert_eq!((code.as_slice(), n_compiled), (&b"\x7fELF\ncode\n"[..], 1), "{reason}");
            assert!(notes.len() == 1 && notes[0].contains(reason), "{notes:?}");
            assert!(notes[0].starts_with("note[E1311]: "), "{notes:?}");
            assert_eq!(had(dir.path(), &key, &own).1, 0, "mended");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_and_used_without() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "x").expect("writes");
        let (code, n_compiled, notes) = had(&file, "key", &builder("NVRTC 13.0"));
        assert_eq!((code.is_empty(), n_compiled), (false, 1));
        assert!(notes.iter().any(|note| note.contains("cannot be written")), "{notes:?}");
    }
}
