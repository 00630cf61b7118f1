//! One digest for all sources of a stage.

use lightc_dsl::source::Sources;

/// BLAKE3 over the name and text of every source, in the order they were read, in hexadecimal.
///
/// Names are taken relative to the folder of the first source, so that the digest does not depend
/// on the folder that lightc was started in.
pub fn source_digest(sources: &Sources) -> String {
    let mut hasher = blake3::Hasher::new();
    let root = sources.iter().next().map_or("", |(_, source)| source.name.as_str());
    for (_, source) in sources.iter() {
        for text in [&relative(root, &source.name), &source.text] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// `name` as seen from the folder of `root`.
fn relative(root: &str, name: &str) -> String {
    if root.starts_with('/') != name.starts_with('/') {
        return name.to_owned();
    }
    let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
    let here: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    let there: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
    let shared = here.iter().zip(&there).take_while(|(a, b)| a == b).count();
    let up = here.iter().skip(shared).map(|_| "..");
    up.chain(there.iter().skip(shared).copied()).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(texts: &[(&str, &str)]) -> String {
        let mut sources = Sources::default();
        for (name, text) in texts {
            sources.add(*name, *text);
        }
        source_digest(&sources)
    }

    #[test]
    fn names_are_relative_to_the_folder_of_the_root() {
        assert_eq!(relative("models/tiny/t.llm", "models/tiny/t.llm"), "t.llm");
        assert_eq!(relative("models/tiny/t.llm", "models/std/n.llm"), "../std/n.llm");
        assert_eq!(relative("../t.llm", "../std/n.llm"), "std/n.llm");
        assert_eq!(relative("t.llm", "/else/n.llm"), "/else/n.llm");
    }

    #[test]
    fn the_digest_is_of_names_and_texts_and_not_of_where_they_lie() {
        let here = digest(&[("a/t.llm", "x"), ("std/n.llm", "y")]);
        assert_eq!(here, digest(&[("/home/a/t.llm", "x"), ("/home/std/n.llm", "y")]));
        for other in [
            digest(&[("a/t.llm", "x"), ("std/n.llm", "z")]),
            digest(&[("a/t.llm", "x"), ("std/m.llm", "y")]),
            digest(&[("a/t.llm", "x")]),
            digest(&[("a/t.llmx", ""), ("std/n.llm", "y")]),
        ] {
            assert_ne!(here, other);
        }
    }
}
