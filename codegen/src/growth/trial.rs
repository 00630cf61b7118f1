//! One trial of a map: a source with random weights, grown by the map, both run on one input.

use super::apply::RESULT;
use super::eval::{self, Sources};
use super::tree::Side;
use super::{GrowthMap, Port};
use crate::interp::{self, Run, Store, Tensors, Visit};
use crate::ir::{Function, Module, Type};
use crate::ops::{Array, EvalError};
use lightc_dsl::ast::DType;
use lightc_dsl::model::{InitLaw, Storage};
use lightc_numerics::draw::{Law, Stream};
use ndarray::{ArrayD, IxDyn};
use std::collections::{BTreeMap, VecDeque};

/// Lengths of open axes, in the order in which the inputs bind them.
const LENGTHS: [i64; 6] = [2, 10, 3, 5, 4, 6];

/// A source and its grown target, run on the same input.
pub(super) struct Trial {
    pub(super) seed: u64,
    pub(super) inputs: Vec<(String, Array)>,
    pub(super) source: Run,
    pub(super) target: Run,
    pub(super) source_store: Store,
    pub(super) target_store: Store,
}

/// A pair of values that should be equal.
#[derive(Clone, Debug)]
pub(super) struct Compared {
    pub(super) name: String,
    pub(super) source: Array,
    pub(super) target: Array,
}

impl Trial {
    /// Draws weights and an input from a seed and runs both sides. `magnitude` scales weights.
    pub(super) fn run(
        map: &GrowthMap,
        source: &Side,
        target: &Side,
        seed: u64,
        magnitude: f64,
    ) -> Result<Trial, EvalError> {
        let module = &source.module;
        let sizes = open_sizes(module);
        let store = random_store(source, &sizes, seed, magnitude)?;
        let rows = index_rows(source, &sizes);
        let inputs = random_inputs(module, &sizes, seed, rows)?;
        let named: BTreeMap<String, Array> = inputs.iter().cloned().collect();
        let target_inputs = grown_inputs(map, &target.module, &named, &sizes)?;
        let arrays: Vec<Array> = inputs.iter().map(|(_, a)| a.clone()).collect();
        let source_run = interp::run(module, &arrays, &store)?;
        let (mut params, states) = eval::grow(map, &store.params, &store.states, &sizes)?;
        quantize(target, &mut params);
        let target_sizes = open_sizes(&target.module);
        let tables = tables(&target.module, &target_sizes)?;
        let target_store = Store { params, states, tables };
        let target_run = interp::run(&target.module, &target_inputs, &target_store)?;
        let (source, target) = (source_run, target_run);
        Ok(Trial { seed, inputs, source, target, source_store: store, target_store })
    }

    /// Outputs of the root that say what is computed: not the loss and its penalties, which belong
    /// to training, where there are others.
    pub(super) fn outputs(
        &self,
        map: &GrowthMap,
        source: &Module,
        target: &Module,
    ) -> Result<Vec<Compared>, EvalError> {
        let (from, to) = (names(source), names(target));
        let sizes = open_sizes(source);
        let sources: BTreeMap<String, Array> =
            from.iter().cloned().zip(self.source.outputs.iter().cloned()).collect();
        let common = to.iter().filter(|name| from.contains(name) && !is_training(name)).count();
        let mut compared = Vec::new();
        for (name, output) in to.iter().zip(&self.target.outputs) {
            if is_training(name) && common > 0 {
                continue;
            }
            let expected = match map.outputs.iter().find(|port| port.name == *name) {
                Some(port) => port_value(port, &sources, &sizes)?,
                None => match sources.get(name) {
                    Some(array) => array.clone(),
                    None => continue,
                },
            };
            if expected.shape() == output.shape() {
                let (source, target) = (expected, output.clone());
                compared.push(Compared { name: name.clone(), source, target });
            }
        }
        Ok(compared)
    }

