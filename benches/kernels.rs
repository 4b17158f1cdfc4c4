//! Each kernel of each instruction set, for work on one of them: `cargo bench --bench kernels`.

#[expect(dead_code, reason = "the other bench uses more")]
mod common;

use std::hint::black_box;

use arrowquant::format::{Float, Format, Gain, GroupSize, Method, Scheme, Width};
use arrowquant::kernel::{ActivationGrid, QuantizeActivations};
use common::{Aligned, Bench, Bytes, recipe, tables};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Of one piece of a run: in cache.
const ROWS: usize = 64;
const COLS: usize = 4096;

fn kernels(criterion: &mut Criterion) {
    let mut bench = Bench::new(ROWS, COLS);
    let mut out = Aligned::<u8>::new(ROWS * COLS * 4);
    let x = Aligned::from(&vec![0.5f32; COLS]);
    let mut y = vec![0.0; ROWS];
    for &format in Format::ALL {
        let mut group = criterion.benchmark_group(format.name());
        group.throughput(Throughput::Elements((ROWS * COLS) as u64));
        for table in tables() {
            let id = |operation: &str| BenchmarkId::new(operation, table.isa().name());
            for (name, method, scheme, measure) in [
                ("minmax symmetric", Method::MinMax, Scheme::Symmetric, false),
                ("minmax affine", Method::MinMax, Scheme::Affine, false),
                (
                    "minmax symmetric, metrics",
                    Method::MinMax,
                    Scheme::Symmetric,
                    true,
                ),
                (
                    "lsq symmetric, metrics",
                    Method::Lsq,
                    Scheme::Symmetric,
                    true,
                ),
                ("lsq affine, metrics", Method::Lsq, Scheme::Affine, true),
            ] {
                let recipe = recipe(format, scheme, method, format.spec().gain);
                group.bench_function(id(name), |b| {
                    b.iter(|| bench.quantize(table, &recipe, measure));
                });
            }
            let plain = recipe(format, Scheme::Symmetric, Method::MinMax, Gain::Lsq);
            bench.quantize(table, &plain, false);
            let encoding = plain.planned();
            group.bench_function(id("dequantize"), |b| {
                b.iter(|| bench.decode(table, encoding, out.get_mut()));
            });
            group.bench_function(id("cosine"), |b| {
                b.iter(|| black_box(bench.compare(table, out.get())));
            });
            group.bench_function(id("matvec"), |b| {
                b.iter(|| bench.matvec(table, encoding, x.get(), &mut y));
            });
            let bytes = Bytes::new(table, encoding, x.get(), COLS);
            group.bench_function(id("matvec int8"), |b| {
                b.iter(|| bench.matvec_bytes(table, encoding, bytes.get(), &mut y));
            });
        }
    }
}

/// Activations to integers, in bytes of them read, beside a plain copy.
fn activations(criterion: &mut Criterion) {
    let bench = Bench::new(ROWS, COLS);
    let halves = bench.weights.get();
    let wide: Vec<f32> = (0..ROWS * COLS)
        .map(|i| Float::BF16.get(halves, i))
        .collect();
    let wide: Vec<u8> = wide.iter().flat_map(|x| x.to_le_bytes()).collect();
    let wide = Aligned::from(&wide);
    let divisors = vec![0.7f32; COLS];
    let mut values = Aligned::<u8>::new(ROWS * COLS);
    let mut copy = Aligned::<u8>::new(ROWS * COLS * 4);
    let mut scales = vec![0.0; ROWS * COLS / 16];
    for (float, x) in [(Float::F32, wide.get()), (Float::BF16, halves)] {
        let mut group = criterion.benchmark_group(format!("activations {float}"));
        group.throughput(Throughput::Bytes(x.len() as u64));
        group.bench_function("copy", |b| {
            b.iter(|| black_box(&mut copy.get_mut()[..x.len()]).copy_from_slice(black_box(x)));
        });
        for (name, width, group_size, input_scale) in [
            ("int8 row", Width::Eight, Some(0), None),
            ("int8 g128", Width::Eight, Some(128), None),
            ("int8 g16", Width::Eight, Some(16), None),
            ("int4 g128", Width::Four, Some(128), None),
            (
                "int8 row, divided",
                Width::Eight,
                Some(0),
                Some(divisors.as_slice()),
            ),
            ("int8 static", Width::Eight, None, None),
        ] {
            for table in tables() {
                group.bench_function(BenchmarkId::new(name, table.isa().name()), |b| {
                    b.iter(|| {
                        let grid = match group_size {
                            Some(size) => {
                                let group_size = GroupSize::new(size).unwrap();
                                let scales = &mut scales[..ROWS * group_size.count(COLS)];
                                ActivationGrid::Dynamic { group_size, scales }
                            }
                            None => ActivationGrid::Static {
                                scale: 0.003,
                                zero_point: 127.3,
                            },
                        };
                        let quantized = table.quantize_activations(QuantizeActivations {
                            float,
                            cols: COLS,
                            x,
                            input_scale,
                            width,
                            grid,
                            values: values.get_mut(),
                        });
                        black_box(quantized).expect("finite activations");
                    });
                });
            }
        }
    }
}

criterion_group!(benches, kernels, activations);
criterion_main!(benches);
