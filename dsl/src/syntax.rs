//! Text to syntax. Never panics; every line that does not parse is one diagnostic, and the other
//! lines are parsed all the same.

use crate::ast::{
    Active, Arg, AxisDef, AxisPattern, BinaryOp, Binding, Block, Clause, ClauseKind, DType, Expr,
    ExprKind, File, Formal, FormalKind, Forward, Grow, Ident, Init, Item, Member, Param, Port,
    Probe, Require, Stack, Stage, State, Stmt, StorageClause, Sub, Table, Target, Text,
};
use crate::diag::{Diag, codes};
use crate::layout::{self, Body, Comment, Layout, Node};
use crate::names::{KEYWORDS, closest};
use crate::source::{SourceId, Span};
use pest::Parser as _;
use pest::error::{ErrorVariant, InputLocation};
use pest::iterators::Pair;
use pest::pratt_parser::{Assoc, Op, PrattParser};
use std::ops::Range;
use std::sync::LazyLock;

mod grow;

mod grammar {
    //! The parser that pest makes from `grammar.pest`.
    #![allow(missing_docs, unreachable_pub)]

    #[derive(pest_derive::Parser)]
    #[grammar = "grammar.pest"]
    pub struct Grammar;
}

use grammar::{Grammar, Rule};

/// Deepest expression tree. `a + b + ...` is as deep as it is long.
const MAX_DEPTH: u32 = 128;

static PRATT: LazyLock<PrattParser<Rule>> = LazyLock::new(|| {
    PrattParser::new()
        .op(Op::infix(Rule::add, Assoc::Left) | Op::infix(Rule::subtract, Assoc::Left))
        .op(Op::infix(Rule::multiply, Assoc::Left) | Op::infix(Rule::divide, Assoc::Left))
        .op(Op::prefix(Rule::negate))
});

/// Parses one source text. The file holds every item and line that parsed; it is absent only
/// where the text is over the size limit.
pub fn parse(source: SourceId, text: &str) -> (Option<File>, Vec<Diag>) {
    let (file, diags, _) = parse_with_losses(source, text);
    (file, diags)
}

/// As [`parse`], and the names of items that have errors: what others say about them is not to
/// be trusted.
pub(crate) fn parse_with_losses(
    source: SourceId,
    text: &str,
) -> (Option<File>, Vec<Diag>, Vec<String>) {
    let layout = layout::scan(source, text);
    if layout.text.len() != text.len() {
        return (None, layout.diags, Vec::new());
    }
    let mut parser = FileParser::new(source, text, &layout);
    let items: Vec<Item> = layout.nodes.iter().filter_map(|node| parser.item(node)).collect();
    let mut diags = layout.diags.clone();
    diags.append(&mut parser.diags);
    diags.sort_by_key(|d| (d.primary.span.start, d.primary.span.end));
    let hit = |node: &&Node| {
        let end = node.body.as_ref().map_or(node.range.end, |b| b.close);
        let first = diags.partition_point(|d| (d.primary.span.start as usize) < node.range.start);
        diags.get(first).is_some_and(|d| (d.primary.span.start as usize) <= end)
    };
    let lost = layout.nodes.iter().filter(hit).filter_map(|node| parser.name_of_item(node));
    let lost = lost.collect();
    (Some(File { items }), diags, lost)
}

/// What a line of a body can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// Outside of all braces.
    Top,
    /// In a block.
    Block,
    /// In a stage.
    Stage,
    /// In a forward.
    Forward,
    /// In the probe of a stage.
    Probe,
    /// In a growth map.
    Grow,
}

/// A parsed line, without the body that it opens.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    Import(Text),
    BlockHead(Ident, Vec<Formal>),
    StageHead(Ident, Option<Ident>),
    GrowHead(Ident, Vec<Formal>, Expr, Expr),
    ProbeHead(Span),
    Clause(Box<ClauseKind>),
    Binding(Ident, Expr),
    Member(Box<Member>),
    ForwardHead(Vec<Port>, Vec<Port>, Span),
    Stmt(Stmt),
    Result(Vec<Expr>),
}

/// Parses the lines of one file and builds its tree.
pub(crate) struct FileParser<'a> {
    source: SourceId,
    text: &'a str,
    layout: &'a Layout,
    pub(crate) diags: Vec<Diag>,
}

impl<'a> FileParser<'a> {
    pub(crate) fn new(source: SourceId, text: &'a str, layout: &'a Layout) -> Self {
        FileParser { source, text, layout, diags: Vec::new() }
    }

    fn span(&self, range: Range<usize>) -> Span {
        layout::span(self.source, range)
    }

    fn item(&mut self, node: &Node) -> Option<Item> {
        let line = self.line(node, Context::Top);
        let doc = self.doc(&node.before);
        let end = node.body.as_ref().map_or(node.range.end, |b| b.close);
        let span = self.span(node.range.start..end);
        match line {
            Some(Line::Import(path)) => Some(Item::Import(path)),
            Some(Line::BlockHead(name, formals)) => {
                let members = self.members(node.body.as_ref());
                Some(Item::Block(Block { doc, name, formals, members, span }))
            }
            Some(Line::StageHead(name, extends)) => {
                let (bindings, probe) = self.stage_body(node.body.as_ref());
                Some(Item::Stage(Stage { doc, name, extends, bindings, probe, span }))
            }
            Some(Line::GrowHead(name, formals, from, to)) => {
                let clauses = self.clauses(node.body.as_ref());
                Some(Item::Grow(Grow { doc, name, formals, from, to, clauses, span }))
            }
            _ => {
                // The head is lost; errors in its body are not.
                match self.first_word(node) {
                    "stage" => drop(self.stage_body(node.body.as_ref())),
                    "grow" => drop(self.clauses(node.body.as_ref())),
                    _ => drop(self.members(node.body.as_ref())),
                }
                None
            }
        }
    }

