//! Start values of parameters.

use crate::error::{Error, Result};
use crate::ops::native::{Output, parallel_fill};
use crate::stage::{Format, Init, ParamSpec, Storage};
use crate::{Device, Kind, Tensor, ops};
use lightc_numerics::draw::Stream;

/// Elements that a thread draws at a time.
const PIECE: usize = 1 << 15;
/// About how many operations a draw costs.
const WORK: usize = 40;

/// The start values of all parameters of a stage on a device, in their order. A quantized one is the
/// draw of its path, then quantized. A GPU draws its own (`kernels/draw.cu`): the host would take over a minute
/// for the largest stages.
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
            _ => on_device(spec.init, (seed, spec.path), spec.shape, kind, device)?,
        };
        tensors.push(drawn);
    }
    Ok(tensors)
}

/// The start value of one parameter on the CPU, drawn in f64 and rounded to `kind`.
pub fn init_param(spec: &ParamSpec, seed: u64, kind: Kind) -> Result<Tensor> {
    on_host(spec.init, (seed, spec.path), spec.shape, kind)
}

/// The values that a law gives the path of a seed, on the CPU.
pub(crate) fn on_host(law: Init, of: (u64, &str), shape: &[i64], kind: Kind) -> Result<Tensor> {
    let constant = match law {
        Init::Zeros => Some(0.0),
        Init::Ones => Some(1.0),
        Init::Constant(value) => Some(value),
        Init::Normal { .. } | Init::Uniform { .. } | Init::LogUniform { .. } => None,
    };
    if let Some(value) = constant {
        return Ok(Tensor::f_full(shape, value, (kind, Device::Cpu))?);
    }
    if kind == Kind::Float {
        let mut out = Output::zeros::<f32>(shape)?;
        draw(law, of, out.slice::<f32>(), |x| x as f32);
        return Ok(out.into_tensor());
    }
    let mut out = Output::zeros::<f64>(shape)?;
    draw(law, of, out.slice::<f64>(), |x| x);
    Ok(out.into_tensor().f_to_kind(kind)?)
}

/// Draws all elements, shared by libtorch's number of threads: a draw is a function of its position,
/// so the bits do not depend on who draws it.
fn draw<T: Send>(law: Init, (seed, path): (u64, &str), out: &mut [T], round: fn(f64) -> T) {
    let stream = Stream::new(seed, path);
    let work = out.len().saturating_mul(WORK);
    parallel_fill(out, PIECE, work, |index, piece| {
        let values = stream.clone().range(law, (index * PIECE) as u64, piece.len());
        for (to, value) in piece.iter_mut().zip(values) {
            *to = round(value);
        }
    });
}

/// [`on_host`], on a device: a GPU draws by itself.
fn on_device(
    law: Init,
    of: (u64, &str),
    shape: &[i64],
    kind: Kind,
    device: Device,
) -> Result<Tensor> {
    if let Device::Cuda(_) = device
        && let Some(drawn) = ops::draw(law, of, shape, kind, device)
    {
        return drawn;
    }
    Ok(on_host(law, of, shape, kind)?.f_to_device(device)?)
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
    ops::quantize(&on_device(spec.init, (seed, path), spec.shape, Kind::Float, device)?, format)
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
