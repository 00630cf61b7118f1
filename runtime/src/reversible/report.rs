//! What the reversible stacks of a thread tell, and how they run.
//!
//! Both are kept per thread: a forward pass runs on one, and what it tells is taken on it right
//! after ([`crate::trainer`] does so, and fails where a state left the range).

use std::cell::{Cell, RefCell};

use crate::{Kind, Result, Tensor};

/// Sums over all stacks since the last [`take_report`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Elements of states beyond half of the range, or pushed by what is not a number.
    pub beyond: i64,
    /// Bytes of kept bits.
    pub kept_bytes: usize,
    /// Bytes of recorded selections.
    pub replay_bytes: usize,
    /// Bytes of states that stay until the backward pass.
    pub state_bytes: usize,
}

/// How reversible stacks run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The forward pass keeps every state and all that layers save, and the backward pass
    /// computes nothing again: the same gradients, to the bit, for more memory and less time.
    pub store_everything: bool,
    /// The backward pass keeps a handle on every state that it visits; see [`take_states`].
    pub record_states: bool,
}

thread_local! {
    static REPORT: Cell<Report> = const { Cell::new(Report {
        beyond: 0, kept_bytes: 0, replay_bytes: 0, state_bytes: 0,
    }) };
    static OPTIONS: Cell<Options> = const { Cell::new(Options {
        store_everything: false, record_states: false,
    }) };
    /// Counts of elements that no one has read from their device.
    static WAITING: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
    static STATES: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
}

/// The sums, which then begin anew. Waits for the device where a stack ran on a GPU.
///
/// # Errors
/// The device's.
pub fn take_report() -> Result<Report> {
    let (report, waiting) = take_waiting()?;
    let more = waiting.map_or(Ok(0), |count| count.f_int64_value(&[]))?;
    Ok(Report { beyond: report.beyond + more, ..report })
}

/// The same without waiting: elements beyond half of the range that are counted on a device come
/// apart, as one i64 `[]`.
///
/// # Errors
/// libtorch's.
pub fn take_waiting() -> Result<(Report, Option<Tensor>)> {
    let (report, waiting) = (REPORT.take(), WAITING.take());
    if waiting.is_empty() {
        return Ok((report, None));
    }
    Ok((report, Some(Tensor::f_cat(&waiting, 0)?.f_sum(Kind::Int64)?)))
}

/// Adds counts `[1]` on a device.
pub(super) fn wait(mut counts: Vec<Tensor>) {
    WAITING.with_borrow_mut(|waiting| waiting.append(&mut counts));
}

pub(super) fn add(more: &Report) {
    let sum = REPORT.get();
    REPORT.set(Report {
        beyond: sum.beyond + more.beyond,
        kept_bytes: sum.kept_bytes + more.kept_bytes,
        replay_bytes: sum.replay_bytes + more.replay_bytes,
        state_bytes: sum.state_bytes + more.state_bytes,
    });
}

/// How stacks run on this thread.
pub fn options() -> Options {
    OPTIONS.get()
}

/// Runs `f` with other options.
pub fn with_options<R>(options: Options, f: impl FnOnce() -> R) -> R {
    let before = OPTIONS.replace(options);
    let result = f();
    OPTIONS.set(before);
    result
}

/// The states that backward passes visited, last state first.
pub fn take_states() -> Vec<Tensor> {
    STATES.take()
}

pub(super) fn record_state(state: &Tensor) {
    if options().record_states {
        STATES.with_borrow_mut(|states| states.push(state.shallow_clone()));
    }
}
