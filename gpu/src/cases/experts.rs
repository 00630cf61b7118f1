//! Products of routed rows: wide and narrow, forward, and both gradients.

use lightc_runtime::ops::{self, Routing, Term};
use lightc_runtime::{Format, Kind, Result, Tensor};

use super::routing::{SPREADS, spread_ids};
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

/// Wide products of routed rows, and their gradients.
pub(super) struct Experts;

/// Sizes of a mixture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) rows: i64,
    pub(super) top: i64,
    pub(super) experts: i64,
    pub(super) d: i64,
    pub(super) f: i64,
}

const fn size(rows: i64, top: i64, experts: i64, d: i64, f: i64) -> Size {
    Size { rows, top, experts, d, f }
}

/// One place; an odd number; so many places of an expert that its turned codes are made bf16 first; both widths of a half tile;
/// more experts than a warp has lanes.
const SMALL: [Size; 5] = [
    size(1, 1, 1, 64, 64),
    size(21, 3, 20, 128, 64),
    size(1030, 3, 3, 192, 128),
    size(63, 1, 5, 192, 320),
    size(200, 2, 70, 64, 128),
];
/// The experts of one rank at their real widths, with fewer rows; and all rows of the smaller mixture.
const LARGE: [Size; 2] = [size(1000, 12, 58, 4096, 1024), size(8190, 2, 20, 4096, 1024)];
/// One micro-batch of one rank: 98,304 places.
pub(super) const REAL: Size = size(8192, 12, 58, 4096, 1024);

/// A weight as bf16, and as codes with scales.
pub(super) struct Weight {
    pub(super) half: Tensor,
    pub(super) codes: Tensor,
    pub(super) scale: Tensor,
}

impl Weight {
    fn draw(gpu: &Gpu, shape: &[i64]) -> Result<Weight> {
        let wide = gpu.normal(shape)?.f_mul_scalar(0.02)?;
        let (mut codes, scale) = ops::quantize(&wide, Format::Int8)?;
        // The quantizer gives no -128; a kernel that meets one must read it as what it is.
        let mut first = codes.f_narrow(2, 0, 1)?;
        let _ = first.f_fill_(-128)?;
        codes = codes.f_contiguous()?;
        Ok(Weight { half: wide.f_to_kind(Kind::BFloat16)?, codes, scale })
    }

    pub(super) fn term<'a>(&'a self, x: &'a Tensor, int8: bool) -> Term<'a> {
        if int8 {
            Term::plain(x, &self.codes).scaled(&self.scale)
        } else {
            Term::plain(x, &self.half)
        }
    }

    pub(super) fn turned<'a>(&'a self, x: &'a Tensor, int8: bool) -> Term<'a> {
        Term { turned: true, ..self.term(x, int8) }
    }
}

/// An adapter of 16 columns.
pub(super) struct Adapter {
    pub(super) left: Tensor,
    pub(super) right: Tensor,
}

impl Adapter {
    fn draw(gpu: &Gpu, [e, n, k]: [i64; 3]) -> Result<Adapter> {
        Ok(Adapter {
            left: gpu.normal(&[e, n, 16])?.f_mul_scalar(0.05)?.f_to_kind(Kind::BFloat16)?,
            right: gpu.normal(&[e, 16, k])?.f_mul_scalar(0.05)?.f_to_kind(Kind::BFloat16)?,
        })
    }
}

/// A mixture with what it reads.
pub(super) struct Mixture {
    pub(super) size: Size,
    pub(super) ids: Tensor,
    pub(super) order: Tensor,
    pub(super) bounds: Tensor,
    /// `[rows, d]`
    pub(super) x: Tensor,
    /// Of places: `[rows, top, f]` twice, `[rows, top, d]`, `[rows, top, 16]` twice.
    pub(super) hidden: [Tensor; 2],
    pub(super) dy: Tensor,
    pub(super) low: [Tensor; 2],
    /// Gate and up `[e, f, d]`, down `[e, d, f]`.
    pub(super) gate: Weight,
    pub(super) up: Weight,
    pub(super) down: Weight,
    pub(super) gate_low: Adapter,
    pub(super) up_low: Adapter,
    pub(super) down_low: Adapter,
}

