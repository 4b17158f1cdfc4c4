//! Tables for people, JSON for programs.

mod plans;

use std::collections::BTreeMap;

use arrowquant::format::{Encoding, GroupSize, ScaleDtype, Scheme};
use arrowquant::model::{Model, Tensor};
use arrowquant::plan::{Config, Plan, PlanEntry, Recognition, SOURCE};
use arrowquant::run::{FoldReport, Parts, Report, TensorReport, Totals, Verification};
use arrowquant::schema::{KEPT, key};
use arrowquant::tensor::shortened;
use comfy_table::{CellAlignment, Table};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::chart::{Chart, Series};

pub use plans::{analysis, analysis_chart, evolution, evolution_chart};

/// Number of tensors listed at the end of a run.
const WORST: usize = 5;

/// Makes a table with these columns, some of which are numbers.
fn table(columns: &[&str], numbers: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(columns.iter().copied());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn lines(table: &Table) -> String {
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

fn ratio(whole: usize, part: usize) -> String {
    match part {
        0 => "-".to_owned(),
        _ => format!("{:.2}x", whole as f64 / part as f64),
    }
}

/// Escapes control characters, because names in a file may contain any.
pub fn printable(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Formats a count: `1 tensor`, `2 tensors`.
fn tensors(count: usize) -> String {
    format!("{count} tensor{}", if count == 1 { "" } else { "s" })
}

/// Formats JSON, with a line end.
pub fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Formats what each tensor would get.
pub fn plan(plan: &Plan, file_bytes: usize) -> String {
    let columns = [
        "tensor",
        "dtype",
        "format",
        "shape",
        "group",
        "bits/weight",
        "bytes",
        "how",
    ];
    let mut table = table(&columns, 3..7);
    for entry in &plan.entries {
        let recipe = entry.recipe.as_ref();
        let how = recipe.map_or(String::new(), |r| {
            let scheme = r
                .encoding
                .scheme()
                .map_or(String::new(), |s| format!("{s} "));
            format!("{scheme}{}, gain {}; ", r.method, r.gain)
        });
        table.add_row([
            printable(&entry.tensor.name),
            entry.tensor.dtype.to_string(),
            recipe.map_or("keep", |r| r.format().name()).to_owned(),
            entry.tensor.shape.to_string(),
            recipe
                .and_then(|r| r.encoding.group_size())
                .map_or("-".to_owned(), |size| size.to_string()),
            number(entry.bits_per_weight(), 3),
            entry.bytes().to_string(),
            printable(&format!("{how}{}", entry.reason)),
        ]);
    }
    let quantized = |entry: &&PlanEntry| entry.recipe.is_some();
    format!(
        "{}\n{}{} of {} quantized from {}: planes of {} bytes ({}), a file of {} bytes ({})\n",
        lines(&table),
        sentences(&plan.evidence),
        plan.entries.iter().filter(quantized).count(),
        tensors(plan.entries.len()),
        HumanBytes(plan.source_bytes() as u64),
        plan.total_bytes(),
        HumanBytes(plan.total_bytes() as u64),
        file_bytes,
        ratio(plan.source_bytes(), file_bytes),
    )
}

/// Summarizes the steps of the ladder in a line; empty without any.
fn ladder(report: &Report) -> String {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut least: Vec<f64> = Vec::new();
    for tensor in &report.tensors {
        let Some(first) = tensor.ladder.first() else {
            continue;
        };
        if !least.contains(&first.min_cosine) {
            least.push(first.min_cosine);
        }
        let from = first.format.name().to_owned();
        let to = match tensor.format {
            KEPT => KEPT.to_owned(),
            format if format == from => format!("{format} without transformed inputs"),
            format => format.to_owned(),
        };
        *counts.entry((from, to)).or_default() += 1;
    }
    let mut parts: Vec<String> = counts
        .iter()
        .map(|((from, to), count)| format!("{} from {from} to {to}", tensors(*count)))
        .collect();
    let below = report.tensors.iter().filter(|t| t.below_min_cosine).count();
    if below > 0 {
        parts.push(format!("{} left below for lack of room", tensors(below)));
    }
    if parts.is_empty() {
        return String::new();
    }
    let least = match least[..] {
        [only] => format!(" (min_cosine {only})"),
        _ => String::new(),
    };
    format!("ladder: {}{least}\n", parts.join(", "))
}

/// Formats the evidence for the modality and the notes on the source's tensors, one line each.
fn sentences(evidence: &[String]) -> String {
    let line = |line: &String| match line.starts_with(SOURCE) {
        true => format!("{}\n", printable(&shortened(line))),
        false => format!("modality: {}\n", printable(line)),
    };
    evidence.iter().map(line).collect()
}

/// Formats the notes on the source's tensors, one line each.
pub fn source_notes(plan: &Plan) -> String {
    let notes = plan.evidence.iter().filter(|line| line.starts_with(SOURCE));
    sentences(&notes.cloned().collect::<Vec<_>>())
}

/// Formats the figures over all quantized tensors.
pub fn totals(total: &Totals) -> String {
    match total.quantized {
        0 => format!("nothing quantized, {} kept\n", tensors(total.kept)),
        count => format!(
            "{} quantized to {} bits per weight, cosine {}, SQNR {} dB; {} kept\n",
            tensors(count),
            number(total.bits_per_weight, 3),
            number(total.cosine, 5),
            number(total.sqnr_db, 2),
            total.kept,
        ),
    }
}

/// Formats the results of a run, and its worst tensors.
pub fn report(report: &Report) -> String {
    let mut text = format!(
        "{}: {} of {} ({}) in {:.2} s\n",
        report.output,
        HumanBytes(report.output_bytes),
        HumanBytes(report.source_bytes as u64),
        ratio(report.source_bytes, report.output_bytes as usize),
        report.seconds,
    );
    text += &totals(&report.total);
    if let Some(Parts { count, resumed }) = report.parts {
        let parts = if count == 1 { "part" } else { "parts" };
        text += &format!("{count} {parts}, {resumed} from an earlier run\n");
    }
    if let Some(because) = &report.streaming_because {
        text += &format!("streamed, since {because}\n");
    }
    let mut worst: Vec<_> = report
        .tensors
        .iter()
        .filter(|t| t.cosine.is_some())
        .collect();
    // The cosine of outputs if measured: gptq improves it at the expense of that of weights.
    let output = |t: &TensorReport| t.output.as_ref().map(|output| output.cosine);
    let cosine = |t: &TensorReport| output(t).or(t.cosine).unwrap_or(1.0);
    worst.sort_by(|a, b| cosine(a).total_cmp(&cosine(b)));
    worst.truncate(WORST);
    if !worst.is_empty() {
        let columns = [
            "lowest cosine",
            "format",
            "bits/weight",
            "cosine",
            "SQNR dB",
            "cosine of outputs",
        ];
        let shown = if worst.iter().any(|t| output(t).is_some()) {
            6
        } else {
            5
        };
        let mut table = table(&columns[..shown], 2..shown);
        for tensor in worst {
            let cells = [
                printable(&tensor.name),
                tensor.format.to_owned(),
                number(tensor.bits_per_weight, 3),
                number(tensor.cosine, 5),
                number(tensor.sqnr_db, 2),
                number(output(tensor), 5),
            ];
            table.add_row(&cells[..shown]);
        }
        text += &format!("\n{}", lines(&table));
    }
    for tensor in report.tensors.iter().filter(|t| t.kept_non_finite) {
        let name = printable(&tensor.name);
        text += &format!("kept because it has NaN or infinite weights: {name}\n");
    }
    let outputs: Vec<f64> = (report.tensors.iter())
        .filter_map(|tensor| tensor.output.as_ref().map(|output| output.error))
        .collect();
    if let Some(worst) = outputs.iter().copied().reduce(f64::max) {
        let mean = outputs.iter().sum::<f64>() / outputs.len() as f64;
        text += &format!(
            "relative squared error of outputs on the calibration: {mean:.6} on average, \
             {worst:.6} at most ({})\n",
            tensors(outputs.len())
        );
    }
    text += &ladder(report);
    let widened: usize = report.tensors.iter().map(|t| t.f32_scale_tiles.len()).sum();
    if widened > 0 {
        text += &format!("tiles with f32 scales, which do not fit f16: {widened}\n");
    }
    text
}

/// Formats what was folded, and what could not be.
pub fn fold(report: &FoldReport) -> String {
    let mut table = table(
        &["folded into", "layers", "smallest", "largest scale"],
        2..4,
    );
    for set in &report.folded {
        let layers = set.layers.iter().map(|layer| own_name(layer, &set.before));
        let layers: Vec<&str> = layers.collect();
        table.add_row([
            printable(&set.before),
            printable(&layers.join(", ")),
            format!("{:.4}", set.smallest_scale),
            format!("{:.4}", set.largest_scale),
        ]);
    }
    let mut text = format!("{}\n", lines(&table));
    for set in &report.not_folded {
        let line = format!("not folded into {}: {}", set.before, set.reason);
        text += &format!("{}\n", printable(&line));
    }
    text += &format!(
        "{}: inputs of {} sets of layers scaled with exponent {}; collect a new calibration for it\n",
        report.output,
        report.folded.len(),
        report.alpha
    );
    text
}

/// Returns a layer's name without the prefix that it shares with the module before it.
fn own_name<'a>(layer: &'a str, before: &str) -> &'a str {
    let common = layer.split_inclusive('.').zip(before.split_inclusive('.'));
    let same = common.take_while(|(a, b)| a == b);
    let own = &layer[same.map(|(part, _)| part.len()).sum::<usize>()..];
    own.strip_suffix(".weight").unwrap_or(own)
}

/// Returns a tensor's layout and available figures, under the keys of `inspect --json`.
fn tensor_json(tensor: &Tensor, summary: &Value) -> Value {
    let encodings = || tensor.tiles.iter().filter_map(|tile| tile.tile.encoding);
    let encoding = encodings().next();
    let scale_dtypes = encodings().filter_map(Encoding::scale_dtype);
    let mut scale_dtypes: Vec<&str> = scale_dtypes.map(ScaleDtype::name).collect();
    scale_dtypes.dedup();
    let bytes: usize = tensor
        .tiles
        .iter()
        .map(|tile| tile.tile.stored_bytes())
        .sum();
    let weights = tensor.info.shape.elements();
    let measured = &summary["tensors"][&tensor.info.name];
    json!({
        "name": tensor.info.name,
        "shape": tensor.info.shape.dims(),
        "dtype": tensor.info.dtype.name(),
        "format": encoding.map_or(KEPT, Encoding::name),
        "scheme": encoding.and_then(Encoding::scheme).map(Scheme::name),
        "group_size": encoding.and_then(Encoding::group_size).map(GroupSize::get),
        "scale_dtypes": scale_dtypes,
        "tiles": tensor.tiles.len(),
        "bytes": bytes,
        "bits_per_weight": (weights > 0).then(|| bytes as f64 * 8.0 / weights as f64),
        "cosine": measured["cosine"],
        "sqnr_db": measured["sqnr_db"],
    })
}

/// Returns the tensors and totals of a file, for programs.
pub fn inspect_json(model: &Model) -> Value {
    // Values that are not JSON, such as the modality, are text.
    let metadata = |name: &str| {
        let text = model.metadata().get(name).cloned().unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    let summary = metadata(key::SUMMARY);
    let tensors = model.tensors().iter();
    let source_bytes: usize = tensors
        .clone()
        .filter_map(|tensor| tensor.info.bytes())
        .sum();
    json!({
        "file_bytes": model.file_bytes(),
        "source_bytes": source_bytes,
        "compression_ratio": source_bytes as f64 / model.file_bytes() as f64,
        "modality": metadata(key::MODALITY),
        "config": metadata(key::CONFIG),
        "source": metadata(key::SOURCE),
        "generator": metadata(key::GENERATOR),
        "total": summary["total"],
        "tensors": tensors.map(|tensor| tensor_json(tensor, &summary)).collect::<Vec<_>>(),
    })
}

/// Returns the evidence for the modality in a file, and the notes on its source.
fn evidence(model: &Model, file: &Value) -> Vec<String> {
    let mut config = Config::new();
    // A file of another version may have unknown settings.
    let _ = config.merge_json(&file["config"]);
    let tensors = || model.tensors().iter().map(|tensor| &tensor.info);
    let found = Recognition::new(tensors(), &[], config.modality());
    let recorded = file["modality"].as_str().unwrap_or_default();
    let mut evidence = match found.modality.name() == recorded {
        true => found.evidence,
        // The modality came from files beside the source.
        false => Recognition::new(tensors(), &[format!("modality: {recorded}")], None).evidence,
    };
    let notes = file["source"]["notes"].as_array().into_iter().flatten();
    let notes = notes.filter_map(Value::as_str);
    evidence.extend(notes.map(|note| format!("{SOURCE}{note}")));
    evidence
}

/// Formats the tensors and totals of a file as a table.
pub fn inspect(model: &Model) -> String {
    let file = inspect_json(model);
    let columns = [
        "tensor",
        "dtype",
        "format",
        "scheme",
        "shape",
        "group",
        "bits/weight",
        "bytes",
        "cosine",
        "SQNR dB",
    ];
    let mut table = table(&columns, 4..10);
    for (tensor, json) in model
        .tensors()
        .iter()
        .zip(file["tensors"].as_array().into_iter().flatten())
    {
        let text = |key: &str| match &json[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.add_row([
            printable(&tensor.info.name),
            text("dtype"),
            text("format"),
            text("scheme"),
            tensor.info.shape.to_string(),
            text("group_size"),
            number(json["bits_per_weight"].as_f64(), 3),
            text("bytes"),
            number(json["cosine"].as_f64(), 5),
            number(json["sqnr_db"].as_f64(), 2),
        ]);
    }
    let source_bytes = file["source_bytes"].as_u64().unwrap_or(0);
    let total = |key: &str| file["total"][key].as_f64();
    let quantized = match total("bits_per_weight") {
        None => "nothing quantized".to_owned(),
        bits => format!(
            "quantized: {} bits per weight, cosine {}, SQNR {} dB",
            number(bits, 3),
            number(total("cosine"), 5),
            number(total("sqnr_db"), 2),
        ),
    };
    format!(
        "{}\n{}{}: {}, from {} ({})\n{quantized}\n",
        lines(&table),
        sentences(&evidence(model, &file)),
        tensors(model.tensors().len()),
        HumanBytes(model.file_bytes() as u64),
        HumanBytes(source_bytes),
        ratio(source_bytes as usize, model.file_bytes()),
    )
}

/// Formats the results of checking a file.
pub fn verification(verification: &Verification, against: bool) -> String {
    let all = tensors(verification.tensors.len());
    let mut text = String::new();
    if against {
        let mut table = table(&["tensor", "cosine", "SQNR dB"], 1..3);
        for tensor in verification.tensors.iter().filter(|t| t.cosine.is_some()) {
            table.add_row([
                printable(&tensor.name),
                number(tensor.cosine, 5),
                number(tensor.sqnr_db, 2),
            ]);
        }
        text += &format!("{}\n", lines(&table));
    }
    for tensor in verification.failures() {
        let problem = tensor.problem.as_deref().unwrap_or_default();
        let name = printable(&tensor.name);
        text += &format!("FAILED {name}: {}\n", printable(problem));
    }
    text + &match verification.failures().count() {
        0 => format!("{all} verified\n"),
        failed => format!("{failed} of {all} failed\n"),
    }
}
