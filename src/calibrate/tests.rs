use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn options(timesteps: u32, bins: u32, hessian_groups: u32) -> CalibrationOptions {
    CalibrationOptions {
        timesteps,
        bins,
        hessian_groups,
        ..CalibrationOptions::default()
    }
}

fn calibration(timesteps: u32, bins: u32, hessian_groups: u32) -> Calibration {
    Calibration::new(options(timesteps, bins, hessian_groups)).unwrap()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn observe(
    calibration: &Calibration,
    layer: &str,
    timestep: u32,
    cols: usize,
    values: &[f32],
) -> Result<()> {
    let x = Activations {
        rows: values.len() / cols,
        cols,
        float: Float::F32,
        values: &bytes(values),
    };
    calibration.observe(layer, timestep, x)
}

/// Makes whole numbers, whose sums and products are exact in any order.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let number = |i: u32| ((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 7) % 17;
    (0..count as u32)
        .map(|i| number(i + 1) as f32 - 8.0)
        .collect()
}

/// All statistics of a layer.
type All = (usize, Vec<Option<BinStats>>, Vec<(u64, Vec<f64>)>);

fn all(calibration: &Calibration, layer: &str) -> All {
    let layer = calibration.find(layer).unwrap();
    let layer = &mut *lock(&layer);
    let hessian = |hessian: &mut HessianSums| {
        let mut sums = Vec::new();
        let each = hessian.each_block(|first, block| {
            assert_eq!(sums.len(), packed_len(first));
            sums.extend_from_slice(block);
            Ok(())
        });
        each.unwrap();
        (hessian.count(), sums)
    };
    (
        layer.cols,
        layer
            .bins
            .iter()
            .map(|bin| bin.as_deref().cloned())
            .collect(),
        layer.hessians.iter_mut().map(hessian).collect(),
    )
}

fn assert_same(one: &Calibration, other: &Calibration) {
    assert_eq!(one.layers(), other.layers());
    assert_eq!(one.schedule(), other.schedule());
    for layer in one.layers() {
        assert!(
            all(one, &layer.name) == all(other, &layer.name),
            "{}",
            layer.name
        );
    }
}

