//! Runs a plan: verifies the source, writes the target's files, commits.
//!
//! Threads take tasks of two kinds: verify a file of the source, write a file of the target. A
//! target file is begun when every source file that it reads is verified, so nothing on disk comes
//! from unverified bytes, and what was just verified is still in the page cache. The target gets
//! its name when all is verified, written and synced.

mod job;

use crate::error::{Error, Result};
use crate::journal::{self, Work};
use crate::layout::{Shard, shards};
use crate::number::is_known;
use crate::plan::{Plan, files};
use crate::receipt::{Probe, RECEIPT_FILE, RECEIPT_TABLE, Receipt};
use job::{Job, Meter, State};
use lightc_checkpoint::format::{FORMAT, MANIFEST_FILE};
use lightc_checkpoint::{
    Error as Damage, FileEntry, Grown, Head, Manifest, Streamed, durable, sealed,
};
use std::collections::BTreeSet;
use std::fs::{self};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Condvar, Mutex, PoisonError};

/// Elements that are evaluated at once.
const BLOCK: usize = 1 << 20;

/// How to run a plan.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that read, compute and write.
    pub n_threads: usize,
    /// Bytes that a file of the target is not to exceed, unless one tensor does.
    pub shard_bytes: u64,
    /// Version of lightc, for head and receipt.
    pub compiler: String,
    /// What was measured about the map.
    pub probe: Option<Probe>,
}

impl Options {
    /// All processors, files of 1 GiB.
    pub fn new(compiler: impl Into<String>) -> Self {
        Options {
            n_threads: std::thread::available_parallelism().map_or(2, usize::from),
            shard_bytes: 1 << 30,
            compiler: compiler.into(),
            probe: None,
        }
    }
}

/// How far a growth is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes verified of the source and written of the target.
    pub n_done: u64,
    /// Of how many.
    pub n_bytes: u64,
}

/// What came of a growth.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What was done.
    pub receipt: Receipt,
    /// Files that an earlier, interrupted process had finished.
    pub n_resumed: usize,
    /// Files of the target.
    pub n_files: usize,
    /// Bytes of the target.
    pub n_bytes: u64,
    /// Whether the whole target was there already; it was verified.
    pub was_there: bool,
}

/// Grows the checkpoint `from` into the folder `to`.
///
/// # Errors
/// Where the source is not what the plan asks for, is damaged, or `to` is something else. The folder
/// `to` is then as it was; what is finished stays beside it for the next try.
pub fn grow(
    plan: &Plan,
    from: &Path,
    to: &Path,
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    let source = Streamed::open(&lightc_checkpoint::resolve(from)?)?;
    check_source(plan, &source)?;
    let shards = shards(plan, &source, options.shard_bytes)?;
    let digest = plan_digest(plan, &source, &shards, options);
    if to.exists() {
        return already_there(plan, &source, to, &digest, options, progress);
    }
    let work = Work::open(to, &digest)?;
    let n_bytes = source.n_bytes() + shards.iter().map(Shard::n_bytes).sum::<u64>();
    let reads: Vec<_> =
        plan.tensors.iter().map(|tensor| source.tensor(tensor.file, &tensor.name)).collect();
    let job = Job {
        plan,
        reads: &reads,
        needs: shards.iter().map(|shard| needs(plan, &source, shard)).collect(),
        source: &source,
        shards: &shards,
        work: &work,
        n_inner: options.n_threads.max(1).div_ceil(shards.len().max(1)),
        meter: Meter { n_bytes, n_done: AtomicU64::new(0), progress },
        stop: AtomicBool::new(false),
        state: Mutex::new(State::new(&source, shards.len())),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..options.n_threads.max(1) {
            scope.spawn(|| job.run());
        }
    });
    let state = job.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = state.failed.into_iter().min_by_key(|(order, _)| *order) {
        return Err(error);
    }
    let entries: Vec<FileEntry> = state.written.into_iter().flatten().collect();
    let receipt = Receipt::new(
        plan,
        &digest,
        &options.compiler,
        options.probe.clone(),
        source.manifest(),
        &entries,
    );
    let n_resumed = state.n_resumed;
    commit(plan, &source, work, to, &receipt, &entries, options)?;
    Ok(report(receipt, n_resumed, &entries, false))
}

fn report(receipt: Receipt, n_resumed: usize, entries: &[FileEntry], was_there: bool) -> Report {
    let n_bytes = entries.iter().map(|entry| entry.n_bytes).sum();
    Report { receipt, n_resumed, n_files: entries.len(), n_bytes, was_there }
}

/// The source files that a shard reads.
fn needs(plan: &Plan, source: &Streamed, shard: &Shard) -> BTreeSet<String> {
    let targets = shard.tensors.iter().filter_map(|placed| plan.targets.get(placed.target));
    let tensors: BTreeSet<usize> = targets.flat_map(|target| target.node.sources()).collect();
    let tensors = tensors.into_iter().filter_map(|tensor| plan.tensors.get(tensor));
    let files = tensors.filter_map(|t| source.manifest().entry(t.file, &t.name));
    files.map(|(file, _)| file.to_owned()).collect()
}

