//! Histograms of activation values, and the expected error of quantizing these. Buckets are fixed,
//! so histograms can be merged exactly.

/// Bits of a float's mantissa that distinguish buckets: eight per power of two.
const MANTISSA: u32 = 3;

/// Exponents from 2^-20 up to 2^20.
const EXPONENTS: u32 = 40;

/// Number of buckets with one sign.
const ONE_SIGN: u32 = EXPONENTS << MANTISSA;

/// Number of buckets: below zero, zero, and above zero.
pub const BUCKETS: usize = 2 * ONE_SIGN as usize + 1;

/// The upper bits of 2^-20, minus one.
const BELOW: u32 = ((127 - EXPONENTS / 2) << MANTISSA) - 1;

/// Number of float bits that do not distinguish buckets.
const SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - MANTISSA;

/// Counts of values by bucket.
///
/// A bucket holds values with the same sign, the same exponent and the same three highest bits of
/// the mantissa: its width is an eighth to a sixteenth of its values. Magnitudes under 2^-20 count
/// as zeros, and those from 2^20 on belong to the last bucket of their sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Counts in the order of the values.
    counts: Box<[u64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
        }
    }
}

impl Histogram {
    /// Makes an empty histogram.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts values, which should be finite: others go to the last bucket of their sign.
    pub fn add(&mut self, values: &[f32]) {
        for value in values {
            self.counts[bucket(*value)] += 1;
        }
    }

    /// Adds the counts of another histogram, as if all its values had been counted here.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count = count.saturating_add(*more);
        }
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Iterates over non-empty buckets, lowest first: the middle of the bucket and its count.
    pub fn iter(&self) -> impl Iterator<Item = (f32, u64)> {
        self.filled().map(|(i, count)| {
            let (low, high) = edges(i);
            // This is exact: neither needs more than five bits of mantissa.
            ((low + high) / 2.0, count)
        })
    }

    /// Returns the expected sum of the squared errors of all values after quantization, assuming
    /// that they are evenly spread over the part of their bucket between `min` and `max`.
    pub fn squared_error(&self, affine: &Affine, min: f32, max: f32) -> f64 {
        let errors = self.filled().map(|(i, count)| {
            let (low, high) = edges(i);
            count as f64 * affine.mean_error(low.clamp(min, max), high.clamp(min, max))
        });
        errors.sum()
    }

    /// Returns the counts of all [`BUCKETS`], for storage.
    pub fn counts(&self) -> &[u64] {
        &self.counts[..]
    }

    /// Makes a histogram from stored counts, if their number is right.
    pub fn from_counts(counts: &[u64]) -> Option<Self> {
        let counts = Box::new(counts.try_into().ok()?);
        Some(Self { counts })
    }

    fn filled(&self) -> impl Iterator<Item = (usize, u64)> {
        let all = self.counts.iter().copied().enumerate();
        all.filter(|(_, count)| *count > 0)
    }
}

/// A grid of 2^bits levels: `q = clamp(round(x / scale + zero_point), 0, 2^bits - 1)`, which stands
/// for `(q - zero_point) * scale`. The zero point may be any number, and no level need be 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Distance between levels.
    pub scale: f32,
    /// Position of 0, in levels.
    pub zero_point: f32,
    /// Bits of a code.
    pub bits: u32,
}

impl Affine {
    /// Makes the grid from `low` to `high`: scale (high - low) / (2^bits - 1), zero point -low /
    /// scale. If the range is empty, or cannot be divided in f32, the scale is 1.
    pub fn new(low: f32, high: f32, bits: u32) -> Self {
        let levels = f64::from(levels(bits));
        let scale = ((f64::from(high) - f64::from(low)) / levels) as f32;
        let scale = if scale.is_normal() { scale } else { 1.0 };
        Self {
            scale,
            // The + turns -0 into 0.
            zero_point: -low / scale + 0.0,
            bits,
        }
    }

    /// Returns the mean squared error of values evenly spread from `low` to `high`.
    pub fn mean_error(&self, low: f32, high: f32) -> f64 {
        let scale = f64::from(self.scale);
        let [a, b] = [low, high].map(|x| f64::from(x) / scale + f64::from(self.zero_point));
        let mean = match b - a {
            // The interval is too short to divide by.
            width if width < 1e-6 => self.distance(a).1.powi(2),
            width => (self.integral(b) - self.integral(a)) / width,
        };
        mean * scale * scale
    }

    /// Returns the level nearest to `x`, and the distance; `x` is in levels.
    fn distance(&self, x: f64) -> (f64, f64) {
        let level = x.round().clamp(0.0, f64::from(levels(self.bits)));
        (level, x - level)
    }

    /// Returns the integral of the squared distance from level 0 on; over a whole level it is 1/12.
    fn integral(&self, x: f64) -> f64 {
        let (level, distance) = self.distance(x);
        level / 12.0 + distance.powi(3) / 3.0
    }
}

/// Returns the highest code.
fn levels(bits: u32) -> u32 {
    (1 << bits) - 1
}