#[test]
fn bins_by_hand() {
    // 10 timesteps in 4 bins: floor(i * 10 / 4) = 0, 2, 5, 7, 10.
    let options = options(10, 4, 2);
    let ranges: Vec<_> = (0..4).map(|i| options.range(i, 4)).collect();
    assert_eq!(ranges, [(0, 2), (2, 5), (5, 7), (7, 10)]);
    let bins: Vec<_> = (0..10).map(|t| options.bin_of(t, 4)).collect();
    assert_eq!(bins, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
}

proptest! {
    #[test]
    fn a_timestep_is_in_the_range_of_its_bin(
        timesteps in 1u32..1 << 20, bins in 1u32..4096, t in 0.0f64..1.0,
    ) {
        let bins = bins.min(timesteps);
        let options = options(timesteps, bins, 1);
        let t = ((f64::from(timesteps) * t) as u32).min(timesteps - 1);
        let bin = options.bin_of(t, bins);
        let (begin, end) = options.range(bin, bins);
        prop_assert!(bin < bins && begin <= t && t < end);
        prop_assert_eq!((options.bin_of(begin, bins), options.bin_of(end - 1, bins)), (bin, bin));
        prop_assert_eq!((options.range(0, bins).0, options.range(bins - 1, bins).1), (0, timesteps));
    }

    #[test]
    fn the_group_of_a_bin_is_that_of_all_its_timesteps(
        timesteps in 1u32..3000, groups in 1u32..20, times in 1u32..8,
    ) {
        let bins = groups * times;
        prop_assume!(bins <= timesteps);
        let options = options(timesteps, bins, groups);
        for bin in 0..bins {
            let (begin, end) = options.range(bin, bins);
            for t in [begin, end - 1] {
                prop_assert_eq!(options.bin_of(t, groups), bin / times);
            }
        }
    }
}

#[test]
fn sums_by_hand() {
    let calibration = calibration(10, 4, 2);
    observe(&calibration, "w.weight", 4, 2, &[1.0, -2.0, 3.0, 0.5]).unwrap();
    observe(&calibration, "w", 6, 2, &[2.0, 1.0]).unwrap();
    let (cols, bins, hessians) = all(&calibration, "w");
    assert_eq!(cols, 2);
    assert!(bins[0].is_none() && bins[3].is_none());
    let bin = bins[1].as_ref().unwrap();
    assert_eq!(
        (bin.count, &bin.low[..], &bin.high[..]),
        (2, &[1.0, -2.0][..], &[3.0, 0.5][..])
    );
    assert_eq!(bin.squares, [10.0, 4.25]);
    assert_eq!(
        (bin.range(None), bin.largest(0), bin.largest(1)),
        ((-2.0, 3.0), 3.0, 2.0)
    );
    let counts: Vec<_> = bin.histogram.iter().map(|(_, count)| count).collect();
    assert_eq!(counts, [1, 1, 1, 1]);
    // Rows of the triangle: x0 x0; x1 x0, x1 x1. Timestep 4 is in the first group, 6 in the second.
    assert_eq!(hessians[0], (2, vec![10.0, -2.0 + 1.5, 4.25]));
    assert_eq!(hessians[1], (1, vec![4.0, 2.0, 1.0]));
    let expected = LayerInfo {
        name: "w".into(),
        cols: 2,
        rows: 3,
    };
    assert_eq!(calibration.layers(), [expected]);
    let cols = ["w.weight", "w.weight.weight", "v"].map(|name| calibration.cols(name));
    assert_eq!(cols, [Some(2), Some(2), None]);
}

#[test]
fn hessians_of_more_rows_and_columns_than_a_block() {
    // Two blocks of rows, and more rows of activations than are multiplied at once.
    let (rows, cols) = (600, 300);
    let x = numbers(1, rows * cols);
    let calibration = calibration(10, 1, 1);
    for piece in x.chunks(77 * cols) {
        observe(&calibration, "w", 0, cols, piece).unwrap();
    }
    let mut expected = Vec::new();
    for i in 0..cols {
        for j in 0..=i {
            let products = x
                .chunks(cols)
                .map(|row| f64::from(row[i]) * f64::from(row[j]));
            expected.push(products.sum::<f64>());
        }
    }
    let (_, bins, hessians) = all(&calibration, "w");
    assert!(hessians == [(600, expected.clone())]);
    let diagonal: Vec<f64> = (0..cols).map(|i| expected[packed_len(i + 1) - 1]).collect();
    assert_eq!(bins[0].as_ref().unwrap().squares, diagonal);
}

/// Makes the observations of several machines.
fn parts() -> Vec<(&'static str, u32, usize, Vec<f32>)> {
    let call = |i: u32| {
        let (layer, cols) = [("a", 5), ("b", 33), ("c", 300)][i as usize % 3];
        (
            layer,
            i * 7 % 40,
            cols,
            numbers(i, cols * (1 + i as usize * 5 % 40)),
        )
    };
    (0..60).map(call).collect()
}

#[test]
fn what_is_merged_is_as_if_one_had_seen_all() {
    let parts = parts();
    let whole = calibration(40, 8, 4);
    let merged = calibration(40, 8, 4);
    merged.set_schedule(&[0.25; 40]).unwrap();
    whole.set_schedule(&[0.25; 40]).unwrap();
    for share in parts.chunks(17) {
        let one = calibration(40, 8, 4);
        for (layer, t, cols, x) in share {
            observe(&one, layer, *t, *cols, x).unwrap();
            observe(&whole, layer, *t, *cols, x).unwrap();
        }
        merged.merge(&one).unwrap();
    }
    assert_same(&whole, &merged);
}

#[test]
fn threads_see_what_one_sees() {
    let parts = parts();
    let (one, many) = (calibration(40, 8, 4), calibration(40, 8, 4));
    for (layer, t, cols, x) in &parts {
        observe(&one, layer, *t, *cols, x).unwrap();
    }
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (parts, many) = (&parts, &many);
            scope.spawn(move || {
                for (layer, t, cols, x) in parts.iter().skip(i).step_by(8) {
                    observe(many, layer, *t, *cols, x).unwrap();
                }
            });
        }
    });
    assert_same(&one, &many);
}

