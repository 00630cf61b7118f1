//! The e-graph: terms, their types, saturation under rules, and proofs that are checked again.

use super::rules::{self, RULES, Rule};
use super::term::{Head, Ty};
use egg::{
    Analysis, DidMerge, EGraph, ENodeOrVar, Explanation, Id, Language, Pattern, PatternAst,
    RecExpr, Rewrite, Subst, Symbol, TreeTerm, Var,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

/// One node: a head by its number, and children.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    head: u32,
    children: Vec<Id>,
}

impl Language for Node {
    type Discriminant = (u32, usize);

    fn discriminant(&self) -> Self::Discriminant {
        (self.head, self.children.len())
    }

    fn matches(&self, other: &Self) -> bool {
        self.discriminant() == other.discriminant()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// The heads by number, and the type of every class.
#[derive(Default, Debug)]
pub(crate) struct Terms {
    heads: Vec<Arc<Head>>,
    numbers: HashMap<Arc<Head>, u32>,
    /// Two terms of different types were found equal: a rule is wrong.
    clash: bool,
}

impl Terms {
    fn number(&mut self, head: &Head) -> u32 {
        if let Some(number) = self.numbers.get(head) {
            return *number;
        }
        let (number, head) = (self.heads.len() as u32, Arc::new(head.clone()));
        self.heads.push(Arc::clone(&head));
        self.numbers.insert(head, number);
        number
    }

    #[allow(clippy::indexing_slicing, reason = "numbers are only made by `number`")]
    fn head(&self, number: u32) -> &Head {
        &self.heads[number as usize]
    }
}

impl Analysis<Node> for Terms {
    type Data = Option<Ty>;

    fn make(egraph: &mut EGraph<Node, Self>, node: &Node, _: Id) -> Self::Data {
        let types: Option<Vec<&Ty>> =
            node.children.iter().map(|child| egraph[*child].data.as_ref()).collect();
        egraph.analysis.head(node.head).infer(&types?)
    }

    fn merge(&mut self, a: &mut Self::Data, b: Self::Data) -> DidMerge {
        self.clash |= *a != b;
        DidMerge(false, false)
    }
}

/// A term over classes: what rules are written in.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    /// Any term of a class.
    Var(Id),
    /// A head over trees.
    Node(Head, Vec<Tree>),
}

impl Tree {
    pub(crate) fn leaf(head: Head) -> Tree {
        Tree::Node(head, Vec::new())
    }

    pub(crate) fn one(head: Head, child: Tree) -> Tree {
        Tree::Node(head, vec![child])
    }
}

/// What rules see of the graph.
pub(crate) struct View<'a>(&'a EGraph<Node, Terms>);

impl<'a> View<'a> {
    /// The nodes of a class.
    pub(crate) fn nodes(&self, id: Id) -> impl Iterator<Item = (&'a Head, &'a [Id])> + use<'a> {
        let egraph = self.0;
        egraph[id].nodes.iter().map(|node| (egraph.analysis.head(node.head), &node.children[..]))
    }

    /// The type of a class.
    pub(crate) fn ty(&self, id: Id) -> Option<&'a Ty> {
        self.0[id].data.as_ref()
    }

    /// The type of a tree.
    pub(crate) fn tree_ty(&self, tree: &Tree) -> Option<Ty> {
        match tree {
            Tree::Var(id) => self.ty(*id).cloned(),
            Tree::Node(head, children) => {
                let types: Option<Vec<Ty>> = children.iter().map(|t| self.tree_ty(t)).collect();
                head.infer(&types?.iter().collect::<Vec<_>>())
            }
        }
    }
}

/// A rule at the heads that it was used with: an equation between patterns.
#[derive(Debug)]
struct Instance {
    rule: &'static str,
    left: PatternAst<Node>,
    right: PatternAst<Node>,
}

/// How saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// What was asked for has been found.
    Found,
    /// No rule finds anything new.
    Saturated,
    /// So many nodes that it was given up.
    Nodes,
    /// So many rounds that it was given up.
    Rounds,
}

/// Limits of one saturation. They count work and not time, so that a verdict is the same on
/// every machine.
const MOST_NODES: usize = 30_000;
const MOST_ROUNDS: usize = 40;
/// A proof with more terms than this, written out as a tree, is checked in its shared form only.
const FLAT_LIMIT: f64 = 300_000.0;

