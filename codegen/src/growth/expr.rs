//! Rules as written to rules with types: what stands on the right of `=`, for a tensor whose axes
//! are known.

use super::codes;
use super::numbers::Names;
use super::pattern::{self, Captures, Pattern};
use super::rule::{Factor, Rule, RuleKind};
use super::tree::{Side, Tensor};
use crate::ir::Type;
use lightc_dsl::ast::{BinaryOp, DType, Expr, Ident, RuleArg, RuleExpr, RuleExprKind, Text};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::Axis;
use lightc_dsl::names::closest;
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use lightc_numerics::draw::Law;

/// Functions of rules, with their form.
const FUNCTIONS: [(&str, &str); 18] = [
    ("zeros", "zeros"),
    ("ones", "ones"),
    ("constant", "constant(0.5)"),
    ("normal", "normal(0.02)"),
    ("uniform", "uniform(0, 1)"),
    ("concat", "concat(src.a, src.b, over f)"),
    ("tile", "tile(src.a, over e)"),
    ("interleave", "interleave(src.a, over e)"),
    ("repeat", "repeat(src.a, over e)"),
    ("slice", "slice(src.a, f[0 .. 8])"),
    ("select", "select(src.a, [0, 2, 1], over h)"),
    ("subset", "subset(src.a, over f, each e)"),
    ("redraw", "redraw(src.a, keep: f / 2, over f, each e)"),
    ("noise", "noise(src.a, factor: 0.05)"),
    ("rotate", "rotate(src.a, over d, seed: 42)"),
    ("rename", "rename(src.a, f -> g)"),
    ("split", "split(src.a, e -> (g, m))"),
    ("merge", "merge(src.a, (g, m) -> e)"),
];

/// The axes that a rule has to give; a size that is open follows from the rule.
#[derive(Clone, Debug)]
struct Want {
    dtype: DType,
    axes: Vec<(String, Option<Size>)>,
}

impl Want {
    fn size(&self, axis: &str) -> Option<&Size> {
        self.axes.iter().find(|(name, _)| name == axis).and_then(|(_, size)| size.as_ref())
    }

    fn has(&self, axis: &str) -> bool {
        self.axes.iter().any(|(name, _)| name == axis)
    }

    fn with(&self, axis: &str, size: Option<Size>) -> Want {
        let mut want = self.clone();
        for (name, known) in &mut want.axes {
            if name == axis {
                known.clone_from(&size);
            }
        }
        want
    }

    fn without(&self, axis: &str) -> Want {
        let mut want = self.clone();
        want.axes.retain(|(name, _)| name != axis);
        want
    }

    fn text(&self) -> String {
        let axes = self.axes.iter().map(|(name, size)| match size {
            Some(size) if *size != Size::symbol(name) => format!("{name}={size}"),
            _ => name.clone(),
        });
        format!("[{}]", axes.collect::<Vec<_>>().join(", "))
    }

    fn ty(&self) -> Option<Type> {
        let axes = self
            .axes
            .iter()
            .map(|(name, size)| Some(Axis { name: name.clone(), size: size.clone()? }));
        Some(Type::new(self.dtype, axes.collect::<Option<_>>()?))
    }
}

/// Makes the rule of one target tensor.
pub(super) struct Builder<'a> {
    pub(super) source: &'a Side,
    /// Where `src` is.
    pub(super) prefix: &'a str,
    /// Before keys of streams.
    pub(super) key_prefix: &'a str,
    pub(super) names: &'a Names,
    /// What the wildcards of the target's pattern stand for.
    pub(super) captures: &'a Captures,
    pub(super) target: &'a Tensor,
    /// Name of the target stage.
    pub(super) stage: &'a str,
    pub(super) diags: Vec<Diag>,
    /// Source tensors that are read.
    pub(super) used: Vec<String>,
    /// Something is drawn, here first.
    pub(super) draws: Option<Span>,
    n_draws: usize,
}

