//! AdamW with decoupled weight decay, over parameter groups.
//!
//! With gradient `g` (after clipping), update number `n = s + 1`, and the
//! group's rate `r` and decay `d`:
//!
//! ```text
//! m <- b1 m + (1 - b1) g                      v <- b2 v + (1 - b2) g^2
//! w <- (1 - r d) w - r (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)
//! ```
//!
//! Master weights and moments are f32 (f64 in runs in double). Clipping scales
//! all gradients by `clip_norm / norm` where their global norm is above
//! `clip_norm`. On the CPU the squares are taken and summed in f64 in the order of the parameters; on
//! a GPU by two kernels in an order that depends on the sizes alone, and one kernel updates all
//! parameters ([`crate::cuda::adamw`]), to the rounding of f32.

use crate::config::GroupConfig;
use crate::error::{ConfigError, Result};
use crate::stage::ParamSpec;
use crate::{Device, Kind, Tensor, cuda};

/// The numbers of AdamW that all groups share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, `b1`.
    pub beta1: f64,
    /// Decay of the second moment, `b2`.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest global gradient norm that is not scaled down.
    pub clip_norm: f64,
}

/// A parameter's place in the optimizer.
#[derive(Debug)]
pub struct Slot<'a> {
    /// The master weight, updated in place.
    pub master: &'a mut Tensor,
    /// The first moment, updated in place.
    pub moment_m: &'a mut Tensor,
    /// The second moment, updated in place.
    pub moment_v: &'a mut Tensor,
}

impl AdamW {
    /// Updates one parameter. `n_updates` counts this update, from 1.
    pub fn update(
        &self,
        slot: &mut Slot<'_>,
        gradient: &Tensor,
        lr: f64,
        weight_decay: f64,
        n_updates: u64,
    ) -> Result<()> {
        let gradient = gradient.f_to_kind(slot.master.f_kind()?)?;
        lerp_(slot.moment_m, &gradient, self.beta1)?;
        lerp_(slot.moment_v, &gradient.f_square()?, self.beta2)?;
        let correction_m = 1.0 - libm::pow(self.beta1, n_updates as f64);
        let correction_v = 1.0 - libm::pow(self.beta2, n_updates as f64);
        let root = slot.moment_v.f_div_scalar(correction_v)?.f_sqrt()?.f_add_scalar(self.eps)?;
        let change = slot.moment_m.f_div_scalar(correction_m)?.f_div(&root)?.f_mul_scalar(lr)?;
        let _ = slot.master.f_mul_scalar_(1.0 - lr * weight_decay)?;
        let _ = slot.master.f_sub_(&change)?;
        Ok(())
    }

    /// The factor that clipping scales gradients of this global norm by.
    pub fn clip_scale(&self, norm: f64) -> f64 {
        if norm > self.clip_norm { self.clip_norm / norm } else { 1.0 }
    }
}

/// `x <- beta x + (1 - beta) y`, in place.
fn lerp_(x: &mut Tensor, y: &Tensor, beta: f64) -> Result<()> {
    let _ = x.f_mul_scalar_(beta)?;
    let _ = x.f_add_(&y.f_mul_scalar(1.0 - beta)?)?;
    Ok(())
}

/// The sum of squares of a tensor, in f64. It is not finite exactly when an
/// element is not, up to an overflow of f64.
pub fn square_sum(tensor: &Tensor) -> Result<f64> {
    let sum = tensor.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?;
    Ok(sum.f_double_value(&[])?)
}

/// The sum of squares of tensors in f64, on their device and without waiting for it. It is not
/// finite where an element is not, up to an overflow of f64.
///
/// # Errors
/// libtorch's, or the driver's.
pub fn square_sum_on_device(tensors: &[&Tensor], device: Device) -> Result<Tensor> {
    if tensors.is_empty() {
        return Ok(Tensor::f_zeros([0i64; 0], (Kind::Double, device))?);
    }
    if cuda::runs_on(device) {
        return Ok(cuda::square_sums(tensors)?.f_sum(Kind::Double)?);
    }
    let squares = |tensor: &&Tensor| -> Result<Tensor> {
        Ok(tensor.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?)
    };
    let sums = tensors.iter().map(squares).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&sums, 0)?.f_sum(Kind::Double)?)
}

/// A parameter group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Factor on the schedule's rate.
    pub lr_multiplier: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The groups, and which of them each parameter is in.
#[derive(Debug, Clone, PartialEq)]
pub struct Groups {
    /// The groups, in the order of the configuration.
    pub groups: Vec<Group>,
    /// Per parameter its group; `None` for frozen ones.
    pub of_param: Vec<Option<usize>>,
}

