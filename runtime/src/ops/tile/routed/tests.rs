//! Which sums have a kernel.

use super::*;
use crate::Device;

fn of(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::zeros(shape, (kind, Device::Cpu))
}

fn bf16(shape: &[i64]) -> Tensor {
    of(shape, Kind::BFloat16)
}

/// Numbers of wide and low terms, and whether codes and turned.
fn found(terms: &[Term<'_>]) -> Option<(usize, usize, bool, bool)> {
    let (l, _) = layout(terms, 12)?;
    Some((l.n_wide, l.n_low, l.int8, l.turned))
}

#[test]
fn shared_memory_is_what_the_files_state() {
    let headers = lightc_kernels::HEADERS.iter().map(|(_, text)| *text);
    let texts: Vec<&str> = headers.chain([PRODUCTS.source, WEIGHT_GRAD.source]).collect();
    for (name, bytes) in [
        ("EXPERTS_SMEM", BF16_SHARED),
        ("EXPERTS_INT8_SMEM", INT8_SHARED),
        ("EXPERTS_GRAD_SMEM", GRAD_SHARED),
    ] {
        let stated = format!("{name} == {bytes}");
        assert!(texts.iter().any(|text| text.contains(&stated)), "{stated}");
    }
}

#[test]
fn sums_that_have_a_kernel() {
    // Six rows, two places of each.
    let (x, own, low) = (bf16(&[6, 128]), bf16(&[6, 2, 128]), bf16(&[6, 2, 16]));
    let (w, left) = (bf16(&[3, 64, 128]), bf16(&[3, 64, 16]));
    let (codes, scale) = (of(&[3, 64, 128], Kind::Int8), of(&[3, 64], Kind::Float));
    let wide = Term::plain(&x, &w);
    let narrow = Term::plain(&low, &left);
    assert_eq!(found(&[wide]), Some((1, 0, false, false)));
    assert_eq!(found(&[wide, narrow]), Some((1, 1, false, false)));
    assert_eq!(found(&[narrow, wide]), Some((1, 1, false, false)));
    let coded = Term::plain(&own, &codes).scaled(&scale);
    assert_eq!(found(&[coded, narrow]), Some((1, 1, true, false)));
    // Two wide terms only turned, with a low term each or none.
    let (turned_w, right) = (bf16(&[3, 128, 64]), bf16(&[3, 16, 64]));
    let (turned, turned_low) = (Term::turned(&own, &turned_w), Term::turned(&low, &right));
    assert_eq!(found(&[turned]), Some((1, 0, false, true)));
    assert_eq!(found(&[turned, turned_low]), Some((1, 1, false, true)));
    assert_eq!(found(&[turned, turned]), Some((2, 0, false, true)));
    let both = [turned, turned_low, turned, turned_low];
    assert_eq!(found(&both), Some((2, 2, false, true)));
    // The order of a kernel.
    let (_, terms) = layout(&both, 12).expect("has a kernel");
    assert!(terms[..2].iter().all(|term| term.w.size() == [3, 128, 64]));
}

#[test]
fn sums_that_have_none() {
    let (x, own, low) = (bf16(&[6, 128]), bf16(&[6, 2, 128]), bf16(&[6, 2, 16]));
    let (w, left, right) = (bf16(&[3, 64, 128]), bf16(&[3, 64, 16]), bf16(&[3, 16, 64]));
    let turned_w = bf16(&[3, 128, 64]);
    let (wide, narrow) = (Term::plain(&x, &w), Term::plain(&low, &left));
    let turned = Term::turned(&own, &turned_w);
    let turned_low = Term::turned(&low, &right);
    for terms in [
        &[][..],
        &[narrow],
        &[wide, wide],
        &[wide, narrow, narrow],
        &[turned, turned, turned],
        &[turned, turned, turned_low],
        &[wide, turned_low],
        // One has a row for two places, the other one for each.
        &[turned, Term::turned(&x, &turned_w)],
    ] {
        assert_eq!(found(terms), None, "{terms:?}");
    }
    let (odd, other) = (bf16(&[3, 96, 128]), of(&[3, 64, 128], Kind::Float));
    let (short, eight) = (bf16(&[6, 8]), bf16(&[3, 64, 8]));
    assert_eq!(found(&[Term::plain(&x, &odd)]), None);
    assert_eq!(found(&[Term::plain(&x, &other)]), None);
    assert_eq!(found(&[wide, Term::plain(&short, &eight)]), None, "a rank of 8");
    let (codes, scale) = (of(&[3, 128, 64], Kind::Int8), of(&[3, 128], Kind::Float));
    assert_eq!(found(&[turned, Term::turned(&own, &codes).scaled(&scale)]), None);
}

#[test]
fn turned_codes_are_unpacked_where_rows_are_more_than_they() {
    let found = |places: i64, int8: bool, turned: bool| {
        let (ids, bounds) = (of(&[places], Kind::Int64), of(&[4], Kind::Int64));
        let routing = Routing { ids: &ids, order: &ids, bounds: &bounds };
        unpacks(Layout { int8, turned, n_wide: 1, n_low: 0 }, &routing, (4096, 64))
    };
    // 3 of 4 bytes: 3 experts with 64 results each.
    assert!(found(145, true, true));
    assert!(!found(144, true, true));
    assert!(!found(145, false, true));
    assert!(!found(145, true, false));
    let (ids, bounds) = (of(&[6], Kind::Int64), of(&[4], Kind::Int64));
    let routing = Routing { ids: &ids, order: &ids, bounds: &bounds };
    let of_two =
        |k| unpacks(Layout { int8: true, turned: true, n_wide: 2, n_low: 0 }, &routing, (k, 64));
    assert!(!of_two(2048));
    assert!(of_two(2112), "wider than a block holds");
}

#[test]
fn gate_and_up_share_their_rows() {
    let (x, copy, low) = (bf16(&[6, 128]), bf16(&[6, 128]), bf16(&[6, 2, 16]));
    let (w, left) = (bf16(&[3, 64, 128]), bf16(&[3, 64, 16]));
    let (wide, narrow) = (Term::plain(&x, &w), Term::plain(&low, &left));
    let takes = |gate: &[Term<'_>], up: &[Term<'_>]| swiglu_layout(gate, up, 12).is_some();
    assert!(takes(&[wide], &[wide]));
    assert!(takes(&[wide, narrow], &[narrow, wide]));
    assert!(!takes(&[wide, narrow], &[wide]));
    assert!(!takes(&[wide], &[Term::plain(&copy, &w)]));
    let (codes, scale) = (of(&[3, 64, 128], Kind::Int8), of(&[3, 64], Kind::Float));
    let coded = Term::plain(&x, &codes).scaled(&scale);
    assert!(takes(&[coded], &[coded]));
    assert!(!takes(&[coded], &[wide]));
    let turned_w = bf16(&[3, 128, 64]);
    let turned = Term::turned(&x, &turned_w);
    assert!(!takes(&[turned], &[turned]));
}
