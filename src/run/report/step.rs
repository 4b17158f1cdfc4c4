//! An attempt at a tensor that did not reach its cosine.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::format::{Format, Recipe};
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
    pub(crate) fn check(
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
    pub(crate) fn describe(&self) -> String {
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
    pub(crate) fn refuse(&self, source: &dyn Source, tensor: usize) -> Error {
        let name = &source.tensors()[tensor].name;
        let reason = format!("{} (fail_fast)", self.describe());
        Error::tensor(source.path_of(tensor), name, reason)
    }
}