    /// Bindings, and the last `probe`.
    fn stage_body(&mut self, body: Option<&Body>) -> (Vec<Binding>, Option<Probe>) {
        let nodes = body.map_or(&[][..], |b| &b.nodes);
        let (mut bindings, mut probe) = (Vec::new(), None);
        for node in nodes {
            match self.line(node, Context::Stage) {
                Some(Line::Binding(name, value)) => {
                    bindings.push(Binding { doc: self.doc(&node.before), name, value });
                }
                Some(Line::ProbeHead(span)) => {
                    let bindings = self.probe_body(node.body.as_ref());
                    self.second_probe(probe.as_ref(), span);
                    probe = Some(Probe { bindings, span });
                }
                _ => {}
            }
        }
        (bindings, probe)
    }

    fn second_probe(&mut self, first: Option<&Probe>, span: Span) {
        if let Some(first) = first {
            let diag = Diag::error(
                codes::DOUBLED_BINDING,
                "the stage has two probes",
                span,
                "second probe",
            );
            let diag = diag.with_related(first.span, "the first");
            self.diags.push(diag.with_help("write all sizes in one of them"));
        }
    }

    fn probe_body(&mut self, body: Option<&Body>) -> Vec<Binding> {
        let nodes = body.map_or(&[][..], |b| &b.nodes);
        let mut bindings = Vec::new();
        for node in nodes {
            if let Some(Line::Binding(name, value)) = self.line(node, Context::Probe) {
                bindings.push(Binding { doc: self.doc(&node.before), name, value });
            }
        }
        bindings
    }

    fn clauses(&mut self, body: Option<&Body>) -> Vec<Clause> {
        let nodes = body.map_or(&[][..], |b| &b.nodes);
        let mut clauses = Vec::new();
        for node in nodes {
            if let Some(Line::Clause(kind)) = self.line(node, Context::Grow) {
                clauses.push(Clause { kind: *kind, span: self.span(node.range.clone()) });
            }
        }
        clauses
    }

    fn members(&mut self, body: Option<&Body>) -> Vec<Member> {
        let nodes = body.map_or(&[][..], |b| &b.nodes);
        nodes.iter().filter_map(|node| self.member(node)).collect()
    }

    fn member(&mut self, node: &Node) -> Option<Member> {
        let line = self.line(node, Context::Block);
        let text = self.doc(&node.before);
        match line {
            Some(Line::Member(member)) => {
                let mut member = *member;
                match &mut member {
                    Member::Param(Param { doc, .. })
                    | Member::State(State { doc, .. })
                    | Member::Table(Table { doc, .. })
                    | Member::Sub(Sub { doc, .. })
                    | Member::Stack(Stack { doc, .. })
                    | Member::Forward(Forward { doc, .. }) => *doc = text,
                    Member::Axis(_) | Member::Require(_) => {}
                }
                Some(member)
            }
            Some(Line::Stmt(Stmt::Axis(def))) => Some(Member::Axis(def)),
            Some(Line::ForwardHead(inputs, outputs, span)) => {
                let (body, result) = self.body(node.body.as_ref(), span)?;
                let doc = text;
                Some(Member::Forward(Forward { doc, inputs, outputs, body, result, span }))
            }
            _ => {
                if self.first_word(node) == "forward" {
                    let place = self.span(node.range.clone());
                    self.body(node.body.as_ref(), place);
                }
                None
            }
        }
    }

    fn body(&mut self, body: Option<&Body>, head: Span) -> Option<(Vec<Stmt>, Vec<Expr>)> {
        let nodes = body.map_or(&[][..], |b| &b.nodes);
        let n_before = self.diags.len();
        let mut stmts = Vec::new();
        let mut result: Option<(Vec<Expr>, Span)> = None;
        for node in nodes {
            let line = self.line(node, Context::Forward);
            let place = self.span(node.range.clone());
            if let (Some((_, earlier)), true) = (&result, line.is_some()) {
                let earlier = *earlier;
                self.unnamed_value(earlier, place);
                result = None;
            }
            match line {
                Some(Line::Stmt(stmt)) => stmts.push(stmt),
                Some(Line::Result(values)) => result = Some((values, place)),
                _ => {}
            }
        }
        if let Some((values, _)) = result {
            return Some((stmts, values));
        }
        if self.diags.len() == n_before && !nodes.iter().any(|node| node.broken) {
            let end = body.map_or(head, |b| self.span(b.close.saturating_sub(1)..b.close));
            self.diags.push(
                Diag::error(
                    codes::NO_RESULT,
                    "the forward ends without a result",
                    end,
                    "the result belongs before this brace",
                )
                .with_related(head, "of this forward")
                .with_help("make the last line an expression, or `(a, b)` for several outputs"),
            );
        }
        None
    }

    fn unnamed_value(&mut self, place: Span, next: Span) {
        self.diags.push(
            Diag::error(
                codes::NO_RESULT,
                "a value is computed and then not used",
                place,
                "only the last line of a forward is its result",
            )
            .with_related(next, "but this line follows")
            .with_help("name the value, as in `h = ...`, or remove the line"),
        );
    }

