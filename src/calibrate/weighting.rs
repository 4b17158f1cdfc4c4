//! Weights of timesteps when the observations at each are combined into one importance or Hessian.

use std::io;
use std::str::FromStr;

use xxhash_rust::xxh3::Xxh3;

use super::histogram::Histogram;
use super::time::BinRange;
use super::{Calibration, CalibrationOptions, Layer, lock};
use crate::error::{Error, Result};

/// The smallest share of noise that counts: 1/(1 - alpha bar) has no bound.
const LEAST_NOISE: f64 = 0.02;

/// How the groups of timesteps are weighted.
#[derive(Debug, Clone, PartialEq)]
pub enum TimeWeighting {
    /// Every row of activations counts equally, whatever its time: no time-awareness.
    Rows,
    /// Every group counts equally, however many rows it has: a long quiet stretch does not drown
    /// out a short critical one.
    Equal,
    /// Groups count by `1 / max(1 - alpha bar, .02)` from the noise schedule: errors matter most
    /// where there is little noise.
    Snr,
    /// Groups count by 1 over the layer's mean squared output in them.
    Relative,
    /// The caller's weights, one per group.
    Custom(Vec<f64>),
}

impl std::fmt::Display for TimeWeighting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rows => f.write_str("rows"),
            Self::Equal => f.write_str("equal"),
            Self::Snr => f.write_str("snr"),
            Self::Relative => f.write_str("relative"),
            Self::Custom(weights) => {
                let weights: Vec<String> = weights.iter().map(f64::to_string).collect();
                f.write_str(&weights.join(","))
            }
        }
    }
}

impl FromStr for TimeWeighting {
    type Err = ();

    /// Parses a name, or numbers separated by commas.
    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "rows" => Self::Rows,
            "equal" => Self::Equal,
            "snr" => Self::Snr,
            "relative" => Self::Relative,
            _ => {
                let weights: Result<Vec<f64>, _> =
                    text.split(',').map(|w| w.trim().parse()).collect();
                let weights = weights.map_err(drop)?;
                let usable = weights.iter().all(|w| w.is_finite() && *w >= 0.0)
                    && weights.iter().any(|w| *w > 0.0);
                match usable && weights.len() <= 4096 {
                    true => Self::Custom(weights),
                    false => return Err(()),
                }
            }
        })
    }
}

/// The weight of one row of activations, by its group of timesteps.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// One number per group.
    pub of_row: Vec<f64>,
}

/// Observed values of a layer in a bin.
#[derive(Debug, Clone)]
pub struct OwnedBin {
    begin: i32,
    end: i32,
    count: u64,
    low: f32,
    high: f32,
    histogram: Option<Histogram>,
}

impl OwnedBin {
    /// Returns the bin in the form that time groups need.
    pub fn as_range(&self) -> BinRange<'_> {
        BinRange {
            t_begin: self.begin,
            t_end: self.end,
            count: self.count,
            min: self.low,
            max: self.high,
            histogram: self.histogram.as_ref(),
        }
    }
}

/// Sums over a group of timesteps.
pub(super) struct GroupSums {
    pub(super) begin: u32,
    pub(super) end: u32,
    pub(super) count: u64,
    pub(super) squares: Vec<f64>,
}

impl Calibration {
    /// Returns the number of groups: at most as many as there are Hessians.
    fn groups(&self, wanted: u32) -> u32 {
        // The number of Hessians, or of bins if there are none.
        let most = match self.options.hessian {
            true => self.options.hessian_groups,
            false => self.options.bins,
        };
        wanted.clamp(1, most)
    }

    /// Returns the group, out of `count`, of each of the finest groups.
    fn coarse(&self, finest: u32, count: u32) -> Vec<usize> {
        let of = |i: u32| {
            let (begin, _) = self.options.range(i, finest);
            self.options.bin_of(begin, count) as usize
        };
        (0..finest).map(of).collect()
    }