/// Terms, what is known to be equal, and why.
pub(crate) struct Graph {
    egraph: EGraph<Node, Terms>,
    instances: Vec<Instance>,
    known: HashMap<(&'static str, PatternAst<Node>, PatternAst<Node>), u32>,
    done: HashSet<(u32, Vec<Id>)>,
}

impl Graph {
    pub(crate) fn new() -> Graph {
        let egraph = EGraph::new(Terms::default()).with_explanations_enabled();
        Graph { egraph, instances: Vec::new(), known: HashMap::new(), done: HashSet::new() }
    }

    /// Adds a node; its id stands for exactly this term.
    pub(crate) fn add(&mut self, head: Head, children: Vec<Id>) -> Id {
        let head = self.egraph.analysis.number(&head);
        self.egraph.add_uncanonical(Node { head, children })
    }

    /// Adds a tree; a class in it stands for the term whose id it is.
    pub(crate) fn add_tree(&mut self, tree: &Tree) -> Id {
        match tree {
            Tree::Var(id) => *id,
            Tree::Node(head, children) => {
                let children = children.iter().map(|child| self.add_tree(child)).collect();
                self.add(head.clone(), children)
            }
        }
    }

    pub(crate) fn ty(&self, id: Id) -> Option<&Ty> {
        self.egraph[id].data.as_ref()
    }

    /// Whether a class is known to be 0 everywhere.
    pub(crate) fn is_zero(&self, id: Id) -> bool {
        rules::fill(&View(&self.egraph), self.egraph.find(id))
            .is_some_and(|(scale, _)| scale.is_zero())
    }

    pub(crate) fn same(&self, a: Id, b: Id) -> bool {
        self.egraph.find(a) == self.egraph.find(b)
    }

    /// States that a leaf stands for a term: the result of a call for what the callee computes.
    pub(crate) fn define(&mut self, leaf: Id, body: Id) {
        let left = self.pattern_of(leaf);
        let right = self.pattern_of(body);
        let name = self.name("definition", left, right).1;
        self.egraph.union_trusted(leaf, body, name);
        self.egraph.rebuild();
    }

    fn pattern_of(&self, id: Id) -> PatternAst<Node> {
        let nodes: Vec<ENodeOrVar<Node>> =
            self.egraph.id_to_expr(id).into_iter().map(ENodeOrVar::ENode).collect();
        RecExpr::from(nodes)
    }

    /// The number and name of an instance of a rule.
    fn name(
        &mut self,
        rule: &'static str,
        left: PatternAst<Node>,
        right: PatternAst<Node>,
    ) -> (u32, Symbol) {
        let next = self.instances.len() as u32;
        let number = *self.known.entry((rule, left.clone(), right.clone())).or_insert(next);
        if number == next {
            self.instances.push(Instance { rule, left, right });
        }
        (number, Symbol::from(number.to_string()))
    }

    /// Applies all rules until `found` holds, nothing new comes, or a limit is hit.
    pub(crate) fn saturate(&mut self, found: impl Fn(&Graph) -> bool) -> Ended {
        self.egraph.rebuild();
        for _ in 0..MOST_ROUNDS {
            if found(self) {
                return Ended::Found;
            }
            if self.egraph.nodes().len() > MOST_NODES {
                return Ended::Nodes;
            }
            if !self.round() {
                return if found(self) { Ended::Found } else { Ended::Saturated };
            }
        }
        if found(self) { Ended::Found } else { Ended::Rounds }
    }

    /// One round of all rules; whether anything is new.
    fn round(&mut self) -> bool {
        let mut ids: Vec<Id> = self.egraph.classes().map(|class| class.id).collect();
        ids.sort();
        let mut matches = Vec::new();
        for id in ids {
            let view = View(&self.egraph);
            // Whatever is one value everywhere, such as 0, is known: its many forms lead nowhere.
            if rules::fill(&view, id).is_some() {
                continue;
            }
            for (head, children) in view.nodes(id) {
                for rule in RULES {
                    let mut found = Vec::new();
                    (rule.find)(&view, head, children, &mut found);
                    matches.extend(found.into_iter().map(|(left, right)| (rule, left, right)));
                }
            }
        }
        let before = self.egraph.nodes().len();
        let mut changed = false;
        for (rule, left, right) in matches {
            changed |= self.apply(rule, &left, &right);
            if self.egraph.nodes().len() > MOST_NODES {
                break;
            }
        }
        self.egraph.rebuild();
        changed || self.egraph.nodes().len() != before
    }

