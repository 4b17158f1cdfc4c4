//! Each kernel of each instruction set, for work on one of them: `cargo bench --bench kernels`.

#[expect(dead_code, reason = "the other bench uses more")]
mod common;

use std::hint::black_box;

use arrowquant::format::{Format, Gain, Method, ScaleDtype, Scheme};
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
                let recipe = recipe(format, scheme, method, Gain::of(format));
                group.bench_function(id(name), |b| {
                    b.iter(|| bench.quantize(table, &recipe, measure));
                });
            }
            let plain = recipe(format, Scheme::Symmetric, Method::MinMax, Gain::Lsq);
            bench.quantize(table, &plain, false);
            let layout = plain.layout(ScaleDtype::F16);
            group.bench_function(id("dequantize"), |b| {
                b.iter(|| bench.decode(table, layout, out.get_mut()));
            });
            group.bench_function(id("cosine"), |b| {
                b.iter(|| black_box(bench.compare(table, out.get())));
            });
            group.bench_function(id("matvec"), |b| {
                b.iter(|| bench.matvec(table, layout, x.get(), &mut y));
            });
            let bytes = Bytes::new(table, layout, x.get(), COLS);
            group.bench_function(id("matvec int8"), |b| {
                b.iter(|| bench.matvec_bytes(table, layout, bytes.get(), &mut y));
            });
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
