//! Runs a plan: verifies the source, writes the target's files, commits.
//!
//! Threads take tasks of two kinds: verify a file of the source, write a file of the target. A
//! target file is begun when every source file that it reads is verified, so nothing on disk comes
//! from unverified bytes, and what was just verified is still in the page cache. The target gets
//! its name when all is verified, written and synced.

use crate::error::{Error, Result};
use crate::eval::{Context, Tensors, blocks, raw};
use crate::journal::{self, Work};
use crate::layout::{Placed, Shard, shards};
use crate::number::{is_known, width};
use crate::plan::{Plan, Target, files};
use crate::receipt::{Probe, RECEIPT_FILE, RECEIPT_TABLE, Receipt};
use lightc_checkpoint::format::{FORMAT, MANIFEST_FILE};
use lightc_checkpoint::read::first_not_finite;
use lightc_checkpoint::{
    Error as Damage, FileEntry, Grown, Head, Manifest, Piecewise, Streamed, TensorEntry, durable,
    sealed,
};
use safetensors::Dtype;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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

struct Meter<'a> {
    n_bytes: u64,
    n_done: AtomicU64,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Meter<'_> {
    /// Counts bytes; always says to go on.
    fn add(&self, n: u64) -> bool {
        let n_done = self.n_done.fetch_add(n, Ordering::Relaxed) + n;
        (self.progress)(Progress { n_done, n_bytes: self.n_bytes });
        true
    }
}

/// One growth while it runs.
struct Job<'a> {
    plan: &'a Plan,
    source: &'a Streamed,
    /// Per tensor of the plan's source.
    reads: &'a [Option<Piecewise<'a>>],
    shards: &'a [Shard],
    /// Per shard the source files that it reads.
    needs: Vec<BTreeSet<String>>,
    work: &'a Work,
    /// Threads that evaluate blocks of one file.
    n_inner: usize,
    meter: Meter<'a>,
    stop: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// Which tasks are taken and done.
struct State {
    /// Source files not yet taken, the last first.
    unverified: Vec<usize>,
    verified: BTreeSet<String>,
    n_source_files: usize,
    /// Per shard whether it is taken.
    taken: Vec<bool>,
    written: Vec<Option<FileEntry>>,
    n_resumed: usize,
    /// Errors with the order of their tasks: damage of the source comes first.
    failed: Vec<(usize, Error)>,
}

impl State {
    fn new(source: &Streamed, n_shards: usize) -> Self {
        let n_source_files = source.manifest().files.len();
        State {
            unverified: (0..n_source_files).rev().collect(),
            verified: BTreeSet::new(),
            n_source_files,
            taken: vec![false; n_shards],
            written: vec![None; n_shards],
            n_resumed: 0,
            failed: Vec::new(),
        }
    }
}

enum Task {
    Verify(usize),
    Write(usize),
}

