//! Pairs of functions: a function of the target, under the rules of its parameters, against one of
//! the source.
//!
//! A stage is a graph of calls. Its proof is one per pair of functions: calls of the source are
//! leaves, and a call of the target is replaced by one of the source where its arguments are
//! known to be related (equal, or followed by zeros along an axis) and the pair of callees is
//! proved under those relations. Otherwise both callees are written out in place. Equal layers are
//! proved once.

use super::graph::{Ended, Graph, Tree};
use super::read::{self, Sizes, bound_ty, padded};
use super::scale::Scale;
use super::term::{Axes, Head, Step, Ty};
use super::{Gap, Maps};
use crate::growth::apply::RESULT;
use crate::ir::paths::{join, sub_path};
use crate::ir::{FuncId, Function, Module, Node, PENALTIES, ValueId, has_penalties};
use crate::ops::Op;
use egg::Id;
use lightc_dsl::model::{Integrator, Midpoint};
use std::collections::{BTreeMap, BTreeSet};

/// A function at a path of its stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) func: FuncId,
    pub(super) path: String,
}

/// How a value of the target stands to that of the source: followed by zeros along these axes.
type Relation = Vec<String>;

/// A pair of functions, its relations at the inputs, and the rules below it by relative paths.
type Key = (FuncId, FuncId, Vec<Relation>, String);

/// What a proof has used.
pub(super) type Used = BTreeMap<&'static str, usize>;

/// Proves pairs, each once.
pub(super) struct Prover<'a> {
    pub(super) source: &'a Module,
    pub(super) target: &'a Module,
    pub(super) maps: &'a Maps<'a>,
    pub(super) used: Used,
    memo: BTreeMap<Key, Result<Vec<Relation>, Gap>>,
}

/// A call of the source.
struct Site {
    place: Place,
    sizes: Vec<Ty>,
    args: Vec<Id>,
    results: Vec<Id>,
    open: bool,
}

/// The proof of one pair.
struct Pair<'p, 'a> {
    prover: &'p mut Prover<'a>,
    graph: Graph,
    source_base: String,
    sites: Vec<Site>,
    /// What has been taken to be equal, to be explained at the end.
    obligations: Vec<(Id, Id, String)>,
    source_updates: BTreeMap<String, Id>,
    target_updates: BTreeMap<String, Id>,
    /// The most telling reason so far why it cannot be proved.
    gap: Option<Gap>,
}

impl<'a> Prover<'a> {
    pub(super) fn new(source: &'a Module, target: &'a Module, maps: &'a Maps<'a>) -> Self {
        Prover { source, target, maps, used: Used::new(), memo: BTreeMap::new() }
    }

    /// Relations of the outputs of `t`, given those of its inputs, to those of `s`.
    fn pair(&mut self, s: &Place, t: &Place, relations: &[Relation]) -> Result<Vec<Relation>, Gap> {
        let key = (s.func, t.func, relations.to_vec(), self.binding(s, t));
        if let Some(known) = self.memo.get(&key) {
            return known.clone();
        }
        let before = self.used.clone();
        let result = self.start(s).prove(s, t, &Ends::Related(relations));
        if result.is_err() {
            // What a failed attempt has proved on its way is no part of the proof.
            self.used = before;
        }
        self.memo.insert(key, result.clone());
        result
    }

    /// Proves the roots: inputs and outputs correspond as the map says.
    pub(super) fn root(&mut self) -> Result<(), Gap> {
        let root = |module: &Module| Place { func: module.entry, path: String::new() };
        let (s, t) = (root(self.source), root(self.target));
        self.start(&s).prove(&s, &t, &Ends::Ports).map(|_| ())
    }

    fn start(&mut self, s: &Place) -> Pair<'_, 'a> {
        Pair {
            prover: self,
            graph: Graph::new(),
            source_base: s.path.clone(),
            sites: Vec::new(),
            obligations: Vec::new(),
            source_updates: BTreeMap::new(),
            target_updates: BTreeMap::new(),
            gap: None,
        }
    }

