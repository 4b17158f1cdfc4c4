//! How a plan uses a calibration.

use std::path::PathBuf;
use std::sync::Arc;

use crate::calibrate::{Calibration, TimeWeighting};

/// A calibration, as given by the caller.
#[derive(Debug, Clone)]
pub enum CalibrationInput {
    /// A file, read when the work begins.
    File(PathBuf),
    /// A calibration in memory.
    Held(Arc<Calibration>),
}

impl PartialEq for CalibrationInput {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(ours), Self::File(theirs)) => ours == theirs,
            (Self::Held(ours), Self::Held(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

/// The properties of a calibration that affect a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationInfo {
    /// Hash of all observations, as text.
    pub hash: String,
    /// Whether there are Hessians.
    pub hessians: bool,
}

/// How a plan uses a calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrated {
    /// The calibration; `None` in a plan that was read without it.
    pub input: Option<CalibrationInput>,
    /// The calibration's properties.
    pub info: CalibrationInfo,
    /// Whether timesteps are distinguished.
    pub time_aware: bool,
    /// Groups of timesteps.
    pub time_groups: u32,
    /// Weights of the groups; `None` is `snr` if there is a schedule, else `equal`.
    pub time_weighting: Option<TimeWeighting>,
    /// Whether smoothing and rotation are tried.
    pub spatial: bool,
}

impl Calibrated {
    /// Returns the weights of the groups, given the calibration's schedule.
    pub fn weighting(&self, schedule: &[f64]) -> TimeWeighting {
        match &self.time_weighting {
            _ if !self.time_aware => TimeWeighting::Rows,
            Some(weighting) => weighting.clone(),
            None if schedule.is_empty() => TimeWeighting::Equal,
            None => TimeWeighting::Snr,
        }
    }
}
