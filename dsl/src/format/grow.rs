//! Layout of growth maps.

use super::{
    INDENT, WIDTH, expr_at, fill_pieces, flat, name_group, op_level, op_text, operand_levels,
};
use crate::ast::{
    ClauseKind, Formal, IndexItem, IndexList, Loop, RuleArg, RuleExpr, RuleExprKind, Text,
};

pub(super) fn head(name: &str, formals: &[Formal], from: &str, to: &str) -> String {
    let formals = match formals {
        [] => String::new(),
        formals => {
            let pieces: Vec<String> = formals.iter().map(super::formal).collect();
            format!("({})", pieces.join(", "))
        }
    };
    let line = format!("grow {name}{formals}: {from} -> {to}");
    if line.chars().count() + 2 <= WIDTH {
        return line;
    }
    // The line goes on after `:` and after the arrow.
    let inner = " ".repeat(INDENT);
    let short = format!("grow {name}{formals}:\n{inner}{from} -> {to}");
    if INDENT + from.chars().count() + to.chars().count() + 6 <= WIDTH {
        return short;
    }
    format!("grow {name}{formals}:\n{inner}{from} ->\n{inner}{to}")
}

/// What stands before an aligned `=`: the target of a rule.
pub(super) fn rule_head(clause: &ClauseKind) -> Option<String> {
    match clause {
        ClauseKind::Rule { target, .. } => Some(target.to_string()),
        ClauseKind::Rest => Some("rest".to_owned()),
        _ => None,
    }
}

/// The rest of a clause, from `column` on.
pub(super) fn clause(clause: &ClauseKind, indent: usize, column: usize) -> String {
    let quoted = |text: &Text| format!("\"{}\"", text.value);
    match clause {
        ClauseKind::Exactly => "preserves exactly".to_owned(),
        ClauseKind::Within(bound) => format!("preserves within {}", flat(bound, 0)),
        ClauseKind::Changes(reason) => format!("changes {}", quoted(reason)),
        ClauseKind::Seed(seed) => format!("seed {}", flat(seed, 0)),
        ClauseKind::Moments { reset: None } => "moments follow".to_owned(),
        ClauseKind::Moments { reset: Some(reason) } => format!("moments reset {}", quoted(reason)),
        ClauseKind::Setting { path, reason } => format!("setting {path} {}", quoted(reason)),
        ClauseKind::Rest => "src".to_owned(),
        ClauseKind::Drop { path, reason, loops } => {
            let dot = if path.segments.is_empty() { "" } else { "." };
            let reason = quoted(reason);
            format!("drop src{dot}{path} {reason}{}", loops_text(loops, indent, column))
        }
        ClauseKind::Given { name, value } => {
            let head = format!("given {} = ", name.name);
            let column = column + head.chars().count();
            head + &rule_at(value, 0, indent, column, 0)
        }
        ClauseKind::Gives { name, value } => {
            let name = name.as_ref().map_or(String::new(), |n| format!("{} = ", n.name));
            let head = format!("gives {name}");
            let column = column + head.chars().count();
            head + &rule_at(value, 0, indent, column, 0)
        }
        ClauseKind::Rule { value, loops, .. } => {
            let reserve =
                loops_text(loops, indent, 0).lines().next().map_or(0, |l| l.chars().count());
            let value = rule_at(value, 0, indent, column, reserve.min(WIDTH / 2));
            let end = super::last_line_width(&value, column);
            let loops = loops_text(loops, indent, end);
            value + &loops
        }
    }
}

/// ` for l in 0 .. 8`, once per loop.
fn loops_text(loops: &[Loop], indent: usize, column: usize) -> String {
    let mut text = String::new();
    let mut column = column;
    for item in loops {
        let variables: Vec<&str> = item.variables.iter().map(|v| v.name.as_str()).collect();
        let mut head = format!(" for {} in ", variables.join(", "));
        let lists: Vec<String> = item.lists.iter().map(list).collect();
        let (open, close) = if is_zip(item) { ("zip(", ")") } else { ("", "") };
        let line = format!("{head}{open}{}{close}", lists.join(", "));
        if column + line.chars().count() <= WIDTH || !is_zip(item) {
            column += line.chars().count();
            text.push_str(&line);
            continue;
        }
        head.push_str(open);
        let pieces = fill_pieces(
            &head,
            &lists,
            close,
            indent,
            0,
            Clone::clone,
            |piece: &String, _, _, _| piece.clone(),
        );
        column = super::last_line_width(&pieces, column);
        text.push_str(&pieces);
    }
    text
}

