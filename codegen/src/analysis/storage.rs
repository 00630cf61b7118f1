//! Storage coverage: the parameter table of a stage, with one storage class per parameter.

use crate::ir::types::dtype_word;
use crate::ir::{Module, Param};
use lightc_dsl::model::Storage;
use serde::Serialize;
use std::collections::BTreeMap;

/// A count with and without what only training has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Count {
    /// Everything that is stored while training.
    pub with_mtp: i64,
    /// What inference keeps: without `training_only` sub-blocks.
    pub without_mtp: i64,
}

impl Count {
    fn add(&mut self, elements: i64, training_only: bool) {
        self.with_mtp += elements;
        if !training_only {
            self.without_mtp += elements;
        }
    }
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParamRow {
    /// Canonical path.
    pub path: String,
    /// Axis names and sizes, in storage order.
    pub axes: Vec<(String, i64)>,
    /// `act` or `f32`.
    pub dtype: &'static str,
    /// Number of elements.
    pub elements: i64,
    /// How it is kept.
    pub storage: Storage,
    /// Elements that one token uses.
    pub active: i64,
    /// Init law, as in the source.
    pub init: String,
    /// Whether only training has it.
    pub training_only: bool,
}

/// Parameters of one module path, summed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleRow {
    /// First segment of the path (and the layer's index in a stack).
    pub path: String,
    /// The block that it is an instance of; empty for the root's own parameters.
    pub block: String,
    /// Elements in all, without adapters.
    pub elements: i64,
    /// Of which trained.
    pub trained: i64,
    /// Of which frozen.
    pub frozen: i64,
    /// Of which quantized.
    pub quantized: i64,
    /// Elements of adapters.
    pub adapters: i64,
    /// Whether only training has it.
    pub training_only: bool,
}

/// Counts by storage class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Classes {
    /// Learns.
    pub trained: Count,
    /// Keeps its value.
    pub frozen: Count,
    /// Keeps its value in 8 bits.
    pub quantized: Count,
    /// Learns beside a quantized parameter.
    pub adapter: Count,
}

impl Classes {
    fn of(&mut self, storage: &Storage) -> &mut Count {
        match storage {
            Storage::Trained => &mut self.trained,
            Storage::Frozen(_) => &mut self.frozen,
            Storage::Quantized(_) => &mut self.quantized,
            Storage::Adapter => &mut self.adapter,
        }
    }
}

impl ModuleRow {
    fn add(&mut self, elements: i64, storage: &Storage) {
        match storage {
            Storage::Trained => self.trained += elements,
            Storage::Frozen(_) => self.frozen += elements,
            Storage::Quantized(_) => self.quantized += elements,
            Storage::Adapter => self.adapters += elements,
        }
        if *storage != Storage::Adapter {
            self.elements += elements;
        }
    }
}

/// All parameters of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParamTable {
    /// The stage.
    pub stage: String,
    /// Parameters that are stored, without adapters.
    pub stored: Count,
    /// Parameters that one token uses, without adapters: all of them in a dense stage.
    pub active: Count,
    /// Parameters of adapters.
    pub adapters: Count,
    /// What is stored, by storage class.
    pub classes: Classes,
    /// Sums per module.
    pub modules: Vec<ModuleRow>,
    /// Every parameter, in canonical order.
    #[serde(skip)]
    pub params: Vec<ParamRow>,
}

/// The parameter table of a module whose sizes are all bound; `None` for a block with symbolic
/// sizes or on overflow.
pub fn param_table(module: &Module) -> Option<ParamTable> {
    let mut table = ParamTable {
        stage: module.name.clone(),
        stored: Count::default(),
        active: Count::default(),
        adapters: Count::default(),
        classes: Classes::default(),
        modules: Vec::new(),
        params: Vec::new(),
    };
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for placed in module.placed_params() {
        let mut axes = Vec::new();
        for axis in &placed.item.ty.axes {
            axes.push((axis.name.clone(), axis.size.as_constant()?));
        }
        let elements = axes.iter().try_fold(1i64, |n, (_, size)| n.checked_mul(*size))?;
        let active = active_elements(placed.item, elements)?;
        let storage = &placed.item.storage;
        table.classes.of(storage).add(elements, placed.training_only);
        if *storage == Storage::Adapter {
            table.adapters.add(elements, placed.training_only);
        } else {
            table.stored.add(elements, placed.training_only);
            table.active.add(active, placed.training_only);
        }
        let (path, block) = module_of(module, &placed.path);
        let index = *rows.entry(path.clone()).or_insert_with(|| {
            table.modules.push(ModuleRow {
                path,
                block,
                elements: 0,
                trained: 0,
                frozen: 0,
                quantized: 0,
                adapters: 0,
                training_only: placed.training_only,
            });
            table.modules.len() - 1
        });
        if let Some(row) = table.modules.get_mut(index) {
            row.add(elements, storage);
        }
        table.params.push(ParamRow {
            path: placed.path,
            axes,
            dtype: dtype_word(placed.item.ty.dtype),
            elements,
            active,
            storage: placed.item.storage.clone(),
            init: crate::ir::text::init_text(&placed.item.init),
            training_only: placed.training_only,
        });
    }
    Some(table)
}

/// The elements of a parameter that one token uses.
fn active_elements(param: &Param, elements: i64) -> Option<i64> {
    let Some(active) = &param.active else { return Some(elements) };
    let all = param.ty.axis(&active.of)?.size.as_constant()?;
    elements.checked_div(all)?.checked_mul(active.count.as_constant()?)
}

/// The root's sub-block (or layer of a stack) that a path is in, and its block's name.
fn module_of(module: &Module, path: &str) -> (String, String) {
    let mut segments = path.split('.');
    let first = segments.next().unwrap_or_default();
    let root = module.entry_function();
    let Some(sub) = root.subs.iter().find(|sub| sub.name == first) else {
        return (first.to_owned(), String::new());
    };
    let layer = if sub.is_stack { segments.next().unwrap_or("0") } else { "0" };
    let index: usize = layer.parse().unwrap_or(0);
    let block = sub.callees.get(index).map(|id| module.function(*id).name.clone());
    let path = if sub.is_stack { format!("{first}.{layer}") } else { first.to_owned() };
    (path, block.unwrap_or_default())
}
