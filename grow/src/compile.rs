//! Rules of a map to nodes: sizes become numbers, names of axes positions, keys choices.

use crate::error::{Error, Result};
use crate::node::{Keeps, Kind, Node, Rest};
use crate::region::at;
use lightc_codegen::growth::{Rule, RuleKind};
use lightc_codegen::ir::Type;
use lightc_numerics::draw::Stream;
use lightc_numerics::hadamard::Hadamard;
use lightc_numerics::int8::Format;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Makes nodes of the rules of one map.
pub(crate) struct Compiler<'a> {
    /// Seed of all draws.
    pub(crate) seed: u64,
    /// The node of a source tensor, by its path.
    pub(crate) source: &'a dyn Fn(&str) -> Option<Node>,
    /// The target tensor, for messages.
    pub(crate) path: &'a str,
}

/// The sizes of a type.
pub(crate) fn shape_of(path: &str, ty: &Type) -> Result<Vec<usize>> {
    let size = |axis: &lightc_dsl::model::Axis| {
        let size = axis.size.as_constant().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| Error::Open {
            path: path.to_owned(),
            axis: axis.name.clone(),
            size: axis.size.to_string(),
        })
    };
    ty.axes.iter().map(size).collect()
}

impl Compiler<'_> {
    fn fault<T>(&self, detail: impl Into<String>) -> Result<T> {
        Err(Error::Rule { path: self.path.to_owned(), detail: detail.into() })
    }

    fn axis(&self, ty: &Type, name: &str) -> Result<usize> {
        match ty.position(name) {
            Some(axis) => Ok(axis),
            None => self.fault(format!("{ty} has no axis `{name}`")),
        }
    }

    fn boxed(&self, rule: &Rule) -> Result<Box<Node>> {
        Ok(Box::new(self.node(rule)?))
    }

    /// The node of a rule.
    pub(crate) fn node(&self, rule: &Rule) -> Result<Node> {
        let shape = shape_of(self.path, &rule.ty)?;
        let kind = match &rule.kind {
            RuleKind::Source { path } => match (self.source)(path) {
                Some(node) if node.shape == shape => return Ok(node),
                Some(node) => {
                    let detail = format!("`{path}` has shape {:?}, not {shape:?}", node.shape);
                    return self.fault(detail);
                }
                None => return self.fault(format!("the source has no `{path}`")),
            },
            // The same values under other names.
            RuleKind::Rename { of, .. } => return self.node(of),
            RuleKind::Fill { value } => Kind::Fill(*value),
            RuleKind::Draw { law, key } => Kind::Draw { law: *law, key: key.clone() },
            RuleKind::Scale { of, factor } => {
                let Some(factor) = factor.evaluate(&BTreeMap::new()) else {
                    return self.fault("a factor has an open size");
                };
                Kind::Scale { of: self.boxed(of)?, factor }
            }
            RuleKind::Add { left, right } => Kind::Add(self.boxed(left)?, self.boxed(right)?),
            RuleKind::Concat { parts, axis } => Kind::Concat {
                parts: parts.iter().map(|part| self.node(part)).collect::<Result<_>>()?,
                axis: self.axis(&rule.ty, axis)?,
            },
            RuleKind::Tile { of, axis } => {
                Kind::Tile { of: self.boxed(of)?, axis: self.axis(&rule.ty, axis)? }
            }
            RuleKind::Interleave { of, axis } => {
                let (of, axis) = (self.boxed(of)?, self.axis(&rule.ty, axis)?);
                let times = at(&shape, axis) / at(&of.shape, axis).max(1);
                Kind::Interleave { of, axis, times }
            }
            RuleKind::Repeat { of, axis } => {
                Kind::Repeat { of: self.boxed(of)?, axis: self.axis(&rule.ty, axis)? }
            }
            RuleKind::Slice { of, axis, start } => {
                let Some(start) = start.as_constant().and_then(|n| usize::try_from(n).ok()) else {
                    return self.fault(format!("a slice starts at `{start}`"));
                };
                Kind::Slice { of: self.boxed(of)?, axis: self.axis(&rule.ty, axis)?, start }
            }
            RuleKind::Select { of, axis, positions } => Kind::Pick {
                of: self.boxed(of)?,
                axis: self.axis(&rule.ty, axis)?,
                positions: positions.iter().map(|position| *position as usize).collect(),
            },
            RuleKind::Subset { of, axis, each, key } => {
                self.subset(rule, &shape, self.boxed(of)?, axis, each.as_deref(), key)?
            }
            RuleKind::Redraw { of, axis, keep, each, key, values } => {
                let Some(n_kept) = keep.as_constant().and_then(|n| usize::try_from(n).ok()) else {
                    return self.fault(format!("`{keep}` positions are kept"));
                };
                let (axis, each) = (self.axis(&rule.ty, axis)?, each.as_deref());
                let each = each.map(|each| self.axis(&rule.ty, each)).transpose()?;
                let size = at(&shape, axis);
                let chosen = self.chosen(key, each.map(|each| at(&shape, each)), size, n_kept);
                let kept = chosen.into_iter().map(|positions| {
                    (0..size).map(|position| positions.contains(&position)).collect()
                });
                let keeps = Keeps { axis, each, kept: Arc::new(kept.collect()) };
                let moments = Arc::new(OnceLock::new());
                let rest = Rest::Drawn { key: values.clone(), moments };
                Kind::Keep { of: self.boxed(of)?, keeps, rest }
            }
            RuleKind::Noise { of, factor, key } => Kind::Noise {
                of: self.boxed(of)?,
                factor: *factor,
                key: key.clone(),
                moments: Arc::new(OnceLock::new()),
            },
            RuleKind::Permute { of } => {
                let order = rule.ty.axes.iter().map(|axis| self.axis(&of.ty, &axis.name));
                Kind::Permute { order: order.collect::<Result<_>>()?, of: self.boxed(of)? }
            }
            RuleKind::Split { of, from, to } => Kind::Split {
                axis: self.axis(&of.ty, from)?,
                n_parts: to.len(),
                of: self.boxed(of)?,
            },
            RuleKind::Merge { of, from, to } => Kind::Merge {
                axis: self.axis(&rule.ty, to)?,
                n_parts: from.len(),
                of: self.boxed(of)?,
            },
            RuleKind::Rotate { of, axis, seed } => {
                let axis = self.axis(&rule.ty, axis)?;
                let size = at(&shape, axis);
                let turn = i64::try_from(*seed).ok().and_then(|seed| Hadamard::new(seed, size));
                let Some(turn) = turn else {
                    return self.fault(format!("a turn over {size} positions"));
                };
                Kind::Rotate { of: self.boxed(of)?, axis, turn: Arc::new(turn) }
            }
        };
        let node = Node { shape, kind };
        self.check(&node)?;
        Ok(node)
    }

    fn subset(
        &self,
        rule: &Rule,
        shape: &[usize],
        of: Box<Node>,
        axis: &str,
        each: Option<&str>,
        key: &str,
    ) -> Result<Kind> {
        let axis = self.axis(&rule.ty, axis)?;
        let each = each.map(|each| self.axis(&rule.ty, each)).transpose()?;
        let inner = if each.is_some_and(|each| each < axis) { axis - 1 } else { axis };
        let (size, n_taken) = (at(&of.shape, inner), at(shape, axis));
        let mut positions = self.chosen(key, each.map(|each| at(shape, each)), size, n_taken);
        Ok(match each {
            Some(each) => Kind::PickEach { of, axis, each, positions },
            None => Kind::Pick { of, axis, positions: positions.pop().unwrap_or_default() },
        })
    }

    /// The first `n_taken` positions of the permutation of a stream, or of one stream per position
    /// of another axis.
    fn chosen(&self, key: &str, each: Option<usize>, size: usize, n: usize) -> Vec<Vec<usize>> {
        let choice = |key: &str| -> Vec<usize> {
            let order = Stream::new(self.seed, key).permutation(size);
            order.into_iter().take(n).map(|position| position as usize).collect()
        };
        match each {
            None => vec![choice(key)],
            Some(each) => (0..each).map(|e| choice(&format!("{key}.{e}"))).collect(),
        }
    }

    /// That shapes fit: evaluation relies on it.
    fn check(&self, node: &Node) -> Result<()> {
        let shape = &node.shape;
        let with = |of: &Node, axis: usize| {
            let mut expected = of.shape.clone();
            if let (Some(place), Some(size)) = (expected.get_mut(axis), shape.get(axis)) {
                *place = *size;
            }
            expected
        };
        let n_of = |of: &Node, axis: usize| at(&of.shape, axis);
        let fits = match &node.kind {
            Kind::Scale { of, .. }
            | Kind::Noise { of, .. }
            | Kind::Keep { of, .. }
            | Kind::Mean { of, .. }
            | Kind::Rotate { of, .. } => of.shape == *shape,
            Kind::Add(left, right) => left.shape == *shape && right.shape == *shape,
            Kind::Concat { parts, axis } => {
                let total: usize = parts.iter().map(|part| n_of(part, *axis)).sum();
                total == at(shape, *axis) && parts.iter().all(|part| with(part, *axis) == *shape)
            }
            Kind::Tile { of, axis } => {
                at(shape, *axis).is_multiple_of(n_of(of, *axis).max(1)) && with(of, *axis) == *shape
            }
            Kind::Interleave { of, axis, times } => {
                at(shape, *axis) == n_of(of, *axis) * times && with(of, *axis) == *shape
            }
            Kind::Repeat { of, axis } => {
                let mut expected = of.shape.clone();
                *axis <= expected.len() && {
                    expected.insert(*axis, at(shape, *axis));
                    expected == *shape
                }
            }
            Kind::Slice { of, axis, start } => {
                start + at(shape, *axis) <= n_of(of, *axis) && with(of, *axis) == *shape
            }
            Kind::Pick { of, axis, positions } => {
                let inside = positions.iter().all(|position| *position < n_of(of, *axis));
                inside && positions.len() == at(shape, *axis) && with(of, *axis) == *shape
            }
            Kind::PickEach { axis, each, positions, .. } => {
                positions.len() == at(shape, *each)
                    && positions.iter().all(|list| list.len() == at(shape, *axis))
            }
            Kind::Permute { of, order } => {
                let permuted: Vec<usize> = order.iter().map(|axis| n_of(of, *axis)).collect();
                permuted == *shape
            }
            Kind::Split { of, .. } | Kind::Merge { of, .. } => of.n_elements() == node.n_elements(),
            // Made by the plan, not by a rule.
            Kind::Codes { .. } | Kind::Scales { .. } | Kind::Dequantize { .. } => true,
            Kind::Source(_) | Kind::Fill(_) | Kind::Draw { .. } => true,
        };
        if fits {
            return Ok(());
        }
        let children: Vec<_> = node.children().iter().map(|child| &child.shape).collect();
        self.fault(format!("{shape:?} cannot be made of {children:?}"))
    }
}

