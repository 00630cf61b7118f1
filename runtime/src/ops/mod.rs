//! The tch executor: one function per IR op.
