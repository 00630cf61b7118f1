//! The one layout of `.llm` text.
//!
//! Comments, blank lines between members (one at most) and the spelling of numbers are kept;
//! everything else follows from the syntax tree, so formatting twice is formatting once. Lines
//! hold 100 columns where they can. In a run of parameters, sub-blocks or bindings that nothing
//! separates, `~` and `=` stand below each other.

mod grow;

use crate::ast::{
    Arg, AxisDef, AxisPattern, BinaryOp, DType, Expr, ExprKind, Formal, FormalKind, Ident, Member,
    Port, Require, Stmt, StorageClause, Target,
};
use crate::diag::{Diag, Severity};
use crate::layout::{self, Body, Comment, Layout, Node};
use crate::source::SourceId;
use crate::syntax::{self, Context, FileParser, Line};

const WIDTH: usize = 100;
const INDENT: usize = 4;

/// Lays out a source text.
///
/// # Errors
/// Text that does not parse is not changed: its diagnostics come back, with places in a source of
/// id 0.
pub fn format(text: &str) -> Result<String, Vec<Diag>> {
    let source = SourceId(0);
    let (_, diags) = syntax::parse(source, text);
    if diags.iter().any(|d| d.severity == Severity::Error) {
        return Err(diags);
    }
    let layout = layout::scan(source, text);
    let parser = FileParser::new(source, text, &layout);
    let mut printer = Printer { text, parser, out: String::new() };
    printer.nodes(&layout.nodes, Context::Top, 0);
    printer.end(&layout, &layout.end);
    Ok(printer.out)
}

/// An expression on one line.
pub(crate) fn expression(expr: &Expr) -> String {
    flat(expr, 0)
}

struct Printer<'a> {
    text: &'a str,
    parser: FileParser<'a>,
    out: String,
}

