//! A hand-written stage and a small corpus, for tests of the runtime that need
//! no compiler.

use std::any::Any;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::shards::{Corpus, PrepareOptions, prepare};
use crate::stage::{
    CarrySpec, Init, Inputs, Outputs, ParamSpec, Precision, Stage, StateSpec, Storage, TableSpec,
};
use crate::trainer::{Batch, StepReport, TrainState};
use crate::{Kind, Tensor};

/// Ids of [`BigramStage`] and of [`TestCorpus`].
pub const VOCAB: usize = 300;
const V: i64 = VOCAB as i64;
const D: i64 = 8;
const N_DOCUMENTS: usize = 40;

/// A small corpus in a temporary folder.
#[derive(Debug)]
pub struct TestCorpus {
    /// The folder; shards are in `shards`.
    pub dir: TempDir,
    documents: Vec<PathBuf>,
}

impl TestCorpus {
    /// Documents with their shards.
    #[allow(clippy::expect_used)]
    pub fn new() -> Self {
        let corpus = TestCorpus::empty();
        prepare(&corpus.options()).expect("the test corpus can be prepared");
        corpus
    }

    /// Documents alone.
    #[allow(clippy::expect_used)]
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut texts: Vec<String> = (0..N_DOCUMENTS).map(document).collect();
        texts.push(String::new());
        texts.push(document(3));
        let mut documents = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let path = dir.path().join(format!("document_{index:02}.txt"));
            std::fs::write(&path, text).expect("a document can be written");
            documents.push(path);
        }
        TestCorpus { dir, documents }
    }

    /// How the shards are prepared.
    pub fn options(&self) -> PrepareOptions {
        PrepareOptions {
            held_out_every: 4,
            ..PrepareOptions::new(self.documents.clone(), self.shards(), VOCAB)
        }
    }

    /// The folder of the shards.
    pub fn shards(&self) -> PathBuf {
        self.dir.path().join("shards")
    }

    /// The corpus.
    #[allow(clippy::expect_used)]
    pub fn open(&self) -> Corpus {
        Corpus::open(&self.shards()).expect("the test corpus opens")
    }

    /// A configuration of 20 steps; its shards' folder is to be filled in.
    #[allow(clippy::expect_used)]
    pub fn config() -> Config {
        let text = "\
steps = 20
seed = 1337
threads = 1
data = { shards = \"shards\", sequence_length = 18, batch = 4, run_length = 3 }
schedule = { kind = \"cosine\", peak = 0.05, end = 0.005, warmup_steps = 4, warmup_from = 0.01 }
groups = [
    { name = \"scales\", match = [\"**.scale\"], lr_multiplier = 0.5 },
    { name = \"rest\", match = [\"**\"], weight_decay = 0.01 },
]
evaluation = { interval = 10 }
checkpoint = { interval = 5, keep_last = 2 }
";
        Config::parse("test.toml".as_ref(), text).expect("the test configuration is right")
    }

    /// The same with this corpus' shards.
    pub fn own_config(&self) -> Config {
        let mut config = TestCorpus::config();
        config.data.shards = self.shards();
        config
    }
}

impl Default for TestCorpus {
    fn default() -> Self {
        TestCorpus::new()
    }
}

/// Text with much to predict, different in every document.
fn document(index: usize) -> String {
    let animals = ["cat", "dog", "owl", "bat", "fox", "hen", "rat"];
    let places = ["mat", "roof", "tree", "wall", "barn"];
    let mut text = format!("// part {index} of the tale\n");
    for line in 0..8 {
        let animal = animals[(index * 3 + line * 5) % animals.len()];
        let place = places[(index + line * 2) % places.len()];
        text +=
            &format!("let {animal} = sit(\"{place}\", {line}); the {animal} sat on the {place}.\n");
    }
    text
}

/// What a [`BigramStage`] spoils, and before which step (from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poison {
    /// Nothing.
    Nothing,
    /// The loss is NaN.
    Loss(u64),
    /// One gradient is infinite.
    Gradient(u64),
    /// One state is NaN.
    State(u64),
    /// One carry is infinite.
    Carry(u64),
}

/// The next token from the last one: `z = (scale * embed[x] + memory / 2) head^T
/// + offset`, cross entropy, gradients by hand.
#[derive(Debug, Clone, Copy)]
pub struct BigramStage {
    /// What goes wrong.
    pub poison: Poison,
    /// [`Stage::source_hash`].
    pub source_hash: &'static str,
}

impl BigramStage {
    /// A stage where nothing goes wrong.
    pub const GOOD: BigramStage = BigramStage { poison: Poison::Nothing, source_hash: "0b16" };
    /// A stage that spoils something.
    pub const fn poisoned(poison: Poison) -> Self {
        BigramStage { poison, ..BigramStage::GOOD }
    }
}

const PARAMS: [ParamSpec; 4] = [
    ParamSpec {
        path: "embed.weight",
        shape: &[V, D],
        precision: Precision::Act,
        init: Init::Normal { std: 0.5 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "embed.scale",
        shape: &[D],
        precision: Precision::F32,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "head.offset",
        shape: &[V],
        precision: Precision::Act,
        init: Init::Uniform { low: -0.01, high: 0.01 },
        storage: Storage::Frozen("to have one that is"),
    },
    ParamSpec {
        path: "head.weight",
        shape: &[V, D],
        precision: Precision::Act,
        init: Init::Normal { std: 0.1 },
        storage: Storage::Trained,
    },
];
const STATES: [StateSpec; 2] = [
    StateSpec { path: "n_updates", shape: &[], start: 0.0 },
    StateSpec { path: "mean_hidden", shape: &[D], start: 0.5 },
];
const TABLES: [TableSpec; 2] = [
    TableSpec { path: "embed.codes", shape: &[V, 16], source: "tokenizer.byte_codes" },
    TableSpec { path: "embed.counts", shape: &[V], source: "tokenizer.byte_counts" },
];
const CARRIES: [CarrySpec; 1] = [CarrySpec { name: "memory", shape: &[-1, D] }];

struct Saved {
    /// `[n, d]`, rows of the embedding.
    rows: Tensor,
    /// `[n, d]`.
    hidden: Tensor,
    /// `[n, v]`.
    probabilities: Tensor,
    /// `[n]`.
    x: Tensor,
    /// `[n, 1]`.
    y: Tensor,
    is_poisoned: bool,
}

impl BigramStage {
    fn is_poisoned(&self, inputs: &Inputs<'_>, poison: fn(u64) -> Poison) -> Result<bool> {
        let step = inputs.states[0].f_double_value(&[])? as u64 + 1;
        Ok(self.poison == poison(step))
    }

    fn spoiled(&self, is_poisoned: bool, tensor: Tensor, with: f64) -> Result<Tensor> {
        if is_poisoned { Ok(tensor.f_mul_scalar(with)?.f_add_scalar(with)?) } else { Ok(tensor) }
    }
}

impl Stage for BigramStage {
    fn name(&self) -> &'static str {
        "bigram"
    }
    fn source_hash(&self) -> &'static str {
        self.source_hash
    }
    fn params(&self) -> &'static [ParamSpec] {
        &PARAMS
    }
    fn states(&self) -> &'static [StateSpec] {
        &STATES
    }
    fn tables(&self) -> &'static [TableSpec] {
        &TABLES
    }
    fn carries(&self) -> &'static [CarrySpec] {
        &CARRIES
    }
    fn vocab(&self) -> i64 {
        V
    }

    fn forward(&self, inputs: &Inputs<'_>) -> Result<Outputs> {
        let [embed, scale, offset, head] = inputs.params else {
            return Err(Error::Op { op: "bigram", detail: "takes 4 parameters".to_owned() });
        };
        let size = inputs.tokens.size();
        let (b, t) = (size[0], size[1] - 2);
        let x = inputs.tokens.f_narrow(1, 0, t)?.f_reshape([-1])?;
        let y = inputs.tokens.f_narrow(1, 1, t)?.f_reshape([-1, 1])?;
        let rows = embed.f_index_select(0, &x)?;
        let memory = inputs.carries[0].f_mul(&inputs.continues.f_unsqueeze(1)?)?;
        let memory = memory.f_mul_scalar(0.5)?.f_unsqueeze(1)?;
        let hidden = rows.f_mul(scale)?.f_reshape([b, t, D])?.f_add(&memory)?;
        let last = hidden.f_select(1, t - 1)?;
        let hidden = hidden.f_reshape([-1, D])?;
        let logits = hidden.f_matmul(&head.f_transpose(0, 1)?)?.f_add(offset)?;
        let log_probabilities = logits.f_log_softmax(-1, None::<Kind>)?;
        let loss = log_probabilities.f_gather(1, &y, false)?.f_mean(None::<Kind>)?.f_neg()?;
        let loss = self.spoiled(self.is_poisoned(inputs, Poison::Loss)?, loss, f64::NAN)?;
        let state_poisoned = self.is_poisoned(inputs, Poison::State)?;
        let mean = hidden.f_mean_dim(0, false, None::<Kind>)?;
        let carry_poisoned = self.is_poisoned(inputs, Poison::Carry)?;
        Ok(Outputs {
            values: vec![("loss", loss.shallow_clone()), ("ntp", loss)],
            carries: vec![self.spoiled(carry_poisoned, last.f_detach()?, f64::INFINITY)?],
            states: vec![
                inputs.states[0].f_add_scalar(1.0)?,
                self.spoiled(state_poisoned, mean.f_detach()?, f64::NAN)?,
            ],
            saved: Box::new(Saved {
                rows,
                hidden,
                probabilities: log_probabilities.f_exp()?,
                x,
                y,
                is_poisoned: self.is_poisoned(inputs, Poison::Gradient)?,
            }),
        })
    }

    fn backward(&self, inputs: &Inputs<'_>, saved: Box<dyn Any>) -> Result<Vec<Option<Tensor>>> {
        let saved = saved.downcast::<Saved>();
        let saved = saved.map_err(|_| Error::Op { op: "bigram", detail: "saved".to_owned() })?;
        let (embed, scale, head) = (&inputs.params[0], &inputs.params[1], &inputs.params[3]);
        let n = saved.x.size()[0] as f64;
        let ones = saved.y.f_ones_like()?.f_to_kind(saved.probabilities.f_kind()?)?;
        let dz = saved.probabilities.f_scatter_add(1, &saved.y, &ones.f_neg()?)?;
        let dz = dz.f_div_scalar(n)?;
        let d_head = dz.f_transpose(0, 1)?.f_matmul(&saved.hidden)?;
        let d_hidden = dz.f_matmul(head)?;
        let d_scale = d_hidden.f_mul(&saved.rows)?.f_sum_dim_intlist(0, false, None::<Kind>)?;
        let d_rows = d_hidden.f_mul(scale)?;
        let d_embed = embed.f_zeros_like()?.f_index_add(0, &saved.x, &d_rows)?;
        let d_scale = self.spoiled(saved.is_poisoned, d_scale, f64::INFINITY)?;
        Ok(vec![Some(d_embed), Some(d_scale), None, Some(d_head)])
    }

    fn train_step(&self, train: &mut TrainState, batch: &Batch) -> Result<StepReport> {
        crate::trainer::step(self, train, batch)
    }
}
