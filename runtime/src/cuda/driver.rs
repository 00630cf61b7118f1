//! The CUDA driver: one context per GPU, which is libtorch's, and launches on its stream.
//!
//! libtorch works in each GPU's primary context. Retaining that context here gives the same one, so
//! addresses of tensors are valid in kernels. tch gives no way to change libtorch's current stream, so it
//! is the default stream, the null stream here: kernels and libtorch's own follow each other in the order
//! of the calls, and memory that libtorch's allocator takes back is reused on the same stream only.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{CString, c_void};
use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;

use cudarc::driver::{DriverError, result, sys};
use lightc_kernels::Nvrtc;

use super::cache::{self, Builder};
use super::error::DeviceError;
use super::{Kernel, Module};
use crate::error::Result;

/// What concerns no kernel: entry and origin for messages.
const SET_UP: (&str, &str) = ("none", "set-up of the GPU");

/// Shared memory of a block without asking for more, in bytes.
const PLAIN_SHARED: u32 = 48 * 1024;
/// Shared memory that a block of compute capability 9.0 can have, in bytes.
pub(super) const MOST_SHARED: u32 = 227 * 1024;

/// A GPU in use. Handles are kept as numbers, so that threads can share them.
struct Gpu {
    context: usize,
    facts: Facts,
    /// By the address of the [`Module`].
    modules: BTreeMap<usize, usize>,
    /// By the address of the [`Kernel`].
    functions: BTreeMap<usize, usize>,
    last: Option<&'static Kernel>,
}

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// The driver's version, as it counts it: 13000 is 13.0.
    pub driver: i32,
    /// Multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the second-level cache.
    pub l2_bytes: u64,
}

static GPUS: Mutex<BTreeMap<usize, Gpu>> = Mutex::new(BTreeMap::new());

fn refused(
    of: (&'static str, &'static str),
    call: &'static str,
    error: DriverError,
) -> DeviceError {
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    let code = format!("{:?}", error.0);
    let code = text.map_or(code.clone(), |text| format!("{code}: {text}"));
    DeviceError::Driver { entry: of.0, origin: of.1, call, code }
}

/// What the driver says of a GPU. Any architecture is answered.
///
/// # Errors
/// There is no driver, or no such GPU.
pub fn facts(ordinal: usize) -> Result<Facts> {
    Ok(look(ordinal)?.1)
}

fn look(ordinal: usize) -> std::result::Result<(sys::CUdevice, Facts), DeviceError> {
    // SAFETY: asks the dynamic linker for the driver's library.
    #[allow(unsafe_code)]
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    let absent =
        |error: DriverError| DeviceError::NoGpu { ordinal, detail: format!("{:?}", error.0) };
    result::init().map_err(absent)?;
    let n_gpus = result::device::get_count().map_err(absent)?;
    if usize::try_from(n_gpus).is_ok_and(|n| ordinal >= n) {
        return Err(DeviceError::NoGpu { ordinal, detail: format!("the driver sees {n_gpus}") });
    }
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    let device = result::device::get(number).map_err(absent)?;
    let attribute = |which| {
        // SAFETY: the device handle was just given by the driver.
        #[allow(unsafe_code)]
        unsafe { result::device::get_attribute(device, which) }.map_err(absent)
    };
    use sys::CUdevice_attribute as A;
    let capability = (
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let mut driver = 0;
    // SAFETY: the pointer is to a live integer.
    #[allow(unsafe_code)]
    unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().map_err(absent)?;
    // SAFETY: the device handle was just given by the driver.
    #[allow(unsafe_code)]
    let memory = unsafe { result::device::total_mem(device) }.map_err(absent)?;
    let facts = Facts {
        name: result::device::get_name(device).map_err(absent)?,
        capability,
        driver,
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory as u64,
        l2_bytes: u64::try_from(attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?).unwrap_or(0),
    };
    Ok((device, facts))
}

fn open(ordinal: usize) -> std::result::Result<Gpu, DeviceError> {
    let (device, facts) = look(ordinal)?;
    if facts.capability != (9, 0) {
        let (major, minor) = facts.capability;
        let found = format!("{major}.{minor}");
        return Err(DeviceError::Architecture { ordinal, name: facts.name, found });
    }
    // SAFETY: the device handle was just given by the driver. The context is never released: it
    // serves to the end of the process.
    #[allow(unsafe_code)]
    let context = unsafe { result::primary_ctx::retain(device) }
        .map_err(|error| refused(SET_UP, "cuDevicePrimaryCtxRetain", error))?;
    Ok(Gpu {
        context: context as usize,
        facts,
        modules: BTreeMap::new(),
        functions: BTreeMap::new(),
        last: None,
    })
}

/// Does something with a GPU whose context is current in this thread.
fn with_gpu<R>(ordinal: usize, action: impl FnOnce(&mut Gpu) -> Result<R>) -> Result<R> {
    let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = match gpus.entry(ordinal) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(open(ordinal)?),
    };
    // SAFETY: the context was retained when the GPU was opened and is never released.
    #[allow(unsafe_code)]
    let set = unsafe { result::ctx::set_current(gpu.context as sys::CUcontext) };
    set.map_err(|error| refused(SET_UP, "cuCtxSetCurrent", error))?;
    action(gpu)
}