#[test]
fn what_was_saved_is_what_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let parts = parts();
    let whole = calibration(40, 8, 4);
    whole
        .set_schedule(&(0..40).map(|t| f64::from(t) / 39.0).collect::<Vec<_>>())
        .unwrap();
    for (layer, t, cols, x) in &parts[..30] {
        observe(&whole, layer, *t, *cols, x).unwrap();
    }
    whole.save(&path("one")).unwrap();
    for limit in [None, Some(0), Some(100_000)] {
        let loaded = Calibration::load(&path("one"), limit).unwrap();
        assert_same(&whole, &loaded);
        let kept = CalibrationOptions {
            memory_limit: limit,
            ..options(40, 8, 4)
        };
        assert_eq!(*loaded.options(), kept);
        assert!(loaded.spill.used() <= limit.unwrap_or(usize::MAX));
        // It continues like the first one.
        let first = Calibration::load(&path("one"), None).unwrap();
        for (layer, t, cols, x) in &parts[30..] {
            observe(&first, layer, *t, *cols, x).unwrap();
            observe(&loaded, layer, *t, *cols, x).unwrap();
        }
        first.save(&path("two")).unwrap();
        loaded.save(&path("three")).unwrap();
        let [two, three] = ["two", "three"].map(|name| std::fs::read(path(name)).unwrap());
        assert!(two == three);
    }
}

#[test]
fn what_is_not_finite_is_refused_and_nothing_taken_in() {
    let calibration = calibration(10, 5, 5);
    let x = numbers(3, 600 * 4);
    observe(&calibration, "w", 3, 4, &x).unwrap();
    let before = all(&calibration, "w");
    for (at, value, shown) in [
        (2399, f32::NAN, "row 599, channel 3 is NaN"),
        (0, f32::INFINITY, "row 0, channel 0 is inf"),
        (1026, f32::NEG_INFINITY, "row 256, channel 2 is -inf"),
        (5, -1.5e18, "row 1, channel 1 is -1500000000000000000"),
    ] {
        let mut x = x.clone();
        x[at] = value;
        let error = observe(&calibration, "w", 3, 4, &x)
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("layer 'w': {shown}"));
    }
    assert!(all(&calibration, "w") == before);
    // A new layer is not created, either.
    assert!(observe(&calibration, "new", 3, 1, &[f32::NAN]).is_err());
    assert_eq!(calibration.layers().len(), 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let calibration = calibration(10, 5, 5);
    observe(&calibration, "w", 3, 4, &[1.0; 4]).unwrap();
    let error = |layer: &str, t: u32, x: Activations<'_>| {
        calibration.observe(layer, t, x).unwrap_err().to_string()
    };
    let x = |rows: usize, cols: usize| Activations {
        rows,
        cols,
        float: Float::F16,
        values: &[0; 8],
    };
    assert_eq!(
        error("w", 10, x(1, 4)),
        "layer 'w': timestep 10 is not from 0 to 9"
    );
    assert_eq!(
        error("w", 0, x(2, 2)),
        "layer 'w': 2 channels, but 4 were observed before"
    );
    assert_eq!(
        error("w", 0, x(1, 3)),
        "layer 'w': 8 bytes are not 1 rows of 3 f16 channels"
    );
    for (rows, cols) in [(usize::MAX, 4), (4, usize::MAX), (0, 0), (0, 4)] {
        assert!(
            error("w", 0, x(rows, cols)).contains("8 bytes are not"),
            "{rows} {cols}"
        );
    }
    assert!(error(".weight", 0, x(1, 4)).contains("must have 1 to 4096 bytes"));
    assert!(error(&"x".repeat(4097), 0, x(1, 4)).contains("must have 1 to 4096 bytes"));
    assert_eq!(calibration.layers().len(), 1);
}

