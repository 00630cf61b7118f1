//! Stages as target `sm_90a` gets them, generated in the build.

use lightc_runtime::Stage;

/// Every stage.
pub fn all() -> Vec<&'static dyn Stage> {
    vec![
        &lightning_2b::Lightning2b,
        &lightning_2b_midpoint::Lightning2bMidpoint,
        &narrow_2b::Narrow2b,
        &narrow_deep::NarrowDeep,
        &deep_2b::Deep2b,
        &narrow_5b::Narrow5b,
        &lightning_5b::Lightning5b,
        &narrow_120b::Narrow120b,
        &lightning_120b::Lightning120b,
    ]
}

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])* #[allow(clippy::all, missing_docs)] pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), "/lib.rs"));
        })*
    };
}

stages! {
    /// The seed at full width.
    lightning_2b,
    /// The seed with reversible layers, which grows without a change of its function.
    lightning_2b_midpoint,
    /// From `gpu/stages.llm`.
    narrow_2b,
    /// From `gpu/stages.llm`.
    narrow_deep,
    /// From `gpu/stages.llm`.
    deep_2b,
    /// From `gpu/stages.llm`.
    narrow_5b,
    /// The first mixture at full width.
    lightning_5b,
    /// One rank's share, of eight, of a stage of `gpu/stages.llm`.
    narrow_120b,
    /// One rank's share, of eight, of the last stage at full width.
    lightning_120b,
}
