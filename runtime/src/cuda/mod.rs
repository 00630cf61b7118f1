//! Kernels of target `sm_90a` that generated code launches.
//!
//! A kernel stands beside the composition of libtorch calls that says what it computes, and every
//! use of it goes through [`either`]: one place decides which of the two runs, and can run both and
//! compare them ([`Mode`]). Kernels run on the stream that libtorch uses, so no copies and no waits lie
//! between.
//!
//! A source is compiled by NVRTC when its first kernel is launched, and kept on disk (`cache`).

mod cache;
mod driver;
mod emulator;
pub mod error;
mod mode;
pub mod rows;
#[cfg(test)]
mod tests;
mod update;

use std::ffi::c_void;
use std::sync::LazyLock;

pub use driver::{Facts, TensorMap, facts, memory, synchronize};
pub use error::DeviceError;
pub use mode::{
    Check, Checked, Mode, Names, Spread, Time, Timed, checked, finish_check, set_mode, spread,
    timed, unmatched_references,
};
pub use update::{Update, adamw, square_sums};

use crate::error::Result;
use crate::{Device, Kind, Tensor};

/// CUDA C++ that is compiled as one unit. It may include the headers of `kernels/include`.
#[derive(Debug)]
pub struct Module {
    /// Name, for messages and for the cache.
    pub name: &'static str,
    /// The text. A line `// origin: TEXT` above an entry point says what it computes, for messages.
    pub source: &'static str,
}

/// One entry point of a module.
#[derive(Debug)]
pub struct Kernel {
    /// Where it is.
    pub module: &'static Module,
    /// Its `extern "C"` name.
    pub entry: &'static str,
    /// What it computes and where that is written, for messages: `HyperConnection.y, std/mhc.llm:44`.
    pub origin: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes; with [`launch_with`] the most it is launched with.
    pub shared_bytes: u32,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Arg<'a> {
    /// The address of a contiguous tensor's elements.
    Tensor(&'a Tensor),
    /// `__grid_constant__ TensorMap`
    Map(&'a TensorMap),
    /// `int`
    I32(i32),
    /// `long long`
    I64(i64),
    /// `float`
    F32(f32),
}

/// The largest shared memory of a block, static and dynamic together, in bytes.
pub const MOST_SHARED_BYTES: u32 = driver::MOST_SHARED;

/// A GPU for libtorch and for kernels, or the CPU under [`emulate`]. To be called before anything else of libtorch asks for CUDA:
/// libtorch looks for its CUDA library once, and this loads it.
///
/// # Errors
/// There is no driver, no such GPU, one of another architecture, or a libtorch without CUDA.
pub fn device(ordinal: usize) -> Result<Device> {
    if emulator::is_asked() {
        return Ok(Device::Cpu);
    }
    driver::ready(ordinal)?;
    driver::load_libtorch_cuda()?;
    if !tch::Cuda::is_available() {
        let detail = "its CUDA library is loaded and sees no GPU".to_owned();
        return Err(DeviceError::NoLibtorchCuda(detail).into());
    }
    Ok(Device::Cuda(ordinal))
}

/// Refuses work that takes more memory than a GPU has free. `ledger` says what takes it, a line per
/// class.
///
/// # Errors
/// [`DeviceError::Memory`] with all numbers, or the GPU cannot be used.
pub fn ensure_memory(ordinal: usize, what: &str, needed: u64, ledger: &str) -> Result<()> {
    let (free, total) = memory(ordinal)?;
    if needed <= free {
        return Ok(());
    }
    let (what, name) = (what.to_owned(), facts(ordinal)?.name);
    let ledger = ledger.lines().map(|line| format!("\n{line}")).collect();
    Err(DeviceError::Memory { ordinal, name, what, needed, free, total, ledger }.into())
}

/// Runs kernels on the processor from now on, on tensors of the CPU, so that what holds for a GPU can be tested where there
/// is none. For the whole process. Generated code then takes bf16 tensors of the CPU as it takes those of a GPU.
pub fn emulate() {
    emulator::ask();
}

/// Where kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Gpu(usize),
    /// The emulator.
    Processor,
}

fn place(device: Device) -> Option<Place> {
    match device {
        Device::Cuda(ordinal) => Some(Place::Gpu(ordinal)),
        Device::Cpu if emulator::is_asked() => Some(Place::Processor),
        _ => None,
    }
}

/// Whether kernels run on tensors of a device: a GPU, or the CPU under [`emulate`].
pub fn runs_on(device: Device) -> bool {
    place(device).is_some()
}

/// Launches a kernel on libtorch's current stream.
///
/// # Errors
/// The kernel does not compile, a tensor is not contiguous or not on the GPU, or the driver refuses.
pub fn launch(kernel: &'static Kernel, grid: [u32; 3], args: &[Arg<'_>]) -> Result<()> {
    launch_with(kernel, grid, kernel.shared_bytes, args)
}

