//! The harness itself: kernels with a planted fault must come out red, and right ones in every mode.

use std::collections::BTreeSet;
use std::process::Command;

use lightc_runtime::cuda::{self, Arg, Check, Kernel, Mode, Module, Names, Time, Way};
use lightc_runtime::{Error, Kind, Result, Tensor};

use crate::check::within;
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Harness;

static MODULE: Module = Module {
    name: "harness.cu",
    source: r#"#include "base.cuh"
extern "C" __global__ void twice(const bf16* x, bf16* y, int n) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = float_bf16(2.f * bf16_float(x[i]));
}
extern "C" __global__ void twice_and_a_bit(const bf16* x, bf16* y, int n) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = float_bf16(2.1f * bf16_float(x[i]));
}
extern "C" __global__ void all_but_one(const bf16* x, bf16* y, int n) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n - 1) y[i] = float_bf16(2.f * bf16_float(x[i]));
}
__device__ u32 turn;
extern "C" __global__ void one_bit_of_the_clock(const bf16* x, bf16* y, int n) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = float_bf16(2.f * bf16_float(x[i]));
    if (i == 0) y[0] ^= atomicAdd(&turn, 1u) & 1;
}
"#,
};

const fn kernel(entry: &'static str) -> Kernel {
    Kernel {
        module: &MODULE,
        entry,
        origin: "a test of the harness",
        threads: 256,
        shared_bytes: 0,
    }
}

static TWICE: Kernel = kernel("twice");
static FAULTY: [(Kernel, &str); 3] = [
    (kernel("twice_and_a_bit"), "output 0 is off by"),
    (kernel("all_but_one"), "1 elements are not written"),
    (kernel("one_bit_of_the_clock"), "two runs give different bits"),
];
static BROKEN: Module = Module { name: "broken.cu", source: "__global__ void no(" };
static NO: Kernel = Kernel {
    module: &BROKEN,
    entry: "no",
    origin: "a test of errors",
    threads: 1,
    shared_bytes: 0,
};

/// `2 x` by a kernel, and by libtorch as three times x less x: another value in no bit that counts, but
/// told apart by `marked`.
fn doubled(kernel: &'static Kernel, x: &Tensor, marked: &mut bool) -> Result<Tensor> {
    let mark = std::cell::Cell::new(false);
    let fused: Way<'_> = &|args, like| {
        let x = args.first().copied().unwrap_or(like);
        let y = cuda::empty(&x.size(), Kind::BFloat16, x)?;
        let n = x.numel();
        let grid = [n.div_ceil(256) as u32, 1, 1];
        cuda::launch(kernel, grid, &[Arg::Tensor(x), Arg::Tensor(&y), Arg::I32(n as i32)])?;
        Ok(vec![y])
    };
    let reference: Way<'_> = &|args, like| {
        mark.set(true);
        Ok(vec![args.first().copied().unwrap_or(like).f_mul_scalar(2.0)?])
    };
    let out = cuda::either(kernel, &[x], x, fused, reference)?;
    *marked = mark.get();
    out.into_iter().next().ok_or_else(|| Error::Op { op: "harness", detail: "no result".into() })
}

fn truth(label: impl Into<String>, holds: bool) -> Verdict {
    within(label, "faults", if holds { 0.0 } else { 1.0 }, 0.0)
}

/// The fault that a check finds, in words.
fn fault_of(kernel: &'static Kernel, x: &Tensor) -> Result<Option<String>> {
    cuda::set_mode(Mode::Check(Check::default()));
    let done = doubled(kernel, x, &mut false);
    let rows = cuda::checked();
    let ended = cuda::finish_check();
    cuda::set_mode(Mode::Normal);
    let _ = done?;
    let fault = rows.first().and_then(cuda::Checked::fault);
    let ended = ended.err().map(|error| error.code());
    let agrees = ended == fault.as_ref().map(|_| "E1310");
    Ok(if agrees { fault } else { Some(format!("the end of the check says {ended:?}")) })
}

fn modes(x: &Tensor) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    let mut by_reference = false;
    let names = |entry: &str| Names::Some(BTreeSet::from([entry.to_owned()]));
    for (label, mode, expected) in [
        ("normal", Mode::Normal, false),
        ("reference of all", Mode::Reference(Names::All), true),
        ("reference of it", Mode::Reference(names("twice")), true),
        ("reference of another", Mode::Reference(names("norm")), false),
    ] {
        cuda::set_mode(mode);
        let _ = doubled(&TWICE, x, &mut by_reference)?;
        let unmatched = cuda::unmatched_references();
        let expected_unmatched: &[&str] = if label.ends_with("another") { &["norm"] } else { &[] };
        let holds = by_reference == expected && unmatched == expected_unmatched;
        verdicts.push(truth(format!("mode {label}"), holds));
    }
    cuda::set_mode(Mode::Time(Time::default()));
    let _ = doubled(&TWICE, x, &mut by_reference)?;
    let _ = doubled(&TWICE, x, &mut by_reference)?;
    let rows = cuda::timed();
    cuda::set_mode(Mode::Normal);
    let holds = matches!(rows.as_slice(), [row]
        if row.calls == 2 && row.bytes == 4 * x.numel() as u64 && row.spread.min_ms > 0.0
            && row.spread.min_ms <= row.spread.median_ms && row.spread.median_ms <= row.spread.max_ms);
    verdicts.push(truth("mode time", holds && !by_reference));
    Ok(verdicts)
}

