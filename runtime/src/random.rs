//! Start values of parameters.

use crate::error::{Error, Result};
use crate::ops::native::{Output, parallel_fill};
use crate::ops::{draw as draw_on_gpu, takes_draw};
use crate::stage::{Format, Init, ParamSpec, Storage};
use crate::{Device, Kind, Tensor, ops};
use lightc_numerics::draw::Stream;

/// Elements that a thread draws at a time.
const PIECE: usize = 1 << 15;
/// About how many operations a draw costs.
const WORK: usize = 40;

/// The start values of all parameters of a stage on a device, in their order. A quantized one is the
/// draw of its path, then quantized. A GPU draws its own (`kernels/draw.cu`): the host would take minutes for the
/// largest stages.
pub fn init_params(
    specs: &[ParamSpec],
    seed: u64,
    kind: Kind,
    device: Device,
) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::with_capacity(specs.len());
    let mut scale: Option<Tensor> = None;
    for spec in specs {
        let drawn = match spec.storage {
            Storage::Codes(format) => {
                let (codes, its_scale) = init_quantized(spec, format, seed, device)?;
                scale = Some(its_scale);
                codes
            }
            Storage::Scale => scale.take().ok_or_else(|| Error::Op {
                op: "init",
                detail: format!("`{}` does not stand behind its codes", spec.path),
            })?,
            _ => init_param_on(spec, spec.path, seed, kind, device)?,
        };
        tensors.push(drawn);
    }
    Ok(tensors)
}

/// The start value of one parameter on the CPU, drawn in f64 and rounded to `kind`.
pub fn init_param(spec: &ParamSpec, seed: u64, kind: Kind) -> Result<Tensor> {
    let constant = match spec.init {
        Init::Zeros => Some(0.0),
        Init::Ones => Some(1.0),
        Init::Constant(value) => Some(value),
        Init::Normal { .. } | Init::Uniform { .. } | Init::LogUniform { .. } => None,
    };
    if let Some(value) = constant {
        return Ok(Tensor::f_full(spec.shape, value, (kind, Device::Cpu))?);
    }
    if kind == Kind::Float {
        let mut out = Output::zeros::<f32>(spec.shape)?;
        draw(spec, spec.path, seed, out.slice::<f32>(), |x| x as f32);
        return Ok(out.into_tensor());
    }
    Ok(drawn(spec, spec.path, seed)?.f_to_kind(kind)?)
}

/// The draws of a parameter's elements, in f64.
fn drawn(spec: &ParamSpec, path: &str, seed: u64) -> Result<Tensor> {
    let mut out = Output::zeros::<f64>(spec.shape)?;
    draw(spec, path, seed, out.slice::<f64>(), |x| x);
    Ok(out.into_tensor())
}

/// Draws all elements, shared by libtorch's number of threads: a draw is a function of its position,
/// so the bits do not depend on who draws it.
fn draw<T: Send>(spec: &ParamSpec, path: &str, seed: u64, out: &mut [T], round: fn(f64) -> T) {
    let stream = Stream::new(seed, path);
    let work = out.len().saturating_mul(WORK);
    parallel_fill(out, PIECE, work, |index, piece| {
        let values = stream.clone().range(spec.init, (index * PIECE) as u64, piece.len());
        for (to, value) in piece.iter_mut().zip(values) {
            *to = round(value);
        }
    });
}

/// [`init_param`] of a path, on a device.
fn init_param_on(
    spec: &ParamSpec,
    path: &'static str,
    seed: u64,
    kind: Kind,
    device: Device,
) -> Result<Tensor> {
    let host = |kind| init_param(&ParamSpec { path, ..*spec }, seed, kind);
    let like = Tensor::f_empty([0i64], (kind, device))?;
    let n = spec.shape.iter().product();
    if matches!(device, Device::Cuda(_)) && takes_draw(spec.init, n, kind, &like) {
        return draw_on_gpu(path, (spec.init, seed), spec.shape, kind, &like, &host);
    }
    Ok(host(kind)?.f_to_device(device)?)
}

/// Codes and scales of a quantized parameter, made on the device of the run. The draw is rounded to f32, from
/// which codes are made, at once.
fn init_quantized(
    spec: &ParamSpec,
    format: Format,
    seed: u64,
    device: Device,
) -> Result<(Tensor, Tensor)> {
    let path = spec.path.strip_suffix(".codes").unwrap_or(spec.path);
    ops::quantize(&init_param_on(spec, path, seed, Kind::Float, device)?, format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Precision;

    /// More elements than one thread takes at a time, shared by several threads, in both kinds.
    #[test]
    fn draws_in_pieces_are_those_of_the_stream() {
        let n = 3 * PIECE + 17;
        tch::set_num_threads(3);
        let laws = [
            Init::Normal { std: 0.02 },
            Init::Uniform { low: -1.0, high: 2.0 },
            Init::LogUniform { low: 0.0, high: 16.0 },
            Init::Ones,
            Init::Constant(0.3),
        ];
        for init in laws {
            let shape: &'static [i64] = Box::leak(Box::new([n as i64]));
            let spec = ParamSpec {
                path: "a.b",
                shape,
                precision: Precision::Act,
                init,
                storage: Storage::Trained,
            };
            let expected = Tensor::from_slice(&Stream::new(7, "a.b").fill(init, n));
            for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
                let found = init_param(&spec, 7, kind).expect("draws");
                assert_eq!(found, expected.to_kind(kind), "{init:?} in {kind:?}");
            }
        }
    }
}
