//! What the native CPU kernels share: slices of tensors, threads, and code
//! compiled for the vector units of the machine.
//!
//! Kernels are plain loops over fixed-width lanes. They multiply and add
//! separately (no fused multiply-add), so their bits are the same whatever
//! vector unit runs them and however many threads share the work.

use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// An element type of the native kernels.
pub(crate) trait Real:
    Element
    + Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + 'static
{
    /// One.
    const ONE: Self;
    /// The nearest value.
    fn of(value: f64) -> Self;
    /// e to the power of it.
    fn exp(self) -> Self;
}

macro_rules! real {
    ($name:ident) => {
        impl Real for $name {
            const ONE: Self = 1.0;
            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $name
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $name::exp(self)
            }
        }
    };
}

real!(f32);
real!(f64);

/// The rule of the module `ops`: native kernels take CPU tensors of f32 or f64
/// that libtorch's autograd does not follow.
pub(crate) fn runs_native(inputs: &[&Tensor]) -> bool {
    inputs.iter().all(|x| {
        x.device() == Device::Cpu
            && matches!(x.kind(), Kind::Float | Kind::Double)
            && !x.requires_grad()
    })
}

/// A tensor's elements in row-major order: a contiguous CPU tensor held while
/// its slice is used.
pub(crate) struct Host {
    tensor: Tensor,
}

impl Host {
    /// Makes `x` contiguous on the CPU (no copy where it already is).
    pub(crate) fn of(x: &Tensor) -> Result<Host> {
        let on_cpu =
            if x.device() == Device::Cpu { x.shallow_clone() } else { x.f_to_device(Device::Cpu)? };
        Ok(Host { tensor: on_cpu.f_contiguous()? })
    }

    /// The elements; empty if the tensor is not of kind `T`.
    pub(crate) fn slice<T: Element>(&self) -> &[T] {
        if self.tensor.kind() != T::KIND || self.tensor.numel() == 0 {
            return &[];
        }
        // SAFETY: the tensor is contiguous, on the CPU, not empty and of kind T,
        // so its data pointer is valid for numel() elements of T; `self` keeps
        // it alive, and no op writes to its inputs.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.tensor.data_ptr().cast::<T>(), self.tensor.numel())
        }
    }
}

/// A fresh CPU tensor of zeros that a kernel fills.
pub(crate) struct Output {
    tensor: Tensor,
}

impl Output {
    /// Zeros of `shape` and kind `T`.
    pub(crate) fn zeros<T: Element>(shape: &[i64]) -> Result<Output> {
        Ok(Output { tensor: Tensor::f_zeros(shape, (T::KIND, Device::Cpu))? })
    }

    /// The elements; empty if the tensor is not of kind `T`.
    pub(crate) fn slice<T: Element>(&mut self) -> &mut [T] {
        if self.tensor.kind() != T::KIND || self.tensor.numel() == 0 {
            return &mut [];
        }
        // SAFETY: as in Host::slice; the tensor was made by Output::zeros and
        // has been given to nobody, so `self` is its only owner.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<T>(), self.tensor.numel())
        }
    }

    /// The filled tensor.
    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// Code to be compiled for the machine's vector unit: `run` must be
/// `#[inline(always)]`, and so must all it calls.
pub(crate) trait Kernel {
    /// What it gives.
    type Out;
    /// The code.
    fn run(self) -> Self::Out;
}

/// Runs the kernel, compiled for AVX2 where the CPU has it.
pub(crate) fn vectorized<K: Kernel>(kernel: K) -> K::Out {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn with_avx2<K: Kernel>(kernel: K) -> K::Out {
            kernel.run()
        }
        // SAFETY: the CPU was just found to have AVX2.
        #[allow(unsafe_code)]
        return unsafe { with_avx2(kernel) };
    }
    kernel.run()
}

/// Below this many operations a task list is not worth a second thread.
const WORK_PER_THREAD: usize = 400_000;

fn n_threads(n_tasks: usize, work: usize) -> usize {
    let allowed = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    allowed.min(n_tasks).min(work / WORK_PER_THREAD).max(1)
}

/// `task(0), task(1), ..` in order, shared by libtorch's number of threads if
/// `work` operations in all are worth it.
pub(crate) fn parallel_map<R: Send>(
    n_tasks: usize,
    work: usize,
    task: impl Fn(usize) -> R + Sync,
) -> Vec<R> {
    let n_threads = n_threads(n_tasks, work);
    if n_threads == 1 {
        return (0..n_tasks).map(task).collect();
    }
    let range = |thread: usize| n_tasks * thread / n_threads..n_tasks * (thread + 1) / n_threads;
    std::thread::scope(|scope| {
        let task = &task;
        let others: Vec<_> = (1..n_threads)
            .map(|thread| scope.spawn(move || range(thread).map(task).collect::<Vec<R>>()))
            .collect();
        let mut results: Vec<R> = range(0).map(task).collect();
        for other in others {
            match other.join() {
                Ok(part) => results.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}

/// `task` on each item, in the order of the items; shared by threads as in [`parallel_map`].
pub(crate) fn parallel_each<I: Send, R: Send>(
    items: Vec<I>,
    work: usize,
    task: impl Fn(I) -> R + Sync,
) -> Vec<R> {
    let n_items = items.len();
    let n_threads = n_threads(n_items, work);
    if n_threads == 1 {
        return items.into_iter().map(task).collect();
    }
    let mut items = items.into_iter();
    let per_thread = n_items.div_ceil(n_threads);
    let task = &task;
    std::thread::scope(|scope| {
        let own: Vec<I> = items.by_ref().take(per_thread).collect();
        let mut others = Vec::new();
        while items.len() > 0 {
            let part: Vec<I> = items.by_ref().take(per_thread).collect();
            others.push(scope.spawn(move || part.into_iter().map(task).collect::<Vec<R>>()));
        }
        let mut results: Vec<R> = own.into_iter().map(task).collect();
        for other in others {
            match other.join() {
                Ok(part) => results.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}

/// Fills `out` piece by piece of `size` elements: `task(index, piece)`. Shared
/// by threads as in [`parallel_map`].
pub(crate) fn parallel_fill<T: Send>(
    out: &mut [T],
    size: usize,
    work: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    let size = size.max(1);
    let n_tasks = out.len().div_ceil(size);
    let n_threads = n_threads(n_tasks, work);
    let per_thread = n_tasks.div_ceil(n_threads).max(1);
    let run = |first: usize, part: &mut [T]| {
        for (index, piece) in part.chunks_mut(size).enumerate() {
            task(first + index, piece);
        }
    };
    if n_threads == 1 {
        return run(0, out);
    }
    std::thread::scope(|scope| {
        let run = &run;
        let mut parts = out.chunks_mut(per_thread * size).enumerate();
        let own = parts.next();
        for (index, part) in parts {
            let _detached = scope.spawn(move || run(index * per_thread, part));
        }
        if let Some((_, part)) = own {
            run(0, part);
        }
    });
}

/// Calls a generic kernel function with the element type of `$kind`.
macro_rules! by_kind {
    ($kind:expr, $function:ident ( $($argument:expr),* $(,)? )) => {
        if $kind == tch::Kind::Double {
            $function::<f64>($($argument),*)
        } else {
            $function::<f32>($($argument),*)
        }
    };
}
pub(crate) use by_kind;