    /// Returns the weights of the rows of each finest group (those of the Hessians, else the bins),
    /// so that the weights of all rows of a layer sum to 1. `groups` is the number of groups of
    /// timesteps; for [`TimeWeighting::Relative`], `outputs` is the sum of squared outputs of each
    /// of the finest groups.
    ///
    /// # Errors
    /// The layer was not observed, there is no schedule, or the number of weights is wrong.
    pub fn weights(
        &self,
        layer: &str,
        weighting: &TimeWeighting,
        groups: u32,
        outputs: Option<&[f64]>,
    ) -> Result<Weights> {
        let refuse = |reason: String| Error::config("time_weighting", reason);
        let Some(found) = self.find(layer) else {
            return Err(refuse(format!("layer '{layer}' was not observed")));
        };
        let finest = self.groups(u32::MAX);
        let counts = self.counts(&lock(&found), finest);
        let count = self.groups(groups);
        let coarse = self.coarse(finest, count);
        let add_up = |of: &[f64]| {
            let mut sums = vec![0.0; count as usize];
            for (&group, x) in coarse.iter().zip(of) {
                sums[group] += x;
            }
            sums
        };
        let rows = add_up(&counts);
        // The weight of all rows of a group together.
        let shares: Vec<f64> = match weighting {
            TimeWeighting::Rows => rows.clone(),
            TimeWeighting::Equal => vec![1.0; count as usize],
            TimeWeighting::Snr => {
                let noise = self.snr()?;
                let of = |i: usize| {
                    let (begin, end) = self.options.range(i as u32, count);
                    let noise = &noise[begin as usize..end as usize];
                    noise.iter().sum::<f64>() / noise.len() as f64
                };
                (0..count as usize).map(of).collect()
            }
            TimeWeighting::Relative => {
                let outputs = outputs.unwrap_or_default();
                if outputs.len() != finest as usize {
                    return Err(refuse("relative requires a layer's outputs".into()));
                }
                let outputs = add_up(outputs);
                let of = |i: usize| match outputs[i] > 0.0 {
                    true => rows[i] / outputs[i],
                    false => 0.0,
                };
                (0..count as usize).map(of).collect()
            }
            TimeWeighting::Custom(weights) => {
                if weights.len() != count as usize {
                    let reason = format!("{} weights for {count} groups", weights.len());
                    return Err(refuse(reason));
                }
                weights.clone()
            }
        };
        let each: Vec<f64> = (shares.iter().zip(&rows))
            .map(|(share, rows)| if *rows > 0.0 { share / rows } else { 0.0 })
            .collect();
        let total: f64 = each
            .iter()
            .zip(&rows)
            .map(|(weight, rows)| weight * rows)
            .sum();
        let scale = if total > 0.0 { 1.0 / total } else { 1.0 };
        Ok(Weights {
            of_row: coarse.iter().map(|&group| each[group] * scale).collect(),
        })
    }

    /// Returns `1 / max(1 - alpha bar, .02)` of every timestep.
    fn snr(&self) -> Result<Vec<f64>> {
        let schedule = self.schedule();
        if schedule.is_empty() {
            let reason = "snr requires the noise schedule, which the calibration does not have";
            return Err(Error::config("time_weighting", reason));
        }
        let of = |alpha: &f64| 1.0 / (1.0 - alpha).max(LEAST_NOISE);
        Ok(schedule.iter().map(of).collect())
    }

    /// Returns the rows of each of the finest groups.
    fn counts(&self, layer: &Layer, finest: u32) -> Vec<f64> {
        let sums = self.sums(layer, finest);
        sums.iter().map(|group| group.count as f64).collect()
    }

    /// Returns the sums of the bins of each of `count` groups.
    pub(super) fn sums(&self, layer: &Layer, count: u32) -> Vec<GroupSums> {
        let empty = |i: u32| {
            let (begin, end) = self.options.range(i, count);
            GroupSums {
                begin,
                end,
                count: 0,
                squares: vec![0.0; layer.cols],
            }
        };
        let mut groups: Vec<GroupSums> = (0..count).map(empty).collect();
        let coarse = self.coarse(self.options.bins, count);
        for (bin, &group) in layer.bins.iter().zip(&coarse) {
            let Some(bin) = bin else { continue };
            let group = &mut groups[group];
            group.count += bin.count;
            for (sum, square) in group.squares.iter_mut().zip(&bin.squares) {
                *sum += square;
            }
        }
        groups
    }

