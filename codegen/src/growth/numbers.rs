//! Numbers and sizes in maps: indices of layers, positions, factors.

use super::codes;
use super::rule::Factor;
use lightc_dsl::ast::{Arg, BinaryOp, Expr, ExprKind};
use lightc_dsl::diag::Diag;
use lightc_dsl::names::closest;
use lightc_dsl::resolve::{FormalValue, FormalValues};
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use std::collections::BTreeMap;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A whole number or symbolic size.
    Size(Size),
    /// Anything else.
    Factor(Factor),
}

/// Index variables, formals and sizes of a stage, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) variables: BTreeMap<String, i64>,
    pub(super) formals: FormalValues,
    /// Sizes that the target stage binds.
    pub(super) sizes: BTreeMap<String, Size>,
}

type Result<T> = std::result::Result<T, Box<Diag>>;

impl Factor {
    /// A plain number.
    pub fn number(number: f64) -> Self {
        Factor { number, sizes: Vec::new() }
    }

    fn size(size: &Size) -> Self {
        match size.as_constant() {
            Some(value) => Factor::number(value as f64),
            None => Factor { number: 1.0, sizes: vec![(size.clone(), 2)] },
        }
    }

    fn times(&self, other: &Factor, sign: i32) -> Self {
        let number = if sign < 0 { self.number / other.number } else { self.number * other.number };
        let mut powers: BTreeMap<Size, i32> = self.sizes.iter().cloned().collect();
        for (size, half) in &other.sizes {
            *powers.entry(size.clone()).or_insert(0) += sign * half;
        }
        Factor { number, sizes: powers.into_iter().filter(|(_, half)| *half != 0).collect() }
    }

    fn sqrt(&self) -> Option<Self> {
        let halves: Option<Vec<(Size, i32)>> = self
            .sizes
            .iter()
            .map(|(size, half)| (half % 2 == 0).then(|| (size.clone(), half / 2)))
            .collect();
        Some(Factor { number: self.number.sqrt(), sizes: halves? })
    }

    /// Its value where every size is known.
    pub fn evaluate(&self, sizes: &BTreeMap<String, i64>) -> Option<f64> {
        let mut value = self.number;
        for (size, half) in &self.sizes {
            value *= (size.evaluate(sizes)? as f64).powf(f64::from(*half) / 2.0);
        }
        Some(value)
    }
}

impl Names {
    fn lookup(&self, name: &str) -> Option<Value> {
        if let Some(index) = self.variables.get(name) {
            return Some(Value::Size(Size::constant(*index)));
        }
        match self.formals.get(name) {
            Some(FormalValue::Size(size)) => return Some(Value::Size(size.clone())),
            Some(FormalValue::Number(number)) => return Some(number_value(*number)),
            None => {}
        }
        self.sizes.get(name).map(|size| Value::Size(size.clone()))
    }

    pub(super) fn value(&self, expr: &Expr) -> Result<Value> {
        match &expr.kind {
            ExprKind::Number { value, .. } => Ok(number_value(*value)),
            ExprKind::Name(name) => {
                self.lookup(name).ok_or_else(|| Box::new(self.unknown(name, expr.span)))
            }
            ExprKind::Negate(inner) => {
                let minus = Value::Size(Size::constant(-1));
                combine(BinaryOp::Mul, minus, self.value(inner)?, expr.span)
            }
            ExprKind::Binary(op, left, right) => {
                combine(*op, self.value(left)?, self.value(right)?, expr.span)
            }
            ExprKind::Call { callee, args } => {
                let [Arg::Value(inner)] = args.as_slice() else {
                    return Err(Box::new(not_a_number(expr.span)));
                };
                match callee.name.as_str() {
                    "size" => self.value(inner),
                    "sqrt" => {
                        let root = factor_of(self.value(inner)?).sqrt();
                        let root = root.ok_or_else(|| Box::new(not_a_number(expr.span)))?;
                        Ok(from_factor(root))
                    }
                    _ => Err(Box::new(not_a_number(expr.span))),
                }
            }
            _ => Err(Box::new(not_a_number(expr.span))),
        }
    }

