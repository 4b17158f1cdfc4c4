//! Files whose tensors were scaled or rotated before they were quantized, made by hand.

mod file;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::engine::set_figures;
use crate::format::{
    ActivationRange, Choice, Encoding, Float, Format, GroupSize, Method, Recipe, Rotation,
    ScaleDtype, ScalePolicy, Scheme, Width,
};
use crate::kernel::{Isa, KernelTable};
use crate::model::Model;
use crate::quantize::transform::{apply_to_weights, measure_transformed_rows};
use crate::quantize::{Guide, Matrix, PlanesMut, quantize_rows};
use crate::schema::{self, Tile};
use crate::sink::{Buffers, Destination, Footer, PARQUET, Sink, StagedFile, TileBuffers};
use crate::tensor::{Dtype, Shape};

/// A tensor, and what is done to it.
#[derive(Clone)]
struct Given {
    name: &'static str,
    rows: usize,
    cols: usize,
    /// Rows of a tile.
    step: usize,
    recipe: Recipe,
    scaled: bool,
    rotation: Option<Rotation>,
    activation: Vec<ActivationRange>,
}

const fn range(t_begin: i32, t_end: i32, scale: f32, zero_point: f32) -> ActivationRange {
    ActivationRange {
        t_begin,
        t_end,
        scale,
        zero_point,
    }
}

/// `tests/data/transformed.parquet` holds these, as docs/format.md has it; its readers in other
/// languages know them.
fn given() -> Vec<Given> {
    let recipe = |bits, scheme, group_size| {
        let format = Format::uniform(Width::from_bits(bits).unwrap());
        Recipe {
            encoding: format.encoding(Choice {
                scheme,
                group_size: GroupSize::new(group_size).unwrap(),
                scale_dtype: ScaleDtype::F16,
            }),
            method: Method::Lsq,
            gain: format.spec().gain,
            scales: ScalePolicy::Auto,
        }
    };
    let rotation = |block, seed| Some(Rotation { block, seed });
    let one = |name, (rows, cols), recipe, scaled, rotation| Given {
        name,
        rows,
        cols,
        step: rows,
        recipe,
        scaled,
        rotation,
        activation: Vec::new(),
    };
    let symmetric = Scheme::Symmetric;
    let mut both = one(
        "both",
        (6, 40),
        recipe(4, symmetric, 16),
        true,
        rotation(8, 77),
    );
    both.activation = vec![range(0, 300, 0.25, 8.0), range(300, 999, 0.5, -1.5)];
    let mut tiles = one(
        "tiles",
        (5, 192),
        recipe(2, Scheme::Affine, 64),
        false,
        rotation(64, 0),
    );
    tiles.step = 2;
    tiles.activation = vec![range(10, 20, 1.5, 0.0)];
    vec![
        both,
        one("plain", (4, 32), recipe(8, Scheme::Affine, 32), false, None),
        tiles,
        one("scaled", (3, 7), recipe(8, symmetric, 0), true, None),
        one(
            "seeded",
            (4, 128),
            recipe(4, symmetric, 32),
            true,
            rotation(128, u64::MAX),
        ),
    ]
}

impl Given {
    fn weights(&self) -> Vec<f32> {
        let seed = self.name.len() * 101;
        let value = |i: usize| ((i * 7919 + seed) % 1009) as f32 / 504.0 - 1.0;
        (0..self.rows * self.cols).map(value).collect()
    }

    fn scale(&self) -> Option<Vec<f32>> {
        let scale = |j: usize| 0.5 + 0.25 * (j % 5) as f32;
        self.scaled.then(|| (0..self.cols).map(scale).collect())
    }

    /// A tile without planes.
    fn tile(&self, number: usize) -> Tile {
        let start = number * self.step;
        let scale = self.scale().map(|scale| {
            let bytes = |s: f32| half::f16::from_f32(s).to_le_bytes();
            Bytes::from(scale.into_iter().flat_map(bytes).collect::<Vec<u8>>())
        });
        Tile {
            name: self.name.to_owned(),
            tile: number as u32,
            row_start: start,
            row_count: self.step.min(self.rows - start),
            shape: Shape::new(vec![self.rows, self.cols]).unwrap(),
            source_dtype: Dtype::F32,
            encoding: Some(self.recipe.planned()),
            input_scale: scale,
            rotation: self.rotation,
            activation: self.activation.clone().into(),
            checksum: 0,
            cosine: None,
            sqnr_db: None,
            bits_per_weight: None,
        }
    }