impl Mixture {
    pub(super) fn draw(gpu: &Gpu, size: Size, spread: &str) -> Result<Mixture> {
        let Size { rows, top, experts, d, f } = size;
        let ids = spread_ids(gpu, &[rows, top], experts, spread)?;
        let (order, bounds) = ops::expert_order(&ids, experts)?;
        let places = |width: i64| gpu.normal_bf16(&[rows, top, width]);
        Ok(Mixture {
            size,
            ids,
            order,
            bounds,
            x: gpu.normal_bf16(&[rows, d])?,
            hidden: [places(f)?, places(f)?],
            dy: places(d)?,
            low: [places(16)?, places(16)?],
            gate: Weight::draw(gpu, &[experts, f, d])?,
            up: Weight::draw(gpu, &[experts, f, d])?,
            down: Weight::draw(gpu, &[experts, d, f])?,
            gate_low: Adapter::draw(gpu, [experts, f, d])?,
            up_low: Adapter::draw(gpu, [experts, f, d])?,
            down_low: Adapter::draw(gpu, [experts, d, f])?,
        })
    }

    pub(super) fn routing(&self) -> Routing<'_> {
        Routing { ids: &self.ids, order: &self.order, bounds: &self.bounds }
    }

    /// Every product that has a kernel.
    fn products(&self, int8: bool) -> Result<()> {
        let routing = &self.routing();
        let ([h, u], [low, other]) = (&self.hidden, &self.low);
        let (gate, up) = (self.gate.term(&self.x, int8), self.up.term(&self.x, int8));
        let gate_low = Term::plain(low, &self.gate_low.left);
        let up_low = Term::plain(other, &self.up_low.left);
        let _ = ops::routed_swiglu(routing, &[gate], &[up])?;
        let _ = ops::routed_swiglu(routing, &[gate, gate_low], &[up, up_low])?;
        let _ = ops::routed_swiglu_hidden(routing, &[gate, gate_low], &[up, up_low])?;
        let down = self.down.term(h, int8);
        let _ = ops::routed_dot(routing, &[down])?;
        let _ = ops::routed_dot(routing, &[down, Term::plain(low, &self.down_low.left)])?;
        // A row for all its places, and gradients of inputs: of one product, whose cotangent has a row for each place
        // or for all places of a token, and of two.
        let _ = ops::routed_dot(routing, &[gate])?;
        let back = self.down.turned(&self.dy, int8);
        let _ = ops::routed_dot(routing, &[back])?;
        let _ = ops::routed_dot(routing, &[back, Term::turned(low, &self.down_low.right)])?;
        let shared = self.down.turned(&self.x, int8);
        let _ = ops::routed_dot(routing, &[shared])?;
        let _ = ops::routed_dot(routing, &[shared, Term::turned(low, &self.down_low.right)])?;
        let both = [self.gate.turned(h, int8), self.up.turned(u, int8)];
        let _ = ops::routed_dot(routing, &both)?;
        let lows =
            [Term::turned(low, &self.gate_low.right), Term::turned(other, &self.up_low.right)];
        ops::routed_dot(routing, &[both, lows].concat()).map(|_| ())
    }

    fn narrow(&self) -> Result<()> {
        let routing = &self.routing();
        let [h, _] = &self.hidden;
        let (gate, up) =
            (Term::plain(&self.x, &self.gate_low.right), Term::plain(&self.x, &self.up_low.right));
        let _ = ops::routed_dot(routing, &[gate])?;
        let _ = ops::routed_dot_pair(routing, gate, up)?;
        let _ = ops::routed_dot(routing, &[Term::plain(h, &self.down_low.right)])?;
        let _ = ops::routed_dot(routing, &[Term::turned(&self.dy, &self.down_low.left)])?;
        let _ = ops::routed_dot(routing, &[Term::turned(&self.x, &self.down_low.left)])?;
        ops::routed_dot(routing, &[Term::turned(h, &self.gate_low.left)]).map(|_| ())
    }

    fn gradients(&self) -> Result<()> {
        let (routing, e) = (&self.routing(), self.size.experts);
        let [h, _] = &self.hidden;
        let _ = ops::routed_weight_grad(routing, h, &self.dy, e)?;
        ops::routed_weight_grad(routing, &self.x, h, e).map(|_| ())
    }

    fn narrow_gradients(&self) -> Result<()> {
        let (routing, e) = (&self.routing(), self.size.experts);
        let ([h, _], [low, other]) = (&self.hidden, &self.low);
        let _ = ops::routed_weight_grad(routing, low, &self.dy, e)?;
        let _ = ops::routed_weight_grad(routing, low, &self.x, e)?;
        let _ = ops::routed_weight_grad(routing, low, h, e)?;
        let _ = ops::routed_weight_grad(routing, &self.x, low, e)?;
        let _ = ops::routed_weight_grad_pair(routing, &self.x, [low, other], e)?;
        let _ = ops::routed_weight_grad(routing, h, low, e)?;
        self.low_backs()
    }

    /// Products and gradients of both widths from one pass over the rows.
    fn low_backs(&self) -> Result<()> {
        let (routing, e) = (&self.routing(), self.size.experts);
        let ([h, _], [low, other]) = (&self.hidden, &self.low);
        let _ = ops::routed_low_back(routing, h, low, &self.gate_low.left, e)?;
        ops::routed_low_back(routing, &self.dy, other, &self.down_low.left, e).map(|_| ())
    }
}