impl<'a> Builder<'a> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        source: &'a Side,
        prefix: &'a str,
        key_prefix: &'a str,
        names: &'a Names,
        captures: &'a Captures,
        target: &'a Tensor,
        stage: &'a str,
    ) -> Self {
        Builder {
            source,
            prefix,
            key_prefix,
            names,
            captures,
            target,
            stage,
            diags: Vec::new(),
            used: Vec::new(),
            draws: None,
            n_draws: 0,
        }
    }

    /// The rule; `None` after reporting why there is none.
    pub(super) fn rule(&mut self, expr: &RuleExpr) -> Option<Rule> {
        let axes = &self.target.ty.axes;
        let axes = axes.iter().map(|a| (a.name.clone(), Some(a.size.clone()))).collect();
        self.check(expr, &Want { dtype: self.target.ty.dtype, axes })
    }

    fn report(&mut self, diag: Diag) {
        let text = format!("`{}` of `{}` is {}", self.target.path, self.stage, self.target.ty);
        let diag = match self.target.span {
            Some(span) => diag.with_related(span, text),
            None => diag,
        };
        self.diags.push(diag);
    }

    fn fail<T>(&mut self, diag: Diag) -> Option<T> {
        self.report(diag);
        None
    }

    fn check(&mut self, expr: &RuleExpr, want: &Want) -> Option<Rule> {
        match &expr.kind {
            RuleExprKind::Source(path) => self.source_tensor(path, expr.span, want),
            RuleExprKind::Number { value, .. } => self.fill(*value, expr.span, want),
            RuleExprKind::Name(name) => match name.as_str() {
                "zeros" => self.fill(0.0, expr.span, want),
                "ones" => self.fill(1.0, expr.span, want),
                _ => {
                    let value = self.number(expr)?;
                    self.fill(value, expr.span, want)
                }
            },
            RuleExprKind::Negate(of) => {
                let of = self.check(of, want)?;
                Some(scaled(of, Factor::number(-1.0), expr.span))
            }
            RuleExprKind::Binary(op, left, right) => self.binary(*op, left, right, expr, want),
            RuleExprKind::Call { callee, args } => self.call(callee, args, expr.span, want),
            RuleExprKind::Positions(_) => self.fail(
                Diag::error(codes::ARGUMENTS, "positions are no tensor", expr.span, "a list")
                    .with_help("write `select(src.path, [0, 2, 1], over axis)`"),
            ),
        }
    }

    fn binary(
        &mut self,
        op: BinaryOp,
        left: &RuleExpr,
        right: &RuleExpr,
        expr: &RuleExpr,
        want: &Want,
    ) -> Option<Rule> {
        let span = expr.span;
        match (op, factor_form(left), factor_form(right)) {
            (BinaryOp::Mul, Some(factor), None) => self.scale(right, &factor, false, span, want),
            (BinaryOp::Mul, None, Some(factor)) => self.scale(left, &factor, false, span, want),
            (BinaryOp::Div, None, Some(factor)) => self.scale(left, &factor, true, span, want),
            (_, Some(_), Some(_)) => {
                let value = self.number(expr)?;
                self.fill(value, span, want)
            }
            (BinaryOp::Add | BinaryOp::Sub, _, _) => {
                let (a, b) = (self.check(left, want), self.check(right, want));
                let (a, mut b) = (a?, b?);
                if op == BinaryOp::Sub {
                    b = scaled(b, Factor::number(-1.0), right.span);
                }
                let ty = a.ty.clone();
                let kind = RuleKind::Add { left: Box::new(a), right: Box::new(b) };
                Some(Rule { ty, kind, span: Some(span) })
            }
            _ => self.fail(
                Diag::error(
                    codes::ARGUMENTS,
                    "tensors are added, subtracted, and scaled by numbers",
                    span,
                    "a product of tensors",
                )
                .with_help("one side of `*`, and the right side of `/`, is a number"),
            ),
        }
    }

    fn scale(
        &mut self,
        of: &RuleExpr,
        factor: &Expr,
        divides: bool,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let of = self.check(of, want);
        let factor = match self.names.factor(factor) {
            Ok(factor) => factor,
            Err(diag) => return self.fail(*diag),
        };
        let factor = if divides { factor.inverse() } else { factor };
        Some(scaled(of?, factor, span))
    }

    fn number(&mut self, expr: &RuleExpr) -> Option<f64> {
        let Some(plain) = expr.as_plain() else {
            return self.fail(
                Diag::error(codes::ARGUMENTS, "a number is wanted here", expr.span, "a tensor")
                    .with_help("numbers are made of literals, formals and sizes"),
            );
        };
        match self.names.number(&plain) {
            Ok(number) => Some(number),
            Err(diag) => self.fail(*diag),
        }
    }

    /// The type that a constant takes on.
    fn known(&mut self, span: Span, want: &Want) -> Option<Type> {
        let ty = want.ty();
        if ty.is_none() {
            self.report(
                Diag::error(
                    codes::SIZE,
                    format!("the size of this part of {} is not known", want.text()),
                    span,
                    "takes its size from what is around it",
                )
                .with_help("in a `concat`, one part at most takes what is left"),
            );
        }
        ty
    }

    fn fill(&mut self, value: f64, span: Span, want: &Want) -> Option<Rule> {
        let ty = self.known(span, want)?;
        Some(Rule { ty, kind: RuleKind::Fill { value }, span: Some(span) })
    }

    fn draw(&mut self, law: Law, key: Option<&Text>, span: Span, want: &Want) -> Option<Rule> {
        let ty = self.known(span, want)?;
        let key = self.key(key, span)?;
        Some(Rule { ty, kind: RuleKind::Draw { law, key }, span: Some(span) })
    }

    /// The name of a stream: the written one under the prefix of an applied map, with `{l}`
    /// replaced, or else the target's path.
    fn key(&mut self, key: Option<&Text>, span: Span) -> Option<String> {
        self.draws.get_or_insert(span);
        let Some(text) = key else {
            let n = self.n_draws;
            self.n_draws += 1;
            let path = &self.target.path;
            return Some(if n == 0 { path.clone() } else { format!("{path}#{n}") });
        };
        let mut out = self.key_prefix.to_owned();
        let mut rest = text.value.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (name, tail) = after.split_once('}').unwrap_or((after, ""));
            let Some(value) = self.names.variables.get(name) else {
                return self.fail(
                    Diag::error(
                        codes::VARIABLES,
                        format!("`{name}` is no index variable of this rule"),
                        text.span,
                        "in this key",
                    )
                    .with_help("a key holds text and index variables, as in \"neurons.{l}\""),
                );
            };
            out.push_str(before);
            out.push_str(&value.to_string());
            rest = tail;
        }
        out.push_str(rest);
        Some(out)
    }

    fn source_tensor(
        &mut self,
        path: &lightc_dsl::ast::Path,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let pattern = match Pattern::new(self.prefix, path, self.names) {
            Ok(pattern) => pattern,
            Err(diag) => return self.fail(*diag),
        };
        let filled = match pattern.wildcards() {
            0 => Some(pattern.text()),
            _ => pattern.fill(self.captures),
        };
        let Some(found) = filled else {
            return self.fail(
                Diag::error(
                    codes::WILDCARDS,
                    format!(
                        "`src.{path}` has {} wildcards, and the target's path has {}",
                        pattern.wildcards(),
                        self.captures.len()
                    ),
                    span,
                    "wildcards correspond in order",
                )
                .with_help("write the same wildcards in the same order on both sides"),
            );
        };
        let Some(tensor) = self.source.tensor(&found) else {
            return self.no_source(&found, span, pattern.wildcards() > 0);
        };
        self.used.push(found);
        let tensor = tensor.clone();
        self.same_kind(&tensor, span)?;
        self.leaf(&tensor, span, want)
    }

    fn no_source(&mut self, found: &str, span: Span, wild: bool) -> Option<Rule> {
        let is_node = self.source.nodes.contains_key(found);
        if is_node {
            return self.fail(
                Diag::error(
                    codes::UNKNOWN_PATH,
                    format!("`{found}` of `{}` is a block, not a tensor", self.source.model.name),
                    span,
                    "a block",
                )
                .with_help(format!("write `src.{found}.**` for all its tensors")),
            );
        }
        let mut diag = pattern::unknown(self.source, found, span);
        if wild {
            diag.code = codes::WILDCARDS;
            diag.message = format!(
                "`{}` has `{}`, and `{}` has no `{found}`",
                self.stage, self.target.path, self.source.model.name
            );
            diag.help =
                Some(format!("give `{}` a rule of its own, and name the others", self.target.path));
        }
        self.fail(diag)
    }

    /// A parameter is grown from parameters, a state from states.
    fn same_kind(&mut self, tensor: &Tensor, span: Span) -> Option<()> {
        if tensor.kind() == self.target.kind() {
            return Some(());
        }
        let mut diag = Diag::error(
            codes::KIND,
            format!(
                "`{}` is a {} of `{}`, and `{}` is a {} of `{}`",
                self.target.path,
                self.target.kind(),
                self.stage,
                tensor.path,
                tensor.kind(),
                self.source.model.name
            ),
            span,
            format!("a {}", tensor.kind()),
        );
        if let Some(declared) = tensor.span {
            diag = diag.with_related(declared, "declared here");
        }
        self.fail(diag.with_help(format!(
            "start it anew, as in `{} = zeros`, and `drop src.{} \"reason\"`",
            self.target.path, tensor.path
        )))
    }

    /// A source tensor where axes are wanted: the same set of axes, in whatever order.
    fn leaf(&mut self, tensor: &Tensor, span: Span, want: &Want) -> Option<Rule> {
        let has: Vec<&str> = tensor.ty.axes.iter().map(|a| a.name.as_str()).collect();
        let fits = has.len() == want.axes.len() && has.iter().all(|axis| want.has(axis));
        let mut diags = Vec::new();
        if !fits {
            diags.push(self.wrong_axes(tensor, span, want));
        } else {
            for axis in &tensor.ty.axes {
                if let Some(size) = want.size(&axis.name)
                    && *size != axis.size
                {
                    diags.push(self.wrong_size(tensor, axis, size, span));
                }
            }
        }
        if !diags.is_empty() {
            diags.into_iter().for_each(|diag| self.report(diag));
            return None;
        }
        let kind = RuleKind::Source { path: tensor.path.clone() };
        let rule = Rule { ty: tensor.ty.clone(), kind, span: Some(span) };
        let same = has.iter().zip(&want.axes).all(|(a, (b, _))| a == b);
        if same {
            return Some(rule);
        }
        let axes = want.axes.iter().filter_map(|(name, _)| tensor.ty.axis(name).cloned());
        let ty = Type::new(tensor.ty.dtype, axes.collect());
        Some(Rule { ty, kind: RuleKind::Permute { of: Box::new(rule) }, span: Some(span) })
    }

    fn wrong_axes(&self, tensor: &Tensor, span: Span, want: &Want) -> Diag {
        let mut diag = Diag::error(
            codes::AXES,
            format!(
                "`{}` of `{}` is {}, and {} is wanted here",
                tensor.path,
                self.source.model.name,
                tensor.ty,
                want.text()
            ),
            span,
            "other axes",
        );
        if let Some(declared) = tensor.span {
            diag = diag.with_related(declared, format!("`{}` of the source", tensor.path));
        }
        let lacks = want.axes.iter().find(|(name, _)| !tensor.ty.has(name));
        let extra = tensor.ty.axes.iter().find(|axis| !want.has(&axis.name));
        match (lacks, extra) {
            (Some((name, _)), Some(axis)) => diag.with_help(format!(
                "where the two are one axis: `rename({}, {} -> {name})`",
                "src....", axis.name
            )),
            (Some((name, _)), None) => {
                diag.with_help(format!("`repeat(..., over {name})` gives every position the same"))
            }
            (None, Some(axis)) => {
                diag.with_help(format!("`{}` has no place in the target", axis.name))
            }
            (None, None) => diag,
        }
    }

    fn wrong_size(&self, tensor: &Tensor, axis: &Axis, wanted: &Size, span: Span) -> Diag {
        let mut diag = Diag::error(
            codes::SIZE,
            format!(
                "axis `{}` of `{}` has size {} in `{}`, and {wanted} is wanted here",
                axis.name, tensor.path, axis.size, self.source.model.name
            ),
            span,
            format!("{} positions", axis.size),
        );
        if let Some(declared) = tensor.span {
            diag = diag.with_related(declared, format!("`{}` of the source", tensor.path));
        }
        let smaller = match (axis.size.as_constant(), wanted.as_constant()) {
            (Some(have), Some(want)) => have < want,
            _ => true,
        };
        let name = &axis.name;
        diag.with_help(match smaller {
            true => {
                format!("`concat(..., zeros, over {name})` adds positions, `tile` repeats them")
            }
            false => format!("`subset(..., over {name})` or `slice` takes fewer positions"),
        })
    }
}

