//! The Walsh-Hadamard transform along rows on `hadamard.cu`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lightc_numerics::hadamard::Hadamard;

use super::{aligned, at, ceil, exact, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::ops::hadamard::hadamard_composite;
use crate::{Device, Kind, Tensor};

static MODULE: Module = Module { name: "hadamard.cu", source: lightc_kernels::HADAMARD };

const fn kernel(entry: &'static str, shared_bytes: u32) -> Kernel {
    let origin = "hadamard, kernels/hadamard.cu";
    Kernel { module: &MODULE, entry, origin, threads: 256, shared_bytes }
}

static SHORT: Kernel = kernel("hadamard_short", 0);
static LONG: [Kernel; 3] = [
    kernel("hadamard_2048", 4 * 8192),
    kernel("hadamard_4096", 4 * 8192),
    kernel("hadamard_8192", 4 * 8192),
];

const OP: &str = "hadamard";
/// Elements of a block.
const BLOCK: i64 = 8192;

fn kernel_of(n: i64) -> Option<&'static Kernel> {
    let [two, four, eight] = &LONG;
    match n {
        64 | 128 | 256 | 512 | 1024 => Some(&SHORT),
        2048 => Some(two),
        4096 => Some(four),
        8192 => Some(eight),
        _ => None,
    }
}

/// bf16 rows of 64, 128, .. 8192 on a GPU, at least one.
pub(crate) fn takes_hadamard(x: &Tensor) -> bool {
    cuda::runs_on(x.device())
        && x.kind() == Kind::BFloat16
        && x.numel() > 0
        && x.size().last().is_some_and(|n| kernel_of(*n).is_some())
}

/// Seed, length and number of the GPU.
type Key = (i64, i64, usize);

/// The signs that were asked for, as bits on the GPU: a few per stage.
static SIGNS: Mutex<BTreeMap<Key, Tensor>> = Mutex::new(BTreeMap::new());

fn signs(seed: i64, n: i64, turn: &Hadamard, device: Device) -> Result<Tensor> {
    let Device::Cuda(ordinal) = device else {
        return Ok(Tensor::f_from_slice(&sign_bytes(turn))?);
    };
    let mut known = SIGNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(signs) = known.get(&(seed, n, ordinal)) {
        return Ok(signs.shallow_clone());
    }
    let signs = Tensor::f_from_slice(&sign_bytes(turn))?.f_to_device(device)?;
    let _ = known.insert((seed, n, ordinal), signs.shallow_clone());
    Ok(signs)
}

/// Bit i of byte j is set where sign 8 j + i is minus.
fn sign_bytes(turn: &Hadamard) -> Vec<u8> {
    let minus: Vec<bool> = turn.signs().map(|sign| sign < 0.0).collect();
    let byte = |bits: &[bool]| bits.iter().rev().fold(0u8, |byte, bit| byte << 1 | u8::from(*bit));
    minus.chunks(8).map(byte).collect()
}

/// `hadamard` where [`takes_hadamard`]; `turn` is that of the seed and of the rows' length.
pub(crate) fn hadamard(x: &Tensor, seed: i64, turn: &Hadamard, inverse: bool) -> Result<Tensor> {
    let n = x.size().last().copied().unwrap_or(0);
    let kernel = kernel_of(n).unwrap_or(&SHORT);
    let fused: cuda::Way<'_> = &|args, _| {
        let x = aligned(at(args, 0)?)?;
        let y = cuda::empty(&x.size(), Kind::BFloat16, &x)?;
        let signs = signs(seed, n, turn, x.device())?;
        let total = x.numel() as i64;
        let mut all = vec![Arg::Tensor(&x), Arg::Tensor(&y), Arg::Tensor(&signs), Arg::I64(total)];
        if kernel.shared_bytes == 0 {
            all.push(Arg::I32(int(OP, n)?));
        }
        all.push(Arg::F32((1.0 / libm::sqrt(n as f64)) as f32));
        all.push(Arg::I32(i32::from(inverse)));
        cuda::launch(kernel, [int(OP, ceil(total, BLOCK))?, 1, 1], &all)?;
        Ok(vec![y])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![hadamard_composite(at(args, 0)?, seed, inverse)?]);
    let [y] = take(OP, cuda::either(kernel, &[x], &exact(x)?, fused, reference)?)?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_bits_in_order() {
        let turn = Hadamard::new(42, 64).expect("a power of two");
        let bytes = sign_bytes(&turn);
        assert_eq!(bytes.len(), 8);
        for (i, sign) in turn.signs().enumerate() {
            assert_eq!(bytes[i / 8] >> (i % 8) & 1 == 1, sign < 0.0, "{i}");
        }
    }
}
