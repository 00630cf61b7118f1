//! A source in memory, for tests of evaluation.

use crate::error::Result;
use crate::eval::Tensors;
use crate::number;
use crate::region::strides;
use lightc_numerics::draw::{Law, Stream};
use safetensors::Dtype;

/// Normal numbers, rounded to an element type.
pub(crate) struct InMemory {
    pub(crate) dtype: Dtype,
    pub(crate) tensors: Vec<(Vec<usize>, Vec<u8>)>,
}

impl InMemory {
    pub(crate) fn new(dtype: Dtype, shapes: &[Vec<usize>]) -> Self {
        let mut tensors = Vec::new();
        for (index, shape) in shapes.iter().enumerate() {
            let n: usize = shape.iter().product();
            let values = Stream::new(index as u64, "source").fill(Law::Normal { std: 1.0 }, n);
            let mut bytes = vec![0; n * number::width(dtype)];
            number::write(dtype, &values, &mut bytes);
            tensors.push((shape.clone(), bytes));
        }
        InMemory { dtype, tensors }
    }

    /// One element.
    pub(crate) fn value(&self, tensor: usize, index: &[usize]) -> f64 {
        let (shape, bytes) = &self.tensors[tensor];
        let place: usize = index.iter().zip(strides(shape)).map(|(i, s)| i * s).sum();
        let width = number::width(self.dtype);
        let mut out = [0.0];
        number::read(self.dtype, &bytes[place * width..][..width], &mut out);
        out[0]
    }
}

impl Tensors for InMemory {
    fn shape(&self, tensor: usize) -> &[usize] {
        &self.tensors[tensor].0
    }

    fn dtype(&self, _: usize) -> Dtype {
        self.dtype
    }

    fn read(&self, tensor: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.copy_from_slice(&self.tensors[tensor].1[offset as usize..][..buffer.len()]);
        Ok(())
    }
}