/// [`launch`] with less dynamic shared memory than the kernel states.
///
/// # Errors
/// As [`launch`], or more shared memory than stated.
pub fn launch_with(
    kernel: &'static Kernel,
    grid: [u32; 3],
    shared_bytes: u32,
    args: &[Arg<'_>],
) -> Result<()> {
    let wrong = |detail: String| DeviceError::Argument {
        entry: kernel.entry,
        origin: kernel.origin,
        detail,
    };
    if shared_bytes > kernel.shared_bytes {
        let most = kernel.shared_bytes;
        let detail = format!("{shared_bytes} bytes of shared memory, {most} are stated");
        return Err(wrong(detail).into());
    }
    let mut first = None;
    for (position, arg) in args.iter().enumerate() {
        let Arg::Tensor(tensor) = arg else { continue };
        let device = tensor.device();
        let Some(found) = place(device) else {
            return Err(wrong(format!("argument {position} is on {device:?}, not on a GPU")).into());
        };
        let first = *first.get_or_insert(found);
        if first != found {
            let detail = format!("argument {position} is on {found:?}, another on {first:?}");
            return Err(wrong(detail).into());
        }
        if !tensor.is_contiguous() {
            let (size, stride) = (tensor.size(), tensor.stride());
            let detail = format!(
                "argument {position} of shape {size:?} has strides {stride:?}, not contiguous"
            );
            return Err(wrong(detail).into());
        }
    }
    let Some(place) = first else {
        return Err(wrong("no argument is a tensor".to_owned()).into());
    };
    // An empty grid has nothing to compute, and the driver refuses it.
    if grid.contains(&0) {
        return Ok(());
    }
    let mut values: Vec<u64> = args.iter().map(value).collect();
    let mut addresses: Vec<*mut c_void> = args
        .iter()
        .zip(&mut values)
        .map(|(arg, value)| match arg {
            Arg::Map(map) => std::ptr::from_ref(&map.0).cast_mut().cast::<c_void>(),
            _ => std::ptr::from_mut(value).cast::<c_void>(),
        })
        .collect();
    match place {
        Place::Gpu(ordinal) => driver::launch(ordinal, kernel, grid, shared_bytes, &mut addresses),
        Place::Processor => emulator::launch(kernel, grid, shared_bytes, &mut addresses),
    }
}

/// The bytes of an argument, the low ones first, as the driver reads them. A map has its own.
fn value(arg: &Arg<'_>) -> u64 {
    match arg {
        Arg::Tensor(tensor) => address(tensor),
        Arg::Map(_) => 0,
        Arg::I32(value) => u64::from(value.cast_unsigned()),
        Arg::I64(value) => value.cast_unsigned(),
        Arg::F32(value) => u64::from(value.to_bits()),
    }
}

fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// How the copy engine takes a contiguous bf16 tensor `[b, t, h, d]` in tiles of `rows` tokens of one
/// head and 64 channels. The map holds an address: it serves while the tensor lives.
///
/// # Errors
/// Another kind, rank or layout, or the driver refuses.
pub fn tensor_map(tensor: &Tensor, rows: u32) -> Result<TensorMap> {
    let size: Vec<u64> = tensor.size().iter().map(|n| n.cast_unsigned()).collect();
    match (<[u64; 4]>::try_from(size), tensor.kind(), place(tensor.device())) {
        (Ok(shape), Kind::BFloat16, Some(place)) if tensor.is_contiguous() => {
            let [b, t, h, d] = shape;
            let tiles = driver::Tiles {
                element_bytes: 2,
                dimensions: &[d, h, t, b],
                tile: &[64, 1, rows, 1],
                far: false,
            };
            map_of(place, address(tensor), tiles)
        }
        _ => Err(crate::Error::Op {
            op: "tensor_map",
            detail: format!(
                "a contiguous bf16 tensor of rank 4 on a GPU is needed, not {:?} {:?} on {:?}",
                tensor.kind(),
                tensor.size(),
                tensor.device()
            ),
        }),
    }
}

fn map_of(place: Place, address: u64, tiles: driver::Tiles<'_>) -> Result<TensorMap> {
    match place {
        Place::Gpu(ordinal) => driver::tensor_map(ordinal, address, tiles),
        Place::Processor => Ok(TensorMap::of_words(emulator::tensor_map(address, &tiles))),
    }
}

/// How the copy engine takes the weights `[experts, rows, columns]` of bf16 or int8 in tiles of one expert,
/// `tile` being columns (of 64 or 128 bytes) and rows of it. The map holds an address: it serves while the tensor lives.
///
/// # Errors
/// Another kind, rank or layout, or the driver refuses.
pub fn weight_map(tensor: &Tensor, tile: [u32; 2]) -> Result<TensorMap> {
    let size: Vec<u64> = tensor.size().iter().map(|n| n.cast_unsigned()).collect();
    let element_bytes = match tensor.kind() {
        Kind::BFloat16 => 2,
        Kind::Int8 => 1,
        _ => 0,
    };
    match (size.as_slice(), place(tensor.device())) {
        ([experts, rows, columns], Some(place)) if tensor.is_contiguous() && element_bytes > 0 => {
            let [across, down] = tile;
            let tiles = driver::Tiles {
                element_bytes,
                dimensions: &[*columns, *rows, *experts],
                tile: &[across, down, 1],
                far: true,
            };
            map_of(place, address(tensor), tiles)
        }
        _ => Err(crate::Error::Op {
            op: "weight_map",
            detail: format!(
                "a contiguous bf16 or int8 tensor of rank 3 on a GPU is needed, not {:?} {:?} on {:?}",
                tensor.kind(),
                tensor.size(),
                tensor.device()
            ),
        }),
    }
}

/// How many blocks of a kernel whose blocks take a multiprocessor each run at one time on the GPU of `x`.
///
/// # Errors
/// The tensor is not on a GPU, or it cannot be used.
pub fn multiprocessors(x: &Tensor) -> Result<u32> {
    match place(x.device()) {
        Some(Place::Gpu(ordinal)) => Ok(driver::multiprocessors(ordinal)?.max(1).unsigned_abs()),
        Some(Place::Processor) => Ok(emulator::MULTIPROCESSORS),
        None => {
            let detail = format!("a tensor on a GPU is needed, not on {:?}", x.device());
            Err(crate::Error::Op { op: "multiprocessors", detail })
        }
    }
}

/// A tensor whose elements a kernel is to write, on the device of `like`. Where kernels are checked,
/// its bytes are set so that an element that is not written is found.
///
/// # Errors
/// libtorch's.
pub fn empty(shape: &[i64], kind: Kind, like: &Tensor) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape, (kind, like.device()))?;
    if mode::poisons() {
        poison(&tensor)?;
    }
    Ok(tensor)
}

