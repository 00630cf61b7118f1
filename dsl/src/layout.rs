//! Characters to logical lines, and lines to nested bodies.
//!
//! Newlines end statements here, so the shape of a file is known before its lines are parsed.
//! That is what lets one bad line be reported without hiding errors in the others: each line is
//! parsed alone, and an unclosed bracket or brace ends at the next `{`, `}` or at the next line
//! that starts an item in its first column.
//!
//! A line goes on after an operator and inside brackets. Comments are kept beside the lines for
//! the formatter; in [`Layout::text`] they are blank, at the same byte offsets as in the source.

use crate::diag::{Diag, codes};
use crate::source::{SourceId, Span};
use std::ops::Range;

/// Deepest nesting of brackets in one line. More would make the recursion of later steps deep.
const MAX_BRACKETS: usize = 48;
/// A block holds a forward, and a forward holds lines.
const MAX_BODIES: usize = 2;
/// No hand-written file comes near; it bounds the time that one check can take.
const MAX_BYTES: usize = 4 << 20;
/// Bodies within each other from which on the rest of a file is left; what the language has is below that.
const DEEPEST_BODY: usize = 16;
/// Errors of brackets, braces and quotes of one file that are reported.
const MOST_ERRORS: usize = 100;

/// The shape of one file.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The source with comments blank: same length, same offsets.
    pub(crate) text: String,
    /// Top-level lines.
    pub(crate) nodes: Vec<Node>,
    /// Comments after the last line.
    pub(crate) end: Vec<Comment>,
    /// Brackets and braces that do not match, limits.
    pub(crate) diags: Vec<Diag>,
}

/// A comment, on a line of its own or after something.
#[derive(Clone, Debug)]
pub(crate) struct Comment {
    /// From the first slash to the end of its line.
    pub(crate) range: Range<usize>,
    /// `///` where documentation can stand.
    pub(crate) doc: bool,
    /// A blank line stands before it.
    pub(crate) blank_before: bool,
}

/// A logical line, with the body that it opens if it ends in `{`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    /// Its characters, without surrounding blanks and without `{`.
    pub(crate) range: Range<usize>,
    /// Comments and documentation on lines of their own before it.
    pub(crate) before: Vec<Comment>,
    /// A blank line stands right before it.
    pub(crate) blank_before: bool,
    /// Comments inside it, or after it on its last line.
    pub(crate) comments: Vec<Comment>,
    /// What is between its braces.
    pub(crate) body: Option<Body>,
    /// Already reported: only its first word can be trusted.
    pub(crate) broken: bool,
}

/// What is between braces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    /// Its lines.
    pub(crate) nodes: Vec<Node>,
    /// Where `{` is.
    pub(crate) open: usize,
    /// One past `}`, or where the body was taken to end.
    pub(crate) close: usize,
    /// Comments between the last line and `}`.
    pub(crate) end: Vec<Comment>,
    /// A comment after `}` on the same line.
    pub(crate) after: Option<Comment>,
}

/// What the last character that is not blank belongs to: a comment after it on the same line
/// is about that.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Nothing,
    Comment,
    Line,
    Open,
    Close,
}

struct Scanner<'a> {
    source: SourceId,
    bytes: &'a [u8],
    text: Vec<u8>,
    at: usize,
    /// Finished lines of the file and of every open body, outermost first.
    levels: Vec<Vec<Node>>,
    /// The heads of the open bodies.
    heads: Vec<Node>,
    line: Option<Node>,
    brackets: Vec<(u8, usize)>,
    too_deep: bool,
    waiting: Vec<Comment>,
    blank: bool,
    last: Last,
    diags: Vec<Diag>,
}

