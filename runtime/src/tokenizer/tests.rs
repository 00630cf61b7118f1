use super::*;
use crate::Error;

const TEXT: &str =
    "the cat sat on the mat; the cat ate the rat. fn main() { println!(\"héllo\"); }\n";

fn small() -> Tokenizer {
    train_byte_level([TEXT, TEXT].into_iter(), 280).expect("trains")
}

#[test]
fn training_gives_the_same_file_every_time() {
    let first = small();
    assert_eq!(first.n_ids(), 280);
    for _ in 0..4 {
        assert_eq!(small().file_text(), first.file_text());
    }
    let merges: Vec<String> = (257..280).filter_map(|id| first.token_of(id)).collect();
    insta::assert_snapshot!("merges", merges.join(" "));
}

#[test]
fn any_text_is_encoded_and_comes_back() {
    let tokenizer = small();
    for text in [TEXT, "", "naïve — 数学 🙂\t\r\n\0", "  the   cat"] {
        let ids = tokenizer.encode(Path::new("a"), text).expect("encodes");
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
    }
}

#[test]
fn a_file_that_was_written_loads_to_the_same_tokenizer() {
    let tokenizer = small();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.file_text()).expect("writes");
    let loaded = Tokenizer::load(&path).expect("loads");
    assert_eq!(loaded.hash(), tokenizer.hash());
    let encode = |tokenizer: &Tokenizer| tokenizer.encode(&path, TEXT).expect("encodes");
    assert_eq!(encode(&loaded), encode(&tokenizer));
    std::fs::write(&path, "{}").expect("writes");
    assert_eq!(Tokenizer::load(&path).expect_err("fails").code(), "E0903");
    std::fs::remove_file(&path).expect("removes");
    assert_eq!(Tokenizer::load(&path).expect_err("fails").code(), "E0901");
}

#[test]
fn a_control_token_in_a_document_is_plain_text() {
    let tokenizer = small();
    let text = "before <|end_of_text|> after<|end_of_text|>";
    let ids = tokenizer.encode(Path::new("a"), text).expect("encodes");
    assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
    assert_eq!(tokenizer.id_of(END_TOKEN), Some(0));
    assert!(tokenizer.is_control(0));
}

/// Added tokens that are not marked special are matched by the crate whatever
/// its switch for special tokens says.
#[test]
fn an_added_token_that_is_not_special_is_plain_text_too() {
    let mut value: serde_json::Value = serde_json::from_str(small().file_text()).expect("is JSON");
    value["added_tokens"][0]["special"] = false.into();
    let text = value.to_string();
    let tokenizer = Tokenizer::from_text(Path::new("t"), text).expect("loads");
    let ids = tokenizer.encode(Path::new("a"), "x<|end_of_text|>y").expect("encodes");
    assert!(!ids.contains(&0));
}

#[test]
fn text_whose_ordinary_tokens_spell_a_control_token_is_refused() {
    let mut value: serde_json::Value = serde_json::from_str(small().file_text()).expect("is JSON");
    // The whole text as one piece, and whole pieces looked up before merging.
    value["model"]["ignore_merges"] = true.into();
    value["pre_tokenizer"] = serde_json::json!(null);
    let tokenizer = Tokenizer::from_text(Path::new("t"), value.to_string()).expect("loads");
    let error = tokenizer.encode(Path::new("a.txt"), END_TOKEN).expect_err("is refused");
    insta::assert_snapshot!("control_token", error.rendered());
}

#[test]
fn byte_tables_hold_the_bytes_of_each_token() {
    let tokenizer = small();
    let table = tokenizer.byte_table(16).expect("is byte-level");
    assert_eq!(table.codes.len(), 280 * 16);
    // Id 1 + b is the byte b alone: one code, at position 0.
    for byte in 0..256usize {
        assert_eq!(table.counts[1 + byte], 1);
        assert_eq!(table.codes[(1 + byte) * 16], byte as i64 * 16);
        assert_eq!(table.codes[(1 + byte) * 16 + 1], -1);
    }
    let id = tokenizer.encode(Path::new("a"), " the").expect("encodes")[0] as usize;
    let row = &table.codes[id * 16..(id + 1) * 16];
    let expected: Vec<i64> =
        b" the".iter().enumerate().map(|(i, b)| i64::from(*b) * 16 + i as i64).collect();
    assert_eq!(row[..4], expected);
    assert_eq!(table.counts[id], 4);
    // The control token has the bytes of its spelling.
    assert_eq!(table.counts[0], END_TOKEN.len() as i64);
    assert_eq!(tokenizer.byte_table(4).expect("is byte-level").counts[0], 4);
}

#[test]
fn a_tokenizer_that_is_not_byte_level_has_no_byte_table() {
    let mut value: serde_json::Value = serde_json::from_str(small().file_text()).expect("is JSON");
    value["model"]["vocab"]["α"] = 280.into();
    let tokenizer = Tokenizer::from_text(Path::new("t"), value.to_string()).expect("loads");
    let error = tokenizer.byte_table(16).expect_err("is refused");
    insta::assert_snapshot!("not_byte_level", error.rendered());
}

#[test]
fn sizes_that_cannot_be_reached() {
    let train = |n_ids| train_byte_level([TEXT].into_iter(), n_ids).expect_err("fails");
    let text: Vec<String> = [256, 10_000].map(|n_ids| train(n_ids).rendered()).to_vec();
    insta::assert_snapshot!("sizes", text.join(""));
    assert!(matches!(train(0), Error::Data(_)));
}
