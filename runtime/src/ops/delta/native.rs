//! The recurrence and its derivative in plain loops, one task per batch entry
//! and head.
//!
//! Columns of the state do not meet each other, so a task takes [`LANES`] of
//! them at a time: the part of the state it works on then lies in the first
//! cache. The backward pass keeps the state at the start of every
//! [`SEGMENT`] steps and recomputes the steps of a segment when it gets there.

use tch::Tensor;

use super::{DeltaGradients, Inputs, Sizes};
use crate::Result;
use crate::ops::native::{Host, Kernel, Output, Real, parallel_map, vectorized};

/// Columns of the state worked on together.
const LANES: usize = 32;

/// Steps between the states that the backward pass keeps.
const SEGMENT: usize = 32;

/// One value per column of a block.
type Lanes<T> = [T; LANES];

#[inline(always)]
fn lanes<T: Real>(f: impl Fn(usize) -> T) -> Lanes<T> {
    std::array::from_fn(f)
}

/// Sum over a block, as a tree.
#[inline(always)]
fn total<T: Real>(mut x: Lanes<T>) -> T {
    let mut n = LANES / 2;
    while n > 0 {
        for l in 0..n {
            x[l] += x[l + n];
        }
        n /= 2;
    }
    x[0]
}

/// Forward pass of every head.
pub(super) fn forward_native<T: Real>(inputs: Inputs<'_>, sizes: Sizes) -> Result<Tensor> {
    let hosts = Hosts::of(inputs)?;
    let mut out = Output::zeros::<T>(&[sizes.b, sizes.t, sizes.h, sizes.m])?;
    let slices = hosts.slices::<T>();
    let heads = parallel_map((sizes.b * sizes.h) as usize, sizes.work(8), |index| {
        vectorized(Forward { head: slices.head(index, sizes) })
    });
    gather_heads(out.slice::<T>(), &heads, sizes, sizes.m as usize);
    Ok(out.into_tensor())
}

/// Backward pass of every head.
pub(super) fn backward_native<T: Real>(
    inputs: Inputs<'_>,
    dout: &Tensor,
    sizes: Sizes,
) -> Result<DeltaGradients> {
    let hosts = Hosts::of(inputs)?;
    let (slices, dout) = (hosts.slices::<T>(), Host::of(dout)?);
    let dout = dout.slice::<T>();
    let heads = parallel_map((sizes.b * sizes.h) as usize, sizes.work(32), |index| {
        let head = slices.head(index, sizes);
        let dout = head.rows(dout, head.m);
        vectorized(Backward { head, dout })
    });
    let (k, m) = (sizes.k, sizes.m);
    let gather = |width: Option<i64>, part: fn(&Gradients<T>) -> &Vec<T>| -> Result<Tensor> {
        let mut shape = vec![sizes.b, sizes.t, sizes.h];
        shape.extend(width);
        let mut out = Output::zeros::<T>(&shape)?;
        let parts: Vec<&[T]> = heads.iter().map(|head| part(head).as_slice()).collect();
        gather_heads(out.slice::<T>(), &parts, sizes, width.unwrap_or(1) as usize);
        Ok(out.into_tensor())
    };
    Ok((
        gather(Some(k), |head| &head.dq)?,
        gather(Some(k), |head| &head.dk)?,
        gather(Some(m), |head| &head.dv)?,
        gather(None, |head| &head.dg)?,
        gather(None, |head| &head.dbeta)?,
    ))
}

/// Puts `[t, width]` of each head into `[b, t, h, width]`.
fn gather_heads<T: Real>(
    out: &mut [T],
    heads: &[impl AsRef<[T]>],
    Sizes { t, h, .. }: Sizes,
    width: usize,
) {
    let (t, h) = (t as usize, h as usize);
    for (index, head) in heads.iter().enumerate() {
        for (step, row) in head.as_ref().chunks(width.max(1)).enumerate() {
            let at = ((index / h) * t + step) * h + index % h;
            out[at * width..][..width].copy_from_slice(row);
        }
    }
}

