use lightc_runtime::ops::{self, Routing, Term};
use lightc_runtime::{Kind, Tensor};

use crate::support::{Array, KINDS, Outcome, Rng, array_of, close, close_to, indices, integers};

/// Rows, choices of a row, experts, and two widths; awkward ones first.
const SHAPES: [[usize; 5]; 5] =
    [[1, 1, 1, 1, 1], [1, 3, 2, 4, 5], [5, 1, 3, 4, 1], [6, 2, 9, 3, 4], [37, 4, 5, 16, 24]];

/// Ids of `[rows, choices]`: any, all on one expert, none at all, none on every second expert.
fn some_ids(rng: &mut Rng, [rows, choices, e]: [usize; 3], which: usize) -> Array {
    let one = rng.int(0, e as i64 - 1) as f64;
    Array::fill(&[rows, choices], |_| match which {
        0 => rng.int(-2, e as i64 - 1) as f64,
        1 => one,
        2 => -1.0,
        _ => (rng.int(0, e as i64 - 1) / 2 * 2) as f64,
    })
}

/// A weight, as floats or as codes with scales, and what it stands for.
struct Weight {
    w: Tensor,
    scale: Option<Tensor>,
    value: Array,
    turned: bool,
}

impl Weight {
    /// For sums over `k` that give `n`.
    fn draw(rng: &mut Rng, [e, n, k]: [usize; 3], kind: Kind, turned: bool, codes: bool) -> Weight {
        let shape = if turned { [e, k, n] } else { [e, n, k] };
        if !codes {
            let value = rng.normal(&shape, kind);
            return Weight { w: rng.tensor(&value, kind), scale: None, value, turned };
        }
        // The smallest code is in no weight that was quantized, and has a value all the same.
        let codes = Array::fill(&shape, |_| rng.int(-128, 127) as f64);
        let scale = rng.array(&shape[..2], 0.001, 0.02, Kind::Float);
        let value = Array::fill(&shape, |at| codes.at(at) * scale.at(&at[..2]));
        let w = rng.tensor(&codes, Kind::Double).to_kind(Kind::Int8);
        Weight { w, scale: Some(scale.tensor(Kind::Float)), value, turned }
    }

    fn term<'a>(&'a self, x: &'a Tensor) -> Term<'a> {
        Term { x, w: &self.w, scale: self.scale.as_ref(), turned: self.turned }
    }

    fn at(&self, expert: usize, n: usize, k: usize) -> f64 {
        if self.turned { self.value.at(&[expert, k, n]) } else { self.value.at(&[expert, n, k]) }
    }
}

/// `x` times the weight of each place's expert; x is of rows, or of rows and choices.
fn product(x: &Array, weight: &Weight, ids: &Array, n: usize) -> Array {
    let k = x.shape[x.shape.len() - 1];
    Array::fill(&[ids.shape[0], ids.shape[1], n], |at| {
        let id = ids.at(&at[..2]);
        let row = |c: usize| [&at[..x.shape.len() - 1], &[c]].concat();
        if id < 0.0 {
            return 0.0;
        }
        (0..k).map(|c| x.at(&row(c)) * weight.at(id as usize, at[2], c)).sum()
    })
}