/// What ends the context, and so needs a process of its own, with what must be said of it.
const MISUSES: [(&str, &str, &str); 7] = [
    ("mask", "E1307", "kernel `mask_pack`"),
    ("keys", "E1307", "kernel `list_count`"),
    ("target", "E1307", "kernel `lce_rows`"),
    ("memory", "E1304", "takes"),
    ("expert", "E1307", "kernel `order_count`"),
    ("position", "E1307", "kernel `take_rows`"),
    ("bounds", "E1307", "kernel `expert_low`"),
];

/// Runs `lightc-gpu misuse WHAT` and looks at what it says.
fn misuses() -> Vec<Verdict> {
    let Ok(program) = std::env::current_exe() else {
        return vec![truth("misuse: the program finds itself", false)];
    };
    let of = |(what, code, word): (&str, &str, &str)| {
        let mut command = Command::new(&program);
        // So that the kernel at fault is named, and not one that comes after it.
        let output = command.args(["misuse", what]).env("CUDA_LAUNCH_BLOCKING", "1").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        let text = text.unwrap_or_else(|error| error.to_string());
        let said = text.lines().find(|line| line.starts_with("error[")).unwrap_or("nothing");
        let holds = said.starts_with(&format!("error[{code}]")) && said.contains(word);
        let mut verdict = truth(format!("misuse: {what}"), holds);
        said.clone_into(&mut verdict.detail);
        verdict
    };
    MISUSES.into_iter().map(of).collect()
}

/// Does what must not be done, for `lightc-gpu misuse`.
///
/// # Errors
/// Always, if all is right.
pub fn misuse(gpu: &Gpu, what: &str) -> Result<()> {
    use lightc_runtime::ops::{self, AttentionForm, MaskBound};
    match what {
        // A full mask, claimed to be causal, and claimed to have few keys.
        "mask" | "keys" => {
            let x = gpu.normal_bf16(&[1, 64, 1, 64])?;
            let all = Tensor::f_ones([1, 64, 64], (Kind::Bool, gpu.device()))?;
            let bound = MaskBound { causal: what == "mask", most_keys: Some(9) };
            let _ = ops::masked_attention_by(AttentionForm::Gather, &x, &x, &x, &all, bound)?;
        }
        "target" => {
            let (h, w) = (gpu.normal_bf16(&[4, 64])?, gpu.normal_bf16(&[1024, 64])?);
            let targets = Tensor::f_full([4], 1024, (Kind::Int64, gpu.device()))?;
            let _ = ops::linear_cross_entropy(&h, &w, &targets, 0.0)?;
        }
        "expert" => {
            let ids = Tensor::f_full([9], 4, (Kind::Int64, gpu.device()))?;
            let _ = ops::expert_order(&ids, 4)?;
        }
        "position" => {
            let ids = Tensor::f_full([2, 3], 8, (Kind::Int64, gpu.device()))?;
            let _ = ops::take(&gpu.normal(&[2, 8])?, &ids, 1)?;
        }
        "bounds" => {
            // Those of other places: they reach past the end of the order.
            let ids = Tensor::f_zeros([9], (Kind::Int64, gpu.device()))?;
            let (order, bounds) = ops::expert_order(&ids, 2)?;
            let bounds = bounds.f_mul_scalar(1000)?;
            let routing = ops::Routing { ids: &ids, order: &order, bounds: &bounds };
            let (x, w) = (gpu.normal_bf16(&[9, 64])?, gpu.normal_bf16(&[2, 16, 64])?);
            let _ = ops::routed_dot(&routing, &[ops::Term::plain(&x, &w)])?;
        }
        _ => cuda::ensure_memory(gpu.ordinal, "this test", u64::MAX, "")?,
    }
    cuda::synchronize(gpu.ordinal)
}

impl Case for Harness {
    fn name(&self) -> &'static str {
        "harness"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let x = gpu.normal_bf16(&[1000])?;
        let mut verdicts = modes(&x)?;
        verdicts.push(truth("a right kernel is green", fault_of(&TWICE, &x)?.is_none()));
        for (kernel, fault) in &FAULTY {
            let found = fault_of(kernel, &x)?.unwrap_or_default();
            let label = format!("{} is red: {found}", kernel.entry);
            verdicts.push(truth(label, found.starts_with(fault)));
        }
        let refused = doubled(&NO, &x, &mut false).err().map(|error| error.code());
        verdicts.push(truth("a source that does not compile", refused == Some("E1306")));
        let strided = gpu.normal_bf16(&[8, 8])?.f_transpose(0, 1)?;
        let refused = doubled(&TWICE, &strided, &mut false).err().map(|error| error.code());
        verdicts.push(truth("a tensor that is not contiguous", refused == Some("E1309")));
        if !gpu.small {
            verdicts.extend(misuses());
        }
        Ok(verdicts)
    }

    fn bench(&self, _gpu: &Gpu) -> Result<Vec<Measured>> {
        Ok(Vec::new())
    }
}
