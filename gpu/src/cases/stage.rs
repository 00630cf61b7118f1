//! Whole stages: every kernel of a real step, loss and gradients against f64, and stacks that have their
//! states back.

use lightc_runtime::cuda::{self, Mode, Names, Time};
use lightc_runtime::reversible::{Options, take_report, take_states, with_options};
use lightc_runtime::watch::{OpTime, op_times};
use lightc_runtime::{Inputs, Kind, ParamSpec, Result, Stage, Storage, Tensor, random};

use super::{chosen, of_size};
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict, stages};

/// The dense stage: reduced against f64, and every kernel at full width.
pub(super) struct Dense;

/// Twenty layers of full width whose states are not stored.
pub(super) struct Reversible;

/// Sequences and positions of the reduced stage: a length that no tile divides, one chunk less one, one position, and sequences
/// that end within what a block of a row kernel has.
const SIZES: [(i64, i64); 4] = [(1, 190), (1, 63), (1, 1), (3, 37)];
/// Positions of a sequence of 4096 tokens, and of one of 8192, for which the goals of row kernels are stated.
const FULL: i64 = 4094;
const LONG: i64 = 8190;

/// The tensors that a step reads.
pub(super) struct Data {
    params: Vec<Tensor>,
    states: Vec<Tensor>,
    tables: Vec<Tensor>,
    carries: Vec<Tensor>,
    tokens: Tensor,
    continues: Tensor,
}

impl Data {
    /// Random parameters of a stage at their start, with noise where that is the same everywhere, and
    /// random tokens of `t` positions.
    /// One sequence.
    pub(super) fn new(gpu: &Gpu, stage: &dyn Stage, t: i64) -> Result<Data> {
        Data::batch(gpu, stage, (1, t))
    }

    fn batch(gpu: &Gpu, stage: &dyn Stage, (batch, t): (i64, i64)) -> Result<Data> {
        let on = |kind| (kind, gpu.device());
        let mut params = random::init_params(stage.params(), 7, Kind::Float, gpu.device())?;
        for (param, spec) in params.iter_mut().zip(stage.params()) {
            if matches!(spec.storage, Storage::Codes(_) | Storage::Scale) {
                continue;
            }
            let noise = gpu.normal(spec.shape)?.f_mul_scalar(0.02)?;
            // Of those that cancel the matrices are small, so that their noise does not hide all else.
            let scale = match spec {
                _ if spec.path.contains(".phi_") => 0.05,
                _ if ends_block(spec) => 0.03,
                _ => 1.0,
            };
            let value = param.f_add(&noise)?.f_mul_scalar(scale)?;
            *param = value.f_to_kind(spec.precision.kind(Kind::BFloat16))?;
        }
        let states = stage.states().iter();
        let states = states.map(|s| Ok(Tensor::f_full(s.shape, s.start, on(Kind::Float))?));
        let carries = stage.carries().iter().map(|carry| {
            let shape: Vec<i64> =
                carry.shape.iter().map(|n| if *n < 0 { batch } else { *n }).collect();
            gpu.normal_bf16(&shape)
        });
        Ok(Data {
            params,
            states: states.collect::<Result<_>>()?,
            tables: tables(gpu, stage)?,
            carries: carries.collect::<Result<_>>()?,
            tokens: Tensor::f_randint(stage.vocab(), [batch, t + 2], on(Kind::Int64))?,
            continues: Tensor::f_ones([batch], on(Kind::BFloat16))?,
        })
    }

    /// The same numbers for a reference in f64.
    fn in_f64(&self) -> Result<Data> {
        let wide = |list: &[Tensor]| -> Result<Vec<Tensor>> {
            list.iter().map(|x| Ok(x.f_to_kind(Kind::Double)?)).collect()
        };
        Ok(Data {
            params: wide(&self.params)?,
            states: wide(&self.states)?,
            tables: self.tables.iter().map(Tensor::shallow_clone).collect(),
            carries: wide(&self.carries)?,
            tokens: self.tokens.shallow_clone(),
            continues: self.continues.f_to_kind(Kind::Double)?,
        })
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            params: &self.params,
            states: &self.states,
            tables: &self.tables,
            tokens: &self.tokens,
            continues: &self.continues,
            carries: &self.carries,
        }
    }

    pub(super) fn step(&self, stage: &dyn Stage) -> Result<Step> {
        let inputs = self.inputs();
        let outputs = stage.forward(&inputs)?;
        let loss = outputs.values.first().map_or(Ok(f64::NAN), |(_, x)| x.f_double_value(&[]))?;
        let gradients = stage.backward(&inputs, outputs.saved)?;
        Ok(Step { loss, gradients })
    }
}