/// The rule of moments from the rule of values: what is filled or drawn has none, factors count to
/// the given power. `source` is the moments of a source tensor; `None` is where it has none.
pub(crate) fn moments(
    node: &Node,
    power: i32,
    source: &dyn Fn(usize) -> Result<Node>,
) -> Result<Node> {
    let of = |child: &Node| -> Result<Box<Node>> { Ok(Box::new(moments(child, power, source)?)) };
    let kind = match &node.kind {
        Kind::Source(tensor) => return source(*tensor),
        Kind::Fill(_) | Kind::Draw { .. } => Kind::Fill(0.0),
        Kind::Dequantize { codes, .. } => return moments(codes, power, source),
        Kind::Codes { of, .. } | Kind::Scales { of, .. } => return moments(of, power, source),
        Kind::Noise { of, .. } => return moments(of, power, source),
        Kind::Scale { of: child, factor } => {
            Kind::Scale { of: of(child)?, factor: factor.powi(power) }
        }
        Kind::Add(left, right) => Kind::Add(of(left)?, of(right)?),
        Kind::Concat { parts, axis } => Kind::Concat {
            parts: parts.iter().map(|part| moments(part, power, source)).collect::<Result<_>>()?,
            axis: *axis,
        },
        Kind::Keep { of: child, keeps, .. } => {
            Kind::Keep { of: of(child)?, keeps: keeps.clone(), rest: Rest::Zero }
        }
        Kind::Rotate { of: child, axis, turn } if power == 1 => {
            Kind::Rotate { of: of(child)?, axis: *axis, turn: Arc::clone(turn) }
        }
        // Squares of the entries of a rotation are all 1 / n.
        Kind::Rotate { of: child, axis, .. } | Kind::Mean { of: child, axis } => {
            Kind::Mean { of: of(child)?, axis: *axis }
        }
        Kind::Tile { of: child, axis } => Kind::Tile { of: of(child)?, axis: *axis },
        Kind::Interleave { of: child, axis, times } => {
            Kind::Interleave { of: of(child)?, axis: *axis, times: *times }
        }
        Kind::Repeat { of: child, axis } => Kind::Repeat { of: of(child)?, axis: *axis },
        Kind::Slice { of: child, axis, start } => {
            Kind::Slice { of: of(child)?, axis: *axis, start: *start }
        }
        Kind::Pick { of: child, axis, positions } => {
            Kind::Pick { of: of(child)?, axis: *axis, positions: positions.clone() }
        }
        Kind::PickEach { of: child, axis, each, positions } => Kind::PickEach {
            of: of(child)?,
            axis: *axis,
            each: *each,
            positions: positions.clone(),
        },
        Kind::Permute { of: child, order } => {
            Kind::Permute { of: of(child)?, order: order.clone() }
        }
        Kind::Split { of: child, axis, n_parts } => {
            Kind::Split { of: of(child)?, axis: *axis, n_parts: *n_parts }
        }
        Kind::Merge { of: child, axis, n_parts } => {
            Kind::Merge { of: of(child)?, axis: *axis, n_parts: *n_parts }
        }
    };
    Ok(Node { shape: node.shape.clone(), kind })
}

