//! The text form of the IR: printed by [`print`], read back by [`parse`] to an equal module.
//! Places in the source stand beside the data and are not part of the text.
//!
//! ```text
//! module tiny entry @Norm
//!
//! func @Norm {
//!   param weight: act[d=64] ~ ones() trained
//!   %0.x = input name="x" () : act[b, t, d=64]
//!   %1.weight = param index=0 () : act[d=64]
//!   %2 = mul (%0, %1) : act[b, t, d=64]
//!   return %2
//! }
//! ```

mod parse;
mod print;

pub use parse::{ParseError, parse};
pub use print::{init_text, storage_text};
pub use print::{print, print_backward, print_function};