pub(super) struct Step {
    loss: f64,
    gradients: Vec<Option<Tensor>>,
}

/// Made-up bytes of tokens: each token has one to eight, of random codes.
fn tables(gpu: &Gpu, stage: &dyn Stage) -> Result<Vec<Tensor>> {
    let on = (Kind::Int64, gpu.device());
    let counts = Tensor::f_randint_low(1, 9, [stage.vocab()], on)?;
    let table = |spec: &lightc_runtime::TableSpec| {
        let [_, positions] = *spec.shape else { return Ok(counts.shallow_clone()) };
        let at = Tensor::f_arange(positions, on)?;
        let bytes = Tensor::f_randint(256, spec.shape, on)?;
        let codes = bytes.f_mul_scalar(positions)?.f_add(&at)?;
        let used = at.f_unsqueeze(0)?.f_lt_tensor(&counts.f_unsqueeze(1)?)?;
        Ok(codes.f_where_self(&used, &codes.f_full_like(-1)?)?)
    };
    stage.tables().iter().map(table).collect()
}

/// Loss and gradients of the kernels in bf16 against the same stage on libtorch in f64, beside what libtorch in
/// bf16 is off by.
fn against_f64(stage: &dyn Stage, data: &Data, label: &str, t: i64) -> Result<Vec<Verdict>> {
    let exact = data.in_f64()?.step(stage)?;
    let fused = off(stage, &data.step(stage)?, &exact)?;
    cuda::set_mode(Mode::Reference(Names::All));
    let plain = data.step(stage);
    cuda::set_mode(Mode::Normal);
    let plain = off(stage, &plain?, &exact)?;
    let row = |what: &str, own: f64, plain: f64, least: f64| {
        let mut verdict = within(label, what, own, least.max(NOISE * plain));
        verdict.detail += &format!(", libtorch in bf16 by {plain:.1e}");
        verdict
    };
    let loss = row("loss off by", fused.loss, plain.loss, 5e-3);
    // Of one position all gradients share the roundings of one path: their noise is one draw, of kernels and of libtorch.
    if t == 1 {
        return Ok(vec![loss, row("gradients off by", fused.gradients, plain.gradients, 0.25)]);
    }
    let ratio = middle(&fused, &plain);
    Ok(vec![
        loss,
        row("gradients off by", fused.gradients, plain.gradients, 3e-2),
        within(label, "the middle of all, in what libtorch is off by,", ratio, NOISE),
    ])
}

/// A step on libtorch, which stands in for every kernel: that it has all gradients, and the loss of the kernels but for
/// roundings and what they change in selections.
pub(super) fn on_libtorch(stage: &dyn Stage, data: &Data, label: &str) -> Result<Vec<Verdict>> {
    let fused = data.step(stage)?;
    cuda::set_mode(Mode::Reference(Names::All));
    let plain = data.step(stage);
    cuda::set_mode(Mode::Normal);
    let plain = plain?;
    let n = |step: &Step| step.gradients.iter().flatten().count() as f64;
    Ok(vec![
        within(label, "loss off libtorch's by", (plain.loss / fused.loss - 1.0).abs(), 2e-2),
        within(label, "gradients more than libtorch's:", (n(&fused) - n(&plain)).abs(), 0.0),
    ])
}

/// How much more than libtorch in bf16 kernels in bf16 may be off by. Vectors of gradients were at 0.69 to 1.03 of libtorch's in
/// eleven draws of 190 and 63 positions, middle ratios at 0.81 to 1.0.
const NOISE: f64 = 1.6;

