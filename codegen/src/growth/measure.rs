//! How far a map changes the function: measured on random weights and inputs.

use super::GrowthMap;
use super::settings;
use super::tree::Side;
use super::trial::{Compared, Trial, same_place};
use crate::interp::{self, Store};
use crate::ops::{Array, EvalError};
use lightc_dsl::ast::DType;
use lightc_dsl::model::InitLaw;
use ndarray::ArrayView1;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What changes, over all trials.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Change {
    /// Outputs of the stage, and the last hidden state where it has one.
    pub outputs: Vec<Measured>,
    /// Blocks that were replaced by others, given the same input: one entry for all layers.
    pub blocks: Vec<Measured>,
    /// Routers whose experts are clones.
    pub routing: Vec<Routing>,
}

/// Target against source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Output, or path of the block without the indices of layers.
    pub name: String,
    /// Length of the target's value over that of the source's.
    pub norm: f64,
    /// Length of the part along the source's value, over that of the source's.
    pub projection: f64,
    /// Cosine between the two.
    pub cosine: f64,
    /// Length of the difference over that of the source's value.
    pub error: f64,
}

/// Which source experts the slots of a grown router are clones of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Routing {
    /// Path of the router without the indices of layers.
    pub name: String,
    /// Slots per position.
    pub slots: usize,
    /// Experts of the source.
    pub experts: usize,
    /// Share of positions whose slots are all clones of one source expert.
    pub one_source: f64,
    /// Whose clones the slots are, by the choices of the source.
    #[serde(flatten)]
    pub slots_of: Shares,
    /// The same by the choices that the source makes without what the map drops of its router, such
    /// as a learned bias: what is lost is not counted as a wrong clone.
    pub without_dropped: Option<Shares>,
}

/// Shares of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Shares {
    /// Clones of the source's first choice.
    pub top1: f64,
    /// Clones of one of the source's first two.
    pub top2: f64,
}

/// Sums over which the ratios are taken.
#[derive(Clone, Debug, Default)]
struct Sums {
    source: f64,
    target: f64,
    product: f64,
    difference: f64,
}

impl Sums {
    fn add(&mut self, source: &Array, target: &Array) {
        for (a, b) in source.iter().zip(target) {
            self.source += a * a;
            self.target += b * b;
            self.product += a * b;
            self.difference += (a - b) * (a - b);
        }
    }

    fn measured(&self, name: &str) -> Measured {
        let length = self.source.max(f64::MIN_POSITIVE);
        Measured {
            name: name.to_owned(),
            norm: (self.target / length).sqrt(),
            projection: self.product / length,
            cosine: self.product / (length * self.target.max(f64::MIN_POSITIVE)).sqrt(),
            error: (self.difference / length).sqrt(),
        }
    }
}

/// Collects what trials say.
#[derive(Default)]
pub(super) struct Meter {
    outputs: Vec<String>,
    sums: BTreeMap<(bool, String), Sums>,
    routing: BTreeMap<String, RoutingSums>,
}

#[derive(Default)]
struct RoutingSums {
    slots: usize,
    experts: usize,
    positions: usize,
    one_source: usize,
    as_it_is: ChoiceSums,
    without_dropped: Option<ChoiceSums>,
}

/// How many slots are clones of what the source chose.
#[derive(Default)]
struct ChoiceSums {
    real: usize,
    top1: usize,
    top2: usize,
}

impl Meter {
    pub(super) fn add(
        &mut self,
        map: &GrowthMap,
        source: &Side,
        target: &Side,
        trial: &Trial,
        outputs: &[Compared],
    ) -> Result<(), EvalError> {
        for compared in outputs {
            self.output(&compared.name, compared);
        }
        // The last norm gives the hidden state that the heads read.
        let calls = trial.calls(source, target)?;
        if let Some(hidden) = calls.iter().find(|call| call.name == "final_norm") {
            self.output("hidden", hidden);
        }
        self.blocks(source, target, trial)?;
        self.routers(map, source, target, trial)
    }

    fn output(&mut self, name: &str, compared: &Compared) {
        if !self.outputs.iter().any(|known| known == name) {
            self.outputs.push(name.to_owned());
        }
        let sums = self.sums.entry((true, name.to_owned())).or_default();
        sums.add(&compared.source, &compared.target);
    }

