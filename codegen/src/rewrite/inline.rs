//! Writes calls out in their callers, so that a layer of a stack, and the root, are one function each.
//!
//! Members of what is written out become members of the caller under dotted names (`mix.flat_norm.weight`),
//! in the place that their sub-block had. So the paths of all tensors, and their order, stay as they
//! are.
//!
//! A sub-block stays a call where it is a stack, where only training has it, where it is called more
//! than once and updates a state, and where two dotted names would be one in emitted code.

use super::{Copy, Result, declarations, fault, rename_axes, with_sizes};
use crate::ir::paths::join;
use crate::ir::{FuncId, Function, Module, Node, Sub};
use crate::ops::{Op, ParamRef, Stack, StateRef, TableRef};
use lightc_dsl::model::MemberRef;
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};

/// The module with its calls written out. It must not be differentiated yet.
///
/// # Errors
/// A fault of this compiler.
pub fn inline(module: &Module) -> Result<Module> {
    let mut functions: Vec<Function> = Vec::new();
    for function in &module.functions {
        let written = Inliner::new(function, &functions)?.write()?;
        functions.push(written);
    }
    Ok(reachable(Module { functions, ..module.clone() }))
}

/// Drops functions that nothing calls any more.
fn reachable(module: Module) -> Module {
    let mut used: BTreeSet<FuncId> = BTreeSet::new();
    let mut open = vec![module.entry];
    while let Some(id) = open.pop() {
        if used.insert(id) {
            open.extend(module.function(id).subs.iter().flat_map(|sub| &sub.callees));
        }
    }
    let new_ids: BTreeMap<FuncId, FuncId> = used.iter().copied().zip((0..).map(FuncId)).collect();
    let renumber = |id: &mut FuncId| *id = new_ids.get(id).copied().unwrap_or_default();
    let Module { mut entry, functions, name, backward } = module;
    renumber(&mut entry);
    let old = (0..).map(FuncId).zip(functions);
    let mut functions: Vec<Function> =
        old.filter(|(id, _)| used.contains(id)).map(|(_, function)| function).collect();
    functions
        .iter_mut()
        .flat_map(|function| &mut function.subs)
        .flat_map(|sub| &mut sub.callees)
        .for_each(renumber);
    Module { name, functions, entry, backward }
}

/// Where the members of one function have gone in the function that is written.
#[derive(Clone, Default)]
struct Members {
    params: Vec<usize>,
    states: Vec<usize>,
    tables: Vec<usize>,
    subs: Vec<Option<usize>>,
}

struct Inliner<'a> {
    from: &'a Function,
    /// Functions before this one, already written.
    done: &'a [Function],
    own: Members,
    /// Per sub that is written out, its callee and where the callee's members have gone.
    inlined: BTreeMap<usize, (FuncId, Members)>,
    copy: Copy,
}

impl<'a> Inliner<'a> {
    fn new(from: &'a Function, done: &'a [Function]) -> Result<Self> {
        let mut chosen = candidates(from, done);
        while let Some(clash) = first_clash(from, done, &chosen) {
            chosen.remove(&clash);
        }
        let mut to = declarations(from);
        to.order.clear();
        to.subs.clear();
        to.params.clear();
        let mut inliner = Inliner {
            from,
            done,
            own: Members {
                params: vec![0; from.params.len()],
                states: (0..from.states.len()).collect(),
                tables: (0..from.tables.len()).collect(),
                subs: vec![None; from.subs.len()],
            },
            inlined: BTreeMap::new(),
            copy: Copy::new(to),
        };
        for member in &from.order {
            match *member {
                MemberRef::Param(index) => inliner.own_param(index)?,
                MemberRef::Sub(index) if chosen.contains(&index) => inliner.adopt(index)?,
                MemberRef::Sub(index) => inliner.own_sub(index)?,
            }
        }
        Ok(inliner)
    }

    fn own_param(&mut self, index: usize) -> Result<()> {
        let param = self.from.params.get(index).ok_or_else(|| fault("a parameter is missing"))?;
        let at = add_param(&mut self.copy.to, param.clone());
        set(&mut self.own.params, index, at);
        Ok(())
    }

