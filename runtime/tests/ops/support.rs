//! Random arrays, comparison, and two other ways to a gradient.

use std::time::{SystemTime, UNIX_EPOCH};

use lightc_runtime::{Device, Kind, Tensor};

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The kinds that every op is tested in.
pub(crate) const KINDS: [Kind; 2] = [Kind::Double, Kind::Float];

/// Splitmix64.
pub(crate) struct Rng(u64);

impl Rng {
    /// Seeded by `LIGHTC_TEST_SEED` or the clock; the seed is printed, which
    /// the test harness shows where the test fails.
    pub(crate) fn fresh() -> Rng {
        let given = std::env::var("LIGHTC_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let clock = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(1, |now| now.as_nanos() as u64)
        };
        let seed = given.unwrap_or_else(clock);
        println!("LIGHTC_TEST_SEED={seed}");
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// An integer in `low ..= high`.
    pub(crate) fn int(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    pub(crate) fn size(&mut self, low: usize, high: usize) -> usize {
        self.int(low as i64, high as i64) as usize
    }

    /// A number in `low .. high`.
    pub(crate) fn real(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of the kind's precision.
    pub(crate) fn array(&mut self, shape: &[usize], low: f64, high: f64, kind: Kind) -> Array {
        Array::fill(shape, |_| rounded(self.real(low, high), kind))
    }

    pub(crate) fn normal(&mut self, shape: &[usize], kind: Kind) -> Array {
        self.array(shape, -1.7, 1.7, kind)
    }

    /// The array as a tensor, in row-major order or some other memory layout.
    pub(crate) fn tensor(&mut self, x: &Array, kind: Kind) -> Tensor {
        let tensor = x.tensor(kind);
        let rank = tensor.dim() as i64;
        match self.int(0, 2) {
            0 => {
                let reversed: Vec<i64> = (0..rank).rev().collect();
                tensor.permute(&reversed).contiguous().permute(&reversed)
            }
            1 if rank > 0 => {
                // A slice out of a tensor of NaN.
                let last = tensor.size()[rank as usize - 1];
                let nan = Tensor::full_like(&tensor, f64::NAN);
                Tensor::cat(&[&nan, &tensor, &nan], -1).narrow(-1, last, last)
            }
            _ => tensor,
        }
    }
}

fn rounded(x: f64, kind: Kind) -> f64 {
    if kind == Kind::Float { f64::from(x as f32) } else { x }
}

/// A dense array of f64 in row-major order.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

impl Array {
    pub(crate) fn zeros(shape: &[usize]) -> Array {
        Array { shape: shape.to_vec(), data: vec![0.0; shape.iter().product()] }
    }

    /// The element at each index.
    pub(crate) fn fill(shape: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Array {
        let mut all = Array::zeros(shape);
        for (index, at) in indices(shape).into_iter().enumerate() {
            all.data[index] = f(&at);
        }
        all
    }

    fn place(&self, at: &[usize]) -> usize {
        assert_eq!(at.len(), self.shape.len());
        at.iter().zip(&self.shape).fold(0, |place, (&i, &n)| {
            assert!(i < n, "{at:?} in {:?}", self.shape);
            place * n + i
        })
    }

    pub(crate) fn at(&self, at: &[usize]) -> f64 {
        self.data[self.place(at)]
    }

    pub(crate) fn at_mut(&mut self, at: &[usize]) -> &mut f64 {
        let place = self.place(at);
        &mut self.data[place]
    }

    pub(crate) fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    pub(crate) fn tensor(&self, kind: Kind) -> Tensor {
        let shape: Vec<i64> = self.shape.iter().map(|&n| n as i64).collect();
        Tensor::from_slice(&self.data).reshape(&shape).to_kind(kind)
    }
}

/// All indices of a shape in row-major order.
pub(crate) fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &n in shape {
        all = all
            .into_iter()
            .flat_map(|at| (0..n).map(move |i| [at.as_slice(), &[i]].concat()))
            .collect();
    }
    all
}

pub(crate) fn array_of(x: &Tensor) -> Array {
    let data = Vec::<f64>::try_from(x.to_kind(Kind::Double).contiguous().reshape([-1]));
    Array { shape: x.size().iter().map(|&n| n as usize).collect(), data: data.unwrap_or_default() }
}

pub(crate) fn close_to(name: &str, got: &Tensor, want: &Array, tolerance: f64) {
    let got = array_of(got);
    assert_eq!(got.shape, want.shape, "{name}: shape");
    let scale = want.data.iter().fold(1.0f64, |scale, x| scale.max(x.abs()));
    for (place, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
        let good = (got - want).abs() <= tolerance * scale || got == want;
        assert!(good, "{name}: element {place} is {got}, expected {want} (scale {scale})");
    }
}

/// Within 1e-10 in f64 and 1e-5 in f32 of the array's scale.
pub(crate) fn close(name: &str, got: &Tensor, want: &Array) {
    let tolerance = if got.kind() == Kind::Float { 1e-5 } else { 1e-10 };
    close_to(name, got, want, tolerance);
}

pub(crate) fn same(name: &str, got: &Tensor, want: &Tensor) {
    close(name, got, &array_of(want));
}

/// Gradients of `sum(f(inputs) * dy)` by libtorch, in f64.
pub(crate) fn autograd(
    inputs: &[&Array],
    dy: &Array,
    f: impl Fn(&[Tensor]) -> lightc_runtime::Result<Tensor>,
) -> Result<Vec<Tensor>, Box<dyn std::error::Error>> {
    let leaves: Vec<Tensor> =
        inputs.iter().map(|x| x.tensor(Kind::Double).set_requires_grad(true)).collect();
    let loss = (f(&leaves)? * dy.tensor(Kind::Double)).sum(Kind::Double);
    Ok(Tensor::f_run_backward(&[loss], &leaves, false, false)?)
}

/// Central differences of `sum(f(inputs) * dy)` at a few random elements of
/// each input, against `gradients`.
pub(crate) fn differences(
    name: &str,
    rng: &mut Rng,
    inputs: &[&Array],
    dy: &Array,
    gradients: &[&Tensor],
    f: impl Fn(&[Tensor]) -> lightc_runtime::Result<Tensor>,
) -> Outcome {
    const STEP: f64 = 1e-5;
    let dy = dy.tensor(Kind::Double);
    for (which, gradient) in gradients.iter().enumerate() {
        let gradient = array_of(gradient);
        for _ in 0..12 {
            let place = rng.size(0, inputs[which].data.len() - 1);
            let mut sides = [0.0; 2];
            for (side, sign) in sides.iter_mut().zip([1.0, -1.0]) {
                let mut moved: Vec<Array> = inputs.iter().map(|&x| x.clone()).collect();
                moved[which].data[place] += sign * STEP;
                let moved: Vec<Tensor> = moved.iter().map(|x| x.tensor(Kind::Double)).collect();
                *side = (f(&moved)? * &dy).sum(Kind::Double).double_value(&[]);
            }
            let slope = (sides[0] - sides[1]) / (2.0 * STEP);
            let got = gradient.data[place];
            let scale = gradient.data.iter().fold(1.0f64, |scale, x| scale.max(x.abs()));
            assert!(
                (slope - got).abs() < 1e-6 * scale,
                "{name}: input {which} element {place}: gradient {got}, difference {slope}"
            );
        }
    }
    Ok(())
}

pub(crate) fn bools(x: &Array) -> Tensor {
    x.tensor(Kind::Double).ne(0.0)
}

pub(crate) fn integers(x: &Array) -> Tensor {
    x.tensor(Kind::Int64)
}

/// Leaves freed memory full of NaN for the next allocation of this size.
pub(crate) fn poison(like: &Tensor) {
    if !matches!(like.kind(), Kind::Double | Kind::Float) {
        return;
    }
    for _ in 0..4 {
        let _dropped = Tensor::full(like.size(), f64::NAN, (like.kind(), Device::Cpu));
    }
}
