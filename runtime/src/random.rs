//! Start values of parameters.

use crate::error::Result;
use crate::stage::ParamSpec;
use crate::{Kind, Tensor};
use lightc_numerics::draw::Stream;

/// The start value of one parameter, drawn in f64 and rounded to `kind`.
pub fn init_param(spec: &ParamSpec, seed: u64, kind: Kind) -> Result<Tensor> {
    let n_elements: i64 = spec.shape.iter().product();
    let values = Stream::new(seed, spec.path).fill(spec.init, n_elements as usize);
    Ok(Tensor::f_from_slice(&values)?.f_reshape(spec.shape)?.f_to_kind(kind)?)
}