impl Sizes {
    /// Operations of a pass that does `each` per element of the state.
    fn work(self, each: i64) -> usize {
        (self.b * self.t * self.h * self.k * self.m * each) as usize
    }
}

/// The inputs on the CPU.
struct Hosts {
    q: Host,
    k: Host,
    v: Host,
    g: Host,
    beta: Host,
}

impl Hosts {
    fn of(inputs: Inputs<'_>) -> Result<Hosts> {
        Ok(Hosts {
            q: Host::of(inputs.q)?,
            k: Host::of(inputs.k)?,
            v: Host::of(inputs.v)?,
            g: Host::of(inputs.g)?,
            beta: Host::of(inputs.beta)?,
        })
    }

    fn slices<T: Real>(&self) -> Slices<'_, T> {
        Slices {
            q: self.q.slice(),
            k: self.k.slice(),
            v: self.v.slice(),
            g: self.g.slice(),
            beta: self.beta.slice(),
        }
    }
}

/// The inputs' elements, which threads share.
struct Slices<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    g: &'a [T],
    beta: &'a [T],
}

impl<'a, T: Real> Slices<'a, T> {
    /// Head `index % h` of batch entry `index / h`.
    fn head(&self, index: usize, sizes: Sizes) -> Head<'a, T> {
        let (t, h) = (sizes.t as usize, sizes.h as usize);
        let (k, m) = (sizes.k as usize, sizes.m as usize);
        let first = (index / h) * t * h + index % h;
        Head {
            q: Rows::new(self.q, first, h, k),
            k: Rows::new(self.k, first, h, k),
            v: Rows::new(self.v, first, h, m),
            g: Rows::new(self.g, first, h, 1),
            beta: Rows::new(self.beta, first, h, 1),
            first,
            n_heads: h,
            steps: t,
            n_keys: k,
            m,
        }
    }
}

/// The rows of one head in `[b, t, h, width]`.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    data: &'a [T],
    first: usize,
    stride: usize,
    width: usize,
}

impl<'a, T: Real> Rows<'a, T> {
    #[inline(always)]
    fn new(data: &'a [T], first: usize, stride: usize, width: usize) -> Rows<'a, T> {
        Rows { data, first, stride, width }
    }

    /// The row of a step.
    #[inline(always)]
    fn at(&self, step: usize) -> &'a [T] {
        &self.data[(self.first + step * self.stride) * self.width..][..self.width]
    }

    /// The value of a step, for a width of 1.
    #[inline(always)]
    fn one(&self, step: usize) -> T {
        self.data[self.first + step * self.stride]
    }

    /// Columns `from ..` of a step, zero beyond the last.
    #[inline(always)]
    fn block(&self, step: usize, from: usize) -> Lanes<T> {
        let row = &self.at(step)[from..];
        if let Some(full) = row.first_chunk::<LANES>() {
            return *full;
        }
        lanes(|l| row.get(l).copied().unwrap_or(T::ZERO))
    }
}

/// One head of one batch entry.
#[derive(Clone, Copy)]
struct Head<'a, T> {
    q: Rows<'a, T>,
    k: Rows<'a, T>,
    v: Rows<'a, T>,
    g: Rows<'a, T>,
    beta: Rows<'a, T>,
    first: usize,
    n_heads: usize,
    steps: usize,
    n_keys: usize,
    m: usize,
}

impl<'a, T: Real> Head<'a, T> {
    fn rows(&self, data: &'a [T], width: usize) -> Rows<'a, T> {
        Rows::new(data, self.first, self.n_heads, width)
    }

    /// First column and number of columns of each block.
    #[inline(always)]
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let m = self.m;
        (0..m).step_by(LANES).map(move |from| (from, LANES.min(m - from)))
    }