impl Factor {
    fn inverse(&self) -> Factor {
        let sizes = self.sizes.iter().map(|(size, half)| (size.clone(), -half)).collect();
        Factor { number: 1.0 / self.number, sizes }
    }
}

pub(super) fn scaled(of: Rule, factor: Factor, span: Span) -> Rule {
    let ty = of.ty.clone();
    Rule { ty, kind: RuleKind::Scale { of: Box::new(of), factor }, span: Some(span) }
}

/// The expression as a number, where it can be one and not a tensor.
fn factor_form(expr: &RuleExpr) -> Option<Expr> {
    fn is_number(expr: &RuleExpr) -> bool {
        match &expr.kind {
            RuleExprKind::Number { .. } => true,
            RuleExprKind::Name(name) => name != "zeros" && name != "ones",
            RuleExprKind::Negate(inner) => is_number(inner),
            RuleExprKind::Binary(_, left, right) => is_number(left) && is_number(right),
            RuleExprKind::Call { callee, .. } => matches!(callee.name.as_str(), "sqrt" | "size"),
            RuleExprKind::Source(_) | RuleExprKind::Positions(_) => false,
        }
    }
    if is_number(expr) { expr.as_plain() } else { None }
}

/// A part that takes whatever size is left.
fn is_open(expr: &RuleExpr) -> bool {
    match &expr.kind {
        RuleExprKind::Number { .. } | RuleExprKind::Name(_) => true,
        RuleExprKind::Negate(of) => is_open(of),
        RuleExprKind::Binary(_, left, right) => is_open(left) && is_open(right),
        RuleExprKind::Call { callee, args } => match callee.name.as_str() {
            "constant" | "normal" | "uniform" => true,
            "tile" | "interleave" | "repeat" | "subset" => true,
            "rename" | "noise" => args.iter().all(|arg| match arg {
                RuleArg::Value(value) => is_open(value),
                _ => true,
            }),
            _ => false,
        },
        RuleExprKind::Source(_) | RuleExprKind::Positions(_) => false,
    }
}

