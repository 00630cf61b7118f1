//! Attributes of ops: what is printed between the mnemonic and the arguments.

use crate::ir::types::axis_text;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use std::fmt;

/// One attribute's value. Each kind has its own spelling, so text parses back without a schema.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// `4`
    Int(i64),
    /// `1e-6`, `0.5`: always with a point or an exponent
    Float(f64),
    /// `t`: an axis name or a keyword
    Word(String),
    /// `[b, t]`
    Words(Vec<String>),
    /// `{u-2}`
    Size(Size),
    /// `<h=4>`, `<h=4, k=32>`
    Axes(Vec<Axis>),
    /// `"layers"`
    Text(String),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Int(value) => write!(f, "{value}"),
            Attr::Float(value) => write!(f, "{value:?}"),
            Attr::Word(word) => f.write_str(word),
            Attr::Words(words) => write!(f, "[{}]", words.join(", ")),
            Attr::Size(size) => write!(f, "{{{size}}}"),
            Attr::Axes(axes) => {
                let texts: Vec<String> = axes.iter().map(axis_text).collect();
                write!(f, "<{}>", texts.join(", "))
            }
            Attr::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Attributes by name, in print order.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Attrs(pub Vec<(String, Attr)>);

impl Attrs {
    /// Adds one.
    #[must_use]
    pub fn with(mut self, name: &str, value: Attr) -> Self {
        self.0.push((name.to_owned(), value));
        self
    }

    /// Adds a keyword or axis name.
    #[must_use]
    pub fn word(self, name: &str, value: &str) -> Self {
        self.with(name, Attr::Word(value.to_owned()))
    }

    /// Adds a list of names.
    #[must_use]
    pub fn words(self, name: &str, value: &[String]) -> Self {
        self.with(name, Attr::Words(value.to_vec()))
    }

    /// Adds a floating-point number.
    #[must_use]
    pub fn float(self, name: &str, value: f64) -> Self {
        self.with(name, Attr::Float(value))
    }

    /// Adds a whole number.
    #[must_use]
    pub fn int(self, name: &str, value: i64) -> Self {
        self.with(name, Attr::Int(value))
    }

    /// Adds a size.
    #[must_use]
    pub fn size(self, name: &str, value: &Size) -> Self {
        self.with(name, Attr::Size(value.clone()))
    }

    /// Adds axes with sizes.
    #[must_use]
    pub fn axes(self, name: &str, value: &[Axis]) -> Self {
        self.with(name, Attr::Axes(value.to_vec()))
    }

    /// Whether there is one of this name, for an attribute that an op need not have.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    fn take(&mut self, name: &str) -> Result<Attr, String> {
        let index = self
            .0
            .iter()
            .position(|(known, _)| known == name)
            .ok_or_else(|| format!("attribute `{name}` is missing"))?;
        Ok(self.0.remove(index).1)
    }

    /// Takes a keyword or axis name.
    ///
    /// # Errors
    /// Missing, or of another kind; so for all `take_` functions.
    pub fn take_word(&mut self, name: &str) -> Result<String, String> {
        match self.take(name)? {
            Attr::Word(word) => Ok(word),
            other => Err(format!("attribute `{name}` is a name, not {other}")),
        }
    }

    /// Takes a list of names.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_words(&mut self, name: &str) -> Result<Vec<String>, String> {
        match self.take(name)? {
            Attr::Words(words) => Ok(words),
            other => Err(format!("attribute `{name}` is a list of names, not {other}")),
        }
    }

    /// Takes a floating-point number.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_float(&mut self, name: &str) -> Result<f64, String> {
        match self.take(name)? {
            Attr::Float(value) => Ok(value),
            other => Err(format!("attribute `{name}` is a floating-point number, not {other}")),
        }
    }

    /// Takes a whole number.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_int(&mut self, name: &str) -> Result<i64, String> {
        match self.take(name)? {
            Attr::Int(value) => Ok(value),
            other => Err(format!("attribute `{name}` is a whole number, not {other}")),
        }
    }

    /// Takes a whole number that indexes something.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_index(&mut self, name: &str) -> Result<u32, String> {
        let value = self.take_int(name)?;
        u32::try_from(value).map_err(|_| format!("attribute `{name}` is an index, not {value}"))
    }

    /// Takes a text in quotes.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_text(&mut self, name: &str) -> Result<String, String> {
        match self.take(name)? {
            Attr::Text(text) => Ok(text),
            other => Err(format!("attribute `{name}` is a text in quotes, not {other}")),
        }
    }

    /// Takes a size.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_size(&mut self, name: &str) -> Result<Size, String> {
        match self.take(name)? {
            Attr::Size(size) => Ok(size),
            other => Err(format!("attribute `{name}` is a size in braces, not {other}")),
        }
    }

    /// Takes axes with sizes.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_axes(&mut self, name: &str) -> Result<Vec<Axis>, String> {
        match self.take(name)? {
            Attr::Axes(axes) => Ok(axes),
            other => Err(format!("attribute `{name}` is a list of axes in <>, not {other}")),
        }
    }

    /// Takes exactly one axis with its size.
    ///
    /// # Errors
    /// See [`Attrs::take_word`].
    pub fn take_axis(&mut self, name: &str) -> Result<Axis, String> {
        let mut axes = self.take_axes(name)?;
        match (axes.pop(), axes.is_empty()) {
            (Some(axis), true) => Ok(axis),
            _ => Err(format!("attribute `{name}` is one axis")),
        }
    }

    /// Checks that every attribute has been taken.
    ///
    /// # Errors
    /// Names one that the op does not have.
    pub fn finish(self, mnemonic: &str) -> Result<(), String> {
        match self.0.first() {
            Some((name, _)) => Err(format!("`{mnemonic}` has no attribute `{name}`")),
            None => Ok(()),
        }
    }
}