/// Which products.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Wide,
    Narrow,
}

fn all_of(gpu: &Gpu, size: Size, spread: &str, part: Part) -> Result<Vec<Verdict>> {
    let mixture = Mixture::draw(gpu, size, spread)?;
    let Size { rows, top, experts, d, f } = size;
    let label = format!("P={rows}x{top} E={experts} d={d} f={f} {spread}");
    if part == Part::Narrow {
        return compared(&label, 1.0, &mut || {
            mixture.narrow()?;
            mixture.narrow_gradients()
        });
    }
    let mut verdicts = compared(&label, 1.0, &mut || mixture.gradients())?;
    for int8 in [false, true] {
        let label = format!("{label}{}", if int8 { " int8" } else { "" });
        verdicts.extend(compared(&label, 1.0, &mut || mixture.products(int8))?);
    }
    Ok(verdicts)
}

fn all_sizes(gpu: &Gpu, part: Part) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for (at, size) in SMALL.into_iter().enumerate() {
        for (nth, spread) in SPREADS.into_iter().enumerate() {
            // On the processor a spread per size, another for each, takes minutes already.
            if !gpu.emulated || nth % SMALL.len() == at {
                verdicts.extend(all_of(gpu, size, spread, part)?);
            }
        }
    }
    if gpu.small {
        return Ok(verdicts);
    }
    for size in LARGE {
        for spread in ["even", "skewed"] {
            verdicts.extend(all_of(gpu, size, spread, part)?);
        }
    }
    for spread in SPREADS {
        verdicts.extend(all_of(gpu, size(1365, 12, 58, 1024, 1024), spread, part)?);
    }
    verdicts.extend(all_of(gpu, REAL, "even", part)?);
    Ok(verdicts)
}

/// How many elements of `y[rows, ..]` are NaN where they must not be, or are a number where they must be NaN.
fn misplaced(y: &Tensor, wanted: &Tensor) -> Result<f64> {
    let told = y.f_isnan()?;
    Ok(told.f_ne_tensor(&wanted.f_expand_as(y)?)?.f_sum(Kind::Double)?.f_double_value(&[])?)
}

/// Which elements of `[rows, top, ..]` and of `[experts, ..]` must be NaN where row 137 is.
fn told_by(gpu: &Gpu, ids: &Tensor, experts: i64) -> Result<[Tensor; 2]> {
    let (rows, _) = ids.size2()?;
    let on = (Kind::Int64, gpu.device());
    let row = Tensor::f_arange(rows, on)?.f_eq(137)?.f_reshape([rows, 1, 1])?;
    let places = ids.f_ge(0)?.f_unsqueeze(-1)?.f_logical_and(&row)?;
    let chosen =
        ids.f_narrow(0, 137, 1)?.f_eq_tensor(&Tensor::f_arange(experts, on)?.f_unsqueeze(1)?)?;
    Ok([places, chosen.f_any_dim(1, false)?.f_reshape([experts, 1, 1])?])
}

