//! The tasks of a growth and the threads that take them.

use super::{BLOCK, Progress, io};
use crate::error::{Error, Result};
use crate::eval::{Context, Tensors, blocks, raw};
use crate::journal::Work;
use crate::layout::{Placed, Shard};
use crate::number::width;
use crate::plan::{Plan, Target};
use lightc_checkpoint::read::first_not_finite;
use lightc_checkpoint::{FileEntry, Piecewise, Streamed, TensorEntry};
use safetensors::Dtype;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(super) struct Meter<'a> {
    pub(super) n_bytes: u64,
    pub(super) n_done: AtomicU64,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
}

impl Meter<'_> {
    /// Counts bytes; always says to go on.
    pub(super) fn add(&self, n: u64) -> bool {
        let n_done = self.n_done.fetch_add(n, Ordering::Relaxed) + n;
        (self.progress)(Progress { n_done, n_bytes: self.n_bytes });
        true
    }
}

/// One growth while it runs.
pub(super) struct Job<'a> {
    pub(super) plan: &'a Plan,
    pub(super) source: &'a Streamed,
    /// Per tensor of the plan's source.
    pub(super) reads: &'a [Option<Piecewise<'a>>],
    pub(super) shards: &'a [Shard],
    /// Per shard the source files that it reads.
    pub(super) needs: Vec<BTreeSet<String>>,
    pub(super) work: &'a Work,
    /// Threads that evaluate blocks of one file.
    pub(super) n_inner: usize,
    pub(super) meter: Meter<'a>,
    pub(super) stop: AtomicBool,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

/// Which tasks are taken and done.
pub(super) struct State {
    /// Source files not yet taken, the last first.
    pub(super) unverified: Vec<usize>,
    pub(super) verified: BTreeSet<String>,
    pub(super) n_source_files: usize,
    /// Per shard whether it is taken.
    pub(super) taken: Vec<bool>,
    pub(super) written: Vec<Option<FileEntry>>,
    pub(super) n_resumed: usize,
    /// Errors with the order of their tasks: damage of the source comes first.
    pub(super) failed: Vec<(usize, Error)>,
}

impl State {
    pub(super) fn new(source: &Streamed, n_shards: usize) -> Self {
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
    pub(super) fn run(&self) {
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

    pub(super) fn verify(&self, file: usize) -> Result<()> {
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