/// That the checkpoint is of the plan's source: stage, sources, integrators, and exactly its
/// tensors.
fn check_source(plan: &Plan, source: &Streamed) -> Result<()> {
    let (head, path) = (&source.manifest().head, source.dir().to_owned());
    let expected = &plan.source;
    if head.stage != expected.stage {
        let (expected, found) = (expected.stage.clone(), head.stage.clone());
        return Err(Damage::Stage { path, expected, found }.into());
    }
    if expected.is_strict && head.source_hash != expected.source_hash {
        let (expected, found) = (expected.source_hash.clone(), head.source_hash.clone());
        return Err(Damage::Source { path, expected, found }.into());
    }
    let plain = || "plain()".to_owned();
    let stacks: BTreeSet<&String> =
        head.integrators.keys().chain(expected.integrators.keys()).collect();
    for stack in stacks {
        let [found, wanted] = [&head.integrators, &expected.integrators]
            .map(|integrators| integrators.get(stack).cloned().unwrap_or_else(plain));
        if found != wanted {
            let (stack, stage) = (stack.clone(), expected.stage.clone());
            return Err(Error::Integrator {
                path: path.into(),
                stack,
                stage,
                found,
                expected: wanted,
            });
        }
    }
    let wanted: Vec<lightc_checkpoint::Wanted<'_>> = plan
        .tensors
        .iter()
        .map(|tensor| lightc_checkpoint::Wanted {
            file: tensor.file,
            name: &tensor.name,
            shape: &tensor.shape,
        })
        .collect();
    source.check_tensors(&wanted, &[files::CARRIES], &is_known)?;
    Ok(())
}

/// Everything that the target's bytes depend on.
fn plan_digest(plan: &Plan, source: &Streamed, shards: &[Shard], options: &Options) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(&options.compiler);
    add(&format!("{:?}", (&plan.map, &plan.claim, plan.seed, &plan.source, &plan.target)));
    add(&format!("{:?}", (&plan.drops, &plan.settings, plan.moments_follow, &options.probe)));
    add(&format!("{:?}", source.manifest()));
    for target in &plan.targets {
        add(&format!("{target:?}"));
    }
    for shard in shards {
        add(&shard.name);
        add(&String::from_utf8_lossy(&shard.header));
    }
    hasher.finalize().to_hex().to_string()
}

/// The target of an earlier growth by the same plan, verified.
fn already_there(
    plan: &Plan,
    source: &Streamed,
    to: &Path,
    digest: &str,
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    let other = |why: &str| Error::TargetExists { path: to.to_owned(), why: why.to_owned() };
    let receipt = fs::read_to_string(to.join(RECEIPT_FILE))
        .map_err(|_| other("it has no receipt of a growth"))?;
    let found: serde_json::Value =
        serde_json::from_str(&receipt).map_err(|_| other("its receipt is damaged"))?;
    if found.get("plan").and_then(serde_json::Value::as_str) != Some(digest) {
        return Err(other("it was grown by another map, or from another checkpoint"));
    }
    let target = Streamed::open(to)?;
    let meter = Meter { n_bytes: target.n_bytes(), n_done: AtomicU64::new(0), progress };
    target.verify(&|n| meter.add(n))?;
    // An earlier process may have ended between its last two steps.
    journal::remove(to)?;
    let entries = &target.manifest().files;
    let probe = options.probe.clone();
    let manifest = source.manifest();
    let receipt = Receipt::new(plan, digest, &options.compiler, probe, manifest, entries);
    Ok(report(receipt, entries.len(), entries, true))
}

fn commit(
    plan: &Plan,
    source: &Streamed,
    work: Work,
    to: &Path,
    receipt: &Receipt,
    entries: &[FileEntry],
    options: &Options,
) -> Result<()> {
    let from = &source.manifest().head;
    let head = Head {
        stage: plan.target.stage.clone(),
        source_hash: plan.target.source_hash.clone(),
        compiler: options.compiler.clone(),
        step: 0,
        seed: plan.seed,
        tokenizer_hash: from.tokenizer_hash.clone(),
        corpus_digest: from.corpus_digest.clone(),
        settings: std::collections::BTreeMap::new(),
        integrators: plan.target.integrators.clone(),
        moment_updates: if plan.moments_follow { from.step + from.moment_updates } else { 0 },
        grown: Some(Grown {
            map: plan.map.clone(),
            from_stage: from.stage.clone(),
            from_root: receipt.source.root.clone(),
            from_step: from.step,
        }),
    };
    let mut files = entries.to_vec();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let data = work.data();
    let path = data.join(MANIFEST_FILE);
    let text = sealed::seal(&Manifest { format: FORMAT, head, files }).map_err(|error| {
        Damage::Io { action: "writing", path: path.clone(), source: error.into() }
    })?;
    // What is none of the target's: files of a run that was cut short differently.
    let known: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    for entry in
        fs::read_dir(&data).map_err(io("listing", &data))?.filter_map(std::result::Result::ok)
    {
        if !known.contains(&*entry.file_name().to_string_lossy()) {
            let path = entry.path();
            fs::remove_file(&path).map_err(io("removing", &path))?;
        }
    }
    durable::write_synced(&data.join(RECEIPT_TABLE), receipt.table().as_bytes())?;
    durable::write_synced(&data.join(RECEIPT_FILE), receipt.json()?.as_bytes())?;
    durable::write_synced(&path, text.as_bytes())?;
    work.publish(to)
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Checkpoint(Damage::Io { action, path, source })
}
