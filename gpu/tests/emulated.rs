//! Every case of `gpu-test` but the harness's own, with kernels that run on the processor: the text that NVRTC compiles, compared
//! with references in f64, poisoned, twice, in two orders of threads and copies. Needs a C++ compiler and no GPU.

use std::sync::{Mutex, PoisonError};

use lightc_gpu::{Gpu, cases, check};
use lightc_runtime::cuda;

/// The mode of kernels is one of the process.
static ONE: Mutex<()> = Mutex::new(());

/// Cases that hold the noise of whole stages in bf16 against that of libtorch, one draw against another: with the same numbers
/// in every run, so that a change of the code is what turns them red. `lightc-gpu test --emulate` draws afresh.
const NOISY: [&str; 3] = ["stage", "reversible", "mixtures"];

fn green(name: &str) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    cuda::emulate();
    // As `lightc-gpu test --emulate`: tests run beside each other.
    tch::set_num_threads(1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let fresh = || now.map_or(0, |since| i64::from(since.subsec_nanos()));
    let asked = std::env::var("LIGHTC_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = asked.unwrap_or_else(|| if NOISY.contains(&name) { 3 } else { fresh() });
    println!("LIGHTC_TEST_SEED={seed}");
    tch::manual_seed(seed);
    let mut all = cases::all();
    all.retain(|case| case.name() == name);
    assert_eq!(all.len(), 1, "one case is called {name}");
    let gpu = Gpu { ordinal: 0, emulated: true, small: true };
    let mut lines = Vec::new();
    let outcome = check::run(&all, &gpu, &mut |line| lines.push(line.to_owned()));
    let red: Vec<&String> = lines.iter().filter(|line| line.starts_with("RED")).collect();
    assert!(outcome.iter().all(|(_, green)| *green), "{name}: {red:#?}");
}

/// A test per case, so that they run beside each other.
macro_rules! cases {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            green(stringify!($name));
        })*

        #[test]
        fn every_case_is_here() {
            let here = [$(stringify!($name)),*];
            let all = cases::all();
            let missing: Vec<&str> =
                all.iter().map(|case| case.name()).filter(|name| !here.contains(name)).collect();
            // Times and faults of a GPU, which the processor does not have.
            assert_eq!(missing, ["harness"]);
        }
    };
}

cases! {
    gated_delta_rule indexer masked_attention linear_cross_entropy draw gather routing hadamard quantize adapters
    experts optimizer fixed stage reversible mixtures
}
