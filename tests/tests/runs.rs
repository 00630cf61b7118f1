//! Kernels that go from row to row, on the processor: whatever a block has of a sequence, its rows have the same bits, and they
//! are what interp says. Rows under way are copied several rows before they are computed, so runs here are shorter and longer than
//! that, and sequences end within what a block has.

use lightc_codegen::interp::{Store, run};
use lightc_codegen::ir::{Module as Ir, text, verify};
use lightc_codegen::ops::Array;
use lightc_codegen::rows::{Plans, describe};
use lightc_runtime::cuda::{self, Arg, Kernel, Module};
use lightc_tests::{Random, largest, to_array, to_tensor, worst_difference};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// Sequences and rows of each.
const B: i64 = 3;
const T: i64 = 37;
const ROWS: i64 = B * T;

/// A function of inputs with axes `[b, t, ..]`, in whose nodes CHANNELS and TAPS are numbers.
struct Case {
    inputs: &'static [&'static str],
    nodes: &'static str,
    returned: &'static str,
    channels: i64,
    taps: i64,
}

/// Steps behind a row and ahead of it, an input of the row itself and a number of each head in it.
const STEPS: Case = Case {
    inputs: &[
        "act[e=CHANNELS, taps=TAPS]",
        "act[b, t, e=CHANNELS]",
        "act[b, t, e=CHANNELS]",
        "act[b, t, e=CHANNELS]",
        "f32[b, t, h=16]",
    ],
    nodes: "  %5 = causal_conv time=t channel=e taps=taps (%1, %0) : act[b, t, e=CHANNELS]
  %6 = causal_conv_input_grad time=t channel=e taps=taps (%2, %0) : act[b, t, e=CHANNELS]
  %7 = add (%5, %6) : act[b, t, e=CHANNELS]
  %8 = mul (%7, %3) : act[b, t, e=CHANNELS]
  %9 = cast to=f32 (%8) : f32[b, t, e=CHANNELS]
  %10 = split axis=e into=<h=16, k=PART> (%9) : f32[b, t, h=16, k=PART]
  %11 = broadcast axes=<b, t, h=16, k=PART> (%4) : f32[b, t, h=16, k=PART]
  %12 = mul (%10, %11) : f32[b, t, h=16, k=PART]
",
    returned: "%12",
    channels: 2048,
    taps: 4,
};

/// One input alone, of which twice as many rows are under way as the text has in a row.
const ALONE: Case = Case {
    inputs: &["act[e=CHANNELS, taps=TAPS]", "act[b, t, e=CHANNELS]"],
    nodes: "  %2 = causal_conv time=t channel=e taps=taps (%1, %0) : act[b, t, e=CHANNELS]
  %3 = silu (%2) : act[b, t, e=CHANNELS]
",
    returned: "%3",
    channels: 2048,
    taps: 4,
};

/// What the backward of an entrance does: sums of rows wait for later rows.
const BACKWARD: Case = Case {
    inputs: &["act[e=CHANNELS, taps=TAPS]", "act[b, t, e=CHANNELS]", "act[b, t, e=CHANNELS]", "act[b, t, e=CHANNELS]"],
    nodes: "  %4 = mul (%2, %3) : act[b, t, e=CHANNELS]
  %5 = causal_conv_input_grad time=t channel=e taps=taps (%4, %0) : act[b, t, e=CHANNELS]
  %6 = causal_conv_weight_grad time=t channel=e taps=<taps=TAPS> (%1, %4) : act[e=CHANNELS, taps=TAPS]
",
    returned: "%5, weights: %6",
    channels: 2048,
    taps: 4,
};