    fn apply(&mut self, rule: &Rule, left: &Tree, right: &Tree) -> bool {
        let view = View(&self.egraph);
        let (Some(left_ty), Some(right_ty)) = (view.tree_ty(left), view.tree_ty(right)) else {
            return false;
        };
        if left_ty != right_ty {
            debug_assert!(false, "`{}`: {left_ty:?} is not {right_ty:?}", rule.name);
            return false;
        }
        let mut vars: Vec<Id> = Vec::new();
        let left = self.pattern(left, &mut vars);
        let bound = vars.len();
        let right = self.pattern(right, &mut vars);
        if vars.len() != bound {
            debug_assert!(false, "`{}` invents a class", rule.name);
            return false;
        }
        let (number, name) = self.name(rule.name, left.clone(), right.clone());
        if !self.done.insert((number, vars.clone())) {
            return false;
        }
        let mut subst = Subst::with_capacity(vars.len());
        for (index, id) in vars.iter().enumerate() {
            subst.insert(Var::from_u32(index as u32), *id);
        }
        self.egraph.union_instantiations(&left, &right, &subst, name).1
    }

    fn pattern(&mut self, tree: &Tree, vars: &mut Vec<Id>) -> PatternAst<Node> {
        let mut ast = Vec::new();
        self.write(tree, vars, &mut ast);
        RecExpr::from(ast)
    }

    fn write(&mut self, tree: &Tree, vars: &mut Vec<Id>, ast: &mut Vec<ENodeOrVar<Node>>) -> Id {
        let entry = match tree {
            Tree::Var(id) => {
                let id = self.egraph.find(*id);
                let index = vars.iter().position(|known| *known == id).unwrap_or_else(|| {
                    vars.push(id);
                    vars.len() - 1
                });
                ENodeOrVar::Var(Var::from_u32(index as u32))
            }
            Tree::Node(head, children) => {
                let children = children.iter().map(|child| self.write(child, vars, ast)).collect();
                ENodeOrVar::ENode(Node { head: self.egraph.analysis.number(head), children })
            }
        };
        ast.push(entry);
        Id::from(ast.len() - 1)
    }

    /// Why two terms are equal: how often each rule is used. The proof is taken from egg and every
    /// step of it checked again.
    ///
    /// # Errors
    /// A step that does not hold: a fault of the prover.
    pub(crate) fn explain(
        &mut self,
        a: Id,
        b: Id,
    ) -> Result<BTreeMap<&'static str, usize>, String> {
        if self.egraph.analysis.clash {
            return Err("two terms of different types were found equal".to_owned());
        }
        let mut explanation = self.egraph.explain_id_equivalence(a, b);
        let mut replay = Replay::new(self);
        let ends = (self.egraph.id_to_expr(a), self.egraph.id_to_expr(b));
        let steps = replay.check(&explanation, &ends)?;
        let used: Vec<u32> = replay.used.iter().copied().collect();
        if replay.flat_size(&explanation) <= FLAT_LIMIT {
            self.check_with_egg(&mut explanation, &used)?;
        }
        Ok(steps)
    }

    /// egg's own check, on the proof written out.
    fn check_with_egg(&self, proof: &mut Explanation<Node>, used: &[u32]) -> Result<(), String> {
        let mut rewrites: Vec<Rewrite<Node, Terms>> = Vec::new();
        for number in used {
            let Some(instance) = self.instances.get(*number as usize) else { continue };
            let (left, right) =
                (Pattern::new(instance.left.clone()), Pattern::new(instance.right.clone()));
            rewrites.push(Rewrite::new(number.to_string(), left, right)?);
        }
        let check = std::panic::AssertUnwindSafe(|| proof.check_proof(&rewrites));
        std::panic::catch_unwind(check).map_err(|_| "egg rejects the proof".to_owned())
    }

