//! Terms of the prover: tensors as functions of named axes. The storage order of axes, the
//! precision classes and stopped gradients are gone: they do not change what a graph means over
//! the real numbers, and that meaning is what the prover decides.

use super::scale::Scale;
use crate::ir::Type;
use crate::ops::{Attr, Op};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Axes by name.
pub(crate) type Axes = BTreeMap<String, Size>;

/// What the elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Real numbers.
    Float,
    /// Whole numbers.
    Index,
    /// Truth values.
    Bool,
}

impl Kind {
    pub(crate) fn of(dtype: DType) -> Kind {
        match dtype {
            DType::Act | DType::F32 => Kind::Float,
            DType::Index => Kind::Index,
            DType::Bool => Kind::Bool,
        }
    }

    fn dtype(self) -> DType {
        match self {
            Kind::Float => DType::F32,
            Kind::Index => DType::Index,
            Kind::Bool => DType::Bool,
        }
    }
}

/// The type of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ty {
    pub(crate) kind: Kind,
    pub(crate) axes: Axes,
}

impl Ty {
    pub(crate) fn float(axes: Axes) -> Ty {
        Ty { kind: Kind::Float, axes }
    }

    /// A type of the IR, its storage order forgotten.
    pub(crate) fn of(ty: &Type) -> Ty {
        let axes = ty.axes.iter().map(|axis| (axis.name.clone(), axis.size.clone())).collect();
        Ty { kind: Kind::of(ty.dtype), axes }
    }

    /// A type of the IR, axes in name order.
    pub(crate) fn stored(&self) -> Type {
        let axis = |(name, size): (&String, &Size)| Axis { name: name.clone(), size: size.clone() };
        Type::new(self.kind.dtype(), self.axes.iter().map(axis).collect())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.axes.contains_key(name)
    }
}

/// An op of the IR that has no head of its own. Equal and ordered by its text.
#[derive(Clone, Debug)]
pub(crate) struct OpKey {
    text: String,
    pub(crate) op: Arc<Op>,
}

impl OpKey {
    pub(crate) fn new(op: Op) -> OpKey {
        let mut text = op.def().mnemonic().to_owned();
        for (name, attr) in op.def().attrs().0 {
            text.push_str(&format!(" {name}={attr}"));
        }
        OpKey { text, op: Arc::new(op) }
    }

    pub(crate) fn mnemonic(&self) -> &'static str {
        self.op.def().mnemonic()
    }

    /// An attribute that names an axis.
    pub(crate) fn word(&self, name: &str) -> Option<String> {
        self.op.def().attrs().0.into_iter().find(|(known, _)| known == name).and_then(
            |(_, attr)| match attr {
                Attr::Word(word) => Some(word),
                Attr::Axes(axes) => axes.first().map(|axis| axis.name.clone()),
                _ => None,
            },
        )
    }
}

impl PartialEq for OpKey {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for OpKey {}

impl PartialOrd for OpKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OpKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for OpKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// `next = a before + (1 - a) last + weight gate (force - last)` with `a = numerator / 2^bits`,
/// rounded as `lightc_numerics::fixed` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Step {
    /// Odd, or 0 for the first step of a stack.
    pub(crate) numerator: u32,
    /// Bits that are shifted out.
    pub(crate) bits: u32,
    /// Of the force: the bits of a number.
    pub(crate) weight: u64,
    /// Bits of a state after the point.
    pub(crate) fraction: u32,
}

/// What stands at the head of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Head {
    /// Something that nothing is known of: an input, a parameter, the result of a call.
    Leaf { name: String, ty: Ty },
    /// One value everywhere.
    Fill { value: Scale, ty: Ty },
    /// Sum; operands meet by axis name, and the result has the axes of both.
    Add,
    /// Product, likewise. A contraction is the sum over axes of a product.
    Mul,
    /// Sum over axes.
    Sum(BTreeSet<String>),
    /// One after another along an axis, which all parts have.
    Concat(String),
    /// An axis under another name.
    Rename { from: String, to: String },
    /// One axis as several, the last the fastest.
    Split { axis: String, into: Vec<Axis> },
    /// Several axes as one, the last the fastest.
    Merge { axes: Vec<String>, into: String },
    /// `len` positions of an axis from `start` on.
    Slice { axis: String, start: Size, len: Size },
    /// Any other op, and which of its results.
    Op { key: OpKey, result: usize },
    /// A number as a state of fixed point with so many bits after the point.
    Quantize(u32),
    /// A step of an integrator over such states: the children are the state before last, the last
    /// state, the force gate and what the layer gave for the last state.
    Step(Step),
}

