//! Every code that a diagnostic can carry, with the page that `lightc explain` prints.
//!
//! The constants are the codes of this crate. [`PAGES`] has the pages of all crates: a new code
//! is a constant or literal where it is raised, a file `docs/errors/CODE.md`, and a row of the
//! table.

/// Text that no rule of the grammar allows.
pub const UNEXPECTED: &str = "E0101";
/// A bracket, brace or quote without its partner.
pub const UNCLOSED: &str = "E0102";
/// Nesting over a limit.
pub const TOO_DEEP: &str = "E0103";
/// A file or a number over a limit.
pub const TOO_LARGE: &str = "E0104";
/// A forward without a result, or a value that nothing takes.
pub const NO_RESULT: &str = "E0105";

/// No block of that name.
pub const UNKNOWN_BLOCK: &str = "E0201";
/// A name that its scope does not have.
pub const UNKNOWN_NAME: &str = "E0202";
/// Two blocks or two stages of one name.
pub const DOUBLED_DEFINITION: &str = "E0203";
/// Two formals or members of one name.
pub const DOUBLED_MEMBER: &str = "E0204";
/// Two bindings of one name in one stage.
pub const DOUBLED_BINDING: &str = "E0205";
/// A binding that needs itself.
pub const BINDING_CYCLE: &str = "E0206";
/// A stage that extends itself.
pub const EXTENDS_CYCLE: &str = "E0207";
/// No stage of that name.
pub const UNKNOWN_STAGE: &str = "E0208";
/// An import that could not be read.
pub const MISSING_IMPORT: &str = "E0209";
/// A block that contains itself.
pub const RECURSION: &str = "E0210";
/// A name that the language keeps for itself.
pub const RESERVED_NAME: &str = "E0211";
/// A stage without `model`.
pub const NO_MODEL: &str = "E0212";
/// A block without `forward`.
pub const NO_FORWARD: &str = "E0213";
/// A block with two.
pub const DOUBLED_FORWARD: &str = "E0214";
/// A binding that nothing reads.
pub const UNREAD_BINDING: &str = "E0215";

/// A `require` that an instance does not meet.
pub const REQUIREMENT: &str = "E0240";
/// A `require` that compares nothing.
pub const NOT_A_COMPARISON: &str = "E0241";
/// A format of `quantized` that does not exist.
pub const UNKNOWN_FORMAT: &str = "E0242";
/// A parameter that has no 8-bit form.
pub const CANNOT_QUANTIZE: &str = "E0243";
/// `active .. of` an axis that the parameter lacks.
pub const ACTIVE_AXIS: &str = "E0244";
/// More active positions than there are.
pub const ACTIVE_COUNT: &str = "E0245";
/// An integrator, or a bootstrap of one, that does not exist.
pub const UNKNOWN_INTEGRATOR: &str = "E0260";
/// A step of an integrator without an exact inverse.
pub const NOT_INVERTIBLE: &str = "E0261";
/// A list that has not one number per layer.
pub const NOT_PER_LAYER: &str = "E0262";
/// A number that an integrator cannot have.
pub const INTEGRATOR_NUMBER: &str = "E0263";
/// A gate whose path a layer's member has.
pub const GATE_TAKEN: &str = "E0264";

/// A formal that nothing gives.
pub const UNBOUND: &str = "E0301";
/// A value of one kind where another is wanted.
pub const WRONG_KIND: &str = "E0302";
/// An argument that names no formal.
pub const UNKNOWN_ARGUMENT: &str = "E0303";
/// Two arguments for one formal.
pub const DOUBLED_ARGUMENT: &str = "E0304";
/// An argument of an instantiation without its name.
pub const UNNAMED_ARGUMENT: &str = "E0305";
/// A size that is not a whole number.
pub const NOT_WHOLE: &str = "E0306";
/// A size below 1.
pub const NOT_POSITIVE: &str = "E0307";
/// A size or a number of blocks over a limit.
pub const OVER_LIMIT: &str = "E0308";
/// A block that needs a stage.
pub const NOT_ALONE: &str = "E0309";
/// A number expression without a value, such as `1 / 0`.
pub const NOT_A_NUMBER: &str = "E0310";

