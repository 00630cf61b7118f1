//! Start values of parameters.

use crate::error::{Error, Result};
use crate::stage::{Format, ParamSpec, Storage};
use crate::{Kind, Tensor, ops};
use lightc_numerics::draw::Stream;

/// The start values of all parameters of a stage, in their order. A quantized one is the draw of
/// its path, then quantized.
pub fn init_params(specs: &[ParamSpec], seed: u64, kind: Kind) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::with_capacity(specs.len());
    let mut scale: Option<Tensor> = None;
    for spec in specs {
        tensors.push(match spec.storage {
            Storage::Codes(format) => {
                let (codes, its_scale) = init_quantized(spec, format, seed)?;
                scale = Some(its_scale);
                codes
            }
            Storage::Scale => scale.take().ok_or_else(|| Error::Op {
                op: "init",
                detail: format!("`{}` does not stand behind its codes", spec.path),
            })?,
            _ => init_param(spec, seed, kind)?,
        });
    }
    Ok(tensors)
}

/// The start value of one parameter, drawn in f64 and rounded to `kind`.
pub fn init_param(spec: &ParamSpec, seed: u64, kind: Kind) -> Result<Tensor> {
    let values = draw(spec, spec.path, seed);
    Ok(Tensor::f_from_slice(&values)?.f_reshape(spec.shape)?.f_to_kind(kind)?)
}

fn draw(spec: &ParamSpec, path: &str, seed: u64) -> Vec<f64> {
    let n_elements: i64 = spec.shape.iter().product();
    Stream::new(seed, path).fill(spec.init, n_elements as usize)
}

/// Codes and scales of a quantized parameter.
fn init_quantized(spec: &ParamSpec, format: Format, seed: u64) -> Result<(Tensor, Tensor)> {
    let path = spec.path.strip_suffix(".codes").unwrap_or(spec.path);
    let values = Tensor::f_from_slice(&draw(spec, path, seed))?.f_reshape(spec.shape)?;
    ops::quantize(&values, format)
}
