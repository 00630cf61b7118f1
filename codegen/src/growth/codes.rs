//! Codes of growth maps. Each has a page in `docs/errors`.

/// A side of a map is no stage and no block, or the two are of different kinds.
pub(super) const UNKNOWN_SIDE: &str = "E0601";
/// A map that is not in the file.
pub(super) const UNKNOWN_MAP: &str = "E0605";
/// No claim, or more than one; a doubled seed or rule of moments.
pub(super) const CLAIMS: &str = "E0602";
/// Nothing says what becomes of the optimizer's moments.
pub(super) const NO_MOMENTS: &str = "E0603";
/// Something is drawn, and no seed is given.
pub(super) const NO_SEED: &str = "E0604";
/// A path that names nothing.
pub(super) const UNKNOWN_PATH: &str = "E0610";
/// A layer that a stack does not have.
pub(super) const OUT_OF_RANGE: &str = "E0611";
/// Wildcards of a rule that do not correspond.
pub(super) const WILDCARDS: &str = "E0612";
/// Lists of different lengths in a `zip`.
pub(super) const ZIP_LENGTHS: &str = "E0613";
/// Layers of different kinds.
pub(super) const MOTIF: &str = "E0614";
/// Variables of loops that are unknown, doubled or unused.
pub(super) const VARIABLES: &str = "E0615";
/// A target tensor without a rule.
pub(super) const MISSING: &str = "E0620";
/// A target tensor with two.
pub(super) const DOUBLED: &str = "E0621";
/// A source tensor that goes nowhere.
pub(super) const UNUSED: &str = "E0622";
/// A drop of what is used, or of nothing.
pub(super) const BAD_DROP: &str = "E0623";
/// A rule gives other axes than the tensor has.
pub(super) const AXES: &str = "E0630";
/// A rule gives another size than the tensor has.
pub(super) const SIZE: &str = "E0631";
/// A parameter from a state, or the other way round.
pub(super) const KIND: &str = "E0632";
/// An unknown transformation, or arguments that it does not take.
pub(super) const ARGUMENTS: &str = "E0633";
/// Sizes that do not divide.
pub(super) const DIVIDES: &str = "E0634";
/// Positions that an axis does not have.
pub(super) const POSITIONS: &str = "E0635";
/// A map between blocks that does not fit where it is applied.
pub(super) const APPLICATION: &str = "E0636";
/// A setting that differs and is not acknowledged.
pub(super) const SETTING: &str = "E0640";
/// An acknowledged setting that does not differ.
pub(super) const STALE_SETTING: &str = "E0641";
/// `preserves exactly`, and there is a counterexample.
pub(super) const REFUTED: &str = "E0650";
/// `preserves exactly`, and there is neither proof nor counterexample.
pub(super) const UNPROVED: &str = "E0651";
/// `preserves within`, and a trial differs by more.
pub(super) const OUT_OF_BOUND: &str = "E0652";
