//! Tests of the prover: the library of transforms, wrong variants of each, and every rule against
//! the interpreter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod eval;
mod properties;
mod transforms;

use super::super::{GrowthMap, with_formals};
use super::term::Ty;
use super::{Verdict, prove};
use crate::interp::{self, Store, Tensors};
use crate::ir::Module;
use crate::ops::Array;
use crate::pipeline;
use eval::{Bound, Value};
use lightc_dsl::diag;
use lightc_dsl::resolve::{FormalValue, FormalValues, Program, load_program};
use lightc_dsl::size::Size;
use lightc_dsl::source::{MapLoader, Sources};
use lightc_numerics::draw::{Law, Stream};
use std::collections::BTreeMap;
use std::path::Path;

/// The standard blocks, and `std/growth.llm` as given.
fn library(growth: &str) -> MapLoader {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/std");
    let mut loader = MapLoader::default();
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = format!("std/{}", path.file_name().unwrap().to_str().unwrap());
        loader = loader.with(name, std::fs::read_to_string(&path).unwrap());
    }
    loader.with("std/growth.llm", growth)
}

/// `models/std/growth.llm`.
fn growth() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/std/growth.llm");
    std::fs::read_to_string(path).unwrap()
}

fn program(growth: &str) -> (Program, Sources) {
    let loader = library(growth);
    let (program, sources, diags) = load_program("std/growth.llm", growth, &loader);
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    (program, sources)
}

/// A map of a text at symbolic sizes, or at stated ones, with both sides lowered.
fn map_of(growth: &str, name: &str, sizes: &[(&str, i64)]) -> (GrowthMap, Module, Module) {
    let (program, sources) = program(growth);
    let def = program.map(name).unwrap_or_else(|| panic!("no map `{name}`"));
    let values: FormalValues = sizes
        .iter()
        .map(|(name, n)| ((*name).to_owned(), FormalValue::Size(Size::constant(*n))))
        .collect();
    let shown = |diags: Vec<diag::Diag>| diag::render(&diags, &sources, false);
    let map = with_formals(&program, def, &values).unwrap_or_else(|d| panic!("{}", shown(d)));
    let source = pipeline::lower(&map.source).unwrap_or_else(|d| panic!("{}", shown(d)));
    let target = pipeline::lower(&map.target).unwrap_or_else(|d| panic!("{}", shown(d)));
    (map, source, target)
}

fn verdict(growth: &str, name: &str) -> Verdict {
    let (map, source, target) = map_of(growth, name, &[]);
    prove(&map, &source, &target)
}