/// Sums of two inputs over the channels of a head, and a sum of what comes of them: two rows at a time.
const SUMS: Case = Case {
    inputs: &[
        "act[e=CHANNELS, taps=TAPS]",
        "act[b, t, e=CHANNELS]",
        "act[b, t, e=CHANNELS]",
        "f32[b, t, h=16]",
    ],
    nodes: "  %4 = causal_conv time=t channel=e taps=taps (%1, %0) : act[b, t, e=CHANNELS]
  %5 = split axis=e into=<h=16, k=PART> (%4) : act[b, t, h=16, k=PART]
  %6 = cast to=f32 (%5) : f32[b, t, h=16, k=PART]
  %7 = square (%6) : f32[b, t, h=16, k=PART]
  %8 = mean over=[k] (%7) : f32[b, t, h=16]
  %9 = causal_conv_input_grad time=t channel=e taps=taps (%2, %0) : act[b, t, e=CHANNELS]
  %10 = split axis=e into=<h=16, k=PART> (%9) : act[b, t, h=16, k=PART]
  %11 = cast to=f32 (%10) : f32[b, t, h=16, k=PART]
  %12 = square (%11) : f32[b, t, h=16, k=PART]
  %13 = mean over=[k] (%12) : f32[b, t, h=16]
  %14 = mul (%13, %3) : f32[b, t, h=16]
  %15 = mul (%6, %8) : f32[b, t, h=16, k=PART]
  %16 = mul (%11, %14) : f32[b, t, h=16, k=PART]
  %17 = mul (%15, %16) : f32[b, t, h=16, k=PART]
  %18 = mean over=[k] (%17) : f32[b, t, h=16]
",
    returned: "%8, other: %15, both: %18",
    channels: 2048,
    taps: 4,
};

/// The same of a backward: sums of rows wait for later rows, and those of its weights need steps that the row beside has
/// moved on.
const BACKWARD_SUMS: Case = Case {
    inputs: &[
        "act[e=CHANNELS, taps=TAPS]",
        "act[b, t, e=CHANNELS]",
        "act[b, t, h=16, k=PART]",
        "f32[b, t, h=16]",
    ],
    nodes: "  %4 = causal_conv time=t channel=e taps=taps (%1, %0) : act[b, t, e=CHANNELS]
  %5 = split axis=e into=<h=16, k=PART> (%4) : act[b, t, h=16, k=PART]
  %6 = cast to=f32 (%5) : f32[b, t, h=16, k=PART]
  %7 = cast to=f32 (%2) : f32[b, t, h=16, k=PART]
  %8 = mul (%6, %7) : f32[b, t, h=16, k=PART]
  %9 = mean over=[k] (%8) : f32[b, t, h=16]
  %10 = mul (%9, %3) : f32[b, t, h=16]
  %11 = mul (%6, %10) : f32[b, t, h=16, k=PART]
  %12 = add (%11, %7) : f32[b, t, h=16, k=PART]
  %13 = cast to=act (%12) : act[b, t, h=16, k=PART]
  %14 = merge axes=[h, k] into=e (%13) : act[b, t, e=CHANNELS]
  %15 = causal_conv_input_grad time=t channel=e taps=taps (%14, %0) : act[b, t, e=CHANNELS]
  %16 = causal_conv_weight_grad time=t channel=e taps=<taps=TAPS> (%1, %14) : act[e=CHANNELS, taps=TAPS]
",
    returned: "%15, weights: %16",
    channels: 2048,
    taps: 4,
};

impl Case {
    fn fill(&self, text: &str) -> String {
        text.replace("CHANNELS", &self.channels.to_string())
            .replace("TAPS", &self.taps.to_string())
            .replace("PART", &(self.channels / 16).to_string())
    }

    fn module(&self) -> Ir {
        let inputs = self.inputs.iter().enumerate();
        let inputs = inputs.map(|(n, ty)| format!("  %{n} = input name=\"i{n}\" () : {ty}\n"));
        let text = format!(
            "module main entry @Main\n\nfunc @Main {{\n{}{}  return {}\n}}\n",
            inputs.collect::<String>(),
            self.nodes,
            self.returned
        );
        let source = self.fill(&text);
        let module = text::parse(&source).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
        assert_eq!(verify::verify(&module), [], "{source}");
        module
    }

