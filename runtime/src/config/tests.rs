use super::*;
use crate::Error;

const SMALL: &str = "\
steps = 20
seed = 1
[data]
shards = \"shards\"
sequence_length = 18
batch = 4
[schedule]
kind = \"wsd\"
peak = 1e-2
end = 1e-3
stable_fraction = 0.5
";

fn parse(text: &str) -> std::result::Result<Config, ConfigError> {
    Config::parse(Path::new("run.toml"), text)
}

#[test]
fn defaults_are_filled_in_and_the_resolved_text_loads_to_the_same() {
    let config = parse(SMALL).expect("parses");
    let resolved = config.resolved();
    insta::assert_snapshot!("resolved", resolved);
    assert_eq!(parse(&resolved).expect("parses"), config);
}

#[test]
fn settings_leave_out_what_does_not_change_the_numbers() {
    let config = parse(SMALL).expect("parses");
    let mut other = config.clone();
    other.data.shards = PathBuf::from("elsewhere");
    other.evaluation.interval = 7;
    other.checkpoint.keep_last = 9;
    assert_eq!(other.settings(), config.settings());
    other.groups[0].weight_decay = 0.5;
    assert_ne!(other.settings(), config.settings());
    let lines: Vec<String> =
        config.settings().iter().map(|(key, value)| format!("{key} = {value}")).collect();
    insta::assert_snapshot!("settings", lines.join("\n"));
}

#[test]
fn bad_configurations() {
    let group = |more: &str| format!("{SMALL}[[groups]]\nname = \"a\"\nmatch = [\"**\"]\n{more}");
    let cases = [
        ("syntax", SMALL.replace("seed = 1", "seed = ")),
        ("a key twice", SMALL.replace("seed = 1", "seed = 1\nseed = 2")),
        ("close spelling", SMALL.replace("seed", "sede")),
        ("unknown nested key", SMALL.replace("batch = 4", "batch = 4\nworkers = 3")),
        ("close nested spelling", SMALL.replace("batch = 4", "bacth = 4")),
        ("unknown table", format!("{SMALL}[opus]\nenabled = true\n")),
        ("missing key", SMALL.replace("steps = 20\n", "")),
        ("missing nested key", SMALL.replace("batch = 4\n", "")),
        ("missing table", SMALL.split("[schedule]").next().unwrap_or_default().to_owned()),
        ("wrong type", SMALL.replace("steps = 20", "steps = \"20\"")),
        ("negative count", SMALL.replace("seed = 1", "seed = -1")),
        ("unknown word", SMALL.replace("\"wsd\"", "\"wsb\"")),
        ("no steps", SMALL.replace("steps = 20", "steps = 0")),
        ("short sequence", SMALL.replace("sequence_length = 18", "sequence_length = 2")),
        ("long warmup", SMALL.replace("end = 1e-3", "end = 1e-3\nwarmup_steps = 21")),
        ("infinite rate", SMALL.replace("peak = 1e-2", "peak = inf")),
        ("wsd without its share", SMALL.replace("stable_fraction = 0.5\n", "")),
        ("cosine with a share", SMALL.replace("\"wsd\"", "\"cosine\"")),
        ("bad beta", format!("{SMALL}[optimizer]\nbeta2 = 1.0\n")),
        ("no patterns", group("[[groups]]\nname = \"b\"\nmatch = []\n")),
        ("group twice", group("[[groups]]\nname = \"a\"\nmatch = [\"*\"]\n")),
        ("bad multiplier", group("lr_multiplier = -1.0\n")),
    ];
    let mut text = String::new();
    for (name, source) in cases {
        let error = Error::from(parse(&source).expect_err(name));
        text += &format!("# {name}\n{}", error.rendered());
    }
    insta::assert_snapshot!("bad_configurations", text);
}

#[test]
fn a_file_that_is_not_there() {
    let error = Config::load(Path::new("no/such.toml")).expect_err("fails");
    assert_eq!(error.code(), "E0801");
}

#[test]
fn shards_are_found_from_the_configuration_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("run.toml");
    std::fs::write(&path, SMALL).expect("writes");
    assert_eq!(Config::load(&path).expect("loads").data.shards, dir.path().join("shards"));
}
