//! Finding the grid of one group: from its range, or by least squares. The methods of
//! quantization proper, as each group sees them; which trials are made is decided by the caller.

use super::code::{Code, CodeMap};
use super::grid::{Encoder, Grid, Steps, add_product};
use crate::format::{Scheme, Width};
use crate::kernel::element::Element;
use crate::kernel::group::{Scaled, first, sums};
use crate::kernel::lanes::Lanes;

/// The grid of `Method::MinMax` for a group between `low` and `high`.
#[inline(always)]
pub(super) fn min_max(code: impl Code, low: f32, high: f32) -> Grid {
    match code.scheme() {
        Scheme::Affine => Grid {
            scale: (high - low) / f32::from(code.width().max_code()),
            bias: low,
        },
        // The value of largest magnitude gets the extreme code; of two equal ones the positive.
        Scheme::Symmetric => {
            let extreme = if high >= -low { high } else { low };
            let scale = match code.width() {
                Width::Two => extreme.abs() / code.width().zero_point(),
                Width::Four | Width::Eight => -extreme / code.width().zero_point(),
            };
            Grid { scale, bias: 0.0 }
        }
    }
}

/// The grid of `Method::Lsq`: the best of those that `ratios` times the range's scale lead to.
#[inline(always)]
pub(super) fn least_squares<L: Lanes, E: Element, C: Code, const FAR: bool>(
    group: &Scaled<'_, E, FAR>,
    code: C,
    start: Grid,
    ratios: &[f32],
) -> Grid {
    // As many trials together as there are registers for their sums.
    match (code.scheme(), L::SUMS) {
        (Scheme::Symmetric, 16..) => symmetric::<L, _, _, FAR, 8>(group, code, start, ratios),
        (Scheme::Symmetric, 4..) => symmetric::<L, _, _, FAR, 2>(group, code, start, ratios),
        (Scheme::Symmetric, _) => symmetric::<L, _, _, FAR, 1>(group, code, start, ratios),
        (Scheme::Affine, 16..) => affine::<L, _, _, FAR, 4>(group, code, start, ratios),
        (Scheme::Affine, _) => affine::<L, _, _, FAR, 1>(group, code, start, ratios),
    }
}

/// For each trial scale take the distances d = q - z, whose best scale is
/// `sum h x d / sum h d^2`; keep the trial that explains most of the group.
#[inline(always)]
fn symmetric<L: Lanes, E: Element, C: Code, const FAR: bool, const T: usize>(
    group: &Scaled<'_, E, FAR>,
    code: C,
    start: Grid,
    ratios: &[f32],
) -> Grid {
    let mut best = start;
    let mut best_explained = 0.0;
    for ratios in ratios.chunks(T) {
        // Spare places repeat the first trial, which is then no better than itself.
        let mut trials = [0.0; T];
        for (t, trial) in trials.iter_mut().enumerate() {
            *trial = start.scale * ratios.get(t).unwrap_or(&ratios[0]);
        }
        let sums = match code.width() {
            Width::Two => two_levels::<L, _, FAR, T>(group, trials),
            Width::Four | Width::Eight => many_levels::<L, _, _, FAR, T>(group, code, trials),
        };
        for [product, square] in sums {
            let explained = product * product;
            if square > 0.0 && explained > best_explained * square {
                best_explained = explained / square;
                best.scale = (product / square) as f32;
            }
        }
    }
    best
}

/// `sum h x d` and `sum h d^2` for each trial scale, d being integers.
#[inline(always)]
fn many_levels<L: Lanes, E: Element, C: Code, const FAR: bool, const T: usize>(
    group: &Scaled<'_, E, FAR>,
    code: C,
    trials: [f32; T],
) -> [[f64; 2]; T] {
    let lowest = L::splat(-code.width().zero_point());
    let highest = L::splat(code.width().zero_point() - 1.0);
    let mut inverses = [L::splat(0.0); T];
    for t in 0..T {
        let (scale, bias) = (trials[t], 0.0);
        inverses[t] = L::splat(Grid { scale, bias }.inverse());
    }
    match group.importance {
        None => sums!(each_vector, L, [2; T], group.len, |sums, at, n| {
            // Missing weights are 0, and so are their d.
            let x = group.load::<L>(at, n);
            for t in 0..T {
                let d = x.mul(inverses[t]).round().max(lowest).min(highest);
                sums[t][0] = add_product(group.element, sums[t][0], x, d);
                sums[t][1] = d.mul_add(d, sums[t][1]);
            }
        }),
        Some(_) => sums!(each_vector, L, [2; T], group.len, |sums, at, n| {
            let x = group.load::<L>(at, n);
            for t in 0..T {
                let d = x.mul(inverses[t]).round().max(lowest).min(highest);
                let weighted = group.weigh(d, at, n);
                sums[t][0] = sums[t][0].add(x.mul(weighted));
                sums[t][1] = sums[t][1].add(d.mul(weighted));
            }
        }),
    }
}

