//! Shared by the cross-crate tests: stages from `models/`, random tensors, and the way between
//! the interpreter's arrays and libtorch's tensors.

use lightc_codegen::interp::Tensors;
use lightc_codegen::ops::Array;
use lightc_codegen::pipeline::{Compiled, compile};
use lightc_dsl::diag::Diag;
use lightc_dsl::source::{MapLoader, Sources};
use lightc_numerics::int8;
use lightc_runtime::{Format, Init, ParamSpec, Stage, StateSpec, Storage, program};
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All sources under `models/`, named from the repository's root.
pub fn models() -> MapLoader {
    let mut loader = MapLoader::default();
    let mut folders = vec![root().join("models")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("models/ is readable") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "llm") {
                let name = path.strip_prefix(root()).expect("below the root");
                let text = std::fs::read_to_string(&path).expect("a source is readable");
                loader = loader.with(name.display().to_string(), text);
            }
        }
    }
    loader
}

/// Compiles a stage of a source; its diagnostics otherwise.
pub fn compile_stage(
    loader: &MapLoader,
    source: &str,
    stage: &str,
) -> Result<Compiled, (Vec<Diag>, Sources)> {
    use lightc_dsl::source::Loader;
    let (name, text) = loader.load("", source).expect("the source is known");
    let (program, sources, diags) = lightc_dsl::resolve::load_program(&name, &text, loader);
    if !diags.is_empty() {
        return Err((diags, sources));
    }
    let model = program.resolve_stage(stage).map_err(|d| (d, sources.clone()))?;
    compile(&model).map_err(|d| (d, sources))
}

/// Random numbers for tests: a stream per seed.
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Random(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A seed that differs from run to run, printed so that a failure can be repeated with
    /// `LIGHTC_TEST_SEED`.
    pub fn fresh_seed() -> u64 {
        let seed = match std::env::var("LIGHTC_TEST_SEED") {
            Ok(text) => text.parse().expect("LIGHTC_TEST_SEED is a whole number"),
            Err(_) => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.map_or(0, |d| d.as_nanos() as u64) % 1_000_000_007
            }
        };
        println!("LIGHTC_TEST_SEED={seed}");
        seed
    }

    /// Uniform on [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Uniform on 0, 1, .., n - 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    /// An array drawn element by element.
    pub fn array(&mut self, shape: &[usize], mut draw: impl FnMut(&mut Self) -> f64) -> Array {
        let count = shape.iter().product();
        let data: Vec<f64> = (0..count).map(|_| draw(self)).collect();
        ArrayD::from_shape_vec(shape.to_vec(), data).expect("the count fits")
    }
}

/// An array as a libtorch tensor of a kind.
pub fn to_tensor(array: &Array, kind: Kind) -> Tensor {
    let shape: Vec<i64> = array.shape().iter().map(|n| *n as i64).collect();
    let data: Vec<f64> = array.iter().copied().collect();
    Tensor::f_from_slice(&data)
        .and_then(|t| t.f_reshape(shape))
        .and_then(|t| t.f_to_kind(kind))
        .and_then(|t| t.f_to_device(Device::Cpu))
        .expect("a tensor from an array")
}

/// A libtorch tensor as an array.
pub fn to_array(tensor: &Tensor) -> Array {
    let shape: Vec<usize> = tensor.size().iter().map(|n| *n as usize).collect();
    let flat = tensor
        .f_to_kind(Kind::Double)
        .and_then(|t| t.f_contiguous())
        .and_then(|t| t.f_reshape([-1]))
        .expect("a flat tensor");
    let data = Vec::<f64>::try_from(&flat).expect("numbers");
    ArrayD::from_shape_vec(shape, data).expect("the count fits")
}

/// The largest magnitude in an array.
pub fn largest(array: &Array) -> f64 {
    array
        .iter()
        .fold(f64::MIN_POSITIVE, |m, x| if x.is_nan() { f64::INFINITY } else { m.max(x.abs()) })
}

