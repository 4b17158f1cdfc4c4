//! What the tensors of a run have come to so far, and what is said of it.

use std::ops::Range;

use serde_json::Value;

use super::ladder::{Ladder, Verdict};
use super::tile::Finished;
use crate::error::Result;
use crate::plan::Plan;
use crate::run::context::Context;
use crate::run::inputs::Calibrator;
use crate::run::progress::{Level, LogFn, say};
use crate::run::report::{TensorReport, TensorTally, TotalTally, summary};
use crate::sink::Sink;
use crate::source::Source;
use crate::tensor::shortened;

/// The plan as it has become, and a tally for each of its tensors.
pub(crate) struct Ledger<'tell> {
    /// Without the recipes of tensors that turned out not to be finite.
    pub(crate) plan: Plan,
    pub(crate) tallies: Vec<TensorTally>,
    pub(crate) ladder: Ladder,
    pub(crate) log: Option<LogFn<'tell>>,
}

impl<'tell> Ledger<'tell> {
    /// A ledger of a run that knows nothing of the other shares, where it is `shared`.
    pub(crate) fn new(plan: &Plan, shared: bool, log: Option<LogFn<'tell>>) -> Self {
        Self {
            plan: plan.clone(),
            tallies: plan.entries.iter().map(|_| TensorTally::new()).collect(),
            ladder: Ladder::new(plan, shared),
            log,
        }
    }

    /// Turns a tensor with weights that are not finite into a kept one, and warns of it.
    pub(crate) fn keep_non_finite(&mut self, tensor: usize) -> Result<()> {
        let entry = &mut self.plan.entries[tensor];
        let planned = entry.bytes();
        entry.keep_non_finite();
        self.tallies[tensor].kept_non_finite = true;
        self.ladder.spend(entry.bytes().saturating_sub(planned));
        let name = &entry.tensor.name;
        let message = format!("tensor '{name}' has NaN or infinite weights, kept");
        say(&mut self.log, Level::Warning, &message)
    }

    /// Takes in a tile that is made.
    pub(crate) fn take(&mut self, finished: &Finished) -> Result<()> {
        let entry = &mut self.plan.entries[finished.tensor];
        let tally = &mut self.tallies[finished.tensor];
        for &step in &finished.steps {
            let (next, message) = Ladder::take(entry, step);
            tally.again(step, next.spatial);
            say(&mut self.log, Level::Info, &message)?;
        }
        tally.add(finished.bytes, &finished.error);
        tally.add_inputs(&finished.tile);
        tally.add_calibrated(&finished.calibrated);
        if finished.needed_f32 {
            let (name, tile) = (&finished.tile.name, finished.tile.tile);
            tally.f32_scale_tiles.push(tile);
            let message = format!(
                "tensor '{name}', tile {tile}: its scales do not fit f16 and are stored as f32"
            );
            say(&mut self.log, Level::Info, &message)?;
        }
        Ok(())
    }

    /// Whether a tensor that is written is to be done again; the file is then as before it.
    pub(crate) fn judge(
        &mut self,
        source: &dyn Source,
        tensor: usize,
        sink: &mut dyn Sink,
    ) -> Result<bool> {
        let (entry, tally) = (&mut self.plan.entries[tensor], &mut self.tallies[tensor]);
        let (verdict, message) = self.ladder.judge(source, tensor, entry, tally)?;
        if let Some(message) = message {
            let level = match verdict {
                Verdict::Again => Level::Info,
                Verdict::Passed => Level::Warning,
            };
            say(&mut self.log, level, &message)?;
        }
        match verdict {
            Verdict::Passed => Ok(false),
            Verdict::Again => {
                sink.undo_tensor();
                Ok(true)
            }
        }
    }

    /// Warns of tensors whose weights are all 0, and of f64 weights that f32 does not hold.
    pub(crate) fn tell_of_values(
        &mut self,
        context: &Context<'_>,
        entries: Range<usize>,
    ) -> Result<()> {
        let mut zeros = Vec::new();
        let mut lost = Vec::new();
        for i in entries {
            let entry = &self.plan.entries[i];
            let name = entry.tensor.name.as_str();
            let tally = &self.tallies[i];
            if entry.recipe.is_some() && tally.error.signal == 0.0 && context.is_zero(i)? {
                zeros.push(name);
            }
            if context.is_lossy(i) {
                lost.push(name);
            }
        }
        for (names, what) in [
            (zeros, "all weights are zero (is the file complete?)"),
            (
                lost,
                "f64 weights outside the range of f32 became 0 or infinite",
            ),
        ] {
            if !names.is_empty() {
                let message = shortened(&format!("{what}: {}", names.join(", ")));
                say(&mut self.log, Level::Warning, &message)?;
            }
        }
        Ok(())
    }

    /// What some tensors came to together.
    pub(crate) fn total(&self, entries: Range<usize>) -> TotalTally {
        let mut total = TotalTally::default();
        for i in entries {
            total.add(&self.plan.entries[i], &self.tallies[i]);
        }
        total
    }

    /// What some tensors came to, each.
    pub(crate) fn reports(
        &self,
        entries: Range<usize>,
        calibrator: Option<&Calibrator>,
    ) -> Vec<TensorReport> {
        let report = |i: usize| self.tallies[i].report(&self.plan.entries[i], calibrator);
        entries.map(report).collect()
    }

    /// What some tensors came to, as files record it.
    pub(crate) fn summary(&self, entries: Range<usize>, calibrator: Option<&Calibrator>) -> Value {
        let totals = self.total(entries.clone()).totals();
        summary(&totals, &self.reports(entries, calibrator))
    }
}
