//! Sums over rows, channel by channel: what calibration keeps of activations.

use super::element::{Element, each_vector, load, with_element};
use super::lanes::Lanes;
use crate::format::Float;

/// Rows of activations, to add up by channel.
#[derive(Debug)]
pub struct ChannelSums<'a> {
    /// Element type of `x`.
    pub float: Float,
    /// Channels.
    pub cols: usize,
    /// One row or more of `cols` little-endian values; no more than some hundred, as the sums are
    /// f32.
    pub x: &'a [u8],
    /// The smallest value of each channel is written here.
    pub low: &'a mut [f32],
    /// The largest value of each channel is written here.
    pub high: &'a mut [f32],
    /// The sum of squares; infinite or NaN where there is such a value, or one too large to be
    /// squared.
    pub squares: &'a mut [f32],
}

#[inline(always)]
pub(super) fn channel_sums<L: Lanes>(sums: ChannelSums<'_>) {
    with_element!(L, sums.float, |e| add_up::<L, _>(sums, e))
}

#[inline(always)]
fn add_up<L: Lanes, E: Element>(sums: ChannelSums<'_>, element: E) {
    let cols = sums.cols;
    let row_bytes = cols * element.size();
    each_vector!(0, cols, |at, n| {
        let first = load::<L>(element, &sums.x[..row_bytes], at, n);
        let (mut low, mut high) = (first, first);
        let mut squares = L::splat(0.0);
        for row in sums.x.chunks_exact(row_bytes) {
            let x = load::<L>(element, row, at, n);
            low = low.min(x);
            high = high.max(x);
            squares = squares.add(x.mul(x));
        }
        // -0 becomes +0.
        let zero = L::splat(0.0);
        sums.low[at..at + n].copy_from_slice(&low.add(zero).to_array()[..n]);
        sums.high[at..at + n].copy_from_slice(&high.add(zero).to_array()[..n]);
        sums.squares[at..at + n].copy_from_slice(&squares.to_array()[..n]);
    });
}

/// Values as f32.
#[inline(always)]
pub(super) fn widen<L: Lanes>(float: Float, values: &[u8], out: &mut [f32]) {
    with_element!(L, float, |e| {
        each_vector!(0, out.len(), |at, n| {
            let x = load::<L>(e, values, at, n);
            out[at..at + n].copy_from_slice(&x.to_array()[..n]);
        })
    })
}