    /// An input of these axes, as the kernel can read it.
    fn draw(&self, ty: &str, random: &mut Random) -> (Array, Kind) {
        let ty = self.fill(ty);
        let (dtype, axes) = ty.trim_end_matches(']').split_once('[').unwrap();
        let size = |axis: &str| match axis {
            "b" => B as usize,
            "t" => T as usize,
            _ => axis.split_once('=').unwrap().1.parse().unwrap(),
        };
        let shape: Vec<usize> = axes.split(", ").map(size).collect();
        let kind = if dtype == "act" { Kind::BFloat16 } else { Kind::Float };
        let drawn = to_tensor(&random.array(&shape, Random::normal), kind);
        (to_array(&drawn.to_kind(Kind::Double)), kind)
    }
}

/// The only kernel of a module.
struct Launch {
    kernel: &'static Kernel,
    told: Value,
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

impl Launch {
    fn of(module: &Ir) -> Launch {
        let told = describe(module);
        assert_eq!(told.as_array().unwrap().len(), 1, "{told:#}");
        let told = told[0].clone();
        assert_eq!(told["groups"], 1, "its rows follow each other");
        let text = leak(Plans::of(module).text(module));
        let source = Box::leak(Box::new(Module { name: "runs", source: text }));
        let kernel = Box::leak(Box::new(Kernel {
            module: source,
            entry: leak(told["entry"].as_str().unwrap().to_owned()),
            origin: "a test",
            threads: told["threads"].as_u64().unwrap() as u32,
            shared_bytes: told["shared"].as_u64().unwrap() as u32,
        }));
        Launch { kernel, told }
    }

    fn number(&self, value: &Value) -> i64 {
        value.as_i64().unwrap()
    }