    /// Calls that stand at the same place of both trees and return values of one shape, in the
    /// order in which they ended. Layers of stacks of different depth have no common place.
    pub(super) fn calls(&self, source: &Side, target: &Side) -> Result<Vec<Compared>, EvalError> {
        // A block that is called again has its calls in order.
        let mut from: BTreeMap<String, VecDeque<Visit<'_>>> = BTreeMap::new();
        for visit in interp::visits(&source.module, &self.source.trace) {
            from.entry(visit.path.clone()).or_default().push_back(visit);
        }
        let mut compared = Vec::new();
        for visit in interp::visits(&target.module, &self.target.trace) {
            let other = from.get_mut(&visit.path).and_then(VecDeque::pop_front);
            let Some(other) = other else { continue };
            if !same_place(source, target, &visit.path) {
                continue;
            }
            let function = target.module.function(visit.function);
            let float = function.outputs.first().is_some_and(|o| function.ty(o.value).is_float());
            let (a, b) = (other.outputs(&source.module)?, visit.outputs(&target.module)?);
            if let (true, Some(a), Some(b)) = (float, a.first(), b.first())
                && a.shape() == b.shape()
            {
                let name = visit.path.clone();
                compared.push(Compared { name, source: a.clone(), target: b.clone() });
            }
        }
        Ok(compared)
    }
}

/// Outputs that training reads: the loss, and the sum of penalties in it.
pub(super) fn is_training(output: &str) -> bool {
    output == "loss" || output == "aux"
}

/// No layer of a stack of another depth is on the way.
pub(super) fn same_place(source: &Side, target: &Side, path: &str) -> bool {
    let mut known = String::new();
    path.split('.').filter(|p| !p.is_empty()).all(|part| {
        known = crate::ir::paths::join(&known, part);
        source.layers(&known) == target.layers(&known)
    })
}

fn names(module: &Module) -> Vec<String> {
    let outputs = &module.entry_function().outputs;
    outputs.iter().map(|o| o.name.clone().unwrap_or_else(|| RESULT.to_owned())).collect()
}

fn port_value(
    port: &Port,
    tensors: &Tensors,
    sizes: &BTreeMap<String, i64>,
) -> Result<Array, EvalError> {
    eval::value(&port.rule, Sources { tensors, sizes, seed: 0 })
}

/// Values of the sizes that stay open: what the inputs bind, and what nothing binds.
pub(super) fn open_sizes(module: &Module) -> BTreeMap<String, i64> {
    let entry = module.entry_function();
    let bound = entry.bound_symbols().into_iter().map(|(name, _, _)| name);
    let lengths = LENGTHS.iter().cycle();
    bound.zip(lengths).map(|(name, length)| (name, *length)).collect()
}

fn shape(ty: &Type, sizes: &BTreeMap<String, i64>) -> Result<Vec<usize>, EvalError> {
    let lengths = ty.axes.iter().map(|axis| {
        let length = axis.size.evaluate(sizes).and_then(|n| usize::try_from(n).ok());
        length.ok_or_else(|| EvalError(format!("size {} of `{}` is open", axis.size, axis.name)))
    });
    lengths.collect()
}

fn normal(seed: u64, key: &str, shape: &[usize], f: impl Fn(f64) -> f64) -> Array {
    let n = shape.iter().product();
    let draws = Stream::new(seed, key).fill(Law::Normal { std: 1.0 }, n);
    let values = draws.into_iter().map(f).collect();
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap_or_else(|_| ArrayD::zeros(IxDyn(shape)))
}

/// Weights that are different everywhere and as large as trained ones can be.
fn random_store(
    side: &Side,
    sizes: &BTreeMap<String, i64>,
    seed: u64,
    magnitude: f64,
) -> Result<Store, EvalError> {
    let mut store = Store { tables: tables(&side.module, sizes)?, ..Store::default() };
    for placed in side.module.placed_params() {
        let shape = shape(&placed.item.ty, sizes)?;
        let fan = shape.last().copied().unwrap_or(1) as f64;
        let key = format!("trial.{}", placed.path);
        let draw = |f: &dyn Fn(f64) -> f64| normal(seed, &key, &shape, f);
        let array = match placed.item.init {
            InitLaw::Normal { .. } => draw(&|z| magnitude * z / fan.sqrt()),
            InitLaw::Zeros => draw(&|z| 0.3 * magnitude * z),
            InitLaw::Ones => draw(&|z| 1.0 + 0.3 * z),
            InitLaw::Constant { value } => draw(&|z| value + 0.3 * z),
            InitLaw::Uniform { low, high } => law(Law::Uniform { low, high }, seed, &key, &shape),
            InitLaw::LogUniform { low, high } => {
                law(Law::LogUniform { low, high }, seed, &key, &shape)
            }
        };
        store.params.insert(placed.path, array);
    }
    quantize(side, &mut store.params);
    for placed in side.module.placed_states() {
        let shape = shape(&placed.item.ty, sizes)?;
        let (start, key) = (placed.item.start, format!("trial.{}", placed.path));
        store.states.insert(placed.path, normal(seed, &key, &shape, |z| start + 0.1 * z.abs()));
    }
    Ok(store)
}

