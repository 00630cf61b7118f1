//! Patterns of paths and the loops around them.

use super::codes;
use super::numbers::Names;
use super::tree::Side;
use lightc_dsl::ast::{self, IndexList, Loop, Segment};
use lightc_dsl::diag::Diag;
use lightc_dsl::names::closest;
use lightc_dsl::source::Span;

/// One step of a pattern whose indices are numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Name(String),
    Any,
    Deep,
}

/// A pattern, and where it is written.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) steps: Vec<Step>,
    pub(super) span: Span,
}

/// What each wildcard of a pattern stands for, in order.
pub(super) type Captures = Vec<Vec<String>>;

/// More rules than any stage has tensors: loops that go on for ever end here.
const MAX_ROUNDS: usize = 100_000;

impl Pattern {
    /// A written path under a prefix, with its indices computed.
    pub(super) fn new(prefix: &str, path: &ast::Path, names: &Names) -> Result<Pattern, Box<Diag>> {
        let mut steps: Vec<Step> = segments(prefix).map(Step::Name).collect();
        for segment in &path.segments {
            match segment {
                Segment::Name(name) => steps.push(Step::Name(name.name.clone())),
                Segment::Index(name, index) => {
                    steps.push(Step::Name(name.name.clone()));
                    steps.push(Step::Name(names.index(index)?.to_string()));
                }
                Segment::Any => steps.push(Step::Any),
                Segment::Deep => steps.push(Step::Deep),
            }
        }
        Ok(Pattern { steps, span: path.span })
    }

    pub(super) fn matches(&self, path: &str) -> Option<Captures> {
        let parts: Vec<&str> = path.split('.').collect();
        let mut captures = Vec::new();
        match_steps(&self.steps, &parts, &mut captures).then_some(captures)
    }

    pub(super) fn wildcards(&self) -> usize {
        self.steps.iter().filter(|s| !matches!(s, Step::Name(_))).count()
    }

    /// The path that the captures of another pattern give; wildcards correspond in order.
    pub(super) fn fill(&self, captures: &Captures) -> Option<String> {
        let mut rest = captures.iter();
        let mut parts: Vec<&str> = Vec::new();
        for step in &self.steps {
            match step {
                Step::Name(name) => parts.push(name),
                Step::Any | Step::Deep => {
                    let capture = rest.next()?;
                    if *step == Step::Any && capture.len() != 1 {
                        return None;
                    }
                    parts.extend(capture.iter().map(String::as_str));
                }
            }
        }
        rest.next().is_none().then(|| parts.join("."))
    }

    /// The names before the first wildcard, as a path.
    pub(super) fn root(&self) -> String {
        let names = self.steps.iter().map_while(|step| match step {
            Step::Name(name) => Some(name.as_str()),
            _ => None,
        });
        names.collect::<Vec<_>>().join(".")
    }

    pub(super) fn text(&self) -> String {
        let steps = self.steps.iter().map(|step| match step {
            Step::Name(name) => name.as_str(),
            Step::Any => "*",
            Step::Deep => "**",
        });
        steps.collect::<Vec<_>>().join(".")
    }
}

fn segments(path: &str) -> impl Iterator<Item = String> {
    path.split('.').filter(|s| !s.is_empty()).map(str::to_owned)
}

fn match_steps(steps: &[Step], parts: &[&str], captures: &mut Captures) -> bool {
    let Some((step, rest)) = steps.split_first() else {
        return parts.is_empty();
    };
    match step {
        Step::Name(name) => match parts.split_first() {
            Some((part, below)) if part == name => match_steps(rest, below, captures),
            _ => false,
        },
        Step::Any => match parts.split_first() {
            Some((part, below)) => {
                captures.push(vec![(*part).to_owned()]);
                let fits = match_steps(rest, below, captures);
                if !fits {
                    captures.pop();
                }
                fits
            }
            None => false,
        },
        Step::Deep => (0..=parts.len()).any(|n| {
            let (taken, below) = parts.split_at(n);
            captures.push(taken.iter().map(|p| (*p).to_owned()).collect());
            let fits = match_steps(rest, below, captures);
            if !fits {
                captures.pop();
            }
            fits
        }),
    }
}

/// Every combination of the loops' variables, outermost first; one without any where there are no
/// loops.
pub(super) fn rounds(loops: &[Loop], names: &Names) -> Result<Vec<Names>, Vec<Diag>> {
    let mut all = vec![names.clone()];
    for item in loops {
        let lists = lists(item, names)?;
        for variable in &item.variables {
            if all.iter().any(|n| n.variables.contains_key(&variable.name)) {
                let message = format!("the index variable `{}` is bound twice", variable.name);
                let diag = Diag::error(codes::VARIABLES, message, variable.span, "second loop");
                return Err(vec![diag.with_help("give one of them another name")]);
            }
        }
        let length = lists.first().map_or(0, Vec::len);
        if all.len().saturating_mul(length) > MAX_ROUNDS {
            let message = format!("the loops have more than {MAX_ROUNDS} rounds");
            return Err(vec![Diag::error(codes::VARIABLES, message, item.span, "too many")]);
        }
        let mut next = Vec::with_capacity(all.len() * length);
        for names in &all {
            for round in 0..length {
                let mut names = names.clone();
                for (variable, list) in item.variables.iter().zip(&lists) {
                    let index = list.get(round).copied().unwrap_or(0);
                    names.variables.insert(variable.name.clone(), index as i64);
                }
                next.push(names);
            }
        }
        all = next;
    }
    Ok(all)
}