/// A line in print: what stands before an aligned operator, and the rest.
struct Printed {
    head: String,
    /// ` ~ ` or ` = `, where lines of a run are aligned at it, and the run's kind.
    operator: Option<(&'static str, RunKind)>,
    line: Line,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunKind {
    Param,
    Sub,
    Binding,
    Rule,
}

impl Printer<'_> {
    fn end(&mut self, layout: &Layout, comments: &[Comment]) {
        for (position, comment) in comments.iter().enumerate() {
            let after_item = position == 0 && !layout.nodes.is_empty();
            if comment.blank_before && (position > 0 || after_item) {
                self.out.push('\n');
            }
            self.comment(comment, 0, true);
        }
    }

    fn push_indent(&mut self, indent: usize) {
        self.out.extend(std::iter::repeat_n(' ', indent));
    }

    /// A comment on a line of its own.
    fn comment(&mut self, comment: &Comment, indent: usize, keep_doc: bool) {
        self.push_indent(indent);
        self.push_comment(comment, keep_doc);
        self.out.push('\n');
    }

    fn push_comment(&mut self, comment: &Comment, keep_doc: bool) {
        let text = self.text.get(comment.range.clone()).unwrap_or("").trim_end();
        // A `///` inside a line documents nothing; above the line it would.
        match text.strip_prefix("///") {
            Some(rest) if !keep_doc && !rest.starts_with('/') => {
                self.out.push_str("//");
                self.out.push_str(rest);
            }
            _ => self.out.push_str(text),
        }
    }

    fn nodes(&mut self, nodes: &[Node], context: Context, indent: usize) {
        let mut printed = Vec::with_capacity(nodes.len());
        for node in nodes {
            if let Some(line) = self.parser.line(node, context) {
                printed.push((node, prepare(line)));
            }
        }
        let mut first = 0;
        while first < printed.len() {
            let n = run_length(printed.get(first..).unwrap_or_default());
            let run = printed.get(first..first + n).unwrap_or_default();
            let widest = run.iter().map(|(_, p)| p.head.chars().count()).max().unwrap_or(0);
            for (offset, (node, line)) in run.iter().enumerate() {
                let before = (first + offset).checked_sub(1).and_then(|i| printed.get(i));
                let blank = wants_blank(before.map(|(_, p)| &p.line), &line.line, node, context);
                self.node(node, line, blank, if n > 1 { widest } else { 0 }, indent);
            }
            first += n;
        }
    }

    fn node(&mut self, node: &Node, printed: &Printed, blank: bool, widest: usize, indent: usize) {
        if blank {
            self.out.push('\n');
        }
        for (position, comment) in node.before.iter().enumerate() {
            if position > 0 && comment.blank_before {
                self.out.push('\n');
            }
            self.comment(comment, indent, true);
        }
        // A blank line after a comment detaches it; documentation is never detached.
        if node.blank_before && node.before.last().is_some_and(|c| !c.doc) {
            self.out.push('\n');
        }
        for comment in inner_comments(node) {
            self.comment(comment, indent, false);
        }
        self.push_indent(indent);
        self.line(printed, widest, indent, node.body.is_some());
        if let Some(body) = &node.body {
            self.body(node, body, printed, indent);
        } else if let Some(comment) = trailing_comment(node) {
            self.out.push(' ');
            self.push_comment(comment, true);
        }
        self.out.push('\n');
    }

    fn body(&mut self, node: &Node, body: &Body, printed: &Printed, indent: usize) {
        let trailing = node.comments.iter().filter(|c| c.range.start > body.open);
        let trailing: Vec<&Comment> = trailing.collect();
        if body.nodes.is_empty() && body.end.is_empty() && trailing.is_empty() {
            self.out.push_str(" {}");
        } else {
            self.out.push_str(" {");
            for comment in trailing {
                self.out.push(' ');
                self.push_comment(comment, true);
            }
            self.out.push('\n');
            let context = match printed.line {
                Line::StageHead(..) => Context::Stage,
                Line::ForwardHead(..) => Context::Forward,
                Line::ProbeHead(_) => Context::Probe,
                Line::GrowHead(..) => Context::Grow,
                _ => Context::Block,
            };
            self.nodes(&body.nodes, context, indent + INDENT);
            for (position, comment) in body.end.iter().enumerate() {
                if comment.blank_before && (position > 0 || !body.nodes.is_empty()) {
                    self.out.push('\n');
                }
                self.comment(comment, indent + INDENT, true);
            }
            self.push_indent(indent);
            self.out.push('}');
        }
        if let Some(comment) = &body.after {
            self.out.push(' ');
            self.push_comment(comment, true);
        }
    }

    fn line(&mut self, printed: &Printed, widest: usize, indent: usize, has_body: bool) {
        self.out.push_str(&printed.head);
        let mut column = indent + printed.head.chars().count();
        if let Some((operator, _)) = printed.operator {
            let pad = (indent + widest).saturating_sub(column);
            self.push_indent(pad);
            self.out.push_str(operator);
            column += pad + operator.len();
        }
        let tail = if has_body { 2 } else { 0 };
        let rest = rest_of_line(&printed.line, indent, column, tail);
        self.out.push_str(&rest);
    }
}

/// Comments inside a line: they move above it.
fn inner_comments(node: &Node) -> impl Iterator<Item = &Comment> {
    node.comments.iter().filter(|c| c.range.start < node.range.end)
}

fn trailing_comment(node: &Node) -> Option<&Comment> {
    node.comments.iter().find(|c| c.range.start >= node.range.end)
}

fn wants_blank(before: Option<&Line>, line: &Line, node: &Node, context: Context) -> bool {
    let Some(before) = before else { return false };
    let in_source = node.before.first().map_or(node.blank_before, |c| c.blank_before);
    let imports = matches!((before, line), (Line::Import(_), Line::Import(_)));
    in_source || (context == Context::Top && !imports)
}

/// How many of the first lines are aligned with each other.
fn run_length(lines: &[(&Node, Printed)]) -> usize {
    let Some((_, first)) = lines.first() else {
        return 0;
    };
    let Some((_, kind)) = first.operator else {
        return 1;
    };
    let rest = lines.iter().skip(1).take_while(|(node, printed)| {
        printed.operator.is_some_and(|(_, k)| k == kind)
            && node.before.is_empty()
            && !node.blank_before
            && inner_comments(node).next().is_none()
    });
    1 + rest.count()
}

fn prepare(line: Line) -> Printed {
    let (head, operator) = match &line {
        Line::Binding(name, _) => (name.name.clone(), Some((" = ", RunKind::Binding))),
        Line::Clause(clause) => match grow::rule_head(clause) {
            Some(head) => (head, Some((" = ", RunKind::Rule))),
            None => (String::new(), None),
        },
        Line::Member(member) => match &**member {
            Member::Param(param) => {
                let axes = names(&param.axes);
                let head = format!("param {}[{axes}]{}", param.name.name, dtype(param.dtype));
                (head, Some((" ~ ", RunKind::Param)))
            }
            Member::Sub(sub) => (format!("sub {}", sub.name.name), Some((" = ", RunKind::Sub))),
            _ => (String::new(), None),
        },
        _ => (String::new(), None),
    };
    Printed { head, operator, line }
}

/// What follows the head, from `column` on. `tail` columns are kept free at its end.
fn rest_of_line(line: &Line, indent: usize, column: usize, tail: usize) -> String {
    let wrap = |expr: &Expr, column: usize, tail: usize| expr_at(expr, 0, indent, column, tail);
    match line {
        Line::Import(path) => format!("import \"{}\"", path.value),
        Line::BlockHead(name, formals) => {
            let pieces: Vec<String> = formals.iter().map(formal).collect();
            format!("block {}", head_list(&name.name, &pieces, "", indent, 6, tail))
        }
        Line::StageHead(name, None) => format!("stage {}", name.name),
        Line::StageHead(name, Some(parent)) => {
            format!("stage {} extends {}", name.name, parent.name)
        }
        Line::GrowHead(name, formals, from, to) => {
            grow::head(&name.name, formals, &flat(from, 0), &flat(to, 0))
        }
        Line::ProbeHead(_) => "probe".to_owned(),
        Line::Clause(clause) => grow::clause(clause, indent, column),
        Line::Binding(_, value) => wrap(value, column, tail),
        Line::Member(member) => member_rest(member, indent, column),
        Line::ForwardHead(inputs, outputs, _) => {
            let pieces: Vec<String> = inputs.iter().map(port).collect();
            let after = format!(" -> {}", outputs_text(outputs));
            head_list("forward", &pieces, &after, indent, 0, tail)
        }
        Line::Stmt(stmt) => stmt_text(stmt, indent),
        Line::Result(values) => match values.as_slice() {
            [value] => wrap(value, column, tail),
            values => fill("(", values, ")", indent, column, tail),
        },
    }
}

fn member_rest(member: &Member, indent: usize, column: usize) -> String {
    match member {
        Member::Axis(def) => axis_text(def, indent),
        Member::Param(param) => {
            let mut text = param.init.name.name.clone();
            if !param.init.args.is_empty() {
                let args: Vec<String> = param.init.args.iter().map(|a| flat(a, 0)).collect();
                text.push_str(&format!("({})", args.join(", ")));
            }
            match &param.storage {
                Some(StorageClause::Frozen(reason)) => {
                    text.push_str(&format!(" frozen \"{}\"", reason.value));
                }
                Some(StorageClause::Quantized(format)) => {
                    text.push_str(&format!(" quantized {}", format.name));
                }
                Some(StorageClause::Adapter(_)) => text.push_str(" adapter"),
                None => {}
            }
            if let Some(active) = &param.active {
                text.push_str(&format!(" active {} of {}", flat(&active.count, 0), active.of.name));
            }
            text
        }
        Member::Require(require) => require_text(require),
        Member::State(state) => {
            let head = format!("state {}[{}] = ", state.name.name, names(&state.axes));
            let column = indent + head.chars().count();
            head + &expr_at(&state.start, 0, indent, column, 0)
        }
        Member::Table(table) => {
            let axes = names(&table.axes);
            format!("table {}[{axes}] from \"{}\"", table.name.name, table.from.value)
        }
        Member::Sub(sub) => {
            let tail = if sub.training_only { " training_only" } else { "" };
            expr_at(&sub.block, 0, indent, column, tail.len()) + tail
        }
        Member::Stack(stack) => {
            let head = format!("stack {} = ", stack.name.name);
            let list = flat(&stack.list, 0);
            let tail = format!(" for {} in {list}", stack.item.name);
            let column = indent + head.chars().count();
            // A list that is itself too long is broken after `in`.
            let reserve = tail.chars().count();
            let block = expr_at(&stack.block, 0, indent, column, reserve.min(WIDTH / 2));
            let start = last_line_width(&block, column) + reserve - list.chars().count();
            let list = expr_at(&stack.list, 0, indent, start, 0);
            let text = format!("{head}{block} for {} in {list}", stack.item.name);
            let Some(integrator) = &stack.integrator else { return text };
            let text = text + " integrate ";
            let start = last_line_width(&text, indent);
            text + &expr_at(integrator, 0, indent, start, 0)
        }
        // Printed as the head of its body.
        Member::Forward(_) => String::new(),
    }
}

fn require_text(require: &Require) -> String {
    let conditions: Vec<String> = require.conditions.iter().map(|c| flat(c, 0)).collect();
    format!("require {}, \"{}\"", conditions.join(" and "), require.reason.value)
}

fn axis_text(def: &AxisDef, indent: usize) -> String {
    let head = format!("axis {} = ", def.name.name);
    let column = indent + head.chars().count();
    head + &expr_at(&def.size, 0, indent, column, 0)
}

fn stmt_text(stmt: &Stmt, indent: usize) -> String {
    let (head, value) = match stmt {
        Stmt::Axis(def) => return axis_text(def, indent),
        Stmt::Let { targets, value } => {
            let targets: Vec<String> = targets.iter().map(target).collect();
            (format!("{} = ", targets.join(", ")), value)
        }
        Stmt::Update { name, value } => (format!("update {} = ", name.name), value),
        Stmt::Penalty { name, value } => (format!("penalty {} = ", name.name), value),
    };
    let column = indent + head.chars().count();
    head + &expr_at(value, 0, indent, column, 0)
}

fn last_line_width(text: &str, column: usize) -> usize {
    match text.rsplit_once('\n') {
        Some((_, last)) => last.chars().count(),
        None => column + text.chars().count(),
    }
}

fn names(idents: &[Ident]) -> String {
    let names: Vec<&str> = idents.iter().map(|i| i.name.as_str()).collect();
    names.join(", ")
}

/// `d`, or `(s, d)` for several.
fn name_group(idents: &[Ident]) -> String {
    match idents {
        [one] => one.name.clone(),
        several => format!("({})", names(several)),
    }
}

fn dtype(dtype: Option<DType>) -> &'static str {
    match dtype {
        None => "",
        Some(DType::Act) => ": act",
        Some(DType::F32) => ": f32",
        Some(DType::Index) => ": index",
        Some(DType::Bool) => ": bool",
    }
}

