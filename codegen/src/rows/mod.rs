//! Row kernels of target `sm_90a`: parts of a function that one pass over memory computes.
//!
//! **Rows and lanes.** Axes are cut into parts, the same parts wherever ops make axes meet (`axes`), so
//! merging, splitting and renaming cost nothing. A part whose size stays open (batch, time) is a row
//! part; a constant part of up to 8 is unrolled, each thread holding all its elements; a longer one is a
//! lane part, spread over the threads of a row (`layout`). Lane parts nest: with heads of 128 channels a
//! lane is a head and a channel, and a sum over the channels is one of neighbouring threads: of a warp, or, over the 1024
//! channels of each of 12 choices, of a block that has one of them. Where nothing is
//! open, as with the gradients of matrices, rows are those of the largest value, and only pointwise ops fuse.
//!
//! **What one kernel can compute** (`group`): pointwise ops; sums over what a thread holds, over the
//! innermost lane part, over the whole lane, or over all rows; contractions that are such sums, unless an
//! operand without rows has 16384 elements or more (that is a matrix product); convolutions along the
//! innermost row part, rotations of pairs of lanes, Sinkhorn where a thread has a row to itself. All
//! that it computes varies over all its rows. Of a table, rows that an index of each row names are summed (`gather`).
//! Other index ops, slices and everything else stay single steps.
//!
//! **Narrow products** (`panel`). A contraction of long rows with a matrix of at most 64 columns is a sum over the
//! lane with several results: one kernel makes it on tensor cores, 16 rows of a block, with the sums over
//! the same lane and what follows of these numbers. It comes before all other grouping.
//!
//! **Wide products** (`product`). A contraction over at most 32 numbers of a row, whose result one kernel alone reads, is
//! made by that kernel: 16 rows of a block on tensor cores, in registers. It comes after all grouping.
//!
//! **Grouping** (`plan`). In the order of the graph, a node joins the first group that it can, of those
//! that made its arguments and those that read a long argument of it too (1024 elements of a row); the
//! other groups among these are then joined to it. A join must leave an order of steps, and at most 24
//! tensors. A node without lanes joins a group with lanes only if it has one element in a row, since all
//! threads of the row compute it; nodes with more form groups of their own, a thread for each row, so a
//! Sinkhorn iteration runs once and not in every thread. Groups of short rows are joined among
//! themselves. Then views at the edge are left out, being free outside. Last, where a group would write
//! a value only for another to read, the other computes it again from what is read anyway, if that moves
//! fewer bytes: of all cuts through the cheap nodes in between the one with the least traffic is taken.
//!
//! **Passes** (`phases`). A sum over a lane ends a pass over a thread's elements; what the next pass needs
//! is kept in registers if it was read or was dear to compute, else computed again.
//!
//! **Steps** (`steps`). Where a block does one row after the other, a convolution's steps are handed from row to
//! row, and so are sums that rows before it wait for. A block's rows of one sequence are a run: what begins anew with
//! a sequence stands before its rows and not in them. The text has several rows in a row, so that the steps rotate
//! through registers and none is moved.
//!
//! **Rows under way** (`ring`). Each thread copies what it will read of the next rows of a run to shared memory, without waiting: as
//! many rows as it takes to have 32 KB of a multiprocessor on their way beside the row that it computes. What cannot be copied so
//! is begun to be read a row before, into registers.
//!
//! **Two rows at a time** (`twos`). Where rows that follow each other have sums over neighbouring threads, a row is mostly
//! waiting for exchanges. There the text has two rows beside each other, cut into parts at the sums, whose exchanges are
//! those of both rows together.
//!
//! **Shapes** (`shape`). A thread reads 16 bytes at once where it can. Where no sum runs over the whole
//! lane, blocks beside each other share it; each has one index of the outer parts where it sums over the innermost. The blocks along the rows are a function of the number of
//! rows alone, and sums over rows are partial sums of blocks that a second kernel adds in order: the bits
//! are the same on every GPU and in every run, and there are no atomics.
//!
//! **Precision.** Values of class `act` are bf16 in memory and rounded to it wherever an op gives one;
//! all arithmetic is 32-bit, or has its bits: a sum or product of two bf16 that is rounded to bf16 is made of pairs. So a
//! kernel gives what its nodes give one by one, up to the order of sums.
//!
//! **Ends.** A kernel that ends a layer of a reversible stack is also generated with the step of the stack's state,
//! and with the inverse of that, in place of the write of its result (`ends`).
//!
//! The text of a kernel says in its head what it reads and writes, and repeats each node as a comment.

mod access;
mod axes;
mod copies;
mod cuda;
mod elements;
mod ends;
mod express;
mod gather;
mod group;
mod layout;
mod memory;
mod panel;
mod phases;
mod plan;
mod product;
mod report;
mod ring;
mod shape;
mod steps;
mod sums;
mod text;
mod twos;

pub(crate) use cuda::Kernel;
pub use elements::{Number, element_function};
pub(crate) use ends::Ends;
pub(crate) use group::{is_literal, is_pointwise, is_view};
pub(crate) use plan::Step;
pub use report::{Plans, cuda_text, describe};