/// Multiprocessors of a GPU.
pub(super) fn multiprocessors(ordinal: usize) -> Result<i32> {
    with_gpu(ordinal, |gpu| Ok(gpu.facts.multiprocessors))
}

/// Sees to it that a GPU can run kernels.
pub(super) fn ready(ordinal: usize) -> Result<()> {
    with_gpu(ordinal, |_| Ok(()))
}

/// Loads libtorch's CUDA library for the rest of the process. The linker drops it from programs, since
/// they name no symbol of it; libtorch itself looks for it once, at the first question about CUDA.
pub(super) fn load_libtorch_cuda() -> std::result::Result<(), DeviceError> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        choose_segments();
        // SAFETY: this is the other half of the libtorch that the program is linked with; its
        // initializers register its operators.
        #[allow(unsafe_code)]
        let library = unsafe { libloading::Library::new("libtorch_cuda.so") };
        library.map(std::mem::forget).map_err(|error| error.to_string())
    });
    loaded.clone().map_err(DeviceError::NoLibtorchCuda)
}

/// Has libtorch's allocator grow its segments in place of taking new ones, unless the user has said how it works: steps
/// with values of very different sizes else leave gaps, 15 of 129 GB with one rank's share of the 120B stage.
fn choose_segments() {
    const NAMES: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];
    if NAMES.iter().all(|name| std::env::var_os(name).is_none()) {
        // SAFETY: libtorch reads the variable when its CUDA library is loaded, which is below. Programs open the GPU
        // first of all, before they have threads that could read the environment meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True");
        }
    }
}

/// Free and total bytes of a GPU's memory. What libtorch's allocator keeps counts as used.
///
/// # Errors
/// The GPU cannot be used.
pub fn memory(ordinal: usize) -> Result<(u64, u64)> {
    with_gpu(ordinal, |_| {
        let (free, total) =
            result::mem_get_info().map_err(|error| refused(SET_UP, "cuMemGetInfo", error))?;
        Ok((free as u64, total as u64))
    })
}

/// Waits until a GPU has done all that it was given.
///
/// # Errors
/// The driver's, also those of kernels that were launched before; the last of them is named.
pub fn synchronize(ordinal: usize) -> Result<()> {
    with_gpu(ordinal, |gpu| {
        let of = gpu.last.map_or(SET_UP, |kernel| (kernel.entry, kernel.origin));
        let call = "to wait for it, the last that was launched,";
        result::ctx::synchronize().map_err(|error| refused(of, call, error).into())
    })
}