    fn doc(&self, comments: &[Comment]) -> Option<String> {
        let lines: Vec<&str> = comments
            .iter()
            .filter(|c| c.doc)
            .map(|c| {
                let line = self.text.get(c.range.clone()).unwrap_or("");
                let line = line.strip_prefix("///").unwrap_or(line);
                line.strip_prefix(' ').unwrap_or(line).trim_end()
            })
            .collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    fn first_word(&self, node: &Node) -> &'a str {
        let text = self.layout.text.get(node.range.clone()).unwrap_or("");
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        text.get(..end.unwrap_or(text.len())).unwrap_or("")
    }

    /// The second word of an item's head, which names it even where the head does not parse.
    fn name_of_item(&self, node: &Node) -> Option<String> {
        let text = self.layout.text.get(node.range.clone()).unwrap_or("");
        let rest = text.get(self.first_word(node).len()..)?.trim_start();
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        (!name.is_empty()).then_some(name)
    }

    /// Parses one line, body aside, and reports what is wrong with it.
    pub(crate) fn line(&mut self, node: &Node, context: Context) -> Option<Line> {
        if node.broken {
            return None;
        }
        let word = self.first_word(node);
        let rule = match self.rule_of(node, context, word) {
            Ok(rule) => rule,
            Err(diag) => {
                self.diags.push(*diag);
                return None;
            }
        };
        let input = self.layout.text.get(node.range.clone()).unwrap_or("");
        let base = node.range.start;
        let pair = match Grammar::parse(rule, input) {
            Ok(mut pairs) => pairs.next()?,
            Err(error) => {
                self.diags.push(explain(self.source, input, base, rule, &error));
                return None;
            }
        };
        let mut builder = Builder { source: self.source, base, too_deep: None, too_large: None };
        let line = builder.line(pair, self.span(node.range.clone()));
        if let Some(diag) = builder.over_limit() {
            self.diags.push(diag);
            return None;
        }
        self.check_body(node, rule, line)
    }

    /// Only heads have a body, and every head has one.
    fn check_body(&mut self, node: &Node, rule: Rule, line: Option<Line>) -> Option<Line> {
        let wants = matches!(
            rule,
            Rule::block_head
                | Rule::stage_head
                | Rule::forward_head
                | Rule::grow_head
                | Rule::probe_head
        );
        match &node.body {
            None if wants => {
                let end = node.range.end;
                self.diags.push(
                    Diag::error(
                        codes::UNEXPECTED,
                        "the body is missing",
                        self.span(end.saturating_sub(1)..end),
                        "expected `{` after this",
                    )
                    .with_help("a body stands between `{` on this line and `}`"),
                );
                // Nothing is known about what it would hold.
                None
            }
            Some(body) if !wants => {
                self.diags.push(Diag::error(
                    codes::UNEXPECTED,
                    "this line cannot have a body",
                    self.span(body.open..body.open + 1),
                    "expected the end of the line",
                ));
                None
            }
            _ => line,
        }
    }

    fn rule_of(&self, node: &Node, context: Context, word: &str) -> Result<Rule, Box<Diag>> {
        let text = self.layout.text.get(node.range.clone()).unwrap_or("");
        let rule = match (context, word) {
            (Context::Top, "import") => Some(Rule::import_line),
            (Context::Top, "block") => Some(Rule::block_head),
            (Context::Top, "stage") => Some(Rule::stage_head),
            (Context::Top, "grow") => Some(Rule::grow_head),
            (Context::Stage, "probe") if node.body.is_some() => Some(Rule::probe_head),
            (Context::Grow, _) => Some(grow::rule_of(word, text)),
            (Context::Block, "axis") | (Context::Forward, "axis") => Some(Rule::axis_line),
            (Context::Block, "param") => Some(Rule::param_line),
            (Context::Block, "state") => Some(Rule::state_line),
            (Context::Block, "table") => Some(Rule::table_line),
            (Context::Block, "sub") => Some(Rule::sub_line),
            (Context::Block, "stack") => Some(Rule::stack_line),
            (Context::Block, "require") => Some(Rule::require_line),
            (Context::Block, "forward") => Some(Rule::forward_head),
            (Context::Forward, "penalty") => Some(Rule::penalty_line),
            (Context::Forward, "update") => Some(Rule::update_line),
            (Context::Forward, _) if has_assignment(text) => Some(Rule::let_line),
            (Context::Forward, _) => Some(Rule::result_line),
            (Context::Stage | Context::Probe, _) => Some(Rule::binding_line),
            _ => None,
        };
        rule.ok_or_else(|| Box::new(self.unknown_line(node, context, word)))
    }

    fn unknown_line(&self, node: &Node, context: Context, word: &str) -> Diag {
        let (words, where_): (&[&str], _) = match context {
            Context::Top => (&["import", "block", "stage", "grow"], "at the top level"),
            _ => (
                &["axis", "param", "state", "table", "sub", "stack", "require", "forward"],
                "in a block",
            ),
        };
        let start = node.range.start;
        let length = if word.is_empty() { 1 } else { word.len() };
        let length = self
            .text
            .get(start..)
            .and_then(|t| t.chars().next())
            .map_or(length, |c| length.max(c.len_utf8()));
        let found = self.text.get(start..start + length).unwrap_or("");
        let diag = Diag::error(
            codes::UNEXPECTED,
            format!("`{found}` does not start anything {where_}"),
            self.span(start..start + length),
            format!("expected {}", list_of(words)),
        );
        match closest(word, words.iter().copied()) {
            Some(near) => diag.with_help(format!("write `{near}`")),
            None if KEYWORDS.contains(&word) => {
                diag.with_help(format!("`{word}` belongs elsewhere"))
            }
            None => diag,
        }
    }
}

