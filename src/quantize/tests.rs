use super::*;
use crate::format::{Format, GroupSize, Layout, ScalePolicy, Scheme};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal, StudentT};

struct Quantized { outcome: Outcome }

fn run(x: &[f32], cols: usize, recipe: &Recipe) -> Quantized {
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let rows = x.len() / cols;
    let l: Layout = recipe.layout(ScaleDtype::F16);
    let mut codes = vec![0; rows * l.code_bytes(cols)];
    let mut scales = vec![0; rows * l.scale_bytes(cols)];
    let mut biases = vec![0; rows * l.bias_bytes(cols)];
    let outcome = quantize_rows(KernelTable::choose().unwrap(), recipe, ScaleDtype::F16,
        Matrix { rows, cols, float: Float::F32, weights: &bytes }, None,
        PlanesMut { codes: &mut codes, scales: &mut scales, biases: &mut biases }).unwrap();
    Quantized { outcome }
}

#[test]
fn explore() {
    let n = 1 << 22;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let g: Vec<f32> = Normal::new(0.0f32, 1.0).unwrap().sample_iter(&mut rng).take(n).collect();
    let t: Vec<f32> = StudentT::new(5.0f32).unwrap().sample_iter(&mut rng).take(n).collect();
    for (name, x) in [("gauss", &g), ("student", &t)] {
    for (format, scheme, method) in [
        (Format::Int2, Scheme::Symmetric, Method::Lsq), (Format::Int2, Scheme::Affine, Method::MinMax), (Format::Int2, Scheme::Symmetric, Method::MinMax),
        (Format::Int2, Scheme::Affine, Method::Lsq),
        (Format::Int4, Scheme::Symmetric, Method::Lsq), (Format::Int4, Scheme::Affine, Method::MinMax), (Format::Int4, Scheme::Symmetric, Method::MinMax), (Format::Int4, Scheme::Affine, Method::Lsq),
        (Format::Int8, Scheme::Affine, Method::MinMax), (Format::Int8, Scheme::Symmetric, Method::Lsq), (Format::Int8, Scheme::Affine, Method::Lsq)] {
        for group in [0, 1024, 256, 128, 64, 32, 16] {
            let recipe = Recipe { format, scheme, group_size: GroupSize::new(group).unwrap(), method, gain: Gain::Lsq, scales: ScalePolicy::Auto };
            let t0 = std::time::Instant::now();
            let q = run(x, 4096, &recipe);
            let e = q.outcome.error;
            println!("{name} {format} {scheme} {method} g{group}: relmse {:.5} cos {:.5} sqnr {:.2} {:?}", e.error / e.signal, e.cosine(), e.sqnr_db().unwrap(), t0.elapsed());
        }
    }
    }
}
