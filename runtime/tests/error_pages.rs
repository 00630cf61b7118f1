//! Every code has a page, every page a code, and the page of the configuration
//! every key.

#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};

use lightc_runtime::testing::TestCorpus;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn every_code_has_a_page_and_every_page_a_code() {
    let mut codes: Vec<String> = lightc_runtime::error::CODES.map(str::to_owned).into();
    codes.extend(lightc_checkpoint::error::CODES.map(str::to_owned));
    codes.extend(lightc_runtime::cuda::error::CODES.map(str::to_owned));
    codes.sort();
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(docs().join("errors")).expect("lists") {
        let name = entry.expect("lists").file_name().to_string_lossy().into_owned();
        let code = name.trim_end_matches(".md").to_owned();
        if ["E08", "E09", "E10", "E11", "E13"].iter().any(|prefix| code.starts_with(prefix)) {
            let text = std::fs::read_to_string(docs().join("errors").join(&name)).expect("reads");
            assert!(text.starts_with(&format!("# {code}: ")), "{name}");
            let has_example =
                ["error", "note"].map(|word| text.contains(&format!("{word}[{code}]: ")));
            assert!(has_example.contains(&true), "{name} has no example");
            assert!(text.contains("\nFix: "), "{name} has no fix");
            pages.push(code);
        }
    }
    pages.sort();
    assert_eq!(pages, codes);
}

#[test]
fn the_page_of_the_configuration_has_every_key() {
    let page = std::fs::read_to_string(docs().join("training-config.md")).expect("reads");
    let mut config = TestCorpus::config();
    config.data.tokenizer = Some("0000".to_owned());
    config.schedule.stable_fraction = Some(0.5);
    config.schedule.decay = Some(lightc_runtime::schedule::Decay::Linear);
    let mut table = String::new();
    for line in config.resolved().lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            table = format!("{}.", line.trim_matches(['[', ']']));
        } else if let Some((key, _)) = line.split_once(" = ") {
            assert!(page.contains(&format!("| `{table}{key}` |")), "{table}{key}");
        }
    }
}