/// Returns the bucket of a value.
#[inline]
fn bucket(value: f32) -> usize {
    let bits = value.to_bits();
    let magnitude = (bits & !(1 << 31)) >> SHIFT;
    // 0 for zeros, then 1 and on.
    let place = magnitude.saturating_sub(BELOW).min(ONE_SIGN);
    match bits >> 31 {
        0 => (ONE_SIGN + place) as usize,
        _ => (ONE_SIGN - place) as usize,
    }
}

/// Returns the lowest and highest value of a bucket; zeros count as exactly 0.
fn edges(bucket: usize) -> (f32, f32) {
    let place = (bucket as u32).abs_diff(ONE_SIGN);
    let at = |place: u32| f32::from_bits((BELOW + place) << SHIFT);
    match bucket as u32 {
        ONE_SIGN => (0.0, 0.0),
        below if below < ONE_SIGN => (-at(place + 1), -at(place)),
        _ => (at(place), at(place + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        histogram.add(values);
        histogram
    }

    fn listed(values: &[f32]) -> Vec<(f32, u64)> {
        of(values).iter().collect()
    }

    #[test]
    fn values_fall_where_they_belong() {
        assert_eq!(BUCKETS, 641);
        // One bucket is from 1 to 1.125, another from 2 to 2.25.
        assert_eq!(
            listed(&[1.0, 1.124, 1.125, 2.0, 2.2]),
            [(1.0625, 2), (1.1875, 1), (2.125, 2)]
        );
        assert_eq!(
            listed(&[-1.0, 0.0, -0.0, 1.0]),
            [(-1.0625, 1), (0.0, 2), (1.0625, 1)]
        );
    }

    #[test]
    fn magnitudes_out_of_range_fall_into_the_outermost_buckets() {
        let least = 2.0f32.powi(-20);
        assert_eq!(
            listed(&[least, f32::from_bits(least.to_bits() - 1), 1e-40]),
            [(0.0, 2), (least * 1.0625, 1)]
        );
        let last = 2.0f32.powi(19) * 1.9375;
        assert_eq!(
            listed(&[2.0f32.powi(20), f32::MAX, f32::INFINITY, last]),
            [(last, 4)]
        );
        assert_eq!(listed(&[-1e30, f32::NEG_INFINITY]), [(-last, 2)]);
    }

    #[test]
    fn counts_come_back() {
        let histogram = of(&[1.0, -3.0, 0.0]);
        assert_eq!(Histogram::from_counts(histogram.counts()), Some(histogram));
        assert_eq!(Histogram::from_counts(&[0; BUCKETS - 1]), None);
        // Counts may be anything that a file says.
        let mut full = Histogram::from_counts(&[u64::MAX; BUCKETS]).unwrap();
        full.merge(&full.clone());
        assert_eq!(full.count(), u64::MAX);
    }

    #[test]
    fn errors_are_those_of_evenly_spread_values() {
        let (low, high, bits) = (-1.5f32, 2.0, 4);
        let affine = Affine::new(low, high, bits);
        // Enough values per bucket, in even steps, to approximate integrals by sums.
        let spread = |from: f32, to: f32| {
            (0..20_000).map(move |i| from + (to - from) * (i as f32 + 0.5) / 20_000.0)
        };
        let values: Vec<f32> = [(-3.0, -2.75), (0.25, 0.28125), (1.0, 1.125), (1.875, 2.0)]
            .into_iter()
            .flat_map(|(from, to)| spread(from, to))
            .collect();
        let exact: f64 = values
            .iter()
            .map(|x| {
                let q = (x / affine.scale + affine.zero_point)
                    .round_ties_even()
                    .clamp(0.0, 15.0);
                f64::from(x - (q - affine.zero_point) * affine.scale).powi(2)
            })
            .sum();
        let found = of(&values).squared_error(&affine, -3.0, 2.0);
        assert!((found / exact - 1.0).abs() < 1e-3, "{found} {exact}");
    }

    #[test]
    fn no_error_is_counted_where_no_values_can_be() {
        // All values are 1.0625, the grid's highest: none is clamped.
        let affine = Affine::new(0.0, 1.0625, 8);
        assert!(of(&[1.0625]).squared_error(&affine, 1.0625, 1.0625) < 1e-14);
        assert_eq!(Histogram::new().squared_error(&affine, 0.0, 1.0), 0.0);
    }

    proptest! {
        #[test]
        fn merging_is_exact(a in prop::collection::vec(any::<f32>(), 0..200),
                            b in prop::collection::vec(any::<f32>(), 0..200)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged.count(), (a.len() + b.len()) as u64);
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }

        #[test]
        fn a_value_is_between_the_edges_of_its_bucket(exponent in -19i32..20, m in 1.0f32..2.0, negative: bool) {
            let value = 2.0f32.powi(exponent) * m * if negative { -1.0 } else { 1.0 };
            let (low, high) = edges(bucket(value));
            prop_assert!(low <= value && value <= high, "{low} {value} {high}");
            prop_assert!(value.abs() / 16.0 <= high - low && high - low <= value.abs() / 8.0 * 1.001);
        }
    }
}
