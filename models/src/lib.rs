//! The code that the compiler generates from the stages in this folder.

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])* #[allow(clippy::all)] pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        })*
    };
}

stages! {
    /// Generated from `models/tiny/tiny.llm`.
    tiny_2b,
    /// Generated from `models/tiny/tiny.llm`.
    tiny_5b,
    /// Generated from `models/tiny/tiny.llm`.
    tiny_9b,
    /// Generated from `models/tiny/tiny.llm`.
    tiny_120b,
    /// Generated from `models/tiny/tiny.llm`.
    tiny_2b_midpoint,
    /// Generated from `models/tiny/tiny.llm`.
    tiny_9b_exact,
    /// Generated from `models/tiny/tiny.llm`.
    tiny_120b_exact,
    /// Generated from `models/lightning/lightning.llm`.
    lightning_2b,
    /// `tiny_2b` as target `sm_90a` gets it.
    tiny_2b_sm_90a,
    /// `tiny_5b` as target `sm_90a` gets it.
    tiny_5b_sm_90a,
}