fn formal(formal: &Formal) -> String {
    let kind = match formal.kind {
        FormalKind::Axis => "",
        FormalKind::Number => ": number",
        FormalKind::Block => ": block",
        FormalKind::Blocks => ": blocks",
        FormalKind::Numbers => ": numbers",
        FormalKind::Integrator => ": integrator",
    };
    let default = formal.default.as_ref().map(|d| format!(" = {}", flat(d, 0)));
    format!("{}{kind}{}", formal.name.name, default.unwrap_or_default())
}

fn pattern(pattern: &AxisPattern) -> String {
    let names = names(&pattern.axes);
    match (pattern.open, names.is_empty()) {
        (true, true) => "[..]".to_owned(),
        (true, false) => format!("[.., {names}]"),
        (false, _) => format!("[{names}]"),
    }
}

fn port(port: &Port) -> String {
    let name = port.name.as_ref().map_or("", |n| n.name.as_str());
    format!("{name}{}{}", pattern(&port.axes), dtype(port.dtype))
}

fn outputs_text(outputs: &[Port]) -> String {
    match outputs {
        [one] if one.name.is_none() => port(one),
        several => {
            let ports: Vec<String> = several.iter().map(port).collect();
            format!("({})", ports.join(", "))
        }
    }
}

fn target(target: &Target) -> String {
    format!("{}{}", target.name.name, target.axes.as_ref().map(pattern).unwrap_or_default())
}

