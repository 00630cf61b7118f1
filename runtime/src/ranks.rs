//! What the data-parallel ranks know together.
//!
//! Emitted code calls [`crate::ops::sum_ranks`], which asks the communicator of the calling thread.
//! The trainer of a rank sets it for the run by [`within`]; where none is set there is one rank. It
//! belongs to the thread, not to the arguments of every forward, because it is a property of the
//! process that runs the stage and not of what the stage computes: a block that sums over ranks
//! need not be handed anything, and a stage that does not is unchanged.
//!
//! Sums run in the order of the ranks, so every rank has the same bits. All ranks must make the
//! same calls in the same order; one that leaves early is an error for those that wait.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use crate::Result;
use crate::ops::op_error;

/// The way from one rank to the others.
pub trait Communicator {
    /// Which rank this is, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn n_ranks(&self) -> usize;
    /// The sum of what every rank gives, added in the order of the ranks. Every rank calls it, with
    /// a tensor of one shape and kind.
    ///
    /// # Errors
    /// Shapes or kinds differ, or a rank has left.
    fn sum(&self, x: &Tensor) -> Result<Tensor>;
}

/// The only rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneRank;

impl Communicator for OneRank {
    fn rank(&self) -> usize {
        0
    }

    fn n_ranks(&self) -> usize {
        1
    }

    fn sum(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.shallow_clone())
    }
}

thread_local! {
    static CURRENT: RefCell<Rc<dyn Communicator>> = RefCell::new(Rc::new(OneRank));
}

/// The communicator of this thread.
pub fn current() -> Rc<dyn Communicator> {
    CURRENT.with_borrow(Rc::clone)
}

/// Runs `body` with this communicator as that of the thread, and puts back the one from before,
/// whether `body` returns or panics.
pub fn within<R>(communicator: Rc<dyn Communicator>, body: impl FnOnce() -> R) -> R {
    struct Restore(Option<Rc<dyn Communicator>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            if let Some(before) = self.0.take() {
                CURRENT.set(before);
            }
        }
    }
    let _restore = Restore(Some(CURRENT.replace(communicator)));
    body()
}

/// One of several ranks that are threads of this process.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What each rank gives in this round.
    given: Vec<Option<Tensor>>,
    /// How many ranks have read the sum of this round.
    n_read: usize,
    /// A rank that has been dropped.
    left: Option<usize>,
}

impl State {
    fn is_complete(&self) -> bool {
        self.given.iter().all(Option::is_some)
    }
}

/// The communicators of `n` ranks, to be moved to a thread each.
pub fn threads(n: usize) -> Vec<ThreadRank> {
    let given = (0..n).map(|_| None).collect();
    let state = Mutex::new(State { given, n_read: 0, left: None });
    let shared = Arc::new(Shared { state, changed: Condvar::new() });
    (0..n).map(|rank| ThreadRank { rank, shared: Arc::clone(&shared) }).collect()
}

impl ThreadRank {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready`; an error if a rank leaves before.
    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        ready: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'a, State>> {
        while !ready(&state) {
            if let Some(left) = state.left {
                let detail = format!("rank {left} has left while rank {} waits for it", self.rank);
                return Err(op_error("sum_ranks", detail));
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state)
    }
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.lock().given.len()
    }

    fn sum(&self, x: &Tensor) -> Result<Tensor> {
        // The round before ends when all have read it.
        let mut state = self.wait(self.lock(), |state| state.given[self.rank].is_none())?;
        state.given[self.rank] = Some(x.f_detach()?);
        self.shared.changed.notify_all();
        let mut state = self.wait(state, State::is_complete)?;
        let sum = in_order(state.given.iter().flatten(), x);
        state.n_read += 1;
        if state.n_read == state.given.len() {
            state.n_read = 0;
            state.given.fill_with(|| None);
            self.shared.changed.notify_all();
        }
        sum
    }
}

/// The sum from the first rank on, in memory of its own, on the device of `like`.
fn in_order<'a>(given: impl Iterator<Item = &'a Tensor>, like: &Tensor) -> Result<Tensor> {
    given.into_iter().try_fold(like.f_zeros_like()?, |sum, x| Ok(sum.f_add(&checked(x, like)?)?))
}

fn checked(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    if x.size() != like.size() || x.kind() != like.kind() {
        let detail = format!(
            "one rank gives {:?}{:?}, another {:?}{:?}",
            like.kind(),
            like.size(),
            x.kind(),
            x.size()
        );
        return Err(op_error("sum_ranks", detail));
    }
    Ok(x.f_to_device(like.device())?)
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.lock().left = Some(self.rank);
        self.shared.changed.notify_all();
    }
}
