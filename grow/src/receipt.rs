//! What was done, for people and for tools. It has no times and no paths of the machine, so that
//! the same growth leaves the same receipt.

use crate::error::Result;
use crate::plan::Plan;
use lightc_checkpoint::{FileEntry, Manifest, format::whole_name};
use lightc_codegen::growth::{Claim, SettingChange};
use serde::Serialize;
use std::collections::BTreeMap;

/// Its name in the target folder.
pub const RECEIPT_FILE: &str = "receipt.json";
/// The table for people.
pub const RECEIPT_TABLE: &str = "receipt.md";

/// What the caller has measured about the function; this crate does not run models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// `proved`, `refuted`, `unknown`, `declared` or `measured`.
    pub verdict: String,
    /// Largest change of an output on probes, relative to the largest output.
    pub change: Option<f64>,
    /// How it was found.
    pub detail: String,
}

/// One grown tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReceipt {
    /// The file, without the number of its shard.
    pub file: String,
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: safetensors::Dtype,
    /// Size per axis.
    pub shape: Vec<usize>,
    /// Its rule in words.
    pub rule: String,
    /// The source tensors that it is made of.
    pub sources: Vec<SourceReceipt>,
    /// Its digest.
    pub blake3: String,
}

/// A source tensor of a grown one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceReceipt {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub blake3: String,
}

/// One side of a growth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideReceipt {
    /// The stage.
    pub stage: String,
    /// Digest of its sources.
    pub source_hash: String,
    /// Digest over all tensors, as `lightc hash` prints it.
    pub root: String,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Receipt {
    /// Name of the map.
    pub map: String,
    /// What its author says that it does.
    pub claim: Claim,
    /// What was measured about it.
    pub probe: Option<Probe>,
    /// Seed of all draws.
    pub seed: u64,
    /// Version of lightc.
    pub compiler: String,
    /// Digest of all that the target depends on.
    pub plan: String,
    /// The stage that was grown.
    pub source: SideReceipt,
    /// The stage that came out.
    pub target: SideReceipt,
    /// Settings that differ.
    pub settings: Vec<SettingChange>,
    /// Source tensors that went nowhere: path and reason.
    pub drops: Vec<(String, String)>,
    /// Every tensor of the target.
    pub tensors: Vec<TensorReceipt>,
}

impl Receipt {
    /// The receipt of a finished growth.
    pub(crate) fn new(
        plan: &Plan,
        digest: &str,
        compiler: &str,
        probe: Option<Probe>,
        source: &Manifest,
        files: &[FileEntry],
    ) -> Self {
        let mut written = BTreeMap::new();
        for file in files {
            for tensor in &file.tensors {
                written.insert((whole_name(&file.name), tensor.name.as_str()), tensor);
            }
        }
        let of_source = |tensor: usize| {
            let tensor = plan.tensors.get(tensor)?;
            let (_, entry) = source.entry(tensor.file, &tensor.name)?;
            Some(SourceReceipt { name: tensor.name.clone(), blake3: entry.blake3.clone() })
        };
        let tensors = plan.targets.iter().filter_map(|target| {
            let entry = written.get(&(target.file.to_owned(), target.name.as_str()))?;
            Some(TensorReceipt {
                file: target.file.to_owned(),
                name: target.name.clone(),
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                rule: target.rule.clone(),
                sources: target.node.sources().into_iter().filter_map(of_source).collect(),
                blake3: entry.blake3.clone(),
            })
        });
        let side = |side: &crate::plan::Side, files: &[FileEntry]| SideReceipt {
            stage: side.stage.clone(),
            source_hash: side.source_hash.clone(),
            root: lightc_checkpoint::hash::root_of(files),
        };
        Receipt {
            map: plan.map.clone(),
            claim: plan.claim.clone(),
            probe,
            seed: plan.seed,
            compiler: compiler.to_owned(),
            plan: digest.to_owned(),
            source: SideReceipt {
                source_hash: source.head.source_hash.clone(),
                ..side(&plan.source, &source.files)
            },
            target: side(&plan.target, files),
            settings: plan.settings.clone(),
            drops: plan.drops.clone(),
            tensors: tensors.collect(),
        }
    }

    /// As JSON for people and tools.
    pub(crate) fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| crate::Error::Rule {
            path: RECEIPT_FILE.to_owned(),
            detail: error.to_string(),
        })?;
        Ok(text + "\n")
    }

    /// As a table.
    pub fn table(&self) -> String {
        let claim = match &self.claim {
            Claim::Exactly => "preserves exactly".to_owned(),
            Claim::Within { bound } => format!("preserves within {bound}"),
            Claim::Changes { reason } => format!("changes: {reason}"),
        };
        let probe = match &self.probe {
            None => "not measured".to_owned(),
            Some(Probe { verdict, change, detail }) => {
                let change = change.map(|change| format!(", change {change:.3e}"));
                format!("{verdict}{}; {detail}", change.unwrap_or_default())
            }
        };
        let mut text = format!(
            "# {}: {} to {}\n\nclaim: {claim}  \nprobe: {probe}  \nseed: {}  \nsource: {}  \n\
             target: {}  \nlightc: {}\n\n",
            self.map,
            self.source.stage,
            self.target.stage,
            self.seed,
            self.source.root,
            self.target.root,
            self.compiler
        );
        for change in &self.settings {
            let SettingChange { name, from, to, reason } = change;
            text.push_str(&format!("- setting {name}: {from} to {to} ({reason})\n"));
        }
        for (path, reason) in &self.drops {
            text.push_str(&format!("- dropped {path}: {reason}\n"));
        }
        text.push_str("\n| tensor | shape | rule | source | target |\n|---|---|---|---|---|\n");
        for tensor in &self.tensors {
            let short = |digest: &str| digest.chars().take(12).collect::<String>();
            let sources: Vec<String> =
                tensor.sources.iter().map(|source| short(&source.blake3)).collect();
            let kind = tensor.file.trim_end_matches(".safetensors");
            text.push_str(&format!(
                "| {kind}: {} | {:?} | {} | {} | {} |\n",
                tensor.name,
                tensor.shape,
                tensor.rule.replace('|', "\\|"),
                sources.join(" "),
                short(&tensor.blake3)
            ));
        }
        text
    }
}