/// `sum h x d` and `sum h d^2` for each trial scale of 2 bits, where d is 1/2 or 3/2 with the sign
/// of x, so that it is enough to add up the magnitudes, and those above the trial scale once more.
#[inline(always)]
fn two_levels<L: Lanes, E: Element, const FAR: bool, const T: usize>(
    group: &Scaled<'_, E, FAR>,
    trials: [f32; T],
) -> [[f64; 2]; T] {
    let mut thresholds = [L::splat(0.0); T];
    for t in 0..T {
        thresholds[t] = L::splat(trials[t]);
    }
    let [[all, all_count]] = sums!(each_vector, L, [2; 1], group.len, |sums, at, n| {
        let x = group.load::<L>(at, n).abs();
        let one = first(group.weigh(L::splat(1.0), at, n), n);
        sums[0][0] = sums[0][0].add(group.weigh(x, at, n));
        sums[0][1] = sums[0][1].add(one);
    });
    let mut totals = sums!(each_vector, L, [2; T], group.len, |sums, at, n| {
        let x = group.load::<L>(at, n).abs();
        let (weighted, one) = (group.weigh(x, at, n), group.weigh(L::splat(1.0), at, n));
        for t in 0..T {
            // Missing weights are 0, and above no threshold.
            sums[t][0] = sums[t][0].add_where_above(x, thresholds[t], weighted);
            sums[t][1] = sums[t][1].add_where_above(x, thresholds[t], one);
        }
    });
    for [product, square] in &mut totals {
        *product += 0.5 * all;
        *square = 2.0 * *square + 0.25 * all_count;
    }
    totals
}

/// Rounds that go on from the best affine trial, taking codes and solving again.
const REFINEMENTS: usize = 2;

/// For each shrunk range take the codes and solve the 2x2 normal equations for scale and bias;
/// keep the trial that explains most of the group, and go on alternating from there. Codes and
/// weights are centred first, so that nothing cancels when the group lies far from zero.
#[inline(always)]
fn affine<L: Lanes, E: Element, C: Code, const FAR: bool, const T: usize>(
    group: &Scaled<'_, E, FAR>,
    code: C,
    start: Grid,
    ratios: &[f32],
) -> Grid {
    let top = f32::from(code.width().max_code());
    let middle = start.bias + start.scale * (top / 2.0);
    let mut fit = AffineFit {
        top,
        middle,
        weights: center::<L, _, FAR>(group, middle),
        best: start,
        best_explained: f64::NEG_INFINITY,
    };
    for ratios in ratios.chunks(T) {
        let trials: [Grid; T] = core::array::from_fn(|t| {
            let scale = start.scale * ratios.get(t).unwrap_or(&ratios[0]);
            let bias = middle - scale * (top / 2.0);
            Grid { scale, bias }
        });
        fit.take(affine_sums::<L, _, _, FAR, T>(group, code, middle, trials));
    }
    for _ in 0..REFINEMENTS {
        fit.take(affine_sums::<L, _, _, FAR, 1>(
            group,
            code,
            middle,
            [fit.best],
        ));
    }
    fit.best
}

/// `sum h` and `sum h (x - middle)` of a group.
#[inline(always)]
fn center<L: Lanes, E: Element, const FAR: bool>(
    group: &Scaled<'_, E, FAR>,
    middle: f32,
) -> [f64; 2] {
    let [totals] = sums!(each_vector, L, [2; 1], group.len, |sums, at, n| {
        let x = group.load::<L>(at, n).sub(L::splat(middle));
        let one = group.weigh(L::splat(1.0), at, n);
        sums[0][0] = sums[0][0].add(first(one, n));
        sums[0][1] = sums[0][1].add(first(x.mul(one), n));
    });
    totals
}

/// For each trial `sum h u`, `sum h u (x - middle)` and `sum h u^2`, u being half steps.
#[inline(always)]
fn affine_sums<L: Lanes, E: Element, C: Code, const FAR: bool, const T: usize>(
    group: &Scaled<'_, E, FAR>,
    code: C,
    middle: f32,
    trials: [Grid; T],
) -> [[f64; 3]; T] {
    let steps = Steps::<L>::new(code);
    let mut encoders = [Encoder::new(code, 0.0, 0.0); T];
    for t in 0..T {
        encoders[t] = Encoder::new(code, trials[t].inverse(), trials[t].bias);
    }
    sums!(each_vector, L, [3; T], group.len, |sums, at, n| {
        let x = group.load::<L>(at, n);
        let centred = x.sub(L::splat(middle));
        for t in 0..T {
            let codes = encoders[t].codes(encoders[t].exact(x));
            let u = first(steps.of(codes), n);
            let weighted = group.weigh(u, at, n);
            sums[t][0] = sums[t][0].add(weighted);
            sums[t][1] = sums[t][1].add(centred.mul(weighted));
            sums[t][2] = sums[t][2].add(u.mul(weighted));
        }
    })
}

struct AffineFit {
    top: f32,
    middle: f32,
    /// `sum h` and `sum h (x - middle)`.
    weights: [f64; 2],
    best: Grid,
    best_explained: f64,
}

impl AffineFit {
    #[inline(always)]
    fn take<const T: usize>(&mut self, trials: [[f64; 3]; T]) {
        let [h, hx] = self.weights;
        for [hu, hux, huu] in trials {
            let determinant = h * huu - hu * hu;
            if determinant <= 0.0 {
                continue;
            }
            let slope = (h * hux - hu * hx) / determinant;
            let offset = (hx - slope * hu) / h;
            let explained = slope * hux + offset * hx;
            if slope > 0.0 && explained > self.best_explained {
                self.best_explained = explained;
                let bias = f64::from(self.middle) + offset - slope * f64::from(self.top);
                self.best = Grid {
                    scale: (2.0 * slope) as f32,
                    bias: bias as f32,
                };
            }
        }
    }
}