    /// The term of an id as text, for messages.
    #[allow(dead_code, reason = "for looking at a gap")]
    pub(crate) fn text(&self, id: Id) -> String {
        fn write(graph: &Graph, id: Id, out: &mut String) {
            if out.len() > 2000 {
                return;
            }
            let node = graph.egraph.id_to_node(id);
            out.push_str(&graph.egraph.analysis.head(node.head).to_string());
            if !node.children.is_empty() {
                out.push('(');
                for (index, child) in node.children.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    write(graph, *child, out);
                }
                out.push(')');
            }
        }
        let mut out = String::new();
        write(self, id, &mut out);
        out
    }

    #[cfg(test)]
    fn shape(&self, ast: &PatternAst<Node>) -> Shape {
        let mut shapes: Vec<Shape> = Vec::new();
        for entry in ast.iter() {
            shapes.push(match entry {
                ENodeOrVar::Var(var) => Shape::Var(var.as_u32().unwrap()),
                ENodeOrVar::ENode(node) => {
                    let children =
                        node.children.iter().map(|c| shapes[usize::from(*c)].clone()).collect();
                    Shape::Node(self.egraph.analysis.head(node.head).clone(), children)
                }
            });
        }
        shapes.pop().unwrap()
    }

    /// Every match so far: the rule, its sides, and the types of what its variables stand for.
    #[cfg(test)]
    pub(crate) fn matches(&self) -> Vec<Match> {
        let mut done: Vec<&(u32, Vec<Id>)> = self.done.iter().collect();
        done.sort();
        let mut found = Vec::new();
        for (number, vars) in done {
            let instance = &self.instances[*number as usize];
            let types = vars.iter().map(|id| self.ty(*id).unwrap().clone()).collect();
            let (left, right) = (self.shape(&instance.left), self.shape(&instance.right));
            found.push(Match { rule: instance.rule, left, right, types });
        }
        found
    }
}

/// One use of a rule.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) struct Match {
    pub(crate) rule: &'static str,
    pub(crate) left: Shape,
    pub(crate) right: Shape,
    pub(crate) types: Vec<Ty>,
}

#[cfg(test)]
thread_local! {
    /// Matches of all graphs of this thread, while a test records them.
    pub(crate) static RECORD: std::cell::RefCell<Option<Vec<Match>>> =
        const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
impl Drop for Graph {
    fn drop(&mut self) {
        RECORD.with_borrow_mut(|record| {
            if let Some(record) = record {
                record.extend(self.matches());
            }
        });
    }
}

/// A pattern with its variables by number.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Var(u32),
    Node(Head, Vec<Shape>),
}

/// Checks a proof in its shared form: every step is an instance of a rule, and the steps lead
/// from the one term to the other.
struct Replay<'g> {
    instances: &'g [Instance],
    terms: HashMap<(u32, Vec<usize>), usize>,
    nodes: Vec<(u32, Vec<usize>)>,
    firsts: HashMap<*const TreeTerm<Node>, usize>,
    lasts: HashMap<*const TreeTerm<Node>, usize>,
    checked: HashSet<*const TreeTerm<Node>>,
    used: std::collections::BTreeSet<u32>,
    counts: BTreeMap<&'static str, usize>,
}

type Steps = [Rc<TreeTerm<Node>>];

impl<'g> Replay<'g> {
    fn new(graph: &'g Graph) -> Self {
        Replay {
            instances: &graph.instances,
            terms: HashMap::new(),
            nodes: Vec::new(),
            firsts: HashMap::new(),
            lasts: HashMap::new(),
            checked: HashSet::new(),
            used: std::collections::BTreeSet::new(),
            counts: BTreeMap::new(),
        }
    }

