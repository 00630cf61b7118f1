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

use crate::Kind;
use crate::checkpoint::{self, Strictness};
use crate::config::Config;
use crate::data::Plan;
use crate::error::{Error, Result, TrainError};
use crate::evaluate::{Evaluation, Unigram, evaluate, unigram};
use crate::metrics::Metrics;
use crate::optimizer::Groups;
use crate::progress::Progress;
use crate::shards::Corpus;
use crate::stage::Stage;
use crate::tables::tables;
use crate::trainer::{Setup, StepReport, TrainState};

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
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// The metrics.
    pub metrics: PathBuf,
}

/// A stage with its corpus and configuration.
pub struct Session<'a> {
    stage: &'a dyn Stage,
    config: &'a Config,
    corpus: Corpus,
}

impl<'a> Session<'a> {
    /// Opens the corpus and checks that it fits the stage. Sets libtorch's
    /// number of threads.
    pub fn open(stage: &'a dyn Stage, config: &'a Config) -> Result<Self> {
        tch::set_num_threads(config.threads as i32);
        let corpus = Corpus::open(&config.data.shards)?;
        corpus.check_vocab(stage.vocab())?;
        corpus.check_pinned(config.data.tokenizer.as_deref())?;
        Ok(Session { stage, config, corpus })
    }

    /// The corpus.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The state before the first step.
    pub fn fresh_state(&self) -> Result<TrainState> {
        let config = self.config;
        let setup = Setup {
            seed: config.seed,
            act: Kind::Float,
            n_lanes: config.data.batch,
            adamw: config.adamw(),
            schedule: config.schedule(),
            groups: Groups::assign(self.stage.params(), &config.groups)?,
            tables: tables(self.stage.tables(), &self.corpus.tokenizer)?,
        };
        TrainState::new(self.stage, setup)
    }

    /// The state of a checkpoint.
    pub fn restored_state(
        &self,
        checkpoint: &Checkpoint,
        strictness: Strictness,
    ) -> Result<TrainState> {
        let mut state = self.fresh_state()?;
        let settings = self.config.settings();
        let (stage, corpus) = (self.stage, &self.corpus);
        checkpoint::restore(stage, &mut state, checkpoint, corpus, &settings, strictness)?;
        Ok(state)
    }

    /// The state of a run that begins with the tensors of a checkpoint.
    fn initial_state(&self, checkpoint: &Checkpoint, options: &RunOptions) -> Result<TrainState> {
        let mut state = self.fresh_state()?;
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
    let session = Session::open(stage, config)?;
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
    let run = Run { session: &session, store, state, plan, metrics, progress, last_saved };
    run.drive(end, stop)
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
    store: Store,
    state: TrainState,
    plan: Plan,
    metrics: Metrics,
    progress: Progress,
    last_saved: Option<u64>,
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
        let Session { stage, config, corpus } = self.session;
        let fields = json!({
            "stage": stage.name(),
            "source_hash": stage.source_hash(),
            "compiler": env!("CARGO_PKG_VERSION"),
            "corpus": corpus.digest,
            "tokenizer": corpus.tokenizer.hash(),
            "unigram": unigram,
            "settings": config.settings(),
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
                self.save()?;
            }
        }
        Ok(false)
    }

    fn step(&mut self) -> Result<StepReport> {
        let begin = Instant::now();
        let Session { stage, corpus, .. } = self.session;
        let batch = self.plan.batch(&corpus.train, self.state.step(), self.state.act())?;
        let report = stage.train_step(&mut self.state, &batch)?;
        let elapsed = begin.elapsed().as_secs_f64();
        self.metrics.step(&report, batch.n_targets, elapsed * 1e3)?;
        self.progress.step(&report, batch.n_targets as f64 / elapsed);
        Ok(report)
    }

    fn evaluate(&mut self) -> Result<Evaluation> {
        let evaluation = self.session.evaluate(&self.state)?;
        self.metrics.evaluation(self.state.step(), &evaluation)?;
        self.progress.evaluation(self.state.step(), &evaluation);
        Ok(evaluation)
    }

    /// Saves, unless this step is saved.
    fn save(&mut self) -> Result<PathBuf> {
        let step = self.state.step();
        if self.last_saved == Some(step) {
            return Ok(self.store.root().join(lightc_checkpoint::format::step_name(step)));
        }
        let path = self.session.save(&self.store, &self.state)?;
        self.last_saved = Some(step);
        let name = lightc_checkpoint::format::step_name(step);
        self.metrics.row("checkpoint", step, json!({ "name": name }))?;
        Ok(path)
    }

    fn with_last_checkpoint(&self, mut error: Error) -> Error {
        if let Error::Train(TrainError::NotFinite { last_checkpoint, .. }) = &mut error {
            *last_checkpoint = self.last_saved.map(lightc_checkpoint::format::step_name);
        }
        error
    }
}
