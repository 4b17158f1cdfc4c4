//! Matrices to run kernels on.

use std::hint::black_box;

use arrowquant::format::{
    Choice, Encoding, Float, Format, Gain, GroupSize, Method, Recipe, ScaleDtype, ScalePolicy,
    Scheme,
};
use arrowquant::kernel::{
    Activations, ActivationsMut, ByteMatVec, CompareRow, DecodeRow, ErrorSums, Isa, KernelTable,
    MatVec, Planes,
};
use arrowquant::quantize::{Guide, Matrix, PlanesMut, quantize_rows};
use rand::SeedableRng;
use rand_distr::{Distribution, StudentT};

/// Memory that starts at a multiple of 64 bytes, as a runtime's tensors do.
pub struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[expect(dead_code, reason = "used through pointers")] [u8; 64]);

/// Numbers of which any bytes are one.
pub trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for f32 {}

impl<T: Plain> Aligned<T> {
    /// Zeros, written to, so that no page is missing later.
    pub fn new(len: usize) -> Self {
        Self {
            lines: vec![Line([black_box(0); 64]); (len * size_of::<T>()).div_ceil(64)],
            len,
            kind: std::marker::PhantomData,
        }
    }

    /// A copy.
    pub fn from(values: &[T]) -> Self {
        let mut aligned = Self::new(values.len());
        aligned.get_mut().copy_from_slice(values);
        aligned
    }

    pub fn get(&self) -> &[T] {
        // SAFETY: the lines hold that many plain numbers.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Rows of bf16 weights with heavy tails, like those of trained models.
fn weights(count: usize) -> Aligned<u8> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let tails = StudentT::new(5.0f32).unwrap();
    let block: Vec<u8> = (0..count.min(1 << 22))
        .flat_map(|_| half::bf16::from_f32(0.02 * tails.sample(&mut rng)).to_le_bytes())
        .collect();
    let mut weights = Aligned::new(count * 2);
    for part in weights.get_mut().chunks_mut(block.len().max(1)) {
        part.copy_from_slice(&block[..part.len()]);
    }
    weights
}

pub fn recipe(format: Format, scheme: Scheme, method: Method, gain: Gain) -> Recipe {
    Recipe {
        encoding: format.encoding(Choice {
            scheme,
            group_size: GroupSize::new(128).unwrap(),
            scale_dtype: ScaleDtype::F16,
        }),
        method,
        gain,
        scales: ScalePolicy::F16,
    }
}

/// A quantized matrix and the memory around it.
pub struct Bench {
    pub rows: usize,
    pub cols: usize,
    pub weights: Aligned<u8>,
    codes: Aligned<u8>,
    scales: Aligned<u8>,
    biases: Aligned<u8>,
}

impl Bench {
    pub fn new(rows: usize, cols: usize) -> Self {
        let groups = cols.div_ceil(128);
        Self {
            rows,
            cols,
            weights: weights(rows * cols),
            codes: Aligned::new(rows * cols),
            scales: Aligned::new(rows * groups * 2),
            biases: Aligned::new(rows * groups * 2),
        }
    }

    /// The first `rows` rows.
    pub fn quantize_rows(
        &mut self,
        table: &KernelTable,
        recipe: &Recipe,
        rows: usize,
        measure: bool,
    ) {
        let cols = self.cols;
        let [codes, scales, biases] = recipe.planned().plane_bytes(cols);
        let planes = PlanesMut {
            codes: &mut self.codes.get_mut()[..rows * codes],
            scales: &mut self.scales.get_mut()[..rows * scales],
            biases: &mut self.biases.get_mut()[..rows * biases],
        };
        let weights = &self.weights.get()[..rows * cols * 2];
        quantize_part(table, recipe, cols, weights, measure, planes);
    }

    pub fn quantize(&mut self, table: &KernelTable, recipe: &Recipe, measure: bool) {
        self.quantize_rows(table, recipe, self.rows, measure);
    }