    fn own_sub(&mut self, index: usize) -> Result<()> {
        let sub = self.from.subs.get(index).ok_or_else(|| fault("a sub-block is missing"))?;
        let at = add_sub(&mut self.copy.to, sub.clone());
        set(&mut self.own.subs, index, Some(at));
        Ok(())
    }

    /// Takes over the members of the callee of a sub.
    fn adopt(&mut self, index: usize) -> Result<()> {
        let (sub, id, callee) =
            callee_of(self.from, self.done, index).ok_or_else(|| fault("a callee is missing"))?;
        let to = &mut self.copy.to;
        let mut members = Members {
            params: vec![0; callee.params.len()],
            subs: vec![None; callee.subs.len()],
            ..Members::default()
        };
        for member in &callee.order {
            match *member {
                MemberRef::Param(i) => {
                    let Some(mut param) = callee.params.get(i).cloned() else { continue };
                    param.name = join(&sub.name, &param.name);
                    let at = add_param(to, param);
                    set(&mut members.params, i, at);
                }
                MemberRef::Sub(i) => {
                    let Some(mut below) = callee.subs.get(i).cloned() else { continue };
                    below.name = join(&sub.name, &below.name);
                    let at = add_sub(to, below);
                    set(&mut members.subs, i, Some(at));
                }
            }
        }
        for state in &callee.states {
            members.states.push(to.states.len());
            to.states
                .push(crate::ir::State { name: join(&sub.name, &state.name), ..state.clone() });
        }
        for table in &callee.tables {
            members.tables.push(to.tables.len());
            to.tables
                .push(crate::ir::Table { name: join(&sub.name, &table.name), ..table.clone() });
        }
        self.inlined.insert(index, (id, members));
        Ok(())
    }

    fn write(mut self) -> Result<Function> {
        let none = BTreeMap::new();
        for node in &self.from.nodes {
            match &node.op {
                Op::Call(call) if self.inlined.contains_key(&call.sub) => {
                    self.write_out(node, call.sub)?;
                }
                op => {
                    let op = placed(op, &self.own, &none)?;
                    self.copy.node(self.from, node, op, &none)?;
                }
            }
        }
        self.copy.finish(self.from)?;
        Ok(self.copy.to)
    }

    /// Writes the body of a callee in the place of its call.
    fn write_out(&mut self, node: &Node, sub: usize) -> Result<()> {
        let Some((id, members)) = self.inlined.get(&sub).cloned() else { return Ok(()) };
        let callee = self.done.get(id.0 as usize).ok_or_else(|| fault("a callee is missing"))?;
        let bindings = bindings(self.from, node, callee);
        // The callee's values are numbered from 0, as the caller's are.
        let own = std::mem::take(&mut self.copy.map);
        let mut args = node.args.iter();
        let mut inner = BTreeMap::new();
        for inside in &callee.nodes {
            if let (Op::Input(_), Some(value)) = (&inside.op, inside.results.first()) {
                let arg = args.next().and_then(|arg| own.get(arg)).copied();
                let arg = arg.ok_or_else(|| fault("a call has too few arguments"))?;
                let wanted = callee.ty(*value).axes.clone();
                inner.insert(*value, rename_axes(&mut self.copy.to, arg, &wanted)?);
            }
        }
        self.copy.map = inner;
        for inside in callee.nodes.iter().filter(|inside| !matches!(inside.op, Op::Input(_))) {
            let op = placed(&inside.op, &members, &bindings)?;
            self.copy.node(callee, inside, op, &bindings)?;
        }
        for (state, value) in &callee.updates {
            let state = members.states.get(*state).copied();
            let state = state.ok_or_else(|| fault("an update of no state"))?;
            let value = self.copy.at(*value)?;
            self.copy.to.updates.push((state, value));
        }
        let outputs = self.copy.outputs(callee)?;
        self.copy.map = own;
        for (result, output) in node.results.iter().zip(outputs) {
            let wanted = &self.from.ty(*result).axes;
            let value = rename_axes(&mut self.copy.to, output.value, wanted)?;
            if let Some(name) = &self.from.value(*result).name {
                self.copy.to.name_value(value, name);
            }
            self.copy.map.insert(*result, value);
        }
        Ok(())
    }
}