impl Job<'_> {
    fn run(&self) {
        while let Some(task) = self.next() {
            let done = match task {
                Task::Verify(file) => self.verify(file),
                Task::Write(shard) => self.write(shard),
            };
            let mut state = self.lock();
            if let Err(error) = done {
                self.stop.store(true, Ordering::Relaxed);
                let order = match task {
                    Task::Verify(file) => file,
                    Task::Write(shard) => state.n_source_files + shard,
                };
                state.failed.push((order, error));
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file to write whose sources are verified, else a file to verify; waits if there will be one.
    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if !state.failed.is_empty() {
                return None;
            }
            let mut shards = self.needs.iter().zip(&state.taken);
            let ready =
                shards.position(|(needs, taken)| !taken && needs.is_subset(&state.verified));
            if let Some(shard) = ready {
                state.taken.iter_mut().skip(shard).take(1).for_each(|taken| *taken = true);
                return Some(Task::Write(shard));
            }
            if let Some(file) = state.unverified.pop() {
                return Some(Task::Verify(file));
            }
            if state.taken.iter().all(|taken| *taken) {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn verify(&self, file: usize) -> Result<()> {
        let Some(entry) = self.source.manifest().files.get(file) else { return Ok(()) };
        self.source.verify_file(entry, &|n| {
            self.meter.add(n);
            !self.stop.load(Ordering::Relaxed)
        })?;
        // One that was stopped is not verified, but then nothing is committed.
        self.lock().verified.insert(entry.name.clone());
        Ok(())
    }

    fn write(&self, index: usize) -> Result<()> {
        let Some(shard) = self.shards.get(index) else { return Ok(()) };
        let entry = match self.finished(shard)? {
            Some(entry) => {
                self.lock().n_resumed += 1;
                entry
            }
            None => {
                let Some(entry) = self.write_shard(shard)? else { return Ok(()) };
                self.work.finish(&entry)?;
                entry
            }
        };
        self.lock().written.iter_mut().skip(index).take(1).for_each(|place| {
            *place = Some(entry.clone());
        });
        Ok(())
    }

    /// A file that an earlier process finished, if its bytes are still what it noted.
    fn finished(&self, shard: &Shard) -> Result<Option<FileEntry>> {
        let Some(entry) = self.work.finished.get(&shard.name) else { return Ok(None) };
        let path = self.work.data().join(&shard.name);
        let Ok(mut file) = File::open(&path) else { return Ok(None) };
        let mut hasher = blake3::Hasher::new();
        let copied = std::io::copy(&mut Metered { file: &mut file, job: self }, &mut hasher);
        let n_bytes = copied.map_err(io("reading", &path))?;
        let same = n_bytes == entry.n_bytes && hasher.finalize().to_hex().as_str() == entry.blake3;
        Ok(same.then(|| entry.clone()))
    }

    /// Writes and syncs a file; `None` if another task has failed.
    fn write_shard(&self, shard: &Shard) -> Result<Option<FileEntry>> {
        let path = self.work.data().join(&shard.name);
        let mut file = File::create(&path).map_err(io("creating", &path))?;
        let mut out = Output { file: &mut file, path: &path, digest: blake3::Hasher::new() };
        out.write(&shard.header)?;
        let mut tensors = Vec::new();
        for placed in &shard.tensors {
            let Some(target) = self.plan.targets.get(placed.target) else { continue };
            let Some(blake3) = self.write_tensor(target, placed, &mut out)? else {
                return Ok(None);
            };
            let (name, shape) = (target.name.clone(), target.node.shape.clone());
            tensors.push(TensorEntry { name, dtype: placed.dtype, shape, blake3 });
        }
        let blake3 = out.digest.finalize().to_hex().to_string();
        file.sync_all().map_err(io("syncing", &path))?;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let (name, n_bytes) = (shard.name.clone(), shard.n_bytes());
        Ok(Some(FileEntry { name, n_bytes, blake3, tensors }))
    }

    /// Writes a tensor's bytes and gives its digest; `None` if another task has failed.
    fn write_tensor(
        &self,
        target: &Target,
        placed: &Placed,
        out: &mut Output<'_>,
    ) -> Result<Option<String>> {
        let mut digest = blake3::Hasher::new();
        let mut n_before = 0u64;
        let mut regions = blocks(&target.node.shape, BLOCK).peekable();
        let mut buffers: Vec<Vec<u8>> = vec![Vec::new(); self.n_inner];
        while regions.peek().is_some() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let batch: Vec<_> = regions.by_ref().take(self.n_inner).collect();
            self.evaluate(target, placed.dtype, &batch, &mut buffers)?;
            for bytes in buffers.iter().take(batch.len()) {
                if let Some((index, value)) = first_not_finite(placed.dtype, bytes) {
                    return Err(Error::NotFinite {
                        file: target.file.to_owned(),
                        tensor: target.name.clone(),
                        index: n_before + index as u64,
                        value,
                        rule: target.rule.clone(),
                    });
                }
                digest.update(bytes);
                out.write(bytes)?;
                n_before += (bytes.len() / width(placed.dtype)) as u64;
                self.meter.add(bytes.len() as u64);
            }
        }
        Ok(Some(digest.finalize().to_hex().to_string()))
    }

    /// Evaluates blocks, one per buffer, side by side.
    fn evaluate(
        &self,
        target: &Target,
        dtype: Dtype,
        batch: &[crate::region::Region],
        buffers: &mut [Vec<u8>],
    ) -> Result<()> {
        let context = Context { tensors: self, seed: self.plan.seed };
        let one = |region: &crate::region::Region, buffer: &mut Vec<u8>| {
            buffer.resize(region.n_elements() * width(dtype), 0);
            raw(context, &target.node, region, dtype, buffer)
        };
        let mut pairs = batch.iter().zip(buffers.iter_mut());
        let Some((first, buffer)) = pairs.next() else { return Ok(()) };
        if batch.len() == 1 {
            return one(first, buffer);
        }
        // Facts of a whole tensor are found once, by the first block.
        one(first, buffer)?;
        std::thread::scope(|scope| {
            let one = &one;
            let running: Vec<_> =
                pairs.map(|(region, buffer)| scope.spawn(move || one(region, buffer))).collect();
            running.into_iter().try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}

impl Tensors for Job<'_> {
    fn shape(&self, tensor: usize) -> &[usize] {
        self.plan.tensors.get(tensor).map(|tensor| tensor.shape.as_slice()).unwrap_or_default()
    }

    fn dtype(&self, tensor: usize) -> Dtype {
        self.reads
            .get(tensor)
            .and_then(Option::as_ref)
            .map_or(Dtype::F32, |tensor| tensor.entry.dtype)
    }

    fn read(&self, tensor: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.reads.get(tensor).and_then(Option::as_ref) {
            Some(tensor) => Ok(tensor.read(offset, buffer)?),
            None => Err(Error::Rule {
                path: tensor.to_string(),
                detail: "a rule reads a tensor that the source lacks".to_owned(),
            }),
        }
    }
}

/// A file that is written from start to end.
struct Output<'a> {
    file: &'a mut File,
    path: &'a Path,
    digest: blake3::Hasher,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.file.write_all(bytes).map_err(io("writing", self.path))
    }
}

/// A file that is read from start to end, with its bytes counted.
struct Metered<'a, 'j> {
    file: &'a mut File,
    job: &'a Job<'j>,
}

impl std::io::Read for Metered<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.job.meter.add(n as u64);
        Ok(n)
    }
}
