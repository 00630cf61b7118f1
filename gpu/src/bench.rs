//! Times of kernels beside what the GPU can do and what others need.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use lightc_runtime::cuda::{self, Spread, Time};
use lightc_runtime::{Kind, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::Gpu;

/// What the GPU reaches in this run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ceilings {
    /// A copy of 2 GiB, bytes read and written, in GB/s.
    pub copy_gbs: f64,
    /// A bf16 product of 8192 x 8192 matrices, in TFLOP/s.
    pub product_tflops: f64,
}

impl Ceilings {
    /// Measures both.
    ///
    /// # Errors
    /// libtorch's or the driver's.
    pub fn measure(gpu: &Gpu) -> Result<Ceilings> {
        let on = |kind| (kind, gpu.device());
        let from = Tensor::f_zeros([1i64 << 31], on(Kind::Uint8))?;
        let mut to = Tensor::f_empty([1i64 << 31], on(Kind::Uint8))?;
        let copy = time(gpu, 11, &mut || Ok(to.f_copy_(&from)?))?;
        drop((from, to));
        let (x, y) = (gpu.normal_bf16(&[8192, 8192])?, gpu.normal_bf16(&[8192, 8192])?);
        let z = Tensor::f_empty([8192, 8192], on(Kind::BFloat16))?;
        let product = time(gpu, 21, &mut || Ok(x.f_mm_out(&z, &y).map(|_| ())?))?;
        Ok(Ceilings {
            copy_gbs: (2u64 << 31) as f64 / copy.median_ms / 1e6,
            product_tflops: 2.0 * 8192f64.powi(3) / product.median_ms / 1e9,
        })
    }

    /// Milliseconds that this many operations and bytes take at least.
    fn floor_ms(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.product_tflops / 1e9).max(bytes / self.copy_gbs / 1e6)
    }
}

/// How long a GPU rests before it is timed. At its power limit it lowers its clocks, and what is timed behind a long
/// product would seem slower than the same at the top of a table: by 10% for products of 2.5 ms on an H200.
const REST: Duration = Duration::from_millis(250);

/// The median of several runs with an empty second-level cache, after a [`REST`].
///
/// # Errors
/// Those of the work, or the driver's.
pub fn time(gpu: &Gpu, repeats: u32, work: &mut dyn FnMut() -> Result<()>) -> Result<Spread> {
    std::thread::sleep(REST);
    cuda::spread(gpu.ordinal, &Time { repeats: repeats + 1, cold: true }, work)
}

/// What was measured of a kernel.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The kernel.
    pub name: String,
    /// Its size.
    pub shape: String,
    /// The times.
    pub spread: Spread,
    /// Operations that its tensor cores must do.
    pub flops: f64,
    /// Bytes that it must move to or from memory.
    pub bytes: f64,
    /// How the rows of peers that do the same begin.
    pub peers: &'static [&'static str],
}

/// A row of what `peer_bench.py --json` writes.
#[derive(Debug, Clone, Deserialize)]
struct Peer {
    op: String,
    ms: f64,
}

/// Times of others on the same machine, by name.
#[derive(Debug, Clone, Default)]
pub struct Peers(BTreeMap<String, f64>);

impl Peers {
    /// Reads the file that `peer_bench.py --json` wrote.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else, in words.
    pub fn read(path: &Path) -> std::result::Result<Peers, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("reading {}: {error}", path.display()))?;
        Peers::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(text: &str) -> std::result::Result<Peers, String> {
        let rows: Vec<Peer> = serde_json::from_str(text)
            .map_err(|error| format!("not what peer_bench.py --json writes: {error}"))?;
        Ok(Peers(rows.into_iter().map(|row| (row.op, row.ms)).collect()))
    }

    /// The fastest peer whose name begins with one of these.
    fn best(&self, starts: &[&str]) -> Option<(&str, f64)> {
        let of = self.0.iter().filter(|(op, _)| starts.iter().any(|start| op.starts_with(start)));
        of.map(|(op, ms)| (op.as_str(), *ms)).min_by(|x, y| x.1.total_cmp(&y.1))
    }
}

