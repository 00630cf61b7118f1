//! What the ops share: errors that name the op and the shapes, and the checks
//! made before libtorch is called.

use tch::{Kind, TchError, Tensor};

use crate::{Error, Result};

/// The error of one op.
pub(crate) fn op_error(op: &'static str, detail: impl Into<String>) -> Error {
    Error::Op { op, detail: detail.into() }
}

/// Fails with `detail` unless `holds`.
pub(crate) fn ensure(holds: bool, op: &'static str, detail: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(op_error(op, detail())) }
}

/// What is to be known of an op's result: an error of libtorch gets the op's name and the shapes of
/// its inputs, and a result is shown to who watches the step.
pub(crate) trait Named {
    /// Turns libtorch's error into the op's own.
    fn named(self, op: &'static str, inputs: &[&Tensor]) -> Result<Tensor>;
}

impl Named for std::result::Result<Tensor, TchError> {
    fn named(self, op: &'static str, inputs: &[&Tensor]) -> Result<Tensor> {
        let result = self.map_err(|error| {
            let text = error.to_string();
            let reason = text.lines().next().unwrap_or("refused by libtorch");
            op_error(op, format!("{}: {reason}", describe(inputs)))
        })?;
        crate::watch::shown(op, inputs, &result);
        Ok(result)
    }
}

/// Runs the body of an op, and shows its result to who watches the step.
pub(crate) fn watched(
    op: &str,
    inputs: &[&Tensor],
    body: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    let result = body()?;
    crate::watch::shown(op, inputs, &result);
    Ok(result)
}

/// Kinds and shapes, for a message: `Float[2, 3], Double[3]`.
pub(crate) fn describe(inputs: &[&Tensor]) -> String {
    let all: Vec<String> = inputs.iter().map(|x| format!("{:?}{:?}", x.kind(), x.size())).collect();
    all.join(", ")
}

/// The shape of `x`, which must have `rank` dimensions.
pub(crate) fn shape_of<const RANK: usize>(
    op: &'static str,
    name: &str,
    x: &Tensor,
) -> Result<[i64; RANK]> {
    let size = x.size();
    <[i64; RANK]>::try_from(size.as_slice())
        .map_err(|_| op_error(op, format!("{name} has shape {size:?}, {RANK} dimensions needed")))
}

/// The shape of `x` must be `shape`.
pub(crate) fn ensure_shape(op: &'static str, name: &str, x: &Tensor, shape: &[i64]) -> Result<()> {
    let size = x.size();
    ensure(size == shape, op, || format!("{name} has shape {size:?}, {shape:?} needed"))
}

/// `dim` must be a dimension of `x`; gives its size.
pub(crate) fn ensure_dim(op: &'static str, x: &Tensor, dim: i64) -> Result<i64> {
    let size = x.size();
    usize::try_from(dim)
        .ok()
        .and_then(|dim| size.get(dim).copied())
        .ok_or_else(|| op_error(op, format!("no dimension {dim} in shape {size:?}")))
}

/// All tensors must have one floating kind and one device; gives the kind.
pub(crate) fn ensure_same_kind(op: &'static str, inputs: &[&Tensor]) -> Result<Kind> {
    let Some(first) = inputs.first() else {
        return Err(op_error(op, "no tensors"));
    };
    let (kind, device) = (first.kind(), first.device());
    ensure(is_float(kind), op, || format!("floating kinds needed, not {}", describe(inputs)))?;
    let same = inputs.iter().all(|x| x.kind() == kind && x.device() == device);
    ensure(same, op, || format!("one kind and one device needed, not {}", describe(inputs)))?;
    Ok(kind)
}

/// `x` must be of `kind`.
pub(crate) fn ensure_kind(op: &'static str, name: &str, x: &Tensor, kind: Kind) -> Result<()> {
    ensure(x.kind() == kind, op, || format!("{name} is {:?}, {kind:?} needed", x.kind()))
}

/// Whether the kind is a float of any width.
pub(crate) fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half)
}

/// The kind in which sums and exponentials are taken: at least f32.
pub(crate) fn wide_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// `x` in `kind`, without a call where it already is.
pub(crate) fn cast(x: &Tensor, kind: Kind) -> Result<Tensor> {
    if x.kind() == kind { Ok(x.shallow_clone()) } else { Ok(x.f_to_kind(kind)?) }
}

/// A scalar of the kind and device of `like`.
pub(crate) fn scalar(value: f64, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_full([0i64; 0], value, (like.kind(), like.device()))?)
}