    /// Decays the state and reads it with the key: the error before beta.
    #[inline(always)]
    fn decay_and_read(&self, state: &mut [Lanes<T>], step: usize, from: usize) -> Lanes<T> {
        let decay = self.g.one(step).exp();
        let mut read = [T::ZERO; LANES];
        for (row, &key) in state.iter_mut().zip(self.k.at(step)) {
            for l in 0..LANES {
                row[l] *= decay;
                read[l] += row[l] * key;
            }
        }
        let v = self.v.block(step, from);
        lanes(|l| v[l] - read[l])
    }
}

struct Forward<'a, T> {
    head: Head<'a, T>,
}

impl<T: Real> Kernel for Forward<'_, T> {
    /// `[t, m]`.
    type Out = Vec<T>;

    #[inline(always)]
    fn run(self) -> Vec<T> {
        let head = self.head;
        let mut out = vec![T::ZERO; head.steps * head.m];
        let mut state = vec![[T::ZERO; LANES]; head.n_keys];
        for (from, n) in head.blocks() {
            state.fill([T::ZERO; LANES]);
            for step in 0..head.steps {
                let miss = head.decay_and_read(&mut state, step, from);
                let beta = head.beta.one(step);
                let error = lanes(|l| beta * miss[l]);
                let mut o = [T::ZERO; LANES];
                let keys = head.k.at(step).iter().zip(head.q.at(step));
                for (row, (&key, &query)) in state.iter_mut().zip(keys) {
                    for l in 0..LANES {
                        row[l] += key * error[l];
                        o[l] += row[l] * query;
                    }
                }
                out[step * head.m + from..][..n].copy_from_slice(&o[..n]);
            }
        }
        out
    }
}

struct Backward<'a, T> {
    head: Head<'a, T>,
    dout: Rows<'a, T>,
}

/// Gradients of one head, `[t, width]` each.
struct Gradients<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
    dg: Vec<T>,
    dbeta: Vec<T>,
}

/// What a segment's steps left behind: the decayed state of every step and
/// the error before beta.
struct Tape<T> {
    states: Vec<Lanes<T>>,
    misses: Vec<Lanes<T>>,
}

impl<T: Real> Kernel for Backward<'_, T> {
    type Out = Gradients<T>;

    #[inline(always)]
    fn run(self) -> Gradients<T> {
        let head = self.head;
        let mut gradients = Gradients {
            dq: vec![T::ZERO; head.steps * head.n_keys],
            dk: vec![T::ZERO; head.steps * head.n_keys],
            dv: vec![T::ZERO; head.steps * head.m],
            dg: vec![T::ZERO; head.steps],
            dbeta: vec![T::ZERO; head.steps],
        };
        let mut tape = Tape {
            states: vec![[T::ZERO; LANES]; SEGMENT * head.n_keys],
            misses: vec![[T::ZERO; LANES]; SEGMENT],
        };
        for (from, n) in head.blocks() {
            let starts = self.starts(from);
            let mut dstate = vec![[T::ZERO; LANES]; head.n_keys];
            for (segment, start) in starts.chunks(head.n_keys.max(1)).enumerate().rev() {
                let first = segment * SEGMENT;
                let last = head.steps.min(first + SEGMENT);
                self.record(&mut tape, start, first..last, from);
                for step in (first..last).rev() {
                    self.step_back(&mut gradients, &mut dstate, &tape, (step, first), (from, n));
                }
            }
        }
        gradients
    }
}