    /// The rules below a target path, by paths relative to both sides.
    fn binding(&self, s: &Place, t: &Place) -> String {
        let mut text = String::new();
        for (path, rule) in self.maps.below(&t.path) {
            let named = |source: &str| relative(source, &s.path);
            let tree = read::rule(rule, &named);
            let rest = relative(path, &t.path);
            text.push_str(&format!("{rest} = {tree:?}\n"));
        }
        // Draws carry the path of their target. Which draw it is does not matter to a proof, only
        // which are the same.
        text.replace(&format!("{}.", t.path), "~.")
    }
}

/// A path below a base, or a whole path marked as such.
fn relative(path: &str, base: &str) -> String {
    if base.is_empty() {
        return path.to_owned();
    }
    match path.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => rest.to_owned(),
        None => format!("/{path}"),
    }
}

/// How the inputs and outputs of a pair correspond.
enum Ends<'e> {
    /// Inputs are related like this; how the outputs are is found out.
    Related(&'e [Relation]),
    /// As the map says.
    Ports,
}

/// Which module a function is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// A rule over ports with the values that they stand for.
fn ported(tree: &Tree, ports: &BTreeMap<&str, Id>) -> Tree {
    match tree {
        Tree::Node(Head::Leaf { name, .. }, _) => {
            ports.get(name.as_str()).map_or_else(|| tree.clone(), |id| Tree::Var(*id))
        }
        Tree::Node(head, children) => {
            let children = children.iter().map(|child| ported(child, ports)).collect();
            Tree::Node(head.clone(), children)
        }
        Tree::Var(_) => tree.clone(),
    }
}

/// One function while it is read.
struct Frame<'f> {
    side: Side,
    function: &'f Function,
    path: String,
    sizes: Sizes,
    values: BTreeMap<ValueId, Id>,
}

impl Frame<'_> {
    fn args(&self, node: &Node) -> Option<Vec<Id>> {
        node.args.iter().map(|arg| self.values.get(arg).copied()).collect()
    }
}

