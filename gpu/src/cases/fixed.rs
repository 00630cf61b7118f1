//! States of reversible stacks: steps and inverses against the CPU, to the bit.

use lightc_numerics::fixed::Step;
use lightc_runtime::cuda::{self, Mode, Names};
use lightc_runtime::ops::{self, Cotangents, Count, Force, Made, Push};
use lightc_runtime::{Device, Kind, Result, Tensor};

use super::chosen;
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Fixed;

/// Elements: one, around what a thread holds and what a block holds, and many with an odd end.
const SIZES: [i64; 7] = [1, 7, 8, 9, 511, 2049, 1_000_003];
/// Numerators and bits of `a`: the first step, a leap, and every width of kept bits.
const STEPS: [(i64, u32); 8] = [(0, 0), (1, 0), (1, 1), (3, 2), (5, 3), (11, 4), (99, 7), (255, 8)];
/// Gates: none, some that silence, scale and turn the force, and what is no number.
const GATES: [Option<f64>; 5] = [None, Some(0.0), Some(0.75), Some(-1.5), Some(f64::NAN)];
const FRACTION_BITS: u32 = 20;

/// States that reach over the whole range, so that steps wrap, and what layers gave: mostly near the
/// value that they read, with numbers that are none.
struct Drawn {
    before: Tensor,
    now: Tensor,
    p: Tensor,
    y: Tensor,
    gate: Option<Tensor>,
}

impl Drawn {
    fn new(gpu: &Gpu, n: i64, gate: Option<f64>) -> Result<Drawn> {
        let on = |kind| (kind, gpu.device());
        // Less what memory is set to before a kernel runs.
        let bound = 0x7f00_0000;
        let whole = || -> Result<Tensor> {
            Ok(Tensor::f_randint_low(-bound, bound, [n], on(Kind::Int64))?.f_to_kind(Kind::Int)?)
        };
        let now = whole()?;
        let p = ops::fixed_value(&now, FRACTION_BITS, Kind::BFloat16)?;
        let y = p.f_add(&gpu.normal_bf16(&[n])?)?;
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, 1e-40, 0.0];
        let odd = Tensor::f_from_slice(&odd)?.f_to_device(gpu.device())?;
        let which = Tensor::f_randint(7, [n], on(Kind::Int64))?;
        let is_odd = gpu.uniform(&[n])?.f_lt(0.02)?;
        let odd = odd.f_index_select(0, &which)?.f_to_kind(Kind::BFloat16)?;
        let gate = gate.map(|gate| Tensor::f_full([0i64; 0], gate, on(Kind::Float))).transpose()?;
        Ok(Drawn { before: whole()?, now, p, y: odd.f_where_self(&is_odd, &y)?, gate })
    }

    fn push(&self) -> Push<'_> {
        Push { now: &self.now, p: &self.p, y: &self.y, gate: self.gate.as_ref() }
    }
}

fn count(count: Option<Count>) -> Result<i64> {
    match count {
        None => Ok(0),
        Some(Count::Known(n)) => Ok(n),
        Some(Count::Waiting(n)) => Ok(n.f_sum(Kind::Int64)?.f_int64_value(&[])?),
    }
}

/// One step and its inverse on the GPU and on the CPU. Gives how many of their results differ in a bit.
fn differing(drawn: &Drawn, step: &Step) -> Result<f64> {
    let cpu = |x: &Tensor| -> Result<Tensor> { Ok(x.f_to_device(Device::Cpu)?) };
    let made = ops::state_step(step, FRACTION_BITS, &drawn.before, &drawn.push())?;
    let (p, y) = (cpu(&drawn.p)?, cpu(&drawn.y)?);
    let gate = drawn.gate.as_ref().map_or(Ok(1.0), |gate| gate.f_double_value(&[]))?;
    let (before, now) = (cpu(&drawn.before)?, cpu(&drawn.now)?);
    let force = Force { p: &p, y: &y, gate };
    let want = ops::fixed_step(step, &before, &now, &force)?;
    let bits = |x: &Tensor| x.f_contiguous()?.f_view_dtype(Kind::Int16);
    let value = ops::fixed_value(&want.next, FRACTION_BITS, Kind::BFloat16)?;
    let mut same = vec![
        cpu(&made.state)?.f_equal(&want.next)?,
        bits(&cpu(&made.value)?)?.f_equal(&bits(&value)?)?,
        count(made.beyond)? == want.beyond,
        match (&made.kept, &want.kept) {
            (Some(made), Some(want)) => cpu(made)?.f_equal(want)?,
            (None, None) => true,
            _ => false,
        },
    ];
    if step.numerator > 0 {
        let kept = made.kept.as_ref();
        let (state, value) =
            ops::state_before(step, FRACTION_BITS, &made.state, kept, &drawn.push())?;
        same.push(state.f_equal(&drawn.before)?);
        let want = ops::fixed_value(&drawn.before, FRACTION_BITS, Kind::BFloat16)?;
        let value = value.unwrap_or_else(|| want.f_zeros_like().unwrap_or(want.shallow_clone()));
        same.push(bits(&value)?.f_equal(&bits(&want)?)?);
    }
    Ok(same.iter().filter(|same| !**same).count() as f64)
}

