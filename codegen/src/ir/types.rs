//! Types of IR values: a precision class and named axes in storage order.

use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The type of a value: what its elements are, and its axes in storage order (row-major, the
/// last axis runs fastest). No two axes of a type share a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Type {
    /// Precision class.
    pub dtype: DType,
    /// Axes in storage order.
    pub axes: Vec<Axis>,
}

impl Type {
    /// A type from its parts.
    pub fn new(dtype: DType, axes: Vec<Axis>) -> Self {
        Type { dtype, axes }
    }

    /// No axes.
    pub fn scalar(dtype: DType) -> Self {
        Type { dtype, axes: Vec::new() }
    }

    /// Where the axis of that name stands.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.axes.iter().position(|axis| axis.name == name)
    }

    /// The axis of that name.
    pub fn axis(&self, name: &str) -> Option<&Axis> {
        self.axes.iter().find(|axis| axis.name == name)
    }

    /// Whether an axis has that name.
    pub fn has(&self, name: &str) -> bool {
        self.axis(name).is_some()
    }

    /// Floating point: the only kind that has gradients.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, DType::Act | DType::F32)
    }

    /// The same axes in another precision class.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Type { dtype, axes: self.axes.clone() }
    }

    /// Axis names in storage order.
    pub fn names(&self) -> Vec<String> {
        self.axes.iter().map(|axis| axis.name.clone()).collect()
    }

    /// The number of elements; `None` on overflow.
    pub fn count(&self) -> Option<Size> {
        self.axes.iter().try_fold(Size::constant(1), |total, axis| total.checked_mul(&axis.size))
    }

    /// The sizes replaced by what a binding of size names says.
    #[must_use]
    pub fn substitute(&self, bindings: &BTreeMap<String, Size>) -> Self {
        let axes = self
            .axes
            .iter()
            .map(|axis| Axis { name: axis.name.clone(), size: axis.size.substitute(bindings) })
            .collect();
        Type { dtype: self.dtype, axes }
    }
}

/// The word for a precision class in IR text and diagnostics.
pub fn dtype_word(dtype: DType) -> &'static str {
    match dtype {
        DType::Act => "act",
        DType::F32 => "f32",
        DType::Index => "index",
        DType::Bool => "bool",
    }
}

/// The precision class of a word of IR text.
pub fn dtype_from_word(word: &str) -> Option<DType> {
    [DType::Act, DType::F32, DType::Index, DType::Bool].into_iter().find(|d| dtype_word(*d) == word)
}

/// Prints an axis as `d=4096`, or as `t` where its size is the size name `t` itself.
pub fn axis_text(axis: &Axis) -> String {
    if axis.size == Size::symbol(&axis.name) {
        axis.name.clone()
    } else {
        format!("{}={}", axis.name, axis.size)
    }
}

/// Prints `act[b, t, d=4096]`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<String> = self.axes.iter().map(axis_text).collect();
        write!(f, "{}[{}]", dtype_word(self.dtype), axes.join(", "))
    }
}