    pub(super) fn size(&self, expr: &Expr) -> Result<Size> {
        match self.value(expr)? {
            Value::Size(size) => Ok(size),
            Value::Factor(factor) => Err(Box::new(
                Diag::error(
                    codes::DIVIDES,
                    format!("a whole number is wanted, and this is {}", factor_text(&factor)),
                    expr.span,
                    "not a whole number",
                )
                .with_help("sizes and positions divide without a rest"),
            )),
        }
    }

    /// An index of a layer or position: known, and not below 0.
    pub(super) fn index(&self, expr: &Expr) -> Result<u64> {
        let size = self.size(expr)?;
        let index = size.as_constant().and_then(|n| u64::try_from(n).ok());
        index.ok_or_else(|| {
            Box::new(
                Diag::error(
                    codes::OUT_OF_RANGE,
                    format!("an index counts from 0, and this is {size}"),
                    expr.span,
                    "not an index",
                )
                .with_help("indices are whole numbers that do not depend on open sizes"),
            )
        })
    }

    pub(super) fn factor(&self, expr: &Expr) -> Result<Factor> {
        Ok(factor_of(self.value(expr)?))
    }

    /// A number without open sizes.
    pub(super) fn number(&self, expr: &Expr) -> Result<f64> {
        let factor = self.factor(expr)?;
        let number = factor.evaluate(&BTreeMap::new()).filter(|n| n.is_finite());
        number.ok_or_else(|| Box::new(not_a_number(expr.span)))
    }

    fn unknown(&self, name: &str, span: Span) -> Diag {
        let diag = Diag::error(
            codes::VARIABLES,
            format!("`{name}` is no index variable, formal or size of the target stage"),
            span,
            "unknown name",
        );
        let names = self.variables.keys().chain(self.formals.keys()).chain(self.sizes.keys());
        match closest(name, names.map(String::as_str)) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => diag.with_help(format!("add `for {name} in 0 .. 8` to the rule")),
        }
    }
}

fn number_value(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        Value::Size(Size::constant(number as i64))
    } else {
        Value::Factor(Factor::number(number))
    }
}

fn factor_of(value: Value) -> Factor {
    match value {
        Value::Size(size) => Factor::size(&size),
        Value::Factor(factor) => factor,
    }
}

fn from_factor(factor: Factor) -> Value {
    if factor.sizes.is_empty() { number_value(factor.number) } else { Value::Factor(factor) }
}

fn combine(op: BinaryOp, left: Value, right: Value, span: Span) -> Result<Value> {
    if let (Value::Size(a), Value::Size(b)) = (&left, &right) {
        let size = match op {
            BinaryOp::Add => a.checked_add(b),
            BinaryOp::Sub => a.checked_sub(b),
            BinaryOp::Mul => a.checked_mul(b),
            BinaryOp::Div => a.exact_div(b),
            _ => None,
        };
        if let Some(size) = size {
            return Ok(Value::Size(size));
        }
    }
    let (a, b) = (factor_of(left), factor_of(right));
    let plain = a.sizes.is_empty() && b.sizes.is_empty();
    match op {
        BinaryOp::Mul => Ok(from_factor(a.times(&b, 1))),
        BinaryOp::Div => Ok(from_factor(a.times(&b, -1))),
        BinaryOp::Add if plain => Ok(number_value(a.number + b.number)),
        BinaryOp::Sub if plain => Ok(number_value(a.number - b.number)),
        _ => Err(Box::new(not_a_number(span))),
    }
}

fn factor_text(factor: &Factor) -> String {
    let mut text = format!("{}", factor.number);
    for (size, half) in &factor.sizes {
        text.push_str(&format!(" * ({size})^{}", f64::from(*half) / 2.0));
    }
    text
}

fn not_a_number(span: Span) -> Diag {
    Diag::error(codes::ARGUMENTS, "a number is wanted here", span, "this is none")
        .with_help("numbers are made of literals, formals, sizes, `+ - * /` and `sqrt`")
}