/// The layout of `text`.
pub(crate) fn scan(source: SourceId, text: &str) -> Layout {
    if text.len() > MAX_BYTES {
        let message = format!(
            "the file has {} bytes, and the limit for one source file is {MAX_BYTES}",
            text.len()
        );
        let diag = Diag::error(codes::TOO_LARGE, message, span(source, 0..0), "in this file")
            .with_help("split it into several files and import them");
        return Layout {
            text: String::new(),
            nodes: Vec::new(),
            end: Vec::new(),
            diags: vec![diag],
        };
    }
    let mut scanner = Scanner {
        source,
        bytes: text.as_bytes(),
        text: text.as_bytes().to_vec(),
        at: 0,
        levels: vec![Vec::new()],
        heads: Vec::new(),
        line: None,
        brackets: Vec::new(),
        too_deep: false,
        waiting: Vec::new(),
        blank: false,
        last: Last::Nothing,
        diags: Vec::new(),
    };
    scanner.run();
    scanner.finish()
}

pub(crate) fn span(source: SourceId, range: Range<usize>) -> Span {
    Span { source, start: range.start as u32, end: range.end as u32 }
}

impl Scanner<'_> {
    fn run(&mut self) {
        self.byte_order_mark();
        while let Some(byte) = self.peek(0) {
            if self.gives_up() {
                return;
            }
            if self.starts_item() && !(self.heads.is_empty() && self.brackets.is_empty()) {
                self.recover();
            }
            match byte {
                b'\n' => self.newline(),
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'/' if self.peek(1) == Some(b'/') => self.comment(),
                b'"' => self.string(),
                b'(' | b'[' => self.open_bracket(byte),
                b')' | b']' => self.close_bracket(byte),
                b'{' => self.open_body(),
                b'}' => self.close_body(),
                _ => self.extend(1),
            }
        }
    }

    /// Makes the mark that some editors write at the start of a file blank, as comments are.
    fn byte_order_mark(&mut self) {
        let mark = "\u{feff}".as_bytes();
        if self.bytes.starts_with(mark) {
            self.at = mark.len();
            self.text.iter_mut().take(mark.len()).for_each(|byte| *byte = b' ');
        }
    }

    /// Whether the rest of the file is left: no person has written it, and to report all of it would take a time that grows
    /// with the square of its length.
    fn gives_up(&mut self) -> bool {
        let (too_deep, too_many) =
            (self.heads.len() > DEEPEST_BODY, self.diags.len() >= MOST_ERRORS);
        if !too_deep && !too_many {
            return false;
        }
        let place = span(self.source, self.at..self.at + 1);
        let (code, message) = if too_deep {
            (codes::TOO_DEEP, format!("bodies are nested more than {DEEPEST_BODY} deep"))
        } else {
            (codes::TOO_LARGE, format!("brackets and braces do not match in {MOST_ERRORS} places"))
        };
        self.diags.push(Diag::error(code, message, place, "from here on the file is not read"));
        true
    }

    fn finish(mut self) -> Layout {
        self.recover();
        let nodes = self.levels.pop().unwrap_or_default();
        let text = String::from_utf8_lossy(&self.text).into_owned();
        Layout { text, nodes, end: self.waiting, diags: self.diags }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    /// At the start of a physical line that begins with `block `, `stage `, `grow ` or `import `.
    fn starts_item(&self) -> bool {
        let line_start = self.at == 0 || self.bytes.get(self.at - 1) == Some(&b'\n');
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        line_start
            && [&b"block "[..], b"stage ", b"grow ", b"import "]
                .iter()
                .any(|word| rest.starts_with(word))
    }

    /// Closes everything that is still open.
    fn recover(&mut self) {
        self.end_line();
        while let Some(head) = self.heads.last() {
            let open = head.body.as_ref().map_or(0, |b| b.open);
            let what = self.word(&head.range);
            self.diags.push(
                Diag::error(
                    codes::UNCLOSED,
                    format!("the body of this {what} is not closed"),
                    span(self.source, open..open + 1),
                    "`{` without its `}`",
                )
                .with_help("add `}` after the last line of the body"),
            );
            self.pop_body();
        }
    }

    fn word(&self, range: &Range<usize>) -> String {
        let text = self.bytes.get(range.clone()).unwrap_or_default();
        let word: Vec<u8> =
            text.iter().copied().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').collect();
        if word.is_empty() {
            "line".to_owned()
        } else {
            format!("`{}`", String::from_utf8_lossy(&word))
        }
    }

    /// Adds `count` bytes to the current line.
    fn extend(&mut self, count: usize) {
        let end = self.at + count;
        if let Some(line) = &mut self.line {
            line.range.end = end;
        } else {
            self.line = Some(Node {
                range: self.at..end,
                before: std::mem::take(&mut self.waiting),
                blank_before: std::mem::take(&mut self.blank),
                ..Node::default()
            });
        }
        self.at = end;
        self.last = Last::Line;
    }

    fn newline(&mut self) {
        if self.line.is_some() {
            if self.brackets.is_empty() && !self.continues() {
                self.end_line();
            }
        } else if self.last == Last::Nothing {
            self.blank = true;
        }
        self.at += 1;
        if self.line.is_none() {
            self.last = Last::Nothing;
        }
    }

    /// The current line ends in something that needs more.
    fn continues(&self) -> bool {
        let Some(line) = &self.line else { return false };
        let text = self.text.get(line.range.clone()).unwrap_or_default();
        let text = text.trim_ascii_end();
        // `src.layers.**` ends a path.
        if text.ends_with(b".*") || text.ends_with(b".**") {
            return false;
        }
        let last = text.last();
        matches!(last, Some(b'+' | b'-' | b'*' | b'/' | b'<' | b'>' | b'=' | b'~' | b':' | b','))
    }

    fn end_line(&mut self) {
        self.report_open_bracket();
        if let Some(line) = self.line.take()
            && let Some(level) = self.levels.last_mut()
        {
            level.push(line);
        }
    }

    /// Reports a bracket that is still open where the line ends. What the line holds is unknown
    /// then: its parse would only repeat the complaint.
    fn report_open_bracket(&mut self) {
        if let Some(&(bracket, at)) = self.brackets.first() {
            let message = format!("`{}` is not closed", bracket as char);
            let close = if bracket == b'(' { ')' } else { ']' };
            self.diags.push(
                Diag::error(codes::UNCLOSED, message, span(self.source, at..at + 1), "opened here")
                    .with_help(format!("add the missing `{close}`")),
            );
            self.mark_broken();
        }
        self.brackets.clear();
        self.too_deep = false;
    }

    fn mark_broken(&mut self) {
        if let Some(line) = &mut self.line {
            line.broken = true;
        }
    }

    fn comment(&mut self) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let range = self.at..self.at + length;
        for byte in self.text.get_mut(range.clone()).unwrap_or_default() {
            *byte = b' ';
        }
        self.at = range.end;
        let doc = rest.starts_with(b"///")
            && !rest.starts_with(b"////")
            && self.heads.len() < MAX_BODIES
            && self.last == Last::Nothing;
        let comment = Comment { range, doc, blank_before: false };
        self.place_comment(comment);
    }

    fn place_comment(&mut self, mut comment: Comment) {
        if let Some(line) = &mut self.line {
            line.comments.push(comment);
            return;
        }
        let newest = self.levels.last_mut().and_then(|l| l.last_mut());
        match (self.last, newest) {
            (Last::Open, _) => {
                if let Some(head) = self.heads.last_mut() {
                    head.comments.push(comment);
                }
            }
            (Last::Close, Some(Node { body: Some(body), .. })) if body.after.is_none() => {
                body.after = Some(comment);
            }
            (Last::Line, Some(node)) => node.comments.push(comment),
            _ => {
                comment.blank_before = std::mem::take(&mut self.blank);
                self.waiting.push(comment);
                self.last = Last::Comment;
            }
        }
    }

    fn string(&mut self) {
        let rest = self.bytes.get(self.at + 1..).unwrap_or_default();
        let length = rest.iter().position(|&b| b == b'"' || b == b'\n');
        match length {
            Some(length) if rest.get(length) == Some(&b'"') => self.extend(length + 2),
            _ => {
                let length = length.unwrap_or(rest.len()) + 1;
                let place = span(self.source, self.at..self.at + length);
                self.diags.push(
                    Diag::error(
                        codes::UNCLOSED,
                        "the text in quotes is not closed",
                        place,
                        "opened here",
                    )
                    .with_help("add `\"` before the end of the line"),
                );
                self.extend(length);
                self.brackets.clear();
                self.mark_broken();
                self.end_line();
            }
        }
    }

    fn open_bracket(&mut self, byte: u8) {
        if self.brackets.len() >= MAX_BRACKETS {
            if !self.too_deep {
                let message = format!("brackets are nested more than {MAX_BRACKETS} deep");
                let place = span(self.source, self.at..self.at + 1);
                self.diags.push(
                    Diag::error(codes::TOO_DEEP, message, place, "one level too many")
                        .with_help("name parts of the expression on lines of their own"),
                );
            }
            self.too_deep = true;
        }
        self.brackets.push((byte, self.at));
        self.extend(1);
    }

    fn close_bracket(&mut self, byte: u8) {
        let expected = if byte == b')' { b'(' } else { b'[' };
        match self.brackets.last() {
            Some(&(open, _)) if open == expected => {
                self.brackets.pop();
                self.extend(1);
                if self.brackets.is_empty() && self.too_deep {
                    self.mark_broken();
                    self.too_deep = false;
                }
            }
            Some(&(open, at)) => {
                let place = span(self.source, self.at..self.at + 1);
                let message = format!("`{}` is closed by `{}`", open as char, byte as char);
                self.diags.push(
                    Diag::error(codes::UNCLOSED, message, place, "closes the wrong bracket")
                        .with_related(span(self.source, at..at + 1), "opened here"),
                );
                self.brackets.pop();
                self.extend(1);
                self.drop_line();
            }
            None => {
                let place = span(self.source, self.at..self.at + 1);
                let message = format!("`{}` closes nothing", byte as char);
                self.diags.push(
                    Diag::error(codes::UNCLOSED, message, place, "no bracket is open here")
                        .with_help("remove it, or add the bracket that it closes"),
                );
                self.extend(1);
                self.drop_line();
            }
        }
    }

    /// Skips to the end of the physical line: its brackets are already reported.
    fn drop_line(&mut self) {
        self.brackets.clear();
        while !matches!(self.peek(0), None | Some(b'\n' | b'{' | b'}')) {
            self.at += 1;
        }
        self.mark_broken();
    }

    fn open_body(&mut self) {
        let had_line = self.line.is_some();
        let waiting_brackets = !self.brackets.is_empty();
        if waiting_brackets {
            self.report_open_bracket();
        }
        let mut head = self.line.take().unwrap_or_default();
        let place = span(self.source, self.at..self.at + 1);
        if !had_line {
            head.range = self.at..self.at;
            self.diags.push(
                Diag::error(codes::UNEXPECTED, "`{` follows nothing", place, "opens a body")
                    .with_help(
                        "a body follows `block`, `stage`, `grow` or `forward` on the same line",
                    ),
            );
        } else if self.heads.len() >= MAX_BODIES {
            self.diags.push(Diag::error(
                codes::TOO_DEEP,
                "a body stands inside the body of a forward",
                place,
                "one level too many",
            ));
        }
        head.body = Some(Body { open: self.at, close: self.at + 1, ..Body::default() });
        // A head whose brackets do not close cannot be parsed; its body can still be scanned.
        head.broken |= !had_line;
        self.heads.push(head);
        self.levels.push(Vec::new());
        self.at += 1;
        self.last = Last::Open;
    }

    fn close_body(&mut self) {
        self.end_line();
        if self.heads.is_empty() {
            let place = span(self.source, self.at..self.at + 1);
            self.diags.push(
                Diag::error(codes::UNCLOSED, "`}` closes nothing", place, "no body is open here")
                    .with_help("remove it"),
            );
            self.at += 1;
            return;
        }
        self.at += 1;
        self.pop_body();
        self.last = Last::Close;
    }

    fn pop_body(&mut self) {
        let Some(mut head) = self.heads.pop() else {
            return;
        };
        let nodes = self.levels.pop().unwrap_or_default();
        if let Some(body) = &mut head.body {
            body.nodes = nodes;
            body.close = self.at;
            body.end = std::mem::take(&mut self.waiting);
        }
        self.blank = false;
        // Bodies nested too deep are dropped: they are reported, and no later step wants them.
        if self.heads.len() < MAX_BODIES
            && let Some(level) = self.levels.last_mut()
        {
            level.push(head);
        }
    }
}
