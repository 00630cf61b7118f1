//! One side of a map: its tensors by path, and the block instance at each node of its tree.

use crate::ir::paths::join;
use crate::ir::{Module, Type};
use crate::pipeline;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::{Instance, InstanceId, StageModel, Storage, SubKind};
use lightc_dsl::source::Span;
use std::collections::BTreeMap;

/// A stage or block as growth sees it.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) model: StageModel,
    pub(super) module: Module,
    /// Parameters in canonical order, then states.
    pub(super) tensors: Vec<Tensor>,
    index: BTreeMap<String, usize>,
    pub(super) nodes: BTreeMap<String, Place>,
}

/// A parameter or state.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) path: String,
    pub(super) ty: Type,
    /// Absent for a state.
    pub(super) storage: Option<Storage>,
    pub(super) span: Option<Span>,
}

impl Tensor {
    /// In messages.
    pub(super) fn kind(&self) -> &'static str {
        if self.storage.is_some() { "parameter" } else { "state" }
    }
}

/// Where an instance stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) instance: InstanceId,
    /// The sub or stack that declares it; absent for the root.
    pub(super) span: Option<Span>,
}

impl Side {
    /// Lowers a model and lists what it stores.
    pub(super) fn new(model: StageModel) -> Result<Side, Vec<Diag>> {
        let module = pipeline::lower(&model)?;
        let mut tensors = Vec::new();
        for placed in module.placed_params() {
            let (path, ty) = (placed.path, placed.item.ty.clone());
            let storage = Some(placed.item.storage.clone());
            tensors.push(Tensor { path, ty, storage, span: placed.item.span });
        }
        for placed in module.placed_states() {
            let (path, ty) = (placed.path, placed.item.ty.clone());
            tensors.push(Tensor { path, ty, storage: None, span: placed.item.span });
        }
        let index = tensors.iter().enumerate().map(|(i, t)| (t.path.clone(), i)).collect();
        let mut nodes = BTreeMap::new();
        place(&model, model.root, String::new(), None, &mut nodes);
        Ok(Side { model, module, tensors, index, nodes })
    }

    /// The same tree with other tensors.
    pub(super) fn replace_tensors(&mut self, tensors: Vec<Tensor>) {
        self.index = tensors.iter().enumerate().map(|(i, t)| (t.path.clone(), i)).collect();
        self.tensors = tensors;
    }

    pub(super) fn tensor(&self, path: &str) -> Option<&Tensor> {
        self.tensors.get(*self.index.get(path)?)
    }

    pub(super) fn position(&self, path: &str) -> Option<usize> {
        self.index.get(path).copied()
    }

    pub(super) fn instance(&self, path: &str) -> Option<&Instance> {
        Some(self.model.instance(self.nodes.get(path)?.instance))
    }

    /// The number of layers of the stack at a path; `None` where there is no stack.
    pub(super) fn layers(&self, path: &str) -> Option<usize> {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let sub = self.instance(parent)?.subs.iter().find(|sub| sub.name == name)?;
        match &sub.kind {
            SubKind::Stack(layers) => Some(layers.len()),
            SubKind::One(_) => None,
        }
    }
}

fn place(
    model: &StageModel,
    instance: InstanceId,
    path: String,
    span: Option<Span>,
    nodes: &mut BTreeMap<String, Place>,
) {
    for sub in &model.instance(instance).subs {
        let below = join(&path, &sub.name);
        match &sub.kind {
            SubKind::One(target) => place(model, target.instance, below, Some(sub.span), nodes),
            SubKind::Stack(layers) => {
                for (layer, target) in layers.iter().enumerate() {
                    let path = join(&below, &layer.to_string());
                    place(model, target.instance, path, Some(sub.span), nodes);
                }
            }
        }
    }
    nodes.insert(path, Place { instance, span });
}
