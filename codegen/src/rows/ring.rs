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

/// An input of which rows are under way.
pub(super) struct UnderWay {
    value: ValueId,
    /// The variable of what the row at hand has of it.
    name: String,
    /// Words of a thread.
    words: i64,
    /// How many rows after the one at hand that is.
    after: i64,
    /// Elements from a row to the next.
    stride: i64,
}

/// The text of rows under way.
#[derive(Default)]
pub(super) struct Copies {
    /// Whether there are any.
    pub(super) any: bool,
    /// Before the rows of a run.
    pub(super) before: Text,
    /// At the head of a row.
    pub(super) head: Text,
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
        if self.hands_on_sums() {
            return false;
        }
        let others: i64 = self.under_way.iter().map(|input| input.words).sum();
        if (others + words) * 4 * self.shape.block * (self.longest() + 1) > MOST {
            return false;
        }
        self.under_way.push(UnderWay { value: x, name: name.to_owned(), words, after, stride });
        true
    }

    /// Whether rows have sums over lanes and hand on what comes of them. Such a row is a chain of exchanges that takes longer than its bytes:
    /// 0.132 ms for the entrance's gradient of keys on an H200, and 0.153 with rows under way, since a copy and a wait then stand
    /// between the instructions of two rows, which the compiler has beside each other otherwise.
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
        let most = (MOST / (rows * bytes)).max(1);
        let enough = |rounds: &i64| (rounds * rows - 1) * bytes * blocks >= WANTED;
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
        self.shape.shared = depth * bytes;
        let (mut before, mut head) = (self.text.beside(), self.text.beside());
        let (mut turn, mut round) = ("", String::new());
        if depth > rows {
            let (by, all) = (rows * bytes, depth * bytes);
            before.line("int turn = 0;");
            round = format!("turn = turn + {by} == {all} ? 0 : turn + {by};");
            turn = " + turn";
        }
        self.pointers(&mut before, &inputs);
        self.copy_row(&mut before, &inputs, bytes, turn);
        for n in 0..depth {
            before.line(format!("copy_row(begin + {n}, Place<{n}>());"));
        }
        head.depth_in();
        head.line(format!("wait_for_copies<{}>();", depth - 1));
        let mut start = 0;
        for input in &inputs {
            let (name, words) = (&input.name, input.words);
            let element = if self.dtype(input.value) == DType::F32 { "float" } else { "unsigned" };
            head.line(format!("{element} copied_{name}[{words}];"));
            head.line(format!(
                "take(copied_{name}, words_{words} + {start} + place.at * {bytes}{turn});"
            ));
            start += words * 4 * self.shape.block;
        }
        head.line(format!("copy_row(row + {depth}, place);"));
        Copies { any: true, before, head, round }
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
            let stored = self.stored(input.value);
            text.line(format!("const {stored}* from_{};", input.name));
        }
        text.open("");
        text.line(format!("const int row = begin, r{time} = row - start;"));
        for input in inputs {
            let far = format!("+ {}", input.after);
            let offset = self.access(input.value).offset(Some((time, &far)));
            text.line(format!("from_{} = in_{} + {offset};", input.name, input.value.0));
        }
        text.close();
    }

    /// Begins to copy what a row will need, if the run has that row. What would lie behind the end of its sequence is 0.
    fn copy_row(&self, text: &mut Text, inputs: &[UnderWay], bytes: i64, turn: &str) {
        let time = self.layout.rows.len().saturating_sub(1);
        let size = size_text(&self.layout.rows.get(time).cloned().unwrap_or_default());
        text.open("const auto copy_row = [&](const int row, const auto place) ROW");
        let mut start = 0;
        for input in inputs {
            let (name, words, after) = (&input.name, input.words, input.after);
            let own = format!("{start} + place.at * {bytes}");
            let mut there = "row < stop".to_owned();
            if after > 0 {
                there += &format!(" && row - start + {after} < {size}");
                text.line(format!(
                    "if (row < stop && row - start + {after} >= {size}) clear_words<{words}>(words_{words} + {own}{turn});"
                ));
            }
            text.line(format!(
                "copy_words<{words}, {own}>(words_{words}{turn}, from_{name}, {there});"
            ));
            text.line(format!("from_{name} += {};", input.stride));
            start += words * 4 * self.shape.block;
        }
        text.line("commit_copies();");
        text.end("};");
    }
}
