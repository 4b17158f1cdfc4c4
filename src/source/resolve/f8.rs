//! The meaning of f8 tensors: a weight with a scale, a weight whose scale is ambiguous, a part of
//! another quantizer's scheme, or plain values.

use std::collections::BTreeSet;

use super::blocks::{Blocks, Fit};
use super::names::{INPUTS, MARKER, MORE, Names, SCALES, is_input_name, split};
use super::said::Said;
use super::scaled::is_scale;
use crate::tensor::{Dtype, TensorInfo};

/// Number of weights that share a scale in MX formats.
const MX: usize = 32;

/// Whether values are 8-bit floats.
pub(super) fn is_f8(dtype: Dtype) -> bool {
    dtype.float().is_some() && dtype.bits() == 8
}

/// The meaning of an f8 tensor.
pub(super) enum Meaning {
    /// Not a weight: the marker of files whose f8 weights have scales.
    Marker,
    /// Plain values.
    Plain,
    /// A weight, with the index and layout of its scale.
    Scaled(usize, Fit),
    /// A part of a packing scheme, like these other tensors.
    Packed(String, Vec<usize>),
    /// An uncertain meaning, shared with these tensors, and the reason.
    Uncertain(Vec<usize>, String),
}

/// Returns the meaning of tensor `weight`; `None` if it is not f8, or lies beside a weight.
pub(super) fn meaning(names: &Names<'_>, said: &Said, weight: usize) -> Option<Meaning> {
    let info = &names.tensors[weight];
    let (module, leaf) = split(&info.name);
    if leaf == MARKER && info.shape.elements() <= 2 {
        return Some(Meaning::Marker);
    }
    if !is_f8(info.dtype) || SCALES.contains(&leaf) || is_input_name(&info.name) {
        return None;
    }
    let name = |tensor: usize| &names.tensors[tensor].name;
    let more = names.beside(&info.name, MORE);
    let scales = names.beside(&info.name, SCALES);
    let known = [
        scales.clone(),
        more.clone(),
        names.beside(&info.name, INPUTS),
    ]
    .concat();
    let mut unknown = names.scales_beside(&info.name);
    unknown.retain(|tensor| !known.contains(tensor));
    if let Some(&first) = unknown.first() {
        let reason = format!(
            "it is f8, with '{}' beside it, whose meaning is unknown",
            name(first)
        );
        let all = [weight].into_iter().chain(scales).chain(unknown);
        return Some(match said.method(&info.name) {
            Some(method) => Meaning::Packed(method.to_owned(), all.collect()),
            None => Meaning::Uncertain(all.collect(), reason),
        });
    }
    let scale = match scales[..] {
        [scale] => scale,
        [] if !more.is_empty() => {
            let reason = format!("it is f8, with '{}' beside it and no scale", name(more[0]));
            let all = [weight].into_iter().chain(more);
            return Some(Meaning::Uncertain(all.collect(), reason));
        }
        [] => {
            let matrix = info.shape.dims().len() >= 2 && leaf == "weight";
            return Some(match said.says(&info.name) {
                Some(method) if matrix => {
                    let reason = format!(
                        "it is f8 without a scale, and the model's files say that it was quantized \
                         by {method}: its scale, such as '{module}.weight_scale', is missing"
                    );
                    Meaning::Uncertain(vec![weight], reason)
                }
                _ => Meaning::Plain,
            });
        }
        [first, second, ..] => {
            let (first, second) = (name(first), name(second));
            let reason = format!("it is f8 and has two scales, '{first}' and '{second}'");
            let all = [weight].into_iter().chain(scales);
            return Some(Meaning::Uncertain(all.collect(), reason));
        }
    };
    let scale_info = &names.tensors[scale];
    let uncertain = |reason: String| {
        let reason = format!("{}{reason}", pair(info, scale_info));
        let all = [weight, scale].into_iter().chain(more.iter().copied());
        Some(Meaning::Uncertain(all.collect(), reason))
    };
    let plain_scale = split(&scale_info.name).1 == "scale";
    let format = said.comfy_format(module);
    let method = said.method(&info.name);
    if !more.is_empty() || plain_scale && method.is_some() {
        let scheme = match (format, method) {
            (Some(format), _) => format!("ComfyUI {format}"),
            (None, Some(method)) => method.to_owned(),
            (None, None) if plain_scale => "SDNQ".to_owned(),
            (None, None) => return uncertain(format!(", and there is also '{}'", name(more[0]))),
        };
        let all = [weight, scale].into_iter().chain(more);
        return Some(Meaning::Packed(scheme, all.collect()));
    }
    let against = match scale_info.dtype {
        dtype if !is_scale(dtype) => "which no known format uses",
        dtype if plain_scale && dtype != Dtype::F8E8M0 => {
            "which some formats multiply by and others keep for transposed weights"
        }
        _ if format.is_some() => "and the format of the layer is not f8",
        _ if said.comfy_tiles(module) && in_tiles(scale_info) => {
            "which may lie row by row, or in the order of a processor's tiles"
        }
        _ => "",
    };
    if !against.is_empty() {
        return uncertain(format!(", {against}"));
    }
    match Fit::new(info.shape.dims(), scale_info.shape.dims()) {
        Ok(fit) => Some(Meaning::Scaled(scale, fit)),
        Err(reason) => uncertain(format!(": {reason}")),
    }
}

/// Returns the blocks of a weight whose scales fit, with the block sizes `known` from the model's
/// other weights.
///
/// # Errors
/// Says that several are possible.
pub(super) fn blocks(
    (info, scale): (&TensorInfo, &TensorInfo),
    fit: &Fit,
    said: &Said,
    known: &BTreeSet<usize>,
) -> Result<Blocks, String> {
    let mut sizes = said.block(&info.name);
    if sizes.is_empty() && matches!(scale.dtype, Dtype::F8E8M0 | Dtype::U8) {
        sizes.push(MX);
    }
    let blocks = fit.blocks(&sizes, known).and_then(|blocks| {
        let mx = blocks.run() == MX && blocks.sizes()[0] == 1;
        match scale.dtype == Dtype::U8 && !mx {
            true => Err("bytes are only scales for blocks of 32 in a row".to_owned()),
            false => Ok(blocks),
        }
    });
    blocks.map_err(|reason| format!("{}: {reason}", pair(info, scale)))
}

/// Describes a weight and its scale, for the beginning of messages.
fn pair(weight: &TensorInfo, scale: &TensorInfo) -> String {
    let TensorInfo { name, dtype, shape } = scale;
    let (own_dtype, own_shape) = (weight.dtype, &weight.shape);
    format!("it is {own_dtype} {own_shape} with the scale '{name}', {dtype} {shape}")
}

/// Whether scales have a shape that consists of whole tiles of 128 rows and 4 columns.
fn in_tiles(scales: &TensorInfo) -> bool {
    match scales.shape.dims() {
        [rows, cols] => rows.is_multiple_of(128) && cols.is_multiple_of(4),
        _ => true,
    }
}
