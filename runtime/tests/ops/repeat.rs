//! Two runs, and runs on other numbers of threads, give the same bits.

use lightc_runtime::{Kind, Tensor, ops};

use crate::support::{Array, Outcome, Rng, integers, poison};

type Run<'a> = (&'static str, Box<dyn Fn() -> lightc_runtime::Result<Vec<Tensor>> + 'a>);

#[test]
fn bits_repeat() -> Outcome {
    let mut rng = Rng::fresh();
    let kind = Kind::Float;
    let mut draw = |shape: &[usize]| rng.normal(shape, kind).tensor(kind);
    let [b, t, h, k] = [3, 96, 4, 32];
    let (q, key, v, dout) =
        (draw(&[b, t, h, k]), draw(&[b, t, h, k]) * 0.2, draw(&[b, t, h, k]), draw(&[b, t, h, k]));
    let (g, beta) = (draw(&[b, t, h]).abs() * -1.0, draw(&[b, t, h]).sigmoid());
    let (x, dx, w) = (draw(&[b, t, 256]), draw(&[b, t, 256]), draw(&[256, 4]));
    let (mix, dmix) = (draw(&[b, t, 4, 4]), draw(&[b, t, 4, 4]));
    let (score, budget) = (draw(&[b, t, t]), draw(&[b, t]).abs() * 30.0);
    let head = draw(&[500, 256]);
    let one = ops::constant(1.0, &head)?;
    let index = Array::fill(&[b, t, 16], |_| rng.int(-1, 499) as f64);
    let index = integers(&index);
    let targets = index.select(2, 0).clamp_min(0);
    let mask = ops::select_top(&score, &budget, 2, 64)?;
    let (experts, chosen) =
        (rng.normal(&[9, 64, 256], kind).tensor(kind), ops::top(&score.narrow(2, 0, 9), 4)?);
    let runs: Vec<Run<'_>> = vec![
        ("top", Box::new(|| Ok(vec![ops::top(&score, 12)?]))),
        ("expert dot", Box::new(|| Ok(vec![ops::expert_dot(&x, &experts, &chosen)?]))),
        (
            "expert weight grad",
            Box::new(|| {
                let dy = ops::expert_dot(&dx, &experts, &chosen)?;
                Ok(vec![ops::expert_dot_weight_grad(&x, &dy, &chosen, 9)?])
            }),
        ),
        ("take grad", Box::new(|| Ok(vec![ops::take_grad(&chosen, &chosen.to_kind(kind), 2, 9)?]))),
        ("hadamard", Box::new(|| Ok(vec![ops::hadamard(&x, 42, false)?]))),
        ("delta", Box::new(|| Ok(vec![ops::gated_delta_rule(&q, &key, &v, &g, &beta)?]))),
        (
            "delta grad",
            Box::new(|| {
                let d = ops::gated_delta_rule_grad(&q, &key, &v, &g, &beta, &dout)?;
                Ok(vec![d.0, d.1, d.2, d.3, d.4])
            }),
        ),
        ("sinkhorn", Box::new(|| Ok(vec![ops::sinkhorn(&mix, 20, 1e-6)?]))),
        ("sinkhorn grad", Box::new(|| Ok(vec![ops::sinkhorn_grad(&mix, &dmix, 20, 1e-6)?]))),
        ("conv", Box::new(|| Ok(vec![ops::causal_conv(&x, &w)?]))),
        ("conv input", Box::new(|| Ok(vec![ops::causal_conv_input_grad(&dx, &w)?]))),
        ("conv weight", Box::new(|| Ok(vec![ops::causal_conv_weight_grad(&x, &dx, 4)?]))),
        ("rotary", Box::new(|| Ok(vec![ops::rotary(&q, 1, 1e4, false)?]))),
        ("select", Box::new(|| Ok(vec![ops::select_top(&score, &budget, 2, 64)?]))),
        ("gather", Box::new(|| Ok(vec![ops::gather_sum(&head, &index)?]))),
        ("gather grad", Box::new(|| Ok(vec![ops::gather_sum_grad(&index, &x, 500)?]))),
        ("lookup grad", Box::new(|| Ok(vec![ops::lookup_grad(&targets, &x, 500)?]))),
        (
            "attention grad",
            Box::new(|| {
                let d = ops::masked_attention_grad(&q, &key, &v, &mask, &dout)?;
                Ok(vec![d.0, d.1, d.2])
            }),
        ),
        (
            "loss grad",
            Box::new(|| {
                let d = ops::linear_cross_entropy_grad(&x, &head, &targets, &one, 15.0)?;
                Ok(vec![d.0, d.1])
            }),
        ),
    ];
    let before = tch::get_num_threads();
    for (name, run) in &runs {
        let first = run()?;
        // libtorch's own products may depend on the number of threads.
        let others = if ["attention grad", "loss grad"].contains(name) {
            vec![before]
        } else {
            vec![before, 1, 3]
        };
        for threads in others {
            tch::set_num_threads(threads);
            first.iter().for_each(poison);
            let again = run();
            tch::set_num_threads(before);
            for (first, again) in first.iter().zip(&again?) {
                assert!(first.equal(again), "{name} on {threads} threads");
            }
        }
    }
    Ok(())
}
