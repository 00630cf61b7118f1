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
