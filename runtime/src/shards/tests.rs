use super::*;
use crate::testing::{TestCorpus, VOCAB};

/// The message with the temporary folder's name taken out.
fn shown(corpus: &TestCorpus, error: &crate::Error) -> String {
    error.rendered().replace(&corpus.dir.path().display().to_string(), "DIR")
}

fn patch(corpus: &TestCorpus, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = corpus.shards().join(file);
    let mut bytes = std::fs::read(&path).expect("reads");
    change(&mut bytes);
    std::fs::write(&path, bytes).expect("writes");
}

/// Gives the manifest another content and seals it anew.
fn reseal(corpus: &TestCorpus, change: impl FnOnce(&mut CorpusManifest)) {
    patch(corpus, MANIFEST_FILE, |bytes| {
        let text = std::str::from_utf8(bytes).expect("is text");
        let mut manifest: CorpusManifest = sealed::unseal(text).expect("is whole");
        change(&mut manifest);
        *bytes = sealed::seal(&manifest).expect("seals").into_bytes();
    });
}

#[test]
fn preparing_twice_gives_the_same_bytes_and_a_third_time_keeps_them() {
    let (first, second) = (TestCorpus::new(), TestCorpus::new());
    assert_eq!(first.open().digest, second.open().digest);
    let again = prepare(&first.options()).expect("prepares");
    assert!(again.was_there);
    let other = PrepareOptions { held_out_every: 5, ..first.options() };
    let error = prepare(&other).expect_err("is refused");
    insta::assert_snapshot!("output_exists", shown(&first, &error));
}

#[test]
fn splits_hold_every_document_once_and_each_ends() {
    let corpus = TestCorpus::new().open();
    let manifest = &corpus.manifest;
    let n_documents = manifest.train.n_documents + manifest.held_out.n_documents;
    assert_eq!((n_documents, manifest.n_empty, manifest.n_copies), (40, 1, 1));
    assert_eq!(manifest.held_out.n_documents, 10);
    let n_ends = |split: &Split| split.histogram(VOCAB)[manifest.end_id as usize] as usize;
    assert_eq!(n_ends(&corpus.train), manifest.train.n_documents);
    assert_eq!(n_ends(&corpus.held_out), manifest.held_out.n_documents);
    let ids: Vec<u32> =
        corpus.held_out.read(0..usize::MAX).into_iter().map(|id| id as u32).collect();
    let text = corpus.tokenizer.decode(&ids).expect("decodes");
    let n_bytes = text.len() - 10 * crate::tokenizer::END_TOKEN.len();
    assert_eq!(n_bytes as u64, manifest.held_out.n_text_bytes);
}

#[test]
fn a_stream_reads_the_same_over_many_shards() {
    let whole = TestCorpus::new();
    let pieces = TestCorpus::empty();
    let options = PrepareOptions { shard_tokens: 101, ..pieces.options() };
    prepare(&options).expect("prepares");
    let (whole, pieces) = (whole.open(), pieces.open());
    assert!(pieces.manifest.train.shards.len() > 3);
    assert_eq!(whole.train.n_tokens(), pieces.train.n_tokens());
    for range in [0..1, 100..102, 50..350, 303..303, 0..usize::MAX] {
        assert_eq!(whole.train.read(range.clone()), pieces.train.read(range));
    }
    let end = whole.train.n_tokens();
    assert_eq!(whole.train.read(end - 2..end + 5).len(), 2);
}

#[test]
fn damage() {
    type Damage<'a> = &'a dyn Fn(&TestCorpus);
    let cases: [(&str, Damage<'_>); 8] = [
        ("shard cut short", &|corpus| {
            patch(corpus, "train_00000.tokens", |bytes| bytes.truncate(1001));
        }),
        ("shard gone", &|corpus| {
            std::fs::remove_file(corpus.shards().join("held_out_00000.tokens")).expect("removes");
        }),
        ("shard byte", &|corpus| patch(corpus, "held_out_00000.tokens", |bytes| bytes[9] ^= 4)),
        ("other tokenizer", &|corpus| {
            patch(corpus, TOKENIZER_FILE, |bytes| bytes.push(b'\n'));
        }),
        ("manifest byte", &|corpus| patch(corpus, MANIFEST_FILE, |bytes| bytes[20] ^= 1)),
        ("other format", &|corpus| reseal(corpus, |manifest| manifest.format = 9)),
        ("id out of range", &|corpus| reseal(corpus, |manifest| manifest.vocab = 50)),
        ("token count", &|corpus| reseal(corpus, |manifest| manifest.train.n_tokens += 1)),
    ];
    let mut text = String::new();
    for (name, damage) in cases {
        let corpus = TestCorpus::new();
        damage(&corpus);
        let error = Corpus::open(&corpus.shards()).expect_err(name);
        text += &format!("# {name}\n{}", shown(&corpus, &error));
    }
    insta::assert_snapshot!("damage", text);
}

#[test]
fn bad_input() {
    let corpus = TestCorpus::empty();
    let file = |name: &str, bytes: &[u8]| {
        let path = corpus.dir.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        path
    };
    let latin = file("latin.txt", b"caf\xe9");
    let one = file("one.txt", b"one document");
    let base = corpus.options();
    let cases = [
        ("not UTF-8", PrepareOptions { documents: vec![latin], ..base.clone() }),
        ("no such file", PrepareOptions { documents: vec!["no/such".into()], ..base.clone() }),
        ("nothing", PrepareOptions { documents: Vec::new(), ..base.clone() }),
        ("one document", PrepareOptions { documents: vec![one.clone()], ..base.clone() }),
        ("no held-out", PrepareOptions { held_out_every: 0, ..base.clone() }),
        ("not a tokenizer", PrepareOptions { tokenizer: Some(one), ..base.clone() }),
        ("no end token", PrepareOptions { end_token: "<eos>".to_owned(), ..base.clone() }),
        ("large vocabulary", PrepareOptions { vocab: 100_000, ..base }),
    ];
    let mut text = String::new();
    for (name, options) in cases {
        let error = prepare(&options).expect_err(name);
        text += &format!("# {name}\n{}", shown(&corpus, &error));
        assert!(!corpus.shards().exists(), "{name} left a folder");
        assert!(!corpus.dir.path().join(".tmp_shards").exists(), "{name} left a temporary");
    }
    insta::assert_snapshot!("bad_input", text);
}

#[test]
fn the_stage_and_the_tokenizer_must_agree_on_the_vocabulary() {
    let corpus = TestCorpus::new().open();
    assert!(corpus.check_vocab(VOCAB as i64, false).is_ok());
    let error = corpus.check_vocab(2048, false).expect_err("is refused");
    assert!(corpus.check_vocab(2048, true).is_ok());
    assert!(corpus.check_vocab(VOCAB as i64 - 1, true).is_err());
    let hash = corpus.tokenizer.hash().to_owned();
    assert!(corpus.check_pinned(None).is_ok() && corpus.check_pinned(Some(&hash)).is_ok());
    let pinned = corpus.check_pinned(Some("0000")).expect_err("is refused");
    insta::assert_snapshot!("vocab", format!("{}{}", error.rendered(), pinned.rendered()));
}
