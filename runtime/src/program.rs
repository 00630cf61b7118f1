//! The command line of a generated crate.
//!
//! ```text
//! STAGE prepare  --files-from LIST --out DIR --vocab N
//! STAGE train    --config C --out DIR [--resume | --resume-from STEP | --from CKPT] [--steps N]
//! STAGE evaluate --config C --checkpoint DIR
//! ```
//!
//! # Exit codes
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | an error in the input, the files or the program; printed as `error[E1003]: ...` |
//! | 2 | the command line is wrong |
//! | 3 | a number became NaN or infinite; the last good checkpoint is kept |
//! | 130 | a signal stopped the run after it saved a checkpoint |

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::json;

use crate::checkpoint::{self, Strictness};
use crate::config::Config;
use crate::error::{Error, Result, TrainError};
use crate::evaluate::unigram;
use crate::run::{RunOptions, Session, Start, Summary, train};
use crate::shards::{self, PrepareOptions, Prepared};
use crate::stage::Stage;
use crate::target::Target;
use crate::tokenizer::END_TOKEN;

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const NOT_FINITE: u8 = 3;
const INTERRUPTED: u8 = 130;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 an error, printed with its code; 2 wrong command line; \
3 a number became NaN or infinite; 130 stopped by a signal, after saving a checkpoint.";

/// A compiled stage.
#[derive(Debug, Parser)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make token shards from documents, and train their tokenizer.
    Prepare(PrepareArgs),
    /// Train the stage.
    Train(TrainArgs),
    /// Measure the held-out loss of a checkpoint.
    Evaluate(EvaluateArgs),
}

#[derive(Debug, Args)]
struct PrepareArgs {
    /// A file with one document path per line.
    #[arg(long, value_name = "LIST")]
    files_from: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Ids of the tokenizer; the stage's own number where absent.
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Use this tokenizer.json in place of training one.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The token that ends a document.
    #[arg(long, value_name = "TOKEN", default_value = END_TOKEN)]
    end_token: String,
    /// Hold out one document in this many.
    #[arg(long, value_name = "K", default_value_t = 20)]
    held_out_every: usize,
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// The training configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The run's folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the folder's latest checkpoint.
    #[arg(long)]
    resume: bool,
    /// Go on from this checkpoint of the folder, such as step_00000100.
    #[arg(long, value_name = "STEP", conflicts_with = "resume")]
    resume_from: Option<String>,
    /// Begin a new run with the parameters, moments and states of this
    /// checkpoint, such as one that `lightc grow` wrote.
    #[arg(long, value_name = "CKPT", conflicts_with_all = ["resume", "resume_from"])]
    from: Option<PathBuf>,
    /// Stop, with a checkpoint, when this many steps of the run are done. The
    /// schedule stays that of the configuration.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Time the parts of every step. The program then waits for the device after each part, which
    /// makes a step slower.
    #[arg(long)]
    profile: bool,
    /// Save no checkpoint, not even at the end: for measurements.
    #[arg(long)]
    no_checkpoints: bool,
    /// Keep all that the backward passes of reversible stacks read, in place of running layers again: for
    /// measurements. The numbers are the same, the memory is not.
    #[arg(long)]
    store_states: bool,
    /// Resume a checkpoint that was written by another source of the stage.
    #[arg(long)]
    accept_changed_source: bool,
    /// Resume a checkpoint that was written with other settings.
    #[arg(long)]
    accept_changed_config: bool,
}

#[derive(Debug, Args)]
struct EvaluateArgs {
    /// The training configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A run's folder, its checkpoints folder, or one checkpoint.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Measure a checkpoint that was written by another source of the stage.
    #[arg(long)]
    accept_changed_source: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The whole program of a generated crate for the CPU.
pub fn main(stage: &dyn Stage) -> ExitCode {
    main_on(stage, Target::Cpu)
}

/// The whole program of a generated crate for a target.
pub fn main_on(stage: &dyn Stage, target: Target) -> ExitCode {
    ExitCode::from(run_on(stage, target, std::env::args_os()))
}

/// [`main`] with its arguments given and its exit code as a number.
pub fn run(stage: &dyn Stage, args: impl IntoIterator<Item = OsString>) -> u8 {
    run_on(stage, Target::Cpu, args)
}

/// [`main_on`] with its arguments given and its exit code as a number.
pub fn run_on(stage: &dyn Stage, target: Target, args: impl IntoIterator<Item = OsString>) -> u8 {
    let command = Cli::command().name(stage.name()).bin_name(stage.name());
    let parsed = command.try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell where the message cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { WRONG_USAGE } else { 0 };
        }
    };
    let done = match cli.command {
        Command::Prepare(args) => prepare(stage, args),
        Command::Train(args) => run_training(stage, target, args),
        Command::Evaluate(args) => run_evaluation(stage, target, &args),
    };
    done.unwrap_or_else(|error| {
        eprint!("{}", error.rendered());
        match error {
            Error::Train(TrainError::NotFinite { .. }) => NOT_FINITE,
            _ => FAILED,
        }
    })
}

