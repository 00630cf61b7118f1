//! How [`super::either`] runs: kernel, reference, both compared, or the kernel timed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::error::DeviceError;
use super::{Kernel, Place, Way, driver, poison};
use crate::error::Result;
use crate::{Device, Kind, Tensor};

/// Which kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Every one.
    All,
    /// Those of these entry names.
    Some(BTreeSet<String>),
}

impl Names {
    /// `all`, or names joined by commas.
    pub fn parse(text: &str) -> Names {
        if text.trim() == "all" {
            return Names::All;
        }
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        Names::Some(names.map(str::to_owned).collect())
    }

    fn has(&self, entry: &str) -> bool {
        match self {
            Names::All => true,
            Names::Some(names) => names.contains(entry),
        }
    }
}

/// How kernels run in this process.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    /// The kernel.
    Normal,
    /// The reference in place of some kernels, to find the one at fault. Users ask for it by
    /// `LIGHTC_REFERENCE=all` or `LIGHTC_REFERENCE=NAME,NAME`.
    Reference(Names),
    /// Kernel and reference, compared; [`checked`] has the results.
    Check(Check),
    /// The kernel several times, timed; [`timed`] has the results.
    Time(Time),
}

/// How kernels are compared with their references.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Limits of single kernels, by entry name, in place of those of their results' kinds: 1e-2 for
    /// bf16 and for f32 made of bf16, 1e-4 for other f32, and equality for integers and truth values. By default those of the tile kernels.
    /// A limit rises to four times what libtorch's own calls in the kinds of the run are off by, and to four times what the
    /// reference moves by where its inputs move by half a unit of their last place.
    pub limits: BTreeMap<String, f64>,
}

impl Default for Check {
    fn default() -> Self {
        let limits = crate::ops::TILE_LIMITS.iter();
        Check { limits: limits.map(|(entry, limit)| ((*entry).to_owned(), *limit)).collect() }
    }
}

/// How kernels are timed.
#[derive(Debug, Clone, PartialEq)]
pub struct Time {
    /// Runs of each call, of which the first is thrown away.
    pub repeats: u32,
    /// Whether the second-level cache is emptied before each run.
    pub cold: bool,
}

impl Default for Time {
    fn default() -> Self {
        Time { repeats: 11, cold: true }
    }
}

/// What the comparison of a kernel with its reference gave, over all calls with one set of shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The kernel's entry name.
    pub entry: &'static str,
    /// What it computes and where that is written.
    pub origin: &'static str,
    /// Kinds and shapes of inputs and outputs.
    pub shapes: String,
    /// How many calls were compared.
    pub calls: u64,
    /// Per output the largest `|out - reference| / |reference|` (Euclidean), and its limit.
    pub errors: Vec<(f64, f64)>,
    /// Whether two runs always gave the same bits.
    pub repeats: bool,
    /// Elements that the kernel left as they were, over all calls.
    pub unwritten: u64,
    /// The kind in which the reference was computed.
    pub reference: Kind,
    /// What did not even allow a comparison: another number of outputs, another shape or kind.
    pub mismatch: Option<String>,
}

impl Checked {
    /// What is wrong, in words; nothing for a kernel that passes.
    pub fn fault(&self) -> Option<String> {
        if let Some(mismatch) = &self.mismatch {
            return Some(mismatch.clone());
        }
        if self.unwritten > 0 {
            return Some(format!("{} elements are not written", self.unwritten));
        }
        if !self.repeats {
            return Some("two runs give different bits".to_owned());
        }
        let beyond = self.errors.iter().enumerate().find(|(_, pair)| is_beyond(**pair));
        beyond.map(|(at, (error, limit))| {
            format!("output {at} is off by {error:.1e}, limit {limit:.1e}")
        })
    }
}

/// Whether an error is above its limit; one that is not a number is.
fn is_beyond((error, limit): (f64, f64)) -> bool {
    error.is_nan() || error > limit
}

