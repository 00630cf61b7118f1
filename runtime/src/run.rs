//! A training run: the loop around a stage's step.
//!
//! ```text
//! OUT/
//!   config.resolved.toml
//!   metrics.jsonl
//!   checkpoints/              see lightc_checkpoint
//!   lock                      held while a process trains here
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lightc_checkpoint::{Checkpoint, Store, durable};
use serde_json::json;

use crate::checkpoint::{self, Strictness};
use crate::config::Config;
use crate::data::Plan;
use crate::error::{Error, Result, TrainError};
use crate::evaluate::{Evaluation, Unigram, evaluate, unigram};
use crate::footprint::{self, Ledger};
use crate::metrics::{Metrics, Rate, StepRow};
use crate::optimizer::Groups;
use crate::progress::Progress;
use crate::shards::Corpus;
use crate::stage::Stage;
use crate::tables::tables;
use crate::target::Target;
use crate::trainer::{self, Batch, Part, Parts, Setup, StepReport, TrainState};
use crate::{Device, cuda, reversible};

/// Where a run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Anew; the folder must hold no checkpoint.
    New,
    /// From the latest checkpoint of the folder.
    Latest,
    /// From a checkpoint of the folder, by name; later ones are replaced as the
    /// run reaches them.
    From(String),
    /// A run of its own, at step 0, with the parameters, states and moments of a
    /// checkpoint of this stage that was grown or trained elsewhere. Schedule and
    /// data start anew, and nothing is carried into its first sequences.
    Initial(PathBuf),
}

/// What to do with a stage and a configuration.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The run's folder.
    pub out: PathBuf,
    /// Where it begins.
    pub start: Start,
    /// Stop, with a checkpoint, when this many updates are done. The schedule
    /// is not changed by it.
    pub stop_after: Option<u64>,
    /// Resume a checkpoint of other sources.
    pub accept_changed_source: bool,
    /// Resume a checkpoint of other settings.
    pub accept_changed_config: bool,
    /// What the stage was generated for.
    pub target: Target,
    /// Time the parts of every step.
    pub profile: bool,
    /// Save no checkpoint, not even the last: for measurements.
    pub no_checkpoints: bool,
    /// Keep all that backward passes of reversible stacks read: for measurements.
    pub store_states: bool,
    /// Tell nothing on standard error.
    pub silent: bool,
}

impl RunOptions {
    /// A new run in a folder.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        RunOptions {
            out: out.into(),
            start: Start::New,
            stop_after: None,
            accept_changed_source: false,
            accept_changed_config: false,
            target: Target::Cpu,
            profile: false,
            no_checkpoints: false,
            store_states: false,
            silent: false,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Updates done before this part of the run.
    pub begin_step: u64,
    /// Updates done in all.
    pub end_step: u64,
    /// Whether a signal ended it.
    pub interrupted: bool,
    /// Held-out loss at `begin_step`.
    pub before: Evaluation,
    /// Held-out loss at `end_step`; `None` where a signal ended the run.
    pub after: Option<Evaluation>,
    /// What a unigram model would reach.
    pub unigram: Unigram,
    /// The last checkpoint; `None` where none is saved.
    pub checkpoint: Option<PathBuf>,
    /// The metrics.
    pub metrics: PathBuf,
}

/// A stage with its corpus and configuration.
pub struct Session<'a> {
    stage: &'a dyn Stage,
    config: &'a Config,
    target: Target,
    device: Device,
    corpus: Corpus,
}

impl<'a> Session<'a> {
    /// A session on the CPU; see [`Session::open_on`].
    ///
    /// # Errors
    /// As there.
    pub fn open(stage: &'a dyn Stage, config: &'a Config) -> Result<Self> {
        Session::open_on(stage, config, Target::Cpu, &reversible::Options::default())
    }

