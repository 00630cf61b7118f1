//! What can go wrong with a GPU.

/// What is wrong with the GPU, its driver, its compiler or a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The library of the driver is not there.
    #[error("no NVIDIA driver: libcuda.so.1 is not found")]
    NoDriver,
    /// The driver sees no such GPU.
    #[error("GPU {ordinal} is not there: {detail}")]
    NoGpu {
        /// The GPU asked for, from 0.
        ordinal: usize,
        /// What the driver says.
        detail: String,
    },
    /// The GPU is of another generation than the kernels.
    #[error("GPU {ordinal}, {name}, has compute capability {found}; target sm_90a needs 9.0")]
    Architecture {
        /// The GPU, from 0.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Major and minor number, joined by a dot.
        found: String,
    },
    /// There is less memory than a run takes.
    #[error(
        "{what} takes {needed} bytes of GPU {ordinal}, {name}; {free} of its {total} bytes are \
         free{ledger}"
    )]
    Memory {
        /// The GPU, from 0.
        ordinal: usize,
        /// Its name.
        name: String,
        /// What is to be held, in words.
        what: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes of the GPU.
        total: u64,
        /// What takes them, a line per class; each begins with a line break.
        ledger: String,
    },
    /// NVRTC is not there.
    #[error("{0}")]
    NoCompiler(String),
    /// A kernel's source is not right.
    #[error("kernel `{entry}` ({origin}): {detail}")]
    Compile {
        /// The kernel that was to be launched.
        entry: &'static str,
        /// What it computes and where that is written.
        origin: &'static str,
        /// The place and the log.
        detail: String,
    },
    /// The driver refused.
    #[error("kernel `{entry}` ({origin}): {call} gives {code}")]
    Driver {
        /// The kernel.
        entry: &'static str,
        /// What it computes and where that is written.
        origin: &'static str,
        /// What was asked of the driver.
        call: &'static str,
        /// Its answer.
        code: String,
    },
    /// libtorch cannot use a GPU.
    #[error("libtorch has no CUDA: {0}")]
    NoLibtorchCuda(String),
    /// A kernel was handed what it cannot take.
    #[error("kernel `{entry}` ({origin}): {detail}")]
    Argument {
        /// The kernel.
        entry: &'static str,
        /// What it computes and where that is written.
        origin: &'static str,
        /// What disagrees, with both values.
        detail: String,
    },
    /// Kernels that were checked and do not compute what their references do.
    #[error("{n_red} of {n_checked} kernels differ from their references; the first is {first}")]
    Red {
        /// How many differ.
        n_red: usize,
        /// How many were checked.
        n_checked: usize,
        /// The first: its name and what differs.
        first: String,
    },
}

/// The code of the note that an entry of the cache cannot be used.
pub(super) const CACHE_NOTE: &str = "E1311";
/// What stands for a call of the driver where there is none.
pub(super) const EMULATOR: &str = "the emulator";

/// Every code of this module, in order.
pub const CODES: [&str; 11] = [
    "E1301", "E1302", "E1303", "E1304", "E1305", "E1306", "E1307", "E1308", "E1309", "E1310",
    CACHE_NOTE,
];

impl DeviceError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            DeviceError::NoDriver => "E1301",
            DeviceError::NoGpu { .. } => "E1302",
            DeviceError::Architecture { .. } => "E1303",
            DeviceError::Memory { .. } => "E1304",
            DeviceError::NoCompiler(_) => "E1305",
            DeviceError::Compile { .. } => "E1306",
            DeviceError::Driver { .. } => "E1307",
            DeviceError::NoLibtorchCuda(_) => "E1308",
            DeviceError::Argument { .. } => "E1309",
            DeviceError::Red { .. } => "E1310",
        }
    }

    /// How to mend it.
    pub fn help(&self) -> String {
        let text = match self {
            DeviceError::NoDriver => {
                "install the NVIDIA driver, 580 or newer, or train with `--target cpu`"
            }
            DeviceError::NoGpu { .. } => {
                "`nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES can hide them"
            }
            DeviceError::Architecture { .. } => {
                "run on an H100, H200 or GH200, or train with `--target cpu`"
            }
            DeviceError::Memory { .. } => {
                "lower `data.micro_batch` or `data.sequence_length`, end other programs on that GPU, or \
                 use a GPU with more memory; `lightc memory` lists what a run holds"
            }
            DeviceError::NoCompiler(_) => {
                "`lightc doctor --install` installs libtorch, which brings it; a program that is run \
                 by itself needs its folder in LD_LIBRARY_PATH"
            }
            DeviceError::Compile { .. } | DeviceError::Argument { .. } => {
                "this is a fault of the compiler: please report it with the stage's source; \
                 LIGHTC_REFERENCE=all trains without kernels meanwhile"
            }
            DeviceError::Driver { call: EMULATOR, .. } => {
                "kernels run one after the other on the processor: the one that is named is at fault"
            }
            DeviceError::Driver { entry, .. } => {
                return format!(
                    "an earlier kernel can be at fault: run again with CUDA_LAUNCH_BLOCKING=1, and \
                     with LIGHTC_REFERENCE={entry} to see whether it is this one"
                );
            }
            DeviceError::NoLibtorchCuda(_) => {
                "use the libtorch that `lightc doctor --install` installs, which has CUDA"
            }
            DeviceError::Red { .. } => {
                "this is a fault of the compiler: please report it with the table of the kernels"
            }
        };
        text.to_owned()
    }
}
