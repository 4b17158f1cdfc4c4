//! Writes a quantized model back as safetensors.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::options::{Options, check_safetensors};
use super::pool::with_pool;
use super::progress::Counter;
use crate::error::{Error, Result};
use crate::format::{Float, rows_per_piece};
use crate::model::{Model, Tensor};
use crate::schema::STEP;
use crate::sink::SafetensorsSink;
use crate::tensor::{Dtype, TensorInfo};

/// Rows decoded by one job are about this many pieces: some MiB to write at once.
const PIECES: usize = 4;

/// Decodes every tensor into the safetensors file `output`, with the original names, shapes and
/// metadata. Floats become `float`, or what they were in the source when that is `None`; but
/// quantized f8 tensors become bf16 then, as f8 would round decoded weights once more. Other
/// dtypes stay as they are.
///
/// # Errors
/// The model is damaged (checksums are checked), a weight is too large for `float`, or the output cannot be written.
pub fn dequantize_file(
    model: &Model,
    output: &Path,
    float: Option<Float>,
    options: Options<'_>,
) -> Result<()> {
    check_safetensors(output)?;
    if let (Ok(input), Ok(there)) = (model.path().canonicalize(), output.canonicalize())
        && input == there
    {
        return Err(Error::file(output, "would be overwritten while it is read"));
    }
    let metadata = model.source_metadata()?;
    let target = |tensor: &Tensor| match float {
        None if tensor.info.dtype.is_converted() && !tensor.is_quantized() => None,
        _ => tensor.info.dtype.float().map(|own| float.unwrap_or(own)),
    };
    let infos: Vec<TensorInfo> = model
        .tensors()
        .iter()
        .map(|tensor| TensorInfo {
            dtype: target(tensor).map_or(tensor.info.dtype, Dtype::from),
            ..tensor.info.clone()
        })
        .collect();
    let tiles = model.tensors().iter().flat_map(|tensor| &tensor.tiles);
    let decoded = infos.iter().filter_map(TensorInfo::bytes);
    // A damaged file may claim any size.
    let total = tiles.map(|tile| tile.tile.bytes()).chain(decoded);
    let total = total.fold(0, usize::saturating_add);
    let tensors = model.tensors().iter().enumerate();
    let checks: Vec<_> = tensors
        .flat_map(|(i, tensor)| (0..tensor.tiles.len()).map(move |tile| (0, (i, tile))))
        .collect();
    let done = AtomicUsize::new(0);
    let mut counter = Counter::new(&done, total, options.progress);
    with_pool(options.threads, |pool| {
        // All checksums first: then shapes and planes are what they were when written, and
        // memory may be allocated by them.
        pool.in_order(
            checks,
            options.budget,
            |(tensor, tile), pulse| {
                let mut step = |bytes| {
                    done.fetch_add(bytes, Ordering::Relaxed);
                    pool.go_on(pulse)
                };
                let checked = model.check_tile_in_steps(tensor, tile, &mut step);
                checked.map(drop)
            },
            || counter.tell(),
            |(), _| Ok(()),
        )?;
        let mut sink = SafetensorsSink::create(output, &infos, &metadata)?;
        let bytes = |job: &DecodeJob| match job {
            DecodeJob::Raw { bytes, .. } => bytes.len(),
            DecodeJob::Decode { tensor, rows, .. } => {
                let info = &infos[*tensor];
                rows * info.shape.cols() * info.dtype.bits() / 8
            }
        };
        let jobs = (infos.iter().enumerate()).flat_map(|(i, info)| jobs(model, i, info));
        pool.in_order(
            jobs.map(|job| (bytes(&job), job)),
            options.budget,
            |job, _| match job {
                DecodeJob::Raw {
                    tensor,
                    tile,
                    bytes,
                } => Ok(model.planes(tensor, tile)?.codes()[bytes].to_vec()),
                DecodeJob::Decode { tensor, row, rows } => {
                    let mut out = vec![0; bytes(&job)];
                    let float = target(&model.tensors()[tensor]).unwrap_or(Float::F32);
                    model.dequantize_rows(tensor, row..row + rows, float, &mut out)?;
                    Ok(out)
                }
            },
            || counter.tell(),
            |values, _| {
                done.fetch_add(values.len(), Ordering::Relaxed);
                sink.write(&values)
            },
        )?;
        sink.finish(&mut || counter.tell())
    })
}

enum DecodeJob {
    /// A part of a tile that is kept as it is.
    Raw {
        tensor: usize,
        tile: usize,
        bytes: Range<usize>,
    },
    /// Some rows of a float tensor.
    Decode {
        tensor: usize,
        row: usize,
        rows: usize,
    },
}

/// Cuts a tensor, which is to become `target`, into jobs.
fn jobs<'a>(
    model: &'a Model,
    tensor: usize,
    target: &TensorInfo,
) -> Box<dyn Iterator<Item = DecodeJob> + 'a> {
    let Tensor { info, tiles } = &model.tensors()[tensor];
    if info.dtype == target.dtype && tiles.iter().all(|tile| tile.tile.encoding.is_none()) {
        let parts = move |(tile, len): (usize, usize)| {
            (0..len).step_by(STEP).map(move |start| DecodeJob::Raw {
                tensor,
                tile,
                bytes: start..len.min(start + STEP),
            })
        };
        let lens = tiles.iter().map(|tile| tile.tile.bytes());
        return Box::new(lens.enumerate().flat_map(parts));
    }
    let rows = info.shape.rows();
    let step = rows_per_piece(info.shape.cols()).saturating_mul(PIECES);
    Box::new((0..rows).step_by(step).map(move |row| DecodeJob::Decode {
        tensor,
        row,
        rows: step.min(rows - row),
    }))
}