fn prepare(stage: &dyn Stage, args: PrepareArgs) -> Result<u8> {
    let options = PrepareOptions {
        documents: shards::read_list(&args.files_from)?,
        tokenizer: args.tokenizer,
        end_token: args.end_token,
        held_out_every: args.held_out_every,
        ..PrepareOptions::new(
            Vec::new(),
            args.out,
            args.vocab.unwrap_or(stage.vocab().max(0) as usize),
        )
    };
    let prepared = shards::prepare(&options)?;
    print_prepared(&options.out, &prepared);
    Ok(0)
}

fn print_prepared(out: &Path, prepared: &Prepared) {
    let manifest = &prepared.corpus.manifest;
    let how = if prepared.was_there { "was there already, verified" } else { "written" };
    println!("shards        {} ({how})", out.display());
    println!("tokenizer     {} ids, BLAKE3 {}", manifest.vocab, manifest.tokenizer_hash);
    for (name, split) in [("train", &manifest.train), ("held out", &manifest.held_out)] {
        println!(
            "{name:<13} {} documents, {} bytes, {} tokens",
            split.n_documents, split.n_text_bytes, split.n_tokens
        );
    }
    println!("left out      {} empty documents, {} copies", manifest.n_empty, manifest.n_copies);
}

fn run_training(stage: &dyn Stage, target: Target, args: TrainArgs) -> Result<u8> {
    // Before anything is read: a machine without the device has nothing to do here.
    let _ = target.open()?;
    let config = Config::load(&args.config)?;
    let start = match (args.resume, args.resume_from, args.from) {
        (_, Some(name), _) => Start::From(name),
        (_, _, Some(path)) => Start::Initial(path),
        (true, None, None) => Start::Latest,
        (false, None, None) => Start::New,
    };
    let options = RunOptions {
        out: args.out,
        start,
        stop_after: args.steps,
        accept_changed_source: args.accept_changed_source,
        accept_changed_config: args.accept_changed_config,
        target,
        profile: args.profile,
        no_checkpoints: args.no_checkpoints,
        store_states: args.store_states,
        silent: false,
    };
    let stop = stop_on_signals()?;
    let summary = train(stage, &config, &options, &stop)?;
    print_summary(&options, &summary);
    Ok(if summary.interrupted { INTERRUPTED } else { 0 })
}

/// A flag that SIGINT and SIGTERM set; the second signal ends the process at
/// once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag;

    let stop = Arc::new(AtomicBool::new(false));
    let failed = || TrainError::io("handling signals in", "the process");
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down and only raises it.
        flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), Arc::clone(&stop))
            .map_err(failed())?;
        flag::register(signal, Arc::clone(&stop)).map_err(failed())?;
    }
    Ok(stop)
}

fn print_summary(options: &RunOptions, summary: &Summary) {
    let Summary { begin_step, end_step, before, after, unigram, .. } = summary;
    println!("steps                 {begin_step} to {end_step}");
    println!("held-out loss before  {:.4} nats per token", before.ntp);
    if let Some(after) = after {
        println!(
            "held-out loss after   {:.4} nats per token, {:.4} bits per byte",
            after.ntp, after.bits_per_byte
        );
    }
    println!("unigram, held out     {:.4} nats per token", unigram.held_out);
    println!("unigram, corpus       {:.4} nats per token", unigram.corpus_entropy);
    match &summary.checkpoint {
        Some(path) => println!("checkpoint            {}", path.display()),
        None => println!("checkpoint            none was asked for"),
    }
    println!("metrics               {}", summary.metrics.display());
    if summary.interrupted {
        println!(
            "stopped by a signal; go on with `train --resume --out {}`",
            options.out.display()
        );
    }
}

fn run_evaluation(stage: &dyn Stage, target: Target, args: &EvaluateArgs) -> Result<u8> {
    let _ = target.open()?;
    let config = Config::load(&args.config)?;
    let session = Session::open_on(stage, &config, target, &crate::reversible::Options::default())?;
    let checkpoint = checkpoint::open_any(&args.checkpoint)?;
    let strictness =
        Strictness { source: !args.accept_changed_source, run: false, settings: false };
    let state = session.restored_state(&checkpoint, strictness)?;
    let evaluation = session.evaluate(&state)?;
    let unigram = unigram(session.corpus());
    if args.json {
        let report = json!({
            "stage": stage.name(),
            "step": state.step(),
            "held_out": evaluation,
            "unigram": unigram,
        });
        println!("{report:#}");
    } else {
        println!("checkpoint            {}", checkpoint.dir().display());
        println!(
            "held-out loss         {:.4} nats per token, {:.4} bits per byte, {} tokens",
            evaluation.ntp, evaluation.bits_per_byte, evaluation.n_targets
        );
        println!("unigram, held out     {:.4} nats per token", unigram.held_out);
    }
    Ok(0)
}
