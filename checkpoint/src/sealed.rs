//! JSON that carries its own digest.
//!
//! The text is `{"blake3": "<digest>", "content": {...}}`, pretty printed, and
//! the digest is that of the content's own pretty text. Reading parses,
//! prints again and compares with the text on disk, so that *any* changed byte
//! is found, white space included.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Sealed<'a, T> {
    blake3: &'a str,
    content: &'a T,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unsealed<T> {
    blake3: String,
    content: T,
}

/// The sealed text of a value.
pub fn seal<T: Serialize>(content: &T) -> Result<String, serde_json::Error> {
    let digest = digest_of(content)?;
    let mut text = serde_json::to_string_pretty(&Sealed { blake3: &digest, content })?;
    text.push('\n');
    Ok(text)
}

/// The value of a sealed text, or what is wrong with it.
pub fn unseal<T: Serialize + DeserializeOwned>(text: &str) -> Result<T, String> {
    let unsealed: Unsealed<T> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let found = digest_of(&unsealed.content).map_err(|error| error.to_string())?;
    if found != unsealed.blake3 {
        return Err(format!("its content has BLAKE3 {found}, it says {}", unsealed.blake3));
    }
    let again = seal(&unsealed.content).map_err(|error| error.to_string())?;
    if again != text {
        return Err("its text is not what its content prints as".to_owned());
    }
    Ok(unsealed.content)
}

fn digest_of<T: Serialize>(content: &T) -> Result<String, serde_json::Error> {
    let text = serde_json::to_string_pretty(content)?;
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
    struct Thing {
        name: String,
        sizes: Vec<u64>,
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let thing = Thing { name: "a".to_owned(), sizes: vec![1, 20] };
        let text = seal(&thing).expect("seals");
        assert_eq!(unseal::<Thing>(&text), Ok(thing));
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[index] ^= 1 << bit;
                let Ok(changed) = String::from_utf8(bytes) else {
                    continue;
                };
                assert!(unseal::<Thing>(&changed).is_err(), "bit {bit} of byte {index}");
            }
        }
    }
}