/// Whether each launch waits, as CUDA's own variable asks.
fn launches_wait() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| std::env::var("CUDA_LAUNCH_BLOCKING").is_ok_and(|value| value == "1"))
}

/// Sets bytes on the default stream.
pub(super) fn fill(ordinal: usize, address: u64, byte: u8, n_bytes: usize) -> Result<()> {
    if n_bytes == 0 {
        return Ok(());
    }
    with_gpu(ordinal, |_| {
        // SAFETY: the caller gives the address and size of a live tensor of this GPU.
        #[allow(unsafe_code)]
        unsafe { result::memset_d8_async(address, byte, n_bytes, std::ptr::null_mut()) }
            .map_err(|error| refused(SET_UP, "cuMemsetD8Async", error).into())
    })
}

/// Launches a kernel on the default stream. `arguments` are the addresses of its arguments' values.
pub(super) fn launch(
    ordinal: usize,
    kernel: &'static Kernel,
    grid: [u32; 3],
    shared_bytes: u32,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    with_gpu(ordinal, |gpu| {
        let function = gpu.function(kernel)?;
        let of = (kernel.entry, kernel.origin);
        // SAFETY: the function is of a module that is never unloaded; each pointer is to a value that
        // outlives the call, which copies it. That number and types of the values are those of the
        // kernel is the contract of `Kernel` with who wrote or generated the call.
        #[allow(unsafe_code)]
        unsafe {
            result::launch_kernel(
                function,
                grid.into(),
                (kernel.threads, 1, 1),
                shared_bytes,
                std::ptr::null_mut(),
                arguments,
            )
        }
        .map_err(|error| refused(of, "cuLaunchKernel", error))?;
        gpu.last = Some(kernel);
        if launches_wait() {
            result::ctx::synchronize().map_err(|error| refused(of, "to wait for it", error))?;
        }
        Ok(())
    })
}

/// Compiles a kernel, or finds it compiled, without launching it.
pub(super) fn prepare(ordinal: usize, kernel: &'static Kernel) -> Result<()> {
    with_gpu(ordinal, |gpu| gpu.function(kernel).map(|_| ()))
}

impl Gpu {
    fn function(&mut self, kernel: &'static Kernel) -> Result<sys::CUfunction> {
        let at = std::ptr::from_ref(kernel) as usize;
        if let Some(function) = self.functions.get(&at) {
            return Ok(*function as sys::CUfunction);
        }
        let of = (kernel.entry, kernel.origin);
        let module = self.module(kernel)?;
        let name = CString::new(kernel.entry).unwrap_or_default();
        // SAFETY: the module is loaded and never unloaded.
        #[allow(unsafe_code)]
        let function = unsafe { result::module::get_function(module, name) }
            .map_err(|error| refused(of, "cuModuleGetFunction", error))?;
        if kernel.shared_bytes > PLAIN_SHARED {
            use sys::CUfunction_attribute_enum as A;
            let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(kernel.shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: the function was just given by the driver.
            #[allow(unsafe_code)]
            unsafe { result::function::set_function_attribute(function, attribute, bytes) }
                .map_err(|error| refused(of, "cuFuncSetAttribute (shared memory)", error))?;
        }
        let _ = self.functions.insert(at, function as usize);
        Ok(function)
    }

    fn module(&mut self, kernel: &'static Kernel) -> Result<sys::CUmodule> {
        let at = std::ptr::from_ref(kernel.module) as usize;
        if let Some(module) = self.modules.get(&at) {
            return Ok(*module as sys::CUmodule);
        }
        let code =
            code(kernel.module, self.facts.driver).map_err(|error| compile_error(kernel, error))?;
        // SAFETY: the bytes are a whole cubin: NVRTC's, or a file's whose digest was right.
        #[allow(unsafe_code)]
        let module = unsafe { result::module::load_data(code.as_ptr().cast::<c_void>()) }
            .map_err(|e| refused((kernel.entry, kernel.origin), "cuModuleLoadData", e))?;
        let _ = self.modules.insert(at, module as usize);
        Ok(module)
    }
}

/// The code of a source, once it is there; locked while it is compiled.
type Compiled = Arc<Mutex<Option<Vec<u8>>>>;

/// Sources under way or compiled, by their text: a source that is a constant has an address for each use of it.
static COMPILED: Mutex<BTreeMap<&'static str, Compiled>> = Mutex::new(BTreeMap::new());

/// The code of a module: what a thread of [`compile_ahead`] made or is making, or else made now.
pub(super) fn code(
    module: &'static Module,
    driver: i32,
) -> std::result::Result<Vec<u8>, lightc_kernels::Error> {
    let cell = {
        let mut all = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(module.source).or_default())
    };
    let mut known = cell.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = &*known {
        return Ok(code.clone());
    }
    let nvrtc = Nvrtc::open()?;
    let (builder, folder) = (builder(nvrtc, driver), cache::folder());
    let key = cache::key(module.source, &builder);
    let compile = || nvrtc.compile(module.name, module.source).map(|compiled| compiled.cubin);
    let code = cache::get(folder.as_deref(), &key, &builder, &mut |n| eprintln!("{n}"), compile)?;
    Ok(known.insert(code).clone())
}