    /// Opens the device of a target, sees that what training takes fits in its memory with reversible stacks
    /// run in one of their ways, opens the corpus, and checks that it fits the stage. Sets libtorch's number of threads.
    ///
    /// # Errors
    /// There is no such device (before anything is read), too little memory on it (before anything
    /// is allocated there), or the corpus is not the stage's.
    pub fn open_on(
        stage: &'a dyn Stage,
        config: &'a Config,
        target: Target,
        ways: &reversible::Options,
    ) -> Result<Self> {
        let device = target.open()?;
        if let (Device::Cuda(gpu), Some(ledger)) = (device, Ledger::of(stage, config, ways)) {
            let what = format!("training `{}`", stage.name());
            cuda::ensure_memory(gpu, &what, ledger.total(), &ledger.text())?;
        }
        cuda::compile_ahead(device, stage.kernels().as_slice())?;
        tch::set_num_threads(config.threads as i32);
        let corpus = Corpus::open(&config.data.shards)?;
        corpus.check_vocab(stage.vocab(), config.data.unused_ids)?;
        corpus.check_pinned(config.data.tokenizer.as_deref())?;
        Ok(Session { stage, config, target, device, corpus })
    }

    /// The corpus.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The state before the first step.
    pub fn fresh_state(&self) -> Result<TrainState> {
        TrainState::new(self.stage, self.setup()?)
    }

    pub(crate) fn setup(&self) -> Result<Setup> {
        let config = self.config;
        Ok(Setup {
            seed: config.seed,
            act: self.target.act(),
            device: self.device,
            n_lanes: config.data.batch,
            micro_batch: config.data.micro_batch(),
            adamw: config.adamw(),
            schedule: config.schedule(),
            groups: Groups::assign(self.stage.params(), &config.groups)?,
            tables: tables(self.stage.tables(), &self.corpus.tokenizer, self.device)?,
        })
    }

    /// The state of a checkpoint.
    pub fn restored_state(
        &self,
        checkpoint: &Checkpoint,
        strictness: Strictness,
    ) -> Result<TrainState> {
        let mut state = TrainState::blank(self.stage, self.setup()?)?;
        let settings = self.config.settings();
        let (stage, corpus) = (self.stage, &self.corpus);
        checkpoint::restore(stage, &mut state, checkpoint, corpus, &settings, strictness)?;
        Ok(state)
    }

    /// The state of a run that begins with the tensors of a checkpoint.
    fn initial_state(&self, checkpoint: &Checkpoint, options: &RunOptions) -> Result<TrainState> {
        let mut state = TrainState::blank(self.stage, self.setup()?)?;
        let source = !options.accept_changed_source;
        checkpoint::begin_from(self.stage, &mut state, checkpoint, &self.corpus, source)?;
        Ok(state)
    }

    /// Held-out loss of a state.
    pub fn evaluate(&self, state: &TrainState) -> Result<Evaluation> {
        evaluate(self.stage, state, &self.corpus, self.config)
    }

    fn save(&self, store: &Store, state: &TrainState) -> Result<PathBuf> {
        let head = checkpoint::head(self.stage, state, &self.corpus, self.config.settings());
        let path = store.save(&head, &checkpoint::files(state)?)?;
        store.prune(self.config.checkpoint.keep_last)?;
        Ok(path)
    }
}

/// Trains. `stop` is looked at before every step.
pub fn train(
    stage: &dyn Stage,
    config: &Config,
    options: &RunOptions,
    stop: &AtomicBool,
) -> Result<Summary> {
    check_share(stage, options)?;
    let ways = reversible::Options { store_everything: options.store_states, record_states: false };
    let session = Session::open_on(stage, config, options.target, &ways)?;
    let _lock = lock(&options.out)?;
    let store = Store::new(options.out.join("checkpoints"));
    let (state, resumed_from) = begin(&session, options, &store)?;
    let plan = Plan::new(&session.corpus.train, &config.data, config.seed)?;
    let resolved = options.out.join("config.resolved.toml");
    let mut pinned = config.clone();
    pinned.data.tokenizer = Some(session.corpus.tokenizer.hash().to_owned());
    durable::replace_file(&resolved, pinned.resolved().as_bytes())?;
    let metrics = Metrics::open(&options.out.join("metrics.jsonl"), resumed_from)?;
    let end = options.stop_after.unwrap_or(config.steps).min(config.steps);
    let progress =
        if options.silent { Progress::silent() } else { Progress::new(state.step(), end) };
    let last_saved = resumed_from;
    let rate = rate(&session)?;
    let run =
        Run { session: &session, options, store, state, plan, metrics, progress, last_saved, rate };
    reversible::with_options(ways, || run.drive(end, stop))
}

