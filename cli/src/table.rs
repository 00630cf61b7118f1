//! Tables of text.

/// Rows under a header. Columns whose header starts with `>` are right-aligned.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Table { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Control characters, which names in a checkpoint can have, are written as Rust writes them: they would move
    /// columns and colour the terminal.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let visible = |cell: String| cell.chars().map(visible).collect::<String>();
        self.rows.push(cells.into_iter().map(visible).collect());
    }

    pub(crate) fn text(&self) -> String {
        let titles: Vec<String> =
            self.header.iter().map(|title| title.trim_start_matches('>').to_owned()).collect();
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..titles.len()).filter_map(width).collect();
        let mut text = String::new();
        for row in lines() {
            let mut line = String::new();
            for ((cell, width), title) in row.iter().zip(&widths).zip(&self.header) {
                if title.starts_with('>') {
                    line.push_str(&format!("{cell:>width$}  "));
                } else {
                    line.push_str(&format!("{cell:<width$}  "));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn visible(c: char) -> String {
    if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
}

/// `1653102772` as `1,653,102,772`.
pub(crate) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// `1 stage`, `2 stages`.
pub(crate) fn counted(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_653_102_772, "1,653,102,772"),
            (-1234, "-1,234"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn control_characters_are_written_out() {
        let mut table = Table::new(&["name"]);
        table.row(vec!["x\u{1b}[31mred\n\u{9b}é".to_owned()]);
        assert_eq!(table.text(), "name\nx\\u{1b}[31mred\\n\\u{9b}é\n");
    }

    #[test]
    fn columns_line_up_without_trailing_blanks() {
        let mut table = Table::new(&["name", ">count"]);
        table.row(vec!["a".into(), "10".into()]);
        table.row(vec!["longer".into(), "1".into()]);
        assert_eq!(table.text(), "name    count\na          10\nlonger      1\n");
    }
}
