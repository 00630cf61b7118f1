//! Lines of CUDA C++ with their indentation.

/// A text that grows line by line.
#[derive(Debug, Default)]
pub(super) struct Text {
    lines: String,
    depth: usize,
}

impl Text {
    /// Adds a line.
    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        if !line.starts_with('#') {
            self.lines.push_str(&"    ".repeat(self.depth));
        }
        self.lines.push_str(line);
        self.lines.push('\n');
    }

    /// A text of the same depth.
    pub(super) fn beside(&self) -> Text {
        Text { lines: String::new(), depth: self.depth }
    }

    /// Adds the lines of another.
    pub(super) fn append(&mut self, other: Text) {
        self.lines.push_str(&other.lines);
    }

    /// Adds a line that opens a scope.
    pub(super) fn open(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        self.line(if line.is_empty() { "{".to_owned() } else { format!("{line} {{") });
        self.depth += 1;
    }

    /// Closes a scope.
    pub(super) fn close(&mut self) {
        self.end("}");
    }

    /// Closes a scope with a line.
    pub(super) fn end(&mut self, line: &str) {
        self.depth = self.depth.saturating_sub(1);
        self.line(line);
    }

    /// Closes scopes.
    pub(super) fn close_all(&mut self, n: usize) {
        for _ in 0..n {
            self.close();
        }
    }

    /// Opens unrolled loops over the given variables and bounds; gives how many.
    pub(super) fn loops(&mut self, loops: &[(String, i64)]) -> usize {
        for (variable, bound) in loops {
            self.line("UNROLL");
            self.open(format!("for (int {variable} = 0; {variable} < {bound}; ++{variable})"));
        }
        loops.len()
    }

    /// The text.
    pub(super) fn depth_in(&mut self) {
        self.depth += 1;
    }

    /// Ends a body.
    pub(super) fn depth_out(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.lines
    }
}