/// `` `a`, `b` or `c` ``
fn list_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
    join_or(&quoted)
}

fn join_or(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// An `=` outside brackets that is not part of `<=` or `>=`.
fn has_assignment(text: &str) -> bool {
    let mut depth = 0_i32;
    let mut before = b' ';
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'=' if depth == 0 && before != b'<' && before != b'>' => return true,
            _ => {}
        }
        before = byte;
    }
    false
}

/// pest's complaint in the language's own words.
fn explain(
    source: SourceId,
    input: &str,
    base: usize,
    line: Rule,
    error: &pest::error::Error<Rule>,
) -> Diag {
    let at = match error.location {
        InputLocation::Pos(at) | InputLocation::Span((at, _)) => at,
    };
    let rest = input.get(at..).unwrap_or("");
    let skipped = rest.len() - rest.trim_start().len();
    let (at, rest) = (at + skipped, rest.trim_start());
    let (found, length) = token(rest);
    let expected = match &error.variant {
        ErrorVariant::ParsingError { positives, .. } => expectations(positives),
        ErrorVariant::CustomError { .. } => Vec::new(),
    };
    let label = if expected.is_empty() {
        "not expected here".to_owned()
    } else {
        format!("expected {}", join_or(&expected))
    };
    // At the end of a line the place is its last character.
    let place = if rest.is_empty() {
        let end = input.trim_end().len();
        end.saturating_sub(last_char_len(input.get(..end).unwrap_or("")))..end
    } else {
        at..at + length
    };
    let place = layout::span(source, base + place.start..base + place.end);
    let message = if rest.is_empty() {
        format!("{} ends too early", line_words(line))
    } else {
        format!("{found} is not expected in {}", line_words(line))
    };
    let diag = Diag::error(codes::UNEXPECTED, message, place, label);
    match hint(input, at, rest, &expected) {
        Some(help) => diag.with_help(help),
        None => diag,
    }
}

fn last_char_len(text: &str) -> usize {
    text.chars().next_back().map_or(0, char::len_utf8)
}

/// The next token as shown in a message, and its length in bytes.
fn token(rest: &str) -> (String, usize) {
    let Some(first) = rest.chars().next() else {
        return ("the end of the line".to_owned(), 0);
    };
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let length = if is_word(first) {
        rest.find(|c| !is_word(c)).unwrap_or(rest.len())
    } else {
        let double = ["->", "..", "<=", ">=", "=="];
        double.iter().find(|d| rest.starts_with(**d)).map_or(first.len_utf8(), |d| d.len())
    };
    let word = rest.get(..length).unwrap_or("");
    if KEYWORDS.contains(&word) {
        return (format!("the keyword `{word}`"), length);
    }
    (format!("`{word}`"), length)
}

/// What pest expected, in words, without what a wider word covers.
fn expectations(rules: &[Rule]) -> Vec<String> {
    let mut words: Vec<&str> = rules.iter().filter_map(|r| rule_words(*r)).collect();
    words.sort_unstable();
    words.dedup();
    if words == ["`[`"] {
        return vec!["axes in brackets".to_owned()];
    }
    if ["`(`", "`[`", "a name", "a number"].iter().all(|w| words.contains(w)) {
        words.push("an expression");
    }
    let covered: [(&str, &[&str]); 4] = [
        ("an argument", &["an expression", "a name", "a number", "axis names", "`(`", "`[`"]),
        ("an expression", &["a name", "a number", "`(`", "`[`"]),
        ("an operator", &["`(`", "`[`", "`:`", "`->`"]),
        ("a name with its axes", &["a name"]),
    ];
    for (wide, narrow) in covered {
        if words.contains(&wide) {
            words.retain(|w| !narrow.contains(w));
        }
    }
    words.into_iter().map(str::to_owned).collect()
}

fn hint(input: &str, at: usize, rest: &str, expected: &[String]) -> Option<String> {
    let word: String =
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    let before = input.get(..at).unwrap_or("").trim_end();
    let expects = |words: &[&str]| expected.iter().any(|e| words.contains(&e.as_str()));
    let name = ["a name", "an expression", "an argument", "a name with its axes", "a formal"];
    if KEYWORDS.contains(&word.as_str()) && expects(&name) {
        return Some(format!("`{word}` is a keyword and cannot be used as a name"));
    }
    let help = match rest.chars().next() {
        _ if rest.starts_with("==") || rest.starts_with("!=") => {
            "comparisons are `<`, `<=`, `>` and `>=`"
        }
        Some('<' | '>') => "comparisons do not chain: name one of them first",
        Some(';') => "a statement ends with its line; no `;` is needed",
        Some('+' | '*' | '/') if before.is_empty() => {
            "a line goes on only after an operator or inside brackets"
        }
        Some(c) if !c.is_ascii() && c.is_alphanumeric() => {
            "names are made of ASCII letters, digits and `_`"
        }
        _ if before.ends_with("frozen") => {
            "say why it is frozen, as in `frozen \"the indexer is not trained\"`"
        }
        _ if expects(&["`~`"]) => "say how it starts, as in `~ normal(0.02)`",
        _ if expects(&["axes in brackets"]) && !before.ends_with("->") => {
            "give its axes in brackets; `[]` for a single number"
        }
        _ if expects(&["`->`"]) && before.ends_with(')') => {
            "say what comes out, as in `-> [.., d]`"
        }
        _ => return None,
    };
    Some(help.to_owned())
}

