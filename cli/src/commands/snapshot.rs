//! `lightc snapshot`: everything generated from a source, pinned beside it.

use crate::diff;
use crate::failure::{Failure, Fault};
use crate::files;
use crate::generated;
use crate::program;
use crate::source::{Loaded, file_name, read_text};
use crate::table::counted;
use crate::terminal;
use lightc_codegen::emit::{Origin, emit_stage};
use lightc_codegen::pipeline;
use lightc_codegen::schedule::schedule_cpu;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pin everything that is generated from a source beside it, and show what changed.
///
/// For each stage: parameters, IR, backward pass, schedule and Rust, in `FILE.snapshots/`.
/// Without `--bless` the files are compared, and a difference ends with exit code 1.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The source.
    file: PathBuf,
    /// One stage; every stage of the file that can be built otherwise.
    #[arg(long)]
    stage: Option<String>,
    /// Write what is generated now.
    #[arg(long)]
    bless: bool,
    /// Another folder than `FILE.snapshots`.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// A pinned file.
struct Pinned {
    name: String,
    text: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = arguments.dir.clone().unwrap_or_else(|| {
        let mut name = arguments.file.clone().into_os_string();
        name.push(".snapshots");
        name.into()
    });
    let pinned = generate(arguments)?;
    let changed =
        if arguments.bless { bless(&folder, &pinned)? } else { compare(&folder, &pinned)? };
    if arguments.stage.is_none() {
        orphans(&folder, &pinned);
    }
    match (changed, arguments.bless) {
        (0, false) => {
            terminal::say(&format!("{}, no difference\n", counted(pinned.len(), "snapshot")))
        }
        (n, true) => {
            terminal::say(&format!("{} written to {}\n", counted(n, "snapshot"), folder.display()))
        }
        (n, false) => {
            terminal::say(&format!(
                "{} differ or are missing; `lightc snapshot {} --bless` accepts them\n",
                counted(n, "snapshot"),
                arguments.file.display()
            ));
            return Err(Failure::Said(1));
        }
    }
    Ok(())
}

/// Every file that the chosen stages give.
fn generate(arguments: &Arguments) -> Result<Vec<Pinned>, Failure> {
    let loaded = Loaded::read(&arguments.file)?.without_errors()?;
    let stages: Vec<String> = match &arguments.stage {
        Some(stage) => vec![stage.clone()],
        None => {
            let names = loaded.program.stage_names().into_iter();
            names.filter(|name| loaded.program.is_buildable(name)).map(str::to_owned).collect()
        }
    };
    if stages.is_empty() {
        let message = format!("`{}` defines no stage that can be built", arguments.file.display());
        return Err(Fault::new("E0212", message).help("a stage needs `model = Block(...)`").into());
    }
    let origin = loaded.origin(file_name(&arguments.file));
    let source = header(&loaded, &origin);
    let mut pinned = Vec::new();
    let mut diags = Vec::new();
    for stage in &stages {
        match loaded.program.resolve_stage(stage).and_then(|model| forms(&model, &origin)) {
            Ok(forms) => pinned.extend(named(stage, forms?, &source)),
            Err(found) => diags.extend(found),
        }
    }
    if diags.is_empty() { Ok(pinned) } else { Err(loaded.failure(diags)) }
}

/// Ending and text of each generated form.
type Forms = Vec<(&'static str, String)>;

/// Each form of a stage, or what is wrong with the source (outer) or with
/// making a program of it (inner).
fn forms(model: &StageModel, origin: &Origin) -> Result<Result<Forms, Failure>, Vec<Diag>> {
    let compiled = pipeline::compile(model)?;
    let module = &compiled.module;
    let table = super::params::bound_table(model, module)?;
    let joined = |functions: generated::Functions| {
        let texts: Vec<String> = functions.into_iter().map(|(_, text)| text).collect();
        format!("{}\n{}", generated::module_line(module), texts.join("\n"))
    };
    let rust = emit_stage(&pipeline::program(&compiled)?, origin).map_err(program::compiler_fault);
    Ok(rust.map(|rust| {
        vec![
            ("params.txt", generated::params_text(&table, true)),
            ("ir.txt", joined(generated::forward_functions(module))),
            ("backward.txt", joined(generated::backward_functions(module))),
            ("schedule.txt", generated::schedule_text(&schedule_cpu(module))),
            ("rust.rs", rust),
        ]
    }))
}

/// What the pinned text comes from: the source as written, and a digest of it with its imports.
fn header(loaded: &Loaded, origin: &Origin) -> Vec<String> {
    let mut lines = vec![
        format!("source: {}, written by lightc {}", origin.source, origin.compiler),
        format!("digest, imports included: {}", origin.source_hash),
        String::new(),
    ];
    let text = loaded.sources.get(loaded.program.root()).map_or("", |source| source.text.as_str());
    lines.extend(text.lines().map(|line| format!("| {line}")));
    lines
}

fn named(stage: &str, forms: Vec<(&'static str, String)>, source: &[String]) -> Vec<Pinned> {
    let pinned = forms.into_iter().map(|(ending, text)| {
        let mark = if ending.ends_with(".rs") { "//" } else { "#" };
        let mut whole = String::new();
        for line in source {
            whole.push_str(format!("{mark} {line}").trim_end());
            whole.push('\n');
        }
        whole.push('\n');
        whole.push_str(&text);
        Pinned { name: format!("{stage}.{ending}"), text: whole }
    });
    pinned.collect()
}

/// Prints how the files differ; how many do.
fn compare(folder: &Path, pinned: &[Pinned]) -> Result<usize, Failure> {
    let mut changed = 0;
    for file in pinned {
        let path = folder.join(&file.name);
        let name = path.display();
        if !path.exists() {
            terminal::print(&format!("missing: {name}\n"))?;
            changed += 1;
            continue;
        }
        let old = read_text(&path)?;
        if old != file.text {
            terminal::print(&diff::unified(
                &name.to_string(),
                &format!("{name} (now)"),
                &old,
                &file.text,
            ))?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Writes the files that changed; how many did.
fn bless(folder: &Path, pinned: &[Pinned]) -> Result<usize, Failure> {
    files::create_folder(folder)?;
    let mut changed = 0;
    for file in pinned {
        let path = folder.join(&file.name);
        if std::fs::read(&path).is_ok_and(|old| old == file.text.as_bytes()) {
            continue;
        }
        files::replace(&path, &file.text)?;
        terminal::print(&format!("wrote {}\n", path.display()))?;
        changed += 1;
    }
    Ok(changed)
}

/// Names files in the folder that no stage gives any more.
fn orphans(folder: &Path, pinned: &[Pinned]) {
    let known: BTreeSet<&str> = pinned.iter().map(|file| file.name.as_str()).collect();
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let names: BTreeSet<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    for name in names.iter().filter(|name| !known.contains(name.as_str())) {
        let path = folder.join(name);
        terminal::say(&format!("orphaned, no stage gives it: {}\n", path.display()));
    }
}
