//! The constant tables of a stage.
//!
//! `tokenizer.byte_codes` `[v, p]` holds `byte * p + position` for the bytes of
//! each token, then -1, with `p` from the table's own shape.
//! `tokenizer.byte_counts` `[v]` holds how many codes each token has in the
//! `byte_codes` table of the same block; without one, `p` is 32.

use crate::error::{DataError, Result};
use crate::stage::TableSpec;
use crate::tokenizer::Tokenizer;
use crate::{Device, Tensor};

const CODES: &str = "tokenizer.byte_codes";
const COUNTS: &str = "tokenizer.byte_counts";
const DEFAULT_POSITIONS: i64 = 32;

/// Makes every table of a stage, in order, as i64 on a device.
pub fn tables(specs: &[TableSpec], tokenizer: &Tokenizer, device: Device) -> Result<Vec<Tensor>> {
    let made = |spec| Ok(table(spec, specs, tokenizer)?.f_to_device(device)?);
    specs.iter().map(made).collect()
}

fn table(spec: &TableSpec, specs: &[TableSpec], tokenizer: &Tokenizer) -> Result<Tensor> {
    let n_ids = tokenizer.n_ids() as i64;
    // Whether a tokenizer may have fewer ids than the stage is decided with the corpus; one that it
    // lacks has no bytes.
    match (spec.source, spec.shape) {
        (CODES, &[v, p]) if v >= n_ids && p > 0 => {
            let mut codes = tokenizer.byte_table(p as usize)?.codes;
            codes.resize((v * p) as usize, -1);
            Ok(Tensor::f_from_slice(&codes)?.f_reshape(spec.shape)?)
        }
        (COUNTS, &[v]) if v >= n_ids => {
            let mut counts = tokenizer.byte_table(positions_beside(spec, specs) as usize)?.counts;
            counts.resize(v as usize, 0);
            Ok(Tensor::f_from_slice(&counts)?)
        }
        (CODES, _) => Err(bad_shape(spec, format!("[{n_ids}, p] with p > 0"))),
        (COUNTS, _) => Err(bad_shape(spec, format!("[{n_ids}]"))),
        (source, _) => {
            let (table, source_name) = (spec.path.to_owned(), source.to_owned());
            Err(DataError::UnknownTable { table, source_name }.into())
        }
    }
}

/// `p` of the codes table in the same block.
fn positions_beside(spec: &TableSpec, specs: &[TableSpec]) -> i64 {
    let beside =
        specs.iter().find(|other| other.source == CODES && block(other.path) == block(spec.path));
    match beside.map(|codes| codes.shape) {
        Some(&[_, p]) if p > 0 => p,
        _ => DEFAULT_POSITIONS,
    }
}

fn block(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(block, _)| block)
}

fn bad_shape(spec: &TableSpec, expected: String) -> crate::Error {
    DataError::TableShape {
        table: spec.path.to_owned(),
        source_name: spec.source.to_owned(),
        expected,
        found: spec.shape.to_vec(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestCorpus, VOCAB};

    const V: i64 = VOCAB as i64;

    fn spec(path: &'static str, shape: &'static [i64], source: &'static str) -> TableSpec {
        TableSpec { path, shape, source }
    }

    #[test]
    fn counts_are_those_of_the_codes_in_the_same_block() {
        let tokenizer = TestCorpus::new().open().tokenizer;
        let specs = [
            spec("a.codes", &[V, 4], CODES),
            spec("b.codes", &[V, 16], CODES),
            spec("b.counts", &[V], COUNTS),
            spec("a.counts", &[V], COUNTS),
        ];
        let made = tables(&specs, &tokenizer, Device::Cpu).expect("makes");
        for (codes, counts) in [(0, 3), (1, 2)] {
            let present = made[codes].ge(0).sum_dim_intlist(1, false, crate::Kind::Int64);
            assert_eq!(present, made[counts]);
        }
        assert_eq!(made[3].max().int64_value(&[]), 4);
        assert_eq!(made[2].max().int64_value(&[]), 15);
    }

    #[test]
    fn ids_that_the_tokenizer_lacks_have_no_bytes() {
        let tokenizer = TestCorpus::new().open().tokenizer;
        let more: &'static [i64] = &[V + 3, 4];
        let counts: &'static [i64] = &[V + 3];
        let specs = [spec("a.codes", more, CODES), spec("a.counts", counts, COUNTS)];
        let made = tables(&specs, &tokenizer, Device::Cpu).expect("makes");
        assert_eq!(made[0].narrow(0, V, 3).max().int64_value(&[]), -1);
        assert_eq!(made[1].narrow(0, V, 3).max().int64_value(&[]), 0);
        assert!(made[1].narrow(0, 0, V).min().int64_value(&[]) > 0);
    }

    #[test]
    fn bad_tables() {
        let tokenizer = TestCorpus::new().open().tokenizer;
        let bad = [
            spec("a.codes", &[7, 4], CODES),
            spec("a.codes", &[V], CODES),
            spec("a.counts", &[V, 2], COUNTS),
            spec("a.x", &[V], "tokenizer.ranks"),
        ];
        let text: Vec<String> = bad
            .iter()
            .map(|spec| {
                tables(&[*spec], &tokenizer, Device::Cpu).expect_err("is refused").rendered()
            })
            .collect();
        insta::assert_snapshot!("bad_tables", text.join(""));
    }
}
