//! What is to be done, free of the language: the tensors of the source, and a rule per tensor of
//! the target.

use crate::compile::{self, Compiler, shape_of};
use crate::error::{Error, Result};
use crate::node::{Kind, Node};
use crate::words::words;
use lightc_codegen::growth::{Claim, GrowthMap, Moments, SettingChange, TargetRule};
use lightc_codegen::ir::Module;
use lightc_dsl::model::Storage;
use lightc_numerics::int8::Format;
use safetensors::Dtype;
use std::collections::BTreeMap;

/// The files of a checkpoint that growth reads and writes.
pub mod files {
    /// Parameters, at least f32 unless the source has them shorter.
    pub const PARAMS: &str = "params.safetensors";
    /// First moments of trained parameters.
    pub const MOMENTS_M: &str = "moments_m.safetensors";
    /// Second moments.
    pub const MOMENTS_V: &str = "moments_v.safetensors";
    /// States.
    pub const STATES: &str = "states.safetensors";
    /// What one step hands to the next: neither read nor written, since a grown stage begins its
    /// sequences anew.
    pub const CARRIES: &str = "carries.safetensors";
}

/// A growth with every size bound.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the map.
    pub map: String,
    /// What the author says that it does to the function.
    pub claim: Claim,
    /// Seed of all draws.
    pub seed: u64,
    /// The stage that is grown.
    pub source: Side,
    /// The stage that comes out.
    pub target: Side,
    /// Every tensor that the source has to have, and no other.
    pub tensors: Vec<SourceTensor>,
    /// Every tensor of the target.
    pub targets: Vec<Target>,
    /// Source tensors that go nowhere: path and reason.
    pub drops: Vec<(String, String)>,
    /// Settings that differ.
    pub settings: Vec<SettingChange>,
    /// Whether any moments follow the map.
    pub moments_follow: bool,
}

/// One of the two stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Name of the stage.
    pub stage: String,
    /// Digest of its sources.
    pub source_hash: String,
    /// Whether a checkpoint of other sources is refused.
    pub is_strict: bool,
    /// The integrator of each stack, by path.
    pub integrators: BTreeMap<String, String>,
}

/// A tensor of the source checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// One of [`files`].
    pub file: &'static str,
    /// Its name there.
    pub name: String,
    /// Size per axis.
    pub shape: Vec<usize>,
}

/// A tensor of the target checkpoint.
#[derive(Debug, Clone)]
pub struct Target {
    /// One of [`files`].
    pub file: &'static str,
    /// Its name there.
    pub name: String,
    /// Where its values come from.
    pub node: Node,
    /// Its element type; that of the source's floats in this file where absent.
    pub dtype: Option<Dtype>,
    /// The rule in words.
    pub rule: String,
}

/// The tensors of the source while a plan is made.
struct Source {
    tensors: Vec<SourceTensor>,
    params: BTreeMap<String, Node>,
    states: BTreeMap<String, Node>,
    /// First and second moments of a parameter, by its index.
    moments: BTreeMap<usize, [usize; 2]>,
}

impl Plan {
    /// The plan of a map between two stages, whose sizes are bound.
    ///
    /// # Errors
    /// Where a size is open, a rule does not fit, or moments follow what has none.
    pub fn new(map: &GrowthMap, modules: (&Module, &Module), sides: (Side, Side)) -> Result<Self> {
        let source = Source::of(modules.0)?;
        let storage: BTreeMap<String, Storage> = modules
            .1
            .placed_params()
            .into_iter()
            .map(|placed| (placed.path, placed.item.storage.clone()))
            .collect();
        let mut targets = Vec::new();
        for rule in &map.params {
            let node = source.node(map.seed, rule, &source.params)?;
            let rule_words = words(&rule.rule);
            let stored = storage.get(&rule.path).unwrap_or(&Storage::Trained);
            if stored.learns() {
                targets.extend(source.moments(rule, &node)?);
            }
            targets.extend(params(rule, node, &rule_words, stored));
        }
        for rule in &map.states {
            targets.push(Target {
                file: files::STATES,
                name: rule.path.clone(),
                node: source.node(map.seed, rule, &source.states)?,
                dtype: None,
                rule: words(&rule.rule),
            });
        }
        // By file, and within a file in the order of the stage.
        targets.sort_by_key(|target| target.file);
        let follows = |rule: &TargetRule| rule.moments == Moments::Follow;
        Ok(Plan {
            map: map.name.clone(),
            claim: map.claim.clone(),
            seed: map.seed,
            source: sides.0,
            target: sides.1,
            tensors: source.tensors,
            targets,
            drops: map.drops.clone(),
            settings: map.settings.clone(),
            moments_follow: map.params.iter().any(follows),
        })
    }
}

/// A parameter as it is stored: itself, or codes and scales.
fn params(rule: &TargetRule, node: Node, words: &str, storage: &Storage) -> Vec<Target> {
    let target = |name: String, node: Node, dtype: Option<Dtype>, rule: String| Target {
        file: files::PARAMS,
        name,
        node,
        dtype,
        rule,
    };
    let Storage::Quantized(format) = storage else {
        return vec![target(rule.path.clone(), node, None, words.to_owned())];
    };
    let format = format_of(*format);
    let part = |is_codes: bool| compile::quantized(&node, format, is_codes);
    let text = |what: &str| format!("{what} ({}) of: {words}", format.name());
    vec![
        target(codes_path(&rule.path), part(true), Some(Dtype::I8), text("codes")),
        target(scale_path(&rule.path), part(false), Some(Dtype::F32), text("scales")),
    ]
}

