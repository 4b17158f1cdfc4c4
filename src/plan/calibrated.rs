//! What a calibration is used for.

use std::path::PathBuf;
use std::sync::Arc;

use crate::calibrate::{Calibration, TimeWeighting};

/// A calibration as it is given.
#[derive(Debug, Clone)]
pub enum CalibrationInput {
    /// To be read when the work begins.
    File(PathBuf),
    /// In memory.
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

/// What of a calibration counts for a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationInfo {
    /// Of all that was seen, as text.
    pub hash: String,
    /// Whether it has Hessians.
    pub hessians: bool,
}

/// How a plan uses a calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrated {
    /// The calibration; `None` in a plan that was read without it.
    pub input: Option<CalibrationInput>,
    /// Which one it is.
    pub info: CalibrationInfo,
    /// Whether time is told apart.
    pub time_aware: bool,
    /// Groups of timesteps.
    pub time_groups: u32,
    /// How the groups are weighed; `None` is `snr` where there is a schedule, else `equal`.
    pub time_weighting: Option<TimeWeighting>,
    /// Whether smoothing and rotation are tried.
    pub spatial: bool,
}

impl Calibrated {
    /// How the groups are weighed, given the schedule of the calibration.
    pub fn weighting(&self, schedule: &[f64]) -> TimeWeighting {
        match &self.time_weighting {
            _ if !self.time_aware => TimeWeighting::Rows,
            Some(weighting) => weighting.clone(),
            None if schedule.is_empty() => TimeWeighting::Equal,
            None => TimeWeighting::Snr,
        }
    }
}
