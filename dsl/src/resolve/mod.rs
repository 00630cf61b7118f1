//! Names to definitions, `extends` to one set of bindings, blocks to instances.
//!
//! | module | does |
//! |---|---|
//! | `imports` | reads every file that the root reaches, and collects the definitions |
//! | `check` | what can be said about a definition without instantiating it |
//! | `scope` | what a name means at a place, and which axes are the same axis |
//! | `eval` | sizes, numbers, blocks and lists of blocks |
//! | `integrate` | lists of numbers, integrators of stacks |
//! | `instantiate` | a block with its formals bound, and all blocks below it |
//! | `unread` | bindings of stages that nothing reads |
//!
//! Errors that hold for a definition whatever uses it come from [`load_program`]; errors that
//! depend on bindings come from [`Program::resolve_stage`] and [`Program::resolve_block`].

use crate::ast;
use crate::diag::{Diag, codes};
use crate::model::StageModel;
use crate::source::{SourceId, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod check;
mod eval;
mod imports;
mod instantiate;
mod integrate;
mod scope;
mod unread;

pub use imports::load_program;

/// A block with the file that defines it.
#[derive(Clone, Debug)]
pub struct BlockDef {
    /// As written.
    pub ast: Arc<ast::Block>,
    /// Where.
    pub file: SourceId,
}

/// A stage with the file that defines it.
#[derive(Clone, Debug)]
pub struct StageDef {
    /// As written.
    pub ast: Arc<ast::Stage>,
    /// Where.
    pub file: SourceId,
}

/// A growth map with the file that defines it.
#[derive(Clone, Debug)]
pub struct MapDef {
    /// As written.
    pub ast: Arc<ast::Grow>,
    /// Where.
    pub file: SourceId,
    /// What is grown; arguments that repeat the name of their formal have it.
    pub from: ast::Expr,
    /// What comes out, likewise.
    pub to: ast::Expr,
}

/// At which sizes a stage or the blocks of a map are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Those of the stage.
    Bound,
    /// Those of its `probe` over them.
    Probe,
    /// The names that its `probe` lists stay symbols; numbers are those of the probe.
    Symbolic,
}

/// Values of the formals of a map between blocks.
pub type FormalValues = BTreeMap<String, FormalValue>;

/// The value of one formal of a map between blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum FormalValue {
    /// Of an axis formal.
    Size(crate::size::Size),
    /// Of a number formal.
    Number(f64),
}

/// All definitions that one root file reaches. Names are unique: a definition whose name is
/// already taken is reported by [`load_program`] and not kept.
#[derive(Clone, Debug)]
pub struct Program {
    root: SourceId,
    blocks: Vec<BlockDef>,
    stages: Vec<StageDef>,
    block_index: BTreeMap<String, usize>,
    stage_index: BTreeMap<String, usize>,
    maps: Vec<MapDef>,
    map_index: BTreeMap<String, usize>,
    /// Names of blocks and stages with syntax errors. What seems to be missing in them or from
    /// them stands perhaps in a line that did not parse.
    damaged: BTreeSet<String>,
    /// What [`load_program`] has reported.
    errors: Vec<Diag>,
    /// Codes and places of `errors`, so that they are not reported again.
    reported: BTreeSet<(&'static str, Span)>,
}

impl Program {
    /// The file that everything was loaded for.
    pub fn root(&self) -> SourceId {
        self.root
    }

    /// All blocks: imported files first, source order within a file.
    pub fn blocks(&self) -> &[BlockDef] {
        &self.blocks
    }

    /// All stages, in the order of [`Program::blocks`].
    pub fn stages(&self) -> &[StageDef] {
        &self.stages
    }

    /// Names of the root file's stages, in source order.
    pub fn stage_names(&self) -> Vec<&str> {
        let own = self.stages.iter().filter(|s| s.file == self.root);
        own.map(|s| s.ast.name.name.as_str()).collect()
    }

    /// Names of the root file's blocks, in source order.
    pub fn block_names(&self) -> Vec<&str> {
        let own = self.blocks.iter().filter(|b| b.file == self.root);
        own.map(|b| b.ast.name.name.as_str()).collect()
    }

    /// The block of that name.
    pub fn block(&self, name: &str) -> Option<&BlockDef> {
        self.blocks.get(*self.block_index.get(name)?)
    }

    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<&StageDef> {
        self.stages.get(*self.stage_index.get(name)?)
    }

    /// All growth maps, in the order of [`Program::blocks`].
    pub fn maps(&self) -> &[MapDef] {
        &self.maps
    }

    /// The growth map of that name.
    pub fn map(&self, name: &str) -> Option<&MapDef> {
        self.maps.get(*self.map_index.get(name)?)
    }

    /// The stage has a `model`, its own or an inherited one: it can be built, and not only
    /// extended.
    pub fn is_buildable(&self, stage: &str) -> bool {
        self.bindings(stage).is_ok_and(|bindings| bindings.contains_key("model"))
    }

    /// The block can be instantiated without a stage: every formal is an axis or has a default.
    pub fn is_standalone(&self, block: &str) -> bool {
        self.block(block).is_some_and(|def| {
            def.ast.formals.iter().all(|f| f.kind == ast::FormalKind::Axis || f.default.is_some())
        })
    }

    /// A stage with everything bound.
    ///
    /// # Errors
    /// All errors that its bindings lead to and that [`load_program`] has not reported. A program
    /// with errors has no models: where there are no further errors, those of
    /// [`load_program`] come again.
    pub fn resolve_stage(&self, name: &str) -> Result<StageModel, Vec<Diag>> {
        instantiate::stage(self, name, Sizes::Bound)
    }

