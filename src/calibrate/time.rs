//! Activations over time. A diffusion model runs the same layers at every timestep t of [0, T), and
//! the ranges of their inputs drift with t: timesteps are divided into groups, each with a static
//! range.

use std::ops::Range;

use super::histogram::{Affine, Histogram};
use crate::format::ActivationRange;

/// Observed values of a layer's input at the timesteps of one bin.
#[derive(Debug, Clone, Copy)]
pub struct BinRange<'a> {
    /// The first timestep.
    pub t_begin: i32,
    /// The timestep after the last.
    pub t_end: i32,
    /// Number of values. If it is 0, `min` and `max` do not matter.
    pub count: u64,
    /// The smallest value, finite.
    pub min: f32,
    /// The largest value, finite.
    pub max: f32,
    /// Histogram of all values.
    pub histogram: Option<&'a Histogram>,
}

/// How a range is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeFit {
    /// From the smallest to the largest value.
    MinMax,
    /// The range with the least expected squared error among smaller ones. Requires histograms; if
    /// a bin with values lacks one, this is the same as [`RangeFit::MinMax`].
    SquaredError,
}

/// The range of a layer's input over some timesteps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupRange {
    /// The first timestep.
    pub t_begin: i32,
    /// The timestep after the last.
    pub t_end: i32,
    /// Lower end of the range.
    pub low: f32,
    /// Upper end of the range.
    pub high: f32,
}

/// The shape of the transition between the ranges of two groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// Linear.
    Linear,
    /// Flat at both ends: 3 u^2 - 2 u^3.
    Cubic,
    /// A logistic curve of steepness 10, stretched to reach both ends.
    Sigmoid,
}

/// Smoothing of jumps at boundaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smoothing {
    /// Timesteps on each side of a boundary; at most half a group.
    pub window: i32,
    /// Shape of the transition.
    pub curve: Curve,
}

/// Divides timesteps into `groups` ranges as equal as possible: boundary i is at floor(i * T /
/// groups). There are no more groups than timesteps, and at least one, if there are any timesteps.
pub fn uniform(timesteps: i32, groups: usize) -> Vec<Range<i32>> {
    let t = i128::from(timesteps.max(0));
    let n = (groups.max(1) as i128).min(t);
    // The result is below T, which fits.
    let boundary = |i: i128| (i * t / n) as i32;
    (0..n).map(|i| boundary(i)..boundary(i + 1)).collect()
}

