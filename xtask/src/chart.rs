//! The loss of a lineage as a picture (SVG) and a table: several runs one after another, each begun by
//! growing the last checkpoint of the one before, for several lineages.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Stages trained one after another.
pub(crate) struct Lineage {
    /// Such as `published`.
    pub(crate) name: String,
    /// Name and `metrics.jsonl` of each, in order.
    pub(crate) stages: Vec<(String, PathBuf)>,
}

/// One stage of a lineage as it was trained.
#[derive(Debug, PartialEq)]
struct Run {
    stage: String,
    /// Tokens seen by the lineage so far, and loss, per step.
    steps: Vec<(f64, f64)>,
    /// The same for held-out losses.
    held_out: Vec<(f64, f64)>,
}

/// A lineage as it was trained.
struct Trained {
    name: String,
    runs: Vec<Run>,
}

/// What was drawn.
#[derive(Debug)]
pub(crate) struct Chart {
    /// The picture.
    pub(crate) svg: String,
    /// A row per stage, for a terminal.
    pub(crate) table: String,
}

/// Reads the metrics of every stage and draws them.
pub(crate) fn draw(title: &str, lineages: &[Lineage]) -> Result<Chart> {
    let trained: Vec<Trained> = lineages.iter().map(read).collect::<Result<_>>()?;
    Ok(Chart { svg: svg(title, &trained), table: table(&trained) })
}

/// The command: draws what its arguments name, writes the picture and prints the table.
pub(crate) fn run(lineages: &[String], title: &str, out: &Path) -> Result<()> {
    let lineages: Vec<Lineage> = lineages.iter().map(|text| parse(text)).collect::<Result<_>>()?;
    let chart = draw(title, &lineages)?;
    fs::write(out, chart.svg).with_context(|| format!("cannot write {}", out.display()))?;
    print!("{}", chart.table);
    println!("picture: {}", out.display());
    Ok(())
}

/// `NAME=STAGE:METRICS,STAGE:METRICS,...`
fn parse(text: &str) -> Result<Lineage> {
    let form = || format!("`{text}` is not NAME=STAGE:METRICS,STAGE:METRICS,...");
    let (name, stages) = text.split_once('=').with_context(form)?;
    let stages = stages.split(',').map(|stage| {
        let (stage, path) = stage.split_once(':').with_context(form)?;
        Ok((stage.to_owned(), path.into()))
    });
    Ok(Lineage { name: name.to_owned(), stages: stages.collect::<Result<_>>()? })
}

fn read(lineage: &Lineage) -> Result<Trained> {
    let mut tokens = 0.0;
    let mut runs = Vec::new();
    for (stage, path) in &lineage.stages {
        let run = read_run(stage, path, tokens)?;
        tokens = run.steps.last().map_or(tokens, |(at, _)| *at);
        runs.push(run);
    }
    Ok(Trained { name: lineage.name.clone(), runs })
}

/// The steps of a `metrics.jsonl`, counted on from `tokens`.
fn read_run(stage: &str, path: &Path, mut tokens: f64) -> Result<Run> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut run = Run { stage: stage.to_owned(), steps: Vec::new(), held_out: Vec::new() };
    for (index, line) in text.lines().enumerate() {
        let row: Value = serde_json::from_str(line)
            .with_context(|| format!("{}:{}: no JSON", path.display(), index + 1))?;
        let number = |key: &str| row.get(key).and_then(Value::as_f64);
        match row.get("kind").and_then(Value::as_str) {
            Some("step") => {
                tokens += number("tokens").unwrap_or(0.0);
                run.steps.extend(number("ntp").or(number("loss")).map(|loss| (tokens, loss)));
            }
            Some("evaluation") => run.held_out.extend(number("ntp").map(|loss| (tokens, loss))),
            _ => {}
        }
    }
    ensure!(!run.steps.is_empty(), "{} has no step with a loss", path.display());
    Ok(run)
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
/// Room for labels: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (64.0, 24.0, 64.0, 52.0);
/// Readable beside each other also without colour vision.
const COLORS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
/// Points per curve; more cannot be told apart.
const MAX_POINTS: usize = 400;

