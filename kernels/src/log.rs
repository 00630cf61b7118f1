//! Reads what NVRTC and ptxas print.

use std::collections::BTreeMap;

use crate::Failure;

/// What an entry point takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Shared memory of a block that the source declares, in bytes.
    pub static_shared: u32,
    /// Stack of a thread, in bytes.
    pub stack: u32,
    /// Bytes of registers that a thread writes to memory for want of registers.
    pub spill_stores: u32,
    /// Bytes that it reads back.
    pub spill_loads: u32,
}

/// The report of `ptxas -v`: resources by entry point.
pub(crate) fn resources(log: &str) -> BTreeMap<String, Resources> {
    let mut found = BTreeMap::new();
    let mut entry: Option<String> = None;
    let mut next = Resources::default();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            entry = rest.split('\'').next().map(str::to_owned);
            next = Resources::default();
        } else if line.contains("bytes stack frame") {
            next.stack = number_before(line, " bytes stack frame").unwrap_or(0);
            next.spill_stores = number_before(line, " bytes spill stores").unwrap_or(0);
            next.spill_loads = number_before(line, " bytes spill loads").unwrap_or(0);
        } else if let Some(registers) = number_before(line, " registers") {
            next.registers = registers;
            next.static_shared = number_before(line, " bytes smem").unwrap_or(0);
            if let Some(entry) = entry.take() {
                let _ = found.insert(entry, next);
            }
        }
    }
    found
}

/// The whole number that stands before `unit`.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Places the first error of a log in its source.
pub(crate) fn failure(name: &str, source: &str, log: &str) -> Failure {
    let place = log.lines().find_map(first_error);
    let line = place.as_ref().filter(|(file, _)| file == name).map(|(_, line)| *line);
    let (entry, origin) = line.map(|line| around(source, line)).unwrap_or_default();
    Failure { source: name.to_owned(), place, entry, origin, log: log.to_owned() }
}

/// `file.cu(12): error: ...` or `catastrophic error`.
fn first_error(line: &str) -> Option<(String, u32)> {
    let (place, rest) = line.split_once("): ")?;
    if !(rest.starts_with("error") || rest.starts_with("catastrophic error")) {
        return None;
    }
    let (file, line) = place.rsplit_once('(')?;
    Some((file.to_owned(), line.parse().ok()?))
}

/// The entry point around a line, counted from 1, and the origin that the source states for it.
/// A `#line 1` starts the count again, as it does for the compiler.
fn around(source: &str, line: u32) -> (Option<String>, Option<String>) {
    let (mut entry, mut stated, mut origin) = (None, None, None);
    let mut at = 0;
    let start = source.find("#line 1\n").map_or(0, |at| at + "#line 1\n".len());
    let lines: Vec<&str> = source.get(start..).unwrap_or_default().lines().collect();
    for (index, text) in lines.iter().enumerate() {
        at += 1;
        if let Some(text) = text.trim_start().strip_prefix("// origin: ") {
            stated = Some(text.trim().to_owned());
        }
        if text.contains("__global__") {
            let rest = lines.get(index..).unwrap_or_default();
            entry = entry_name(rest);
            origin = stated.take();
        }
        if at == line {
            break;
        }
    }
    (entry, origin)
}

/// The name before the first parenthesis that opens the arguments of a kernel.
fn entry_name(lines: &[&str]) -> Option<String> {
    let text = lines.iter().take(4).copied().collect::<Vec<_>>().join(" ");
    let (_, rest) = text.split_once("__global__")?;
    let rest = match rest.split_once("__launch_bounds__") {
        Some((_, rest)) => rest.split_once(')')?.1,
        None => rest,
    };
    let head = rest.split('(').next()?;
    head.split_whitespace().last().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'scan' for 'sm_90a'\n\
        ptxas info    : Function properties for scan\n    \
            16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 168 registers, used 2 barriers, 16 bytes stack, 1040 bytes smem\n\
        ptxas info    : Compiling entry function 'rows' for 'sm_90a'\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 40 registers, used 1 barriers\n";

    #[test]
    fn the_report_of_ptxas_is_read() {
        let found = resources(LOG);
        let scan = Resources {
            registers: 168,
            static_shared: 1040,
            stack: 16,
            spill_stores: 8,
            spill_loads: 12,
        };
        assert_eq!(found.get("scan"), Some(&scan));
        assert_eq!(found.get("rows"), Some(&Resources { registers: 40, ..Resources::default() }));
        assert_eq!(found.len(), 2);
    }

    const SOURCE: &str = "#define D 64\n#line 1\nint helper() { return 1; }\n\
        // origin: RmsNorm.y, std/norm.llm:12\n\
        extern \"C\" __global__ void __launch_bounds__(256, 2) norm(\n    const float* x)\n{\n    wrong;\n}\n\
        extern \"C\" __global__ void plain(float* x) {\n    also;\n}\n";

    #[test]
    fn an_error_is_placed_in_its_entry_point() {
        let at = |line: u32| {
            let log = format!("a.cu({line}): error: identifier \"wrong\" is undefined\n");
            let failure = failure("a.cu", SOURCE, &log);
            (failure.entry, failure.origin)
        };
        let norm = (Some("norm".to_owned()), Some("RmsNorm.y, std/norm.llm:12".to_owned()));
        assert_eq!(at(1), (None, None));
        assert_eq!(at(6), norm);
        assert_eq!(at(9), (Some("plain".to_owned()), None));
    }

    #[test]
    fn an_error_in_a_header_has_a_place_and_no_entry_point() {
        let failure = failure("a.cu", SOURCE, "base.cuh(6): catastrophic error: x\n");
        assert_eq!((failure.place, failure.entry), (Some(("base.cuh".to_owned(), 6)), None));
    }
}
