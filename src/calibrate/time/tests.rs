use super::*;
use proptest::prelude::*;

fn bin(t: Range<i32>, count: u64, min: f32, max: f32) -> BinRange<'static> {
    BinRange {
        t_begin: t.start,
        t_end: t.end,
        count,
        min,
        max,
        histogram: None,
    }
}

/// Makes bins of one timestep each.
fn bins(ranges: &[(u64, f32, f32)]) -> Vec<BinRange<'static>> {
    let bins = (0..).zip(ranges);
    bins.map(|(t, &(count, min, max))| bin(t..t + 1, count, min, max))
        .collect()
}

fn group(t: Range<i32>, low: f32, high: f32) -> GroupRange {
    GroupRange {
        t_begin: t.start,
        t_end: t.end,
        low,
        high,
    }
}

fn row(t: Range<i32>, scale: f32, zero_point: f32) -> ActivationRange {
    ActivationRange {
        t_begin: t.start,
        t_end: t.end,
        scale,
        zero_point,
    }
}

fn smoothing(window: i32, curve: Curve) -> Option<Smoothing> {
    Some(Smoothing { window, curve })
}

#[test]
fn uniform_groups_are_cut_where_they_should_be() {
    assert_eq!(uniform(10, 3), [0..3, 3..6, 6..10]);
    assert_eq!(uniform(1000, 5)[4], 800..1000);
    assert_eq!(uniform(2, 20), [0..1, 1..2]);
    assert_eq!(uniform(7, 0), vec![0..7; 1]);
    assert_eq!(uniform(0, 5), []);
    assert_eq!(uniform(-3, 5), []);
    assert_eq!(uniform(i32::MAX, 2)[1], 1_073_741_823..i32::MAX);
}

#[test]
fn scales_are_as_computed_by_hand() {
    let affine = Affine::new(-1.0, 4.1, 8);
    assert_eq!((affine.scale, affine.zero_point), (0.02, -(-1.0 / 0.02f32)));
    let affine = Affine::new(0.0, 7.5, 4);
    assert_eq!((affine.scale, affine.zero_point.to_bits()), (0.5, 0));
    // The range need not contain 0.
    let affine = Affine::new(3.0, 3.0 + 15.0, 4);
    assert_eq!((affine.scale, affine.zero_point), (1.0, -3.0));
}

#[test]
fn without_a_range_the_scale_is_one() {
    for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-2.5, -2.5), (0.0, 1e-44)] {
        let affine = Affine::new(low, high, 8);
        assert_eq!((affine.scale, affine.zero_point), (1.0, -low));
        // The level represents the value exactly.
        assert_eq!(affine.mean_error(low, low), 0.0);
    }
    let widest = Affine::new(-f32::MAX, f32::MAX, 4);
    assert!(
        widest.scale.is_finite() && widest.zero_point == 7.5,
        "{widest:?}"
    );
}

#[test]
fn boundaries_stand_where_ranges_change() {
    let (quiet, loud) = ((10, -1.0, 1.0), (10, -8.0, 8.0));
    let drift = bins(&[quiet, quiet, quiet, loud, loud, quiet]);
    let groups = |n| optimal(&drift, n, RangeFit::MinMax, 8);
    assert_eq!(groups(1), vec![0..6; 1]);
    assert_eq!(groups(2), [0..3, 3..6]);
    assert_eq!(groups(3), [0..3, 3..5, 5..6]);
    // More groups than needed: the earliest boundaries win.
    assert_eq!(groups(4), [0..1, 1..3, 3..5, 5..6]);
    assert_eq!(groups(99).len(), 6);
    assert_eq!(groups(0), vec![0..6; 1]);
    assert_eq!(optimal(&[], 3, RangeFit::MinMax, 8), []);
}

#[test]
fn bins_of_several_timesteps_stay_whole() {
    let bins = [
        bin(0..50, 5, 0.0, 9.0),
        bin(50..300, 5, 0.0, 1.0),
        bin(300..1000, 5, 0.0, 1.1),
    ];
    assert_eq!(optimal(&bins, 2, RangeFit::MinMax, 8), [0..50, 50..1000]);
    // Uniform groups use all bins that overlap them.
    let found = ranges(&bins, &uniform(1000, 4), RangeFit::MinMax, 8);
    let highs: Vec<f32> = found.iter().map(|group| group.high).collect();
    assert_eq!(highs, [9.0, 1.1, 1.1, 1.1]);
}

#[test]
fn bins_without_values_do_no_harm() {
    let none = (0, f32::NAN, f32::INFINITY);
    let seen = bins(&[none, (1, -1.0, 0.0), none, none, (1, 0.0, 7.0), none]);
    assert_eq!(optimal(&seen, 2, RangeFit::MinMax, 8)[1].end, 6);
    let each = ranges(&seen, &uniform(6, 6), RangeFit::MinMax, 8);
    let ends: Vec<(f32, f32)> = each.iter().map(|group| (group.low, group.high)).collect();
    let (a, b) = ((-1.0, 0.0), (0.0, 7.0));
    assert_eq!(ends, [a, a, a, b, b, b]);

    let nothing = bins(&[none, none]);
    for fit in [RangeFit::MinMax, RangeFit::SquaredError] {
        let groups = optimal(&nothing, 2, fit, 8);
        assert_eq!(groups, [0..1, 1..2]);
        let rows = table(&ranges(&nothing, &groups, fit, 8), None, 8);
        assert_eq!(rows, [row(0..2, 1.0, 0.0)]);
    }
    assert_eq!(table(&[], smoothing(3, Curve::Linear), 8), []);
    assert_eq!(range_at(&[], None, 0), None);
}