fn is_zip(item: &Loop) -> bool {
    item.lists.len() > 1 || item.variables.len() > 1
}

fn list(list: &IndexList) -> String {
    let items: Vec<String> = list.items.iter().map(item).collect();
    if list.bracketed { format!("[{}]", items.join(", ")) } else { items.join(", ") }
}

fn item(item: &IndexItem) -> String {
    match &item.end {
        Some(end) => format!("{} .. {}", flat(&item.start, 0), flat(end, 0)),
        None => flat(&item.start, 0),
    }
}

fn level(expr: &RuleExpr) -> u8 {
    match &expr.kind {
        RuleExprKind::Binary(op, ..) => op_level(*op),
        _ => 4,
    }
}

fn rule_flat(expr: &RuleExpr, least: u8) -> String {
    let text = match &expr.kind {
        RuleExprKind::Source(path) if path.segments.is_empty() => "src".to_owned(),
        RuleExprKind::Source(path) => format!("src.{path}"),
        RuleExprKind::Number { text, .. } => text.clone(),
        RuleExprKind::Name(name) => name.clone(),
        RuleExprKind::Negate(inner) => match inner.kind {
            RuleExprKind::Negate(_) => format!("-({})", rule_flat(inner, 0)),
            _ => format!("-{}", rule_flat(inner, 4)),
        },
        RuleExprKind::Binary(op, left, right) => {
            let (a, b) = operand_levels(*op);
            format!("{} {} {}", rule_flat(left, a), op_text(*op), rule_flat(right, b))
        }
        RuleExprKind::Call { callee, args } => {
            let args: Vec<String> = args.iter().map(flat_arg).collect();
            format!("{}({})", callee.name, args.join(", "))
        }
        RuleExprKind::Positions(positions) => list(positions),
    };
    if level(expr) < least { format!("({text})") } else { text }
}

fn flat_arg(arg: &RuleArg) -> String {
    match arg {
        RuleArg::Value(value) => rule_flat(value, 0),
        RuleArg::Named(name, value) => format!("{}: {}", name.name, rule_flat(value, 0)),
        RuleArg::Text(name, text) => format!("{}: \"{}\"", name.name, text.value),
        RuleArg::Over(axis, _) => format!("over {}", axis.name),
        RuleArg::Each(axis, _) => format!("each {}", axis.name),
        RuleArg::Map { from, to, .. } => format!("{} -> {}", name_group(from), name_group(to)),
        RuleArg::Range { axis, start, end, .. } => {
            format!("{}[{} .. {}]", axis.name, flat(start, 0), flat(end, 0))
        }
    }
}

fn rule_at(expr: &RuleExpr, least: u8, indent: usize, column: usize, tail: usize) -> String {
    let line = rule_flat(expr, least);
    if column + line.chars().count() + tail <= WIDTH {
        return line;
    }
    if let Some(plain) = expr.as_plain() {
        return expr_at(&plain, least, indent, column, tail);
    }
    match &expr.kind {
        RuleExprKind::Call { callee, args } if !args.is_empty() => {
            fill_pieces(&format!("{}(", callee.name), args, ")", indent, tail, flat_arg, arg_at)
        }
        RuleExprKind::Binary(op, left, right) => {
            let (a, b) = operand_levels(*op);
            let left = rule_at(left, a, indent, column, 2);
            let inner = " ".repeat(indent + INDENT);
            let right = rule_at(right, b, indent + INDENT, indent + INDENT, tail);
            let text = format!("{left} {}\n{inner}{right}", op_text(*op));
            if level(expr) < least { format!("({text})") } else { text }
        }
        _ => line,
    }
}

fn arg_at(arg: &RuleArg, indent: usize, column: usize, tail: usize) -> String {
    match arg {
        RuleArg::Value(value) => rule_at(value, 0, indent, column, tail),
        RuleArg::Named(name, value) => {
            let head = format!("{}: ", name.name);
            let column = column + head.chars().count();
            head + &rule_at(value, 0, indent, column, tail)
        }
        arg => flat_arg(arg),
    }
}