/// One rank's share has no checkpoints.
fn check_share(stage: &dyn Stage, options: &RunOptions) -> Result<()> {
    match stage.share() {
        Some(share) if !options.no_checkpoints || options.start != Start::New => {
            let (stage, ranks) = (stage.name(), share.ranks);
            Err(TrainError::ShareCheckpoint { stage, ranks }.into())
        }
        _ => Ok(()),
    }
}

/// What MFU is made of.
fn rate(session: &Session<'_>) -> Result<Option<Rate>> {
    let named = session.config.metrics.peak_tflops.map(|tera| tera * 1e12);
    let peak = match (named, session.device) {
        (Some(peak), _) => Some(peak),
        (None, Device::Cuda(gpu)) => footprint::peak_flops(&cuda::facts(gpu)?.name),
        (None, _) => None,
    };
    let flops = footprint::step_flops(session.stage, session.config);
    Ok(flops.zip(peak).map(|(step_flops, peak_flops)| Rate { step_flops, peak_flops }))
}

/// Creates the run's folder and takes its lock, which the file keeps while it
/// is open.
fn lock(out: &Path) -> Result<File> {
    std::fs::create_dir_all(out).map_err(TrainError::io("creating", out))?;
    let path = out.join("lock");
    let file = File::create(&path).map_err(TrainError::io("creating", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(TrainError::Busy { path: out.to_owned() }.into())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(TrainError::io("locking", path)(error).into())
        }
    }
}

/// The state to begin with, and the step that it was resumed from.
fn begin(
    session: &Session<'_>,
    options: &RunOptions,
    store: &Store,
) -> Result<(TrainState, Option<u64>)> {
    let checkpoint = match &options.start {
        Start::New => {
            is_empty(options, store)?;
            return Ok((session.fresh_state()?, None));
        }
        Start::Initial(path) => {
            is_empty(options, store)?;
            let checkpoint = checkpoint::open_any(path)?;
            return Ok((session.initial_state(&checkpoint, options)?, None));
        }
        Start::Latest => store.open_latest()?,
        Start::From(name) => store.open(name)?,
    };
    let strictness = Strictness {
        source: !options.accept_changed_source,
        run: true,
        settings: !options.accept_changed_config,
    };
    let state = session.restored_state(&checkpoint, strictness)?;
    if let Start::From(name) = &options.start {
        // What lies after it may be replaced from now on.
        store.set_latest(name)?;
    }
    let step = state.step();
    Ok((state, Some(step)))
}

/// A new run does not write over another.
fn is_empty(options: &RunOptions, store: &Store) -> Result<()> {
    match store.latest()? {
        Some(latest) => Err(TrainError::RunExists { path: options.out.clone(), latest }.into()),
        None => Ok(()),
    }
}

struct Run<'a> {
    session: &'a Session<'a>,
    options: &'a RunOptions,
    store: Store,
    state: TrainState,
    plan: Plan,
    metrics: Metrics,
    progress: Progress,
    last_saved: Option<u64>,
    rate: Option<Rate>,
}

