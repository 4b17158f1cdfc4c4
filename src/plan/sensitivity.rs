//! What each tensor loses by each way to store it. Measured elsewhere (`run`); here as data.

use serde::Serialize;

use crate::format::Recipe;

/// What errors were measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The weights.
    Weights,
    /// The layer's outputs, on the inputs of a calibration.
    Outputs,
    /// Gaussian weights: there are no others, only names and shapes.
    Gaussian,
}

/// One way to store a tensor, and what it loses by it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// How it is quantized; `None` when it is kept.
    pub recipe: Option<Recipe>,
    /// `1 - cosine^2`: the relative squared error once the amplitude is right.
    pub error: f64,
    /// Cosine of the angle to the original, of the weights or the outputs.
    pub cosine: f64,
}

/// What one tensor loses by each way to store it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Index in the plan.
    pub tensor: usize,
    /// What errors were measured on.
    pub basis: Basis,
    /// Rows that were tried.
    pub rows: usize,
    /// One entry a way.
    pub measured: Vec<Measured>,
}

impl Sensitivity {
    /// What it loses with this recipe, if it was tried.
    pub fn of(&self, recipe: Option<&Recipe>) -> Option<&Measured> {
        self.measured.iter().find(|m| m.recipe.as_ref() == recipe)
    }
}