/// The arguments of a function of rules, sorted.
#[derive(Default)]
struct Args<'e> {
    values: Vec<&'e RuleExpr>,
    over: Option<&'e Ident>,
    each: Option<&'e Ident>,
    map: Option<(&'e [Ident], &'e [Ident])>,
    range: Option<(&'e Ident, &'e Expr, &'e Expr)>,
    key: Option<&'e Text>,
    named: Vec<(&'e Ident, &'e RuleExpr)>,
}

impl<'e> Args<'e> {
    /// `None` where one stands twice.
    fn new(args: &'e [RuleArg]) -> Option<Self> {
        let mut found = Args::default();
        for arg in args {
            let doubled = match arg {
                RuleArg::Value(value) => {
                    found.values.push(value);
                    false
                }
                RuleArg::Named(name, value) => {
                    found.named.push((name, value));
                    false
                }
                RuleArg::Text(name, text) => {
                    name.name != "key" || found.key.replace(text).is_some()
                }
                RuleArg::Over(axis, _) => found.over.replace(axis).is_some(),
                RuleArg::Each(axis, _) => found.each.replace(axis).is_some(),
                RuleArg::Map { from, to, .. } => found.map.replace((from, to)).is_some(),
                RuleArg::Range { axis, start, end, .. } => {
                    found.range.replace((axis, start, end)).is_some()
                }
            };
            if doubled {
                return None;
            }
        }
        Some(found)
    }