    fn check(
        &mut self,
        proof: &Explanation<Node>,
        ends: &(RecExpr<Node>, RecExpr<Node>),
    ) -> Result<BTreeMap<&'static str, usize>, String> {
        let steps = &proof.explanation_trees;
        let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
            return Err("a proof without steps".to_owned());
        };
        let wanted = (self.intern_expr(&ends.0), self.intern_expr(&ends.1));
        if (self.first(first), self.last(last)) != wanted {
            return Err("a proof of something else".to_owned());
        }
        self.chain(steps)?;
        Ok(std::mem::take(&mut self.counts))
    }

    fn intern(&mut self, head: u32, children: Vec<usize>) -> usize {
        let next = self.nodes.len();
        let id = *self.terms.entry((head, children.clone())).or_insert(next);
        if id == next {
            self.nodes.push((head, children));
        }
        id
    }

    fn intern_expr(&mut self, expr: &RecExpr<Node>) -> usize {
        let mut ids: Vec<usize> = Vec::new();
        for node in expr.iter() {
            let children =
                node.children.iter().filter_map(|c| ids.get(usize::from(*c)).copied()).collect();
            let id = self.intern(node.head, children);
            ids.push(id);
        }
        ids.last().copied().unwrap_or_default()
    }

    /// The term that an explained term starts as.
    fn first(&mut self, term: &Rc<TreeTerm<Node>>) -> usize {
        if let Some(id) = self.firsts.get(&Rc::as_ptr(term)) {
            return *id;
        }
        let children: Vec<usize> =
            term.child_proofs.iter().filter_map(|p| p.first()).map(|t| self.first(t)).collect();
        let id = self.intern(term.node.head, children);
        self.firsts.insert(Rc::as_ptr(term), id);
        id
    }

    /// The term that it ends as.
    fn last(&mut self, term: &Rc<TreeTerm<Node>>) -> usize {
        if let Some(id) = self.lasts.get(&Rc::as_ptr(term)) {
            return *id;
        }
        let children: Vec<usize> =
            term.child_proofs.iter().filter_map(|p| p.last()).map(|t| self.last(t)).collect();
        let id = self.intern(term.node.head, children);
        self.lasts.insert(Rc::as_ptr(term), id);
        id
    }

    fn chain(&mut self, steps: &Steps) -> Result<(), String> {
        for pair in steps.windows(2) {
            let [current, next] = pair else { continue };
            let (from, to) = (self.last(current), self.first(next));
            match (next.forward_rule, next.backward_rule) {
                (Some(rule), None) => self.step(rule, from, to)?,
                (None, Some(rule)) => self.step(rule, to, from)?,
                // Congruence: the same node over explained children.
                _ if from == to => {}
                _ => return Err("a step without a rule".to_owned()),
            }
        }
        for term in steps {
            if self.checked.insert(Rc::as_ptr(term)) {
                for children in &term.child_proofs {
                    self.chain(children)?;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, rule: Symbol, from: usize, to: usize) -> Result<(), String> {
        let number: u32 = rule.as_str().parse().map_err(|_| format!("no rule `{rule}`"))?;
        let instances = self.instances;
        let instance = instances.get(number as usize).ok_or_else(|| format!("no rule `{rule}`"))?;
        let mut bound: BTreeMap<Var, usize> = BTreeMap::new();
        let left = Id::from(instance.left.len().saturating_sub(1));
        let right = Id::from(instance.right.len().saturating_sub(1));
        let holds = self.matches(&instance.left, left, from, &mut bound)
            && self.matches(&instance.right, right, to, &mut bound);
        if !holds {
            return Err(format!("a step that is not `{}`", instance.rule));
        }
        self.used.insert(number);
        *self.counts.entry(instance.rule).or_insert(0) += 1;
        Ok(())
    }

    fn matches(
        &self,
        ast: &PatternAst<Node>,
        at: Id,
        term: usize,
        bound: &mut BTreeMap<Var, usize>,
    ) -> bool {
        match &ast[at] {
            ENodeOrVar::Var(var) => *bound.entry(*var).or_insert(term) == term,
            ENodeOrVar::ENode(node) => {
                let Some((head, children)) = self.nodes.get(term) else { return false };
                *head == node.head
                    && children.len() == node.children.len()
                    && node
                        .children
                        .iter()
                        .zip(children)
                        .all(|(at, term)| self.matches(ast, *at, *term, bound))
            }
        }
    }

    /// How many terms the proof has when it is written out step by step.
    fn flat_size(&self, proof: &Explanation<Node>) -> f64 {
        let mut memo = HashMap::new();
        let (length, size) = flat_chain(&proof.explanation_trees, &mut memo);
        length * size
    }
}

/// The number of steps and the size of the largest term of a chain, written out.
fn flat_chain(steps: &Steps, memo: &mut HashMap<*const TreeTerm<Node>, (f64, f64)>) -> (f64, f64) {
    let mut total = (0.0, 1.0_f64);
    for term in steps {
        let known = memo.get(&Rc::as_ptr(term)).copied();
        let (length, size) = known.unwrap_or_else(|| {
            let (mut length, mut size) = (1.0, 1.0);
            for child in &term.child_proofs {
                let (l, s) = flat_chain(child, memo);
                length += l - 1.0;
                size += s;
            }
            memo.insert(Rc::as_ptr(term), (length, size));
            (length, size)
        });
        total = (total.0 + length, total.1.max(size));
    }
    total
}
