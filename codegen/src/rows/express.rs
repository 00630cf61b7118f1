//! Ops on single elements as C++ expressions.

use crate::ops::{BinaryFn, Op, UnaryFn};
use lightc_dsl::ast::DType;

/// A number as a C++ literal.
pub(super) fn number(value: f64) -> String {
    if value == f64::INFINITY {
        return "INFINITY".to_owned();
    }
    if value == f64::NEG_INFINITY {
        return "-INFINITY".to_owned();
    }
    #[allow(clippy::cast_possible_truncation)] // kernels compute in f32
    let text = format!("{:?}", value as f32);
    format!("{text}f")
}

fn unary(function: UnaryFn, x: &str) -> String {
    match function {
        UnaryFn::Exp => format!("expf({x})"),
        UnaryFn::Ln => format!("logf({x})"),
        UnaryFn::Sqrt => format!("sqrtf({x})"),
        UnaryFn::Rsqrt => format!("rsqrtf({x})"),
        UnaryFn::Recip => format!("1.0f / {x}"),
        UnaryFn::Tanh => format!("tanhf({x})"),
        UnaryFn::Floor => format!("floorf({x})"),
        UnaryFn::Abs => format!("fabsf({x})"),
        UnaryFn::Sigmoid | UnaryFn::Silu | UnaryFn::Softplus | UnaryFn::Square => {
            format!("{}({x})", function.names().0)
        }
    }
}

fn binary(function: BinaryFn, a: &str, b: &str) -> String {
    match function {
        BinaryFn::Add => format!("{a} + {b}"),
        BinaryFn::Sub => format!("{a} - {b}"),
        BinaryFn::Mul => format!("{a} * {b}"),
        BinaryFn::Div => format!("{a} / {b}"),
        BinaryFn::Min => format!("fminf({a}, {b})"),
        BinaryFn::Max => format!("fmaxf({a}, {b})"),
        BinaryFn::Less => format!("{a} < {b}"),
        BinaryFn::LessEqual => format!("{a} <= {b}"),
        BinaryFn::Greater => format!("{a} > {b}"),
        BinaryFn::GreaterEqual => format!("{a} >= {b}"),
    }
}

/// An op at one element of each argument.
pub(super) fn expression(op: &Op, args: &[String]) -> String {
    let arg = |index: usize| args.get(index).map_or("", String::as_str);
    match op {
        Op::Affine(op) => match (op.mul == 1.0, op.add == 0.0) {
            (true, true) => arg(0).to_owned(),
            (true, false) => format!("{} + {}", arg(0), number(op.add)),
            (false, true) => format!("{} * {}", arg(0), number(op.mul)),
            (false, false) => format!("{} * {} + {}", arg(0), number(op.mul), number(op.add)),
        },
        Op::Unary(op) => unary(op.function, arg(0)),
        Op::UnaryGrad(op) if op.function == UnaryFn::Floor => format!("0.0f * {}", arg(1)),
        Op::UnaryGrad(op) => format!("{}({}, {})", op.function.names().1, arg(0), arg(1)),
        Op::Binary(op) => binary(op.function, arg(0), arg(1)),
        Op::Clamp(op) => format!("clamp_to({}, {}, {})", arg(0), number(op.low), number(op.high)),
        Op::ClampGrad(op) => format!(
            "{0} >= {1} && {0} <= {2} ? {3} : 0.0f",
            arg(0),
            number(op.low),
            number(op.high),
            arg(1)
        ),
        Op::Where(_) => format!("{} ? {} : {}", arg(0), arg(1), arg(2)),
        Op::Cast(op) if op.to == DType::Bool => format!("{} != 0.0f", arg(0)),
        // An outer product is a contraction over nothing.
        Op::Contract(_) => format!("{} * {}", arg(0), arg(1)),
        _ => arg(0).to_owned(),
    }
}

/// An op at one element of each argument, rounded by itself: arithmetic that no compiler fuses with what is around it.
/// `None` for an op that is no arithmetic of numbers.
pub(super) fn rounded(op: &Op, args: &[String]) -> Option<String> {
    let [a, b] = [0, 1].map(|index| args.get(index).map_or("", String::as_str));
    match op {
        Op::Binary(op) => match op.function {
            BinaryFn::Add => Some(format!("__fadd_rn({a}, {b})")),
            BinaryFn::Sub => Some(format!("__fsub_rn({a}, {b})")),
            BinaryFn::Mul => Some(format!("__fmul_rn({a}, {b})")),
            BinaryFn::Div => Some(format!("__fdiv_rn({a}, {b})")),
            _ => None,
        },
        Op::Unary(op) => match op.function {
            UnaryFn::Square => Some(format!("__fmul_rn({a}, {a})")),
            UnaryFn::Sqrt => Some(format!("__fsqrt_rn({a})")),
            _ => None,
        },
        _ => None,
    }
}

/// An op of numbers of 32 bits that has no rounding in 64 bits, at one element of each argument.
pub(super) fn exact(op: &Op, args: &[String]) -> Option<String> {
    let arg = args.first()?;
    matches!(op, Op::Unary(op) if op.function == UnaryFn::Square).then(|| format!("{arg} * {arg}"))
}
