//! Which sets of layers can be folded with what a calibration has seen.

use crate::calibrate::Calibration;
use crate::error::{Error, Result};
use crate::format::Float;
use crate::plan::{FoldSet, LAYOUTS, NotFolded};
use crate::source::Source;
use crate::tensor::TensorInfo;

/// A set and the largest magnitudes of its channels over all time, or why it is not to be folded.
pub(super) type Known = std::result::Result<(FoldSet, Vec<f64>), NotFolded>;

pub(super) fn usable(
    set: FoldSet,
    tensors: &[TensorInfo],
    float: Option<Float>,
    calibration: &Calibration,
) -> Result<Known> {
    let refuse = |before: String, reason: String| Ok(Err(NotFolded { before, reason }));
    let changed = set.writers.iter().map(|writer| writer.tensor);
    let mut changed = changed.chain(set.readers.iter().copied());
    if let Some(tensor) = changed.find(|&i| float.is_none() && tensors[i].dtype.is_converted()) {
        let TensorInfo { name, dtype, .. } = &tensors[tensor];
        let reason =
            format!("'{name}' is {dtype}, which cannot be written: choose a dtype to write");
        return refuse(set.before, reason);
    }
    let mut largest = vec![0.0f64; set.channels];
    let mut seen = false;
    for &reader in &set.readers {
        let name = &tensors[reader].name;
        let Some(cols) = calibration.cols(name) else {
            continue;
        };
        if cols != set.channels {
            let reason = format!(
                "not of this model: layer '{name}' has {cols} channels in it, and {} in the model",
                set.channels
            );
            return Err(Error::config("calibration", reason));
        }
        seen = true;
        for (largest, x) in largest
            .iter_mut()
            .zip(calibration.largest(name).unwrap_or_default())
        {
            *largest = largest.max(f64::from(x));
        }
    }
    let layer = &tensors[set.readers[0]].name;
    let reason = match seen {
        false => format!("the calibration has not seen the inputs of '{layer}'"),
        true if largest.iter().all(|&x| x == 0.0) => {
            format!("the inputs of '{layer}' are 0 in the calibration, or it has no ranges of them")
        }
        true => return Ok(Ok((set, largest))),
    };
    refuse(set.before, reason)
}

/// The error when none of `count` sets can be folded: it names one of them.
pub(super) fn nothing_to_fold(
    source: &dyn Source,
    example: Option<&NotFolded>,
    count: usize,
) -> Error {
    let reason = match example {
        None => format!("has no blocks of the layouts that smoothing is folded in: {LAYOUTS}"),
        Some(NotFolded { before, reason }) => {
            let others = match count {
                1 => String::new(),
                _ => format!(" ({} others neither)", count - 1),
            };
            format!("nothing can be folded: not into '{before}': {reason}{others}")
        }
    };
    Error::file(source.path(), reason)
}