#[test]
fn options_out_of_range() {
    for (options, reason) in [
        (options(0, 1, 1), "timesteps: 0"),
        (options((1 << 20) + 1, 1, 1), "timesteps: 1048577"),
        (options(10, 0, 1), "bins: 0"),
        (options(10, 11, 1), "bins: 11"),
        (options(5000, 4097, 1), "bins: 4097"),
        (
            options(10, 4, 3),
            "hessian_groups: 3 does not divide the 4 bins",
        ),
        (options(10, 4, 0), "hessian_groups: 0"),
    ] {
        let error = Calibration::new(options).unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error}");
    }
    // The number does not matter if there are no Hessians.
    let none = CalibrationOptions {
        hessian: false,
        ..options(7, 7, 10)
    };
    let calibration = Calibration::new(none).unwrap();
    observe(&calibration, "w", 6, 1, &[1.0]).unwrap();
    assert!(all(&calibration, "w").2.is_empty());
}

/// Makes layer "w" of two channels, observed in 3 of 4 groups of timesteps: with 4, 1 and 2 rows.
fn weighed() -> Calibration {
    let calibration = calibration(8, 4, 4);
    observe(
        &calibration,
        "w",
        0,
        2,
        &[1.0, 0.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0],
    )
    .unwrap();
    observe(&calibration, "w", 3, 2, &[3.0, 1.0]).unwrap();
    observe(&calibration, "w", 7, 2, &[0.0, 2.0, 2.0, 2.0]).unwrap();
    calibration
}

fn assert_weights(
    weighting: &TimeWeighting,
    groups: u32,
    outputs: Option<&[f64]>,
    expected: [f64; 4],
) {
    let calibration = weighed();
    // 0.75 and 0.25 of the signal in the first group, next to all of it in the last.
    let alphas = [0.75, 0.25, 0.5, 0.5, 0.0, 0.0, 0.99, 1.0];
    calibration.set_schedule(&alphas).unwrap();
    let weights = calibration
        .weights("w.weight", weighting, groups, outputs)
        .unwrap();
    for (found, expected) in weights.of_row.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{weighting:?}: {weights:?}"
        );
    }
    assert_eq!(weights.of_row.len(), 4);
    let rows = [4.0, 1.0, 0.0, 2.0];
    let total: f64 = weights
        .of_row
        .iter()
        .zip(rows)
        .map(|(weight, rows)| weight * rows)
        .sum();
    assert!((total - 1.0).abs() < 1e-12);
    // Squares: 4 and 4, 9 and 1, none, 4 and 8.
    let squares = [[4.0, 4.0], [9.0, 1.0], [0.0, 0.0], [4.0, 8.0]];
    let importance = calibration.importance("w", &weights).unwrap();
    for (channel, found) in importance.into_iter().enumerate() {
        let sum: f64 = (0..4)
            .map(|group| weights.of_row[group] * squares[group][channel])
            .sum();
        assert!((found - sum).abs() < 1e-12);
    }
}