/// Sets the bytes of a tensor to a pattern that no kernel writes: a NaN that arithmetic does not make,
/// and in integers and truth values a number that is none of theirs.
///
/// # Errors
/// The driver's.
pub fn poison(tensor: &Tensor) -> Result<()> {
    let byte = mode::poison_byte(tensor.kind());
    let n_bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    match place(tensor.device()) {
        Some(Place::Gpu(ordinal)) => driver::fill(ordinal, address(tensor), byte, n_bytes),
        Some(Place::Processor) => {
            emulator::fill(address(tensor), byte, n_bytes);
            Ok(())
        }
        None => Ok(()),
    }
}

/// Compiles a kernel for a GPU, or finds it compiled, before it is needed.
///
/// # Errors
/// It does not compile, or the GPU cannot be used.
pub fn prepare(device: Device, kernel: &'static Kernel) -> Result<()> {
    match place(device) {
        Some(Place::Gpu(ordinal)) => driver::prepare(ordinal, kernel),
        Some(Place::Processor) => emulator::prepare(kernel),
        None => Ok(()),
    }
}

/// Begins to compile the kernels of this crate and those of stages for a GPU, many at a time, where they are not in the
/// cache. Without it each source is compiled when it is first needed.
///
/// # Errors
/// The GPU cannot be used.
pub fn compile_ahead(device: Device, of_stages: &[&'static Module]) -> Result<()> {
    let Some(Place::Gpu(ordinal)) = place(device) else { return Ok(()) };
    static OWN: LazyLock<Vec<Module>> = LazyLock::new(|| {
        let module = |(name, source): &(&'static str, &'static str)| Module { name, source };
        lightc_kernels::SOURCES.iter().map(module).collect()
    });
    let all: Vec<&'static Module> = OWN.iter().chain(of_stages.iter().copied()).collect();
    driver::compile_ahead(ordinal, &all)
}

/// What gives results from inputs; the second argument has the activation kind and the device.
pub type Way<'a> = &'a dyn Fn(&[&Tensor], &Tensor) -> Result<Vec<Tensor>>;

/// Runs a kernel, or the composition that says what it computes.
///
/// The kernel runs where `like` is on a GPU and of kind bf16, unless the process was asked to use the
/// reference for it; see [`Mode`]. A GPU of another architecture is an error, not a reason for the
/// reference.
///
/// # Errors
/// Those of what runs.
pub fn either(
    kernel: &'static Kernel,
    inputs: &[&Tensor],
    like: &Tensor,
    fused: Way<'_>,
    reference: Way<'_>,
) -> Result<Vec<Tensor>> {
    let Some(place) = place(like.device()) else { return reference(inputs, like) };
    if like.kind() != Kind::BFloat16 {
        return reference(inputs, like);
    }
    let results = mode::run(place, kernel, inputs, like, fused, reference)?;
    for result in &results {
        crate::watch::shown(kernel.origin, inputs, result);
    }
    Ok(results)
}