    /// Runs each replaced block on what the source's block at its place was given.
    fn blocks(&mut self, source: &Side, target: &Side, trial: &Trial) -> Result<(), EvalError> {
        let replaced = replaced(source, target);
        for visit in interp::visits(&source.module, &trial.source.trace) {
            if !replaced.contains(&visit.path) || !same_place(source, target, &visit.path) {
                continue;
            }
            let inputs = visit.inputs(&source.module)?;
            let Some(function) = function_at(target, &visit.path) else { continue };
            let (module, store) = (&target.module, &trial.target_store);
            let run = interp::run_at(module, function, &visit.path, &inputs, store)?;
            let outputs = visit.outputs(&source.module)?;
            if let (Some(a), Some(b)) = (outputs.first(), run.outputs.first())
                && a.shape() == b.shape()
            {
                let name = settings::without_indices(target, &visit.path);
                self.sums.entry((false, name)).or_default().add(a, b);
            }
        }
        Ok(())
    }

    /// Which clones a router picks, where expert `i` of the target is a clone of expert `i mod n`.
    fn routers(
        &mut self,
        map: &GrowthMap,
        source: &Side,
        target: &Side,
        trial: &Trial,
    ) -> Result<(), EvalError> {
        for visit in interp::visits(&source.module, &trial.source.trace) {
            if !same_place(source, target, &visit.path) {
                continue;
            }
            let Some((n_source, n_target)) = tiled_experts(map, source, target, &visit.path) else {
                continue;
            };
            let Some(function) = function_at(target, &visit.path) else { continue };
            let ids = target.module.function(function);
            let is_ids = ids.outputs.first().is_some_and(|o| ids.ty(o.value).dtype == DType::Index);
            if !is_ids || n_target <= n_source {
                continue;
            }
            let inputs = visit.inputs(&source.module)?;
            let (module, store) = (&target.module, &trial.target_store);
            let run = interp::run_at(module, function, &visit.path, &inputs, store)?;
            let outputs = visit.outputs(&source.module)?;
            let (Some(from), Some(to)) = (outputs.first(), run.outputs.first()) else { continue };
            let name = settings::without_indices(target, &visit.path);
            let sums = self.routing.entry(name).or_default();
            sums.add(from, to, n_source);
            if let Some(store) = without_dropped(map, source, trial, &visit.path) {
                let (module, id) = (&source.module, visit.function);
                let run = interp::run_at(module, id, &visit.path, &inputs, &store)?;
                if let Some(from) = run.outputs.first() {
                    sums.without_dropped.get_or_insert_default().add(from, to, n_source);
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Change {
        let outputs = self
            .outputs
            .iter()
            .filter_map(|name| Some(self.sums.get(&(true, name.clone()))?.measured(name)))
            .collect();
        let blocks = self.sums.iter().filter(|((output, _), _)| !output);
        let blocks = blocks.map(|((_, name), sums)| sums.measured(name)).collect();
        let routing = self.routing.iter().map(|(name, sums)| sums.measured(name)).collect();
        Change { outputs, blocks, routing }
    }
}

impl RoutingSums {
    fn add(&mut self, from: &Array, to: &Array, experts: usize) {
        self.experts = experts;
        self.slots = to.shape().last().copied().unwrap_or(0);
        for slots in lanes(to) {
            let clones: Vec<usize> = real(slots).map(|expert| expert % experts).collect();
            self.positions += 1;
            self.one_source += usize::from(clones.iter().all(|c| Some(c) == clones.first()));
        }
        self.as_it_is.add(from, to, experts);
    }

    fn measured(&self, name: &str) -> Routing {
        Routing {
            name: name.to_owned(),
            slots: self.slots,
            experts: self.experts,
            one_source: share(self.one_source, self.positions),
            slots_of: self.as_it_is.shares(),
            without_dropped: self.without_dropped.as_ref().map(ChoiceSums::shares),
        }
    }
}

impl ChoiceSums {
    fn add(&mut self, from: &Array, to: &Array, experts: usize) {
        for (source, target) in lanes(from).zip(lanes(to)) {
            let picks: Vec<usize> = real(source).take(2).collect();
            for clone in real(target).map(|expert| expert % experts) {
                self.real += 1;
                self.top1 += usize::from(picks.first() == Some(&clone));
                self.top2 += usize::from(picks.contains(&clone));
            }
        }
    }

    fn shares(&self) -> Shares {
        Shares { top1: share(self.top1, self.real), top2: share(self.top2, self.real) }
    }
}

fn share(n: usize, of: usize) -> f64 {
    n as f64 / of.max(1) as f64
}

/// The slots of each position.
fn lanes(ids: &Array) -> impl Iterator<Item = ArrayView1<'_, f64>> {
    ids.lanes(ndarray::Axis(ids.ndim().saturating_sub(1))).into_iter()
}

/// Experts of the slots that are not null, in order.
fn real(slots: ArrayView1<'_, f64>) -> impl Iterator<Item = usize> {
    slots.into_iter().filter(|id| **id >= 0.0).map(|id| *id as usize)
}

/// What the source stores, with what the map drops of the block at a path at the value that it
/// starts with; `None` where nothing is dropped there.
fn without_dropped(map: &GrowthMap, source: &Side, trial: &Trial, path: &str) -> Option<Store> {
    let prefix = format!("{path}.");
    let mut store = None;
    for placed in source.module.placed_params() {
        let dropped = map.drops.iter().any(|(dropped, _)| *dropped == placed.path);
        let start = match placed.item.init {
            InitLaw::Zeros => 0.0,
            InitLaw::Ones => 1.0,
            InitLaw::Constant { value } => value,
            // A drawn tensor is not learned from nothing: it has no value without it.
            _ => continue,
        };
        if dropped && placed.path.starts_with(&prefix) {
            let store = store.get_or_insert_with(|| trial.source_store.clone());
            if let Some(array) = store.params.get_mut(&placed.path) {
                array.fill(start);
            }
        }
    }
    store
}

/// Places of both trees where one block replaced another, and no place below does.
fn replaced(source: &Side, target: &Side) -> BTreeSet<String> {
    let differs = |path: &str| match (source.instance(path), target.instance(path)) {
        (Some(a), Some(b)) => {
            let subs = |i: &lightc_dsl::model::Instance| -> Vec<String> {
                i.subs.iter().map(|s| s.name.clone()).collect()
            };
            a.block != b.block || subs(a) != subs(b)
        }
        _ => false,
    };
    let comparable = |path: &str| {
        let float = |side: &Side| {
            function_at(side, path).is_some_and(|id| {
                let function = side.module.function(id);
                function.outputs.first().is_some_and(|o| function.ty(o.value).is_float())
            })
        };
        float(source) && float(target) && inputs_at(source, path) == inputs_at(target, path)
    };
    let mut found = BTreeSet::new();
    for path in target.nodes.keys().filter(|path| differs(path)) {
        // The nearest block around it whose values can be compared.
        let mut at = path.as_str();
        while !comparable(at) {
            match at.rsplit_once('.') {
                Some((outer, _)) => at = outer,
                None => break,
            }
        }
        if comparable(at) && !at.is_empty() {
            found.insert(at.to_owned());
        }
    }
    found
}

/// Name of an input, and its axes with the sizes that are known.
type Shape = (String, Vec<(String, Option<i64>)>);

/// Inputs of the block at a path.
fn inputs_at(side: &Side, path: &str) -> Option<Vec<Shape>> {
    let function = side.module.function(function_at(side, path)?);
    let inputs = function.inputs().map(|(name, value)| {
        let axes = &function.ty(value).axes;
        let axes = axes.iter().map(|axis| (axis.name.clone(), axis.size.as_constant()));
        (name.to_owned(), axes.collect())
    });
    Some(inputs.collect())
}

/// The function of the block at a path.
pub(super) fn function_at(side: &Side, path: &str) -> Option<crate::ir::FuncId> {
    let mut at = side.module.entry;
    let mut parts = path.split('.').filter(|p| !p.is_empty());
    while let Some(part) = parts.next() {
        let sub = side.module.function(at).subs.iter().find(|sub| sub.name == part)?;
        let layer = if sub.is_stack { parts.next()?.parse().ok()? } else { 0 };
        at = *sub.callees.get(layer)?;
    }
    Some(at)
}

/// How many experts the source and the target have, where a weight of the router at `path` is the
/// source's, tiled.
fn tiled_experts(
    map: &GrowthMap,
    source: &Side,
    target: &Side,
    path: &str,
) -> Option<(usize, usize)> {
    let prefix = format!("{path}.");
    let rule = map.params.iter().find(|rule| {
        rule.path.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('.'))
            && rule.ty.axes.len() == 2
    })?;
    let mut leaves = Vec::new();
    rule.rule.sources(&mut leaves);
    let from = source.tensor(leaves.first()?)?;
    let to = target.tensor(&rule.path)?;
    let axis = to.ty.axes.first()?;
    let size = |s: &lightc_dsl::size::Size| s.as_constant().and_then(|n| usize::try_from(n).ok());
    Some((size(&from.ty.axis(&axis.name)?.size)?, size(&axis.size)?))
}
