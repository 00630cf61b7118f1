//! Reads every file that the root reaches, once each, and collects the definitions.

use super::{BlockDef, MapDef, Program, StageDef, check};
use crate::ast::{Arg, Expr, ExprKind, Ident, Item, Text};
use crate::diag::{Diag, codes};
use crate::source::{Loader, SourceId, Sources};
use crate::syntax;
use std::collections::BTreeMap;
use std::sync::Arc;

/// More files than any project has: imports that go on for ever end here.
const MAX_FILES: usize = 1000;

/// Parses the root file and, through `loader`, everything that it imports, and checks each
/// definition by itself. Files that import each other are read once each.
pub fn load_program(
    root_name: &str,
    root_text: &str,
    loader: &dyn Loader,
) -> (Program, Sources, Vec<Diag>) {
    let mut loading = Loading::default();
    let root = loading.sources.add(root_name, root_text);
    loading.parse(root);
    let mut next = 0;
    while let Some((id, items)) = loading.files.get(next) {
        let id = *id;
        let imports: Vec<Text> = items
            .iter()
            .filter_map(|i| if let Item::Import(path) = i { Some(path.clone()) } else { None })
            .collect();
        for path in imports {
            loading.import(id, &path, loader);
        }
        next += 1;
    }
    let mut program = Program {
        root,
        blocks: Vec::new(),
        stages: Vec::new(),
        block_index: BTreeMap::new(),
        stage_index: BTreeMap::new(),
        maps: Vec::new(),
        map_index: BTreeMap::new(),
        damaged: loading.damaged,
        errors: Vec::new(),
        reported: Default::default(),
    };
    // Imported files come before the files that import them: of two equal names, the one that
    // is further away was there first.
    for (id, items) in loading.files.into_iter().rev() {
        collect(&mut program, id, items, &mut loading.diags);
    }
    loading.diags.extend(check::program(&program));
    crate::diag::normalize(&mut loading.diags);
    program.errors = loading.diags.clone();
    program.reported = loading.diags.iter().map(|d| (d.code, d.primary.span)).collect();
    (program, loading.sources, loading.diags)
}

#[derive(Default)]
struct Loading {
    sources: Sources,
    diags: Vec<Diag>,
    files: Vec<(SourceId, Vec<Item>)>,
    damaged: std::collections::BTreeSet<String>,
}

impl Loading {
    fn parse(&mut self, id: SourceId) {
        let text = self.sources.get(id).map_or("", |s| s.text.as_str());
        let (file, diags, damaged) = syntax::parse_with_losses(id, text);
        self.diags.extend(diags);
        self.damaged.extend(damaged);
        self.files.push((id, file.map_or(Vec::new(), |f| f.items)));
    }

    fn import(&mut self, from: SourceId, path: &Text, loader: &dyn Loader) {
        let from_name = self.sources.get(from).map_or("", |s| s.name.as_str());
        match loader.load(from_name, &path.value) {
            Ok((name, _)) if self.sources.find(&name).is_some() => {}
            Ok(_) if self.files.len() >= MAX_FILES => self.diags.push(Diag::error(
                codes::OVER_LIMIT,
                format!("more than {MAX_FILES} files are imported"),
                path.span,
                "this one is too many",
            )),
            Ok((name, text)) => {
                let id = self.sources.add(name, text);
                self.parse(id);
            }
            Err(reason) => self.diags.push(
                Diag::error(
                    codes::MISSING_IMPORT,
                    format!("`{}` cannot be imported: {reason}", path.value),
                    path.span,
                    "imported here",
                )
                .with_help("the path is relative to the folder of the importing file"),
            ),
        }
    }
}

fn collect(program: &mut Program, file: SourceId, items: Vec<Item>, diags: &mut Vec<Diag>) {
    for item in items {
        match item {
            Item::Import(_) => {}
            Item::Block(block) => {
                let name = block.name.clone();
                if let Some(first) = program.block(&name.name) {
                    diags.push(doubled("block", &name, &first.ast.name));
                    continue;
                }
                program.block_index.insert(name.name, program.blocks.len());
                program.blocks.push(BlockDef { ast: Arc::new(block), file });
            }
            Item::Grow(grow) => {
                let name = grow.name.clone();
                if let Some(first) = program.map(&name.name) {
                    diags.push(doubled("growth map", &name, &first.ast.name));
                    continue;
                }
                program.map_index.insert(name.name, program.maps.len());
                let (from, to) = (named_arguments(&grow.from), named_arguments(&grow.to));
                program.maps.push(MapDef { ast: Arc::new(grow), file, from, to });
            }
            Item::Stage(stage) => {
                let name = stage.name.clone();
                if let Some(first) = program.stage(&name.name) {
                    diags.push(doubled("stage", &name, &first.ast.name));
                    continue;
                }
                program.stage_index.insert(name.name, program.stages.len());
                program.stages.push(StageDef { ast: Arc::new(stage), file });
            }
        }
    }
}

/// `SwiGlu(d, f: 2 * f)` as `SwiGlu(d: d, f: 2 * f)`.
fn named_arguments(side: &Expr) -> Expr {
    let mut side = side.clone();
    if let ExprKind::Call { args, .. } = &mut side.kind {
        for arg in args {
            if let Arg::Value(value) = arg
                && let ExprKind::Name(name) = &value.kind
            {
                let name = Ident { name: name.clone(), span: value.span };
                *arg = Arg::Named(name, value.clone());
            }
        }
    }
    side
}

fn doubled(what: &str, second: &Ident, first: &Ident) -> Diag {
    Diag::error(
        codes::DOUBLED_DEFINITION,
        format!("{what} `{}` is defined twice", second.name),
        second.span,
        "defined again here",
    )
    .with_related(first.span, "first defined here")
    .with_help("rename one of them")
}
