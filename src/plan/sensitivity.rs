//! The loss of each tensor in each way to store it. Measured in `run`; only data here.

use serde::Serialize;

use crate::format::Recipe;

/// The basis of measured errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The weights.
    Weights,
    /// The layer's outputs, on the inputs of a calibration.
    Outputs,
    /// Gaussian weights, because there are only names and shapes.
    Gaussian,
}

/// One way to store a tensor, and its loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The recipe; `None` when the tensor is kept.
    pub recipe: Option<Recipe>,
    /// `1 - cosine^2`: the relative squared error once the amplitude is right.
    pub error: f64,
    /// Cosine of the angle to the original, of the weights or the outputs.
    pub cosine: f64,
}

/// The loss of one tensor in each way to store it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Index in the plan.
    pub tensor: usize,
    /// The basis of the errors.
    pub basis: Basis,
    /// Number of rows tried.
    pub rows: usize,
    /// One entry per way.
    pub measured: Vec<Measured>,
}

impl Sensitivity {
    /// Returns the loss with this recipe, if it was tried.
    pub fn of(&self, recipe: Option<&Recipe>) -> Option<&Measured> {
        self.measured.iter().find(|m| m.recipe.as_ref() == recipe)
    }
}