    /// What it writes, and sums over rows, with so many rows of a block.
    fn run(&self, inputs: &[Tensor], span: i64) -> (Vec<Tensor>, Vec<Tensor>) {
        let told = |key: &str| self.told[key].as_array().unwrap().clone();
        let blocks = (ROWS + span - 1) / span;
        let given = told("inputs").into_iter().map(|v| &inputs[self.number(&v["id"]) as usize]);
        let given: Vec<&Tensor> = given.collect();
        let poisoned = |shape: &[i64], kind| Tensor::full(shape, f64::NAN, (kind, Device::Cpu));
        let written = told("writes").into_iter().map(|value| {
            let axes = value["axes"].as_array().unwrap().clone();
            let shape = axes.iter().map(|axis| match axis[1].as_str().unwrap() {
                "b" => B,
                "t" => T,
                n => n.parse().unwrap(),
            });
            let kind = if value["dtype"] == "act" { Kind::BFloat16 } else { Kind::Float };
            poisoned(&shape.collect::<Vec<_>>(), kind)
        });
        let written: Vec<Tensor> = written.collect();
        let sums = told("sums").into_iter().map(|sum| {
            let lines = blocks * self.number(&sum["parts"]) * self.number(&sum["outer"]);
            poisoned(&[lines, self.number(&sum["columns"])], Kind::Float)
        });
        let sums: Vec<Tensor> = sums.collect();
        let mut args: Vec<Arg<'_>> = given.into_iter().map(Arg::Tensor).collect();
        args.extend(written.iter().chain(&sums).map(Arg::Tensor));
        args.extend([Arg::I32(ROWS as i32), Arg::I32(span as i32)]);
        args.extend(
            told("symbols").iter().map(|name| Arg::I32(if name == "b" { B } else { T } as i32)),
        );
        let tiles = self.number(&self.told["tiles"]) as u32;
        cuda::launch(self.kernel, [blocks as u32, tiles, 1], &args).unwrap();
        let axis: &[i64] = &[0];
        (
            written,
            sums.iter().map(|parts| parts.sum_dim_intlist(axis, false, Kind::Float)).collect(),
        )
    }
}

/// Runs a case with blocks of few and of many rows, each in both orders of the emulator.
fn same_in_all_blocks(case: &Case, under_way: u64) {
    cuda::emulate();
    let mut random = Random::new(Random::fresh_seed());
    let module = case.module();
    let launch = Launch::of(&module);
    assert_eq!(launch.told["shared"], under_way);
    let drawn: Vec<(Array, Kind)> =
        case.inputs.iter().map(|ty| case.draw(ty, &mut random)).collect();
    let tensors: Vec<Tensor> = drawn.iter().map(|(x, kind)| to_tensor(x, *kind)).collect();
    let arrays: Vec<Array> = drawn.into_iter().map(|(x, _)| x).collect();
    let defined = run(&module, &arrays, &Store::default()).unwrap().outputs;
    let (rows, sums) = launch.run(&tensors, 1);
    assert_eq!(rows.len() + sums.len(), defined.len());
    for (found, wanted) in rows.iter().chain(&sums).zip(&defined) {
        let found = to_array(&found.to_kind(Kind::Double));
        let found = found.into_shape_with_order(wanted.shape()).unwrap();
        let off = worst_difference(&found, wanted);
        assert!(off < 0.02 * largest(wanted), "off by {off:e} of {:e}", largest(wanted));
    }
    for span in [2, 3, 4, 5, 6, 8, 9, 12, 13, 36, 37, 38, 74, ROWS] {
        for _ in 0..2 {
            let (again, sums_again) = launch.run(&tensors, span);
            for (one, other) in rows.iter().zip(&again) {
                assert!(one.equal(other), "{span} rows of a block give other bits");
            }
            for (one, other) in sums.iter().zip(&sums_again) {
                let off = (one - other).abs().max().double_value(&[]);
                assert!(off < 1e-4, "{span} rows of a block give sums that are off by {off:e}");
            }
        }
    }
}

/// Shared memory of a block of 128 threads that have so many words of each of so many rows under way.
fn words(rows: u64, words: u64) -> u64 {
    rows * words * 4 * 128
}

#[test]
fn steps_behind_and_ahead() {
    same_in_all_blocks(&STEPS, words(4, 13));
}

#[test]
fn sums_that_wait_for_later_rows() {
    same_in_all_blocks(&BACKWARD, words(4, 6));
}

#[test]
fn more_rows_under_way_than_the_text_has() {
    same_in_all_blocks(&ALONE, words(8, 4));
    same_in_all_blocks(&Case { taps: 3, ..ALONE }, words(6, 4));
}

/// Rows in the text are as many as taps.
#[test]
fn three_taps() {
    same_in_all_blocks(&Case { taps: 3, ..STEPS }, words(3, 13));
    same_in_all_blocks(&Case { taps: 3, ..BACKWARD }, words(6, 6));
}

/// Where the last threads of a row have no lane, steps are read a row ahead to registers.
#[test]
fn ragged_rows_are_not_under_way() {
    same_in_all_blocks(&Case { channels: 2112, ..STEPS }, 0);
    same_in_all_blocks(&Case { channels: 2112, ..BACKWARD }, 0);
}

/// Two rows are beside each other, the first of an odd number alone, with a place of its own. Rows in the text are one or
/// two more than the taps.
#[test]
fn two_rows_at_a_time() {
    same_in_all_blocks(&SUMS, words(7, 9));
    same_in_all_blocks(&BACKWARD_SUMS, words(7, 5));
    // A ring has twice as many rows as the text where these are too few.
    for (taps, sums, backward) in [(2, words(5, 9), words(9, 9)), (3, words(9, 9), words(9, 5))] {
        same_in_all_blocks(&Case { taps, ..SUMS }, sums);
        same_in_all_blocks(&Case { taps, ..BACKWARD_SUMS }, backward);
    }
}