/// A distribution that does not exist.
pub const UNKNOWN_INIT: &str = "E0511";
/// Arguments that a distribution does not take.
pub const INIT_ARGUMENTS: &str = "E0512";
/// One axis twice in one tensor.
pub const DOUBLED_AXIS: &str = "E0513";
/// An axis that the block does not have.
pub const UNKNOWN_AXIS: &str = "E0514";
/// `frozen` with an empty reason.
pub const NO_REASON: &str = "E0515";
/// A table source that does not exist.
pub const UNKNOWN_TABLE: &str = "E0516";

/// The explanation of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Such as `E0201`.
    pub code: &'static str,
    /// Markdown: a heading `# E0201: title`, a paragraph, a bad and a good example.
    pub text: &'static str,
}

impl Page {
    /// What the code means, in a few words.
    pub fn title(&self) -> &'static str {
        let line = self.text.lines().next().unwrap_or("");
        line.split_once(": ").map_or(line, |(_, title)| title)
    }
}

/// The page of a code; case does not matter.
pub fn page(code: &str) -> Option<&'static Page> {
    PAGES.iter().find(|page| page.code.eq_ignore_ascii_case(code))
}

macro_rules! pages {
    ($($code:literal)*) => {
        &[$(Page {
            code: $code,
            text: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"), "/../docs/errors/", $code, ".md"
            )),
        }),*]
    };
}

/// All pages, in the order of their codes.
#[rustfmt::skip]
pub const PAGES: &[Page] = pages! {
    "E0101" "E0102" "E0103" "E0104" "E0105"
    "E0201" "E0202" "E0203" "E0204" "E0205" "E0206" "E0207" "E0208" "E0209" "E0210" "E0211"
    "E0212" "E0213" "E0214" "E0215"
    "E0240" "E0241" "E0242" "E0243" "E0244" "E0245"
    "E0260" "E0261" "E0262" "E0263" "E0264"
    "E0301" "E0302" "E0303" "E0304" "E0305" "E0306" "E0307" "E0308" "E0309" "E0310"
    "E0401" "E0402" "E0403" "E0404" "E0405" "E0406" "E0407" "E0408" "E0409" "E0410"
    "E0440" "E0441"
    "E0450"
    "E0501" "E0502" "E0503" "E0504" "E0505" "E0506" "E0507" "E0508"
    "E0511" "E0512" "E0513" "E0514" "E0515" "E0516" "E0517"
    "E0601" "E0602" "E0603" "E0604" "E0605" "E0610" "E0611" "E0612" "E0613" "E0614" "E0615" "E0620"
    "E0621" "E0622" "E0623" "E0630" "E0631" "E0632" "E0633" "E0634" "E0635" "E0636" "E0640" "E0641"
    "E0650" "E0651" "E0652" "E0654"
    "E0680" "E0681" "E0682" "E0683" "E0684" "E0685"
    "E0701"
    "E0801" "E0802" "E0803" "E0804" "E0805" "E0806" "E0807" "E0808" "E0809" "E0810" "E0811"
    "E0812"
    "E0901" "E0902" "E0903" "E0904" "E0905" "E0906" "E0907" "E0908" "E0909" "E0910" "E0911"
    "E0912" "E0913" "E0914" "E0915" "E0916" "E0917" "E0918" "E0919" "E0920" "E0921"
    "E1001" "E1002" "E1003" "E1004" "E1005" "E1006" "E1007" "E1008" "E1009" "E1010" "E1011"
    "E1012" "E1013" "E1014" "E1015" "E1016" "E1017" "E1018" "E1019" "E1020" "E1021"
    "E1101" "E1102" "E1103" "E1104" "E1105" "E1106" "E1107" "E1108" "E1109"
    "E1120" "E1121"
    "E1201" "E1202" "E1203" "E1204" "E1205" "E1206" "E1207" "E1208" "E1209"
    "E1301" "E1302" "E1303" "E1304" "E1305" "E1306" "E1307" "E1308" "E1309" "E1310" "E1311"
};