/// A row that is not a number: it shows in its own places and its own experts, and nowhere else.
fn not_a_number(gpu: &Gpu, part: Part) -> Result<Vec<Verdict>> {
    let m = Mixture::draw(gpu, size(300, 2, 7, 128, 192), "some none")?;
    let _ = m.x.f_narrow(0, 137, 1)?.f_fill_(f64::NAN)?;
    let (routing, x, [h, _], [low, _]) = (&m.routing(), &m.x, &m.hidden, &m.low);
    let [places, experts] = &told_by(gpu, &m.ids, 7)?;
    let mut verdicts = Vec::new();
    let mut add = |what: &str, all: &[&Tensor], told: &Tensor| -> Result<()> {
        let mut n = 0.0;
        for y in all {
            n += misplaced(y, told)?;
        }
        verdicts.push(within(format!("a row of NaN, {what}"), "misplaced", n, 0.0));
        Ok(())
    };
    if part == Part::Narrow {
        let y = ops::routed_dot(routing, &[Term::plain(x, &m.gate_low.right)])?;
        add("narrow", &[&y], places)?;
        add("narrow gradient", &[&ops::routed_weight_grad(routing, x, low, 7)?], experts)?;
        let _ = m.dy.f_narrow(0, 137, 1)?.f_fill_(f64::NAN)?;
        let (y, grad) = ops::routed_low_back(routing, &m.dy, low, &m.down_low.left, 7)?;
        add("narrow of places", &[&y], places)?;
        add("its gradient", &[&grad], experts)?;
        return Ok(verdicts);
    }
    for (name, int8) in [("bf16", false), ("int8", true)] {
        let (gate, up) = (m.gate.term(x, int8), m.up.term(x, int8));
        let (gated, lifted, hidden) = ops::routed_swiglu(routing, &[gate], &[up])?;
        let y = ops::routed_dot(routing, &[gate])?;
        // Both ways round: as many columns as the rows have.
        let back = ops::routed_dot(routing, &[m.down.turned(x, int8)])?;
        add(name, &[&gated, &lifted, &hidden, &y, &back], places)?;
    }
    add("gradient", &[&ops::routed_weight_grad(routing, x, h, 7)?], experts)?;
    Ok(verdicts)
}

/// Nobody reads what stands in a place of no expert.
fn nobody_reads(gpu: &Gpu, part: Part) -> Result<Verdict> {
    let m = Mixture::draw(gpu, size(300, 2, 7, 128, 192), "none")?;
    let [mut h, mut dy] = [m.hidden[0].shallow_clone(), m.dy.shallow_clone()];
    let _ = (h.f_fill_(f64::NAN)?, dy.f_fill_(f64::NAN)?);
    let (routing, [low, _]) = (&m.routing(), &m.low);
    let all = match part {
        Part::Wide => vec![
            ops::routed_dot(routing, &[m.down.term(&h, false)])?,
            ops::routed_weight_grad(routing, &h, &dy, 7)?,
        ],
        Part::Narrow => {
            let (y, grad) = ops::routed_low_back(routing, &dy, low, &m.down_low.left, 7)?;
            vec![
                ops::routed_dot(routing, &[Term::plain(&h, &m.down_low.right)])?,
                ops::routed_weight_grad(routing, low, &dy, 7)?,
                y,
                grad,
            ]
        }
    };
    let mut largest = 0.0;
    for x in &all {
        largest += x.f_abs()?.f_max()?.f_double_value(&[])?;
    }
    Ok(within("NaN in places of no expert", "largest", largest, 0.0))
}

