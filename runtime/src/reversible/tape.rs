//! Selections of a forward pass, kept so that a second pass makes the same ones.

use std::rc::Rc;

use crate::ops::{pack_bools, unpack_bools};
use crate::{Error, Kind, Result, Tensor};

/// What the selecting ops of a run gave, in order: written by a first pass, read by a second.
#[derive(Debug, Default)]
pub struct Tape {
    mode: Mode,
    entries: Vec<Rc<Entry>>,
    /// When reading: the entry that comes next.
    next: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing asks for a second pass.
    #[default]
    Off,
    Write,
    Read,
}

/// One result of an op, small: truth values take a bit, indices that fit 32 bits.
#[derive(Debug)]
pub(crate) enum Entry {
    Bits { packed: Tensor, shape: Vec<i64> },
    Narrow(Tensor),
    Whole(Tensor),
}

impl Entry {
    fn of(x: &Tensor) -> Result<Entry> {
        if x.kind() == Kind::Bool {
            return Ok(Entry::Bits { packed: pack_bools(x)?, shape: x.size() });
        }
        if x.kind() == Kind::Int64 && x.numel() > 0 {
            let (low, high) = (x.f_min()?.f_int64_value(&[])?, x.f_max()?.f_int64_value(&[])?);
            if i32::try_from(low).is_ok() && i32::try_from(high).is_ok() {
                return Ok(Entry::Narrow(x.f_to_kind(Kind::Int)?));
            }
        }
        Ok(Entry::Whole(x.shallow_clone()))
    }

    fn tensor(&self) -> Result<Tensor> {
        match self {
            Entry::Bits { packed, shape } => unpack_bools(packed, shape),
            Entry::Narrow(x) => Ok(x.f_to_kind(Kind::Int64)?),
            Entry::Whole(x) => Ok(x.shallow_clone()),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Entry::Bits { packed, .. } => packed.numel(),
            Entry::Narrow(x) => 4 * x.numel(),
            Entry::Whole(x) => x.numel() * x.kind().elt_size_in_bytes(),
        }
    }
}

impl Tape {
    /// A tape that keeps nothing: for passes that are not repeated.
    pub fn off() -> Tape {
        Tape::default()
    }

    /// A tape that is written.
    pub(crate) fn write() -> Tape {
        Tape { mode: Mode::Write, ..Tape::default() }
    }

    /// A tape that is read.
    pub(crate) fn read(entries: Vec<Rc<Entry>>) -> Tape {
        Tape { mode: Mode::Read, entries, next: 0 }
    }

    /// What `compute` gives, or gave in the first pass.
    ///
    /// # Errors
    /// Those of `compute`; and where the second pass selects more often than the first.
    pub fn keep(&mut self, compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        match self.mode {
            Mode::Off => compute(),
            Mode::Write => {
                let result = compute()?;
                self.entries.push(Rc::new(Entry::of(&result)?));
                Ok(result)
            }
            Mode::Read => {
                let entry = self.entries.get(self.next);
                let entry = entry.ok_or_else(|| Error::Op {
                    op: "replay",
                    detail: format!("only {} selections were recorded", self.entries.len()),
                })?;
                self.next += 1;
                entry.tensor()
            }
        }
    }

    /// [`Tape::keep`] of an op with two results.
    ///
    /// # Errors
    /// As there.
    pub fn keep_pair(
        &mut self,
        compute: impl FnOnce() -> Result<(Tensor, Tensor)>,
    ) -> Result<(Tensor, Tensor)> {
        if self.mode == Mode::Read {
            let none = || Err(Error::Op { op: "replay", detail: "nothing to read".into() });
            return Ok((self.keep(none)?, self.keep(none)?));
        }
        let (first, second) = compute()?;
        Ok((self.keep(|| Ok(first))?, self.keep(|| Ok(second))?))
    }

    /// The tape of a stack inside a pass that has this one: it reads where this one reads, and is
    /// written otherwise, since the stack itself repeats its layers.
    pub(crate) fn nested(&self) -> Tape {
        match self.mode {
            Mode::Read => Tape::read(self.entries.get(self.next..).unwrap_or_default().to_vec()),
            Mode::Off | Mode::Write => Tape::write(),
        }
    }

    /// Takes over what a nested tape has been through.
    pub(crate) fn absorb(&mut self, nested: &Tape) {
        match self.mode {
            Mode::Off => {}
            Mode::Write => self.entries.extend(nested.entries.iter().cloned()),
            Mode::Read => self.next += nested.next,
        }
    }

    /// How many selections it has been through.
    pub(crate) fn position(&self) -> usize {
        if self.mode == Mode::Read { self.next } else { self.entries.len() }
    }

    /// What it has been through since a position.
    pub(crate) fn since(&self, position: usize) -> Vec<Rc<Entry>> {
        self.entries.get(position..self.position()).unwrap_or_default().to_vec()
    }

    /// Whether all that was recorded has been read.
    pub(crate) fn is_used_up(&self) -> bool {
        self.mode != Mode::Read || self.next == self.entries.len()
    }
}