fn law(law: Law, seed: u64, key: &str, shape: &[usize]) -> Array {
    let values = Stream::new(seed, key).fill(law, shape.iter().product());
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap_or_else(|_| ArrayD::zeros(IxDyn(shape)))
}

/// What a quantized parameter loses: 8-bit codes, one scale per row.
fn quantize(side: &Side, params: &mut Tensors) {
    let quantized = |storage: &Option<Storage>| matches!(storage, Some(Storage::Quantized(_)));
    for tensor in side.tensors.iter().filter(|t| quantized(&t.storage)) {
        let Some(array) = params.get_mut(&tensor.path) else { continue };
        let Some(last) = array.ndim().checked_sub(1) else { continue };
        for mut row in array.lanes_mut(ndarray::Axis(last)) {
            let scale = row.iter().fold(0.0_f64, |most, v| most.max(v.abs())) / 127.0;
            if scale > 0.0 {
                row.mapv_inplace(|v| (v / scale).round() * scale);
            }
        }
    }
}

/// Tables of the tokenizer: every token has some bytes, another number for each.
fn tables(module: &Module, sizes: &BTreeMap<String, i64>) -> Result<Tensors, EvalError> {
    let mut found = Tensors::new();
    for placed in module.placed_tables() {
        let shape = shape(&placed.item.ty, sizes)?;
        let slots = module
            .placed_tables()
            .iter()
            .filter(|table| table.item.ty.axes.len() == 2)
            .find_map(|table| table.item.ty.axes.last()?.size.evaluate(sizes))
            .map_or(1, |n| n as usize);
        let mut array = ArrayD::zeros(IxDyn(&shape));
        for (index, value) in array.indexed_iter_mut() {
            let row = index[0];
            let count = 1 + row % slots;
            *value = match shape.len() {
                1 => count as f64,
                _ if index[1] < count => {
                    (((row * 37 + index[1] * 101) % 256) * slots + index[1]) as f64
                }
                _ => -1.0,
            };
        }
        found.insert(placed.path, array);
    }
    Ok(found)
}

/// How many ids an index input can name: the vocabulary, or the least size that a parameter or
/// table of the entry has.
fn index_rows(side: &Side, sizes: &BTreeMap<String, i64>) -> usize {
    let root = side.model.instance(side.model.root);
    let vocab = root.sizes.get("vocab").or_else(|| root.sizes.get("e"));
    vocab.and_then(|size| size.evaluate(sizes)).map_or(2, |n| n.max(1) as usize)
}

fn random_inputs(
    module: &Module,
    sizes: &BTreeMap<String, i64>,
    seed: u64,
    rows: usize,
) -> Result<Vec<(String, Array)>, EvalError> {
    let entry: &Function = module.entry_function();
    let mut inputs = Vec::new();
    for (name, value) in entry.inputs() {
        let ty = entry.ty(value);
        let shape = shape(ty, sizes)?;
        let key = format!("input.{name}");
        let array = match ty.dtype {
            DType::Index => {
                let unit = law(Law::Uniform { low: 0.0, high: rows as f64 }, seed, &key, &shape);
                unit.mapv(f64::floor)
            }
            DType::Bool => normal(seed, &key, &shape, |z| f64::from(z > 0.0)),
            _ => normal(seed, &key, &shape, |z| z),
        };
        inputs.push((name.to_owned(), array));
    }
    Ok(inputs)
}

/// The target's inputs: the source's of the same name, or what the map says.
fn grown_inputs(
    map: &GrowthMap,
    target: &Module,
    source: &Tensors,
    sizes: &BTreeMap<String, i64>,
) -> Result<Vec<Array>, EvalError> {
    let entry = target.entry_function();
    let inputs =
        entry.inputs().map(|(name, _)| match map.inputs.iter().find(|port| port.name == name) {
            Some(port) => port_value(port, source, sizes),
            None => source
                .get(name)
                .cloned()
                .ok_or_else(|| EvalError(format!("the source has no input `{name}`"))),
        });
    inputs.collect()
}