    /// Returns the weighted mean square of each input channel, which weights the errors of its
    /// weights. `None` if the layer was not observed.
    pub fn importance(&self, layer: &str, weights: &Weights) -> Option<Vec<f64>> {
        let found = self.find(layer)?;
        let layer = lock(&found);
        let mut importance = vec![0.0; layer.cols];
        let groups = self.sums(&layer, weights.of_row.len() as u32);
        for (group, weight) in groups.iter().zip(&weights.of_row) {
            for (sum, square) in importance.iter_mut().zip(&group.squares) {
                *sum += weight * square;
            }
        }
        Some(importance)
    }

    /// Returns half-open ranges of timesteps of the finest groups, and the rows of a layer observed
    /// in each.
    pub fn time_groups(&self, layer: &str) -> Vec<(u32, u32, u64)> {
        let Some(found) = self.find(layer) else {
            return Vec::new();
        };
        let groups = self.sums(&lock(&found), self.groups(u32::MAX));
        groups
            .iter()
            .map(|group| (group.begin, group.end, group.count))
            .collect()
    }

    /// Visits the Hessian of each group of timesteps in blocks of rows: `body` receives the group,
    /// the first row, and its part of the lower triangle. False if there is none.
    ///
    /// # Errors
    /// A temporary file cannot be read.
    pub fn each_hessian_block(
        &self,
        layer: &str,
        mut body: impl FnMut(usize, usize, &[f64]),
    ) -> io::Result<bool> {
        let Some(found) = self.find(layer) else {
            return Ok(false);
        };
        let mut layer = lock(&found);
        let mut any = false;
        for (group, hessian) in layer.hessians.iter_mut().enumerate() {
            any |= hessian.count() > 0;
            hessian.each_block(|first, sums| {
                body(group, first, sums);
                Ok(())
            })?;
        }
        Ok(any)
    }

