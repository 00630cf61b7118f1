//! Rows under way: inputs of the next rows of a run on their way to shared memory, while a row before them is computed.
//!
//! What memory gives in the time that one read takes is far more than the threads of a multiprocessor can hold of one row read
//! ahead, and what is under way to registers are registers less for threads. So each thread copies what it will need
//! of the next rows to shared memory. It reads there only what it has copied itself: no thread waits for another.

use super::access::size_text;
use super::cuda::Writer;
use super::group::{Over, over};
use super::shape::at_once;
use super::text::Text;
use crate::ir::{NodeId, ValueId};
use lightc_dsl::ast::DType;

/// Bytes that a multiprocessor should have on their way: what an H200 gives one in the 1.1 us that a read takes under load.
const WANTED: i64 = 32 << 10;

/// Shared memory that a block may take: four must fit beside each other, and with what sums of a block take it is what a launch gives
/// without being asked, 48 KB.
const MOST: i64 = 40 << 10;

/// The same where the text has two rows beside each other: sums of a block are not among theirs.
const MOST_IN_TWOS: i64 = 48 << 10;

/// An input of which rows are under way.
pub(super) struct UnderWay {
    /// The parameter of the kernel, and where this thread's are in it for the first row of a run.
    from: String,
    offset: String,
    /// What its elements are in memory, and what a thread's words are read as.
    stored: &'static str,
    element: &'static str,
    /// The variable of what the row at hand has of it.
    name: String,
    /// Words of a thread.
    words: i64,
    /// How many rows after the one at hand that is.
    after: i64,
    /// Elements from a row to the next.
    stride: i64,
}

impl UnderWay {
    /// Bytes of an element in memory.
    fn bytes_of_one(&self) -> i64 {
        if self.stored == "bf16" { 2 } else { 4 }
    }
}

/// The text of rows under way.
#[derive(Default)]
pub(super) struct Copies {
    /// Whether there are any.
    pub(super) any: bool,
    /// Before the rows of a run.
    pub(super) before: Text,
    /// Reads what a row has of them.
    pub(super) takes: Text,
    /// Rows under way with those at hand.
    pub(super) depth: i64,
    /// After the rows that the text has in a row, if anything.
    pub(super) round: String,
}