/// How many cotangents have other bits than libtorch's calls in bf16 give.
fn differing_cotangents(gpu: &Gpu, n: i64, step: &Step, gate: Option<&Tensor>) -> Result<f64> {
    let (late, d, through) =
        (gpu.normal_bf16(&[n])?, gpu.normal_bf16(&[n])?, gpu.normal_bf16(&[n])?);
    let run = || -> Result<[Tensor; 3]> {
        let seed = ops::state_seed(&d, 0.3, gate)?;
        let with = |late| {
            let share = 1.0 - step.a();
            let parts = Cotangents { late, d: &d, share, seed: &seed, through: &through };
            ops::state_cotangent(&parts, 0.3, gate)
        };
        let (first, later) = (with(None)?, with(Some((&late, step.a())))?);
        Ok([seed, first, later])
    };
    let made = run()?;
    cuda::set_mode(Mode::Reference(Names::All));
    let want = run();
    cuda::set_mode(Mode::Normal);
    let mut differ = 0.0;
    for (made, want) in made.iter().zip(&want?) {
        let bits = |x: &Tensor| x.f_view_dtype(Kind::Int16);
        differ += if bits(made)?.f_equal(&bits(want)?)? { 0.0 } else { 1.0 };
    }
    Ok(differ)
}

/// Everything that runs beside a layer, once.
fn all(gpu: &Gpu, drawn: &Drawn, step: &Step) -> Result<()> {
    let (n, gate) = (drawn.y.numel() as i64, drawn.gate.as_ref());
    let made = ops::state_step(step, FRACTION_BITS, &drawn.before, &drawn.push())?;
    if step.numerator > 0 {
        let kept = made.kept.as_ref();
        let _ = ops::state_before(step, FRACTION_BITS, &made.state, kept, &drawn.push())?;
    }
    let _ = ops::state_start(&drawn.y, FRACTION_BITS)?;
    let _ = ops::state_value(&drawn.now, FRACTION_BITS, Kind::BFloat16)?;
    // A gate that is no number leaves nothing to compare.
    let gate = gate.filter(|gate| gate.f_double_value(&[]).is_ok_and(f64::is_finite));
    let [late, d, through] = [(), (), ()].map(|()| gpu.normal_bf16(&[n]));
    let (late, d, through) = (late?, d?, through?);
    let seed = ops::state_seed(&d, 0.5, gate)?;
    for late in [None, Some((&late, step.a()))] {
        let parts =
            Cotangents { late, d: &d, share: 1.0 - step.a(), seed: &seed, through: &through };
        let _ = ops::state_cotangent(&parts, 0.5, gate)?;
    }
    let truths = gpu.uniform(&[n])?.f_lt(0.3)?;
    let _ = ops::unpack_bools(&ops::pack_bools(&truths)?, &[n])?;
    Ok(())
}

impl Case for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for n in chosen(gpu.small, &SIZES, |n| *n) {
            let (mut differ, mut others) = (0.0, 0.0);
            for (at, (numerator, bits)) in STEPS.into_iter().enumerate() {
                for gate in GATES {
                    let step = Step::new(numerator, bits, 0.5, FRACTION_BITS);
                    let drawn = Drawn::new(gpu, n, gate)?;
                    differ += differing(&drawn, &step)?;
                    if gate.is_none_or(f64::is_finite) {
                        others += differing_cotangents(gpu, n, &step, drawn.gate.as_ref())?;
                    }
                    if gate.is_none() || at % 4 == 2 {
                        let label = format!("states n={n} a={numerator}/2^{bits} gate={gate:?}");
                        verdicts.extend(compared(&label, 1.0, &mut || all(gpu, &drawn, &step))?);
                    }
                }
            }
            let label = format!("states n={n}, 40 steps and inverses");
            verdicts.push(within(label, "results with other bits than the CPU's:", differ, 0.0));
            let label = format!("states n={n}, cotangents of 32 steps");
            verdicts.push(within(label, "with other bits than libtorch's:", others, 0.0));
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let n = 8192 * 4 * 4096;
        let step = Step::new(1, 1, 0.5, FRACTION_BITS);
        // States as they are: nothing beyond its range.
        let state = || -> Result<Made> { ops::state_start(&gpu.normal_bf16(&[n])?, FRACTION_BITS) };
        let (before, now) = (state()?, state()?);
        let y = gpu.normal_bf16(&[n])?;
        let drawn = Drawn { before: before.state, now: now.state, p: now.value, y, gate: None };
        let made = ops::state_step(&step, FRACTION_BITS, &drawn.before, &drawn.push())?;
        let row = |name: &str, bytes: f64, spread| Measured {
            name: name.to_owned(),
            shape: "T=8192, 4 x 4096".to_owned(),
            spread,
            flops: 0.0,
            bytes: bytes * n as f64,
            peers: &[],
        };
        let (y, kept) = (&drawn.y, made.kept.as_ref());
        let forward =
            &mut || ops::state_step(&step, FRACTION_BITS, &drawn.before, &drawn.push()).map(|_| ());
        let inverse = &mut || {
            ops::state_before(&step, FRACTION_BITS, &made.state, kept, &drawn.push()).map(|_| ())
        };
        let late = Some((&before.value, 0.5));
        let parts = Cotangents { late, d: y, share: 0.5, seed: y, through: &drawn.p };
        Ok(vec![
            row("step of a state", 16.125, time(gpu, 11, forward)?),
            row("its inverse", 16.125, time(gpu, 11, inverse)?),
            row(
                "first state",
                8.0,
                time(gpu, 11, &mut || ops::state_start(y, FRACTION_BITS).map(|_| ()))?,
            ),
            row(
                "seed of a layer",
                4.0,
                time(gpu, 11, &mut || ops::state_seed(y, 0.5, None).map(|_| ()))?,
            ),
            row(
                "cotangent of a state",
                8.0,
                time(gpu, 11, &mut || ops::state_cotangent(&parts, 0.5, None).map(|_| ()))?,
            ),
        ])
    }
}