/// Where numbers lie in the picture.
struct Frame {
    tokens: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn of(lineages: &[Trained]) -> Self {
        let runs = || lineages.iter().flat_map(|lineage| &lineage.runs);
        let all = || runs().flat_map(|run| run.steps.iter().chain(&run.held_out));
        let tokens = all().map(|(tokens, _)| *tokens).fold(1.0, f64::max);
        let low = all().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
        let high = all().map(|(_, loss)| *loss).fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            return Frame { tokens, low: 0.0, high: 1.0 };
        }
        let room = ((high - low) * 0.05).max(0.01);
        Frame { tokens, low: low - room, high: high + room }
    }

    fn x(&self, tokens: f64) -> f64 {
        MARGIN.0 + tokens / self.tokens * (WIDTH - MARGIN.0 - MARGIN.1)
    }

    fn y(&self, loss: f64) -> f64 {
        let share = (loss - self.low) / (self.high - self.low);
        HEIGHT - MARGIN.3 - share * (HEIGHT - MARGIN.2 - MARGIN.3)
    }
}

/// About `n` round numbers from `low` to `high`.
fn ticks(low: f64, high: f64, n: f64) -> Vec<f64> {
    let raw = (high - low) / n;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw);
    let step = step.unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// `1500000` as `1.5M`.
fn short(number: f64) -> String {
    let (value, unit) = match number {
        n if n >= 1e9 => (n / 1e9, "G"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n if n >= 1e3 => (n / 1e3, "k"),
        n => (n, ""),
    };
    let text = format!("{value:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn svg(title: &str, lineages: &[Trained]) -> String {
    let frame = Frame::of(lineages);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>{0}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{1}\" y=\"24\" font-size=\"16\">{0}</text>\n",
        escaped(title),
        MARGIN.0
    );
    axes(&mut out, &frame);
    for (index, lineage) in lineages.iter().enumerate() {
        let color = COLORS.get(index % COLORS.len()).copied().unwrap_or("black");
        growth_steps(&mut out, &frame, lineage, index, color);
        for run in &lineage.runs {
            curve(&mut out, &frame, &run.steps, color);
            for (tokens, loss) in &run.held_out {
                let (x, y) = (frame.x(*tokens), frame.y(*loss));
                let _ = writeln!(
                    out,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"white\" stroke=\"{color}\"/>"
                );
            }
        }
        let x = MARGIN.0 + 220.0 * index as f64;
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" y1=\"42\" x2=\"{0}\" y2=\"42\" stroke=\"{color}\" \
             stroke-width=\"2\"/><text x=\"{1}\" y=\"46\">{2}</text>",
            x + 24.0,
            x + 30.0,
            escaped(&lineage.name)
        );
    }
    out + "</svg>\n"
}

fn axes(out: &mut String, frame: &Frame) {
    let (left, right) = (MARGIN.0, WIDTH - MARGIN.1);
    let (top, bottom) = (MARGIN.2, HEIGHT - MARGIN.3);
    for loss in ticks(frame.low, frame.high, 6.0) {
        let y = frame.y(loss);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{0}\" y=\"{1:.1}\" text-anchor=\"end\">{2}</text>",
            left - 6.0,
            y + 4.0,
            (loss * 100.0).round() / 100.0
        );
    }
    for tokens in ticks(0.0, frame.tokens, 8.0) {
        let x = frame.x(tokens);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{0}\" stroke=\"black\"/>\
             <text x=\"{x:.1}\" y=\"{1}\" text-anchor=\"middle\">{2}</text>",
            bottom + 4.0,
            bottom + 18.0,
            short(tokens)
        );
    }
    let _ = writeln!(
        out,
        "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\
         <text x=\"{0}\" y=\"{1}\" text-anchor=\"middle\">tokens trained</text>\
         <text x=\"16\" y=\"{2}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {2})\">\
         next-token loss, nats (line: training, circle: held out)</text>",
        (left + right) / 2.0,
        HEIGHT - 12.0,
        (top + bottom) / 2.0
    );
}

/// A dashed line where a stage begins, with its name; the names of each lineage in a row of its own.
fn growth_steps(out: &mut String, frame: &Frame, lineage: &Trained, index: usize, color: &str) {
    let (top, bottom) = (MARGIN.2, HEIGHT - MARGIN.3);
    let row = top + 14.0 + 14.0 * index as f64;
    let mut before = 0.0;
    for (position, run) in lineage.runs.iter().enumerate() {
        let x = frame.x(before);
        if position > 0 {
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" \
                 stroke=\"{color}\" stroke-dasharray=\"4 4\"/>"
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{row}\" fill=\"{color}\">{}</text>",
            x + 4.0,
            escaped(&run.stage)
        );
        before = run.steps.last().map_or(before, |(tokens, _)| *tokens);
    }
}

