//! A [`TrainState`] as a checkpoint, and back.
//!
//! Five files: `params` (master weights), `moments_m` and `moments_v` (trained
//! parameters), `states`, `carries`. The position of schedule, data and
//! randomness is the step.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use lightc_checkpoint::{
    Checkpoint, Dtype, Expected, ExpectedTensor, FileContents, Head, Store, TensorData,
    format::LATEST_FILE,
};

use crate::error::{Error, Result};
use crate::shards::Corpus;
use crate::stage::Stage;
use crate::trainer::TrainState;
use crate::{Device, Kind, Tensor};

const PARAMS: &str = "params.safetensors";
const MOMENTS_M: &str = "moments_m.safetensors";
const MOMENTS_V: &str = "moments_v.safetensors";
const STATES: &str = "states.safetensors";
const CARRIES: &str = "carries.safetensors";

/// What must be the same to resume.
#[derive(Debug, Clone, Copy)]
pub struct Strictness {
    /// The stage's sources.
    pub source: bool,
    /// The shards, and the settings that shape the run.
    pub run: bool,
    /// The settings that shape the run, where `run` is set.
    pub settings: bool,
}

/// A checkpoint by the path of a run, of its checkpoints, or of itself.
pub fn open_any(path: &Path) -> Result<Checkpoint> {
    for root in [path.to_owned(), path.join("checkpoints")] {
        if root.join(LATEST_FILE).is_file() {
            return Ok(Store::new(root).open_latest()?);
        }
    }
    Ok(Checkpoint::open(path)?)
}

/// The head of a checkpoint of this state.
pub fn head(
    stage: &dyn Stage,
    state: &TrainState,
    corpus: &Corpus,
    settings: BTreeMap<String, String>,
) -> Head {
    Head {
        stage: stage.name().to_owned(),
        source_hash: stage.source_hash().to_owned(),
        compiler: env!("CARGO_PKG_VERSION").to_owned(),
        step: state.step,
        seed: state.setup.seed,
        tokenizer_hash: corpus.tokenizer.hash().to_owned(),
        corpus_digest: corpus.digest.clone(),
        settings,
        integrators: integrators(stage),
        moment_updates: state.moment_updates,
        grown: state.grown.clone(),
    }
}

fn integrators(stage: &dyn Stage) -> BTreeMap<String, String> {
    let each = stage.integrators().iter();
    each.map(|(stack, integrator)| ((*stack).to_owned(), (*integrator).to_owned())).collect()
}

/// One tensor of a state: its file, its name, itself.
type Named<'a> = (&'static str, &'static str, &'a Tensor);

/// Every tensor of a state, in a fixed order.
fn named(state: &TrainState) -> Vec<Named<'_>> {
    let info = &state.info;
    let params = || info.params.iter().map(|spec| spec.path);
    let mut all: Vec<Named<'_>> = Vec::new();
    all.extend(params().zip(&state.master).map(|(path, tensor)| (PARAMS, path, tensor)));
    for (file, moments) in [(MOMENTS_M, &state.moments_m), (MOMENTS_V, &state.moments_v)] {
        let trained = params().zip(moments);
        all.extend(trained.filter_map(|(path, moment)| Some((file, path, moment.as_ref()?))));
    }
    let states = info.states.iter().map(|spec| spec.path).zip(&state.states);
    all.extend(states.map(|(path, tensor)| (STATES, path, tensor)));
    let carries = info.carries.iter().map(|spec| spec.name).zip(&state.carries);
    all.extend(carries.map(|(name, tensor)| (CARRIES, name, tensor)));
    all
}

/// The files of a checkpoint of this state.
pub fn files(state: &TrainState) -> Result<Vec<FileContents<'static>>> {
    let mut files: Vec<FileContents<'static>> = [PARAMS, MOMENTS_M, MOMENTS_V, STATES, CARRIES]
        .map(|name| FileContents { name: name.to_owned(), tensors: Vec::new() })
        .into();
    for (file, name, tensor) in named(state) {
        let Some(contents) = files.iter_mut().find(|contents| contents.name == file) else {
            continue;
        };
        contents.tensors.push(TensorData {
            name: name.to_owned(),
            dtype: dtype(tensor.f_kind()?)?,
            shape: shape(tensor),
            bytes: Cow::Owned(bytes(tensor)?),
        });
    }
    Ok(files)
}