    /// On as many threads, each a part of the rows.
    pub fn quantize_on(
        &mut self,
        threads: usize,
        table: &KernelTable,
        recipe: &Recipe,
        measure: bool,
    ) {
        let [code_bytes, scale_bytes, _] = recipe.planned().plane_bytes(self.cols);
        let (cols, rows) = (self.cols, self.rows.div_ceil(threads));
        let weights = self.weights.get().chunks(rows * cols * 2);
        let codes = self.codes.get_mut()[..self.rows * code_bytes].chunks_mut(rows * code_bytes);
        let scales = self.scales.get_mut().chunks_mut(rows * scale_bytes);
        std::thread::scope(|scope| {
            for ((weights, codes), scales) in weights.zip(codes).zip(scales) {
                scope.spawn(move || {
                    let planes = PlanesMut {
                        codes,
                        scales,
                        biases: &mut [],
                    };
                    quantize_part(table, recipe, cols, weights, measure, planes);
                });
            }
        });
    }

    pub fn planes(&self, encoding: Encoding) -> Planes<'_> {
        let [codes, scales, biases] = encoding.plane_bytes(self.cols);
        Planes {
            codes: &self.codes.get()[..self.rows * codes],
            scales: &self.scales.get()[..self.rows * scales],
            biases: &self.biases.get()[..self.rows * biases],
        }
    }

    /// Of the original and as many decoded weights.
    pub fn compare(&self, table: &KernelTable, decoded: &[u8]) -> ErrorSums {
        let original = &self.weights.get()[..decoded.len() / 2];
        let row = CompareRow {
            original: (Float::BF16, original),
            decoded: (Float::F32, decoded),
        };
        table.compare(row).expect("finite weights")
    }

    pub fn decode(&self, table: &KernelTable, encoding: Encoding, out: &mut [u8]) {
        for (row, weights) in out.chunks_exact_mut(self.cols * 4).enumerate() {
            table.decode_row(DecodeRow {
                encoding,
                cols: self.cols,
                planes: self.planes(encoding).row(encoding, self.cols, row),
                float: Float::F32,
                weights,
            });
        }
    }

    pub fn matvec(&self, table: &KernelTable, encoding: Encoding, x: &[f32], y: &mut [f32]) {
        table.matvec(MatVec {
            encoding,
            cols: self.cols,
            planes: self.planes(encoding),
            rows: 0..self.rows,
            x,
            y,
            y_rows: self.rows,
        });
    }

    pub fn matvec_bytes(
        &self,
        table: &KernelTable,
        encoding: Encoding,
        x: Activations<'_>,
        y: &mut [f32],
    ) {
        table.matvec_bytes(ByteMatVec {
            encoding,
            cols: self.cols,
            planes: self.planes(encoding),
            rows: 0..self.rows,
            x,
            y,
            y_rows: self.rows,
        });
    }
}

/// Whole rows.
fn quantize_part(
    table: &KernelTable,
    recipe: &Recipe,
    cols: usize,
    weights: &[u8],
    measure: bool,
    planes: PlanesMut<'_>,
) {
    let matrix = Matrix {
        rows: weights.len() / (cols * 2),
        cols,
        float: Float::BF16,
        weights,
    };
    let planned = recipe.planned();
    let outcome = quantize_rows(table, recipe, planned, matrix, Guide::None, measure, planes);
    black_box(outcome.expect("finite weights"));
}

/// Vectors quantized to bytes.
pub struct Bytes {
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

impl Bytes {
    pub fn new(table: &KernelTable, encoding: Encoding, x: &[f32], cols: usize) -> Self {
        let groups = x.len() / cols * encoding.groups(cols);
        let mut bytes = Self {
            values: vec![0; x.len()],
            scales: vec![0.0; groups],
            sums: vec![0.0; groups],
        };
        let out = ActivationsMut {
            encoding,
            values: &mut bytes.values,
            scales: &mut bytes.scales,
            sums: &mut bytes.sums,
        };
        assert!(table.quantize_vectors(x, cols, out));
        bytes
    }

    pub fn get(&self) -> Activations<'_> {
        Activations {
            values: &self.values,
            scales: &self.scales,
            sums: &self.sums,
        }
    }
}

/// The tables of this machine, weakest first.
pub fn tables() -> Vec<&'static KernelTable> {
    let tables = Isa::ALL.iter().filter_map(|&isa| KernelTable::of(isa));
    tables.collect()
}
