//! What a box is made of: bytes as they are stored, or values.

use crate::number;
use safetensors::Dtype;

/// What elements are evaluated to.
pub(super) trait Mode: Copy {
    /// What a buffer is made of.
    type Place: Copy + Default;
    /// Places per element.
    fn unit(self) -> usize;
    /// Whether a tensor's raw elements are what is wanted.
    fn takes_raw(self, dtype: Dtype) -> bool;
    /// Raw elements to places.
    fn decode(self, dtype: Dtype, bytes: &[u8], out: &mut [Self::Place]);
    /// Reads straight into places, where a place is a byte.
    fn bytes(out: &mut [Self::Place]) -> Option<&mut [u8]>;
    /// Computed values to places.
    fn encode(self, values: Vec<f64>) -> Vec<Self::Place>;
}

/// Raw elements of a dtype.
#[derive(Clone, Copy)]
pub(super) struct Raw(pub(super) Dtype);

/// Values.
#[derive(Clone, Copy)]
pub(super) struct Values;

impl Mode for Raw {
    type Place = u8;

    fn unit(self) -> usize {
        number::width(self.0)
    }

    fn takes_raw(self, dtype: Dtype) -> bool {
        dtype == self.0
    }

    fn decode(self, dtype: Dtype, bytes: &[u8], out: &mut [u8]) {
        let mut values = vec![0.0; bytes.len() / number::width(dtype)];
        number::read(dtype, bytes, &mut values);
        number::write(self.0, &values, out);
    }

    fn bytes(out: &mut [u8]) -> Option<&mut [u8]> {
        Some(out)
    }

    fn encode(self, values: Vec<f64>) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * self.unit()];
        number::write(self.0, &values, &mut bytes);
        bytes
    }
}

impl Mode for Values {
    type Place = f64;

    fn unit(self) -> usize {
        1
    }

    fn takes_raw(self, _: Dtype) -> bool {
        false
    }

    fn decode(self, dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
        number::read(dtype, bytes, out);
    }

    fn bytes(_: &mut [f64]) -> Option<&mut [u8]> {
        None
    }

    fn encode(self, values: Vec<f64>) -> Vec<f64> {
        values
    }
}