/// The codes or the scales of a node whose rows along the last axis are stored in 8 bits. What moves
/// rows as they are moves codes and scales as they are; other rows are quantized.
pub(crate) fn quantized(node: &Node, format: Format, is_codes: bool) -> Node {
    let part = |of: &Node| Box::new(quantized(of, format, is_codes));
    let last = node.shape.len().saturating_sub(1);
    let inner = |of: &Node| of.shape.len().saturating_sub(1);
    let mut shape = node.shape.clone();
    if !is_codes {
        let _ = shape.pop();
    }
    let kind = match &node.kind {
        Kind::Dequantize { codes, scales, format: stored } if *stored == format => {
            return if is_codes { (**codes).clone() } else { (**scales).clone() };
        }
        Kind::Concat { parts, axis } if *axis != last => {
            let parts = parts.iter().map(|of| quantized(of, format, is_codes)).collect();
            Kind::Concat { parts, axis: *axis }
        }
        Kind::Tile { of, axis } if *axis != last => Kind::Tile { of: part(of), axis: *axis },
        Kind::Interleave { of, axis, times } if *axis != last => {
            Kind::Interleave { of: part(of), axis: *axis, times: *times }
        }
        Kind::Repeat { of, axis } if *axis != last => Kind::Repeat { of: part(of), axis: *axis },
        Kind::Slice { of, axis, start } if *axis != last => {
            Kind::Slice { of: part(of), axis: *axis, start: *start }
        }
        Kind::Pick { of, axis, positions } if *axis != last => {
            Kind::Pick { of: part(of), axis: *axis, positions: positions.clone() }
        }
        Kind::PickEach { of, axis, each, positions }
            if *axis != last && *each != last && inner(of) + 1 == last =>
        {
            let positions = positions.clone();
            Kind::PickEach { of: part(of), axis: *axis, each: *each, positions }
        }
        _ if is_codes => Kind::Codes { of: Box::new(node.clone()), format },
        _ => Kind::Scales { of: Box::new(node.clone()), format },
    };
    Node { shape, kind }
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
