//! Parts of a folder that were done before.

use std::ops::Range;
use std::path::Path;

use super::engine::{Ladder, Ledger};
use super::report::{LadderStep, TensorTally};
use crate::error::{Error, Result};
use crate::kernel::ErrorSums;
use crate::model::{Model, Tensor};
use crate::schema::{PartInfo, Tile, key};

/// A part that was done before.
pub(super) struct PartThere {
    pub(super) info: PartInfo,
    pub(super) model: Model,
    pub(super) bytes: u64,
}

impl PartThere {
    /// Takes over what was measured then.
    pub(super) fn restore(&self, ledger: &mut Ledger<'_>, entries: Range<usize>) {
        for i in entries {
            let entry = &mut ledger.plan.entries[i];
            let Some(tensor) = self.model.find(&entry.tensor.name) else {
                continue;
            };
            let tensor = &self.model.tensors()[tensor];
            let mut tally = tally_of(tensor, &self.info);
            let climbed = self.info.ladder.get(&entry.tensor.name);
            let climbed = climbed.and_then(|steps| serde_json::from_value(steps.clone()).ok());
            if let Some((steps, below)) = climbed {
                let steps: Vec<LadderStep> = steps;
                for &step in &steps {
                    let before = entry.bytes();
                    Ladder::take(entry, step);
                    ledger.ladder.spend(entry.bytes().saturating_sub(before));
                }
                (tally.ladder, tally.below_min_cosine) = (steps, below);
            }
            ledger
                .ladder
                .spend(tally.bytes.saturating_sub(entry.bytes()));
            if let Some(planned) = entry.recipe.map(|recipe| recipe.planned()) {
                for tile in tensor.tiles.iter().map(|tile| &tile.tile) {
                    match tile.encoding {
                        None => tally.kept_non_finite = true, // a step up has no recipe now
                        Some(encoding) if encoding == planned => {}
                        Some(_) => tally.f32_scale_tiles.push(tile.tile),
                    }
                }
            }
            if tally.kept_non_finite {
                entry.keep_non_finite();
            }
            ledger.tallies[i] = tally;
        }
    }
}

/// What a tensor of a part came to.
pub(super) fn tally_of(tensor: &Tensor, info: &PartInfo) -> TensorTally {
    let mut tally = TensorTally::new();
    let sums = info.sums.get(&tensor.info.name).copied();
    let [signal, decoded, error] = sums.unwrap_or_default();
    let tiles = || tensor.tiles.iter().map(|tile| &tile.tile);
    let sums = ErrorSums {
        signal,
        decoded,
        error,
    };
    tally.add(tiles().map(Tile::stored_bytes).sum(), &sums);
    tiles().for_each(|tile| tally.add_inputs(tile));
    tally
}

/// Opens a part of a folder.
pub(super) fn open_part(path: &Path) -> Result<(PartInfo, Model)> {
    let model = Model::open(path)?;
    let refuse = |reason: &str| Error::file(path, reason);
    let text = model.metadata().get(key::PART);
    let text = text.ok_or_else(|| refuse("a single file, not a part of a folder"))?;
    let info = serde_json::from_str(text).map_err(|_| refuse("its description is damaged"))?;
    Ok((info, model))
}