impl Head {
    pub(crate) fn fill(value: Scale, axes: Axes) -> Head {
        Head::Fill { value, ty: Ty::float(axes) }
    }

    pub(crate) fn op(op: impl Into<Op>) -> Head {
        Head::Op { key: OpKey::new(op.into()), result: 0 }
    }

    /// Ops that work on each element by itself; operands meet by axis name.
    pub(crate) fn is_pointwise(&self) -> bool {
        match self {
            Head::Add | Head::Mul => true,
            Head::Op { key, .. } => matches!(
                *key.op,
                Op::Unary(_) | Op::Binary(_) | Op::Clamp(_) | Op::Where(_) | Op::Cast(_)
            ),
            _ => false,
        }
    }

    /// The type of a term; `None` if the children do not fit.
    pub(crate) fn infer(&self, children: &[&Ty]) -> Option<Ty> {
        match (self, children) {
            (Head::Leaf { ty, .. } | Head::Fill { ty, .. }, []) => Some(ty.clone()),
            (Head::Add | Head::Mul, [a, b]) => {
                (a.kind == b.kind).then(|| joined(a.kind, children)).flatten()
            }
            (Head::Sum(over), [x]) => {
                let mut axes = x.axes.clone();
                let had = over.iter().all(|name| axes.remove(name).is_some());
                (had && x.kind == Kind::Float && !over.is_empty()).then(|| Ty::float(axes))
            }
            (Head::Concat(axis), [first, ..]) => concatenated(axis, first, children),
            (Head::Rename { from, to }, [x]) => replaced(x, &[from], &[]).and_then(|without| {
                let size = x.axes.get(from)?.clone();
                with(without, [(to.clone(), size)])
            }),
            (Head::Split { axis, into }, [x]) => {
                let parts = into.iter().map(|part| (part.name.clone(), part.size.clone()));
                let product = product(into.iter().map(|part| &part.size))?;
                (x.axes.get(axis)? == &product).then_some(())?;
                with(replaced(x, &[axis], &[])?, parts)
            }
            (Head::Merge { axes, into }, [x]) => {
                let sizes: Vec<&Size> =
                    axes.iter().map(|name| x.axes.get(name)).collect::<Option<_>>()?;
                let size = product(sizes.into_iter())?;
                let names: Vec<&String> = axes.iter().collect();
                with(replaced(x, &names, &[])?, [(into.clone(), size)])
            }
            (Head::Slice { axis, len, .. }, [x]) => {
                x.axes.get(axis)?;
                let mut ty = (*x).clone();
                ty.axes.insert(axis.clone(), len.clone());
                Some(ty)
            }
            (Head::Op { key, result }, _) => infer_op(self, key, *result, children),
            (Head::Quantize(_), [x]) => (x.kind == Kind::Float).then(|| (*x).clone()),
            (Head::Step(_), [before, last, _, force]) => {
                (before == last && last == force).then(|| (*last).clone())
            }
            _ => None,
        }
    }
}

/// The axes of all, each of one size.
pub(crate) fn joined(kind: Kind, types: &[&Ty]) -> Option<Ty> {
    let mut axes = Axes::new();
    for (name, size) in types.iter().flat_map(|ty| &ty.axes) {
        if axes.insert(name.clone(), size.clone()).is_some_and(|known| known != *size) {
            return None;
        }
    }
    Some(Ty { kind, axes })
}

