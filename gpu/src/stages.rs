//! Stages as target `sm_90a` gets them, generated in the build.

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
