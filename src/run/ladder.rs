//! The fallback ladder: a tensor that does not reach its `min_cosine` is done again without the
//! scaling or rotation of its inputs, if it had any, and then with more bits: 2, 4, 8, kept.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::report::TensorTally;
use crate::error::{Error, Result};
use crate::format::{Format, Recipe};
use crate::plan::{Plan, PlanEntry};
use crate::sink::Mark;
use crate::source::Source;

/// What a cosine is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gauge {
    /// The weights.
    Weight,
    /// The layer's outputs on a calibration's inputs.
    Output,
}

/// An attempt that did not reach its cosine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LadderStep {
    /// What it was quantized to.
    #[serde(serialize_with = "write_format", deserialize_with = "read_format")]
    pub format: Format,
    /// Whether input channels were scaled or rotated.
    pub spatial: bool,
    /// What was measured.
    pub cosine: f64,
    /// What of.
    pub measure: Gauge,
    /// What was to be reached.
    pub min_cosine: f64,
}

fn write_format<S: Serializer>(format: &Format, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(format.name())
}

fn read_format<'a, D: Deserializer<'a>>(from: D) -> Result<Format, D::Error> {
    let name = String::deserialize(from)?;
    name.parse().map_err(serde::de::Error::custom)
}

impl LadderStep {
    /// The step that a tensor of this cosine is on; `None` when it passes.
    pub(super) fn check(
        recipe: &Recipe,
        spatial: bool,
        (cosine, measure): (f64, Gauge),
        min_cosine: f64,
    ) -> Option<Self> {
        (cosine < min_cosine).then_some(Self {
            format: recipe.format(),
            spatial,
            cosine,
            measure,
            min_cosine,
        })
    }

    /// In a few words.
    fn describe(&self) -> String {
        let of = match self.measure {
            Gauge::Weight => "",
            Gauge::Output => " of its outputs",
        };
        let with = if self.spatial {
            " with its inputs transformed"
        } else {
            ""
        };
        let (format, cosine, least) = (self.format, self.cosine, self.min_cosine);
        format!("cosine{of} is {cosine:.4} at {format}{with}, below min_cosine {least}")
    }

    /// The error that `fail_fast` makes of it.
    pub(super) fn refuse(&self, source: &dyn Source, tensor: usize) -> Error {
        let name = &source.tensors()[tensor].name;
        let reason = format!("{} (fail_fast)", self.describe());
        Error::tensor(source.path_of(tensor), name, reason)
    }
}

/// How a tensor is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rung {
    /// `None` keeps it.
    pub(super) recipe: Option<Recipe>,
    /// Whether its inputs may be scaled or rotated.
    pub(super) spatial: bool,
}

impl Rung {
    /// The first one.
    pub(super) fn of(entry: &PlanEntry) -> Self {
        Self {
            recipe: entry.recipe,
            spatial: true,
        }
    }

    /// The one after an attempt that did not pass.
    pub(super) fn after(recipe: &Recipe, step: &LadderStep) -> Self {
        match step.spatial {
            true => Self {
                recipe: Some(*recipe),
                spatial: false,
            },
            false => Self {
                recipe: recipe.climbed(),
                spatial: true,
            },
        }
    }
}

/// What came of looking at a tensor that is done.
pub(super) enum Verdict {
    Passed,
    /// To be done again: the file is as before it.
    Again,
}

/// Looks at tensors once they are written, in plan order.
pub(super) struct Ladder {
    /// Bytes that the file may still grow by; `None` without a limit.
    room: Option<u64>,
    fail_fast: bool,
    /// Where the tensor that is being written begins.
    begin: Option<Mark>,
}

impl Ladder {
    /// Of several shares of a run none knows what the others need.
    pub(super) fn new(plan: &Plan, shared: bool) -> Self {
        Self {
            room: plan.room.map(|room| if shared { 0 } else { room }),
            fail_fast: plan.fail_fast,
            begin: None,
        }
    }

    /// Counts bytes that tensors take more than planned.
    pub(super) fn spend(&mut self, more: usize) {
        self.room = self.room.map(|room| room.saturating_sub(more as u64));
    }

    /// Notes where a tensor begins.
    pub(super) fn begin(&mut self, mark: Mark) {
        self.begin = Some(mark);
    }

    /// Decides on a tensor all of whose tiles are written, and says what of it is worth saying.
    ///
    /// # Errors
    /// It does not reach its cosine, and that is an error.
    pub(super) fn judge(
        &mut self,
        source: &dyn Source,
        tensor: usize,
        entry: &mut PlanEntry,
        tally: &mut TensorTally,
    ) -> Result<(Verdict, Option<String>)> {
        let Some(recipe) = entry.recipe else {
            return Ok((Verdict::Passed, None));
        };
        let widened = tally.bytes.saturating_sub(entry.bytes());
        let step = LadderStep::check(
            &recipe,
            tally.transformed(),
            tally.cosine(),
            entry.min_cosine,
        );
        let Some(step) = step else {
            self.spend(widened);
            return Ok((Verdict::Passed, None));
        };
        if self.fail_fast {
            return Err(step.refuse(source, tensor));
        }
        let next = Rung::after(&recipe, &step);
        let more = entry
            .bytes_as(next.recipe.as_ref())
            .saturating_sub(entry.bytes()) as u64;
        if self.room.is_some_and(|room| more > room) {
            tally.below_min_cosine = true;
            self.spend(widened);
            let (name, what) = (&entry.tensor.name, step.describe());
            let message =
                format!("tensor '{name}': {what}, and the budget has no room for more bits");
            return Ok((Verdict::Passed, Some(message)));
        }
        self.room = self.room.map(|room| room - more);
        let (next, message) = Self::take(entry, step);
        tally.again(step, next);
        Ok((Verdict::Again, Some(message)))
    }

    /// Takes the step up after an attempt, and says so.
    pub(super) fn take(entry: &mut PlanEntry, step: LadderStep) -> (Rung, String) {
        let next = match &entry.recipe {
            Some(recipe) => Rung::after(recipe, &step),
            None => Rung::of(entry),
        };
        entry.recipe = next.recipe;
        let (name, what) = (&entry.tensor.name, step.describe());
        let to = match (next.recipe, step.spatial) {
            (None, _) => "kept".to_owned(),
            (Some(recipe), true) => format!("{} without", recipe.format()),
            (Some(recipe), false) => recipe.format().to_string(),
        };
        (next, format!("tensor '{name}': {what}: {to}"))
    }

    /// Where the file goes on with a tensor that is done again.
    pub(super) fn rewind_to(&mut self) -> Option<Mark> {
        self.begin.take()
    }
}
