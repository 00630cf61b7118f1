//! The code that the compiler generates from the stages in this folder.

/// Generated from `models/tiny/tiny.llm`.
#[allow(clippy::all)]
pub mod tiny_2b {
    include!(concat!(env!("OUT_DIR"), "/tiny_2b.rs"));
}

/// Generated from `models/lightning/lightning.llm`.
#[allow(clippy::all)]
pub mod lightning_2b {
    include!(concat!(env!("OUT_DIR"), "/lightning_2b.rs"));
}