/// `name(pieces)after`, with the pieces on lines of their own where it is too long.
fn head_list(
    name: &str,
    pieces: &[String],
    after: &str,
    indent: usize,
    before: usize,
    tail: usize,
) -> String {
    let line = format!("{name}({}){after}", pieces.join(", "));
    if indent + before + line.chars().count() + tail <= WIDTH || pieces.is_empty() {
        return line;
    }
    let inner = " ".repeat(indent + INDENT);
    let mut text = format!("{name}(\n{inner}");
    let mut column = indent + INDENT;
    for (position, piece) in pieces.iter().enumerate() {
        let width = piece.chars().count() + 1;
        if position > 0 && column + 1 + width > WIDTH {
            text.push_str(&format!(",\n{inner}"));
            column = indent + INDENT;
        } else if position > 0 {
            text.push_str(", ");
            column += 1;
        }
        text.push_str(piece);
        column += width;
    }
    text.push_str(&format!("\n{}){after}", " ".repeat(indent)));
    text
}

// Expressions -----------------------------------------------------------------------------------

/// How tightly an expression holds together: comparisons, sums, products, the rest.
fn level(expr: &Expr) -> u8 {
    match &expr.kind {
        ExprKind::Binary(op, ..) => op_level(*op),
        _ => 4,
    }
}

