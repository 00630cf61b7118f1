//! `lightc hash`: the digests of a checkpoint.

use crate::failure::{Failure, Fault};
use crate::table::{Table, counted};
use crate::terminal::{self, Format};
use lightc_checkpoint::HashReport;
use std::path::PathBuf;

/// Verify a checkpoint and print the digest of every tensor.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkpoint folder, a folder of checkpoints (its latest), or a safetensors file.
    checkpoint: PathBuf,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let report = lightc_checkpoint::hash(&arguments.checkpoint)
        .map_err(|error| Fault::new(error.code(), error.to_string()).help(error.help()))?;
    match arguments.format {
        Format::Text => terminal::print(&text(&report)),
        Format::Json => terminal::print_json(&report),
    }
}

fn text(report: &HashReport) -> String {
    let mut rows = Table::new(&["file", "tensor", "dtype", "shape", "blake3"]);
    for tensor in &report.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        rows.row(vec![
            tensor.file.clone(),
            tensor.name.clone(),
            format!("{:?}", tensor.dtype),
            format!("[{}]", shape.join(", ")),
            tensor.blake3.clone(),
        ]);
    }
    let n_tensors = counted(report.tensors.len(), "tensor");
    format!("{}\nroot  {}  ({n_tensors})\n", rows.text(), report.root)
}
