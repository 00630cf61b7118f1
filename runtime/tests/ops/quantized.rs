use lightc_numerics::int8::{self, Format};
use lightc_runtime::{Device, Kind, Result, Tensor, ops};

use crate::support::{Array, Outcome, Rng, array_of, close_to};

fn read(format: Format, codes: &Tensor, scale: &Tensor, like: &Tensor) -> Result<Tensor> {
    match format {
        Format::Int8 => ops::dequantize(codes, scale, like),
        Format::Quantile8 => ops::dequantize_quantiles(codes, scale, like),
    }
}

#[test]
fn weights_in_eight_bits() -> Outcome {
    let mut rng = Rng::fresh();
    for format in Format::ALL {
        for shape in [&[1][..], &[3, 1], &[2, 5, 64], &[4, 3, 512]] {
            let mut x = rng.normal(shape, Kind::Float);
            let n = shape[shape.len() - 1];
            // A row of zeros among the others.
            x.data.iter_mut().take(n).for_each(|x| *x = 0.0);
            let values: Vec<f32> = x.data.iter().map(|x| *x as f32).collect();
            let want = int8::quantize(format, &values, n).map_err(|e| e.to_string())?;
            let (codes, scale) = ops::quantize(&rng.tensor(&x, Kind::Float), format)?;
            assert_eq!((codes.kind(), scale.kind()), (Kind::Int8, Kind::Float));
            assert_eq!(Vec::<i8>::try_from(&codes.reshape([-1]))?, want.codes);
            assert_eq!(Vec::<f32>::try_from(&scale.reshape([-1]))?, want.scales);

            let exact = Array { shape: shape.to_vec(), data: int8::dequantize(format, &want, n) };
            for (kind, tolerance) in
                [(Kind::Double, 0.0), (Kind::Float, 1e-7), (Kind::BFloat16, 4e-3)]
            {
                let like = Tensor::zeros([1], (kind, Device::Cpu));
                let y = read(format, &codes, &scale, &like)?;
                assert_eq!(y.kind(), kind);
                close_to("dequantize", &y, &exact, tolerance);
            }
            assert!(array_of(&codes).data.iter().all(|code| (-128.0..=127.0).contains(code)));
        }
    }
    Ok(())
}

#[test]
fn a_float_has_one_rounding() -> Outcome {
    let mut rng = Rng::fresh();
    let x = rng.normal(&[8, 64], Kind::Float).tensor(Kind::Float);
    for format in Format::ALL {
        let (codes, scale) = ops::quantize(&x, format)?;
        let wide = Tensor::zeros([1], (Kind::Double, Device::Cpu));
        let once = read(format, &codes, &scale, &wide)?.to_kind(Kind::Float);
        assert!(once.equal(&read(format, &codes, &scale, &x)?));
    }
    Ok(())
}

#[test]
fn adapters_merged_into_codes() -> Outcome {
    let mut rng = Rng::fresh();
    for [e, n, k, rank] in [[1, 1, 1, 1], [2, 3, 5, 4], [3, 8, 64, 16], [2, 4, 16, 0]] {
        let values: Vec<f32> =
            rng.normal(&[e, n, k], Kind::Float).data.iter().map(|x| *x as f32).collect();
        let base = int8::quantize(Format::Int8, &values, k).map_err(|e| e.to_string())?;
        let back = int8::dequantize(Format::Int8, &base, k);
        let (left, right) =
            (rng.normal(&[e, n, rank], Kind::Float), rng.normal(&[e, rank, k], Kind::Float));
        let merged = Array::fill(&[e, n, k], |at| {
            let low = (0..rank).map(|r| left.at(&[at[0], at[1], r]) * right.at(&[at[0], r, at[2]]));
            back[(at[0] * n + at[1]) * k + at[2]] + low.sum::<f64>()
        });
        let merged: Vec<f32> = merged.data.iter().map(|x| *x as f32).collect();
        let want = int8::quantize(Format::Int8, &merged, k).map_err(|e| e.to_string())?;
        let shape = [e, n, k].map(|size| size as i64);
        let codes = Tensor::from_slice(&base.codes).reshape(shape);
        let scale = Tensor::from_slice(&base.scales).reshape(&shape[..2]);
        let [left, right] = [&left, &right].map(|x| x.tensor(Kind::Float));
        let (codes, scale) = ops::merge_adapter(&codes, &scale, &left, &right)?;
        assert_eq!(codes.size(), shape);
        assert_eq!(Vec::<f32>::try_from(&scale.reshape([-1]))?, want.scales);
        // The order of the sum may move the last bit of an f32, and so a code that stands halfway.
        let codes = Vec::<i8>::try_from(&codes.reshape([-1]))?;
        let far = codes.iter().zip(&want.codes).filter(|(a, b)| a.abs_diff(**b) > 1).count();
        let other = codes.iter().zip(&want.codes).filter(|(a, b)| a != b).count();
        assert!(far == 0 && other * 1000 <= codes.len(), "{other} of {}", codes.len());
    }
    Ok(())
}