impl<'a> Pair<'_, 'a> {
    fn prove(mut self, s: &Place, t: &Place, ends: &Ends<'_>) -> Result<Vec<Relation>, Gap> {
        let (source, target) =
            (self.prover.source.function(s.func), self.prover.target.function(t.func));
        let mut leaves = Vec::new();
        for (index, (_, value)) in source.inputs().enumerate() {
            let leaf = Head::Leaf { name: format!("input {index}"), ty: Ty::of(source.ty(value)) };
            leaves.push(self.graph.add(leaf, Vec::new()));
        }
        let outputs = self.body(Side::Source, s, &leaves)?;
        let names: BTreeMap<&str, Id> =
            source.inputs().map(|(name, _)| name).zip(leaves.iter().copied()).collect();
        let grown = match ends {
            Ends::Related(relations) => self.target_inputs(target, t, &leaves, relations)?,
            Ends::Ports => self.port_inputs(target, t, &names)?,
        };
        let results = self.body(Side::Target, t, &grown)?;
        let mut found = Vec::new();
        for (index, output) in source.outputs.iter().enumerate() {
            // What a penalty adds to the loss is no part of the function.
            if output.name.as_deref() == Some(PENALTIES) {
                found.push(Relation::new());
                continue;
            }
            let name = output.name.clone().unwrap_or_else(|| RESULT.to_owned());
            let at = match &output.name {
                None => Some(index),
                Some(_) => target.outputs.iter().position(|other| other.name == output.name),
            };
            let Some(left) = at.and_then(|at| results.get(at)).copied() else {
                let why = format!("the target has no output `{name}`");
                return Err(Gap::new(&t.path, target, why));
            };
            let Some(right) = outputs.get(index).copied() else { continue };
            let port = match ends {
                Ends::Ports => self.prover.maps.output(&name),
                Ends::Related(_) => None,
            };
            let goal = match port {
                Some(rule) => {
                    let unread =
                        || Gap::new(&t.path, target, format!("`gives {name}` cannot be read"));
                    let known = BTreeMap::from([(name.as_str(), right)]);
                    let tree = read::rule(rule, &|path| path.to_owned()).ok_or_else(unread)?;
                    Some(ported(&tree, &known))
                }
                None => None,
            };
            let relation = self.conclude(left, right, goal, &name, t, target)?;
            if matches!(ends, Ends::Ports) && !relation.is_empty() {
                let why =
                    format!("`{name}` is that of the source followed by zeros: write `gives`");
                return Err(Gap::new(&t.path, target, why));
            }
            found.push(relation);
        }
        self.updates(t, target)?;
        let obligations = std::mem::take(&mut self.obligations);
        for (left, right, what) in obligations {
            let used = self.graph.explain(left, right).map_err(|fault| {
                Gap::new(&t.path, target, format!("fault in the proof of {what}: {fault}"))
            })?;
            for (rule, count) in used {
                *self.prover.used.entry(rule).or_insert(0) += count;
            }
        }
        Ok(found)
    }

    /// The target's inputs, as the map says.
    fn port_inputs(
        &mut self,
        target: &Function,
        t: &Place,
        source: &BTreeMap<&str, Id>,
    ) -> Result<Vec<Id>, Gap> {
        let mut grown = Vec::new();
        for (name, value) in target.inputs() {
            let mismatch =
                || Gap::new(&t.path, target, format!("input `{name}` differs between the two"));
            let id = match self.prover.maps.input(name) {
                Some(rule) => {
                    let tree = read::rule(rule, &|path| path.to_owned()).ok_or_else(mismatch)?;
                    self.graph.add_tree(&ported(&tree, source))
                }
                None => source.get(name).copied().ok_or_else(mismatch)?,
            };
            let names = |ty: &Ty| ty.axes.keys().cloned().collect::<Vec<_>>();
            let declared = Ty::of(target.ty(value));
            if self.graph.ty(id).map(names) != Some(names(&declared)) {
                return Err(mismatch());
            }
            grown.push(id);
        }
        Ok(grown)
    }

    /// The target's inputs, as related to the source's.
    fn target_inputs(
        &mut self,
        target: &Function,
        t: &Place,
        leaves: &[Id],
        relations: &[Relation],
    ) -> Result<Vec<Id>, Gap> {
        let mut grown = Vec::new();
        for (index, (name, value)) in target.inputs().enumerate() {
            let mismatch =
                || Gap::new(&t.path, target, format!("input `{name}` differs between the stages"));
            let (Some(leaf), Some(relation)) = (leaves.get(index), relations.get(index)) else {
                return Err(mismatch());
            };
            let from = self.graph.ty(*leaf).cloned().ok_or_else(mismatch)?;
            let declared = Ty::of(target.ty(value));
            let mut wanted = from.clone();
            for axis in relation {
                let size = declared.axes.get(axis).ok_or_else(mismatch)?;
                wanted.axes.insert(axis.clone(), size.clone());
            }
            let tree = padded(Tree::Var(*leaf), &from, &wanted);
            let (tree, axes) = tree.ok_or_else(mismatch)?;
            if axes != *relation || !wanted.axes.keys().eq(declared.axes.keys()) {
                return Err(mismatch());
            }
            grown.push(self.graph.add_tree(&tree));
        }
        Ok(grown)
    }

    /// A goal that must hold at the end: `left` is `right`, maybe followed by zeros.
    fn conclude(
        &mut self,
        left: Id,
        right: Id,
        goal: Option<Tree>,
        name: &str,
        t: &Place,
        target: &Function,
    ) -> Result<Relation, Gap> {
        let types = (self.graph.ty(left).cloned(), self.graph.ty(right).cloned());
        let (Some(left_ty), Some(right_ty)) = types else {
            return Err(Gap::new(&t.path, target, format!("`{name}` has no type")));
        };
        let stated = goal.map(|goal| (goal, Relation::new()));
        let goal = stated.or_else(|| padded(Tree::Var(right), &right_ty, &left_ty));
        let Some((goal, relation)) = goal else {
            let why = format!("`{name}` is {left_ty:?} in the target, {right_ty:?} in the source");
            return Err(Gap::new(&t.path, target, why));
        };
        let goal = self.graph.add_tree(&goal);
        let mut ended = self.reach(left, goal);
        while ended != Ended::Found && self.open_all() {
            ended = self.reach(left, goal);
        }
        if ended == Ended::Found {
            self.obligations.push((left, goal, format!("`{name}`")));
            return Ok(relation);
        }
        let why = match ended {
            Ended::Nodes => "gave up at the limit of terms",
            Ended::Rounds => "gave up at the limit of rounds",
            _ => "no rule leads further",
        };
        Err(self.gap.take().unwrap_or_else(|| {
            Gap::new(&t.path, target, format!("`{name}` is not known to be equal: {why}"))
        }))
    }

    fn reach(&mut self, left: Id, right: Id) -> Ended {
        self.graph.saturate(|graph| graph.same(left, right))
    }

    /// Writes out every call of the source that is not yet; whether there was one.
    fn open_all(&mut self) -> bool {
        let closed: Vec<usize> =
            (0..self.sites.len()).filter(|i| self.sites.get(*i).is_some_and(|s| !s.open)).collect();
        let any = !closed.is_empty();
        for index in closed {
            self.open(index);
        }
        any
    }

    /// Writes out a call of the source.
    fn open(&mut self, index: usize) {
        let Some(site) = self.sites.get_mut(index) else { return };
        if site.open {
            return;
        }
        site.open = true;
        let (place, args, results) = (site.place.clone(), site.args.clone(), site.results.clone());
        if let Ok(body) = self.body(Side::Source, &place, &args) {
            for (leaf, value) in results.into_iter().zip(body) {
                self.graph.define(leaf, value);
            }
        }
    }

    /// The state updates: each grown state that reads source states follows them by its rule.
    fn updates(&mut self, t: &Place, target: &Function) -> Result<(), Gap> {
        let updates = std::mem::take(&mut self.target_updates);
        for (path, value) in updates {
            let Some(rule) = self.prover.maps.rule(&path) else { continue };
            let mut read = BTreeSet::new();
            rule.sources(&mut read);
            if read.is_empty() {
                continue;
            }
            let base = self.source_base.clone();
            let name = |path: &str| format!("tensor {}", relative(path, &base));
            let fault = || Gap::new(&path, target, "its rule cannot be read".to_owned());
            let tree = read::rule(rule, &name).ok_or_else(fault)?;
            let goal = self.updated(&tree, &base);
            let goal = self.graph.add_tree(&goal);
            if self.reach(value, goal) != Ended::Found {
                let why = "the state is not known to follow that of the source".to_owned();
                return Err(Gap::new(&join(&t.path, &path), target, why));
            }
            self.obligations.push((value, goal, format!("the update of `{path}`")));
        }
        Ok(())
    }

    /// A rule's tree with the source's states at their values after the step.
    fn updated(&self, tree: &Tree, base: &str) -> Tree {
        match tree {
            Tree::Node(Head::Leaf { name, .. }, _) => {
                let after = self.source_updates.iter().find(|(path, _)| {
                    name.strip_prefix("tensor ") == Some(relative(path, base).as_str())
                });
                after.map_or_else(|| tree.clone(), |(_, id)| Tree::Var(*id))
            }
            Tree::Node(head, children) => {
                let children = children.iter().map(|child| self.updated(child, base)).collect();
                Tree::Node(head.clone(), children)
            }
            Tree::Var(_) => tree.clone(),
        }
    }

    /// Reads a function; gives its outputs.
    fn body(&mut self, side: Side, place: &Place, args: &[Id]) -> Result<Vec<Id>, Gap> {
        let module: &'a Module = match side {
            Side::Source => self.prover.source,
            Side::Target => self.prover.target,
        };
        let function = module.function(place.func);
        let mut frame = Frame {
            side,
            function,
            path: place.path.clone(),
            sizes: Sizes::new(),
            values: BTreeMap::new(),
        };
        let inputs: Vec<ValueId> = function.inputs().map(|(_, value)| value).collect();
        for (symbol, value, position) in function.bound_symbols() {
            let axis = function.ty(value).axes.get(position);
            let arg = inputs.iter().position(|v| *v == value).and_then(|index| args.get(index));
            let size = arg
                .zip(axis)
                .and_then(|(arg, axis)| self.graph.ty(*arg)?.axes.get(&axis.name).cloned());
            let lacks = || Gap::new(&place.path, function, format!("size `{symbol}` is not bound"));
            frame.sizes.insert(symbol.clone(), size.ok_or_else(lacks)?);
        }
        // A size name that stands for itself needs no replacing.
        frame.sizes.retain(|name, size| *size != lightc_dsl::size::Size::symbol(name.as_str()));
        frame.values.extend(inputs.iter().copied().zip(args.iter().copied()));
        for (_, node) in function.nodes() {
            self.node(&mut frame, node)?;
        }
        for (index, value) in &function.updates {
            let state = function.states.get(*index).map_or("", |state| state.name.as_str());
            let (path, id) = (join(&frame.path, state), frame.values.get(value).copied());
            if let Some(id) = id {
                match side {
                    Side::Source => self.source_updates.insert(path, id),
                    Side::Target => self.target_updates.insert(path, id),
                };
            }
        }
        let mut outputs = Vec::new();
        for output in &function.outputs {
            let value = match output.name.as_deref() == Some(PENALTIES) {
                true => Some(self.nothing()),
                false => frame.values.get(&output.value).copied(),
            };
            outputs.push(value.ok_or_else(|| {
                Gap::new(&place.path, function, "an output is not computed".to_owned())
            })?);
        }
        Ok(outputs)
    }

    /// What is put for the penalties of a call: the function is looked at without them.
    fn nothing(&mut self) -> Id {
        self.graph.add(Head::fill(Scale::zero(), Axes::new()), Vec::new())
    }

    fn node(&mut self, frame: &mut Frame<'_>, node: &Node) -> Result<(), Gap> {
        let function = frame.function;
        let fault = |what: &str| Gap::new(&frame.path, function, what.to_owned());
        let results = match &node.op {
            Op::Input(_) => return Ok(()),
            Op::ParamRef(op) => {
                let param = function.params.get(op.index).ok_or_else(|| fault("no parameter"))?;
                vec![self.tensor(frame, &param.name, &bound_ty(&param.ty, &frame.sizes))?]
            }
            Op::StateRef(op) => {
                let state = function.states.get(op.index).ok_or_else(|| fault("no state"))?;
                vec![self.tensor(frame, &state.name, &bound_ty(&state.ty, &frame.sizes))?]
            }
            Op::TableRef(op) => {
                let table = function.tables.get(op.index).ok_or_else(|| fault("no table"))?;
                let ty = bound_ty(&table.ty, &frame.sizes);
                let leaf = Head::Leaf { name: format!("table {}", table.from), ty };
                vec![self.graph.add(leaf, Vec::new())]
            }
            Op::Call(op) => {
                let args = frame.args(node).ok_or_else(|| fault("an argument is missing"))?;
                self.call(frame, op.sub, 0, &args, node)?
            }
            Op::Stack(op) => {
                let args = frame.args(node).ok_or_else(|| fault("an argument is missing"))?;
                let last = match &op.integrator {
                    Integrator::Plain => self.plain(frame, op.sub, &args, node)?,
                    Integrator::Midpoint(how) => self.stepped(frame, op.sub, how, &args, node)?,
                };
                let mut results = vec![last];
                results.resize_with(node.results.len(), || self.nothing());
                results
            }
            op => self.op(frame, op, node)?,
        };
        frame.values.extend(node.results.iter().copied().zip(results));
        Ok(())
    }

    /// Layers one after the other.
    fn plain(
        &mut self,
        frame: &Frame<'_>,
        sub: usize,
        args: &[Id],
        node: &Node,
    ) -> Result<Id, Gap> {
        let lacks = || Gap::new(&frame.path, frame.function, "a stack gives nothing".to_owned());
        let layers = frame.function.subs.get(sub).map_or(0, |sub| sub.callees.len());
        let mut state = args.first().copied().ok_or_else(lacks)?;
        for layer in 0..layers {
            let results = self.call(frame, sub, layer, &[state], node)?;
            state = results.first().copied().ok_or_else(lacks)?;
        }
        Ok(state)
    }

    /// Layers joined by an integrator: a chain of steps on the last two states.
    fn stepped(
        &mut self,
        frame: &Frame<'_>,
        sub: usize,
        how: &Midpoint,
        args: &[Id],
        node: &Node,
    ) -> Result<Id, Gap> {
        let lacks = || Gap::new(&frame.path, frame.function, "a stack gives nothing".to_owned());
        let mut args = args.iter().copied();
        let x = args.next().ok_or_else(lacks)?;
        let mut now = self.graph.add(Head::Quantize(how.fraction_bits), vec![x]);
        let mut before = now;
        for (layer, of_layer) in how.steps.iter().enumerate() {
            let gate = match of_layer.gate {
                Some(_) => args.next().ok_or_else(lacks)?,
                None => self.graph.add(Head::fill(Scale::one(), Axes::new()), Vec::new()),
            };
            let force = if self.graph.is_zero(gate) {
                // Whatever the layer gives is multiplied by 0, and nothing else reads it or what it
                // does to its states: any value will do.
                let name = format!("result of the silent layer {layer} at {}", frame.path);
                let ty = self.graph.ty(now).cloned().ok_or_else(lacks)?;
                self.graph.add(Head::Leaf { name, ty }, Vec::new())
            } else {
                let results = self.call(frame, sub, layer, &[now], node)?;
                results.first().copied().ok_or_else(lacks)?
            };
            let (numerator, bits) =
                if layer == 0 { (0, 0) } else { (of_layer.numerator, of_layer.bits) };
            let weight = how.weight(layer).to_bits();
            let step = Step { numerator, bits, weight, fraction: how.fraction_bits };
            let next = self.graph.add(Head::Step(step), vec![before, now, gate, force]);
            (before, now) = (now, next);
        }
        Ok(now)
    }

    fn op(&mut self, frame: &Frame<'_>, op: &Op, node: &Node) -> Result<Vec<Id>, Gap> {
        let given: Vec<String> =
            node.args.iter().map(|arg| frame.function.ty(*arg).to_string()).collect();
        let args = frame.args(node).unwrap_or_default();
        let types: Vec<Ty> = args.iter().filter_map(|arg| self.graph.ty(*arg).cloned()).collect();
        let read: Vec<String> = types.iter().map(|ty| ty.stored().to_string()).collect();
        let unread = || {
            let (given, read) = (given.join(", "), read.join(", "));
            let why = format!("`{}` of {given} cannot be read ({read})", op.def().mnemonic());
            Gap::new(&frame.path, frame.function, why)
        };
        let op = read::bound(op, &frame.sizes).ok_or_else(unread)?;
        let trees: Vec<Tree> = args.iter().map(|arg| Tree::Var(*arg)).collect();
        let mut results = Vec::new();
        for (index, value) in node.results.iter().enumerate() {
            let tree = read::op(&op, index, &trees, &types).ok_or_else(unread)?;
            let id = self.graph.add_tree(&tree);
            let wanted = bound_ty(frame.function.ty(*value), &frame.sizes);
            if self.graph.ty(id) != Some(&wanted) {
                return Err(unread());
            }
            results.push(id);
        }
        Ok(results)
    }

    /// A parameter or state: a leaf of the source; in the target, what its rule says.
    fn tensor(&mut self, frame: &Frame<'_>, name: &str, ty: &Ty) -> Result<Id, Gap> {
        let path = join(&frame.path, name);
        let base = self.source_base.clone();
        let named = |path: &str| format!("tensor {}", relative(path, &base));
        let tree = match frame.side {
            Side::Source => Some(Tree::leaf(Head::Leaf { name: named(&path), ty: ty.clone() })),
            Side::Target => {
                let rule = self.prover.maps.rule(&path);
                rule.and_then(|rule| read::rule(rule, &named))
            }
        };
        let fault = |why: &str| Gap::new(&path, frame.function, why.to_owned());
        let id =
            self.graph.add_tree(&tree.ok_or_else(|| fault("it has no rule that can be read"))?);
        if self.graph.ty(id) != Some(ty) {
            return Err(fault("its rule gives another type"));
        }
        Ok(id)
    }

    fn call(
        &mut self,
        frame: &Frame<'_>,
        sub: usize,
        layer: usize,
        args: &[Id],
        node: &Node,
    ) -> Result<Vec<Id>, Gap> {
        let declared = frame.function.subs.get(sub);
        let callee = declared.and_then(|sub| Some((sub, *sub.callees.get(layer)?)));
        let Some((sub, func)) = callee else {
            return Err(Gap::new(&frame.path, frame.function, "an undeclared call".to_owned()));
        };
        let place = Place { func, path: sub_path(&frame.path, sub, layer) };
        let module = match frame.side {
            Side::Source => self.prover.source,
            Side::Target => self.prover.target,
        };
        let callee = module.function(func);
        let inputs: Vec<Vec<String>> =
            callee.inputs().map(|(_, value)| callee.ty(value).names()).collect();
        let outputs: Vec<Vec<String>> =
            callee.outputs.iter().map(|output| callee.ty(output.value).names()).collect();
        // An axis can have one name in the caller and another in the callee; their order tells.
        let outside = |values: &[ValueId]| -> Vec<Vec<String>> {
            values.iter().map(|value| frame.function.ty(*value).names()).collect()
        };
        let (given, taken) = (outside(&node.args), outside(&node.results));
        let args: Vec<Id> = args
            .iter()
            .zip(given.iter().zip(&inputs))
            .map(|(arg, (from, to))| self.graph.add_tree(&read::under(Tree::Var(*arg), from, to)))
            .collect();
        let mut types: Vec<Ty> = node
            .results
            .iter()
            .zip(&outputs)
            .map(|(value, inside)| {
                let mut ty = frame.function.ty(*value).clone();
                for (axis, name) in ty.axes.iter_mut().zip(inside) {
                    axis.name.clone_from(name);
                }
                bound_ty(&ty, &frame.sizes)
            })
            .collect();
        // In a stack, some layers have penalties and others none.
        types.resize(outputs.len(), Ty::float(Axes::new()));
        let results = match frame.side {
            Side::Source => self.site(place, &args, types),
            Side::Target => self.target_call(&place, &args, &types)?,
        };
        let outside = outputs.iter().zip(taken.iter().map(Some).chain(std::iter::repeat(None)));
        let results = results.into_iter().zip(outside).map(|(result, (from, to))| match to {
            Some(to) => self.graph.add_tree(&read::under(Tree::Var(result), from, to)),
            None => result,
        });
        Ok(results.collect())
    }

    /// A call of the source: its results are leaves.
    fn site(&mut self, place: Place, args: &[Id], types: Vec<Ty>) -> Vec<Id> {
        let number = self.sites.len();
        let mut results = Vec::new();
        for (index, ty) in types.iter().enumerate() {
            let callee = self.prover.source.function(place.func);
            if has_penalties(callee) && index + 1 == callee.outputs.len() {
                let nothing = self.nothing();
                results.push(nothing);
                continue;
            }
            let path = relative(&place.path, &self.source_base);
            let name = format!("result {index} of call {number}, {path}");
            results.push(self.graph.add(Head::Leaf { name, ty: ty.clone() }, Vec::new()));
        }
        let site = Site {
            place,
            sizes: types,
            args: args.to_vec(),
            results: results.clone(),
            open: false,
        };
        self.sites.push(site);
        results
    }

    fn target_call(&mut self, place: &Place, args: &[Id], types: &[Ty]) -> Result<Vec<Id>, Gap> {
        let candidates = self.candidates(place);
        for index in &candidates {
            if let Some(results) = self.meet(*index, place, args, types) {
                return Ok(results);
            }
        }
        for index in candidates {
            self.open(index);
        }
        // What was written out has calls of its own.
        let inner: Vec<usize> = self.candidates(place);
        for index in inner {
            if let Some(results) = self.meet(index, place, args, types) {
                return Ok(results);
            }
        }
        self.body(Side::Target, place, args)
    }

    /// Calls of the source that a call of the target may stand for: those whose tensors its rules
    /// read, or any without tensors if it has none.
    fn candidates(&self, place: &Place) -> Vec<usize> {
        let mut read = BTreeSet::new();
        let mut n_rules = 0;
        for (_, rule) in self.prover.maps.below(&place.path) {
            n_rules += 1;
            rule.sources(&mut read);
        }
        let below = |path: &str, base: &str| {
            path.strip_prefix(base).is_some_and(|rest| rest.starts_with('.'))
        };
        let fits = |site: &Site| match n_rules {
            0 => self.prover.source.function(site.place.func).params.is_empty(),
            _ => read.iter().any(|path| below(path, &site.place.path)),
        };
        let sites = self.sites.iter().enumerate();
        sites.filter(|(_, site)| !site.open && fits(site)).map(|(index, _)| index).collect()
    }

    /// The target's call as that of the source, if arguments and callees are related.
    fn meet(&mut self, index: usize, place: &Place, args: &[Id], types: &[Ty]) -> Option<Vec<Id>> {
        let site = self.sites.get(index)?;
        let (s_args, s_place, s_results, s_types) =
            (site.args.clone(), site.place.clone(), site.results.clone(), site.sizes.clone());
        if s_args.len() != args.len() {
            return None;
        }
        let mut relations = Vec::new();
        let mut goals = Vec::new();
        for (arg, s_arg) in args.iter().zip(&s_args) {
            let (ty, s_ty) = (self.graph.ty(*arg)?.clone(), self.graph.ty(*s_arg)?.clone());
            let (goal, relation) = padded(Tree::Var(*s_arg), &s_ty, &ty)?;
            let goal = self.graph.add_tree(&goal);
            goals.push((*arg, goal));
            relations.push(relation);
        }
        let met = |graph: &Graph| goals.iter().all(|(arg, goal)| graph.same(*arg, *goal));
        if self.graph.saturate(met) != Ended::Found {
            return None;
        }
        let out = match self.prover.pair(&s_place, place, &relations) {
            Ok(out) => out,
            Err(gap) => {
                self.gap.get_or_insert(gap);
                return None;
            }
        };
        let mut results = Vec::new();
        let callee = self.prover.target.function(place.func);
        for (position, ty) in types.iter().enumerate() {
            if has_penalties(callee) && position + 1 == callee.outputs.len() {
                let nothing = self.nothing();
                results.push(nothing);
                continue;
            }
            let (result, s_ty) = (s_results.get(position)?, s_types.get(position)?);
            let (tree, relation) = padded(Tree::Var(*result), s_ty, ty)?;
            if out.get(position) != Some(&relation) {
                return None;
            }
            results.push(self.graph.add_tree(&tree));
        }
        let what = format!("an argument of `{}`", place.path);
        self.obligations.extend(goals.into_iter().map(|(arg, goal)| (arg, goal, what.clone())));
        Some(results)
    }
}
