//! The fallback ladder: a tensor that does not reach its `min_cosine` is done again without the
//! scaling or rotation of its inputs, if it had any, and then with more bits: 2, 4, 8, kept.

use crate::error::Result;
use crate::format::Recipe;
use crate::plan::{Plan, PlanEntry};
use crate::run::report::{LadderStep, TensorTally};
use crate::source::Source;

/// How a tensor is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rung {
    /// `None` keeps it.
    pub(crate) recipe: Option<Recipe>,
    /// Whether its inputs may be scaled or rotated.
    pub(crate) spatial: bool,
}

impl Rung {
    /// The first one.
    pub(crate) fn of(entry: &PlanEntry) -> Self {
        Self {
            recipe: entry.recipe,
            spatial: true,
        }
    }

    /// The one after an attempt that did not pass.
    pub(crate) fn after(recipe: &Recipe, step: &LadderStep) -> Self {
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
pub(crate) enum Verdict {
    Passed,
    /// To be done again: the file is as before it.
    Again,
}

/// Looks at tensors once they are written, in plan order.
pub(crate) struct Ladder {
    /// Bytes that the file may still grow by; `None` without a limit.
    room: Option<u64>,
    fail_fast: bool,
}

impl Ladder {
    /// A ladder of a run. One of several shares does not know what the others need, so it has no
    /// room to spend.
    pub(crate) fn new(plan: &Plan, shared: bool) -> Self {
        Self {
            room: plan.room.map(|room| if shared { 0 } else { room }),
            fail_fast: plan.fail_fast,
        }
    }

    /// Counts bytes that tensors take more than planned.
    pub(crate) fn spend(&mut self, more: usize) {
        self.room = self.room.map(|room| room.saturating_sub(more as u64));
    }

    /// Decides on a tensor all of whose tiles are written, and says what of it is worth saying.
    ///
    /// # Errors
    /// It does not reach its cosine, and that is an error.
    pub(crate) fn judge(
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
        tally.again(step, next.spatial);
        Ok((Verdict::Again, Some(message)))
    }

    /// Takes the step up after an attempt, and says so.
    pub(crate) fn take(entry: &mut PlanEntry, step: LadderStep) -> (Rung, String) {
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
}
