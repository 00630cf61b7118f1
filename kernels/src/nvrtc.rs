//! NVRTC, NVIDIA's compiler as a library.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};

use crate::{Error, HEADERS, Resources, log};

/// How every source is compiled: for Hopper with its own instructions, with ptxas's report in the log.
/// Warning 177 is of functions that a source does not use, which a header is full of; 550 of variables that it sets
/// and does not read, as generated kernels have them: each value in both forms, of which some need one. Functions are those of the
/// GPU: a lambda with a parameter of any type is nothing else to NVRTC, and cannot be told.
pub const OPTIONS: &[&str] = &[
    "--gpu-architecture=sm_90a",
    "-std=c++17",
    "-default-device",
    "--ptxas-options=-v",
    "--diag-suppress=177,550",
];

const LIBRARY: &str = "libnvrtc.so.13";
/// NVRTC opens it by name, which finds it only where it is loaded or on the search path.
const BUILTINS: &str = "libnvrtc-builtins.so.13.0";

/// What a source became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Code for `sm_90a` in ELF.
    pub cubin: Vec<u8>,
    /// What each entry point takes, by name.
    pub resources: BTreeMap<String, Resources>,
    /// What NVRTC and ptxas printed.
    pub log: String,
}

/// The loaded library.
#[derive(Debug, Clone, Copy)]
pub struct Nvrtc {
    version: (i32, i32),
}

static OPENED: OnceLock<Nvrtc> = OnceLock::new();

impl Nvrtc {
    /// Loads NVRTC: as the dynamic linker finds it, else from the packages beside libtorch. It stays
    /// loaded to the end of the process.
    ///
    /// # Errors
    /// [`Error::NoNvrtc`].
    pub fn open() -> Result<Nvrtc, Error> {
        if let Some(opened) = OPENED.get() {
            return Ok(*opened);
        }
        load()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is loaded, so the binding finds it by its name, and the pointers are
        // to live integers.
        #[allow(unsafe_code)]
        let code = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        checked("nvrtcVersion", code.result())?;
        Ok(*OPENED.get_or_init(|| Nvrtc { version: (major, minor) }))
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles a source. `name` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Compile`] with the log and its place, or [`Error::Nvrtc`].
    pub fn compile(&self, name: &str, source: &str) -> Result<Compiled, Error> {
        let program = Program::new(name, source)?;
        let compiled = program.compile();
        let log = program.log()?;
        if compiled.is_err() {
            return Err(Error::Compile(Box::new(log::failure(name, source, &log))));
        }
        Ok(Compiled { cubin: program.cubin()?, resources: log::resources(&log), log })
    }
}

/// Makes the binding's own search by name succeed: a library that is loaded is found by its soname.
fn load() -> Result<(), Error> {
    let by_name = open(Path::new(LIBRARY));
    let Err(reason) = by_name else { return Ok(()) };
    let folders = beside_libtorch();
    for folder in &folders {
        let library = folder.join(LIBRARY);
        if library.exists() {
            open(&folder.join(BUILTINS))
                .and_then(|()| open(&library))
                .map_err(|reason| Error::NoNvrtc { reason })?;
            return Ok(());
        }
    }
    let reason = if folders.is_empty() {
        format!("{reason}, and no libtorch is installed beside which it could lie")
    } else {
        let names: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
        format!("{reason}, and it is not in {}", names.join(", "))
    };
    Err(Error::NoNvrtc { reason })
}

fn beside_libtorch() -> Vec<PathBuf> {
    let found = lightc_libtorch::find(&lightc_libtorch::Settings::from_env());
    found.ok().flatten().map(|libtorch| libtorch.library_folders).unwrap_or_default()
}

/// Loads a library for the rest of the process.
fn open(path: &Path) -> Result<(), String> {
    // SAFETY: these are NVIDIA's compiler libraries, whose initializers only set up themselves.
    #[allow(unsafe_code)]
    let library = unsafe { libloading::Library::new(path) };
    library.map(std::mem::forget).map_err(|error| error.to_string())
}

fn checked<T>(call: &'static str, result: Result<T, result::NvrtcError>) -> Result<T, Error> {
    result.map_err(|error| Error::Nvrtc { call, code: format!("{:?}", error.0) })
}

/// Text for C; a source with a zero byte is cut there, and then does not compile.
fn text(value: &str) -> CString {
    let end = value.find('\0').unwrap_or(value.len());
    CString::new(value.get(..end).unwrap_or_default()).unwrap_or_default()
}

/// A program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(name: &str, source: &str) -> Result<Program, Error> {
        let (name, source) = (text(name), text(source));
        let names: Vec<CString> = HEADERS.iter().map(|(name, _)| text(name)).collect();
        let texts: Vec<CString> = HEADERS.iter().map(|(_, source)| text(source)).collect();
        let name_pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let text_pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: all pointers are to strings that live through the call, which copies them; the
        // counts are those of the lists.
        #[allow(unsafe_code)]
        let code = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        checked("nvrtcCreateProgram", code.result())?;
        Ok(Program(program))
    }

    fn compile(&self) -> Result<(), Error> {
        // SAFETY: the program was created and is not destroyed.
        #[allow(unsafe_code)]
        let compiled = unsafe { result::compile_program(self.0, OPTIONS) };
        checked("nvrtcCompileProgram", compiled)
    }

    fn log(&self) -> Result<String, Error> {
        // SAFETY: the program was created and is not destroyed.
        #[allow(unsafe_code)]
        let log = unsafe { result::get_program_log(self.0) };
        let bytes = checked("nvrtcGetProgramLog", log)?;
        let bytes: Vec<u8> =
            bytes.iter().map(|c| c.cast_unsigned()).take_while(|b| *b != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, Error> {
        let mut size = 0;
        // SAFETY: the program was compiled and is not destroyed, and the pointer is to a live integer.
        #[allow(unsafe_code)]
        let code = unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) };
        checked("nvrtcGetCUBINSize", code.result())?;
        let mut cubin = vec![0u8; size];
        // SAFETY: the buffer has the size that NVRTC asked for.
        #[allow(unsafe_code)]
        let code = unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast::<c_char>()) };
        checked("nvrtcGetCUBIN", code.result())?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.0.is_null() {
            return;
        }
        // SAFETY: the program was created, and this is its only owner. There is nothing to do about
        // a refusal: what it held stays allocated.
        #[allow(unsafe_code)]
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