/// Checks a checkpoint against the stage, the corpus and the settings, and
/// takes over its tensors and step. The files are verified and their tensors compared with the
/// state's before the first is taken over; a state that was not restored whole is not to be used.
pub fn restore(
    stage: &dyn Stage,
    state: &mut TrainState,
    checkpoint: &Checkpoint,
    corpus: &Corpus,
    settings: &BTreeMap<String, String>,
    strictness: Strictness,
) -> Result<()> {
    let head = &checkpoint.manifest().head;
    if head.grown.is_some() && head.step == 0 && !strictness.run {
        // Fresh from growth: it has no lanes yet, and so no carries.
        return begin_from(stage, state, checkpoint, corpus, strictness.source);
    }
    let tensors = expected_tensors(&named(state))?;
    checkpoint.check(&Expected {
        stage: stage.name(),
        source_hash: strictness.source.then(|| stage.source_hash()),
        tokenizer_hash: corpus.tokenizer.hash(),
        corpus_digest: strictness.run.then_some(corpus.digest.as_str()),
        settings: (strictness.run && strictness.settings).then_some(settings),
        tensors: &tensors,
        unread: &[],
    })?;
    let names: Vec<_> = named(state).iter().map(|(file, name, _)| (*file, *name)).collect();
    load(state, checkpoint, &names)?;
    let head = &checkpoint.manifest().head;
    state.step = head.step;
    state.moment_updates = head.moment_updates;
    state.grown = head.grown.clone();
    state.refresh_params()
}

/// Checks a checkpoint of this stage from any run, and takes over its
/// parameters, moments and states. Step and carries stay as they are.
pub fn begin_from(
    stage: &dyn Stage,
    state: &mut TrainState,
    checkpoint: &Checkpoint,
    corpus: &Corpus,
    same_source: bool,
) -> Result<()> {
    // Carries belong to the lanes of a run; they come last in the list.
    let mut all = named(state);
    all.retain(|(file, _, _)| *file != CARRIES);
    checkpoint.check(&Expected {
        stage: stage.name(),
        source_hash: same_source.then(|| stage.source_hash()),
        tokenizer_hash: corpus.tokenizer.hash(),
        corpus_digest: None,
        settings: None,
        tensors: &expected_tensors(&all)?,
        unread: &[CARRIES],
    })?;
    let names: Vec<_> = all.iter().map(|(file, name, _)| (*file, *name)).collect();
    load(state, checkpoint, &names)?;
    let head = &checkpoint.manifest().head;
    state.moment_updates = head.step + head.moment_updates;
    state.grown = head.grown.clone();
    state.refresh_params()
}

fn expected_tensors(named: &[Named<'_>]) -> Result<Vec<ExpectedTensor>> {
    named
        .iter()
        .map(|&(file, name, tensor)| {
            Ok(ExpectedTensor {
                file: file.to_owned(),
                name: name.to_owned(),
                dtype: dtype(tensor.f_kind()?)?,
                shape: shape(tensor),
            })
        })
        .collect()
}

/// Reads tensors, in the order of [`named`], into their places: one after the other through the
/// host's memory, so that no device holds a second one.
fn load(state: &mut TrainState, checkpoint: &Checkpoint, names: &[(&str, &str)]) -> Result<()> {
    let places = state
        .master
        .iter_mut()
        .chain(state.moments_m.iter_mut().flatten())
        .chain(state.moments_v.iter_mut().flatten())
        .chain(&mut state.states)
        .chain(&mut state.carries);
    for (place, (file, name)) in places.zip(names) {
        let found = checkpoint.tensor(file, name)?;
        let host = Tensor::f_from_data_size(found.bytes, &place.size(), place.f_kind()?)?;
        place.f_copy_(&host)?;
    }
    Ok(())
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().into_iter().map(|size| size as usize).collect()
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let n_elements = tensor.numel();
    let mut bytes = vec![0; n_elements * tensor.f_kind()?.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, n_elements)?;
    Ok(bytes)
}

fn dtype(kind: Kind) -> Result<Dtype> {
    match kind {
        Kind::Float => Ok(Dtype::F32),
        Kind::Double => Ok(Dtype::F64),
        Kind::Half => Ok(Dtype::F16),
        Kind::BFloat16 => Ok(Dtype::BF16),
        Kind::Int8 => Ok(Dtype::I8),
        Kind::Int64 => Ok(Dtype::I64),
        other => Err(Error::Op {
            op: "checkpoint",
            detail: format!("a tensor of kind {other:?} has no place in a checkpoint"),
        }),
    }
}
