//! What folding does to the values of a tensor.

use std::ops::Range;
use std::sync::Arc;

/// What folding does to a tensor.
#[derive(Default)]
pub(super) struct Edits {
    /// Columns are multiplied.
    pub(super) columns: Option<Arc<[f32]>>,
    pub(super) rows: Vec<RowEdit>,
}

/// Some rows are divided; those that the network adds 1 to, so that their sums with 1 are.
pub(super) struct RowEdit {
    pub(super) rows: Range<usize>,
    pub(super) one_plus: bool,
    pub(super) scales: Arc<[f32]>,
}

impl Edits {
    pub(super) fn are_none(&self) -> bool {
        self.columns.is_none() && self.rows.is_empty()
    }

    /// Changes values of rows from `first` on.
    pub(super) fn apply(&self, first: usize, width: usize, values: &mut [f32]) {
        for (row, values) in (first..).zip(values.chunks_exact_mut(width)) {
            if let Some(scales) = &self.columns {
                values
                    .iter_mut()
                    .zip(&scales[..])
                    .for_each(|(w, s)| *w *= s);
            }
            for edit in self.rows.iter().filter(|edit| edit.rows.contains(&row)) {
                let scale = edit.scales[row - edit.rows.start];
                match edit.one_plus {
                    false => values.iter_mut().for_each(|w| *w /= scale),
                    // In f64, as little may be left of the two.
                    true => values.iter_mut().for_each(|w| {
                        *w = ((1.0 + f64::from(*w)) / f64::from(scale) - 1.0) as f32;
                    }),
                }
            }
        }
    }
}
