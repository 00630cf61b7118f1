//! Parameter, state and table paths of a module: one canonical name per tensor.

use super::graph::{FuncId, Function, Module, Param, State, Table};
use crate::ops::Op;
use lightc_dsl::model::{Integrator, MemberRef};
use std::collections::BTreeMap;

/// A declared tensor at one place of the call tree.
#[derive(Clone, Debug)]
pub struct Placed<'m, T> {
    /// Dotted path, such as `layers.0.attention.norm.weight`.
    pub path: String,
    /// The function that declares it.
    pub function: FuncId,
    /// Index among the function's declarations of its kind.
    pub index: usize,
    /// The declaration.
    pub item: &'m T,
    /// Whether it is under a sub-block that only training has.
    pub training_only: bool,
}

/// One visited function instance.
struct Visit<'m> {
    path: String,
    function: FuncId,
    body: &'m Function,
    training_only: bool,
}

/// Joins path segments.
pub fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// The path of callee `layer` of a sub.
pub fn sub_path(prefix: &str, sub: &super::Sub, layer: usize) -> String {
    let path = join(prefix, &sub.name);
    if sub.is_stack { join(&path, &layer.to_string()) } else { path }
}

impl Module {
    /// All parameters in canonical order: declaration order, depth first.
    pub fn placed_params(&self) -> Vec<Placed<'_, Param>> {
        let mut found = Vec::new();
        self.walk(&mut |visit: &Visit<'_>, member| {
            if let MemberRef::Param(index) = member {
                let body: &Function = self.function(visit.function);
                found.extend(body.params.get(index).map(|item| Placed {
                    path: join(&visit.path, &item.name),
                    function: visit.function,
                    index,
                    item,
                    training_only: visit.training_only,
                }));
            }
        });
        found
    }

    /// All states, in the order of a depth-first walk.
    pub fn placed_states(&self) -> Vec<Placed<'_, State>> {
        self.placed(|function| &function.states, |state| &state.name)
    }

    /// The integrator of every stack that is not plain: path and text form, in path order.
    pub fn integrators(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut stack = vec![self.root_visit()];
        while let Some(visit) = stack.pop() {
            for node in &visit.body.nodes {
                let Op::Stack(op) = &node.op else { continue };
                let sub = visit.body.subs.get(op.sub);
                if let (Some(sub), true) = (sub, op.integrator != Integrator::Plain) {
                    found.insert(join(&visit.path, &sub.name), op.integrator.to_string());
                }
            }
            stack.extend(self.children(&visit));
        }
        found
    }

    /// All tables, in the order of a depth-first walk.
    pub fn placed_tables(&self) -> Vec<Placed<'_, Table>> {
        self.placed(|function| &function.tables, |table| &table.name)
    }

    fn placed<'m, T>(
        &'m self,
        items: impl Fn(&'m Function) -> &'m Vec<T>,
        name: impl Fn(&T) -> &String,
    ) -> Vec<Placed<'m, T>> {
        let mut found = Vec::new();
        let mut stack = vec![self.root_visit()];
        while let Some(visit) = stack.pop() {
            for (index, item) in items(self.function(visit.function)).iter().enumerate() {
                found.push(Placed {
                    path: join(&visit.path, name(item)),
                    function: visit.function,
                    index,
                    item,
                    training_only: visit.training_only,
                });
            }
            let mut below = self.children(&visit);
            below.reverse();
            stack.append(&mut below);
        }
        found
    }

    fn root_visit(&self) -> Visit<'_> {
        Visit {
            path: String::new(),
            function: self.entry,
            body: self.entry_function(),
            training_only: false,
        }
    }

    fn children(&self, visit: &Visit<'_>) -> Vec<Visit<'_>> {
        let mut below = Vec::new();
        for member in &visit.body.order {
            if let MemberRef::Sub(index) = member {
                below.extend(self.children_of_sub(visit, *index));
            }
        }
        below
    }

    fn children_of_sub(&self, visit: &Visit<'_>, index: usize) -> Vec<Visit<'_>> {
        let Some(sub) = visit.body.subs.get(index) else { return Vec::new() };
        let layers = sub.callees.iter().enumerate();
        layers
            .map(|(layer, callee)| Visit {
                path: sub_path(&visit.path, sub, layer),
                function: *callee,
                body: self.function(*callee),
                training_only: visit.training_only || sub.training_only,
            })
            .collect()
    }

    fn walk(&self, f: &mut dyn FnMut(&Visit<'_>, MemberRef)) {
        self.walk_from(&self.root_visit(), f);
    }

    fn walk_from(&self, visit: &Visit<'_>, f: &mut dyn FnMut(&Visit<'_>, MemberRef)) {
        for member in &visit.body.order {
            f(visit, *member);
            if let MemberRef::Sub(index) = member {
                for child in self.children_of_sub(visit, *index) {
                    self.walk_from(&child, f);
                }
            }
        }
    }
}