fn concatenated(axis: &str, first: &Ty, parts: &[&Ty]) -> Option<Ty> {
    let mut total = Size::default();
    for part in parts {
        total = total.checked_add(part.axes.get(axis)?)?;
        let mut other = (*part).clone();
        other.axes.insert(axis.to_owned(), first.axes.get(axis)?.clone());
        (other == *first).then_some(())?;
    }
    let mut ty = first.clone();
    ty.axes.insert(axis.to_owned(), total);
    Some(ty)
}

fn replaced(x: &Ty, without: &[&String], _: &[()]) -> Option<Ty> {
    let mut ty = x.clone();
    for name in without {
        ty.axes.remove(*name)?;
    }
    Some(ty)
}

fn with(mut ty: Ty, axes: impl IntoIterator<Item = (String, Size)>) -> Option<Ty> {
    for (name, size) in axes {
        if ty.axes.insert(name, size).is_some() {
            return None;
        }
    }
    Some(ty)
}

pub(crate) fn product<'a>(mut sizes: impl Iterator<Item = &'a Size>) -> Option<Size> {
    sizes.try_fold(Size::constant(1), |total, size| total.checked_mul(size))
}

/// The types of an op's arguments in the storage order that it asks for.
pub(crate) fn arranged(op: &Op, children: &[&Ty]) -> Vec<Type> {
    let mut types: Vec<Type> = children.iter().map(|ty| ty.stored()).collect();
    for index in 0..types.len() {
        let refs: Vec<&Type> = types.iter().collect();
        let Some(order) = op.def().arg_order(index, &refs) else { continue };
        if let Some(ty) = types.get_mut(index) {
            let axes: Vec<Axis> = order.iter().filter_map(|name| ty.axis(name).cloned()).collect();
            if axes.len() == ty.axes.len() {
                ty.axes = axes;
            }
        }
    }
    types
}

fn infer_op(head: &Head, key: &OpKey, result: usize, children: &[&Ty]) -> Option<Ty> {
    if head.is_pointwise() {
        // Kinds by the op's own rule, on elements; axes by union.
        let scalars: Vec<Type> = children.iter().map(|ty| Type::scalar(ty.kind.dtype())).collect();
        let refs: Vec<&Type> = scalars.iter().collect();
        let kind = Kind::of(key.op.def().infer(&refs).ok()?.first()?.dtype);
        return joined(kind, children);
    }
    let types = arranged(&key.op, children);
    let refs: Vec<&Type> = types.iter().collect();
    let results = key.op.def().infer(&refs).ok()?;
    results.get(result).map(Ty::of)
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &mut dyn Iterator<Item = &String>| {
            names.map(String::as_str).collect::<Vec<_>>().join(",")
        };
        match self {
            Head::Leaf { name, .. } => write!(f, "<{name}>"),
            Head::Fill { value, ty } if ty.axes.is_empty() => write!(f, "{value}"),
            Head::Fill { value, ty } => {
                let axes: Vec<String> =
                    ty.axes.iter().map(|(name, size)| format!("{name}={size}")).collect();
                write!(f, "{value}[{}]", axes.join(","))
            }
            Head::Add => f.write_str("add"),
            Head::Mul => f.write_str("mul"),
            Head::Sum(over) => write!(f, "sum[{}]", list(&mut over.iter())),
            Head::Concat(axis) => write!(f, "concat[{axis}]"),
            Head::Rename { from, to } => write!(f, "rename[{from}->{to}]"),
            Head::Split { axis, into } => {
                write!(f, "split[{axis}->{}]", list(&mut into.iter().map(|part| &part.name)))
            }
            Head::Merge { axes, into } => {
                write!(f, "merge[{}->{into}]", list(&mut axes.iter()))
            }
            Head::Slice { axis, start, len } => write!(f, "slice[{axis}:{start}+{len}]"),
            Head::Op { key, result: 0 } => f.write_str(&key.text),
            Head::Op { key, result } => write!(f, "{}.{result}", key.text),
            Head::Quantize(bits) => write!(f, "quantize[{bits}]"),
            Head::Step(step) => write!(f, "step[{step:?}]"),
        }
    }
}