fn plus(a: &Array, b: &Array) -> Array {
    Array::fill(&a.shape, |at| a.at(at) + b.at(at))
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

#[test]
fn places_by_expert() -> Outcome {
    let mut rng = Rng::fresh();
    for ([rows, choices, e, ..], which) in
        SHAPES.into_iter().flat_map(|shape| (0..4).map(move |which| (shape, which)))
    {
        let ids = some_ids(&mut rng, [rows, choices, e], which);
        let (order, bounds) = ops::expert_order(&integers(&ids), e as i64)?;
        let mut want = Vec::new();
        let mut ends = vec![0.0];
        for expert in 0..e {
            want.extend((0..ids.data.len()).filter(|at| ids.data[*at] == expert as f64));
            ends.push(want.len() as f64);
        }
        want.extend((0..ids.data.len()).filter(|at| ids.data[*at] < 0.0));
        assert_eq!((order.kind(), bounds.kind()), (Kind::Int64, Kind::Int64));
        assert_eq!(array_of(&order).data, want.iter().map(|at| *at as f64).collect::<Vec<_>>());
        assert_eq!(array_of(&bounds).data, ends);
        // Other kinds of integers are ids too.
        let (narrow, _) = ops::expert_order(&integers(&ids).to_kind(Kind::Int), e as i64)?;
        assert!(narrow.equal(&order));
    }
    let (order, bounds) = ops::expert_order(&integers(&Array::zeros(&[0, 2])), 3)?;
    assert_eq!((order.numel(), array_of(&bounds).data), (0, vec![0.0; 4]));
    Ok(())
}

#[test]
fn sums_of_routed_products() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for ([rows, choices, e, n, k], which) in
            SHAPES.into_iter().flat_map(|shape| (0..4).map(move |which| (shape, which)))
        {
            let ids = some_ids(&mut rng, [rows, choices, e], which);
            let t_ids = integers(&ids);
            let (order, bounds) = ops::expert_order(&t_ids, e as i64)?;
            let routing = Routing { ids: &t_ids, order: &order, bounds: &bounds };
            // A row that all its places read, and one for each place.
            let (x, own) = (rng.normal(&[rows, k], kind), rng.normal(&[rows, choices, 3], kind));
            let (tx, t_own) = (rng.tensor(&x, kind), rng.tensor(&own, kind));
            for (turned, codes) in [(false, false), (true, false), (false, true), (true, true)] {
                let wide = Weight::draw(&mut rng, [e, n, k], kind, turned, codes);
                let low = Weight::draw(&mut rng, [e, n, 3], kind, turned, false);
                let (first, second) = (product(&x, &wide, &ids, n), product(&own, &low, &ids, n));
                let one = ops::routed_dot(&routing, &[wide.term(&tx)])?;
                close("one term", &one, &first);
                let both = ops::routed_dot(&routing, &[wide.term(&tx), low.term(&t_own)])?;
                close("two terms", &both, &plus(&first, &second));
                assert_eq!(both.kind(), kind);

                let (a, b) = ops::routed_dot_pair(&routing, wide.term(&tx), low.term(&t_own))?;
                close("first of a pair", &a, &first);
                close("second of a pair", &b, &second);

                let up = Weight::draw(&mut rng, [e, n, k], kind, turned, codes);
                let lifted = product(&x, &up, &ids, n);
                let gated = plus(&first, &second);
                let hidden = Array::fill(&gated.shape, |at| silu(gated.at(at)) * lifted.at(at));
                let gate = [wide.term(&tx), low.term(&t_own)];
                let up = [up.term(&tx)];
                let (g, u, h) = ops::routed_swiglu(&routing, &gate, &up)?;
                close("gated", &g, &gated);
                close("lifted", &u, &lifted);
                close("hidden", &h, &hidden);
                let alone = ops::routed_swiglu_hidden(&routing, &gate, &up)?;
                assert!(alone.equal(&h), "hidden alone");
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_of_routed_weights() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for ([rows, choices, e, f, d], which) in
            SHAPES.into_iter().flat_map(|shape| (0..4).map(move |which| (shape, which)))
        {
            let ids = some_ids(&mut rng, [rows, choices, e], which);
            let t_ids = integers(&ids);
            let (order, bounds) = ops::expert_order(&t_ids, e as i64)?;
            let routing = Routing { ids: &t_ids, order: &order, bounds: &bounds };
            let dy = rng.normal(&[rows, choices, f], kind);
            let (x, own) = (rng.normal(&[rows, d], kind), rng.normal(&[rows, choices, d], kind));
            let weight = rng.normal(&[e, f, 2], kind);
            let (mut shared, mut each) = (Array::zeros(&[e, f, d]), Array::zeros(&[e, f, d]));
            for at in indices(&[rows, choices, f, d]) {
                let id = ids.at(&at[..2]);
                if id >= 0.0 {
                    let to = [id as usize, at[2], at[3]];
                    *shared.at_mut(&to) += dy.at(&at[..3]) * x.at(&[at[0], at[3]]);
                    *each.at_mut(&to) += dy.at(&at[..3]) * own.at(&[at[0], at[1], at[3]]);
                }
            }
            let (dy, x, own) =
                (rng.tensor(&dy, kind), rng.tensor(&x, kind), rng.tensor(&own, kind));
            let experts = e as i64;
            close("rows", &ops::routed_weight_grad(&routing, &x, &dy, experts)?, &shared);
            close("places", &ops::routed_weight_grad(&routing, &own, &dy, experts)?, &each);
            let (a, b) = ops::routed_weight_grad_pair(&routing, &own, [&dy, &own], experts)?;
            close("first of a pair", &a, &each);
            let square = ops::routed_weight_grad(&routing, &own, &own, experts)?;
            close("second of a pair", &b, &array_of(&square));
            // An op of both, composed.
            let w = rng.tensor(&weight, kind);
            let (y, grad) = ops::routed_low_back(&routing, &dy, &own, &w, experts)?;
            let alone = ops::routed_dot(&routing, &[Term::turned(&dy, &w)])?;
            assert!(y.equal(&alone), "the product with a gradient");
            close("the gradient with a product", &grad, &each);
            // The other side has a row for all places.
            let turned = ops::routed_weight_grad(&routing, &dy, &x, experts)?;
            close("turned", &turned.transpose(1, 2), &shared);
        }
    }
    Ok(())
}

#[test]
fn narrow_kinds_and_what_is_not_a_number() -> Outcome {
    let mut rng = Rng::fresh();
    let (rows, choices, e, n, k) = (12, 2, 3, 8, 16);
    let ids = some_ids(&mut rng, [rows, choices, e], 0);
    let t_ids = integers(&ids);
    let (order, bounds) = ops::expert_order(&t_ids, e as i64)?;
    let routing = Routing { ids: &t_ids, order: &order, bounds: &bounds };
    let bf16 = |x: &Array| x.tensor(Kind::BFloat16);
    let rounded = |x: &Array| array_of(&bf16(x));
    let mut x = rounded(&rng.normal(&[rows, k], Kind::Float));
    let mut wide = Weight::draw(&mut rng, [e, n, k], Kind::Float, false, false);
    wide.value = rounded(&wide.value);
    wide.w = bf16(&wide.value);
    let want = product(&x, &wide, &ids, n);
    let got = ops::routed_dot(&routing, &[wide.term(&bf16(&x))])?;
    assert_eq!(got.kind(), Kind::BFloat16);
    close_to("bf16", &got, &want, 8e-3);

    // In one row: it stays in the places of that row.
    let bad = rng.size(0, rows - 1);
    *x.at_mut(&[bad, 3]) = f64::NAN;
    let got = array_of(&ops::routed_dot(&routing, &[wide.term(&x.tensor(Kind::BFloat16))])?);
    for at in indices(&got.shape) {
        let told = at[0] == bad && ids.at(&at[..2]) >= 0.0;
        assert_eq!(got.at(&at).is_nan(), told, "{at:?}");
    }
    Ok(())
}