fn builder(nvrtc: Nvrtc, driver: i32) -> Builder {
    let (major, minor) = nvrtc.version();
    Builder {
        compiler: format!("NVRTC {major}.{minor}, lightc {}", env!("CARGO_PKG_VERSION")),
        driver,
    }
}

/// Begins to compile sources that are not in the cache, with as many threads as the machine has, the largest first. It
/// waits for none of them: a kernel that is launched waits for its own. What does not compile is told there.
///
/// # Errors
/// The GPU cannot be used.
pub(super) fn compile_ahead(ordinal: usize, modules: &[&'static Module]) -> Result<()> {
    let driver = with_gpu(ordinal, |gpu| Ok(gpu.facts.driver))?;
    let n = begin(driver, modules);
    if n > 0 {
        let n_threads = n_threads(n);
        eprintln!("compiling {n} kernel sources for this machine, {n_threads} at a time");
    }
    Ok(())
}

fn n_threads(n_sources: usize) -> usize {
    available_parallelism().map_or(1, NonZero::get).min(n_sources)
}

/// The same for a driver's version; how many sources are compiled.
pub(super) fn begin(driver: i32, modules: &[&'static Module]) -> usize {
    let Ok(nvrtc) = Nvrtc::open() else { return 0 };
    let (builder, folder) = (builder(nvrtc, driver), cache::folder());
    let is_kept = |module: &Module| {
        let key = cache::key(module.source, &builder);
        folder.as_deref().is_some_and(|folder| cache::path(folder, &key).exists())
    };
    let mut missing: Vec<&'static Module> =
        modules.iter().copied().filter(|module| !is_kept(module)).collect();
    let n_sources = missing.len();
    // The largest is last, where it is taken from.
    missing.sort_by_key(|module| module.source.len());
    let queue = Arc::new(Mutex::new(missing));
    for _ in 0..n_threads(n_sources) {
        let queue = Arc::clone(&queue);
        let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let _ = std::thread::spawn(move || {
            while let Some(module) = next() {
                let _ = code(module, driver);
            }
        });
    }
    n_sources
}

pub(super) fn compile_error(kernel: &'static Kernel, error: lightc_kernels::Error) -> DeviceError {
    let (entry, origin) = (kernel.entry, kernel.origin);
    match error {
        lightc_kernels::Error::NoNvrtc { .. } | lightc_kernels::Error::NoHostCompiler { .. } => {
            DeviceError::NoCompiler(error.to_string())
        }
        other => DeviceError::Compile { entry, origin, detail: other.to_string() },
    }
}

/// A moment on the default stream.
pub(super) struct Event {
    ordinal: usize,
    event: sys::CUevent,
}

impl Event {
    pub(super) fn new(ordinal: usize) -> Result<Event> {
        with_gpu(ordinal, |_| {
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                .map(|event| Event { ordinal, event })
                .map_err(|error| refused(SET_UP, "cuEventCreate", error).into())
        })
    }

    pub(super) fn record(&self) -> Result<()> {
        with_gpu(self.ordinal, |_| {
            // SAFETY: the event is live.
            #[allow(unsafe_code)]
            unsafe { result::event::record(self.event, std::ptr::null_mut()) }
                .map_err(|error| refused(SET_UP, "cuEventRecord", error).into())
        })
    }

    /// Milliseconds from `start` to this event, once it has come.
    pub(super) fn since(&self, start: &Event) -> Result<f64> {
        with_gpu(self.ordinal, |_| {
            // SAFETY: both events are live and were recorded.
            #[allow(unsafe_code)]
            unsafe {
                result::event::synchronize(self.event)
                    .and_then(|()| result::event::elapsed(start.event, self.event))
            }
            .map(f64::from)
            .map_err(|error| refused(SET_UP, "cuEventElapsedTime", error).into())
        })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is live, and this is its only owner. A refusal leaves it to the driver.
        #[allow(unsafe_code)]
        let _ = unsafe { result::event::destroy(self.event) };
    }
}

/// How the copy engine reads and writes tiles of a tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorMap(pub(super) sys::CUtensorMap);

impl TensorMap {
    /// A map for the emulator.
    pub(super) fn of_words(words: [u64; 16]) -> TensorMap {
        TensorMap(sys::CUtensorMap { opaque: words })
    }
}

/// What a map covers, innermost dimension first, and the box of it that one copy takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles<'a> {
    /// Bytes of an element: 2 for bf16, 1 for codes.
    pub(super) element_bytes: u64,
    pub(super) dimensions: &'a [u64],
    /// Of rows of 64 or 128 bytes, which lie in shared memory swizzled over that width.
    pub(super) tile: &'a [u32],
    /// Whether what is read from memory comes to L2 in 256 bytes, not 128.
    pub(super) far: bool,
}

impl Tiles<'_> {
    /// Bytes of a row of the box, and of the swizzle.
    pub(super) fn row_bytes(&self) -> u64 {
        self.tile.first().map_or(0, |across| u64::from(*across) * self.element_bytes)
    }
}