/// The largest difference of two arrays of one shape; infinite where either is not a number.
pub fn worst_difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape(), "shapes differ");
    a.iter().zip(b).fold(0.0f64, |m, (x, y)| {
        let d = (x - y).abs();
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}

/// A value for every parameter: its init law, widened so that no path is nearly dead.
pub fn random_params(specs: &[ParamSpec], random: &mut Random) -> Tensors {
    let mut tensors = Tensors::new();
    for spec in specs {
        if spec.storage == Storage::Scale {
            continue;
        }
        let shape: Vec<usize> = spec.shape.iter().map(|n| *n as usize).collect();
        let array = match spec.init {
            Init::Zeros => random.array(&shape, |r| 0.1 * r.normal()),
            Init::Ones => random.array(&shape, |r| 1.0 + 0.1 * r.normal()),
            Init::Constant(value) => random.array(&shape, |r| value + 0.1 * r.normal()),
            Init::Normal { std } => {
                let fan = (*shape.last().unwrap_or(&1) as f64).sqrt();
                random.array(&shape, |r| std.max(0.5 / fan) * r.normal())
            }
            Init::Uniform { low, high } => {
                random.array(&shape, |r| low + (high - low) * r.uniform())
            }
            Init::LogUniform { high, .. } => {
                random.array(&shape, |r| (high * (0.02 + 0.2 * r.uniform())).ln())
            }
        };
        match spec.storage {
            Storage::Codes(format) => quantize(&mut tensors, spec.path, format, &array),
            _ => drop(tensors.insert(spec.path.to_owned(), array)),
        }
    }
    tensors
}

/// Adds codes and scales of a quantized parameter, and, at its path in the source, the values that
/// they stand for.
fn quantize(tensors: &mut Tensors, codes_path: &str, format: Format, array: &Array) {
    let path = codes_path.strip_suffix(".codes").expect("codes have their path");
    let values: Vec<f32> = array.iter().map(|x| *x as f32).collect();
    let n = array.shape().last().copied().unwrap_or(1);
    let quantized = int8::quantize(format, &values, n).expect("the draws are finite");
    let of = |shape: &[usize], data: Vec<f64>| {
        ArrayD::from_shape_vec(shape.to_vec(), data).expect("the count fits")
    };
    let rows = &array.shape()[..array.ndim() - 1];
    let codes = quantized.codes.iter().map(|code| f64::from(*code)).collect();
    let scales = quantized.scales.iter().map(|scale| f64::from(*scale)).collect();
    let meant = int8::dequantize(format, &quantized, n);
    let _ = tensors.insert(codes_path.to_owned(), of(array.shape(), codes));
    let _ = tensors.insert(format!("{path}.scale"), of(rows, scales));
    let _ = tensors.insert(path.to_owned(), of(array.shape(), meant));
}

/// Start values of states.
pub fn start_states(specs: &[StateSpec]) -> Tensors {
    let array = |spec: &StateSpec| {
        let shape: Vec<usize> = spec.shape.iter().map(|n| *n as usize).collect();
        (spec.path.to_owned(), ArrayD::from_elem(shape, spec.start))
    };
    specs.iter().map(array).collect()
}

/// Runs the program of a stage with arguments, as its generated crate does.
pub fn run(stage: &dyn Stage, args: &[&str]) {
    let name = stage.name();
    let words = std::iter::once(name).chain(args.iter().copied()).map(OsString::from);
    assert_eq!(program::run(stage, words), 0, "{name} {}", args.join(" "));
}

/// Shards of real text in `folder/shards`, with the vocabulary of a stage: every `.llm` source, every
/// page of the book, and the compiler.
pub fn prepare(stage: &dyn Stage, folder: &Path) {
    let mut documents = Vec::new();
    let mut folders = vec![root().join("models"), root().join("docs"), root().join("codegen/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder is readable") {
            let path = entry.expect("an entry").path();
            let extension = path.extension().and_then(|e| e.to_str());
            if path.is_dir() {
                folders.push(path);
            } else if matches!(extension, Some("llm" | "md" | "rs")) {
                documents.push(path.display().to_string());
            }
        }
    }
    documents.sort();
    let list = folder.join("files.txt");
    std::fs::write(&list, documents.join("\n")).expect("the list is written");
    let text = |path: &Path| path.to_str().expect("the path is UTF-8").to_owned();
    let (list, shards) = (text(&list), text(&folder.join("shards")));
    let words = ["prepare", "--files-from", &list, "--out", &shards, "--held-out-every", "10"];
    run(stage, &words);
}