impl Writer<'_> {
    /// Has rows of an input under way, if they can be: whether they are. The row at hand needs the one that is so many rows after it.
    pub(super) fn begin_copies(&mut self, x: ValueId, name: &str, after: i64) -> bool {
        let time = self.layout.rows.len().saturating_sub(1);
        let (Some(words), Some(stride)) = (self.words(x), self.access(x).row_stride(time)) else {
            return false;
        };
        if self.parts.is_none() && self.hands_on_sums() {
            return false;
        }
        let others: i64 = self.under_way.iter().map(|input| input.words).sum();
        if !self.fits_under_way(others + words) {
            return false;
        }
        self.under_way.push(UnderWay {
            from: format!("in_{}", x.0),
            offset: self.access(x).offset(Some((time, &format!("+ {after}")))),
            stored: self.stored(x),
            element: if self.dtype(x) == DType::F32 { "float" } else { "unsigned" },
            name: name.to_owned(),
            words,
            after,
            stride,
        });
        true
    }

    /// The same for a table of angles, of which each step of a row part has so many.
    pub(super) fn begin_angles(
        &mut self,
        table: usize,
        part: usize,
        width: i64,
        offset: &str,
    ) -> bool {
        let words = self.shape.vector;
        let goes_on = part + 1 == self.layout.rows.len();
        if !goes_on || !matches!(words, 1 | 2 | 4) || self.shape.ragged {
            return false;
        }
        let others = self.parts.as_ref().map_or(0, |parts| parts.words_under_way());
        if !self.fits_under_way(others + words) {
            return false;
        }
        self.under_way.push(UnderWay {
            from: format!("angles_{table}"),
            offset: offset.to_owned(),
            stored: "float",
            element: "float",
            name: format!("turn_{table}"),
            words,
            after: 0,
            stride: width,
        });
        true
    }

    /// Whether a ring can have so many words of a thread for a row.
    pub(super) fn fits_under_way(&self, words: i64) -> bool {
        if self.parts.is_some() {
            return self.fits_in_twos(words);
        }
        words * 4 * self.shape.block * (self.longest() + 1) <= MOST
    }

    /// The same where the text has two rows beside each other.
    pub(super) fn fits_in_twos(&self, words: i64) -> bool {
        words * 4 * self.shape.block * (self.rows_in_twos() + 1) <= MOST_IN_TWOS
    }

    /// Words of a row of an input that a thread can have under way.
    pub(super) fn words_of_copy(&self, x: ValueId) -> Option<i64> {
        let time = self.layout.rows.len().saturating_sub(1);
        let _ = self.access(x).row_stride(time)?;
        self.words(x)
    }

    /// Whether rows have sums over lanes and hand on what comes of them. Such a row is a chain of exchanges that takes longer than its bytes:
    /// 0.132 ms for the entrance's gradient of keys on an H200, and 0.153 with rows under way, since a copy and a wait then stand
    /// between the instructions of two rows, which the compiler has beside each other otherwise. Where the text itself has two rows
    /// beside each other, there is a wait for both and nothing between them.
    fn hands_on_sums(&self) -> bool {
        let sums = |id: &NodeId| {
            let over = over(self.layout, self.function.node(*id));
            matches!(over, Some(Over::Segment | Over::Lane))
        };
        self.halo() > 0 && self.group.nodes.iter().any(sums)
    }

    /// Words that a thread has of an input of a row, if it can copy them: 4, 8 or 16 bytes that lie in a row.
    fn words(&self, x: ValueId) -> Option<i64> {
        let is_vector = self.access(x).is_vector();
        let words = match self.dtype(x) {
            DType::Act if is_vector && self.packed(x) => self.shape.vector / 2,
            DType::F32 if is_vector => self.shape.vector,
            DType::F32 if !self.layout.is_vector(x) => 1,
            _ => return None,
        };
        (matches!(words, 1 | 2 | 4) && !self.shape.ragged).then_some(words)
    }

    /// Rows under way with the one at hand: a multiple of the rows in the text, so that each of these has its place in shared
    /// memory, and as many as it takes to have enough bytes on their way without it.
    fn depth(&self, rows: i64, bytes: i64) -> i64 {
        let (block, vector, chunks) = (self.shape.block, self.shape.vector, self.shape.chunks);
        let blocks = at_once(self.function, self.group, &self.phases, block, vector, chunks);
        let (at_hand, most) = match self.parts {
            Some(_) => (2, (MOST_IN_TWOS - bytes) / (rows * bytes)),
            None => (1, MOST / (rows * bytes)),
        };
        let most = most.max(1);
        let enough = |rounds: &i64| (rounds * rows - at_hand) * bytes * blocks >= WANTED;
        rows * (1..most).find(enough).unwrap_or(most)
    }

    /// What stands before a run and at the head of its rows, of which the text has so many in a row.
    pub(super) fn copies(&mut self, rows: i64) -> Copies {
        let inputs = std::mem::take(&mut self.under_way);
        let words: i64 = inputs.iter().map(|input| input.words).sum();
        if words == 0 {
            return Copies::default();
        }
        let bytes = words * 4 * self.shape.block;
        let depth = self.depth(rows, bytes);
        // The first of an odd number of rows has a place of its own where two are at hand.
        let in_twos = self.parts.is_some();
        self.shape.shared = (depth + i64::from(in_twos)) * bytes;
        let (mut before, mut takes) = (self.text.beside(), self.text.beside());
        let (mut turn, mut round) = ("", String::new());
        if depth > rows {
            let (by, all) = (rows * bytes, depth * bytes);
            before.line("int turn = 0;");
            round = format!("turn = turn + {by} == {all} ? 0 : turn + {by};");
            turn = " + turn";
        }
        self.pointers(&mut before, &inputs);
        let (name, begin, at_once) =
            if in_twos { ("copy_two", "even", 2) } else { ("copy_row", "begin", 1) };
        if in_twos {
            before.line("// The first of an odd number of rows is alone.");
            before.line("const bool odd = (stop - begin) % 2 != 0;");
            before.line("const int even = odd ? begin + 1 : begin;");
            before.open("if (odd)");
            before.line("const int row = begin;");
            before.line(format!("const Place<{depth}> place;"));
            self.copy_rows(&mut before, &inputs, bytes, "", 1);
            before.close();
        }
        before.open(format!("const auto {name} = [&](const int row, const auto place) ROW"));
        self.copy_rows(&mut before, &inputs, bytes, turn, at_once);
        before.end("};");
        for n in (0..depth).filter(|n| n % at_once == 0) {
            before.line(format!("{name}({begin} + {n}, Place<{n}>());"));
        }
        takes.depth_in();
        let mut start = 0;
        for input in &inputs {
            let (name, words, element) = (&input.name, input.words, input.element);
            takes.line(format!("{element} copied_{name}[{words}];"));
            takes.line(format!(
                "take(copied_{name}, words_{words} + {start} + place.at * {bytes}{turn});"
            ));
            start += words * 4 * self.shape.block;
        }
        Copies { any: true, before, takes, depth, round }
    }

    /// Where a thread's words are in shared memory, and where the next of each input are read.
    fn pointers(&self, text: &mut Text, inputs: &[UnderWay]) {
        let time = self.layout.rows.len().saturating_sub(1);
        text.line("extern __shared__ uint4 rows_under_way[];");
        for words in [1, 2, 4] {
            if inputs.iter().any(|input| input.words == words) {
                text.line(format!(
                    "unsigned char* const words_{words} = reinterpret_cast<unsigned char*>(rows_under_way) + thread * {};",
                    words * 4
                ));
            }
        }
        for input in inputs {
            text.line(format!("const {}* from_{};", input.stored, input.name));
        }
        text.open("");
        text.line(format!("const int row = begin, r{time} = row - start;"));
        for input in inputs {
            text.line(format!("from_{} = {} + {};", input.name, input.from, input.offset));
        }
        text.close();
    }

    /// Begins to copy what so many rows will need, if the run has them. What would lie behind the end of its sequence is 0.
    fn copy_rows(&self, text: &mut Text, inputs: &[UnderWay], bytes: i64, turn: &str, n_rows: i64) {
        let time = self.layout.rows.len().saturating_sub(1);
        let size = size_text(&self.layout.rows.get(time).cloned().unwrap_or_default());
        let mut start = 0;
        for input in inputs {
            let (name, words, after) = (&input.name, input.words, input.after);
            for n in 0..n_rows {
                let own = match n {
                    0 => format!("{start} + place.at * {bytes}"),
                    _ => format!("{start} + (place.at + {n}) * {bytes}"),
                };
                // There are two or none.
                let mut there = "row < stop".to_owned();
                if after > 0 {
                    let far = after + n;
                    text.line(format!(
                        "if ({there} && row - start + {far} >= {size}) clear_words<{words}>(words_{words} + {own}{turn});"
                    ));
                    there += &format!(" && row - start + {far} < {size}");
                }
                let far = match n * input.stride * input.bytes_of_one() {
                    0 => String::new(),
                    far => format!(", {far}"),
                };
                text.line(format!(
                    "copy_words<{words}, {own}{far}>(words_{words}{turn}, from_{name}, {there});"
                ));
            }
            text.line(format!("from_{name} += {};", input.stride * n_rows));
            start += words * 4 * self.shape.block;
        }
        text.line("commit_copies();");
    }
}