/// Whether the gradient of a parameter is what roundings leave of sums that cancel, of kernels and of libtorch alike.
/// The streams are copies of one at the start, so a mix that weighs them, or moves weight between them, changes nothing
/// but for what the layers before have added; and a norm follows, so nor does the size of all of them.
fn cancels(spec: &ParamSpec) -> bool {
    [".phi_", ".alpha_", ".bias_pre", ".bias_post", ".bias_residual"]
        .iter()
        .any(|part| spec.path.contains(part))
}

/// Whether a parameter is the last matrix of a layer's block. At full strength each of the random layers amplifies what
/// comes from the ones before, and what bf16 leaves of gradients after all of them is mostly noise. Where
/// each adds little to the streams, gradients are good to some percent.
fn ends_block(spec: &ParamSpec) -> bool {
    spec.path.ends_with(".body.out") || spec.path.ends_with(".body.down")
}

/// How far a step is from an exact one.
struct Off {
    loss: f64,
    /// Of all gradients as one vector, but for those that cancel.
    gradients: f64,
    /// Of each gradient; none where the exact one is nearly 0.
    each: Vec<Option<f64>>,
}

fn off(stage: &dyn Stage, step: &Step, exact: &Step) -> Result<Off> {
    let mut all = (0.0f64, 0.0f64);
    let mut each = Vec::new();
    for ((spec, x), y) in stage.params().iter().zip(&step.gradients).zip(&exact.gradients) {
        let (Some(x), Some(y)) = (x, y) else { continue };
        let off = x.f_to_kind(Kind::Double)?.f_sub(y)?.f_norm()?.f_double_value(&[])?;
        let size = y.f_norm()?.f_double_value(&[])?;
        if !cancels(spec) {
            all = (all.0 + off * off, all.1 + size * size);
        }
        each.push((size > 1e-12).then(|| off / size));
    }
    let loss = ((step.loss - exact.loss) / exact.loss).abs();
    Ok(Off { loss, gradients: (all.0 / all.1.max(1e-60)).sqrt(), each })
}

/// The middle of how much more each gradient of `own` is off than that of `plain`.
fn middle(own: &Off, plain: &Off) -> f64 {
    let pairs = own.each.iter().zip(&plain.each);
    let mut ratios: Vec<f64> =
        pairs.filter_map(|(own, plain)| Some((*own)? / (*plain)?.max(1e-9))).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Case for Dense {
    fn name(&self) -> &'static str {
        "stage"
    }

    fn stages(&self, small: bool) -> Vec<&'static dyn Stage> {
        of_size(small, &[&stages::narrow_2b::Narrow2b], &[&stages::lightning_2b::Lightning2b])
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let narrow: &dyn Stage = &stages::narrow_2b::Narrow2b;
        let mut verdicts = Vec::new();
        for size in chosen(gpu.small, &SIZES, |(_, t)| *t) {
            let (batch, t) = size;
            let data = Data::batch(gpu, narrow, size)?;
            let label = format!("{} B={batch} T={t}", narrow.name());
            if t > 1 {
                // With one position gradients of queries and keys are 0 but for roundings; with few, that of
                // the write strength nearly is, since a norm follows.
                let work = &mut || data.step(narrow).map(|_| ());
                verdicts.extend(compared(&label, 4.0, work)?);
            }
            verdicts.extend(against_f64(narrow, &data, &label, t)?);
            verdicts.push(same_bits(&label, narrow, &data.step(narrow)?, &data.step(narrow)?)?);
        }
        if gpu.small {
            return Ok(verdicts);
        }
        let full: &dyn Stage = &stages::lightning_2b::Lightning2b;
        let data = Data::new(gpu, full, FULL)?;
        let label = format!("{} T={FULL}", full.name());
        verdicts.extend(compared(&label, 1.0, &mut || data.step(full).map(|_| ()))?);
        let (first, again) = (data.step(full)?, data.step(full)?);
        verdicts.push(same_bits(&label, full, &first, &again)?);
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let full: &dyn Stage = &stages::lightning_2b::Lightning2b;
        let data = Data::new(gpu, full, FULL)?;
        let rows = kernel_rows(full, &data)?;
        let mut measured = vec![Measured {
            name: "forward and backward".to_owned(),
            shape: format!("{}, T={FULL}", full.name()),
            spread: time(gpu, 5, &mut || data.step(full).map(|_| ()))?,
            flops: 0.0,
            bytes: 0.0,
            peers: &[],
        }];
        measured.extend(rows);
        measured.extend(op_rows(full, &data)?);
        measured.extend(kernel_rows(full, &Data::new(gpu, full, LONG)?)?);
        Ok(measured)
    }
}

