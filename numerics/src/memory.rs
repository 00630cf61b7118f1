//! What the ledger of the compiler and that of a run share.

/// What is set aside beside what is counted: the context of a GPU and its kernels, work space of cuBLAS, what
/// libtorch's ops hold inside, and what its allocator rounds up.
pub const RESERVE_BYTES: u64 = 2 << 30;