impl Groups {
    /// Gives every trained parameter the first group that has a pattern that
    /// matches its path. A parameter without a group, and a pattern that takes
    /// no parameter, are errors.
    pub fn assign(
        params: &[ParamSpec],
        configs: &[GroupConfig],
    ) -> std::result::Result<Self, ConfigError> {
        let mut takes: Vec<Vec<usize>> =
            configs.iter().map(|config| vec![0; config.patterns.len()]).collect();
        let mut of_param = Vec::with_capacity(params.len());
        for param in params {
            if !param.storage.learns() {
                of_param.push(None);
                continue;
            }
            let (group, pattern) = first_match(param.path, configs).ok_or_else(|| {
                let groups = configs.iter().map(|config| config.name.clone()).collect();
                ConfigError::Ungrouped { parameter: param.path.to_owned(), groups }
            })?;
            takes[group][pattern] += 1;
            of_param.push(Some(group));
        }
        check_patterns_are_used(params, configs, &takes)?;
        Ok(Groups { groups: configs.iter().map(group_of).collect(), of_param })
    }
}

fn group_of(config: &GroupConfig) -> Group {
    Group {
        name: config.name.clone(),
        lr_multiplier: config.lr_multiplier,
        weight_decay: config.weight_decay,
    }
}

fn first_match(path: &str, configs: &[GroupConfig]) -> Option<(usize, usize)> {
    configs.iter().enumerate().find_map(|(group, config)| {
        let pattern = config.patterns.iter().position(|pattern| matches(pattern, path))?;
        Some((group, pattern))
    })
}

fn check_patterns_are_used(
    params: &[ParamSpec],
    configs: &[GroupConfig],
    takes: &[Vec<usize>],
) -> std::result::Result<(), ConfigError> {
    for (config, takes) in configs.iter().zip(takes) {
        for (pattern, &n_taken) in config.patterns.iter().zip(takes) {
            if n_taken == 0 {
                return Err(unused(params, config, pattern));
            }
        }
    }
    Ok(())
}

fn unused(params: &[ParamSpec], config: &GroupConfig, pattern: &str) -> ConfigError {
    let (group, pattern) = (config.name.clone(), pattern.to_owned());
    let mut matched = params
        .iter()
        .filter(|param| param.storage.learns() && matches(&pattern, param.path))
        .map(|param| param.path.to_owned());
    match matched.next() {
        None => ConfigError::UnusedPattern { group, pattern },
        Some(first) => {
            ConfigError::ShadowedPattern { n_matched: 1 + matched.count(), group, pattern, first }
        }
    }
}

/// Whether a pattern matches a path. Both are segments joined by dots; in a
/// pattern `**` stands for any number of segments (also none), and within a
/// segment `*` for any characters and `?` for one.
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let path: Vec<&str> = path.split('.').collect();
    segments_match(&pattern, &path)
}

fn segments_match(pattern: &[&str], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((&"**", rest)) => (0..=path.len()).any(|skip| segments_match(rest, &path[skip..])),
        Some((first, rest)) => path.split_first().is_some_and(|(segment, others)| {
            chars_match(first.as_bytes(), segment.as_bytes()) && segments_match(rest, others)
        }),
    }
}