/// Milliseconds of several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median_ms: f64,
    /// The shortest.
    pub min_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Spread {
    fn of(mut times: Vec<f64>) -> Spread {
        times.sort_by(f64::total_cmp);
        let at = |index: usize| times.get(index).copied().unwrap_or(f64::NAN);
        let last = times.len().saturating_sub(1);
        Spread { median_ms: at(times.len() / 2), min_ms: at(0), max_ms: at(last) }
    }
}

/// What a kernel took, over the calls with one set of shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// The kernel's entry name.
    pub entry: &'static str,
    /// What it computes and where that is written.
    pub origin: &'static str,
    /// Kinds and shapes of inputs and outputs.
    pub shapes: String,
    /// How many calls there were.
    pub calls: u64,
    /// The times of the first call.
    pub spread: Spread,
    /// Bytes of all inputs and outputs of one call.
    pub bytes: u64,
}

type Key = (&'static str, String);

struct State {
    mode: Mode,
    matched: BTreeSet<String>,
    checked: BTreeMap<Key, Checked>,
    timed: BTreeMap<Key, Timed>,
    flush: Option<Tensor>,
}

/// 0 before the environment was read, 1 in [`Mode::Normal`], 2 and 3 in a mode that looks at each call,
/// 3 where outputs are poisoned.
static KIND: AtomicU8 = AtomicU8::new(0);
static STATE: Mutex<State> = Mutex::new(State {
    mode: Mode::Normal,
    matched: BTreeSet::new(),
    checked: BTreeMap::new(),
    timed: BTreeMap::new(),
    flush: None,
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets how kernels run from now on, and forgets what was recorded.
pub fn set_mode(mode: Mode) {
    let kind = match mode {
        Mode::Normal => 1,
        Mode::Reference(_) | Mode::Time(_) => 2,
        Mode::Check(_) => 3,
    };
    let mut state = state();
    state.mode = mode;
    state.matched.clear();
    state.checked.clear();
    state.timed.clear();
    state.flush = None;
    KIND.store(kind, Ordering::SeqCst);
}

/// Takes what the environment asks for, the first time. That kernels are left out is said on stderr.
fn kind() -> u8 {
    static READ: OnceLock<()> = OnceLock::new();
    let kind = KIND.load(Ordering::SeqCst);
    if kind != 0 {
        return kind;
    }
    READ.get_or_init(|| {
        let asked = std::env::var("LIGHTC_REFERENCE").unwrap_or_default();
        if asked.trim().is_empty() {
            set_mode(Mode::Normal);
        } else {
            eprintln!("note: LIGHTC_REFERENCE={asked}: libtorch computes what these kernels would");
            set_mode(Mode::Reference(Names::parse(&asked)));
        }
    });
    KIND.load(Ordering::SeqCst)
}

/// Names given to [`Mode::Reference`] that no kernel has had so far.
pub fn unmatched_references() -> Vec<String> {
    let state = state();
    match &state.mode {
        Mode::Reference(Names::Some(names)) => names.difference(&state.matched).cloned().collect(),
        _ => Vec::new(),
    }
}

/// What was compared since the mode was set, by entry name and shapes.
pub fn checked() -> Vec<Checked> {
    state().checked.values().cloned().collect()
}

/// What was timed since the mode was set, by entry name and shapes.
pub fn timed() -> Vec<Timed> {
    state().timed.values().cloned().collect()
}

/// Ends a check: red kernels are an error.
///
/// # Errors
/// [`DeviceError::Red`].
pub fn finish_check() -> Result<Vec<Checked>> {
    let all = checked();
    let red: Vec<String> = all
        .iter()
        .filter_map(|row| Some(format!("`{}` ({}): {}", row.entry, row.origin, row.fault()?)))
        .collect();
    match red.first() {
        None => Ok(all),
        Some(first) => {
            let (n_red, n_checked, first) = (red.len(), all.len(), first.clone());
            Err(DeviceError::Red { n_red, n_checked, first }.into())
        }
    }
}

pub(super) fn poisons() -> bool {
    kind() == 3
}

/// In floats this is a NaN that arithmetic does not make, also in scratch that holds floats as bytes; in
/// codes of 8 bits it is the one that no weight is given; in integers it is no index and not -1.
pub(super) fn poison_byte(kind: Kind) -> u8 {
    match kind {
        Kind::Int8 => 0x80,
        _ if is_float(kind) || kind == Kind::Uint8 => 0xff,
        _ => 0x7f,
    }
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half)
}

/// [`super::either`] on a GPU with bf16 activations.
pub(super) fn run(
    place: Place,
    kernel: &'static Kernel,
    inputs: &[&Tensor],
    like: &Tensor,
    fused: Way<'_>,
    reference: Way<'_>,
) -> Result<Vec<Tensor>> {
    if kind() == 1 {
        return fused(inputs, like);
    }
    // The guard must not live while a way runs: it allocates tensors, which asks for the mode.
    let mode = state().mode.clone();
    match mode {
        Mode::Normal => fused(inputs, like),
        Mode::Reference(names) if names.has(kernel.entry) => {
            let _ = state().matched.insert(kernel.entry.to_owned());
            reference(inputs, like)
        }
        Mode::Reference(_) => fused(inputs, like),
        Mode::Check(check) => compare(place, &check, kernel, inputs, like, fused, reference),
        Mode::Time(time) => measure(place, &time, kernel, inputs, like, fused),
    }
}

fn shapes(inputs: &[&Tensor], outputs: &[Tensor]) -> String {
    let text = |x: &Tensor| {
        let size: Vec<String> = x.size().iter().map(i64::to_string).collect();
        format!("{}[{}]", short(x.kind()), size.join(","))
    };
    let list = |all: Vec<String>| all.join(" ");
    format!(
        "{} -> {}",
        list(inputs.iter().map(|x| text(x)).collect()),
        list(outputs.iter().map(text).collect())
    )
}

fn short(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Float => "f32",
        Kind::Double => "f64",
        Kind::Half => "f16",
        Kind::Int64 => "i64",
        Kind::Int => "i32",
        Kind::Bool => "bool",
        Kind::Int8 => "i8",
        Kind::Uint8 => "u8",
        _ => "other",
    }
}

fn bytes_of(x: &Tensor) -> u64 {
    (x.numel() * x.kind().elt_size_in_bytes()) as u64
}

// ------------------------------------------------------------------------------------------------
// Check
// ------------------------------------------------------------------------------------------------

fn compare(
    place: Place,
    check: &Check,
    kernel: &'static Kernel,
    inputs: &[&Tensor],
    like: &Tensor,
    fused: Way<'_>,
    reference: Way<'_>,
) -> Result<Vec<Tensor>> {
    let first = fused(inputs, like)?;
    let second = fused(inputs, like)?;
    let mut unwritten = 0;
    let mut repeats = first.len() == second.len();
    for (x, y) in first.iter().zip(&second) {
        unwritten += n_poisoned(x)?;
        repeats &= same_bits(x, y)?;
    }
    drop(second);
    let wide = reference_kind(place, inputs, &first)?;
    let wanted = of_kind(inputs, like, wide, widen, reference)?;
    // What the same calls are off by in the kinds of the run.
    let plain = reference(inputs, like)?;
    let mut errors = Vec::new();
    let mut mismatch = (wanted.len() != first.len())
        .then(|| format!("{} outputs, its reference has {}", first.len(), wanted.len()));
    // A kernel that reads or writes bf16 rounds to it on the way, also to a wide result.
    let half = inputs.iter().copied().chain(&first).any(|x| x.kind() == Kind::BFloat16);
    for (at, (x, want)) in first.iter().zip(&wanted).enumerate() {
        let precision = if half && is_float(x.kind()) { Kind::BFloat16 } else { x.kind() };
        let kinds_agree = is_float(x.kind()) == is_float(want.kind());
        if x.size() != want.size() || !kinds_agree {
            let _ = mismatch.get_or_insert_with(|| {
                format!(
                    "output {at} is {:?} {:?}, its reference's is {:?} {:?}",
                    x.kind(),
                    x.size(),
                    want.kind(),
                    want.size()
                )
            });
            continue;
        }
        // What stands in for a kernel gives what it gives.
        if let Some(plain) = plain.get(at).filter(|plain| plain.kind() != x.kind()) {
            let _ = mismatch.get_or_insert_with(|| {
                let (own, other) = (x.kind(), plain.kind());
                format!("output {at} is {own:?}, where libtorch stands in for it {other:?}")
            });
        }
        let noise = plain.get(at).map_or(Ok(0.0), |plain| difference(plain, want))?;
        let limit = limit(check, kernel.entry, precision).max(noise * noise_factor(want));
        errors.push((difference(x, want)?, limit));
    }
    if mismatch.is_none() && errors.iter().any(|pair| is_beyond(*pair)) {
        let moved = of_kind(inputs, like, wide, moved, reference)?;
        for ((pair, moved), want) in errors.iter_mut().zip(&moved).zip(&wanted) {
            pair.1 = pair.1.max(difference(moved, want)? * noise_factor(want));
        }
    }
    let row = Checked {
        entry: kernel.entry,
        origin: kernel.origin,
        shapes: shapes(inputs, &first),
        calls: 1,
        errors,
        repeats,
        unwritten,
        reference: wide,
        mismatch,
    };
    let mut state = state();
    match state.checked.get_mut(&(kernel.entry, row.shapes.clone())) {
        Some(known) => known.join(row),
        None => {
            let _ = state.checked.insert((kernel.entry, row.shapes.clone()), row);
        }
    }
    Ok(first)
}

/// The reference in a wide kind, of inputs as `prepare` gives them in it.
fn of_kind(
    inputs: &[&Tensor],
    like: &Tensor,
    kind: Kind,
    prepare: fn(&Tensor, Kind) -> Result<Tensor>,
    reference: Way<'_>,
) -> Result<Vec<Tensor>> {
    let prepared: Vec<Tensor> = inputs.iter().map(|x| prepare(x, kind)).collect::<Result<_>>()?;
    let prepared: Vec<&Tensor> = prepared.iter().collect();
    reference(&prepared, &Tensor::f_empty([0i64], (kind, like.device()))?)
}

impl Checked {
    fn join(&mut self, other: Checked) {
        self.calls += other.calls;
        for (worst, next) in self.errors.iter_mut().zip(other.errors) {
            // The call that is nearest to its limit, or furthest beyond.
            if is_beyond((next.0 * worst.1, worst.0 * next.1)) {
                *worst = next;
            }
        }
        self.repeats &= other.repeats;
        self.unwritten += other.unwritten;
        self.mismatch = self.mismatch.take().or(other.mismatch);
    }
}

/// How often the error of libtorch's own calls in the kinds of the run, or the movement by roundings of inputs, a kernel
/// may have: where a result is what roundings leave of sums that cancel, no limit by kind holds. Of few elements an error
/// is one draw, not a mean.
fn noise_factor(result: &Tensor) -> f64 {
    if result.numel() < 1024 { 8.0 } else { 4.0 }
}

fn limit(check: &Check, entry: &str, kind: Kind) -> f64 {
    let by_kind = match kind {
        Kind::BFloat16 | Kind::Half => 1e-2,
        _ if is_float(kind) => 1e-4,
        _ => 0.0,
    };
    check.limits.get(entry).copied().unwrap_or(by_kind)
}

/// f64 where all inputs and outputs fit in it eight times over, else f32.
fn reference_kind(place: Place, inputs: &[&Tensor], outputs: &[Tensor]) -> Result<Kind> {
    let elements: usize = inputs.iter().map(|x| x.numel()).sum::<usize>()
        + outputs.iter().map(Tensor::numel).sum::<usize>();
    let free = match place {
        Place::Gpu(ordinal) => driver::memory(ordinal)?.0,
        Place::Processor => u64::MAX,
    };
    Ok(if (elements as u64) * 8 * 8 <= free { Kind::Double } else { Kind::Float })
}

fn widen(x: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(if is_float(x.kind()) { x.f_to_kind(kind)? } else { x.shallow_clone() })
}

/// The elements, of a float up or down by half a unit of their last place, by a pattern of signs that has no period. What a
/// result moves by then is what its inputs do not say of it.
fn moved(x: &Tensor, kind: Kind) -> Result<Tensor> {
    let unit: f64 = match x.kind() {
        Kind::BFloat16 => 2f64.powi(-9),
        Kind::Half => 2f64.powi(-12),
        Kind::Float => 2f64.powi(-25),
        _ => return widen(x, kind),
    };
    // Bit 31 of multiples of the golden ratio times 2^32, which wrap.
    const GOLDEN: i64 = 0x9e37_79b1;
    let index = Tensor::f_arange(x.numel() as i64, (Kind::Int64, x.device()))?;
    let odd = index.f_mul_scalar(GOLDEN)?.f_bitwise_right_shift_tensor_scalar(31)?.f_fmod(2)?;
    let by = odd.f_to_kind(kind)?.f_mul_scalar(2.0 * unit)?.f_add_scalar(1.0 - unit)?;
    Ok(widen(x, kind)?.f_mul(&by.f_reshape(x.size())?)?)
}

/// The elements as integers of their width, so that NaNs compare by their bits.
fn bits(x: &Tensor) -> Result<Tensor> {
    let flat = x.f_contiguous()?.f_reshape([-1i64])?;
    Ok(match x.kind() {
        Kind::BFloat16 | Kind::Half => flat.f_view_dtype(Kind::Int16)?,
        Kind::Float => flat.f_view_dtype(Kind::Int)?,
        Kind::Double => flat.f_view_dtype(Kind::Int64)?,
        Kind::Bool => flat.f_view_dtype(Kind::Uint8)?,
        _ => flat,
    })
}

/// Whether two tensors hold the same bits.
pub(super) fn same_bits(x: &Tensor, y: &Tensor) -> Result<bool> {
    Ok(x.size() == y.size() && x.kind() == y.kind() && bits(x)?.f_equal(&bits(y)?)?)
}

/// Elements that still hold what [`poison`] set. Bytes of bits can hold anything: what of them is not written
/// is not what the reference gives.
pub(super) fn n_poisoned(x: &Tensor) -> Result<u64> {
    if x.numel() == 0 || x.kind() == Kind::Uint8 {
        return Ok(0);
    }
    let bits = bits(x)?;
    let pattern = if is_float(x.kind()) {
        -1
    } else if x.kind() == Kind::Uint8 {
        0xff
    } else if x.kind() == Kind::Int8 {
        -128
    } else {
        let n_bytes = bits.kind().elt_size_in_bytes() as u32;
        (0..n_bytes).fold(0i64, |value, _| value << 8 | 0x7f)
    };
    let count = bits.f_eq(pattern)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    Ok(count.cast_unsigned())
}

/// `|x - y| / |y|` in the Euclidean norm, in f64. Equal infinities differ by nothing; a NaN makes the
/// result infinite. Of integers and truth values it is the share of elements that are not equal.
pub(super) fn difference(x: &Tensor, y: &Tensor) -> Result<f64> {
    if x.numel() == 0 {
        return Ok(0.0);
    }
    if !is_float(y.kind()) {
        let y = y.f_to_kind(x.kind())?;
        return Ok(x.f_ne_tensor(&y)?.f_mean(Kind::Double)?.f_double_value(&[])?);
    }
    let (x, y) = (x.f_to_kind(Kind::Double)?, y.f_to_kind(Kind::Double)?);
    let gap = x.f_sub(&y)?;
    let gap = gap.f_where_self(&x.f_ne_tensor(&y)?, &gap.f_zeros_like()?)?;
    let norm = |x: &Tensor| -> Result<f64> {
        Ok(x.f_square()?.f_sum(Kind::Double)?.f_sqrt()?.f_double_value(&[])?)
    };
    let (gap, size) = (norm(&gap)?, norm(&y)?);
    let error = if gap == 0.0 { 0.0 } else { gap / size.max(1e-30) };
    Ok(if error.is_nan() { f64::INFINITY } else { error })
}

// ------------------------------------------------------------------------------------------------
// Time
// ------------------------------------------------------------------------------------------------

fn measure(
    place: Place,
    time: &Time,
    kernel: &'static Kernel,
    inputs: &[&Tensor],
    like: &Tensor,
    fused: Way<'_>,
) -> Result<Vec<Tensor>> {
    let mut outputs = fused(inputs, like)?;
    let Place::Gpu(ordinal) = place else {
        let detail = "the emulator has no times; a GPU is needed".to_owned();
        return Err(crate::Error::Op { op: kernel.entry, detail });
    };
    let key = (kernel.entry, shapes(inputs, &outputs));
    if let Some(known) = state().timed.get_mut(&key) {
        known.calls += 1;
        return Ok(outputs);
    }
    let spread = spread(ordinal, time, &mut || {
        outputs = fused(inputs, like)?;
        Ok(())
    })?;
    let bytes = inputs.iter().map(|x| bytes_of(x)).chain(outputs.iter().map(bytes_of)).sum();
    let (entry, shapes) = key.clone();
    let row = Timed { entry, origin: kernel.origin, shapes, calls: 1, spread, bytes };
    let _ = state().timed.insert(key, row);
    Ok(outputs)
}

/// Bytes that are written to empty the second-level cache: over twice the 50 or 60 MB of a Hopper GPU.
const FLUSH_BYTES: i64 = 128 << 20;
/// How often they are written before each run, some 30 us each: meanwhile the host allocates what the work gives and launches it. A
/// GPU that waited for a host that sets up twelve results would show 0.08 ms for a kernel of 0.01.
const FLUSHES: usize = 8;

/// Times work on a GPU's default stream.
///
/// # Errors
/// Those of the work, or the driver's.
pub fn spread(ordinal: usize, time: &Time, work: &mut dyn FnMut() -> Result<()>) -> Result<Spread> {
    let taken = state().flush.take();
    let flush = match taken {
        Some(flush) if flush.device() == Device::Cuda(ordinal) => flush,
        _ => Tensor::f_empty([FLUSH_BYTES], (Kind::Uint8, Device::Cuda(ordinal)))?,
    };
    let mut times = Vec::new();
    for round in 0..time.repeats.max(2) {
        let (start, end) = (driver::Event::new(ordinal)?, driver::Event::new(ordinal)?);
        for _ in 0..if time.cold { FLUSHES } else { 0 } {
            poison(&flush)?;
        }
        start.record()?;
        work()?;
        end.record()?;
        let elapsed = end.since(&start)?;
        if round > 0 {
            times.push(elapsed);
        }
    }
    state().flush = Some(flush);
    Ok(Spread::of(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    #[test]
    fn names_are_all_or_a_list() {
        assert_eq!(Names::parse(" all "), Names::All);
        assert!(Names::parse("a, b").has("b"));
        assert!(!Names::parse("a, b").has("all"));
    }

    #[test]
    fn differences_are_relative_and_see_nan_infinity_and_integers() {
        let d = |x: &Tensor, y: &Tensor| difference(x, y).expect("compares");
        let base = float(&[3.0, 4.0]);
        assert_eq!(d(&base, &base), 0.0);
        assert!((d(&float(&[3.0, 4.05]), &base) - 0.01).abs() < 1e-6);
        assert_eq!(d(&float(&[f32::NAN, 4.0]), &base), f64::INFINITY);
        let infinite = float(&[f32::INFINITY, 4.0]);
        assert_eq!(d(&infinite, &infinite), 0.0);
        assert_eq!(d(&base, &infinite), f64::INFINITY);
        assert!(d(&float(&[1e-3, 0.0]), &float(&[0.0, 0.0])) > 1.0);
        let (x, y) = (Tensor::from_slice(&[1i64, 2, 3]), Tensor::from_slice(&[1i64, 0, 0]));
        assert!((d(&x, &y) - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn poison_is_found_where_it_is_and_nowhere_else() {
        for kind in [
            Kind::BFloat16,
            Kind::Float,
            Kind::Double,
            Kind::Int64,
            Kind::Int,
            Kind::Int8,
            Kind::Bool,
        ] {
            let x = Tensor::f_zeros([6], (kind, Device::Cpu)).expect("zeros");
            assert_eq!(n_poisoned(&x).expect("counts"), 0);
            let bytes = 2 * kind.elt_size_in_bytes() as i64;
            let mut view =
                x.f_view_dtype(Kind::Uint8).and_then(|v| v.f_narrow(0, 0, bytes)).expect("bytes");
            let _ = view.f_fill_(i64::from(poison_byte(kind))).expect("fills");
            assert_eq!(n_poisoned(&x).expect("counts"), 2, "{kind:?}");
            let nan = Tensor::f_full([2], f64::NAN, (Kind::BFloat16, Device::Cpu)).expect("NaN");
            assert_eq!(n_poisoned(&nan).expect("counts"), 0, "a NaN of arithmetic is a result");
        }
    }

    #[test]
    fn bits_tell_zeros_of_two_signs_apart() {
        let same = |x: &[f32], y: &[f32]| same_bits(&float(x), &float(y)).expect("compares");
        assert!(same(&[0.0, f32::NAN], &[0.0, f32::NAN]));
        assert!(!same(&[0.0], &[-0.0]));
        assert!(!same(&[0.0], &[0.0, 0.0]));
    }

    #[test]
    fn inputs_move_by_half_a_unit_up_and_down_and_integers_stay() {
        let ones = Tensor::f_ones([1000], (Kind::BFloat16, Device::Cpu)).expect("ones");
        let moved_ones = moved(&ones, Kind::Double).expect("moves");
        let gap = Vec::<f64>::try_from((moved_ones - 1.0) * 512.0).expect("values");
        assert!(gap.iter().all(|x| x.abs() == 1.0));
        let sum: f64 = gap.iter().sum();
        assert!(sum.abs() <= 10.0, "as many up as down: {sum}");
        let same = moved(&Tensor::from_slice(&[1i64, 2]), Kind::Double).expect("moves");
        assert_eq!(same, Tensor::from_slice(&[1i64, 2]));
    }

    fn row() -> Checked {
        Checked {
            entry: "norm",
            origin: "RmsNorm.y",
            shapes: String::new(),
            calls: 1,
            errors: vec![(1e-3, 1e-2)],
            repeats: true,
            unwritten: 0,
            reference: Kind::Double,
            mismatch: None,
        }
    }

    #[test]
    fn what_is_red_says_why() {
        assert_eq!(row().fault(), None);
        let text = |change: &dyn Fn(&mut Checked)| {
            let mut row = row();
            change(&mut row);
            row.fault().unwrap_or_default()
        };
        assert_eq!(text(&|row| row.errors[0].0 = f64::NAN), "output 0 is off by NaN, limit 1.0e-2");
        assert_eq!(text(&|row| row.errors[0].0 = 0.5), "output 0 is off by 5.0e-1, limit 1.0e-2");
        assert_eq!(text(&|row| row.repeats = false), "two runs give different bits");
        assert_eq!(text(&|row| row.unwritten = 3), "3 elements are not written");
    }

    #[test]
    fn rows_of_one_kernel_keep_the_worst() {
        let mut known = row();
        known.join(Checked { errors: vec![(0.5, 1e-2)], repeats: false, unwritten: 2, ..row() });
        known.join(row());
        assert_eq!((known.calls, known.errors[0].0), (3, 0.5));
        assert_eq!((known.repeats, known.unwritten), (false, 2));
    }

    #[test]
    fn the_median_is_the_middle_run() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(spread, Spread { median_ms: 2.0, min_ms: 1.0, max_ms: 3.0 });
    }
}