    /// A stage at sizes other than its own.
    ///
    /// # Errors
    /// As for [`Program::resolve_stage`].
    pub fn resolve_stage_at(&self, name: &str, sizes: Sizes) -> Result<StageModel, Vec<Diag>> {
        instantiate::stage(self, name, sizes)
    }

    /// The bindings of a stage's `probe`, its own over those of the stages it extends.
    pub fn probe(&self, stage: &str) -> BTreeMap<&str, &ast::Binding> {
        let mut bindings = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut at = self.stage(stage);
        while let Some(def) = at {
            if !seen.insert(def.ast.name.name.as_str()) {
                break;
            }
            for binding in def.ast.probe.iter().flat_map(|p| &p.bindings) {
                bindings.entry(binding.name.name.as_str()).or_insert(binding);
            }
            at = def.ast.extends.as_ref().and_then(|parent| self.stage(&parent.name));
        }
        bindings
    }

    /// The two sides of a map between blocks. A formal that `values` lacks is a symbolic size of
    /// its name; a number formal takes its default.
    ///
    /// # Errors
    /// As for [`Program::resolve_stage`].
    pub fn resolve_blocks(
        &self,
        map: &MapDef,
        values: &FormalValues,
    ) -> Result<(StageModel, StageModel), Vec<Diag>> {
        match self.map(&map.ast.name.name) {
            Some(map) => instantiate::blocks(self, map, values),
            None => Err(Vec::new()),
        }
    }

    /// A block on its own: axis formals are symbolic sizes of the same name, all other formals
    /// take their defaults. In number expressions a symbolic size counts as 1, and a size that
    /// is divided is taken as a multiple of the divisor.
    ///
    /// # Errors
    /// As for [`Program::resolve_stage`].
    pub fn resolve_block(&self, name: &str) -> Result<StageModel, Vec<Diag>> {
        instantiate::standalone(self, name)
    }

    /// Resolves everything of the root file: each stage with a model and, where the file has no
    /// stage, each block that can stand alone. Every diagnostic comes once.
    pub fn check(&self) -> (Vec<StageModel>, Vec<Diag>) {
        let mut results: Vec<Result<StageModel, Vec<Diag>>> = Vec::new();
        let stages = self.stage_names();
        for &stage in &stages {
            // Errors in `extends` are reported already.
            if self.is_buildable(stage) {
                results.push(self.resolve_stage(stage));
            }
        }
        if stages.is_empty() {
            let blocks = self.block_names();
            let alone = blocks.into_iter().filter(|block| self.is_standalone(block));
            results.extend(alone.map(|block| self.resolve_block(block)));
        }
        let mut models = Vec::new();
        let mut diags: Vec<Diag> = Vec::new();
        for result in results {
            match result {
                Ok(model) => models.push(model),
                Err(more) => diags.extend(more),
            }
        }
        diags.retain(|d| !self.reported.contains(&(d.code, d.primary.span)));
        crate::diag::normalize(&mut diags);
        (models, diags)
    }

    /// The stage, or one that it extends, has a syntax error.
    fn is_damaged(&self, stage: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut at = Some(stage);
        while let Some(name) = at {
            if self.damaged.contains(name) {
                return true;
            }
            if !seen.insert(name) {
                return false;
            }
            let parent = self.stage(name).and_then(|s| s.ast.extends.as_ref());
            at = parent.map(|p| p.name.as_str());
        }
        false
    }

    /// The bindings of a stage: its own over those of the stages it extends.
    ///
    /// # Errors
    /// The stage or one of its parents does not exist, or it extends itself.
    pub fn bindings(&self, stage: &str) -> Result<BTreeMap<&str, &ast::Binding>, Box<Diag>> {
        let mut bindings = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut next = self.stage(stage).ok_or_else(|| Box::new(self.unknown_stage(stage)))?;
        loop {
            seen.insert(next.ast.name.name.as_str());
            for binding in &next.ast.bindings {
                bindings.entry(binding.name.name.as_str()).or_insert(binding);
            }
            let Some(parent) = &next.ast.extends else {
                return Ok(bindings);
            };
            if seen.contains(parent.name.as_str()) {
                return Err(Box::new(Diag::error(
                    codes::EXTENDS_CYCLE,
                    format!("stage `{stage}` extends itself"),
                    parent.span,
                    format!("leads back to `{}`", parent.name),
                )));
            }
            next = self.stage(&parent.name).ok_or_else(|| Box::new(self.unknown_parent(parent)))?;
        }
    }

    /// For a name that was asked for from outside, so that no source has it.
    fn unknown_stage(&self, name: &str) -> Diag {
        let place = Span { source: self.root, start: 0, end: 0 };
        let diag = Diag::error(
            codes::UNKNOWN_STAGE,
            format!("there is no stage `{name}`"),
            place,
            "in this file or its imports",
        );
        self.suggest_stage(diag, name)
    }

    fn unknown_parent(&self, parent: &ast::Ident) -> Diag {
        let diag = Diag::error(
            codes::UNKNOWN_STAGE,
            format!("there is no stage `{}` to extend", parent.name),
            parent.span,
            "not defined",
        );
        self.suggest_stage(diag, &parent.name)
    }

    fn suggest_stage(&self, diag: Diag, name: &str) -> Diag {
        let names = self.stages.iter().map(|s| s.ast.name.name.as_str());
        match crate::names::closest(name, names.clone()) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => {
                let names: Vec<String> = names.map(|n| format!("`{n}`")).collect();
                if names.is_empty() {
                    diag.with_help("no stage is defined; import the file that defines it")
                } else {
                    diag.with_help(format!("defined stages: {}", names.join(", ")))
                }
            }
        }
    }
}
