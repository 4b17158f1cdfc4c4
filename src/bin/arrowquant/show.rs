//! Tables for people, JSON for programs.

use arrowquant::model::{Model, Tensor};
use arrowquant::plan::{Plan, PlanEntry};
use arrowquant::run::{Report, Verification};
use arrowquant::schema::{RAW, key};
use comfy_table::{CellAlignment, Table};
use indicatif::HumanBytes;
use serde_json::{Value, json};

/// Tensors named at the end of a run.
const WORST: usize = 5;

/// A table of these columns; those after the first `texts` are numbers.
fn table(columns: &[&str], texts: usize) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(columns.iter().copied());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if i >= texts {
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

/// JSON with a line end.
pub fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// What each tensor would get.
pub fn plan(plan: &Plan) -> String {
    let columns = [
        "tensor",
        "shape",
        "dtype",
        "format",
        "scheme",
        "method",
        "gain",
        "reason",
        "group",
        "bits/weight",
        "bytes",
    ];
    let mut table = table(&columns, 8);
    for entry in &plan.entries {
        let recipe = entry.recipe.as_ref();
        let text = |value: Option<&'static str>| value.unwrap_or("-").to_owned();
        table.add_row([
            entry.tensor.name.clone(),
            entry.tensor.shape.to_string(),
            entry.tensor.dtype.to_string(),
            recipe.map_or("keep", |r| r.format.name()).to_owned(),
            text(recipe.map(|r| r.scheme.name())),
            text(recipe.map(|r| r.method.name())),
            text(recipe.map(|r| r.gain.name())),
            entry.reason.clone(),
            recipe.map_or("-".to_owned(), |r| r.group_size.to_string()),
            number(entry.bits_per_weight(), 3),
            entry.bytes().to_string(),
        ]);
    }
    let quantized = |entry: &&PlanEntry| entry.recipe.is_some();
    format!(
        "{}\n{} model, {} of {} tensors quantized: {} of {} ({})\n",
        lines(&table),
        plan.modality.name(),
        plan.entries.iter().filter(quantized).count(),
        plan.entries.len(),
        HumanBytes(plan.total_bytes() as u64),
        HumanBytes(plan.source_bytes() as u64),
        ratio(plan.source_bytes(), plan.total_bytes()),
    )
}

/// What a run came to, and its worst tensors.
pub fn report(report: &Report) -> String {
    let total = &report.total;
    let mut text = format!(
        "{}: {} of {} ({}) in {:.2} s\n{} tensors quantized to {} bits per weight, cosine {}, SQNR {} dB; {} kept\n",
        report.output,
        HumanBytes(report.output_bytes),
        HumanBytes(report.source_bytes as u64),
        ratio(report.source_bytes, report.output_bytes as usize),
        report.seconds,
        total.quantized,
        number(total.bits_per_weight, 3),
        number(total.cosine, 5),
        number(total.sqnr_db, 2),
        total.kept,
    );
    let mut worst: Vec<_> = report
        .tensors
        .iter()
        .filter(|t| t.cosine.is_some())
        .collect();
    worst.sort_by(|a, b| a.cosine.unwrap_or(1.0).total_cmp(&b.cosine.unwrap_or(1.0)));
    worst.truncate(WORST);
    if !worst.is_empty() {
        let mut table = table(
            &["least alike", "format", "bits/weight", "cosine", "SQNR dB"],
            2,
        );
        for tensor in worst {
            table.add_row([
                tensor.name.clone(),
                tensor.format.to_owned(),
                number(tensor.bits_per_weight, 3),
                number(tensor.cosine, 5),
                number(tensor.sqnr_db, 2),
            ]);
        }
        text += &format!("\n{}", lines(&table));
    }
    let widened: usize = report.tensors.iter().map(|t| t.f32_scale_tiles.len()).sum();
    if widened > 0 {
        text += &format!("{widened} tiles have f32 scales, since f16 does not hold them\n");
    }
    text
}

/// Figures of one tensor of a file.
struct Figures {
    format: &'static str,
    group: Option<u16>,
    bytes: usize,
    source_bytes: usize,
    bits_per_weight: Option<f64>,
    cosine: Option<f64>,
    sqnr_db: Option<f64>,
}

impl Figures {
    fn of(tensor: &Tensor, summary: &Value) -> Self {
        let layout = tensor.tiles.first().and_then(|tile| tile.tile.layout);
        let planes = |tile: &arrowquant::model::TileRef| {
            tile.tile
                .plane_bytes()
                .unwrap_or_default()
                .iter()
                .sum::<usize>()
        };
        let bytes = tensor.tiles.iter().map(planes).sum();
        let weights = tensor.info.shape.elements();
        let measured = summary
            .get("tensors")
            .and_then(|t| t.get(&tensor.info.name));
        let figure = |key: &str| measured.and_then(|m| m.get(key)).and_then(Value::as_f64);
        Self {
            format: layout.map_or(RAW, |layout| layout.format.name()),
            group: layout.map(|layout| layout.group_size.get()),
            bytes,
            source_bytes: tensor.info.bytes().unwrap_or(0),
            bits_per_weight: (weights > 0).then(|| bytes as f64 * 8.0 / weights as f64),
            cosine: figure("cosine"),
            sqnr_db: figure("sqnr_db"),
        }
    }
}

fn summary_of(model: &Model) -> Value {
    let text = model.metadata().get(key::SUMMARY);
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// The tensors of a file.
pub fn inspect(model: &Model) -> String {
    let summary = summary_of(model);
    let columns = [
        "tensor",
        "shape",
        "dtype",
        "format",
        "group",
        "bits/weight",
        "bytes",
        "cosine",
        "SQNR dB",
    ];
    let mut table = table(&columns, 4);
    let mut source_bytes = 0;
    for tensor in model.tensors() {
        let figures = Figures::of(tensor, &summary);
        source_bytes += figures.source_bytes;
        table.add_row([
            tensor.info.name.clone(),
            tensor.info.shape.to_string(),
            tensor.info.dtype.to_string(),
            figures.format.to_owned(),
            figures
                .group
                .map_or("-".to_owned(), |group| group.to_string()),
            number(figures.bits_per_weight, 3),
            figures.bytes.to_string(),
            number(figures.cosine, 5),
            number(figures.sqnr_db, 2),
        ]);
    }
    let total = |key: &str| {
        summary
            .get("total")
            .and_then(|t| t.get(key))
            .and_then(Value::as_f64)
    };
    format!(
        "{}\n{} tensors, {} in the file of {} in the source ({})\nquantized: {} bits per weight, cosine {}, SQNR {} dB\n",
        lines(&table),
        model.tensors().len(),
        HumanBytes(model.file_bytes() as u64),
        HumanBytes(source_bytes as u64),
        ratio(source_bytes, model.file_bytes()),
        number(total("bits_per_weight"), 3),
        number(total("cosine"), 5),
        number(total("sqnr_db"), 2),
    )
}

/// The same for programs.
pub fn inspect_json(model: &Model) -> Value {
    let summary = summary_of(model);
    let mut source_bytes = 0;
    let tensors: Vec<Value> = model
        .tensors()
        .iter()
        .map(|tensor| {
            let figures = Figures::of(tensor, &summary);
            source_bytes += figures.source_bytes;
            json!({
                "name": tensor.info.name,
                "shape": tensor.info.shape.dims(),
                "dtype": tensor.info.dtype.name(),
                "format": figures.format,
                "group_size": figures.group,
                "tiles": tensor.tiles.len(),
                "bytes": figures.bytes,
                "bits_per_weight": figures.bits_per_weight,
                "cosine": figures.cosine,
                "sqnr_db": figures.sqnr_db,
            })
        })
        .collect();
    let metadata = |name: &str| {
        let text = model.metadata().get(name).cloned().unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    json!({
        "file_bytes": model.file_bytes(),
        "source_bytes": source_bytes,
        "compression_ratio": source_bytes as f64 / model.file_bytes() as f64,
        "modality": metadata(key::MODALITY),
        "config": metadata(key::CONFIG),
        "source": metadata(key::SOURCE),
        "generator": metadata(key::GENERATOR),
        "total": summary.get("total"),
        "tensors": tensors,
    })
}

/// What checking a file found.
pub fn verification(verification: &Verification, against: bool) -> String {
    let count = verification.tensors.len();
    let mut text = String::new();
    if against {
        let mut table = table(&["tensor", "cosine", "SQNR dB"], 1);
        for tensor in verification.tensors.iter().filter(|t| t.cosine.is_some()) {
            table.add_row([
                tensor.name.clone(),
                number(tensor.cosine, 5),
                number(tensor.sqnr_db, 2),
            ]);
        }
        text += &format!("{}\n", lines(&table));
    }
    let mut failed = 0;
    for tensor in verification.failures() {
        failed += 1;
        let problem = tensor.problem.as_deref().unwrap_or_default();
        text += &format!("FAILED {}: {problem}\n", tensor.name);
    }
    text + &match failed {
        0 => format!("{count} tensors verified\n"),
        _ => format!("{failed} of {count} tensors failed\n"),
    }
}