/// What the callee's size names are in the caller.
fn bindings(from: &Function, node: &Node, callee: &Function) -> BTreeMap<String, Size> {
    let inputs: Vec<_> = callee.inputs().map(|(_, value)| value).collect();
    let bound = callee.bound_symbols().into_iter();
    let size = |value, position: usize| {
        let index = inputs.iter().position(|input| *input == value)?;
        let arg = node.args.get(index)?;
        Some(from.ty(*arg).axes.get(position)?.size.clone())
    };
    bound.filter_map(|(name, value, position)| Some((name, size(value, position)?))).collect()
}

/// An op of a function with its members and size names replaced.
fn placed(op: &Op, members: &Members, bindings: &BTreeMap<String, Size>) -> Result<Op> {
    let at = |list: &[usize], index: usize| {
        list.get(index).copied().ok_or_else(|| fault("a member is missing"))
    };
    let sub = |index: usize| {
        let found = members.subs.get(index).copied().flatten();
        found.ok_or_else(|| fault("a call of a sub-block that was written out"))
    };
    Ok(match op {
        Op::ParamRef(op) => ParamRef { index: at(&members.params, op.index)? }.into(),
        Op::StateRef(op) => StateRef { index: at(&members.states, op.index)? }.into(),
        Op::TableRef(op) => TableRef { index: at(&members.tables, op.index)? }.into(),
        Op::Call(op) => crate::ops::Call { sub: sub(op.sub)? }.into(),
        Op::Stack(op) => Stack { sub: sub(op.sub)?, integrator: op.integrator.clone() }.into(),
        op => with_sizes(op, bindings)?,
    })
}

/// The subs whose callees can be written out.
fn candidates(from: &Function, done: &[Function]) -> BTreeSet<usize> {
    let calls = |sub: usize| {
        let here = |node: &&Node| matches!(&node.op, Op::Call(call) if call.sub == sub);
        from.nodes.iter().filter(here).count()
    };
    let can = |index: &usize| {
        let Some((sub, _, callee)) = callee_of(from, done, *index) else { return false };
        !sub.is_stack && !sub.training_only && (callee.updates.is_empty() || calls(*index) == 1)
    };
    (0..from.subs.len()).filter(can).collect()
}

fn callee_of<'f>(
    from: &'f Function,
    done: &'f [Function],
    index: usize,
) -> Option<(&'f Sub, FuncId, &'f Function)> {
    let sub = from.subs.get(index)?;
    let id = *sub.callees.first()?;
    Some((sub, id, done.get(id.0 as usize)?))
}

/// A chosen sub whose members would have a name in emitted code that another member has.
fn first_clash(from: &Function, done: &[Function], chosen: &BTreeSet<usize>) -> Option<usize> {
    let plain = |name: &str| name.replace('.', "_");
    let mut taken: BTreeSet<String> = member_names(from).map(plain).collect();
    for index in chosen {
        let (sub, _, callee) = callee_of(from, done, *index)?;
        for name in member_names(callee) {
            if !taken.insert(plain(&join(&sub.name, name))) {
                return Some(*index);
            }
        }
    }
    None
}

fn member_names(function: &Function) -> impl Iterator<Item = &str> {
    let params = function.params.iter().map(|param| param.name.as_str());
    let states = function.states.iter().map(|state| state.name.as_str());
    let tables = function.tables.iter().map(|table| table.name.as_str());
    let subs = function.subs.iter().map(|sub| sub.name.as_str());
    params.chain(states).chain(tables).chain(subs)
}

fn add_param(to: &mut Function, param: crate::ir::Param) -> usize {
    let index = to.params.len();
    to.params.push(param);
    to.order.push(MemberRef::Param(index));
    index
}

fn add_sub(to: &mut Function, sub: Sub) -> usize {
    let index = to.subs.len();
    to.subs.push(sub);
    to.order.push(MemberRef::Sub(index));
    index
}

fn set<T>(list: &mut [T], index: usize, value: T) {
    if let Some(slot) = list.get_mut(index) {
        *slot = value;
    }
}