fn op_level(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Less | BinaryOp::LessEqual | BinaryOp::Greater | BinaryOp::GreaterEqual => 1,
        BinaryOp::Add | BinaryOp::Sub => 2,
        BinaryOp::Mul | BinaryOp::Div => 3,
    }
}

fn op_text(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Less => "<",
        BinaryOp::LessEqual => "<=",
        BinaryOp::Greater => ">",
        BinaryOp::GreaterEqual => ">=",
    }
}

/// The level that the operands of an operator need: operators group to the left, and
/// comparisons not at all.
fn operand_levels(op: BinaryOp) -> (u8, u8) {
    let level = op_level(op);
    (if level == 1 { 2 } else { level }, level + 1)
}

/// On one line. Brackets are put where `least` asks for them.
fn flat(expr: &Expr, least: u8) -> String {
    let text = match &expr.kind {
        ExprKind::Number { text, .. } => text.clone(),
        ExprKind::Name(name) => name.clone(),
        ExprKind::Negate(inner) => format!("-{}", negated(inner)),
        ExprKind::Binary(op, left, right) => {
            let (a, b) = operand_levels(*op);
            format!("{} {} {}", flat(left, a), op_text(*op), flat(right, b))
        }
        ExprKind::Call { callee, args } => {
            let args: Vec<String> = args.iter().map(flat_arg).collect();
            format!("{}({})", callee.name, args.join(", "))
        }
        ExprKind::List(items) => {
            let items: Vec<String> = items.iter().map(|i| flat(i, 0)).collect();
            format!("[{}]", items.join(", "))
        }
    };
    if level(expr) < least { format!("({text})") } else { text }
}

/// `-` stands once before a primary expression.
fn negated(inner: &Expr) -> String {
    match inner.kind {
        ExprKind::Negate(_) => format!("({})", flat(inner, 0)),
        _ => flat(inner, 4),
    }
}

fn flat_arg(arg: &Arg) -> String {
    match arg {
        Arg::Value(value) => flat(value, 0),
        Arg::Named(name, value) => format!("{}: {}", name.name, flat(value, 0)),
        Arg::Over(axes, _) => format!("over {}", name_group(axes)),
        Arg::Map { from, to, .. } => format!("{} -> {}", name_group(from), name_group(to)),
        Arg::Range { axis, start, end, to, .. } => {
            let (start, end) = (flat(start, 0), flat(end, 0));
            format!("{}[{start} .. {end}] -> {}", axis.name, to.name)
        }
        Arg::At { axis, index, .. } => format!("{}[{}]", axis.name, flat(index, 0)),
    }
}

/// From `column` on, over several lines where one does not hold it. Lines after the first are
/// indented by one step more than `indent`.
fn expr_at(expr: &Expr, least: u8, indent: usize, column: usize, tail: usize) -> String {
    let line = flat(expr, least);
    if column + line.chars().count() + tail <= WIDTH {
        return line;
    }
    if level(expr) < least {
        return format!("({})", expr_at(expr, 0, indent, column + 1, tail + 1));
    }
    match &expr.kind {
        ExprKind::Number { .. } | ExprKind::Name(_) => line,
        ExprKind::Negate(inner) => match inner.kind {
            ExprKind::Negate(_) | ExprKind::Binary(..) => {
                format!("-({})", expr_at(inner, 0, indent, column + 2, tail + 1))
            }
            _ => format!("-{}", expr_at(inner, 4, indent, column + 1, tail)),
        },
        ExprKind::Binary(op, ..) => operands(expr, *op, indent, column, tail),
        ExprKind::Call { args, .. } if args.is_empty() => line,
        ExprKind::Call { callee, args } => {
            fill_pieces(&format!("{}(", callee.name), args, ")", indent, tail, flat_arg, arg_at)
        }
        ExprKind::List(items) => fill("[", items, "]", indent, column, tail),
    }
}