    /// A tile and its planes: codes, scales, biases.
    fn quantized(&self, number: usize) -> (Tile, [Vec<u8>; 3]) {
        let table = KernelTable::of(Isa::Scalar).unwrap();
        let mut tile = self.tile(number);
        let rows = tile.row_start * self.cols..(tile.row_start + tile.row_count) * self.cols;
        let original = bytes(&self.weights()[rows]);
        let mut weights = original.clone();
        apply_to_weights(table, tile.transform(), self.cols, &mut weights);
        let encoding = tile.encoding.unwrap();
        let mut planes = tile.plane_bytes().unwrap().map(|len| vec![0; len]);
        let [codes, scales, biases] = &mut planes;
        let matrix = |weights| Matrix {
            rows: tile.row_count,
            cols: self.cols,
            float: Float::F32,
            weights,
        };
        let out = PlanesMut {
            codes,
            scales,
            biases,
        };
        let recipe = &self.recipe;
        let quantized = quantize_rows(
            table,
            recipe,
            encoding,
            matrix(&weights),
            Guide::None,
            false,
            out,
        );
        let mut outcome = quantized.unwrap();
        let [codes, scales, biases] = &planes;
        let stored = crate::kernel::Planes {
            codes,
            scales,
            biases,
        };
        let mut room = vec![0; self.cols * 4];
        let (transform, matrix) = (tile.transform(), matrix(&original));
        let error = measure_transformed_rows(table, encoding, transform, matrix, stored, &mut room);
        outcome.error = error.unwrap();
        set_figures(&mut tile, &outcome);
        let biases = encoding.has_biases().then_some(biases.as_slice());
        tile.checksum = schema::checksum(&tile, codes, Some(scales), biases);
        (tile, planes)
    }

    fn tiles(&self) -> impl Iterator<Item = (Tile, [Vec<u8>; 3])> {
        (0..self.rows.div_ceil(self.step)).map(|number| self.quantized(number))
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(float: Float, bytes: &[u8]) -> Vec<f32> {
    let count = bytes.len() / float.size();
    (0..count).map(|i| float.get(bytes, i)).collect()
}

fn footer() -> Footer {
    Footer {
        modality: "unknown".to_owned(),
        config: serde_json::json!({}),
        source: serde_json::json!({"name": "made by hand"}),
        source_metadata: Default::default(),
        summary: serde_json::json!({"tensors": {}}),
        part: None,
    }
}

/// Writes tiles with the sink; a kept tensor goes with them.
fn write(path: &Path, tiles: impl IntoIterator<Item = (Tile, [Vec<u8>; 3])>) {
    let destination = Destination::File(StagedFile::create(path).unwrap());
    let mut sink = (PARQUET.create)(destination, false).unwrap();
    let buffers = Buffers::new(0);
    let buffer = |plane: &[u8]| {
        let mut buffer = buffers.take(plane.len());
        buffer.bytes_mut().copy_from_slice(plane);
        buffer
    };
    for (tile, [codes, scales, biases]) in tiles {
        let affine = tile.encoding.is_some_and(Encoding::has_biases);
        let planes = TileBuffers {
            codes: buffer(&codes),
            scales: tile.encoding.map(|_| buffer(&scales)),
            biases: affine.then(|| buffer(&biases)),
        };
        put(sink.as_mut(), tile, planes);
    }
    sink.finish(footer(), &mut || Ok(())).unwrap();
}

/// Packs a tile and writes it.
fn put(sink: &mut dyn Sink, tile: Tile, planes: TileBuffers) {
    let packed = ((PARQUET.limits)(false).pack)(&tile, planes).unwrap();
    sink.write(tile, packed, &mut || Ok(())).unwrap();
}

/// A kept tensor, whose activations have parameters all the same.
fn kept() -> (Tile, [Vec<u8>; 3]) {
    let values = bytes(&[1.0, -2.0, 0.5]);
    let mut tile = Tile {
        name: "kept".to_owned(),
        row_count: 1,
        shape: Shape::new(vec![3]).unwrap(),
        encoding: None,
        rotation: None,
        input_scale: None,
        activation: Arc::new([range(0, 1, 2.0, 3.0)]),
        ..given()[0].tile(0)
    };
    tile.bits_per_weight = Some(32.0);
    tile.checksum = schema::checksum(&tile, &values, None, None);
    (tile, [values, Vec::new(), Vec::new()])
}

fn all_tiles() -> Vec<(Tile, [Vec<u8>; 3])> {
    let given = given();
    given
        .iter()
        .flat_map(Given::tiles)
        .chain([kept()])
        .collect()
}

fn opened() -> (tempfile::TempDir, PathBuf, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.parquet");
    write(&path, all_tiles());
    let model = Model::open(&path).unwrap();
    (folder, path, model)
}

fn decoded(model: &Model, tensor: usize, float: Float) -> Vec<f32> {
    let shape = &model.tensors()[tensor].info.shape;
    let mut out = vec![0; shape.elements() * float.size()];
    let rows = 0..shape.rows();
    model
        .dequantize_rows(tensor, rows, float, &mut out)
        .unwrap();
    floats(float, &out)
}