#[test]
fn a_search_leaves_outliers_out() {
    let mut histogram = Histogram::new();
    let spread: Vec<f32> = (0..10_000).map(|i| i as f32 / 5000.0 - 1.0).collect();
    histogram.add(&spread);
    histogram.add(&[3.0]);
    let seen = BinRange {
        histogram: Some(&histogram),
        ..bin(0..1, 10_001, -1.0, 3.0)
    };
    let found = |fit, bits| ranges(&[seen], std::slice::from_ref(&(0..1)), fit, bits)[0];
    assert_eq!(found(RangeFit::MinMax, 4), group(0..1, -1.0, 3.0));
    let searched = found(RangeFit::SquaredError, 4);
    // Sixteen even levels for -1 to 1 are best half a step, 1/16, away from its ends.
    let near = |found: f32| (found - 15.0 / 16.0).abs() < 0.02;
    assert!(near(-searched.low) && near(searched.high), "{searched:?}");
    let error = |range: GroupRange, bits| {
        histogram.squared_error(&Affine::new(range.low, range.high, bits), -1.0, 3.0)
    };
    assert!(error(searched, 4) < 0.35 * error(found(RangeFit::MinMax, 4), 4));
    // If one bin lacks its histogram, there is no search.
    let both = [seen, bin(1..2, 1, 0.0, 0.0)];
    let range = ranges(
        &both,
        std::slice::from_ref(&(0..2)),
        RangeFit::SquaredError,
        4,
    )[0];
    assert_eq!(range, group(0..2, -1.0, 3.0));
}

#[test]
fn ranges_go_over_at_boundaries() {
    let groups = [group(0..10, -1.0, 1.0), group(10..20, -3.0, 5.0)];
    let at = |curve, t| range_at(&groups, smoothing(2, curve), t).unwrap();
    // Places 1/8, 3/8, 5/8, 7/8.
    assert_eq!(at(Curve::Linear, 7), (-1.0, 1.0));
    assert_eq!(at(Curve::Linear, 8), (-1.25, 1.5));
    assert_eq!(at(Curve::Linear, 9), (-1.75, 2.5));
    assert_eq!(at(Curve::Linear, 10), (-2.25, 3.5));
    assert_eq!(at(Curve::Linear, 11), (-2.75, 4.5));
    assert_eq!(at(Curve::Linear, 12), (-3.0, 5.0));
    // 3/64 - 2/512 = 0.04296875.
    assert_eq!(at(Curve::Cubic, 8).1, 1.0 + 4.0 * 0.042_968_75);
    // (1 / (1 + e^3.75) - 1 / (1 + e^5)) / (1 - 2 / (1 + e^5)) = 0.0165052...
    assert!((at(Curve::Sigmoid, 8).1 - (1.0 + 4.0 * 0.016_505)).abs() < 1e-5);
    for curve in [Curve::Linear, Curve::Cubic, Curve::Sigmoid] {
        assert_eq!((curve.weight(0.0), curve.weight(1.0)), (0.0, 1.0));
        assert!((curve.weight(0.5) - 0.5).abs() < 1e-12);
    }
    // Timesteps outside the range.
    assert_eq!(at(Curve::Linear, -5), (-1.0, 1.0));
    assert_eq!(at(Curve::Linear, 99), (-3.0, 5.0));
    assert_eq!(range_at(&groups, None, 9), Some((-1.0, 1.0)));
}

#[test]
fn windows_are_no_longer_than_half_a_group() {
    let groups = [
        group(0..9, 0.0, 1.0),
        group(9..12, 0.0, 3.0),
        group(12..13, 0.0, 1.0),
    ];
    let highs = |window| -> Vec<f32> {
        let at = |t| {
            range_at(&groups, smoothing(window, Curve::Linear), t)
                .unwrap()
                .1
        };
        (6..13).map(at).collect()
    };
    // One timestep of the second group, and none of the third.
    assert_eq!(highs(100), [1.0, 1.0, 1.5, 2.5, 3.0, 3.0, 1.0]);
    assert_eq!(highs(0), [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 1.0]);
    assert_eq!(highs(-1), highs(0));
}