fn chars_match(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| chars_match(rest, &text[skip..])),
        Some((b'?', rest)) => {
            text.split_first().is_some_and(|(_, others)| chars_match(rest, others))
        }
        Some((first, rest)) => text
            .split_first()
            .is_some_and(|(byte, others)| byte == first && chars_match(rest, others)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Init, Precision, Storage};

    fn param(path: &'static str, storage: Storage) -> ParamSpec {
        ParamSpec { path, shape: &[2], precision: Precision::Act, init: Init::Zeros, storage }
    }

    fn params() -> Vec<ParamSpec> {
        vec![
            param("embed.weight", Storage::Trained),
            param("layers.0.norm.scale", Storage::Trained),
            param("layers.1.norm.scale", Storage::Trained),
            param("layers.1.index.w", Storage::Frozen("no gradient")),
        ]
    }

    fn group(name: &str, patterns: &[&str]) -> GroupConfig {
        GroupConfig {
            name: name.to_owned(),
            patterns: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
            lr_multiplier: 1.0,
            weight_decay: 0.0,
        }
    }

    #[test]
    fn patterns() {
        let yes = [
            ("**", "a"),
            ("**", "a.b.c"),
            ("**.scale", "scale"),
            ("**.scale", "layers.0.norm.scale"),
            ("layers.*.norm.*", "layers.10.norm.scale"),
            ("layers.**", "layers.0.w"),
            ("layers.?.w", "layers.0.w"),
            ("*_bias", "gate_bias"),
            ("a.**.b.**.c", "a.b.x.b.c"),
        ];
        let no = [
            ("*", "a.b"),
            ("layers.?.w", "layers.10.w"),
            ("scale", "norm.scale"),
            ("**.scale", "norm.scaled"),
            ("layers.*", "layers"),
            ("", "a"),
        ];
        for (pattern, path) in yes {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in no {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn the_first_match_decides() {
        let groups =
            Groups::assign(&params(), &[group("norms", &["**.scale"]), group("rest", &["**"])]);
        let groups = groups.expect("assigns");
        assert_eq!(groups.of_param, [Some(1), Some(0), Some(0), None]);
    }

    #[test]
    fn a_parameter_without_a_group_and_a_pattern_without_a_parameter_are_errors() {
        let cases = [
            vec![group("norms", &["**.scale"])],
            vec![group("norms", &["**.scale", "**.bias"]), group("rest", &["**"])],
            vec![group("rest", &["**"]), group("norms", &["**.scale"])],
            vec![group("frozen", &["**.index.w"]), group("rest", &["**"])],
        ];
        let mut text = String::new();
        for configs in cases {
            let error = Groups::assign(&params(), &configs).expect_err("fails");
            text += &crate::Error::from(error).rendered();
        }
        insta::assert_snapshot!("group_errors", text);
    }

    /// The same three updates by plain f64 arithmetic.
    fn by_hand(adamw: &AdamW, w: &mut f64, gradients: &[f64], lr: f64, decay: f64) {
        let (mut m, mut v) = (0.0, 0.0);
        for (index, g) in gradients.iter().enumerate() {
            let n = (index + 1) as i32;
            m = adamw.beta1 * m + (1.0 - adamw.beta1) * g;
            v = adamw.beta2 * v + (1.0 - adamw.beta2) * g * g;
            let m_hat = m / (1.0 - adamw.beta1.powi(n));
            let v_hat = v / (1.0 - adamw.beta2.powi(n));
            *w = (1.0 - lr * decay) * *w - lr * m_hat / (v_hat.sqrt() + adamw.eps);
        }
    }

    #[test]
    fn updates_are_those_of_the_formula() {
        let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-10, clip_norm: 1.0 };
        let gradients = [0.5, -0.25, 3.0];
        let mut expected = 0.75;
        by_hand(&adamw, &mut expected, &gradients, 0.01, 0.1);
        let cpu = (Kind::Double, Device::Cpu);
        let mut master = Tensor::from_slice(&[0.75f64]);
        let (mut m, mut v) = (Tensor::zeros([1], cpu), Tensor::zeros([1], cpu));
        for (index, g) in gradients.iter().enumerate() {
            let mut slot = Slot { master: &mut master, moment_m: &mut m, moment_v: &mut v };
            let gradient = Tensor::from_slice(&[*g]);
            adamw.update(&mut slot, &gradient, 0.01, 0.1, index as u64 + 1).expect("updates");
        }
        assert!((master.double_value(&[0]) - expected).abs() < 1e-15);
    }

    #[test]
    fn a_zero_gradient_moves_nothing_but_decay() {
        let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-10, clip_norm: 1.0 };
        let mut master = Tensor::from_slice(&[2.0f32]);
        let (mut m, mut v) = (Tensor::from_slice(&[0f32]), Tensor::from_slice(&[0f32]));
        let mut slot = Slot { master: &mut master, moment_m: &mut m, moment_v: &mut v };
        adamw.update(&mut slot, &Tensor::from_slice(&[0f32]), 0.5, 0.0, 1).expect("updates");
        assert_eq!(slot.master.double_value(&[0]), 2.0);
        adamw.update(&mut slot, &Tensor::from_slice(&[0f32]), 0.5, 0.5, 2).expect("updates");
        assert_eq!(slot.master.double_value(&[0]), 1.5);
    }

    #[test]
    fn clipping_keeps_small_norms_and_scales_large_ones() {
        let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-10, clip_norm: 2.0 };
        assert_eq!(adamw.clip_scale(1.9), 1.0);
        assert_eq!(adamw.clip_scale(8.0), 0.25);
        let large = Tensor::from_slice(&[3e30f32, 4e30]);
        assert_eq!(square_sum(&large).expect("sums").sqrt().log10().floor(), 30.0);
        let nan = Tensor::from_slice(&[1f32, f32::NAN]);
        assert!(!square_sum(&nan).expect("sums").is_finite());
    }
}