/// The kernels of a step, each timed at its first call with the same shapes.
pub(super) fn kernel_rows(stage: &dyn Stage, data: &Data) -> Result<Vec<Measured>> {
    cuda::set_mode(Mode::Time(Time::default()));
    let done = data.step(stage);
    let rows = cuda::timed();
    cuda::set_mode(Mode::Normal);
    let _ = done?;
    Ok(rows.iter().map(timed_row).collect())
}

/// So many ops of a step are listed.
const LONGEST: usize = 40;

/// The ops of a step that take longest, all calls of each with the same shapes together.
pub(super) fn op_rows(stage: &dyn Stage, data: &Data) -> Result<Vec<Measured>> {
    let (done, times) = op_times(|| data.step(stage));
    let _ = done?;
    Ok(times.iter().take(LONGEST).map(op_row).collect())
}

/// The median call of one kernel.
fn timed_row(row: &cuda::Timed) -> Measured {
    Measured {
        name: row.entry.to_owned(),
        shape: format!("{} calls, {}", row.calls, row.origin),
        spread: row.spread,
        flops: 0.0,
        bytes: row.bytes as f64,
        peers: &[],
    }
}

/// What the calls of one op took together; the host's part is in it.
fn op_row(time: &OpTime) -> Measured {
    Measured {
        name: format!("all calls of {}", time.op),
        shape: format!("{}x {}", time.calls, time.inputs),
        spread: cuda::Spread { median_ms: time.ms, min_ms: time.ms, max_ms: time.ms },
        flops: 0.0,
        bytes: 0.0,
        peers: &[],
    }
}

/// Whether two steps have the same loss and gradients to the bit.
pub(super) fn same_bits(label: &str, stage: &dyn Stage, x: &Step, y: &Step) -> Result<Verdict> {
    let mut fault = None;
    if x.loss.to_bits() != y.loss.to_bits() {
        fault = Some(format!("losses {} and {}", x.loss, y.loss));
    }
    let mut n = 0;
    for ((spec, x), y) in stage.params().iter().zip(&x.gradients).zip(&y.gradients) {
        let (Some(x), Some(y)) = (x, y) else { continue };
        n += 1;
        if !x.f_equal(y)? && fault.is_none() {
            fault = Some(format!("the gradient of {} differs", spec.path));
        }
    }
    let detail = format!("loss {} and {n} gradients have the same bits twice", x.loss);
    Ok(Verdict { label: label.to_owned(), detail, fault })
}

impl Case for Reversible {
    fn name(&self) -> &'static str {
        "reversible"
    }

    fn stages(&self, small: bool) -> Vec<&'static dyn Stage> {
        of_size(small, &[&stages::narrow_deep::NarrowDeep], &[&stages::deep_2b::Deep2b])
    }

    /// Every state that the backward pass solves for, the loss and every gradient, against a run that
    /// stores everything.
    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let (stage, t): (&dyn Stage, i64) = if gpu.small {
            (&stages::narrow_deep::NarrowDeep, 63)
        } else {
            (&stages::deep_2b::Deep2b, FULL)
        };
        let data = Data::new(gpu, stage, t)?;
        let label = format!("{} T={t}", stage.name());
        let mut verdicts = vec![had_back(stage, &data, &label)?, flipped(gpu)?];
        if gpu.small {
            // Kernels that make the step at the end of a layer, beside libtorch in f64: the value of a state
            // that they give is within what bf16 leaves. What bits it has, the runs above say.
            verdicts.extend(compared(&label, 4.0, &mut || data.step(stage).map(|_| ()))?);
            let _ = take_report()?;
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let stage: &dyn Stage = &stages::deep_2b::Deep2b;
        let data = Data::new(gpu, stage, FULL)?;
        let mut rows = both_ways(gpu, stage, &data, &format!("T={FULL}, d=4096"))?;
        drop(data);
        rows.extend(kernels_of_states(gpu, stage)?);
        Ok(rows)
    }
}