/// What a line is called in messages.
fn line_words(rule: Rule) -> &'static str {
    match rule {
        Rule::import_line => "an import",
        Rule::block_head => "the head of a block",
        Rule::stage_head => "the head of a stage",
        Rule::binding_line => "a binding",
        Rule::grow_head => "the head of a growth map",
        Rule::probe_head => "the head of a probe",
        Rule::preserves_line | Rule::changes_line => "a claim",
        Rule::seed_line => "a seed",
        Rule::moments_line => "a rule of moments",
        Rule::setting_line => "a setting",
        Rule::rest_line | Rule::rule_line => "a rule",
        Rule::drop_line => "a drop",
        Rule::given_line | Rule::gives_line => "a correspondence",
        Rule::axis_line => "an axis definition",
        Rule::param_line => "a parameter",
        Rule::state_line => "a state",
        Rule::table_line => "a table",
        Rule::sub_line => "a sub-block",
        Rule::stack_line => "a stack",
        Rule::forward_head => "the head of a forward",
        Rule::update_line => "an update",
        Rule::let_line => "a statement",
        _ => "an expression",
    }
}

/// What a rule is called in messages; `None` for rules that say nothing to a reader.
fn rule_words(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::EOI => "the end of the line",
        Rule::name | Rule::target => "a name",
        Rule::number => "a number",
        Rule::text => "text in quotes",
        Rule::formals => "`(`",
        Rule::formal => "a formal",
        Rule::formal_kind => "`number`, `numbers`, `block`, `blocks` or `integrator`",
        Rule::axes => "axes in brackets",
        Rule::pattern | Rule::output => "axes in brackets",
        Rule::dtype => "`f32`, `act`, `index` or `bool`",
        Rule::init => "an init such as `normal(0.02)`",
        Rule::frozen | Rule::kw_frozen => "`frozen`",
        Rule::quantized | Rule::kw_quantized => "`quantized`",
        Rule::adapter | Rule::kw_adapter => "`adapter`",
        Rule::active | Rule::kw_active => "`active`",
        Rule::kw_of => "`of`",
        Rule::kw_and => "`and`",
        Rule::inputs => "inputs in parentheses",
        Rule::outputs => "outputs in parentheses",
        Rule::port => "a name with its axes",
        Rule::dots => "`..`",
        Rule::expr | Rule::sum | Rule::word | Rule::group | Rule::tuple => "an expression",
        Rule::list | Rule::result_line => "an expression",
        Rule::negate => return None,
        Rule::args => "`(`",
        Rule::over | Rule::map | Rule::slot | Rule::named => "an argument",
        Rule::names => "axis names",
        Rule::add | Rule::subtract | Rule::multiply | Rule::divide => "an operator",
        Rule::less | Rule::less_equal | Rule::greater | Rule::greater_equal => "an operator",
        Rule::rule_expr | Rule::rule_word | Rule::rule_group => "an expression",
        Rule::source => "a path that starts with `src`",
        Rule::path | Rule::segment => "a path",
        Rule::rule_args => "`(`",
        Rule::over_one | Rule::each | Rule::cut | Rule::key | Rule::rule_named => "an argument",
        Rule::index_list | Rule::zip => "indices such as `0 .. 8`",
        Rule::loop_over => "`for`",
        Rule::kw_exactly => "`exactly`",
        Rule::kw_within => "`within`",
        Rule::kw_follow => "`follow`",
        Rule::kw_reset => "`reset`",
        Rule::kw_src => "`src`",
        Rule::word_expr => "a stage or block",
        Rule::comma => "`,`",
        Rule::colon => "`:`",
        Rule::equals => "`=`",
        Rule::tilde => "`~`",
        Rule::arrow => "`->`",
        Rule::until => "`..`",
        Rule::open => "`(`",
        Rule::close => "`)`",
        Rule::open_square => "`[`",
        Rule::close_square => "`]`",
        Rule::kw_extends => "`extends`",
        Rule::kw_from => "`from`",
        Rule::kw_for => "`for`",
        Rule::kw_in => "`in`",
        Rule::kw_training_only => "`training_only`",
        Rule::kw_integrate => "`integrate`",
        _ => return None,
    })
}

/// An expression and how deep it is.
struct Deep {
    expr: Expr,
    depth: u32,
}

/// Builds the tree of one line out of pest's pairs.
struct Builder {
    source: SourceId,
    base: usize,
    too_deep: Option<Span>,
    too_large: Option<Span>,
}