#[test]
fn tables_have_a_row_for_each_change() {
    let groups = [group(0..10, 0.0, 15.0), group(10..20, 0.0, 45.0)];
    assert_eq!(
        table(&groups, None, 4),
        [row(0..10, 1.0, 0.0), row(10..20, 3.0, 0.0)]
    );
    assert_eq!(
        table(&groups, smoothing(1, Curve::Linear), 4),
        [
            row(0..9, 1.0, 0.0),
            row(9..10, 1.5, 0.0),
            row(10..11, 2.5, 0.0),
            row(11..20, 3.0, 0.0)
        ]
    );
    // Half of the relative jumps 1/3, 2/5, 1/6 are as much as 2/3.
    assert!((smoothness(&table(&groups, smoothing(1, Curve::Linear), 4)) - 0.7).abs() < 1e-7);
    assert!((smoothness(&table(&groups, None, 4)) - 1.0 / 3.0).abs() < 1e-7);
    assert_eq!(smoothness(&[]), 1.0);
    assert_eq!(smoothness(&[row(0..1, 2.0, 0.0)]), 1.0);
}

/// Returns every way to divide `n` bins into `groups`.
fn cuts(n: usize, groups: usize) -> Vec<Vec<usize>> {
    if groups == 1 {
        return vec![vec![n]];
    }
    let last = |start: usize| {
        cuts(start, groups - 1)
            .into_iter()
            .map(move |cuts| [cuts, vec![n]].concat())
    };
    (groups - 1..n).flat_map(last).collect()
}

/// Returns the expected error of a group, by definition.
fn cost(bins: &[BinRange<'_>], fit: RangeFit) -> f64 {
    let t = bins[0].t_begin..bins[bins.len() - 1].t_end;
    let seen: Vec<&BinRange<'_>> = bins.iter().filter(|bin| bin.count > 0).collect();
    if seen.is_empty() {
        return 0.0;
    }
    let range = ranges(bins, std::slice::from_ref(&t), fit, 4)[0];
    match fit {
        RangeFit::MinMax => {
            let scale = (f64::from(range.high) - f64::from(range.low)) / 15.0;
            seen.iter().map(|bin| bin.count as f64).sum::<f64>() * scale * scale / 12.0
        }
        RangeFit::SquaredError => {
            let affine = Affine::new(range.low, range.high, 4);
            let min = seen.iter().map(|bin| bin.min).fold(f32::INFINITY, f32::min);
            let max = seen
                .iter()
                .map(|bin| bin.max)
                .fold(f32::NEG_INFINITY, f32::max);
            let errors = seen
                .iter()
                .map(|bin| bin.histogram.unwrap().squared_error(&affine, min, max));
            errors.sum()
        }
    }
}

fn total(bins: &[BinRange<'_>], ends: &[usize], fit: RangeFit) -> f64 {
    let mut start = 0;
    let mut sum = 0.0;
    for &end in ends {
        sum += cost(&bins[start..end], fit);
        start = end;
    }
    sum
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_grouping_is_better(
        values in prop::collection::vec(prop::collection::vec(-8.0f32..8.0, 0..6), 1..7),
        groups in 1usize..5,
        fit in prop_oneof![Just(RangeFit::MinMax), Just(RangeFit::SquaredError)],
    ) {
        let histograms: Vec<Histogram> = values.iter().map(|values| {
            let mut histogram = Histogram::new();
            histogram.add(values);
            histogram
        }).collect();
        let bins: Vec<BinRange<'_>> = (0..).zip(&values).zip(&histograms).map(|((t, values), histogram)| BinRange {
            histogram: Some(histogram),
            ..bin(
                t * 3..t * 3 + 3,
                values.len() as u64,
                values.iter().copied().fold(f32::INFINITY, f32::min),
                values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            )
        }).collect();
        let found = optimal(&bins, groups, fit, 4);
        prop_assert_eq!(found.len(), groups.min(bins.len()));
        prop_assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start));
        let ends: Vec<usize> = found.iter().map(|group| group.end as usize / 3).collect();
        let best = cuts(bins.len(), found.len()).iter().map(|cut| total(&bins, cut, fit)).fold(f64::INFINITY, f64::min);
        let ours = total(&bins, &ends, fit);
        prop_assert!(ours <= best * (1.0 + 1e-9) + 1e-12, "{} {}", ours, best);
    }

    #[test]
    fn tables_say_what_holds_at_every_timestep(
        lengths in prop::collection::vec(1i32..9, 1..6),
        window in 0i32..6,
        curve in prop_oneof![Just(Curve::Linear), Just(Curve::Cubic), Just(Curve::Sigmoid)],
        seed: u32,
    ) {
        let mut t = 0;
        let groups: Vec<GroupRange> = lengths.iter().enumerate().map(|(i, length)| {
            t += length;
            let high = (seed.rotate_left(i as u32 * 5) % 4) as f32;
            group(t - length..t, -1.0, high)
        }).collect();
        let rows = table(&groups, smoothing(window, curve), 8);
        prop_assert_eq!((rows[0].t_begin, rows[rows.len() - 1].t_end), (0, t));
        prop_assert!(rows.windows(2).all(|pair| pair[0].t_end == pair[1].t_begin));
        for row in &rows {
            prop_assert!(row.t_begin < row.t_end);
            for t in row.t_begin..row.t_end {
                let affine = params_at(&groups, smoothing(window, curve), 8, t).unwrap();
                prop_assert_eq!((affine.scale, affine.zero_point), (row.scale, row.zero_point));
            }
        }
        prop_assert!((0.0..=1.0).contains(&smoothness(&rows)));
    }
}