/// A map of a contiguous tensor at `address`; what is out of range reads as zero.
pub(super) fn tensor_map(ordinal: usize, address: u64, tiles: Tiles<'_>) -> Result<TensorMap> {
    use sys::CUtensorMapDataType as T;
    use sys::CUtensorMapSwizzle as S;
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // The stride of a dimension is the bytes of all further in.
    let mut strides = Vec::new();
    let mut bytes = tiles.element_bytes;
    for size in tiles.dimensions {
        bytes = bytes.saturating_mul(*size);
        strides.push(bytes);
    }
    let steps = vec![1u32; tiles.dimensions.len()];
    let rank = u32::try_from(tiles.dimensions.len()).unwrap_or(u32::MAX);
    let kind = if tiles.element_bytes == 1 {
        T::CU_TENSOR_MAP_DATA_TYPE_UINT8
    } else {
        T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    };
    let swizzle = if tiles.row_bytes() == 64 {
        S::CU_TENSOR_MAP_SWIZZLE_64B
    } else {
        S::CU_TENSOR_MAP_SWIZZLE_128B
    };
    let promotion = if tiles.far {
        sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B
    } else {
        sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B
    };
    with_gpu(ordinal, |_| {
        // SAFETY: all pointers are to live arrays of the rank given (the strides of one more), and
        // the map is a live map.
        #[allow(unsafe_code)]
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                kind,
                rank,
                address as *mut c_void,
                tiles.dimensions.as_ptr(),
                strides.as_ptr(),
                tiles.tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                promotion,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|error| refused(SET_UP, "cuTensorMapEncodeTiled", error))?;
        Ok(TensorMap(map))
    })
}