/// Divides whole bins into the `groups` ranges with the least sum of expected squared errors, by
/// dynamic programming; if several are equal, the one with the earliest boundaries. `bins` are
/// consecutive. There are no more groups than bins.
///
/// The time grows with the square of the number of bins: `RangeFit::SquaredError` searches a range
/// for every run of bins.
pub fn optimal(bins: &[BinRange<'_>], groups: usize, fit: RangeFit, bits: u32) -> Vec<Range<i32>> {
    let n = bins.len();
    let groups = groups.clamp(1, n.max(1));
    let costs = run_costs(bins, fit, bits);
    let cost = |run: Range<usize>| costs[run.start * (n + 1) + run.end];
    // The least error of the first `end` bins in this many groups, and the start of the last group.
    let mut least: Vec<f64> = (0..=n)
        .map(|end| if end == 0 { 0.0 } else { f64::INFINITY })
        .collect();
    let mut starts = Vec::new();
    for count in 1..=groups {
        let mut next = vec![f64::INFINITY; n + 1];
        let mut start_of = vec![0; n + 1];
        for end in count..=n {
            for (start, before) in least.iter().enumerate().take(end).skip(count - 1) {
                let total = before + cost(start..end);
                if total < next[end] {
                    (next[end], start_of[end]) = (total, start);
                }
            }
        }
        least = next;
        starts.push(start_of);
    }
    let mut found = Vec::new();
    let mut end = n;
    for start_of in starts.iter().rev().filter(|_| n > 0) {
        let start = start_of[end];
        found.push(bins[start].t_begin..bins[end - 1].t_end);
        end = start;
    }
    found.reverse();
    found
}

/// Returns the expected errors of all runs of bins: that of `start..end` at `start * (n + 1) +
/// end`.
fn run_costs(bins: &[BinRange<'_>], fit: RangeFit, bits: u32) -> Vec<f64> {
    let n = bins.len();
    let mut costs = vec![0.0; n * (n + 1)];
    for start in 0..n {
        let mut seen = Seen::new();
        for (end, bin) in bins.iter().enumerate().skip(start) {
            seen.add(bin, fit);
            costs[start * (n + 1) + end + 1] = seen.fit(bits).map_or(0.0, |fitted| fitted.error);
        }
    }
    costs
}

/// Returns the range of each group, from all bins that overlap it. A group without values gets the
/// range of the nearest group that has some, the earlier one if there are two; without any values
/// the ranges are empty.
pub fn ranges(
    bins: &[BinRange<'_>],
    groups: &[Range<i32>],
    fit: RangeFit,
    bits: u32,
) -> Vec<GroupRange> {
    let fitted = groups.iter().map(|group| {
        let mut seen = Seen::new();
        let overlap = |bin: &&BinRange<'_>| bin.t_begin < group.end && group.start < bin.t_end;
        for bin in bins.iter().filter(overlap) {
            seen.add(bin, fit);
        }
        seen.fit(bits)
    });
    let fitted: Vec<Option<Fitted>> = fitted.collect();
    let nearest = |group: usize| {
        let filled = (0..fitted.len()).filter(|i| fitted[*i].is_some());
        filled
            .min_by_key(|i| i.abs_diff(group))
            .and_then(|i| fitted[i])
    };
    let range = |(i, group): (usize, &Range<i32>)| {
        let (low, high) = nearest(i).map_or((0.0, 0.0), |fitted| (fitted.low, fitted.high));
        GroupRange {
            t_begin: group.start,
            t_end: group.end,
            low,
            high,
        }
    };
    groups.iter().enumerate().map(range).collect()
}

/// Returns the expected sum of the squared errors of all observed values, with a table of these
/// rows: each bin uses the row of its middle timestep.
pub fn expected_error(bins: &[BinRange<'_>], rows: &[ActivationRange], bits: u32) -> f64 {
    let mut sum = 0.0;
    for bin in bins.iter().filter(|bin| bin.count > 0) {
        let middle = bin.t_begin + (bin.t_end - bin.t_begin) / 2;
        let Some(row) = rows.iter().find(|row| row.holds(middle)) else {
            continue;
        };
        let affine = Affine {
            scale: row.scale,
            zero_point: row.zero_point,
            bits,
        };
        sum += match bin.histogram {
            Some(histogram) => histogram.squared_error(&affine, bin.min, bin.max),
            // Values are assumed to be evenly spread over the range.
            None => bin.count as f64 * affine.mean_error(bin.min, bin.max),
        };
    }
    sum
}

/// Combined observations of several bins.
struct Seen {
    count: u64,
    min: f32,
    max: f32,
    /// Combined histogram, while it is wanted and all bins with values have one.
    histogram: Option<Histogram>,
}

/// A range, and its expected squared error.
#[derive(Debug, Clone, Copy)]
struct Fitted {
    low: f32,
    high: f32,
    error: f64,
}

impl Seen {
    fn new() -> Self {
        Self {
            count: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            histogram: Some(Histogram::new()),
        }
    }

    fn add(&mut self, bin: &BinRange<'_>, fit: RangeFit) {
        if bin.count == 0 {
            return;
        }
        self.count = self.count.saturating_add(bin.count);
        self.min = self.min.min(bin.min);
        self.max = self.max.max(bin.max);
        match (fit, &mut self.histogram, bin.histogram) {
            (RangeFit::SquaredError, Some(ours), Some(theirs)) => ours.merge(theirs),
            _ => self.histogram = None,
        }
    }

    /// Returns the best range, if there are values.
    fn fit(&self, bits: u32) -> Option<Fitted> {
        (self.count > 0).then(|| match &self.histogram {
            Some(histogram) => self.search(histogram, bits),
            None => Fitted {
                low: self.min,
                high: self.max,
                error: self.rounding_error(bits),
            },
        })
    }

    /// Returns the error of rounding alone: a twelfth of the squared scale for each value.
    fn rounding_error(&self, bits: u32) -> f64 {
        if self.min == self.max {
            return 0.0;
        }
        let scale = f64::from(Affine::new(self.min, self.max, bits).scale);
        self.count as f64 * scale * scale / 12.0
    }

    /// Moves both ends of the range in turns as long as that reduces the error: first in large
    /// steps, down to an eighth of the range, then in small ones.
    fn search(&self, histogram: &Histogram, bits: u32) -> Fitted {
        let fitted = |low: f32, high: f32| {
            let (low, high) = (low.max(self.min), high.min(self.max));
            Fitted {
                low,
                high,
                error: histogram.squared_error(&Affine::new(low, high, bits), self.min, self.max),
            }
        };
        let mut best = fitted(self.min, self.max);
        if !(self.max - self.min).is_normal() {
            return best;
        }
        let large = (1..26).map(|trial| 0.92f32.powi(trial));
        let small = [1.06, 1.04, 1.02, 0.98, 0.96, 0.94].into_iter();
        let mut turn = |factors: &mut dyn Iterator<Item = f32>, upper: bool| {
            let from = best;
            for factor in factors {
                let range = (from.high - from.low) * factor;
                let tried = match upper {
                    true => fitted(from.low, from.low + range),
                    false => fitted(from.high - range, from.high),
                };
                if tried.error < best.error {
                    best = tried;
                }
            }
        };
        turn(&mut large.clone(), true);
        turn(&mut large.clone(), false);
        turn(&mut small.clone(), true);
        turn(&mut small.clone(), false);
        best
    }
}

/// Returns the range at timestep `t`, smoothed near boundaries; before the first group that of the
/// first, after the last that of the last. `None` without any group.
///
/// The ends of the range are interpolated, not scale and zero point: interpolating those would give
/// ranges that are not between the two.
pub fn range_at(groups: &[GroupRange], smoothing: Option<Smoothing>, t: i32) -> Option<(f32, f32)> {
    let last = groups.len().checked_sub(1)?;
    let i = groups.partition_point(|group| group.t_end <= t).min(last);
    let own = (groups[i].low, groups[i].high);
    let Some(smoothing) = smoothing else {
        return Some(own);
    };
    // Both windows of a group are at most half of it, so they do not overlap.
    for pair in groups[i.saturating_sub(1)..].windows(2).take(2) {
        let [before, after] = [pair[0], pair[1]];
        let window = window(before, after, smoothing.window);
        let first = after.t_begin - window;
        if first <= t && t < after.t_begin + window {
            let place = (f64::from(t - first) + 0.5) / f64::from(2 * window);
            let weight = smoothing.curve.weight(place);
            let between =
                |a: f32, b: f32| (f64::from(a) + weight * (f64::from(b) - f64::from(a))) as f32;
            return Some((
                between(before.low, after.low),
                between(before.high, after.high),
            ));
        }
    }
    Some(own)
}

/// Returns scale and zero point of `bits` bits for the range at timestep `t`; see [`range_at`].
pub fn params_at(
    groups: &[GroupRange],
    smoothing: Option<Smoothing>,
    bits: u32,
    t: i32,
) -> Option<Affine> {
    range_at(groups, smoothing, t).map(|(low, high)| Affine::new(low, high, bits))
}

/// Returns the table stored in a file: [`params_at`] of all timesteps, with one row per run of
/// equal parameters.
pub fn table(
    groups: &[GroupRange],
    smoothing: Option<Smoothing>,
    bits: u32,
) -> Vec<ActivationRange> {
    let mut rows: Vec<ActivationRange> = Vec::new();
    let mut push = |t_begin: i32, t_end: i32| {
        let Some(Affine {
            scale, zero_point, ..
        }) = params_at(groups, smoothing, bits, t_begin)
        else {
            return;
        };
        match rows.last_mut() {
            Some(last) if (last.scale, last.zero_point) == (scale, zero_point) => {
                last.t_end = t_end
            }
            _ if t_begin == t_end => {}
            _ => rows.push(ActivationRange {
                t_begin,
                t_end,
                scale,
                zero_point,
            }),
        }
    };
    for (i, group) in groups.iter().enumerate() {
        let wanted = smoothing.map_or(0, |smoothing| smoothing.window);
        let window_of = |i: usize| match (groups.get(i), groups.get(i + 1)) {
            (Some(before), Some(after)) => window(*before, *after, wanted),
            _ => 0,
        };
        let before = i.checked_sub(1).map_or(0, window_of);
        let (from, to) = (group.t_begin + before, group.t_end - window_of(i));
        (group.t_begin..from).for_each(|t| push(t, t + 1));
        push(from, to);
        (to..group.t_end).for_each(|t| push(t, t + 1));
    }
    rows
}

/// Returns the smoothness of a table: 1 minus the mean relative jump of the scale from row to row,
/// which is the difference over the larger of the two. 1 for fewer than two rows.
pub fn smoothness(rows: &[ActivationRange]) -> f64 {
    let jump = |pair: &[ActivationRange]| {
        let [a, b] = [pair[0].scale, pair[1].scale].map(f64::from);
        (a - b).abs() / a.max(b)
    };
    let jumps: f64 = rows.windows(2).map(jump).sum();
    match rows.len() {
        0 | 1 => 1.0,
        n => 1.0 - jumps / (n - 1) as f64,
    }
}

/// Returns the number of timesteps on each side of the boundary of two groups.
fn window(before: GroupRange, after: GroupRange, wanted: i32) -> i32 {
    let half = |group: GroupRange| (group.t_end - group.t_begin) / 2;
    wanted.clamp(0, half(before).min(half(after)).max(0))
}

impl Curve {
    /// Returns the weight of the group after the boundary; `place` goes from 0 to 1 over both
    /// sides.
    fn weight(self, place: f64) -> f64 {
        let logistic = |x: f64| 1.0 / (1.0 + libm::exp(-10.0 * (x - 0.5)));
        match self {
            Self::Linear => place,
            Self::Cubic => place * place * (3.0 - 2.0 * place),
            Self::Sigmoid => {
                let (first, last) = (logistic(0.0), logistic(1.0));
                (logistic(place) - first) / (last - first)
            }
        }
    }
}

#[cfg(test)]
mod tests;