/// A curve; where there are more points than can be told apart, means of neighbours.
fn curve(out: &mut String, frame: &Frame, steps: &[(f64, f64)], color: &str) {
    let per_point = steps.len().div_ceil(MAX_POINTS).max(1);
    let points = steps.chunks(per_point).map(|chunk| {
        let n = chunk.len() as f64;
        let (tokens, loss) = chunk.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        format!("{:.1},{:.1}", frame.x(tokens / n), frame.y(loss / n))
    });
    let points: Vec<String> = points.collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>",
        points.join(" ")
    );
}

/// Per stage: tokens, first and last training loss, and held-out loss before and after.
fn table(lineages: &[Trained]) -> String {
    let mut text = format!(
        "{:<12} {:<22} {:>9} {:>9} {:>9} {:>10} {:>10}\n",
        "lineage", "stage", "tokens", "first", "last", "held out", "after"
    );
    for lineage in lineages {
        for run in &lineage.runs {
            let loss = |point: Option<&(f64, f64)>| {
                point.map_or_else(|| "-".to_owned(), |(_, loss)| format!("{loss:.4}"))
            };
            let _ = writeln!(
                text,
                "{:<12} {:<22} {:>9} {:>9} {:>9} {:>10} {:>10}",
                lineage.name,
                run.stage,
                short(run.steps.last().map_or(0.0, |(tokens, _)| *tokens)),
                loss(run.steps.first()),
                loss(run.steps.last()),
                loss(run.held_out.first()),
                loss(run.held_out.last()),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(folder: &Path, name: &str, losses: &[f64]) -> PathBuf {
        let path = folder.join(name);
        let mut text = String::from("{\"kind\":\"start\",\"step\":0}\n");
        let _ = writeln!(text, "{{\"kind\":\"evaluation\",\"step\":0,\"ntp\":{}}}", losses[0]);
        for (step, loss) in losses.iter().enumerate() {
            let _ = writeln!(
                text,
                "{{\"kind\":\"step\",\"step\":{},\"loss\":9.0,\"ntp\":{loss},\"tokens\":1000}}",
                step + 1
            );
        }
        fs::write(&path, text).unwrap();
        path
    }

    fn lineages(folder: &Path) -> Vec<Lineage> {
        let first = metrics(folder, "a.jsonl", &[7.0, 6.0, 5.0]);
        let published = metrics(folder, "b.jsonl", &[6.5, 5.5]);
        let exact = metrics(folder, "c.jsonl", &[5.0, 4.5]);
        let lineage = |name: &str, second| Lineage {
            name: name.to_owned(),
            stages: vec![("tiny_2b".to_owned(), first.clone()), ("5b & <more>".to_owned(), second)],
        };
        vec![lineage("published", published), lineage("exact", exact)]
    }

    #[test]
    fn stages_follow_each_other_and_growth_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let chart = draw("Loss", &lineages(dir.path())).unwrap();
        assert_eq!(chart.svg.matches("<polyline").count(), 4);
        assert_eq!(chart.svg.matches("stroke-dasharray").count(), 2, "one growth step each");
        assert_eq!(chart.svg.matches("<circle").count(), 4);
        for text in ["published", "exact", "tokens trained", "5b &amp; &lt;more&gt;", ">5k<"] {
            assert!(chart.svg.contains(text), "{text} in\n{}", chart.svg);
        }
        // Well formed as far as tags go.
        assert_eq!(chart.svg.matches("<text").count(), chart.svg.matches("</text>").count());
        let last = chart.table.lines().last().unwrap();
        let words: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(
            words,
            ["exact", "5b", "&", "<more>", "5k", "5.0000", "4.5000", "5.0000", "5.0000"]
        );
    }

    #[test]
    fn a_run_without_a_step_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.jsonl");
        fs::write(&path, "{\"kind\":\"start\",\"step\":0}\n").unwrap();
        let lineage = Lineage { name: "x".into(), stages: vec![("s".into(), path)] };
        let error = draw("x", &[lineage]).unwrap_err().to_string();
        assert!(error.contains("empty.jsonl has no step"), "{error}");
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 5000.0, 5.0), [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]);
        assert_eq!(ticks(4.4, 7.1, 6.0), [4.5, 5.0, 5.5, 6.0, 6.5, 7.0]);
        assert_eq!([short(1_500_000.0), short(999.0), short(2e9)], ["1.5M", "999", "2G"]);
    }
}
