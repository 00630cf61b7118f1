//! Elements as they are stored, and as f64.

use safetensors::Dtype;

/// Bytes per element of a dtype that the executor reads or writes.
pub(crate) fn width(dtype: Dtype) -> usize {
    (dtype.bitsize() / 8).max(1)
}

/// Whether elements of this dtype can be read and written.
pub(crate) fn is_known(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::I64 | Dtype::I32 | Dtype::I8
    )
}

/// Reads elements as f64, which is exact but for whole numbers above 2^53.
pub(crate) fn read(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
    match dtype {
        Dtype::F64 => convert(bytes, out, f64::from_le_bytes),
        Dtype::F32 => convert(bytes, out, |raw| f64::from(f32::from_le_bytes(raw))),
        Dtype::F16 => convert(bytes, out, |raw| half::f16::from_le_bytes(raw).to_f64()),
        Dtype::BF16 => convert(bytes, out, |raw| half::bf16::from_le_bytes(raw).to_f64()),
        Dtype::I64 => convert(bytes, out, |raw| i64::from_le_bytes(raw) as f64),
        Dtype::I32 => convert(bytes, out, |raw| f64::from(i32::from_le_bytes(raw))),
        _ => convert(bytes, out, |raw: [u8; 1]| f64::from(i8::from_le_bytes(raw))),
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f64], value: impl Fn([u8; N]) -> f64) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (place, raw) in out.iter_mut().zip(elements) {
        *place = value(*raw);
    }
}

/// Writes f64 values, each rounded once, to nearest, ties to even.
pub(crate) fn write(dtype: Dtype, values: &[f64], out: &mut [u8]) {
    match dtype {
        Dtype::F64 => round(values, out, f64::to_le_bytes),
        Dtype::F32 => round(values, out, |value| (value as f32).to_le_bytes()),
        Dtype::F16 => {
            round(values, out, |value| half::f16::from_f32(to_odd(value)).to_le_bytes());
        }
        Dtype::BF16 => {
            round(values, out, |value| half::bf16::from_f32(to_odd(value)).to_le_bytes());
        }
        Dtype::I64 => round(values, out, |value| (value.round_ties_even() as i64).to_le_bytes()),
        Dtype::I32 => round(values, out, |value| (value.round_ties_even() as i32).to_le_bytes()),
        _ => round(values, out, |value| (value.round_ties_even() as i8).to_le_bytes()),
    }
}

fn round<const N: usize>(values: &[f64], out: &mut [u8], raw: impl Fn(f64) -> [u8; N]) {
    let (places, _) = out.as_chunks_mut::<N>();
    for (place, value) in places.iter_mut().zip(values) {
        *place = raw(*value);
    }
}

/// Rounds to f32 so that rounding again to fewer bits gives what rounding once would have: where
/// it is not exact, toward zero with the last bit set.
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || value.is_nan() {
        return nearest;
    }
    let bits = nearest.to_bits();
    let toward_zero = if back.abs() > value.abs() { bits - 1 } else { bits };
    f32::from_bits(toward_zero | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_happens_once() {
        // A hair above a tie of bf16: in two steps it would become the tie and round down.
        let value = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let mut out = [0; 2];
        write(Dtype::BF16, &[value], &mut out);
        assert_eq!(half::bf16::from_le_bytes(out).to_f64(), 1.0 + 2f64.powi(-7));
        write(Dtype::BF16, &[1.0 + 2f64.powi(-8)], &mut out);
        assert_eq!(half::bf16::from_le_bytes(out).to_f64(), 1.0);
        write(Dtype::F16, &[-(1.0 + 2f64.powi(-11) + 2f64.powi(-50))], &mut out);
        assert_eq!(half::f16::from_le_bytes(out).to_f64(), -(1.0 + 2f64.powi(-10)));
    }

    #[test]
    fn what_is_read_is_written_back() {
        for (dtype, values) in [
            (Dtype::F32, vec![1.5, -0.0, 3e-45_f32 as f64]),
            (Dtype::BF16, vec![1.5, -2.0]),
            (Dtype::I8, vec![-127.0, 3.0]),
            (Dtype::I64, vec![-5.0, 1e15]),
        ] {
            let mut bytes = vec![0; values.len() * width(dtype)];
            write(dtype, &values, &mut bytes);
            let mut back = vec![9.0; values.len()];
            read(dtype, &bytes, &mut back);
            let bits = |list: &[f64]| list.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&values), bits(&back), "{dtype:?}");
        }
    }
}
