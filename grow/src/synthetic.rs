//! A checkpoint and a map of any size, for tests and measurements.

use crate::execute::{Options, grow};
use crate::node::{Kind, Node};
use crate::plan::{Plan, Side, SourceTensor, Target, files};
use crate::{Result, compile};
use lightc_checkpoint::{Head, Store};
use lightc_codegen::growth::Claim;
use lightc_numerics::draw::Law;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const STAGE: &str = "synthetic";

/// The sizes of a synthetic stage: layers of an attention matrix and a feed-forward.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Layers.
    pub n_layers: usize,
    /// Channels.
    pub d: usize,
}

impl Sizes {
    /// About so many bytes with both moments.
    pub fn of_bytes(n_bytes: u64) -> Self {
        let d = if n_bytes >= 2 << 30 { 2048 } else { 128 };
        let layer = Sizes { n_layers: 1, d }.n_bytes();
        Sizes { n_layers: (n_bytes / layer).max(1) as usize, d }
    }

    /// Bytes of parameters and moments.
    pub fn n_bytes(self) -> u64 {
        (self.n_layers * 13 * self.d * self.d * 4 * 3) as u64
    }

    fn tensors(self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.d, 4 * self.d);
        let shapes = [("q", [d, d]), ("gate", [f, d]), ("up", [f, d]), ("down", [d, f])];
        let layers = 0..self.n_layers;
        layers
            .flat_map(|layer| {
                shapes.map(|(name, shape)| (format!("layers.{layer}.{name}"), shape.to_vec()))
            })
            .collect()
    }
}

fn side(stage: &str) -> Side {
    Side {
        stage: stage.to_owned(),
        source_hash: "synthetic".to_owned(),
        is_strict: true,
        integrators: BTreeMap::new(),
    }
}

fn plan(map: &str, source: &str, tensors: Vec<SourceTensor>, targets: Vec<Target>) -> Plan {
    Plan {
        map: map.to_owned(),
        claim: Claim::Changes { reason: "synthetic".to_owned() },
        seed: 7,
        source: side(source),
        target: side(STAGE),
        tensors,
        targets,
        drops: Vec::new(),
        settings: Vec::new(),
        moments_follow: true,
    }
}

/// Makes a checkpoint of a synthetic stage in a new folder: by a map that draws everything from a
/// checkpoint that has nothing.
///
/// # Errors
/// Where it cannot be written.
pub fn make(sizes: Sizes, folder: &Path, options: &Options) -> Result<()> {
    let seed = folder.with_extension("seed");
    let head = Head {
        stage: "nothing".to_owned(),
        source_hash: "synthetic".to_owned(),
        compiler: options.compiler.clone(),
        step: 100,
        seed: 0,
        tokenizer_hash: String::new(),
        corpus_digest: String::new(),
        settings: BTreeMap::new(),
        integrators: BTreeMap::new(),
        moment_updates: 0,
        grown: None,
    };
    let path: PathBuf = Store::new(&seed).save(&head, &[])?;
    let mut targets = Vec::new();
    for file in [files::PARAMS, files::MOMENTS_M, files::MOMENTS_V] {
        for (name, shape) in sizes.tensors() {
            let low = if file == files::MOMENTS_V { 0.0 } else { -0.1 };
            let law = Law::Uniform { low, high: 0.1 };
            let kind = Kind::Draw { law, key: format!("{file} {name}") };
            let rule = "drawn".to_owned();
            targets.push(Target { file, name, node: Node { shape, kind }, dtype: None, rule });
        }
    }
    let plan = plan("make", "nothing", Vec::new(), targets);
    grow(&plan, &path, folder, options, &|_| {})?;
    std::fs::remove_dir_all(&seed).map_err(|source| lightc_checkpoint::Error::Io {
        action: "removing",
        path: seed,
        source,
    })?;
    Ok(())
}

/// A map of a synthetic stage to itself that uses a copy, a concatenation with draws, a factor and
/// a choice of columns, with moments that follow.
pub fn map(sizes: Sizes) -> Plan {
    let mut tensors = Vec::new();
    for file in [files::PARAMS, files::MOMENTS_M, files::MOMENTS_V] {
        for (name, shape) in sizes.tensors() {
            tensors.push(SourceTensor { file, name, shape });
        }
    }
    let n_params = sizes.tensors().len();
    let leaf =
        |tensor: usize, shape: &[usize]| Node { shape: shape.to_vec(), kind: Kind::Source(tensor) };
    let mut targets = Vec::new();
    for (index, (name, shape)) in sizes.tensors().into_iter().enumerate() {
        let node = rule(&name, leaf(index, &shape));
        for (which, file) in [files::PARAMS, files::MOMENTS_M, files::MOMENTS_V].iter().enumerate()
        {
            let of_moment =
                |tensor: usize| Ok(leaf(tensor + which * n_params, &tensors[tensor].shape));
            let node = match which {
                0 => Ok(node.clone()),
                power => compile::moments(&node, power as i32, &of_moment),
            };
            // No rule of this map lacks moments.
            let node = node.unwrap_or_else(|_| Node::fill(&shape, 0.0));
            targets.push(Target {
                file,
                name: name.clone(),
                node,
                dtype: None,
                rule: "synthetic".to_owned(),
            });
        }
    }
    plan("synthetic", STAGE, tensors, targets)
}

/// The rule of a tensor, by its name.
fn rule(name: &str, source: Node) -> Node {
    let shape = source.shape.clone();
    let rows = shape.first().copied().unwrap_or(0);
    let columns = shape.get(1).copied().unwrap_or(0);
    let of = Box::new(source);
    let kind = match name.rsplit('.').next() {
        Some("gate") => {
            let kept = rows * 7 / 8;
            let slice = Kind::Slice { of, axis: 0, start: 0 };
            let law = Law::Normal { std: 0.02 };
            let parts = vec![
                Node { shape: vec![kept, columns], kind: slice },
                Node {
                    shape: vec![rows - kept, columns],
                    kind: Kind::Draw { law, key: name.to_owned() },
                },
            ];
            Kind::Concat { parts, axis: 0 }
        }
        Some("up") => Kind::Scale { of, factor: 0.5 },
        Some("down") => Kind::Pick { of, axis: 1, positions: (0..columns).rev().collect() },
        _ => return *of,
    };
    Node { shape, kind }
}
