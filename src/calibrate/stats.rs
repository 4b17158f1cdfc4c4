//! Ranges, squares and histograms of one layer in one bin of timesteps.

use super::Activations;
use super::histogram::Histogram;
use crate::format::Float;
use crate::kernel::{ChannelSums, KernelTable};

/// Statistics of all rows of a bin.
#[derive(Debug, Clone, PartialEq)]
pub struct BinStats {
    /// Number of rows.
    pub count: u64,
    /// Smallest value of each channel.
    pub low: Vec<f32>,
    /// Largest value of each channel.
    pub high: Vec<f32>,
    /// Sum of squares of each channel.
    pub squares: Vec<f64>,
    /// Histogram of all values, over all channels.
    pub histogram: Histogram,
}

/// Statistics of some rows, in f32.
pub(super) struct Sums {
    rows: usize,
    low: Vec<f32>,
    high: Vec<f32>,
    squares: Vec<f32>,
}

impl Sums {
    pub(super) fn of(table: &KernelTable, float: Float, cols: usize, x: &[u8]) -> Self {
        let zeros = || vec![0.0; cols];
        let (mut low, mut high, mut squares) = (zeros(), zeros(), zeros());
        table.channel_sums(ChannelSums {
            float,
            cols,
            x,
            low: &mut low,
            high: &mut high,
            squares: &mut squares,
        });
        let rows = x.len() / (cols * float.size());
        Self {
            rows,
            low,
            high,
            squares,
        }
    }

    /// Whether all values are finite, and small enough for products of rows in f32.
    pub(super) fn are_usable(&self) -> bool {
        let within = |x: &f32| x.abs() <= TOO_LARGE;
        self.squares.iter().all(|sum| sum.is_finite())
            && self.low.iter().chain(&self.high).all(within)
    }
}

/// The largest accepted value: products of [`super::CHUNK`] rows of such values can be summed in
/// f32.
const TOO_LARGE: f32 = 1.0e18;

/// Explains why the squares of activations cannot be summed; all rows before `from` are fine.
pub(super) fn explain(x: Activations<'_>, from: usize) -> String {
    let values = from * x.cols..x.rows * x.cols;
    let mut values = values.map(|i| (i, x.float.get(x.values, i)));
    let found = values.find(|(_, value)| value.is_nan() || value.abs() > TOO_LARGE);
    let (i, value) = found.unwrap_or_default();
    format!("row {}, channel {} is {value}", i / x.cols, i % x.cols)
}

impl BinStats {
    pub(super) fn new(cols: usize) -> Self {
        Self {
            count: 0,
            low: vec![f32::INFINITY; cols],
            high: vec![f32::NEG_INFINITY; cols],
            squares: vec![0.0; cols],
            histogram: Histogram::new(),
        }
    }

    /// Adds the sums of some rows, and their values.
    pub(super) fn add(&mut self, sums: &Sums, values: &[f32]) {
        self.count += sums.rows as u64;
        for (i, &square) in sums.squares.iter().enumerate() {
            self.low[i] = self.low[i].min(sums.low[i]);
            self.high[i] = self.high[i].max(sums.high[i]);
            self.squares[i] += f64::from(square);
        }
        self.histogram.add(values);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        for i in 0..self.squares.len() {
            self.low[i] = self.low[i].min(other.low[i]);
            self.high[i] = self.high[i].max(other.high[i]);
            self.squares[i] += other.squares[i];
        }
        self.histogram.merge(&other.histogram);
    }

    /// Returns the largest magnitude of a channel.
    pub fn largest(&self, channel: usize) -> f32 {
        self.high[channel].max(-self.low[channel])
    }

    /// Returns the smallest and largest value of all channels, divided by `scales` if given; 0 and
    /// 0 without channels.
    pub fn range(&self, scales: Option<&[f32]>) -> (f32, f32) {
        if self.count == 0 {
            return (0.0, 0.0);
        }
        let scale = |channel: usize| scales.map_or(1.0, |scales| scales[channel]);
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for channel in 0..self.low.len() {
            low = low.min(self.low[channel] / scale(channel));
            high = high.max(self.high[channel] / scale(channel));
        }
        (low, high)
    }
}