/// A row of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    kernel: String,
    shape: String,
    ms: f64,
    min_ms: f64,
    max_ms: f64,
    gbs: f64,
    tflops: f64,
    predicted_ms: f64,
    fraction_of_ceiling: f64,
    peer: Option<String>,
    peer_ms: Option<f64>,
}

impl Row {
    /// Puts what was measured beside ceilings and peers. Predicted is what the scarcer of tensor cores and
    /// memory takes at the rates of this run.
    pub fn new(measured: &Measured, ceilings: &Ceilings, peers: &Peers) -> Row {
        let ms = measured.spread.median_ms;
        let predicted = ceilings.floor_ms(measured.flops, measured.bytes);
        let peer = peers.best(measured.peers);
        Row {
            kernel: measured.name.clone(),
            shape: measured.shape.clone(),
            ms,
            min_ms: measured.spread.min_ms,
            max_ms: measured.spread.max_ms,
            gbs: measured.bytes / ms / 1e6,
            tflops: measured.flops / ms / 1e9,
            predicted_ms: predicted,
            fraction_of_ceiling: predicted / ms,
            peer: peer.map(|(op, _)| op.to_owned()),
            peer_ms: peer.map(|(_, ms)| ms),
        }
    }
}

/// The table as text.
pub fn table(rows: &[Row]) -> String {
    let head = [
        "kernel",
        "shape",
        "ms",
        "spread",
        "GB/s",
        "TFLOP/s",
        "predicted",
        "of ceiling",
        "peer ms",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        lines.push([
            row.kernel.clone(),
            row.shape.clone(),
            format!("{:.3}", row.ms),
            format!("{:.3}..{:.3}", row.min_ms, row.max_ms),
            format!("{:.0}", row.gbs),
            format!("{:.0}", row.tflops),
            format!("{:.3}", row.predicted_ms),
            format!("{:.0}%", 100.0 * row.fraction_of_ceiling),
            row.peer_ms.map_or("-".to_owned(), |ms| format!("{ms:.3}")),
        ]);
    }
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let cell =
                if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(cell.as_str());
            text.push_str("  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        Measured {
            name: "delta rule".into(),
            shape: "T=8192".into(),
            spread: Spread { median_ms: 0.5, min_ms: 0.4, max_ms: 0.9 },
            flops: 100e9,
            bytes: 1e9,
            peers: &["gated delta rule fwd ("],
        }
    }

    const CEILINGS: Ceilings = Ceilings { copy_gbs: 4000.0, product_tflops: 800.0 };

    #[test]
    fn the_scarcer_resource_and_the_fastest_peer_of_the_same_op_are_taken() {
        let peers = Peers::parse(
            r#"[{"op": "gated delta rule fwd (FLA)", "ms": 0.5, "tflops": 1.0, "gbs": 2.0},
                {"op": "gated delta rule fwd (FlashQLA)", "ms": 0.3, "tflops": 1.0, "gbs": 2.0},
                {"op": "gated delta rule fwd+bwd (FLA)", "ms": 0.1, "tflops": 1.0, "gbs": 2.0}]"#,
        );
        let row = Row::new(&measured(), &CEILINGS, &peers.expect("parses"));
        assert_eq!(row.predicted_ms, 0.25);
        assert_eq!(row.fraction_of_ceiling, 0.5);
        assert_eq!(row.peer.as_deref(), Some("gated delta rule fwd (FlashQLA)"));
        let text = table(&[row]);
        let cells: Vec<&str> = text.lines().last().expect("a row").split_whitespace().collect();
        let expected = [
            "delta",
            "rule",
            "T=8192",
            "0.500",
            "0.400..0.900",
            "2000",
            "200",
            "0.250",
            "50%",
            "0.300",
        ];
        assert_eq!(cells, expected);
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let error = Peers::parse("{}").expect_err("refused");
        assert!(error.starts_with("not what peer_bench.py --json writes"), "{error}");
    }
}