#[test]
fn weights_by_hand() {
    let seventh = 1.0 / 7.0;
    assert_weights(
        &TimeWeighting::Rows,
        4,
        None,
        [seventh, seventh, 0.0, seventh],
    );
    // Each observed group counts a third, divided by its rows.
    let third = 1.0 / 3.0;
    assert_weights(
        &TimeWeighting::Equal,
        4,
        None,
        [third / 4.0, third, 0.0, third / 2.0],
    );
    // Two groups: of 5 rows and of 2.
    assert_weights(&TimeWeighting::Equal, 2, None, [0.1, 0.1, 0.25, 0.25]);
    assert_weights(&TimeWeighting::Equal, 1, None, [1.0 / 7.0; 4]);
    // 1 / (1 - alpha), with at least .02 of noise: means of 4 and 4/3, of 2 and 2, of 50 and 50.
    let (first, second, last) = (8.0 / 3.0, 2.0, 50.0);
    let total = first + second + last;
    let snr = [first / 4.0 / total, second / total, 0.0, last / 2.0 / total];
    assert_weights(&TimeWeighting::Snr, 4, None, snr);
    // Mean squared outputs of 2, 8 and 4 a row: shares of 1/2, 1/8 and 1/4.
    let (first, second, last) = (4.0 / 7.0, 1.0 / 7.0, 2.0 / 7.0);
    let outputs = [8.0, 8.0, 0.0, 8.0];
    let relative = [first / 4.0, second, 0.0, last / 2.0];
    assert_weights(&TimeWeighting::Relative, 4, Some(&outputs), relative);
    let custom = TimeWeighting::Custom(vec![1.0, 0.0, 5.0, 3.0]);
    assert_weights(&custom, 4, None, [0.25 / 4.0, 0.0, 0.0, 0.75 / 2.0]);
}

#[test]
fn weights_that_cannot_be() {
    let calibration = weighed();
    let error = |layer: &str, weighting: TimeWeighting, outputs: Option<&[f64]>| {
        let weights = calibration.weights(layer, &weighting, 4, outputs);
        weights.unwrap_err().to_string()
    };
    assert!(error("v", TimeWeighting::Equal, None).contains("layer 'v' was not observed"));
    assert!(error("w", TimeWeighting::Snr, None).contains("noise schedule"));
    assert!(error("w", TimeWeighting::Relative, None).contains("outputs"));
    assert!(error("w", TimeWeighting::Relative, Some(&[1.0; 3])).contains("outputs"));
    let three = TimeWeighting::Custom(vec![1.0; 3]);
    assert!(error("w", three, None).contains("3 weights for 4 groups"));
    assert!(
        calibration
            .importance(
                "v",
                &Weights {
                    of_row: vec![1.0; 4]
                }
            )
            .is_none()
    );
    assert_eq!(
        calibration.time_groups("w"),
        [(0, 2, 4), (2, 4, 1), (4, 6, 0), (6, 8, 2)]
    );
}

#[test]
fn weightings_as_text() {
    for (text, expected) in [
        ("rows", TimeWeighting::Rows),
        ("equal", TimeWeighting::Equal),
        ("snr", TimeWeighting::Snr),
        ("relative", TimeWeighting::Relative),
        ("1,0.5,0", TimeWeighting::Custom(vec![1.0, 0.5, 0.0])),
    ] {
        assert_eq!(text.parse(), Ok(expected.clone()));
        assert_eq!(expected.to_string(), text);
    }
    for text in ["", "even", "1,-1", "0,0", "1,nan", "1,inf", "1,,2"] {
        assert_eq!(text.parse::<TimeWeighting>(), Err(()), "{text}");
    }
}

#[test]
fn schedules_that_cannot_be() {
    let calibration = calibration(3, 1, 1);
    for (alphas, reason) in [
        (&[0.5; 2][..], "2 numbers for 3 timesteps"),
        (&[0.5, 1.1, 0.0], "1.1 at timestep 1"),
        (&[0.5, 1.0, f64::NAN], "NaN at timestep 2"),
        (&[-0.1, 1.0, 0.0], "-0.1 at timestep 0"),
    ] {
        let error = calibration.set_schedule(alphas).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(calibration.schedule().is_empty());
}