    /// Letters of what is there: `v` per value, `o`ver, `e`ach, `m`ap, `r`ange, `k`ey, names.
    fn shape(&self) -> String {
        let mut shape = "v".repeat(self.values.len());
        shape.extend(self.over.map(|_| 'o'));
        shape.extend(self.each.map(|_| 'e'));
        shape.extend(self.map.map(|_| 'm'));
        shape.extend(self.range.map(|_| 'r'));
        shape.extend(self.key.map(|_| 'k'));
        for (name, _) in &self.named {
            shape.push(' ');
            shape.push_str(&name.name);
        }
        shape
    }
}

/// Whether a call has the arguments that its function takes.
fn fits(name: &str, shape: &str) -> bool {
    match name {
        "zeros" | "ones" => shape.is_empty(),
        "constant" => shape == "v",
        "normal" => matches!(shape, "v" | "vk"),
        "uniform" => matches!(shape, "vv" | "vvk"),
        "concat" => shape.len() > 2 && shape.ends_with('o') && shape.starts_with("vv"),
        "tile" | "interleave" | "repeat" => shape == "vo",
        "slice" => shape == "vr",
        "select" => shape == "vvo",
        "subset" => matches!(shape, "vo" | "voe" | "vok" | "voek"),
        "redraw" => matches!(shape, "vo keep" | "voe keep" | "vok keep" | "voek keep"),
        "rotate" => shape == "vo seed",
        "noise" => matches!(shape, "v factor" | "vk factor"),
        "rename" | "split" | "merge" => shape == "vm",
        _ => false,
    }
}

