//! Kernels against the memory of the machine: each is timed in turn with what it is compared to
//! (a copy of its input, a plain read, the scalar kernels), in one process, so that the ratio
//! holds even where the machine is busy. Prints a table; `--json FILE` writes the rows as well.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use arrowquant::capi::kernels::{aq_planes, aq_quantize_rows};
use arrowquant::capi::types::{
    AQ_DTYPE_BF16, AQ_DTYPE_F16, AQ_FORMAT_INT4, AQ_GAIN_UNIT, AQ_METHOD_MINMAX,
    AQ_SCHEME_SYMMETRIC, aq_recipe,
};
use arrowquant::format::{Format, Gain, Method, Scheme};
use arrowquant::kernel::{Isa, KernelTable};
use clap::Parser;
use common::{Aligned, Bench, Bytes, recipe, tables};
use serde_json::{Value, json};

/// Weights in a row of the large matrix.
const COLS: usize = 4096;

#[derive(Parser)]
struct Options {
    /// Fewer rounds, on less.
    #[arg(long)]
    quick: bool,
    /// Sections to run.
    #[arg(long, value_delimiter = ',', default_value = "bandwidth,simd,threads")]
    only: Vec<String>,
    /// Where to write the rows.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The shortest of several runs of each job, the jobs taking turns. A run repeats its job `times` times.
fn best<const N: usize>(
    rounds: usize,
    times: u32,
    mut jobs: [&mut dyn FnMut(); N],
) -> [Duration; N] {
    let mut best = [Duration::MAX; N];
    for round in 0..=rounds {
        for (job, best) in jobs.iter_mut().zip(&mut best) {
            let started = Instant::now();
            for _ in 0..times {
                job();
            }
            // The first round warms up.
            if round > 0 {
                *best = (*best).min(started.elapsed() / times);
            }
        }
    }
    best
}

/// Reads all of it, eight words at a time.
fn read(bytes: &[u8]) -> u64 {
    // SAFETY: any bytes are integers.
    let (_, words, _) = unsafe { bytes.align_to::<[u64; 32]>() };
    let mut sums = [0u64; 32];
    for word in words {
        for (sum, word) in sums.iter_mut().zip(word) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// What came of it.
struct Rows {
    quick: bool,
    found: Vec<Value>,
}

struct Row<'a> {
    section: &'a str,
    operation: String,
    size: &'a str,
    isa: &'a str,
    threads: usize,
    weights: usize,
    time: Duration,
    bytes: usize,
    /// What it is compared to, and that time.
    reference: (&'a str, Duration),
    target: Option<f64>,
    /// The time of scalar kernels, and of a copy.
    scalar: Option<(Duration, Duration)>,
}

impl Rows {
    fn add(&mut self, mut row: Row<'_>) {
        // Targets are for inputs far larger than the cache.
        row.target = row.target.filter(|_| !self.quick);
        let seconds = row.time.as_secs_f64();
        let ratio = row.reference.1.as_secs_f64() / seconds;
        let scalar_ratio = row.scalar.map(|(scalar, _)| scalar.as_secs_f64() / seconds);
        let memcpy_ratio = row.scalar.map(|(_, copied)| copied.as_secs_f64() / seconds);
        let weights_per_s = row.weights as f64 / seconds;
        let gb_per_s = row.bytes as f64 / seconds / 1e9;
        let verdict = match row.target {
            Some(target) if ratio >= target => format!("PASS (at least {target})"),
            Some(target) => format!("FAIL (at least {target})"),
            None => String::new(),
        };
        let memcpy = memcpy_ratio.map_or(String::new(), |ratio| format!("{ratio:.2} of memcpy"));
        println!(
            "{:<47} {:>11} {:<11} {:>8.0} Mw/s {:>6.1} GB/s {:>6.2} of {:<19} {memcpy:<15} {verdict}",
            row.operation,
            row.size,
            row.isa,
            weights_per_s / 1e6,
            gb_per_s,
            ratio,
            row.reference.0,
        );
        self.found.push(json!({
            "section": row.section,
            "operation": row.operation,
            "size": row.size,
            "isa": row.isa,
            "threads": row.threads,
            "weights_per_s": weights_per_s,
            "gb_per_s": gb_per_s,
            "reference": row.reference.0,
            "ratio": ratio,
            "target": row.target,
            "scalar_ratio": scalar_ratio,
            "memcpy_ratio": memcpy_ratio,
        }));
    }
}

/// What a case takes, and what is asked of it.
struct Run<'a> {
    options: &'a Options,
    found: Rows,
}

impl Run<'_> {
    fn rounds(&self) -> usize {
        if self.options.quick { 2 } else { 7 }
    }

    /// One thread, input far larger than the cache, against copying and reading memory.
    fn bandwidth(&mut self) {
        let rows = if self.options.quick { 2048 } else { 32768 };
        let mut bench = Bench::new(rows, COLS);
        let mut copy = Aligned::<u8>::new(rows * COLS * 2);
        for table in tables()
            .into_iter()
            .filter(|table| table.isa() > Isa::Scalar)
        {
            for method in [Method::MinMax, Method::Lsq] {
                for (&format, &scheme) in pairs() {
                    for (gain, measure) in [(Gain::Lsq, false), (format.spec().gain, true)] {
                        if measure || method == Method::MinMax {
                            let recipe = recipe(format, scheme, method, gain);
                            self.quantizing(table, &mut bench, &mut copy, recipe, measure);
                        }
                    }
                }
            }
            for &format in Format::ALL {
                self.decoding(table, &mut bench, &mut copy, format);
                self.products(table, &mut bench, format);
            }
        }
        let table = tables().pop().expect("scalar at least");
        self.c_call(table, &mut bench);
    }

    fn quantizing(
        &mut self,
        table: &KernelTable,
        bench: &mut Bench,
        copy: &mut Aligned<u8>,
        recipe: arrowquant::format::Recipe,
        measure: bool,
    ) {
        let source = Aligned::from(bench.weights.get());
        let [time, memcpy] = best(
            self.rounds(),
            1,
            [&mut || bench.quantize(table, &recipe, measure), &mut || {
                copy.get_mut().copy_from_slice(black_box(source.get()))
            }],
        );
        let avx2 = table.isa().name() == "avx2";
        let symmetric = recipe.encoding.scheme() == Some(Scheme::Symmetric);
        let target = match recipe.method {
            Method::MinMax => (!measure).then_some(if avx2 { 0.5 } else { 0.7 }),
            Method::Lsq => (symmetric && recipe.format() != Format::Int8).then_some(if avx2 {
                0.05
            } else {
                0.08
            }),
            // Not without a calibration.
            Method::Gptq => None,
        };
        let with = match (measure, recipe.gain) {
            (false, _) => "",
            (true, Gain::Unit) => ", unit gain, metrics",
            (true, Gain::Lsq) => ", metrics",
        };
        let weights = bench.rows * COLS;
        self.found.add(Row {
            section: "bandwidth",
            operation: format!(
                "quantize {} {} {}{with}",
                recipe.format(),
                recipe.method,
                recipe.planned().choice().scheme
            ),
            size: "large",
            isa: table.isa().name(),
            threads: 1,
            weights,
            time,
            bytes: weights * 2,
            reference: ("memcpy of the input", memcpy),
            target,
            scalar: None,
        });
    }

    fn decoding(
        &mut self,
        table: &KernelTable,
        bench: &mut Bench,
        copy: &mut Aligned<u8>,
        format: Format,
    ) {
        let recipe = recipe(format, Scheme::Symmetric, Method::MinMax, Gain::Lsq);
        let encoding = recipe.planned();
        bench.quantize(table, &recipe, false);
        // Half the rows fill as much memory as all weights did.
        let bytes = bench.rows * COLS * 2;
        let source = Aligned::<u8>::new(bytes);
        let mut out = Aligned::<u8>::new(bytes);
        let [time, memcpy] = best(
            self.rounds(),
            1,
            [
                &mut || bench.decode(table, encoding, out.get_mut()),
                &mut || copy.get_mut().copy_from_slice(black_box(source.get())),
            ],
        );
        self.found.add(Row {
            section: "bandwidth",
            operation: format!("dequantize {format} to f32"),
            size: "large",
            isa: table.isa().name(),
            threads: 1,
            weights: bytes / 4,
            time,
            bytes,
            reference: ("memcpy of the output", memcpy),
            target: table.isa().name().starts_with("avx512").then_some(0.7),
            scalar: None,
        });
    }

    fn products(&mut self, table: &KernelTable, bench: &mut Bench, format: Format) {
        let recipe = recipe(format, Scheme::Symmetric, Method::MinMax, Gain::Lsq);
        let encoding = recipe.planned();
        bench.quantize(table, &recipe, false);
        let codes = bench.rows * encoding.plane_bytes(COLS)[0];
        let plain = Aligned::from(bench.planes(encoding).codes);
        let (mut y, mut y_bytes) = (vec![0.0; 16 * bench.rows], vec![0.0; 16 * bench.rows]);
        for batch in [1, 4, 16] {
            let x: Vec<f32> = (0..batch * COLS)
                .map(|i| (i % 17) as f32 / 8.0 - 1.0)
                .collect();
            let x = Aligned::from(&x);
            let bytes = Bytes::new(table, encoding, x.get(), COLS);
            let (y, y_bytes) = (
                &mut y[..batch * bench.rows],
                &mut y_bytes[..batch * bench.rows],
            );
            let [float, byte, reading] = best(
                self.rounds(),
                1,
                [
                    &mut || bench.matvec(table, encoding, x.get(), y),
                    &mut || bench.matvec_bytes(table, encoding, bytes.get(), y_bytes),
                    &mut || {
                        black_box(read(black_box(plain.get())));
                    },
                ],
            );
            let wide = batch == 1 && table.isa().name().starts_with("avx512");
            let float_target = match format {
                Format::Int8 => Some(0.7),
                Format::Int4 => Some(0.4),
                Format::Int2 => None,
            };
            let vnni = batch == 1 && table.isa().name() == "avx512vnni" && format == Format::Int4;
            for (kind, time, target) in [
                ("f32", float, float_target.filter(|_| wide)),
                ("int8", byte, vnni.then_some(0.7)),
            ] {
                self.found.add(Row {
                    section: "bandwidth",
                    operation: format!("matvec {format} x {kind}, batch {batch}"),
                    size: "large",
                    isa: table.isa().name(),
                    threads: 1,
                    weights: bench.rows * COLS,
                    time,
                    bytes: codes,
                    reference: ("read of the codes", reading),
                    target,
                    scalar: None,
                });
            }
        }
    }

    /// The C API against the Rust call under it.
    fn c_call(&mut self, table: &KernelTable, bench: &mut Bench) {
        let recipe = recipe(Format::Int4, Scheme::Symmetric, Method::MinMax, Gain::Unit);
        let encoding = recipe.planned();
        let (rows, cols) = (bench.rows, COLS);
        let weights = Aligned::from(bench.weights.get());
        let [codes, scales, _] = encoding.plane_bytes(cols);
        let mut codes = Aligned::<u8>::new(rows * codes);
        let mut scales = Aligned::<u8>::new(rows * scales);
        let c_recipe = aq_recipe {
            struct_size: size_of::<aq_recipe>() as u32,
            format: AQ_FORMAT_INT4,
            group_size: 128,
            scheme: AQ_SCHEME_SYMMETRIC,
            scale_dtype: AQ_DTYPE_F16,
            method: AQ_METHOD_MINMAX,
            gain: AQ_GAIN_UNIT,
        };
        let mut call = || {
            let planes = aq_planes {
                struct_size: size_of::<aq_planes>() as u32,
                codes_len: codes.get().len(),
                codes: codes.get_mut().as_mut_ptr().cast(),
                scales_len: scales.get().len(),
                scales: scales.get_mut().as_mut_ptr().cast(),
                biases: std::ptr::null_mut(),
                biases_len: 0,
            };
            // SAFETY: lengths are those of the slices.
            let status = unsafe {
                aq_quantize_rows(
                    &c_recipe,
                    weights.get().as_ptr().cast(),
                    weights.get().len(),
                    AQ_DTYPE_BF16,
                    rows,
                    cols,
                    std::ptr::null(),
                    &planes,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
            assert_eq!(status, 0);
        };
        let [c, rust] = best(
            self.rounds(),
            1,
            [&mut call, &mut || bench.quantize(table, &recipe, false)],
        );
        self.found.add(Row {
            section: "bandwidth",
            operation: "aq_quantize_rows".to_owned(),
            size: "large",
            isa: table.isa().name(),
            threads: 1,
            weights: rows * cols,
            time: c,
            bytes: rows * cols * 2,
            reference: ("the Rust call", rust),
            target: Some(0.95),
            scalar: None,
        });
    }

    /// Each instruction set against scalar, on one row and on layers.
    fn simd(&mut self) {
        let sizes: &[(&str, usize, usize)] = &[
            ("256", 1, 256),
            ("1024", 1, 1024),
            ("4096", 1, 4096),
            ("768x768", 768, 768),
            ("3072x768", 3072, 768),
            ("12288x3072", 12288, 3072),
        ];
        let sizes = if self.options.quick {
            &sizes[..4]
        } else {
            sizes
        };
        for &(size, rows, cols) in sizes {
            let mut bench = Bench::new(rows, cols);
            let weights = rows * cols;
            let times = ((1 << 20) / weights).max(1) as u32;
            let recipe = recipe(Format::Int4, Scheme::Symmetric, Method::MinMax, Gain::Lsq);
            let encoding = recipe.planned();
            let source = Aligned::<u8>::new(weights * 4);
            let mut out = Aligned::<u8>::new(weights * 4);
            let x = Aligned::from(&vec![0.5f32; cols]);
            let mut y = vec![0.0; rows];
            let mut scalar = None;
            for table in tables() {
                let mut copy = |bytes: usize| {
                    let job = &mut || {
                        let copied = black_box(&source.get()[..bytes]);
                        out.get_mut()[..bytes].copy_from_slice(copied);
                    };
                    best(self.rounds(), times, [job])[0]
                };
                let (copy2, copy4) = (copy(weights * 2), copy(weights * 4));
                let lsq = common::recipe(Format::Int4, Scheme::Symmetric, Method::Lsq, Gain::Unit);
                let mut jobs = vec![];
                let mut time = |operation: &'static str, bytes, copied, job: &mut dyn FnMut()| {
                    jobs.push((
                        operation,
                        bytes,
                        copied,
                        best(self.rounds(), times, [job])[0],
                    ));
                };
                time("quantize int4 lsq", weights * 2, copy2, &mut || {
                    bench.quantize(table, &lsq, true);
                });
                time("quantize int4 minmax", weights * 2, copy2, &mut || {
                    bench.quantize(table, &recipe, false);
                });
                time("dequantize int4", weights * 4, copy4, &mut || {
                    bench.decode(table, encoding, out.get_mut());
                });
                time("cosine", weights * 6, copy4, &mut || {
                    black_box(bench.compare(table, out.get()));
                });
                time("matvec int4", weights / 2, copy2, &mut || {
                    bench.matvec(table, encoding, x.get(), &mut y);
                });
                let scalar = scalar.get_or_insert_with(|| jobs.clone());
                if table.isa() == Isa::Scalar {
                    continue;
                }
                for (&(operation, bytes, copied, time), scalar) in jobs.iter().zip(&*scalar) {
                    let asked = size == "4096" && !operation.starts_with("matvec");
                    self.found.add(Row {
                        section: "simd",
                        operation: operation.to_owned(),
                        size,
                        isa: table.isa().name(),
                        threads: 1,
                        weights,
                        time,
                        bytes,
                        reference: ("scalar", scalar.3),
                        target: asked.then_some(4.0),
                        scalar: Some((scalar.3, copied)),
                    });
                }
            }
        }
    }

    /// The kernels on several threads, each with rows of its own.
    fn threads(&mut self) {
        let rows = if self.options.quick { 2048 } else { 65536 };
        let mut bench = Bench::new(rows, COLS);
        let table = tables().pop().expect("scalar at least");
        for method in [Method::MinMax, Method::Lsq] {
            for format in [Format::Int2, Format::Int4, Format::Int8] {
                let recipe = recipe(format, Scheme::Symmetric, method, Gain::Lsq);
                let operation = format!("quantize {format} {method}");
                self.on_threads(operation, rows * COLS, Some(1.85), |threads| {
                    bench.quantize_on(threads, table, &recipe, false);
                });
            }
        }
        // What the memory itself allows.
        let source = bench.weights.get();
        let mut copy = Aligned::<u8>::new(source.len());
        self.on_threads("memcpy".to_owned(), rows * COLS, None, |threads| {
            let part = source.len().div_ceil(threads);
            let parts = copy.get_mut().chunks_mut(part);
            std::thread::scope(|scope| {
                for (copy, source) in parts.zip(source.chunks(part)) {
                    scope.spawn(move || copy.copy_from_slice(black_box(source)));
                }
            });
        });
    }

    /// A job on 1, 2, 4, 8 and 16 threads, as far as there are cores.
    fn on_threads(
        &mut self,
        operation: String,
        weights: usize,
        target: Option<f64>,
        mut job: impl FnMut(usize),
    ) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut one = Duration::MAX;
        for threads in [1, 2, 4, 8, 16] {
            if threads > cores {
                break;
            }
            let mut many = Duration::MAX;
            for round in 0..=self.rounds() {
                let started = Instant::now();
                job(1);
                let between = Instant::now();
                job(threads);
                if round > 0 {
                    one = one.min(between - started);
                    many = many.min(between.elapsed());
                }
            }
            self.found.add(Row {
                section: "threads",
                operation: operation.clone(),
                size: "large",
                isa: KernelTable::choose().map_or("", |table| table.isa().name()),
                threads,
                weights,
                time: many,
                bytes: weights * 2,
                reference: ("one thread", one),
                target: target.filter(|_| threads == 2),
                scalar: None,
            });
        }
    }
}

/// Every format with every scheme.
fn pairs() -> impl Iterator<Item = (&'static Format, &'static Scheme)> {
    let formats = Format::ALL.iter();
    formats.flat_map(|format| Scheme::ALL.iter().map(move |scheme| (format, scheme)))
}

fn main() {
    let options = Options::parse();
    let mut run = Run {
        options: &options,
        found: Rows {
            quick: options.quick,
            found: Vec::new(),
        },
    };
    for section in &options.only {
        match section.as_str() {
            "bandwidth" => run.bandwidth(),
            "simd" => run.simd(),
            "threads" => run.threads(),
            other => panic!("{other}: sections are bandwidth, simd and threads"),
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&run.found.found).expect("plain data");
        std::fs::write(path, text).expect("the JSON file can be written");
    }
}