/// A product with a gradient at the most columns, and at a number of them that is no power of two.
fn widths_of_a_pass(gpu: &Gpu) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for spread in ["some none", "skewed"] {
        let m = Mixture::draw(gpu, size(450, 2, 5, 384, 1024), spread)?;
        let label = format!("one pass of 384 and 1024 columns, {spread}");
        verdicts.extend(compared(&label, 1.0, &mut || m.low_backs())?);
    }
    Ok(verdicts)
}

/// Rows of small whole numbers and one of a hundred, and codes of -1, 0 and 1: every sum is a number of bf16, so a product that
/// has a row's numbers in fewer than 16 bits shows.
fn whole_numbers(gpu: &Gpu) -> Result<Vec<Verdict>> {
    let m = Mixture::draw(gpu, size(40, 2, 6, 192, 320), "some none")?;
    let on = |kind| (kind, gpu.device());
    let whole = |shape: &[i64], kind| Tensor::f_randint_low(-1, 2, shape, on(kind));
    let mut verdicts = Vec::new();
    for (turned, shape) in [(false, [6, 320, 192]), (true, [6, 192, 320])] {
        let codes = whole(&shape, Kind::Int8)?;
        let scale = Tensor::f_ones([6, shape[1]], on(Kind::Float))?;
        let x = whole(&[40, 2, 192], Kind::BFloat16)?;
        let _ = x.f_narrow(2, 17, 1)?.f_fill_(100)?;
        let (wide, w) = (x.f_to_kind(Kind::Double)?, codes.f_to_kind(Kind::Double)?);
        let term = Term { turned, ..Term::plain(&x, &codes).scaled(&scale) };
        let y = ops::routed_dot(&m.routing(), &[term])?;
        let exact = ops::routed_dot(&m.routing(), &[Term { turned, ..Term::plain(&wide, &w) }])?;
        let gap = y.f_to_kind(Kind::Double)?.f_sub(&exact)?.f_abs()?.f_max()?;
        let name = format!("whole numbers{}", if turned { ", turned" } else { "" });
        verdicts.push(within(name, "off by", gap.f_double_value(&[])?, 0.0));
    }
    Ok(verdicts)
}

/// Sums that have no kernel run on libtorch, and give the same.
fn without_a_kernel(gpu: &Gpu) -> Result<Verdict> {
    let m = Mixture::draw(gpu, size(50, 2, 6, 64, 128), "some none")?;
    let routing = &m.routing();
    let (low, right) = (gpu.normal_bf16(&[50, 2, 8])?, gpu.normal_bf16(&[6, 128, 8])?);
    let terms = [m.gate.term(&m.x, false), Term::plain(&low, &right)];
    let y = ops::routed_dot(routing, &terms)?;
    let wide = |x: &Tensor| x.f_to_kind(Kind::Double);
    let (x, w, low, right) = (wide(&m.x)?, wide(&m.gate.half)?, wide(&low)?, wide(&right)?);
    let exact = ops::routed_dot(routing, &[Term::plain(&x, &w), Term::plain(&low, &right)])?;
    let gap = wide(&y)?.f_sub(&exact)?.f_norm()?.f_double_value(&[])?;
    let error = gap / exact.f_norm()?.f_double_value(&[])?;
    Ok(within("an adapter of rank 8", "off by", error, 1e-2))
}

impl Case for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = vec![without_a_kernel(gpu)?, nobody_reads(gpu, Part::Wide)?];
        verdicts.extend(whole_numbers(gpu)?);
        verdicts.extend(super::mixture::check(gpu)?);
        verdicts.extend(not_a_number(gpu, Part::Wide)?);
        verdicts.extend(all_sizes(gpu, Part::Wide)?);
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        super::mixture::wide(gpu)
    }
}

/// Narrow products of routed rows, and their gradients.
pub(super) struct Adapters;

impl Case for Adapters {
    fn name(&self) -> &'static str {
        "adapters"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = vec![nobody_reads(gpu, Part::Narrow)?];
        verdicts.extend(not_a_number(gpu, Part::Narrow)?);
        verdicts.extend(widths_of_a_pass(gpu)?);
        verdicts.extend(all_sizes(gpu, Part::Narrow)?);
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        super::mixture::narrow(gpu)
    }
}
