//! Results of analyses and searches, as tables and charts.

use arrowquant::plan::Generation;
use arrowquant::run::{Analysis, Evolution, FormatAnalysis, TensorAnalysis};

use super::{Chart, Series, lines, number, printable, table, tensors};

/// Group size of the formats in tables and charts, one for each width.
const SHOWN_GROUP: u16 = 128;

/// Returns the formats in the table: the widest ones that some tensor was tried with, by name.
fn shown(analysis: &Analysis) -> Vec<&FormatAnalysis> {
    let mut shown: Vec<&FormatAnalysis> = Vec::new();
    for format in analysis.tensors.iter().flat_map(|tensor| &tensor.formats) {
        let better = |other: &FormatAnalysis| {
            let rank = |f: &FormatAnalysis| {
                (
                    f.group_size == Some(SHOWN_GROUP),
                    f.scheme == Some("symmetric"),
                )
            };
            rank(format) > rank(other)
        };
        match shown.iter_mut().find(|other| other.format == format.format) {
            _ if format.format == "keep" => {}
            Some(other) if better(other) => *other = format,
            Some(_) => {}
            None => shown.push(format),
        }
    }
    shown
}

/// Formats a format in a few letters.
fn format_name(format: &FormatAnalysis) -> String {
    let group = format.group_size.map_or(String::new(), |size| match size {
        0 => " row".to_owned(),
        size => format!(" g{size}"),
    });
    let affine = if format.scheme == Some("affine") {
        " affine"
    } else {
        ""
    };
    format!("{}{group}{affine}", format.format)
}

fn same_format(a: &FormatAnalysis, b: &FormatAnalysis) -> bool {
    (a.format, a.group_size, a.scheme) == (b.format, b.group_size, b.scheme)
}

/// Formats what each tensor loses in each width.
pub fn analysis(analysis: &Analysis) -> String {
    let shown = shown(analysis);
    let names: Vec<String> = shown.iter().map(|format| format_name(format)).collect();
    let mut columns = vec!["tensor", "shape", "rows", "cosine of"];
    columns.extend(names.iter().map(String::as_str));
    columns.push("sensitive");
    let numbers = 4..4 + shown.len();
    let mut table = table(&columns, numbers);
    for tensor in &analysis.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        let mut row = vec![
            printable(&tensor.name),
            shape.join("x"),
            tensor.sampled_rows.to_string(),
            serde_json::json!(tensor.basis)
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        ];
        for wanted in &shown {
            let found = tensor
                .formats
                .iter()
                .find(|format| same_format(format, wanted));
            row.push(number(found.map(|format| format.cosine), 5));
        }
        row.push(tensor.sensitive.clone().unwrap_or_default());
        table.add_row(row);
    }
    let sensitive = analysis
        .tensors
        .iter()
        .filter(|tensor| tensor.sensitive.is_some());
    format!(
        "{}\n{} in {:.2} s, {} sensitive\n",
        lines(&table),
        tensors(analysis.tensors.len()),
        analysis.seconds,
        sensitive.count(),
    )
}

/// Makes a chart of what each tensor loses, in decibels.
pub fn analysis_chart(analysis: &Analysis) -> Chart {
    let series = |wanted: &&FormatAnalysis| {
        let value = |tensor: &TensorAnalysis| {
            let found = tensor
                .formats
                .iter()
                .find(|format| same_format(format, wanted));
            found.map(|format| -10.0 * format.error.log10())
        };
        Series {
            name: format_name(wanted),
            values: analysis.tensors.iter().map(value).collect(),
            line: false,
        }
    };
    Chart {
        title: format!(
            "Loss of the tensors of {} by format",
            ascii(&analysis.source.name)
        ),
        places: "tensor, in the order of the model".to_owned(),
        measure: "signal to quantization noise, dB".to_owned(),
        series: shown(analysis).iter().map(series).collect(),
    }
}

/// Replaces letters that a chart cannot draw.
fn ascii(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '?' })
        .collect()
}

/// Formats the results of a search.
pub fn evolution(evolution: &Evolution) -> String {
    let mut table = table(
        &["generation", "best", "mean of parents", "bytes", "tried"],
        0..5,
    );
    for generation in &evolution.history {
        table.add_row([
            generation.generation.to_string(),
            format!("{:.6}", generation.best),
            format!("{:.6}", generation.mean),
            generation.bytes.to_string(),
            generation.evaluations.to_string(),
        ]);
    }
    let start = evolution.start.map_or(String::new(), |start| {
        format!(", from {start:.6} of the budget's plan")
    });
    let mut text = format!(
        "{}\nfitness {:.6}{start}\n",
        lines(&table),
        evolution.fitness
    );
    if evolution.additive {
        text += "without a fitness, the budget's plan is already the best\n";
    }
    if evolution.stopped {
        text += "ended early, with the best so far\n";
    }
    text
}

/// Makes a chart of a search.
pub fn evolution_chart(evolution: &Evolution) -> Chart {
    let series = |name: &str, value: fn(&Generation) -> f64| Series {
        name: name.to_owned(),
        values: evolution
            .history
            .iter()
            .map(|generation| Some(value(generation)))
            .collect(),
        line: true,
    };
    Chart {
        title: format!(
            "Search with seed {}, {} bytes at most",
            evolution.seed, evolution.limit
        ),
        places: "generation".to_owned(),
        measure: "fitness".to_owned(),
        series: vec![
            series("best", |generation| generation.best),
            series("mean of parents", |generation| generation.mean),
        ],
    }
}