/// The largest difference between what the map says that the outputs are, and what they are, over
/// random weights and inputs at small sizes, relative to the largest output.
fn difference(growth: &str, name: &str, sizes: &[(&str, i64)]) -> f64 {
    let (map, source, target) = map_of(growth, name, sizes);
    let mut draws = Draws::new(name);
    let mut store = Store::default();
    for placed in source.placed_params() {
        let value = draws.array(&Ty::of(&placed.item.ty), &none());
        store.params.insert(placed.path.clone(), eval::stored(&value, &placed.item.ty.names()));
    }
    let grown =
        Store { params: grown(&map, &source, &store.params, &mut draws), ..Store::default() };
    // Free axes have a length each.
    let mut lengths: BTreeMap<String, i64> = BTreeMap::new();
    let mut inputs: BTreeMap<String, Value> = BTreeMap::new();
    let entry = source.entry_function();
    for (input, value) in entry.inputs() {
        let ty = Ty::of(entry.ty(value));
        for symbol in ty.axes.values().flat_map(Size::symbols) {
            let next = lengths.len() as i64 % 2 + 2;
            lengths.entry(symbol.to_owned()).or_insert(next);
        }
        inputs.insert(input.to_owned(), draws.array(&ty, &lengths));
    }
    let stored = |module: &Module, values: &dyn Fn(&str) -> Value| -> Vec<Array> {
        let entry = module.entry_function();
        let order = |value| entry.ty(value).names();
        entry.inputs().map(|(name, value)| eval::stored(&values(name), &order(value))).collect()
    };
    let ports = |name: &str| -> Value {
        let port = map.inputs.iter().find(|port| port.name == name);
        port.map_or_else(
            || inputs[name].clone(),
            |port| eval::rule(&port.rule, &inputs, &lengths, &mut Draws::new("port")),
        )
    };
    let before =
        interp::run(&source, &stored(&source, &|name| inputs[name].clone()), &store).unwrap();
    let after = interp::run(&target, &stored(&target, &ports), &grown).unwrap();
    let mut results: BTreeMap<String, Value> = BTreeMap::new();
    for (output, array) in entry.outputs.iter().zip(&before.outputs) {
        let name = output.name.clone().unwrap_or_else(|| "result".to_owned());
        results.insert(name, eval::unordered(entry.ty(output.value), array, &lengths));
    }
    let mut worst = 0.0_f64;
    let target_entry = target.entry_function();
    for (output, array) in target_entry.outputs.iter().zip(&after.outputs) {
        let name = output.name.clone().unwrap_or_else(|| "result".to_owned());
        if name == "penalties" {
            continue;
        }
        let wanted = match map.outputs.iter().find(|port| port.name == name) {
            Some(port) => eval::rule(&port.rule, &results, &lengths, &mut Draws::new("port")),
            None => results[&name].clone(),
        };
        let wanted = eval::stored(&wanted, &target_entry.ty(output.value).names());
        assert_eq!(wanted.shape(), array.shape(), "`{name}`");
        let largest = wanted.iter().fold(1e-300_f64, |m, v| m.max(v.abs()));
        let apart = wanted.iter().zip(array).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
        worst = worst.max(apart / largest);
    }
    worst
}

fn none() -> Bound {
    BTreeMap::new()
}

/// The target's parameters by the map's rules.
fn grown(map: &GrowthMap, source: &Module, params: &Tensors, draws: &mut Draws) -> Tensors {
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    for placed in source.placed_params() {
        let value = eval::unordered(&placed.item.ty, &params[&placed.path], &none());
        known.insert(placed.path.clone(), value);
    }
    let mut grown = Tensors::new();
    for rule in &map.params {
        let value = eval::rule(&rule.rule, &known, &none(), draws);
        grown.insert(rule.path.clone(), eval::stored(&value, &rule.ty.names()));
    }
    grown
}

/// Random arrays.
struct Draws {
    stream: Stream,
    next: u64,
}

impl Draws {
    fn new(name: &str) -> Draws {
        Draws { stream: Stream::new(7, name), next: 0 }
    }

    /// Numbers between 1/2 and 2, which roots and quotients take too.
    fn positive(&mut self, ty: &Ty, lengths: &Bound) -> Value {
        let (ty, array) = self.array(ty, lengths);
        match ty.kind {
            super::term::Kind::Float => (ty, array.mapv(|v: f64| 0.5 + 1.5 / (1.0 + v.exp()))),
            _ => (ty, array),
        }
    }

    /// Normal numbers, whole numbers 0 and 1, or truth values.
    fn array(&mut self, ty: &Ty, lengths: &Bound) -> Value {
        let shape: Vec<usize> =
            ty.axes.values().map(|size| size.evaluate(lengths).unwrap() as usize).collect();
        let count = shape.iter().product::<usize>();
        let law = match ty.kind {
            super::term::Kind::Float => Law::Normal { std: 1.0 },
            _ => Law::Uniform { low: 0.0, high: 2.0 },
        };
        let values = self.stream.range(law, self.next, count);
        self.next += count as u64;
        let whole = ty.kind != super::term::Kind::Float;
        let values = values.into_iter().map(|v| if whole { v.floor() } else { v }).collect();
        (ty.clone(), Array::from_shape_vec(shape, values).unwrap())
    }
}