impl Builder<'_> {
    fn call(&mut self, callee: &Ident, args: &[RuleArg], span: Span, want: &Want) -> Option<Rule> {
        let name = callee.name.as_str();
        let known = FUNCTIONS.iter().find(|(function, _)| *function == name);
        let Some((_, form)) = known else {
            let diag = Diag::error(
                codes::ARGUMENTS,
                format!("there is no transformation `{name}`"),
                callee.span,
                "unknown",
            );
            let names = FUNCTIONS.iter().map(|(function, _)| *function);
            return self.fail(match closest(name, names.clone()) {
                Some(near) => diag.with_help(format!("`{near}` exists")),
                None => diag.with_help(format!(
                    "transformations are {}; a map between blocks is applied to a block",
                    names.collect::<Vec<_>>().join(", ")
                )),
            });
        };
        let sorted = Args::new(args).filter(|args| fits(name, &args.shape()));
        let Some(args) = sorted else {
            return self.fail(
                Diag::error(
                    codes::ARGUMENTS,
                    format!("these are not the arguments of `{name}`"),
                    span,
                    format!("its form is `{form}`"),
                )
                .with_help(format!("write `{form}`")),
            );
        };
        self.function(name, &args, span, want)
    }

    fn function(&mut self, name: &str, args: &Args<'_>, span: Span, want: &Want) -> Option<Rule> {
        match (name, args.values.as_slice()) {
            ("zeros", _) => self.fill(0.0, span, want),
            ("ones", _) => self.fill(1.0, span, want),
            ("constant", [value]) => {
                let value = self.number(value)?;
                self.fill(value, span, want)
            }
            ("normal", [std]) => {
                let std = self.number(std)?;
                self.draw(Law::Normal { std }, args.key, span, want)
            }
            ("uniform", [low, high]) => {
                let (low, high) = (self.number(low)?, self.number(high)?);
                self.draw(Law::Uniform { low, high }, args.key, span, want)
            }
            ("concat", parts) => self.concat(parts, args.over?, span, want),
            ("select", [of, positions]) => self.select(of, positions, args.over?, span, want),
            ("noise", [of]) => {
                let factor = self.number(args.named.first()?.1)?;
                let of = self.check(of, want)?;
                let key = self.key(args.key, span)?;
                let ty = of.ty.clone();
                let kind = RuleKind::Noise { of: Box::new(of), factor, key };
                Some(Rule { ty, kind, span: Some(span) })
            }
            (_, [of]) => match (args.over, args.map, args.range) {
                (Some(axis), _, _) => self.along(name, of, axis, args, span, want),
                (_, Some((from, to)), _) => self.reshape(name, of, from, to, span, want),
                (_, _, Some((axis, start, end))) => self.slice(of, axis, start, end, span, want),
                _ => None,
            },
            _ => None,
        }
    }

    /// The axis is one that is wanted here.
    fn wanted(&mut self, axis: &Ident, want: &Want) -> Option<()> {
        if want.has(&axis.name) {
            return Some(());
        }
        let names = want.axes.iter().map(|(name, _)| name.as_str());
        let diag = Diag::error(
            codes::AXES,
            format!("{} has no axis `{}`", want.text(), axis.name),
            axis.span,
            "no such axis here",
        );
        self.fail(match closest(&axis.name, names.clone()) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => diag.with_help(format!(
                "the axes are {}",
                names.map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
            )),
        })
    }

    fn typed(&self, want: &Want, inner: &Type, axis: &str, size: Size) -> Type {
        let axes = want.axes.iter().map(|(name, known)| {
            let size = if name == axis {
                size.clone()
            } else {
                known
                    .clone()
                    .or_else(|| inner.axis(name).map(|a| a.size.clone()))
                    .unwrap_or_default()
            };
            Axis { name: name.clone(), size }
        });
        Type::new(self.target.ty.dtype, axes.collect())
    }

    fn concat(
        &mut self,
        parts: &[&RuleExpr],
        axis: &Ident,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        let open = want.with(&axis.name, None);
        let fixed: Vec<Option<Option<Rule>>> =
            parts.iter().map(|part| (!is_open(part)).then(|| self.check(part, &open))).collect();
        let mut total = Size::default();
        for rule in fixed.iter().flatten() {
            let size = rule.as_ref()?.ty.axis(&axis.name)?.size.clone();
            total = total.checked_add(&size)?;
        }
        let n_open = fixed.iter().filter(|part| part.is_none()).count();
        let wanted = want.size(&axis.name).cloned();
        let rest = match (&wanted, n_open) {
            (Some(wanted), 1) => Some(wanted.checked_sub(&total)?),
            (Some(wanted), 0) if *wanted != total => {
                return self.wrong_total(&total, wanted, axis, span);
            }
            _ => None,
        };
        if let Some(rest) = rest.as_ref().and_then(Size::as_constant)
            && rest < 1
        {
            return self.wrong_total(&total, &wanted.unwrap_or_default(), axis, span);
        }
        let whole = wanted.unwrap_or(total);
        let left = want.with(&axis.name, rest);
        let mut rules = Vec::new();
        for (part, fixed) in parts.iter().zip(fixed) {
            rules.push(match fixed {
                Some(rule) => rule,
                None => self.check(part, &left),
            });
        }
        let parts = rules.into_iter().collect::<Option<Vec<_>>>()?;
        let ty = self.typed(want, &parts.first()?.ty.clone(), &axis.name, whole);
        let kind = RuleKind::Concat { parts, axis: axis.name.clone() };
        Some(Rule { ty, kind, span: Some(span) })
    }

    fn wrong_total(
        &mut self,
        total: &Size,
        wanted: &Size,
        axis: &Ident,
        span: Span,
    ) -> Option<Rule> {
        self.fail(
            Diag::error(
                codes::SIZE,
                format!(
                    "the parts have {total} positions along `{}`, and {wanted} are wanted",
                    axis.name
                ),
                span,
                format!("{total} positions"),
            )
            .with_help("add a part such as `zeros`, which takes what is left, or remove one"),
        )
    }

    fn select(
        &mut self,
        of: &RuleExpr,
        positions: &RuleExpr,
        axis: &Ident,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        let RuleExprKind::Positions(list) = &positions.kind else {
            return self.fail(
                Diag::error(codes::ARGUMENTS, "positions are a list", positions.span, "no list")
                    .with_help("write `[0, 2, 1]` or `[0 .. 4, 0 .. 4]`"),
            );
        };
        let positions = match pattern::indices(list, self.names) {
            Ok(positions) => positions,
            Err(diag) => return self.fail(*diag),
        };
        let of = self.check(of, &want.with(&axis.name, None))?;
        let length = of.ty.axis(&axis.name)?.size.as_constant();
        if let Some(length) = length
            && let Some(position) = positions.iter().find(|p| **p as i64 >= length)
        {
            return self.fail(out_of_axis(*position as i64, &axis.name, length, list.span));
        }
        let size = Size::constant(positions.len() as i64);
        if let Some(wanted) = want.size(&axis.name)
            && *wanted != size
        {
            return self.wrong_total(&size, &wanted.clone(), axis, list.span);
        }
        let ty = self.typed(want, &of.ty, &axis.name, size);
        let kind = RuleKind::Select { of: Box::new(of), axis: axis.name.clone(), positions };
        Some(Rule { ty, kind, span: Some(span) })
    }

    fn slice(
        &mut self,
        of: &RuleExpr,
        axis: &Ident,
        start: &Expr,
        end: &Expr,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        let of = self.check(of, &want.with(&axis.name, None));
        let (start, end) = match (self.names.size(start), self.names.size(end)) {
            (Ok(start), Ok(end)) => (start, end),
            (Err(diag), _) | (_, Err(diag)) => return self.fail(*diag),
        };
        let of = of?;
        let length = of.ty.axis(&axis.name)?.size.clone();
        let size = end.checked_sub(&start)?;
        let over = length.checked_sub(&end)?.as_constant().is_some_and(|rest| rest < 0);
        if over || size.as_constant().is_some_and(|n| n < 1) {
            return self.fail(
                Diag::error(
                    codes::POSITIONS,
                    format!(
                        "`{}[{start} .. {end}]` is not within its {length} positions",
                        axis.name
                    ),
                    axis.span,
                    format!("{length} positions"),
                )
                .with_help(format!("a slice lies within 0 .. {length}")),
            );
        }
        if let Some(wanted) = want.size(&axis.name)
            && *wanted != size
        {
            return self.wrong_total(&size, &wanted.clone(), axis, span);
        }
        let ty = self.typed(want, &of.ty, &axis.name, size);
        let kind = RuleKind::Slice { of: Box::new(of), axis: axis.name.clone(), start };
        Some(Rule { ty, kind, span: Some(span) })
    }

    /// `tile`, `interleave`, `repeat`, `subset` and `redraw`.
    fn along(
        &mut self,
        name: &str,
        of: &RuleExpr,
        axis: &Ident,
        args: &Args<'_>,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        if let Some(each) = args.each {
            self.wanted(each, want)?;
        }
        let label = axis.name.clone();
        if name == "rotate" {
            return self.rotate(of, axis, args, span, want);
        }
        if name == "redraw" {
            return self.redraw(of, axis, args, span, want);
        }
        let wanted = match want.size(&label) {
            Some(size) => size.clone(),
            None => {
                self.known(span, want)?;
                return None;
            }
        };
        if name == "repeat" {
            let of = self.check(of, &want.without(&label))?;
            let ty = self.typed(want, &of.ty, &label, wanted);
            let kind = RuleKind::Repeat { of: Box::new(of), axis: label };
            return Some(Rule { ty, kind, span: Some(span) });
        }
        let mut inner = want.with(&label, None);
        let each = args.each.filter(|_| name == "subset").map(|each| each.name.clone());
        if let Some(each) = &each {
            inner = inner.without(each);
        }
        let of = self.check(of, &inner)?;
        let length = of.ty.axis(&label)?.size.clone();
        let ty = self.typed(want, &of.ty, &label, wanted.clone());
        let of = Box::new(of);
        let kind = if name == "subset" {
            self.fewer(&wanted, &length, axis)?;
            RuleKind::Subset { of, axis: label, each, key: self.key(args.key, span)? }
        } else {
            self.divides(&wanted, &length, axis, span)?;
            match name {
                "tile" => RuleKind::Tile { of, axis: label },
                _ => RuleKind::Interleave { of, axis: label },
            }
        };
        Some(Rule { ty, kind, span: Some(span) })
    }

    fn redraw(
        &mut self,
        of: &RuleExpr,
        axis: &Ident,
        args: &Args<'_>,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let of = self.check(of, want)?;
        let plain = args.named.first().and_then(|(_, keep)| keep.as_plain())?;
        let keep = match self.names.size(&plain) {
            Ok(keep) => keep,
            Err(diag) => return self.fail(*diag),
        };
        let length = of.ty.axis(&axis.name)?.size.clone();
        self.fewer(&keep, &length, axis)?;
        let key = self.key(args.key, span)?;
        let values = self.key(None, span)?;
        let each = args.each.map(|each| each.name.clone());
        let ty = of.ty.clone();
        let axis = axis.name.clone();
        let kind = RuleKind::Redraw { of: Box::new(of), axis, keep, each, key, values };
        Some(Rule { ty, kind, span: Some(span) })
    }

    fn rotate(
        &mut self,
        of: &RuleExpr,
        axis: &Ident,
        args: &Args<'_>,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let of = self.check(of, want)?;
        let plain = args.named.first().and_then(|(_, seed)| seed.as_plain())?;
        let seed = match self.names.index(&plain) {
            Ok(seed) => seed,
            Err(diag) => return self.fail(*diag),
        };
        let length = of.ty.axis(&axis.name)?.size.as_constant();
        if let Some(length) = length.filter(|n| !u64::try_from(*n).is_ok_and(u64::is_power_of_two))
        {
            return self.fail(
                Diag::error(
                    codes::DIVIDES,
                    format!("`{}` has {length} positions, which is no power of two", axis.name),
                    axis.span,
                    format!("{length} positions"),
                )
                .with_help("a rotation goes over a power of two"),
            );
        }
        let ty = of.ty.clone();
        let kind = RuleKind::Rotate { of: Box::new(of), axis: axis.name.clone(), seed };
        Some(Rule { ty, kind, span: Some(span) })
    }

    fn fewer(&mut self, taken: &Size, length: &Size, axis: &Ident) -> Option<()> {
        let over = length.checked_sub(taken)?.as_constant().is_some_and(|rest| rest < 0);
        if !over {
            return Some(());
        }
        self.fail(
            Diag::error(
                codes::POSITIONS,
                format!("{taken} of the {length} positions of `{}` are wanted", axis.name),
                axis.span,
                format!("{length} positions"),
            )
            .with_help("a choice without repetition has at most as many positions as its source"),
        )
    }

    fn divides(&mut self, wanted: &Size, length: &Size, axis: &Ident, span: Span) -> Option<()> {
        if wanted.exact_div(length).is_some() {
            return Some(());
        }
        let below = match (wanted.as_constant(), length.as_constant()) {
            (Some(w), Some(n)) if n > 0 => {
                let below = w - w.rem_euclid(n);
                format!("{below} and {} are multiples of {n}", below + n)
            }
            _ => "the wanted size has to be a multiple of the source's".to_owned(),
        };
        self.fail(
            Diag::error(
                codes::DIVIDES,
                format!(
                    "`{}` has {wanted} positions in the target, no multiple of the {length} of the source",
                    axis.name
                ),
                span,
                format!("{length} positions do not fill {wanted}"),
            )
            .with_help(below),
        )
    }

    /// `rename`, `split` and `merge`.
    fn reshape(
        &mut self,
        name: &str,
        of: &RuleExpr,
        from: &[Ident],
        to: &[Ident],
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        for axis in to {
            self.wanted(axis, want)?;
        }
        let position = |axis: &Ident| want.axes.iter().position(|(n, _)| *n == axis.name);
        let start = position(to.first()?)?;
        let adjacent = to.iter().enumerate().all(|(i, axis)| position(axis) == Some(start + i));
        let right = match name {
            "rename" => from.len() == 1 && to.len() == 1,
            "split" => from.len() == 1 && to.len() > 1,
            _ => from.len() > 1 && to.len() == 1,
        };
        if !right || !adjacent {
            return self.fail(
                Diag::error(
                    codes::ARGUMENTS,
                    format!(
                        "`{name}` does not go from {} to {} axes like this",
                        from.len(),
                        to.len()
                    ),
                    span,
                    "`rename(x, a -> b)`, `split(x, a -> (b, c))`, `merge(x, (a, b) -> c)`",
                )
                .with_help("the parts of an axis stand next to each other, the last the fastest"),
            );
        }
        let size = match name {
            "merge" => None,
            _ => to.iter().try_fold(Size::constant(1), |total, axis| {
                total.checked_mul(want.size(&axis.name)?)
            }),
        };
        let mut axes = want.axes.clone();
        let before = from.iter().map(|axis| (axis.name.clone(), size.clone()));
        axes.splice(start..start + to.len(), before);
        let of = self.check(of, &Want { dtype: want.dtype, axes })?;
        let total = from.iter().try_fold(Size::constant(1), |total, axis| {
            total.checked_mul(&of.ty.axis(&axis.name)?.size)
        })?;
        let ty = match name {
            "split" => self.typed(want, &of.ty, "", Size::default()),
            _ => self.typed(want, &of.ty, &to.first()?.name.clone(), total.clone()),
        };
        if let Some(wanted) = to.first().and_then(|axis| want.size(&axis.name))
            && name == "merge"
            && *wanted != total
        {
            return self.wrong_total(&total, &wanted.clone(), to.first()?, span);
        }
        let of = Box::new(of);
        let first = |list: &[Ident]| list.first().map_or(String::new(), |a| a.name.clone());
        let all = |list: &[Ident]| list.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
        let kind = match name {
            "rename" => RuleKind::Rename { of, from: first(from), to: first(to) },
            "split" => RuleKind::Split { of, from: first(from), to: all(to) },
            _ => RuleKind::Merge { of, from: all(from), to: first(to) },
        };
        Some(Rule { ty, kind, span: Some(span) })
    }
}

fn out_of_axis(position: i64, axis: &str, length: i64, span: Span) -> Diag {
    Diag::error(
        codes::POSITIONS,
        format!("`{axis}` has {length} positions, and {position} is not one of them"),
        span,
        format!("positions go from 0 to {}", length - 1),
    )
    .with_help(format!("use positions below {length}"))
}
