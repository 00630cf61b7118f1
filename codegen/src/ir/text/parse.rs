//! Text to module.

use crate::ir::graph::{
    Backward, FuncId, Function, Module, Node, NodeId, Output, Param, State, Sub, Table, Value,
    ValueId,
};
use crate::ir::types::{Type, dtype_from_word};
use crate::ops::{Attr, Attrs, parse_op};
use lightc_dsl::model::{Active, Axis, Format, InitLaw, MemberRef, Storage};
use lightc_dsl::size::Size;
use std::fmt;

/// Why a text is not a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// One-based line.
    pub line: usize,
    /// What was expected.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Reads a module from its text form. The result is not verified.
///
/// # Errors
/// The first place where the text is not of the form.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.module().map_err(|message| ParseError {
        line: text.get(..cursor.at).unwrap_or("").matches('\n').count() + 1,
        message,
    })
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_space(&mut self) {
        let trimmed = self.rest().trim_start();
        self.at = self.text.len() - trimmed.len();
    }

    /// Takes `token` if it is next.
    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Parsed<()> {
        if self.eat(token) {
            return Ok(());
        }
        let next: String = self.rest().chars().take(20).collect();
        Err(format!("expected `{token}`, found {next:?}"))
    }

    /// Takes `word` if it is the whole next word.
    fn eat_word(&mut self, word: &str) -> bool {
        self.skip_space();
        let found = self.peek_word() == word;
        if found {
            self.at += word.len();
        }
        found
    }

    fn peek_word(&mut self) -> &'a str {
        self.skip_space();
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
            .unwrap_or(rest.len());
        rest.get(..end).unwrap_or("")
    }

    fn word(&mut self) -> Parsed<String> {
        let word = self.peek_word();
        if word.is_empty() {
            let next: String = self.rest().chars().take(20).collect();
            return Err(format!("expected a word, found {next:?}"));
        }
        self.at += word.len();
        Ok(word.to_owned())
    }

    fn int<T: std::str::FromStr>(&mut self) -> Parsed<T> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("expected a whole number, found `{word}`"))
    }

    fn number_text(&mut self) -> &'a str {
        self.skip_space();
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.')))
            .unwrap_or(rest.len());
        let text = rest.get(..end).unwrap_or("");
        self.at += text.len();
        text
    }

    fn float(&mut self) -> Parsed<f64> {
        let text = self.number_text();
        text.parse().map_err(|_| format!("expected a number, found `{text}`"))
    }

    /// A text in quotes with Rust's escapes.
    fn quoted(&mut self) -> Parsed<String> {
        self.expect("\"")?;
        let mut escaped = false;
        for (offset, c) in self.rest().char_indices() {
            match c {
                '"' if !escaped => {
                    let literal = self.text.get(self.at - 1..self.at + offset + 1).unwrap_or("");
                    self.at += offset + 1;
                    return syn::parse_str::<syn::LitStr>(literal)
                        .map(|lit| lit.value())
                        .map_err(|e| format!("bad text: {e}"));
                }
                '\\' => escaped = !escaped,
                _ => escaped = false,
            }
        }
        Err("a text in quotes does not end".into())
    }

    /// `open item, item close`
    fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        item: impl Fn(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            self.expect(",")?;
        }
    }

    fn module(&mut self) -> Parsed<Module> {
        self.expect("module")?;
        let name = self.word()?;
        self.expect("entry")?;
        self.expect("@")?;
        let entry = self.word()?;
        let mut module = Module { name, ..Module::default() };
        loop {
            if self.eat_word("func") {
                let function = self.function(&module)?;
                module.functions.push(function);
            } else if self.eat_word("backward") {
                let backward = self.backward(&module)?;
                module.backward.push(backward);
            } else {
                break;
            }
        }
        self.skip_space();
        if !self.rest().is_empty() {
            return Err("expected `func`, `backward` or the end".into());
        }
        module.entry =
            module.find(&entry).ok_or_else(|| format!("entry @{entry} is not defined"))?;
        Ok(module)
    }

    fn function_ref(&mut self, module: &Module) -> Parsed<FuncId> {
        self.expect("@")?;
        let name = self.word()?;
        module.find(&name).ok_or_else(|| format!("@{name} is not defined before its use"))
    }

    fn function(&mut self, module: &Module) -> Parsed<Function> {
        self.expect("@")?;
        let mut function = Function { name: self.word()?, ..Function::default() };
        self.expect("{")?;
        if self.eat_word("doc") {
            function.doc = Some(self.quoted()?);
        }
        if self.eat_word("open") {
            function.open_sizes = self.list("[", "]", Self::word)?;
        }
        loop {
            if self.eat_word("param") {
                let param = self.param()?;
                function.order.push(MemberRef::Param(function.params.len()));
                function.params.push(param);
            } else if self.eat_word("sub") {
                let sub = self.sub(module, false)?;
                function.order.push(MemberRef::Sub(function.subs.len()));
                function.subs.push(sub);
            } else if self.eat_word("stack") {
                let sub = self.sub(module, true)?;
                function.order.push(MemberRef::Sub(function.subs.len()));
                function.subs.push(sub);
            } else if self.eat_word("state") {
                let name = self.word()?;
                self.expect(":")?;
                let ty = self.ty()?;
                self.expect("=")?;
                let start = self.float()?;
                function.states.push(State { name, ty, start, span: None });
            } else if self.eat_word("table") {
                let name = self.word()?;
                self.expect(":")?;
                let ty = self.ty()?;
                self.expect("from")?;
                function.tables.push(Table { name, ty, from: self.quoted()?, span: None });
            } else {
                break;
            }
        }
        self.nodes(&mut function)?;
        while self.eat_word("update") {
            let name = self.word()?;
            let index = function.states.iter().position(|state| state.name == name);
            self.expect("=")?;
            let value = self.value()?;
            function.updates.push((index.ok_or_else(|| format!("no state `{name}`"))?, value));
        }
        self.returns(&mut function)?;
        self.expect("}")?;
        Ok(function)
    }

    fn param(&mut self) -> Parsed<Param> {
        let name = self.word()?;
        self.expect(":")?;
        let ty = self.ty()?;
        self.expect("~")?;
        let init = self.init()?;
        let storage = if self.eat_word("frozen") {
            Storage::Frozen(self.quoted()?)
        } else if self.eat_word("quantized") {
            let word = self.word()?;
            let format = Format::from_word(&word);
            Storage::Quantized(format.ok_or_else(|| format!("`{word}` is not a format"))?)
        } else if self.eat_word("adapter") {
            Storage::Adapter
        } else {
            self.expect("trained")?;
            Storage::Trained
        };
        let active = if self.eat_word("active") {
            let count = self.size()?;
            self.expect("of")?;
            Some(Active { count, of: self.word()? })
        } else {
            None
        };
        let doc = if self.eat_word("doc") { Some(self.quoted()?) } else { None };
        Ok(Param { name, ty, init, storage, active, doc, span: None })
    }

    fn init(&mut self) -> Parsed<InitLaw> {
        let law = self.word()?;
        let args = self.list("(", ")", Self::float)?;
        match (law.as_str(), args.as_slice()) {
            ("zeros", []) => Ok(InitLaw::Zeros),
            ("ones", []) => Ok(InitLaw::Ones),
            ("constant", [value]) => Ok(InitLaw::Constant { value: *value }),
            ("normal", [std]) => Ok(InitLaw::Normal { std: *std }),
            ("uniform", [low, high]) => Ok(InitLaw::Uniform { low: *low, high: *high }),
            ("log_uniform", [low, high]) => Ok(InitLaw::LogUniform { low: *low, high: *high }),
            _ => Err(format!("`{law}` with {} numbers is not an init law", args.len())),
        }
    }

    fn sub(&mut self, module: &Module, is_stack: bool) -> Parsed<Sub> {
        let name = self.word()?;
        self.expect("=")?;
        let callees = self.list("[", "]", |cursor| cursor.function_ref(module))?;
        let training_only = self.eat_word("training_only");
        Ok(Sub { name, callees, is_stack, training_only, span: None })
    }

    fn backward(&mut self, module: &Module) -> Parsed<Backward> {
        self.expect("@")?;
        let mut body = Function { name: self.word()?, ..Function::default() };
        self.expect("of")?;
        let of = self.function_ref(module)?;
        self.expect("seeds")?;
        let seeds = self.list("[", "]", |cursor| {
            let word = cursor.word()?;
            word.parse().map_err(|_| format!("`{word}` is not a truth value"))
        })?;
        self.expect("inputs")?;
        let inputs = self.list("[", "]", |cursor| {
            if cursor.eat_word("none") { Ok(None) } else { cursor.int().map(Some) }
        })?;
        self.expect("{")?;
        if self.eat_word("doc") {
            body.doc = Some(self.quoted()?);
        }
        self.nodes(&mut body)?;
        let mut grads = Vec::new();
        while self.eat_word("grad") {
            let index = self.int()?;
            self.expect("=")?;
            grads.push((index, self.value()?));
        }
        self.returns(&mut body)?;
        self.expect("}")?;
        Ok(Backward { of, seeds, body, inputs, grads })
    }

    fn value(&mut self) -> Parsed<ValueId> {
        self.expect("%")?;
        self.int().map(ValueId)
    }

    /// `%3` or `%3.name`
    fn definition(&mut self) -> Parsed<(ValueId, Option<String>)> {
        self.expect("%")?;
        let word = self.word()?;
        let (number, name) = match word.split_once('.') {
            Some((number, name)) => (number, Some(name.to_owned())),
            None => (word.as_str(), None),
        };
        let id = number.parse().map_err(|_| format!("`%{word}` is not a value"))?;
        Ok((ValueId(id), name))
    }

    fn nodes(&mut self, function: &mut Function) -> Parsed<()> {
        loop {
            self.skip_space();
            let defines = self.rest().starts_with('%');
            if !defines && !matches!(self.peek_word(), "call_backward" | "stack_backward") {
                return Ok(());
            }
            self.node(function, defines)?;
        }
    }

    fn node(&mut self, function: &mut Function, defines: bool) -> Parsed<()> {
        let mut definitions = Vec::new();
        if defines {
            definitions.push(self.definition()?);
            while !self.eat("=") {
                self.expect(",")?;
                definitions.push(self.definition()?);
            }
        }
        let mnemonic = self.word()?;
        let attrs = self.attrs()?;
        let args = self.list("(", ")", Self::value)?;
        let op = parse_op(&mnemonic, attrs)?;
        let id = NodeId(function.nodes.len() as u32);
        if !definitions.is_empty() {
            self.expect(":")?;
        }
        let mut results = Vec::new();
        for (position, (value, name)) in definitions.into_iter().enumerate() {
            if position > 0 {
                self.expect(",")?;
            }
            if value.0 as usize != function.values.len() {
                return Err(format!("{value} is out of order: values are numbered as defined"));
            }
            function.values.push(Value { ty: self.ty()?, node: id, name });
            results.push(value);
        }
        if args.iter().any(|arg| arg.0 as usize >= function.values.len()) {
            return Err("an argument is not defined".into());
        }
        function.nodes.push(Node { op, args, results, span: None });
        Ok(())
    }

    fn attrs(&mut self) -> Parsed<Attrs> {
        let mut attrs = Attrs::default();
        loop {
            self.skip_space();
            if self.rest().starts_with('(') {
                return Ok(attrs);
            }
            let name = self.word()?;
            self.expect("=")?;
            attrs = attrs.with(&name, self.attr()?);
        }
    }

    fn attr(&mut self) -> Parsed<Attr> {
        self.skip_space();
        match self.rest().chars().next() {
            Some('[') => self.list("[", "]", Self::word).map(Attr::Words),
            Some('{') => {
                self.expect("{")?;
                let size = self.size()?;
                self.expect("}")?;
                Ok(Attr::Size(size))
            }
            Some('<') => self.list("<", ">", Self::axis).map(Attr::Axes),
            Some('"') => self.quoted().map(Attr::Text),
            Some(c) if c.is_ascii_digit() || c == '-' => self.number_attr(),
            _ => {
                let word = self.word()?;
                match word.as_str() {
                    "inf" => Ok(Attr::Float(f64::INFINITY)),
                    "NaN" => Ok(Attr::Float(f64::NAN)),
                    _ => Ok(Attr::Word(word)),
                }
            }
        }
    }

    fn number_attr(&mut self) -> Parsed<Attr> {
        let text = self.number_text();
        if let Ok(int) = text.parse::<i64>() {
            return Ok(Attr::Int(int));
        }
        text.parse().map(Attr::Float).map_err(|_| format!("expected a number, found `{text}`"))
    }

    fn ty(&mut self) -> Parsed<Type> {
        let word = self.word()?;
        let dtype = dtype_from_word(&word).ok_or_else(|| format!("`{word}` is not a dtype"))?;
        Ok(Type::new(dtype, self.list("[", "]", Self::axis)?))
    }

    /// `d=4096`, or `t` for an axis whose size is the size name `t`.
    fn axis(&mut self) -> Parsed<Axis> {
        let name = self.word()?;
        let size = if self.eat("=") { self.size()? } else { Size::symbol(&name) };
        Ok(Axis { name, size })
    }

    /// A sum of products as [`Size`] prints it.
    fn size(&mut self) -> Parsed<Size> {
        let overflow = || "a size overflows".to_owned();
        let mut total = Size::default();
        let mut negative = self.eat("-");
        loop {
            let mut product = Size::constant(if negative { -1 } else { 1 });
            loop {
                let word = self.word()?;
                let factor = match word.parse::<i64>() {
                    Ok(number) => Size::constant(number),
                    Err(_) => Size::symbol(word),
                };
                product = product.checked_mul(&factor).ok_or_else(overflow)?;
                if !self.eat("*") {
                    break;
                }
            }
            total = total.checked_add(&product).ok_or_else(overflow)?;
            if self.eat("+") {
                negative = false;
            } else if self.eat("-") {
                negative = true;
            } else {
                return Ok(total);
            }
        }
    }

    fn returns(&mut self, function: &mut Function) -> Parsed<()> {
        self.expect("return")?;
        loop {
            self.skip_space();
            if self.rest().starts_with('}') {
                return Ok(());
            }
            let name = if self.rest().starts_with('%') {
                None
            } else {
                let name = self.word()?;
                self.expect(":")?;
                Some(name)
            };
            let value = self.value()?;
            if value.0 as usize >= function.values.len() {
                return Err(format!("{value} is not defined"));
            }
            function.outputs.push(Output { name, value });
            self.eat(",");
        }
    }
}