fn fill(
    open: &str,
    items: &[Expr],
    close: &str,
    indent: usize,
    column: usize,
    tail: usize,
) -> String {
    let flat: Vec<String> = items.iter().map(|i| flat(i, 0)).collect();
    let line = format!("{open}{}{close}", flat.join(", "));
    if column + line.chars().count() + tail <= WIDTH || items.is_empty() {
        return line;
    }
    let at = |item: &Expr, indent, column, tail| expr_at(item, 0, indent, column, tail);
    fill_pieces(open, items, close, indent, tail, |i| self::flat(i, 0), at)
}

/// `open`, then as many pieces on each line as it holds, then `close`.
fn fill_pieces<T>(
    open: &str,
    items: &[T],
    close: &str,
    indent: usize,
    tail: usize,
    flat: impl Fn(&T) -> String,
    at: impl Fn(&T, usize, usize, usize) -> String,
) -> String {
    let inner = indent + INDENT;
    let start = format!("\n{}", " ".repeat(inner));
    let mut text = open.to_owned() + &start;
    let mut column = inner;
    for (position, item) in items.iter().enumerate() {
        let last = position + 1 == items.len();
        let after = if last { close.len() + tail } else { 1 };
        let piece = flat(item);
        let width = piece.chars().count();
        if position > 0 {
            text.push(',');
            if column + 2 + width + after > WIDTH {
                text.push_str(&start);
                column = inner;
            } else {
                text.push(' ');
                column += 2;
            }
        }
        if column + width + after <= WIDTH {
            text.push_str(&piece);
            column += width;
        } else {
            let piece = at(item, inner, column, after);
            column = last_line_width(&piece, column);
            text.push_str(&piece);
        }
    }
    text + close
}

fn arg_at(arg: &Arg, indent: usize, column: usize, tail: usize) -> String {
    match arg {
        Arg::Value(value) => expr_at(value, 0, indent, column, tail),
        Arg::Named(name, value) => {
            let head = format!("{}: ", name.name);
            let column = column + head.chars().count();
            head + &expr_at(value, 0, indent, column, tail)
        }
        arg => flat_arg(arg),
    }
}

/// A chain of operators of one level, broken after an operator.
fn operands(expr: &Expr, op: BinaryOp, indent: usize, column: usize, tail: usize) -> String {
    let chain_level = op_level(op);
    let mut chain: Vec<(&Expr, u8, &str)> = Vec::new();
    let mut at = expr;
    // From the right: an operand, and the operator before it.
    while let ExprKind::Binary(op, left, right) = &at.kind
        && op_level(*op) == chain_level
    {
        let (left_level, right_level) = operand_levels(*op);
        chain.push((right, right_level, op_text(*op)));
        at = left;
        if chain_level == 1 {
            chain.push((at, left_level, ""));
            break;
        }
    }
    if chain_level != 1 {
        chain.push((at, chain_level, ""));
    }
    chain.reverse();
    let inner = indent + INDENT;
    let mut text = String::new();
    let mut column = column;
    let n = chain.len();
    for (position, (operand, least, op)) in chain.into_iter().enumerate() {
        // The next operator stands on the same line.
        let after = if position + 1 == n { tail } else { 2 };
        let width = flat(operand, least).chars().count();
        if position > 0 {
            text.push(' ');
            text.push_str(op);
            column += 2;
            if column + 1 + width + after > WIDTH {
                text.push('\n');
                text.push_str(&" ".repeat(inner));
                column = inner;
            } else {
                text.push(' ');
                column += 1;
            }
        }
        let piece = expr_at(operand, least, inner, column, after);
        column = last_line_width(&piece, column);
        text.push_str(&piece);
    }
    text
}