fn codes_path(path: &str) -> String {
    format!("{path}.codes")
}

fn scale_path(path: &str) -> String {
    format!("{path}.scale")
}

fn format_of(format: lightc_dsl::model::Format) -> Format {
    match format {
        lightc_dsl::model::Format::Int8 => Format::Int8,
        lightc_dsl::model::Format::Quantile8 => Format::Quantile8,
    }
}

impl Source {
    fn of(module: &Module) -> Result<Self> {
        let mut source = Source {
            tensors: Vec::new(),
            params: BTreeMap::new(),
            states: BTreeMap::new(),
            moments: BTreeMap::new(),
        };
        for placed in module.placed_params() {
            let shape = shape_of(&placed.path, &placed.item.ty)?;
            if let Storage::Quantized(format) = placed.item.storage {
                source.add_quantized(&placed.path, &shape, format_of(format));
                continue;
            }
            let param = source.add(files::PARAMS, &placed.path, &shape);
            let leaf = Node { shape: shape.clone(), kind: Kind::Source(param) };
            source.params.insert(placed.path.clone(), leaf);
            if placed.item.storage.learns() {
                let moments = [files::MOMENTS_M, files::MOMENTS_V];
                let moments = moments.map(|file| source.add(file, &placed.path, &shape));
                source.moments.insert(param, moments);
            }
        }
        for placed in module.placed_states() {
            let shape = shape_of(&placed.path, &placed.item.ty)?;
            let state = source.add(files::STATES, &placed.path, &shape);
            source.states.insert(placed.path, Node { shape, kind: Kind::Source(state) });
        }
        Ok(source)
    }

    fn add(&mut self, file: &'static str, name: &str, shape: &[usize]) -> usize {
        self.tensors.push(SourceTensor { file, name: name.to_owned(), shape: shape.to_vec() });
        self.tensors.len() - 1
    }

    fn add_quantized(&mut self, path: &str, shape: &[usize], format: Format) {
        let rows = shape.split_last().map_or(shape, |(_, rows)| rows);
        let mut part = |name: String, shape: &[usize]| {
            let tensor = self.add(files::PARAMS, &name, shape);
            Box::new(Node { shape: shape.to_vec(), kind: Kind::Source(tensor) })
        };
        let codes = part(codes_path(path), shape);
        let scales = part(scale_path(path), rows);
        let kind = Kind::Dequantize { codes, scales, format };
        self.params.insert(path.to_owned(), Node { shape: shape.to_vec(), kind });
    }

    fn leaf(&self, tensor: usize) -> Option<Node> {
        let shape = self.tensors.get(tensor)?.shape.clone();
        Some(Node { shape, kind: Kind::Source(tensor) })
    }

    fn node(&self, seed: u64, rule: &TargetRule, tensors: &BTreeMap<String, Node>) -> Result<Node> {
        let source = |path: &str| tensors.get(path).cloned();
        let node = Compiler { seed, source: &source, path: &rule.path }.node(&rule.rule)?;
        let shape = shape_of(&rule.path, &rule.ty)?;
        if node.shape == shape {
            return Ok(node);
        }
        let detail = format!("it gives {:?}, the stage has {shape:?}", node.shape);
        Err(Error::Rule { path: rule.path.clone(), detail })
    }

    /// The two moments of a trained parameter.
    fn moments(&self, rule: &TargetRule, node: &Node) -> Result<Vec<Target>> {
        let target = |file, node, rule_words| Target {
            file,
            name: rule.path.clone(),
            node,
            dtype: None,
            rule: rule_words,
        };
        let both = [(files::MOMENTS_M, 0, 1), (files::MOMENTS_V, 1, 2)];
        both.into_iter()
            .map(|(file, which, power)| match &rule.moments {
                Moments::Reset { reason } => {
                    let zeros = Node::fill(&node.shape, 0.0);
                    Ok(target(file, zeros, format!("0: {reason}")))
                }
                Moments::Follow => {
                    let leaf = |param: usize| self.moment_leaf(rule, param, which);
                    let node = compile::moments(node, power, &leaf)?;
                    let what = if power == 1 { "first" } else { "second" };
                    let text = format!("{what} moments by: {}", words(&rule.rule));
                    Ok(target(file, node, text))
                }
            })
            .collect()
    }

    fn moment_leaf(&self, rule: &TargetRule, param: usize, which: usize) -> Result<Node> {
        let moments = self.moments.get(&param).and_then(|moments| moments.get(which));
        let found = moments.and_then(|tensor| self.leaf(*tensor));
        found.ok_or_else(|| Error::NoMoments {
            target: rule.path.clone(),
            source_path: self.tensors.get(param).map(|t| t.name.clone()).unwrap_or_default(),
        })
    }
}