fn lists(item: &Loop, names: &Names) -> Result<Vec<Vec<u64>>, Vec<Diag>> {
    if item.variables.len() != item.lists.len() {
        let message =
            format!("{} index variables go over {} lists", item.variables.len(), item.lists.len());
        let diag = Diag::error(codes::VARIABLES, message, item.span, "one list for each variable");
        return Err(vec![diag.with_help("write `for i, j in zip(0 .. 4, [0 .. 2, 0 .. 2])`")]);
    }
    let (mut found, mut diags) = (Vec::new(), Vec::new());
    for list in &item.lists {
        match indices(list, names) {
            Ok(list) => found.push(list),
            Err(diag) => diags.push(*diag),
        }
    }
    if !diags.is_empty() {
        return Err(diags);
    }
    let lengths: Vec<usize> = found.iter().map(Vec::len).collect();
    if let Some(position) = lengths.iter().position(|n| Some(n) != lengths.first())
        && let (Some(first), Some(other)) = (item.lists.first(), item.lists.get(position))
    {
        let (n, m) = (lengths.first().unwrap_or(&0), lengths.get(position).unwrap_or(&0));
        return Err(vec![
            Diag::error(
                codes::ZIP_LENGTHS,
                format!("the lists of a zip have {n} and {m} indices"),
                other.span,
                format!("{m} indices"),
            )
            .with_related(first.span, format!("{n} indices"))
            .with_help("lists that are gone through together are equally long; none is cut"),
        ]);
    }
    Ok(found)
}

/// The indices of a list, in order.
pub(super) fn indices(list: &IndexList, names: &Names) -> Result<Vec<u64>, Box<Diag>> {
    let mut found = Vec::new();
    for item in &list.items {
        let start = names.index(&item.start)?;
        let end = match &item.end {
            Some(end) => names.index(end)?,
            None => start + 1,
        };
        if end.saturating_sub(start) as usize + found.len() > MAX_ROUNDS {
            let message = format!("the list has more than {MAX_ROUNDS} indices");
            return Err(Box::new(Diag::error(codes::VARIABLES, message, list.span, "too long")));
        }
        if end < start {
            let message = format!("the range {start} .. {end} ends before it starts");
            return Err(Box::new(
                Diag::error(codes::OUT_OF_RANGE, message, list.span, "runs backwards")
                    .with_help(format!("write `{end} .. {start}`, or list the indices")),
            ));
        }
        found.extend(start..end);
    }
    Ok(found)
}

/// Why a path of a side names nothing: a layer out of range, or a name that is not there.
pub(super) fn unknown(side: &Side, path: &str, span: Span) -> Diag {
    let stage = &side.model.name;
    let mut known = String::new();
    for part in path.split('.') {
        let next = crate::ir::paths::join(&known, part);
        let layers = side.layers(&next).is_some();
        let inside = side.nodes.contains_key(&next) || layers || side.tensor(&next).is_some();
        if inside {
            known = next;
            continue;
        }
        if let Some(n) = side.layers(&known)
            && part.parse::<usize>().is_ok()
        {
            let (parent, name) = known.rsplit_once('.').unwrap_or(("", &known));
            let declared = side.instance(parent);
            let declared = declared.and_then(|i| i.subs.iter().find(|s| s.name == name));
            let diag = Diag::error(
                codes::OUT_OF_RANGE,
                format!("`{stage}` has no `{next}`: `{known}` has {n} layers"),
                span,
                format!("indices go from 0 to {}", n.saturating_sub(1)),
            );
            let diag = match declared {
                Some(sub) => diag.with_related(sub.span, format!("{n} layers in `{stage}`")),
                None => diag,
            };
            return diag.with_help(format!("use an index below {n}"));
        }
        break;
    }
    let message = match known.is_empty() {
        true => format!("`{stage}` has no `{path}`"),
        false => format!("`{stage}` has no `{path}`: nothing of that name is under `{known}`"),
    };
    let diag = Diag::error(codes::UNKNOWN_PATH, message, span, format!("not in `{stage}`"));
    let wrong = path.get(known.len()..).unwrap_or("").trim_start_matches('.');
    let wrong = wrong.split('.').next().unwrap_or("");
    let mut near: Vec<&str> = side
        .nodes
        .keys()
        .chain(side.tensors.iter().map(|t| &t.path))
        .filter_map(|p| match known.is_empty() {
            true => Some(p.as_str()),
            false => p.strip_prefix(known.as_str())?.strip_prefix('.'),
        })
        .filter_map(|p| p.split('.').next())
        .filter(|p| !p.is_empty())
        .collect();
    near.sort_unstable();
    near.dedup();
    match closest(wrong, near.iter().copied()) {
        Some(name) => diag.with_help(format!("`{}` exists", crate::ir::paths::join(&known, name))),
        None => {
            let names: Vec<String> = near.iter().take(8).map(|n| format!("`{n}`")).collect();
            diag.with_help(format!("there are {}", names.join(", ")))
        }
    }
}
