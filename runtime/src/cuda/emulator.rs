//! The processor in place of a GPU: kernels compiled by `lightc_kernels::HostCompiler` and run on tensors of the CPU.
//!
//! Asked for by [`super::emulate`], for the whole process, and only by tests: it is some ten thousand times slower
//! than a GPU.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use lightc_kernels::HostCompiler;

use super::cache::{self, Builder};
use super::driver::{Tiles, compile_error};
use super::error::{DeviceError, EMULATOR};
use super::{Kernel, Module};
use crate::error::Result;

static ASKED: AtomicBool = AtomicBool::new(false);
/// Launches so far: they run by turns in two orders.
static LAUNCHES: AtomicU64 = AtomicU64::new(0);
/// By the address of the [`Module`]. Libraries stay loaded to the end of the process.
static MODULES: Mutex<BTreeMap<usize, Library>> = Mutex::new(BTreeMap::new());

/// Multiprocessors that persistent kernels see: few, so that each has several tiles.
pub(super) const MULTIPROCESSORS: u32 = 4;

pub(super) fn ask() {
    ASKED.store(true, Ordering::SeqCst);
}

pub(super) fn is_asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

type Run = unsafe extern "C" fn(*mut *mut c_void, *const c_int) -> c_int;
type Failure = unsafe extern "C" fn() -> *const c_char;

/// Runs a kernel to its end. `arguments` are the addresses of its arguments' values.
pub(super) fn launch(
    kernel: &'static Kernel,
    grid: [u32; 3],
    shared_bytes: u32,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    let late = LAUNCHES.fetch_add(1, Ordering::SeqCst) % 2;
    let [x, y, z] = grid.map(u32::cast_signed);
    let launch = [x, y, z, kernel.threads.cast_signed(), shared_bytes.cast_signed(), late as i32];
    with_library(kernel, |library| {
        let name = format!("emulated_{}", kernel.entry);
        // SAFETY: the emulator's macro gives every entry point this function, and the library this other
        // one, with these types.
        #[allow(unsafe_code)]
        let (entry, failure) = unsafe {
            let entry = library.get::<Run>(name.as_bytes()).map_err(|e| refused(kernel, &e))?;
            let failure = library.get::<Failure>(b"emulated_failure");
            (entry, failure.map_err(|error| refused(kernel, &error))?)
        };
        // SAFETY: pointers are to values that outlive the call, of the number and types that the
        // kernel has: the contract of `Kernel`, as with the driver. The lock keeps others from the
        // library's state. The message is a text of the library, which stays loaded.
        #[allow(unsafe_code)]
        unsafe {
            if entry(arguments.as_mut_ptr(), launch.as_ptr()) == 0 {
                return Ok(());
            }
            let message = CStr::from_ptr(failure()).to_string_lossy().into_owned();
            Err(refused(kernel, &message))
        }
    })
}

/// Sets bytes.
pub(super) fn fill(address: u64, byte: u8, n_bytes: usize) {
    if n_bytes > 0 {
        // SAFETY: the caller gives the address and size of a live tensor of the CPU.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::write_bytes(address as *mut u8, byte, n_bytes);
        }
    }
}

/// Compiles a kernel, or finds it compiled, without running it.
pub(super) fn prepare(kernel: &'static Kernel) -> Result<()> {
    with_library(kernel, |_| Ok(()))
}

fn refused(kernel: &'static Kernel, error: &dyn std::fmt::Display) -> crate::Error {
    let (entry, origin, code) = (kernel.entry, kernel.origin, error.to_string());
    DeviceError::Driver { entry, origin, call: EMULATOR, code }.into()
}

fn with_library<R>(
    kernel: &'static Kernel,
    action: impl FnOnce(&Library) -> Result<R>,
) -> Result<R> {
    let at = std::ptr::from_ref(kernel.module) as usize;
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    match modules.entry(at) {
        Entry::Occupied(entry) => action(entry.get()),
        Entry::Vacant(entry) => action(entry.insert(library(kernel)?)),
    }
}

fn library(kernel: &'static Kernel) -> Result<Library> {
    let Module { name, source } = *kernel.module;
    let compiler = HostCompiler::find().map_err(|error| compile_error(kernel, error))?;
    let identity = cache::digest_of(compiler.identity());
    let version = env!("CARGO_PKG_VERSION");
    let builder = Builder { compiler: format!("emulator {identity}, lightc {version}"), driver: 0 };
    let key = cache::key(source, &builder);
    let folder = cache::folder();
    let compile = || compiler.compile(name, source);
    let code = cache::get(folder.as_deref(), &key, &builder, &mut |n| eprintln!("{n}"), compile)
        .map_err(|error| compile_error(kernel, error))?;
    // The dynamic linker takes files only.
    let file = std::env::temp_dir().join(format!("lightc-{}-{key}.so", std::process::id()));
    std::fs::write(&file, code).map_err(|error| refused(kernel, &error))?;
    // SAFETY: the library was compiled from the emulator and a kernel; its initializers are empty.
    #[allow(unsafe_code)]
    let library = unsafe { Library::new(&file) };
    std::fs::remove_file(&file).map_err(|error| refused(kernel, &error))?;
    library.map_err(|error| refused(kernel, &error))
}

/// What stands for a CUtensorMap: `TensorMap` of `kernels/emulator/ptx.cuh`.
pub(super) fn tensor_map(address: u64, tiles: &Tiles<'_>) -> [u64; 16] {
    let axis = |values: &[u64], at: usize| values.get(at).copied().unwrap_or(1);
    let tile: Vec<u64> = tiles.tile.iter().map(|n| u64::from(*n)).collect();
    let mut words = [0; 16];
    let fields = [address, tiles.element_bytes]
        .into_iter()
        .chain((0..4).map(|at| axis(tiles.dimensions, at)))
        .chain((0..4).map(|at| axis(&tile, at)))
        .chain([tiles.row_bytes()]);
    for (word, field) in words.iter_mut().zip(fields) {
        *word = field;
    }
    words
}