/// Every state that the backward pass solves for, the loss and every gradient, against a run that stores
/// everything.
pub(super) fn had_back(stage: &dyn Stage, data: &Data, label: &str) -> Result<Verdict> {
    let run = |store_everything| -> Result<(Step, Vec<Tensor>)> {
        let options = Options { store_everything, record_states: true };
        let step = with_options(options, || data.step(stage))?;
        let report = take_report()?;
        if report.beyond > 0 {
            let detail = format!("{} elements of states left the range", report.beyond);
            return Err(lightc_runtime::Error::Op { op: "reversible", detail });
        }
        Ok((step, take_states()))
    };
    let (solved, solved_states) = run(false)?;
    let (stored, stored_states) = run(true)?;
    let mut verdict = same_bits(label, stage, &solved, &stored)?;
    let mut equal = 0;
    for (x, y) in solved_states.iter().zip(&stored_states) {
        equal += usize::from(x.f_equal(y)?);
    }
    if equal != solved_states.len() || solved_states.len() != stored_states.len() {
        let n = solved_states.len();
        verdict.fault.get_or_insert(format!("{equal} of {n} states are equal"));
    }
    verdict.detail += &format!("; {equal} states had back, bit-equal to the stored ones");
    Ok(verdict)
}

/// The time of forward and backward of a reversible stage with states had back, and with states stored.
pub(super) fn both_ways(
    gpu: &Gpu,
    stage: &dyn Stage,
    data: &Data,
    shape: &str,
) -> Result<Vec<Measured>> {
    let mut rows = Vec::new();
    for (name, store_everything) in [("states had back", false), ("states stored", true)] {
        let options = Options { store_everything, record_states: false };
        let step = &mut || {
            let step = with_options(options, || data.step(stage));
            let _ = take_report();
            step.map(|_| ())
        };
        rows.push(Measured {
            name: format!("forward and backward of {}, {name}", stage.name()),
            shape: shape.to_owned(),
            spread: time(gpu, 5, step)?,
            flops: 0.0,
            bytes: 0.0,
            peers: &[],
        });
    }
    Ok(rows)
}

/// The kernels of a stage that make states, at 8192 positions.
fn kernels_of_states(gpu: &Gpu, stage: &dyn Stage) -> Result<Vec<Measured>> {
    let data = Data::new(gpu, stage, 8192)?;
    cuda::set_mode(Mode::Time(Time::default()));
    let done = data.step(stage);
    let timed = cuda::timed();
    cuda::set_mode(Mode::Normal);
    let _ = (done?, take_report()?);
    let of_states = |row: &&cuda::Timed| {
        let ends = ["_step", "_inverse"].iter().any(|end| row.entry.ends_with(end));
        ends || row.entry.starts_with("fixed_") || row.entry.ends_with("pack_bits")
    };
    let measured = |row: &cuda::Timed| {
        let shape = format!("{} calls, T=8192, {}", row.calls, row.origin);
        Measured { shape, ..timed_row(row) }
    };
    Ok(timed.iter().filter(of_states).map(measured).collect())
}

/// One kept bit that changes between the passes is found (E1121).
fn flipped(gpu: &Gpu) -> Result<Verdict> {
    let stage: &dyn Stage = &stages::narrow_deep::NarrowDeep;
    let data = Data::new(gpu, stage, 63)?;
    let inputs = data.inputs();
    let mut outputs = stage.forward(&inputs)?;
    let _ = take_report()?;
    let saved = outputs.saved.downcast_mut::<stages::narrow_deep::language_model::Saved>();
    let fault = match saved {
        None => Some("the stage keeps something else".to_owned()),
        Some(saved) => {
            saved.layers_call.flip_kept_bit(4, 1001)?;
            match stage.backward(&inputs, outputs.saved) {
                Err(error) if error.code() == "E1121" => None,
                Err(error) => Some(format!("another error: {error}")),
                Ok(_) => Some("a flipped bit is not found".to_owned()),
            }
        }
    };
    let (label, detail) = (format!("{} T=63", stage.name()), "a flipped bit is E1121".to_owned());
    Ok(Verdict { label, detail, fault })
}