/// The children of a pair that carry meaning, in order.
fn parts(pair: Pair<'_, Rule>) -> impl Iterator<Item = Pair<'_, Rule>> {
    pair.into_inner().filter(|p| {
        !matches!(
            p.as_rule(),
            Rule::EOI
                | Rule::kw_import
                | Rule::kw_block
                | Rule::kw_stage
                | Rule::kw_extends
                | Rule::kw_axis
                | Rule::kw_param
                | Rule::kw_state
                | Rule::kw_table
                | Rule::kw_sub
                | Rule::kw_stack
                | Rule::kw_forward
                | Rule::kw_update
                | Rule::kw_over
                | Rule::kw_for
                | Rule::kw_integrate
                | Rule::kw_in
                | Rule::kw_from
                | Rule::kw_frozen
                | Rule::kw_quantized
                | Rule::kw_adapter
                | Rule::kw_active
                | Rule::kw_of
                | Rule::kw_and
                | Rule::kw_penalty
                | Rule::kw_require
                | Rule::kw_grow
                | Rule::kw_preserves
                | Rule::kw_exactly
                | Rule::kw_within
                | Rule::kw_changes
                | Rule::kw_seed
                | Rule::kw_moments
                | Rule::kw_follow
                | Rule::kw_reset
                | Rule::kw_setting
                | Rule::kw_rest
                | Rule::kw_drop
                | Rule::kw_given
                | Rule::kw_gives
                | Rule::kw_src
                | Rule::kw_each
                | Rule::kw_zip
                | Rule::kw_probe
                | Rule::comma
                | Rule::colon
                | Rule::equals
                | Rule::tilde
                | Rule::arrow
                | Rule::until
                | Rule::open
                | Rule::close
                | Rule::open_square
                | Rule::close_square
        )
    })
}

impl Builder {
    fn over_limit(&self) -> Option<Diag> {
        if let Some(place) = self.too_large {
            let message = "the number does not fit in a 64-bit float";
            return Some(Diag::error(codes::TOO_LARGE, message, place, "larger than 1.8e308"));
        }
        let message = format!("the expression is more than {MAX_DEPTH} operations deep");
        let label = "this part is at the limit";
        self.too_deep.map(|place| {
            Diag::error(codes::TOO_DEEP, message, place, label)
                .with_help("name parts of it on lines of their own")
        })
    }

    fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let range = pair.as_span();
        let text = pair.as_str();
        let start = self.base + range.start();
        // A rule may take trailing blanks while it looks for more.
        layout::span(self.source, start..start + text.trim_end().len())
    }

    fn ident(&self, pair: &Pair<'_, Rule>) -> Ident {
        Ident { name: pair.as_str().to_owned(), span: self.span(pair) }
    }

    fn text(&self, pair: &Pair<'_, Rule>) -> Text {
        let quoted = pair.as_str();
        let value = quoted.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(quoted);
        Text { value: value.to_owned(), span: self.span(pair) }
    }

    /// The names directly inside a pair.
    fn idents(&self, pair: Pair<'_, Rule>) -> Vec<Ident> {
        parts(pair).filter(|p| p.as_rule() == Rule::name).map(|p| self.ident(&p)).collect()
    }

    fn line(&mut self, pair: Pair<'_, Rule>, span: Span) -> Option<Line> {
        let rule = pair.as_rule();
        let first = pair.clone().into_inner().next();
        let mut parts = parts(pair);
        Some(match rule {
            Rule::import_line => Line::Import(self.text(&parts.next()?)),
            Rule::block_head => {
                let name = self.ident(&parts.next()?);
                Line::BlockHead(name, parts.next().map_or(Vec::new(), |p| self.formals(p)))
            }
            Rule::stage_head => {
                let name = self.ident(&parts.next()?);
                Line::StageHead(name, parts.next().map(|p| self.ident(&p)))
            }
            Rule::grow_head => self.grow_head(parts)?,
            Rule::probe_head => Line::ProbeHead(span),
            _ if grow::is_clause(rule) => Line::Clause(Box::new(self.clause(rule, parts)?)),
            Rule::binding_line => {
                Line::Binding(self.ident(&parts.next()?), self.expr(parts.next()?)?)
            }
            Rule::axis_line => Line::Stmt(Stmt::Axis(self.axis_def(&mut parts)?)),
            Rule::forward_head => {
                let inputs = self.ports(parts.next()?)?;
                let outputs = self.outputs(parts.next()?)?;
                let keyword = self.span(&first?);
                Line::ForwardHead(inputs, outputs, keyword)
            }
            Rule::update_line => {
                let name = self.ident(&parts.next()?);
                Line::Stmt(Stmt::Update { name, value: self.expr(parts.next()?)? })
            }
            Rule::penalty_line => {
                let name = self.ident(&parts.next()?);
                Line::Stmt(Stmt::Penalty { name, value: self.expr(parts.next()?)? })
            }
            Rule::require_line => Line::Member(Box::new(self.require(parts, span)?)),
            Rule::let_line => Line::Stmt(self.let_stmt(parts)?),
            Rule::result_line => Line::Result(self.result(parts.next()?)?),
            _ => Line::Member(Box::new(self.member(rule, parts, span)?)),
        })
    }

    fn axis_def<'i>(
        &mut self,
        parts: &mut impl Iterator<Item = Pair<'i, Rule>>,
    ) -> Option<AxisDef> {
        Some(AxisDef { name: self.ident(&parts.next()?), size: self.expr(parts.next()?)? })
    }

    fn let_stmt<'i>(&mut self, parts: impl Iterator<Item = Pair<'i, Rule>>) -> Option<Stmt> {
        let mut targets = Vec::new();
        let mut value = None;
        for part in parts {
            if part.as_rule() == Rule::target {
                targets.push(self.target(part)?);
            } else {
                value = Some(self.expr(part)?);
            }
        }
        Some(Stmt::Let { targets, value: value? })
    }

    fn target(&self, pair: Pair<'_, Rule>) -> Option<Target> {
        let mut parts = parts(pair);
        let name = self.ident(&parts.next()?);
        Some(Target { name, axes: parts.next().map(|p| self.pattern(p)) })
    }

    fn result(&mut self, pair: Pair<'_, Rule>) -> Option<Vec<Expr>> {
        if pair.as_rule() == Rule::tuple {
            parts(pair).map(|p| self.expr(p)).collect()
        } else {
            Some(vec![self.expr(pair)?])
        }
    }

    fn formals(&mut self, pair: Pair<'_, Rule>) -> Vec<Formal> {
        parts(pair).filter_map(|p| self.formal(p)).collect()
    }

    fn formal(&mut self, pair: Pair<'_, Rule>) -> Option<Formal> {
        let mut parts = parts(pair);
        let name = self.ident(&parts.next()?);
        let mut formal = Formal { name, kind: FormalKind::Axis, default: None };
        for part in parts {
            if part.as_rule() == Rule::formal_kind {
                formal.kind = match part.as_str() {
                    "number" => FormalKind::Number,
                    "numbers" => FormalKind::Numbers,
                    "integrator" => FormalKind::Integrator,
                    "block" => FormalKind::Block,
                    _ => FormalKind::Blocks,
                };
            } else {
                formal.default = Some(self.expr(part)?);
            }
        }
        Some(formal)
    }

    fn member<'i>(
        &mut self,
        rule: Rule,
        mut parts: impl Iterator<Item = Pair<'i, Rule>>,
        span: Span,
    ) -> Option<Member> {
        let name = self.ident(&parts.next()?);
        let doc = None;
        Some(match rule {
            Rule::param_line => self.param(name, parts, span)?,
            Rule::state_line => {
                let axes = self.idents(parts.next()?);
                Member::State(State { doc, name, axes, start: self.expr(parts.next()?)?, span })
            }
            Rule::table_line => {
                let axes = self.idents(parts.next()?);
                Member::Table(Table { doc, name, axes, from: self.text(&parts.next()?), span })
            }
            Rule::sub_line => {
                let block = self.expr(parts.next()?)?;
                let training_only = parts.next().is_some();
                Member::Sub(Sub { doc, name, block, training_only, span })
            }
            Rule::stack_line => {
                let block = self.expr(parts.next()?)?;
                let item = self.ident(&parts.next()?);
                let list = self.expr(parts.next()?)?;
                let integrator = parts.next().map(|p| self.expr(p));
                let integrator = match integrator {
                    Some(integrator) => Some(integrator?),
                    None => None,
                };
                Member::Stack(Stack { doc, name, block, item, list, integrator, span })
            }
            _ => return None,
        })
    }

    fn param<'i>(
        &mut self,
        name: Ident,
        mut parts: impl Iterator<Item = Pair<'i, Rule>>,
        span: Span,
    ) -> Option<Member> {
        let axes = self.idents(parts.next()?);
        let (mut dtype, mut init, mut storage, mut active) = (None, None, None, None);
        for part in parts {
            match part.as_rule() {
                Rule::dtype => dtype = Some(dtype_of(&part)),
                Rule::init => init = Some(self.init(part)?),
                Rule::active => active = Some(self.active(part)?),
                _ => storage = self.storage(part),
            }
        }
        let init = init?;
        Some(Member::Param(Param { doc: None, name, axes, dtype, init, storage, active, span }))
    }

    fn storage(&self, pair: Pair<'_, Rule>) -> Option<StorageClause> {
        let span = self.span(&pair);
        Some(match pair.as_rule() {
            Rule::frozen => StorageClause::Frozen(self.text(&parts(pair).next()?)),
            Rule::quantized => StorageClause::Quantized(self.ident(&parts(pair).next()?)),
            _ => StorageClause::Adapter(span),
        })
    }

    fn active(&mut self, pair: Pair<'_, Rule>) -> Option<Active> {
        let mut parts = parts(pair);
        let count = self.expr(parts.next()?)?;
        Some(Active { count, of: self.ident(&parts.next()?) })
    }

    fn require<'i>(
        &mut self,
        parts: impl Iterator<Item = Pair<'i, Rule>>,
        span: Span,
    ) -> Option<Member> {
        let (mut conditions, mut reason) = (Vec::new(), None);
        for part in parts {
            match part.as_rule() {
                Rule::text => reason = Some(self.text(&part)),
                _ => conditions.push(self.expr(part)?),
            }
        }
        Some(Member::Require(Require { conditions, reason: reason?, span }))
    }

    fn init(&mut self, pair: Pair<'_, Rule>) -> Option<Init> {
        let mut parts = parts(pair);
        let name = self.ident(&parts.next()?);
        Some(Init { name, args: parts.map(|p| self.expr(p)).collect::<Option<_>>()? })
    }

    fn ports(&mut self, pair: Pair<'_, Rule>) -> Option<Vec<Port>> {
        parts(pair).map(|p| self.port(p)).collect()
    }

    fn outputs(&mut self, pair: Pair<'_, Rule>) -> Option<Vec<Port>> {
        if pair.as_rule() == Rule::outputs {
            self.ports(pair)
        } else {
            Some(vec![self.port(pair)?])
        }
    }

    fn port(&mut self, pair: Pair<'_, Rule>) -> Option<Port> {
        let (mut name, mut axes, mut dtype) = (None, None, None);
        for part in parts(pair) {
            match part.as_rule() {
                Rule::name => name = Some(self.ident(&part)),
                Rule::dtype => dtype = Some(dtype_of(&part)),
                _ => axes = Some(self.pattern(part)),
            }
        }
        Some(Port { name, axes: axes?, dtype })
    }

    fn pattern(&self, pair: Pair<'_, Rule>) -> AxisPattern {
        let span = self.span(&pair);
        let open = pair.clone().into_inner().any(|p| p.as_rule() == Rule::dots);
        AxisPattern { open, axes: self.idents(pair), span }
    }

    fn expr(&mut self, pair: Pair<'_, Rule>) -> Option<Expr> {
        Some(self.deep(pair)?.expr)
    }

    /// `sum (compare sum)?`
    fn deep(&mut self, pair: Pair<'_, Rule>) -> Option<Deep> {
        let mut parts = parts(pair);
        let left = self.sum(parts.next()?)?;
        let (Some(op), Some(right)) = (parts.next(), parts.next()) else {
            return Some(left);
        };
        let right = self.sum(right)?;
        let op = match op.as_rule() {
            Rule::less => BinaryOp::Less,
            Rule::less_equal => BinaryOp::LessEqual,
            Rule::greater => BinaryOp::Greater,
            _ => BinaryOp::GreaterEqual,
        };
        Some(self.binary(left, op, right))
    }

    fn binary(&mut self, left: Deep, op: BinaryOp, right: Deep) -> Deep {
        let span = Span { end: right.expr.span.end, ..left.expr.span };
        let depth = left.depth.max(right.depth) + 1;
        let kind = ExprKind::Binary(op, Box::new(left.expr), Box::new(right.expr));
        self.limit(kind, span, depth)
    }

    /// An expression that is over the limit is replaced by a number, so that no tree is ever
    /// deeper than the limit; the line is dropped afterwards.
    fn limit(&mut self, kind: ExprKind, span: Span, depth: u32) -> Deep {
        if depth <= MAX_DEPTH {
            return Deep { expr: Expr { kind, span }, depth };
        }
        self.too_deep.get_or_insert(span);
        let kind = ExprKind::Number { value: 0.0, text: "0".to_owned() };
        Deep { expr: Expr { kind, span }, depth: 0 }
    }

    fn sum(&mut self, pair: Pair<'_, Rule>) -> Option<Deep> {
        // The callbacks need the builder one at a time; the Pratt parser calls them in turn.
        let this = std::cell::RefCell::new(self);
        PRATT
            .map_primary(|pair| this.borrow_mut().primary(pair))
            .map_prefix(|op, value| {
                let mut this = this.borrow_mut();
                let value = value?;
                let span = Span { start: this.span(&op).start, ..value.expr.span };
                let depth = value.depth + 1;
                Some(this.limit(ExprKind::Negate(Box::new(value.expr)), span, depth))
            })
            .map_infix(|left, op, right| {
                let op = match op.as_rule() {
                    Rule::add => BinaryOp::Add,
                    Rule::subtract => BinaryOp::Sub,
                    Rule::multiply => BinaryOp::Mul,
                    _ => BinaryOp::Div,
                };
                Some(this.borrow_mut().binary(left?, op, right?))
            })
            .parse(parts(pair))
    }

    fn primary(&mut self, pair: Pair<'_, Rule>) -> Option<Deep> {
        let span = self.span(&pair);
        match pair.as_rule() {
            Rule::number => {
                let text = pair.as_str().to_owned();
                let value: f64 = text.parse().ok()?;
                if !value.is_finite() {
                    self.too_large.get_or_insert(span);
                }
                Some(self.limit(ExprKind::Number { value, text }, span, 1))
            }
            Rule::group => self.deep(parts(pair).next()?),
            Rule::list => {
                let items: Option<Vec<Deep>> = parts(pair).map(|p| self.deep(p)).collect();
                let items = items?;
                let depth = items.iter().map(|i| i.depth).max().unwrap_or(0) + 1;
                let items = items.into_iter().map(|i| i.expr).collect();
                Some(self.limit(ExprKind::List(items), span, depth))
            }
            _ => self.word(pair, span),
        }
    }

    fn word(&mut self, pair: Pair<'_, Rule>, span: Span) -> Option<Deep> {
        let mut parts = parts(pair);
        let name = self.ident(&parts.next()?);
        let Some(list) = parts.next() else {
            return Some(self.limit(ExprKind::Name(name.name), span, 1));
        };
        let mut depth = 0;
        let mut args = Vec::new();
        for part in self::parts(list) {
            let (arg, below) = self.arg(part)?;
            args.push(arg);
            depth = depth.max(below);
        }
        Some(self.limit(ExprKind::Call { callee: name, args }, span, depth + 1))
    }

    fn arg(&mut self, pair: Pair<'_, Rule>) -> Option<(Arg, u32)> {
        let span = self.span(&pair);
        let rule = pair.as_rule();
        if rule == Rule::expr {
            let value = self.deep(pair)?;
            return Some((Arg::Value(value.expr), value.depth));
        }
        let mut parts = parts(pair);
        let first = parts.next()?;
        Some(match rule {
            Rule::over => (Arg::Over(self.name_list(first), span), 0),
            Rule::map => {
                let from = self.name_list(first);
                (Arg::Map { from, to: self.name_list(parts.next()?), span }, 0)
            }
            Rule::named => {
                let value = self.deep(parts.next()?)?;
                (Arg::Named(self.ident(&first), value.expr), value.depth)
            }
            _ => {
                let axis = self.ident(&first);
                let start = self.deep(parts.next()?)?;
                let Some(end) = parts.next() else {
                    return Some((Arg::At { axis, index: start.expr, span }, start.depth));
                };
                let end = self.deep(end)?;
                let to = self.ident(&parts.next()?);
                let depth = start.depth.max(end.depth);
                (Arg::Range { axis, start: start.expr, end: end.expr, to, span }, depth)
            }
        })
    }

    /// `d` or `(s, d)`
    fn name_list(&self, pair: Pair<'_, Rule>) -> Vec<Ident> {
        if pair.as_rule() == Rule::name { vec![self.ident(&pair)] } else { self.idents(pair) }
    }
}

fn dtype_of(pair: &Pair<'_, Rule>) -> DType {
    match pair.as_str() {
        "f32" => DType::F32,
        "index" => DType::Index,
        "bool" => DType::Bool,
        _ => DType::Act,
    }
}