    /// Returns one block of the Hessian of each group, of rows from `first` on, a multiple of
    /// [`HESSIAN_BLOCK`](super::HESSIAN_BLOCK).
    ///
    /// # Errors
    /// A temporary file cannot be read.
    pub fn hessian_block(
        &self,
        layer: &str,
        first: usize,
        mut body: impl FnMut(usize, &[f64]),
    ) -> io::Result<()> {
        let Some(found) = self.find(layer) else {
            return Ok(());
        };
        for (group, hessian) in lock(&found).hessians.iter_mut().enumerate() {
            hessian.block(first, |sums| {
                body(group, sums);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Returns the sums of squares of each channel, for each of the finest groups.
    pub fn squares(&self, layer: &str) -> Vec<Vec<f64>> {
        let Some(found) = self.find(layer) else {
            return Vec::new();
        };
        let groups = self.sums(&lock(&found), self.groups(u32::MAX));
        groups.into_iter().map(|group| group.squares).collect()
    }

    /// Returns the largest magnitude of each channel, at any timestep; `None` without observed
    /// values.
    pub fn largest(&self, layer: &str) -> Option<Vec<f32>> {
        let found = self.find(layer)?;
        let layer = lock(&found);
        let mut largest = vec![f32::NEG_INFINITY; layer.cols];
        for bin in layer.bins.iter().flatten() {
            for (channel, largest) in largest.iter_mut().enumerate() {
                *largest = largest.max(bin.largest(channel));
            }
        }
        largest.iter().all(|x| x.is_finite()).then_some(largest)
    }

    /// Returns, for each of the finest groups, with channels divided by `scales`: the largest
    /// magnitude, the mean square of a value, and the number of rows.
    pub fn largest_by_group(&self, layer: &str, scales: &[f32]) -> Vec<(f64, f64, u64)> {
        let Some(found) = self.find(layer) else {
            return Vec::new();
        };
        let layer = lock(&found);
        let finest = self.groups(u32::MAX);
        let coarse = self.coarse(self.options.bins, finest);
        let mut groups = vec![(0.0f64, 0.0f64, 0u64); finest as usize];
        for (bin, &group) in layer.bins.iter().zip(&coarse) {
            let Some(bin) = bin else { continue };
            let (largest, squares, count) = &mut groups[group];
            *count += bin.count;
            for (channel, scale) in scales.iter().enumerate() {
                let scale = f64::from(*scale);
                *largest = largest.max(f64::from(bin.largest(channel)) / scale);
                *squares += bin.squares[channel] / (scale * scale * layer.cols as f64);
            }
        }
        for (_, squares, count) in &mut groups {
            *squares /= (*count).max(1) as f64;
        }
        groups
    }

    /// Returns the ranges of all bins of a layer, with channels divided by `scales` if given;
    /// histograms do not distinguish channels, and are left out then. Empty without observed
    /// values.
    pub fn bin_ranges(&self, layer: &str, scales: Option<&[f32]>) -> Vec<OwnedBin> {
        let Some(found) = self.find(layer) else {
            return Vec::new();
        };
        let layer = lock(&found);
        let mut bins = Vec::new();
        for (i, bin) in layer.bins.iter().enumerate() {
            let (begin, end) = self.options.range(i as u32, self.options.bins);
            let (mut low, mut high, mut histogram, mut count) = (0.0, 0.0, None, 0);
            if let Some(bin) = bin {
                (low, high) = bin.range(scales);
                count = bin.count * layer.cols as u64;
                histogram = scales.is_none().then(|| bin.histogram.clone());
            }
            if !(low.is_finite() && high.is_finite()) {
                return Vec::new();
            }
            bins.push(OwnedBin {
                begin: begin as i32,
                end: end as i32,
                count,
                low,
                high,
                histogram,
            });
        }
        bins
    }

    /// Whether a layer has a Hessian.
    pub fn has_hessian(&self, layer: &str) -> bool {
        let Some(found) = self.find(layer) else {
            return false;
        };
        lock(&found)
            .hessians
            .iter()
            .any(|hessian| hessian.count() > 0)
    }

    /// Returns a hash of all observations, which identifies the calibration in files.
    pub fn hash(&self) -> String {
        let mut hash = Xxh3::new();
        let CalibrationOptions {
            timesteps,
            bins,
            hessian,
            hessian_groups,
            ..
        } = self.options;
        for number in [timesteps, bins, hessian.into(), hessian_groups] {
            hash.update(&number.to_le_bytes());
        }
        for info in self.layers() {
            let Some(layer) = self.find(&info.name) else {
                continue;
            };
            hash.update(info.name.as_bytes());
            let layer = lock(&layer);
            hash.update(&(layer.cols as u64).to_le_bytes());
            for hessian in &layer.hessians {
                hash.update(&hessian.count().to_le_bytes());
            }
            for (i, bin) in layer.bins.iter().enumerate() {
                let Some(bin) = bin else { continue };
                hash.update(&(i as u64).to_le_bytes());
                hash.update(&bin.count.to_le_bytes());
                let ranges = bin.low.iter().chain(&bin.high);
                ranges.for_each(|x| hash.update(&x.to_le_bytes()));
                bin.squares
                    .iter()
                    .for_each(|x| hash.update(&x.to_le_bytes()));
                bin.histogram
                    .counts()
                    .iter()
                    .for_each(|n| hash.update(&n.to_le_bytes()));
            }
        }
        self.schedule()
            .iter()
            .for_each(|x| hash.update(&x.to_le_bytes()));
        format!("xxh3-{:016x}", hash.digest())
    }

    /// Returns the bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        let layers = self.layers();
        let bin = |cols: usize| cols * 16 + 8 * 1024;
        let bins: usize = layers.iter().map(|layer| bin(layer.cols)).sum();
        bins * self.options.bins as usize + self.spill.used()
    }
}

impl CalibrationOptions {
    /// Returns the bytes of memory or temporary file for the Hessians of a layer with this many
    /// channels.
    pub fn hessian_bytes(&self, cols: usize) -> usize {
        super::packed_len(cols) * size_of::<f64>() * self.hessian_groups as usize
    }
}
