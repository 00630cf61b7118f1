//! Names that a forward body mentions, whether or not what mentions them could be lowered.

use lightc_dsl::ast::{Arg, Expr, ExprKind, Forward, Stmt};
use std::collections::BTreeSet;

/// Every name and callee in the expressions of a body, and every state that it updates.
pub(super) fn mentions(forward: &Forward) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for statement in &forward.body {
        match statement {
            Stmt::Axis(def) => expression(&def.size, &mut found),
            Stmt::Let { value, .. } | Stmt::Penalty { value, .. } => expression(value, &mut found),
            Stmt::Update { name, value } => {
                let _ = found.insert(name.name.as_str());
                expression(value, &mut found);
            }
        }
    }
    forward.result.iter().for_each(|expr| expression(expr, &mut found));
    found
}

fn expression<'a>(expr: &'a Expr, found: &mut BTreeSet<&'a str>) {
    match &expr.kind {
        ExprKind::Number { .. } => {}
        ExprKind::Name(name) => {
            let _ = found.insert(name);
        }
        ExprKind::Negate(inner) => expression(inner, found),
        ExprKind::Binary(_, left, right) => {
            expression(left, found);
            expression(right, found);
        }
        ExprKind::Call { callee, args } => {
            let _ = found.insert(callee.name.as_str());
            args.iter().for_each(|arg| argument(arg, found));
        }
        ExprKind::List(items) => items.iter().for_each(|item| expression(item, found)),
    }
}

fn argument<'a>(arg: &'a Arg, found: &mut BTreeSet<&'a str>) {
    match arg {
        Arg::Value(expr) | Arg::Named(_, expr) => expression(expr, found),
        Arg::Range { start, end, .. } => {
            expression(start, found);
            expression(end, found);
        }
        Arg::At { index, .. } => expression(index, found),
        Arg::Over(..) | Arg::Map { .. } => {}
    }
}