impl Run<'_> {
    fn drive(mut self, end: u64, stop: &AtomicBool) -> Result<Summary> {
        let begin_step = self.state.step();
        let unigram = unigram(&self.session.corpus);
        self.write_start(&unigram)?;
        let before = self.evaluate()?;
        let interrupted = self.steps(end, stop)?;
        let checkpoint = self.save()?;
        let after = if interrupted { None } else { Some(self.evaluate()?) };
        self.progress.finish();
        Ok(Summary {
            begin_step,
            end_step: self.state.step(),
            interrupted,
            before,
            after,
            unigram,
            checkpoint,
            metrics: self.metrics.path().to_owned(),
        })
    }

    fn write_start(&mut self, unigram: &Unigram) -> Result<()> {
        let Session { stage, config, corpus, target, .. } = self.session;
        let fields = json!({
            "stage": stage.name(),
            "source_hash": stage.source_hash(),
            "compiler": env!("CARGO_PKG_VERSION"),
            "corpus": corpus.digest,
            "tokenizer": corpus.tokenizer.hash(),
            "unigram": unigram,
            "settings": config.settings(),
            "target": target.word(),
        });
        self.metrics.row("start", self.state.step(), fields)
    }

    /// Steps until `end` or a signal; tells whether it was a signal.
    fn steps(&mut self, end: u64, stop: &AtomicBool) -> Result<bool> {
        let Config { evaluation, checkpoint, .. } = self.session.config;
        while self.state.step() < end {
            if stop.load(Ordering::Relaxed) {
                return Ok(true);
            }
            self.step().map_err(|error| self.with_last_checkpoint(error))?;
            let step = self.state.step();
            if step < end && step.is_multiple_of(evaluation.interval) {
                self.evaluate()?;
            }
            if step < end && step.is_multiple_of(checkpoint.interval) {
                let _ = self.save()?;
            }
        }
        Ok(false)
    }

    fn step(&mut self) -> Result<StepReport> {
        let Session { stage, corpus, device, config, .. } = self.session;
        let step = self.state.step();
        let interval = config.metrics.profile_interval;
        let is_profiled =
            self.options.profile || (interval > 0 && (step + 1).is_multiple_of(interval));
        let mut clock = if is_profiled { Some(Parts::start(*device)?) } else { None };
        let begin = Instant::now();
        let batch = self.plan.batch(&corpus.train, step, self.state.act())?.to_device(*device)?;
        if let Some(clock) = &mut clock {
            clock.end(Part::Data)?;
        }
        let is_plain =
            *device == Device::Cpu && clock.is_none() && config.data.n_micro_batches() == 1;
        let stepped = match is_plain {
            true => stage.train_step(&mut self.state, &batch),
            false => trainer::step_timed(*stage, &mut self.state, &batch, clock.as_mut()),
        };
        let report = stepped.map_err(|error| self.with_origin(error, &batch))?;
        let elapsed = begin.elapsed().as_secs_f64();
        let used_bytes = match device {
            Device::Cuda(gpu) => Some(footprint::used_bytes(*gpu)?),
            _ => None,
        };
        let row = StepRow {
            n_tokens: batch.n_targets,
            elapsed_s: elapsed,
            mfu: self.rate.map(|rate| rate.mfu(elapsed)),
            used_bytes,
            parts: clock.as_ref().map(Parts::rows),
        };
        self.metrics.step(&report, &row)?;
        self.progress.step(&report, &row);
        Ok(report)
    }

    /// Names the first op that gives a number that is not finite, by doing the step again: its
    /// inputs are as they were.
    fn with_origin(&self, mut error: Error, batch: &Batch) -> Error {
        if let Error::Train(TrainError::NotFinite { origin, .. }) = &mut error {
            *origin = trainer::first_bad_op(self.session.stage, &self.state, batch);
        }
        error
    }

    fn evaluate(&mut self) -> Result<Evaluation> {
        let evaluation = self.session.evaluate(&self.state)?;
        self.metrics.evaluation(self.state.step(), &evaluation)?;
        self.progress.evaluation(self.state.step(), &evaluation);
        Ok(evaluation)
    }

    /// Saves, unless this step is saved or nothing is to be.
    fn save(&mut self) -> Result<Option<PathBuf>> {
        let step = self.state.step();
        if self.options.no_checkpoints {
            return Ok(None);
        }
        if self.last_saved == Some(step) {
            return Ok(Some(self.store.root().join(lightc_checkpoint::format::step_name(step))));
        }
        let path = self.session.save(&self.store, &self.state)?;
        self.last_saved = Some(step);
        let name = lightc_checkpoint::format::step_name(step);
        self.metrics.row("checkpoint", step, json!({ "name": name }))?;
        Ok(Some(path))
    }

    fn with_last_checkpoint(&self, mut error: Error) -> Error {
        if let Error::Train(TrainError::NotFinite { last_checkpoint, .. }) = &mut error {
            *last_checkpoint = self.last_saved.map(lightc_checkpoint::format::step_name);
        }
        error
    }
}