impl<T: Real> Backward<'_, T> {
    /// The state entering each segment.
    #[inline(always)]
    fn starts(&self, from: usize) -> Vec<Lanes<T>> {
        let n_segments = self.head.steps.div_ceil(SEGMENT);
        let mut starts = Vec::with_capacity(n_segments * self.head.n_keys);
        let mut state = vec![[T::ZERO; LANES]; self.head.n_keys];
        for step in 0..self.head.steps {
            if step % SEGMENT == 0 {
                starts.extend_from_slice(&state);
            }
            let miss = self.head.decay_and_read(&mut state, step, from);
            self.write(&mut state, &miss, step);
        }
        starts
    }

    #[inline(always)]
    fn write(&self, state: &mut [Lanes<T>], miss: &Lanes<T>, step: usize) {
        let beta = self.head.beta.one(step);
        let error = lanes(|l| beta * miss[l]);
        for (row, &key) in state.iter_mut().zip(self.head.k.at(step)) {
            for l in 0..LANES {
                row[l] += key * error[l];
            }
        }
    }

    /// Runs the steps of a segment again, keeping the tape.
    #[inline(always)]
    fn record(
        &self,
        tape: &mut Tape<T>,
        start: &[Lanes<T>],
        steps: std::ops::Range<usize>,
        from: usize,
    ) {
        let mut state = start.to_vec();
        let kept = tape.states.chunks_mut(self.head.n_keys.max(1)).zip(&mut tape.misses);
        for (step, (decayed, miss)) in steps.zip(kept) {
            *miss = self.head.decay_and_read(&mut state, step, from);
            decayed.copy_from_slice(&state);
            self.write(&mut state, miss, step);
        }
    }

    /// One step of the derivative. With A the decayed state and r = A^T k:
    /// `dS += q do^T`, `dq = S do`, `de = dS^T k`, `dr = -beta de`,
    /// `dk = dS e + A dr`, `dA = dS + k dr^T`, `dg = <dA, A>`, `dS <- exp(g) dA`.
    #[inline(always)]
    fn step_back(
        &self,
        gradients: &mut Gradients<T>,
        dstate: &mut [Lanes<T>],
        tape: &Tape<T>,
        (step, first): (usize, usize),
        (from, n): (usize, usize),
    ) {
        let head = &self.head;
        let n_keys = head.n_keys;
        let decayed = &tape.states[(step - first) * n_keys..][..n_keys];
        let miss = &tape.misses[step - first];
        let (beta, decay) = (head.beta.one(step), head.g.one(step).exp());
        let (query, key) = (head.q.at(step), head.k.at(step));
        let dout = self.dout.block(step, from);
        let error = lanes(|l| beta * miss[l]);
        // S = A + k e^T, so S do = A do + k (e . do).
        let error_dout = total(lanes(|l| error[l] * dout[l]));
        let mut derror = [T::ZERO; LANES];
        let dq = &mut gradients.dq[step * n_keys..][..n_keys];
        for (i, drow) in dstate.iter_mut().enumerate() {
            let row = &decayed[i];
            let mut read = [T::ZERO; LANES];
            for l in 0..LANES {
                drow[l] += query[i] * dout[l];
                derror[l] += key[i] * drow[l];
                read[l] = row[l] * dout[l];
            }
            dq[i] += total(read) + key[i] * error_dout;
        }
        let dread = lanes(|l| -(beta * derror[l]));
        let mut decay_lanes = [T::ZERO; LANES];
        let dk = &mut gradients.dk[step * n_keys..][..n_keys];
        for (i, drow) in dstate.iter_mut().enumerate() {
            let row = &decayed[i];
            let mut through = [T::ZERO; LANES];
            for l in 0..LANES {
                through[l] = drow[l] * error[l] + row[l] * dread[l];
                let ddecayed = drow[l] + key[i] * dread[l];
                decay_lanes[l] += ddecayed * row[l];
                drow[l] = decay * ddecayed;
            }
            dk[i] += total(through);
        }
        gradients.dg[step] += total(decay_lanes);
        gradients.dbeta[step] += total(lanes(|l| derror[l] * miss[l]));
        let dv = lanes(|l| beta * derror[l]);
        gradients.dv[step * head.m + from..][..n].copy_from_slice(&dv[..n]);
    }
}
