//! Activations: against one value at a time as the definition says, on every table.

use super::*;
use crate::kernel::{ActivationGrid, NonFinite, QuantizeActivations};

/// Rows to put through a table.
#[derive(Debug, Clone, Copy)]
struct Case<'a> {
    float: Float,
    cols: usize,
    x: &'a [u8],
    input_scale: Option<&'a [f32]>,
    width: Width,
    /// Group size, or scale and zero point.
    grid: Result<usize, (f32, f32)>,
    offset: usize,
}

type Written = Result<(Vec<u8>, Vec<f32>), NonFinite>;

impl Case<'_> {
    fn run(&self, table: &KernelTable) -> Result<Written, String> {
        let count = self.x.len() / self.float.size();
        let mut x = Guarded::new(self.x.len(), self.offset);
        x.get().copy_from_slice(self.x);
        let mut values = Guarded::new(count, self.offset + 1);
        let mut scales = Vec::new();
        let grid = match self.grid {
            Ok(group_size) => {
                let group_size = GroupSize::new(group_size as u64).unwrap();
                let rows = count.checked_div(self.cols).unwrap_or(0);
                scales = vec![f32::NAN; rows * group_size.count(self.cols)];
                let scales = &mut scales;
                ActivationGrid::Dynamic { group_size, scales }
            }
            Err((scale, zero_point)) => ActivationGrid::Static { scale, zero_point },
        };
        let result = table.quantize_activations(QuantizeActivations {
            float: self.float,
            cols: self.cols,
            x: x.get(),
            input_scale: self.input_scale,
            width: self.width,
            grid,
            values: values.get(),
        });
        let values = values.check()?;
        Ok(result.map(|()| (values, scales)))
    }

    /// Value by value.
    fn expected(&self) -> Written {
        let count = self.x.len() / self.float.size();
        let values = (0..count).map(|i| {
            let value = self.float.get(self.x, i);
            self.input_scale
                .map_or(value, |scale| value / scale[i % self.cols])
        });
        let values: Vec<f32> = values.collect();
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in values.chunks(self.cols.max(1)) {
            match self.grid {
                Ok(group_size) => {
                    let top = if self.width == Width::Eight {
                        127.0
                    } else {
                        7.0
                    };
                    let span = if group_size == 0 {
                        self.cols
                    } else {
                        group_size
                    };
                    for group in row.chunks(span) {
                        let largest = group.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                        let zero = largest <= 1e-30;
                        scales.push(if zero { 0.0 } else { largest / top });
                        let inverse = if zero { 0.0 } else { top / largest };
                        codes.extend(
                            group
                                .iter()
                                .map(|x| (x * inverse).round_ties_even() as i8 as u8),
                        );
                    }
                }
                Err((scale, zero_point)) => {
                    let top = if self.width == Width::Eight {
                        255.0
                    } else {
                        15.0
                    };
                    let inverse = 1.0 / scale;
                    let code =
                        |x: &f32| (x * inverse + zero_point).round_ties_even().clamp(0.0, top);
                    codes.extend(row.iter().map(|x| code(x) as u8));
                }
            }
        }
        Ok((codes, scales))
    }

    fn check(&self, table: &KernelTable) -> Result<(), String> {
        let found = self.run(table)?;
        match found == self.expected() {
            true => Ok(()),
            false => Err(format!(
                "{} activations of {:?}, {} columns, {:?}, {:?}, divided {}",
                self.x.len() / self.float.size(),
                self.float,
                self.cols,
                self.width,
                self.grid,
                self.input_scale.is_some()
            )),
        }
    }
}

const GRIDS: [Result<usize, (f32, f32)>; 7] = [
    Ok(0),
    Ok(16),
    Ok(48),
    Ok(128),
    Err((0.0123, 117.3)),
    Err((1.0, 0.0)),
    Err((3e-38, -4.5)),
];

/// The first difference between `table` and the definition.
pub(super) fn compare(table: &KernelTable) -> Result<(), String> {
    let lengths = (0..=70).chain([127, 128, 129, 145, 703, 1025]);
    for cols in lengths {
        let input_scale: Vec<f32> = (0..cols).map(|i| 0.3 + (i % 7) as f32 * 0.37).collect();
        for (&float, kind) in Float::ALL
            .iter()
            .flat_map(|float| (0..7).map(move |kind| (float, kind)))
        {
            if (float, kind) == (Float::F16, 4) {
                // Too large for it.
                continue;
            }
            let x = weights(kind, float, cols * (1 + cols % 3));
            for (i, grid) in GRIDS.into_iter().enumerate() {
                let case = Case {
                    float,
                    cols,
                    x: &x,
                    input_scale: ((i + cols + kind) % 2 == 0).then_some(&input_scale),
                    width: [Width::Eight, Width::Four][(i + cols + kind) / 2 % 2],
                    grid,
                    offset: (i + cols) % 5,
                };
                case.check(table)?;
            }
        }
    }
    Ok(())
}

#[test]
fn every_table_quantizes_activations_as_defined() {
    for table in all() {
        compare(table).unwrap_or_else(|case| panic!("{}: {case}", table.isa().name()));
    }
}

#[test]
fn the_harness_catches_activations_rounded_otherwise() {
    let faulty = &table!(Isa::Scalar, Faulty<HALF_UP>, Scalar);
    assert!(compare(faulty).unwrap_err().contains("activations of"));
}

/// What is found by hand.
#[test]
fn activations_become_what_they_should() {
    let bytes = |x: &[f32]| -> Vec<u8> { x.iter().flat_map(|x| x.to_le_bytes()).collect() };
    // 1.5 and 2.5 round to 2; -127 is the largest.
    let x = bytes(&[1.5, 2.5, -0.5, -127.0, 3.5, 0.0, -1.5, 126.5]);
    let case = Case {
        float: Float::F32,
        cols: 4,
        x: &x,
        input_scale: None,
        width: Width::Eight,
        grid: Ok(0),
        offset: 0,
    };
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let signed = |case: Case<'_>| {
        let (values, scales) = case.run(scalar).unwrap().unwrap();
        (values.iter().map(|v| *v as i8).collect::<Vec<i8>>(), scales)
    };
    // The second row by 127 / 126.5: 3.514, 0, -1.506, 127.
    let expected = (vec![2, 2, 0, -127, 4, 0, -2, 127], vec![1.0, 126.5 / 127.0]);
    assert_eq!(signed(case), expected);
    let four = Case {
        width: Width::Four,
        cols: 8,
        ..case
    };
    assert_eq!(
        signed(four),
        (vec![0, 0, 0, -7, 0, 0, 0, 7], vec![127.0 / 7.0])
    );
    let scale = [0.5, 1.0, 1.0, 127.0];
    let divided = Case {
        input_scale: Some(&scale),
        ..case
    };
    // 3, 2.5, -0.5, -1 by 127 / 3, and 7, 0, -1.5, 0.996 by 127 / 7.
    let expected = (
        vec![127, 106, -21, -42, 127, 0, -27, 18],
        vec![3.0 / 127.0, 7.0 / 127.0],
    );
    assert_eq!(signed(divided), expected);
    let fixed = Case {
        width: Width::Four,
        grid: Err((0.5, 3.0)),
        ..case
    };
    let values = fixed.run(scalar).unwrap().unwrap().0;
    assert_eq!(values, [6, 8, 2, 0, 10, 3, 0, 15]);
}

#[test]
fn what_is_not_finite_is_named() {
    for (&float, bad) in Float::ALL
        .iter()
        .flat_map(|f| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(move |bad| (f, bad)))
    {
        for (cols, at) in [(1, 0), (17, 16), (40, 3), (40, 39), (70, 64)] {
            let mut x = weights(0, float, 3 * cols);
            let i = 2 * cols + at;
            let place = &mut x[i * float.size()..(i + 1) * float.size()];
            match float {
                Float::F32 => place.copy_from_slice(&bad.to_le_bytes()),
                Float::F16 => place.copy_from_slice(&half::f16::from_f32(bad).to_le_bytes()),
                Float::BF16 => place.copy_from_slice(&half::bf16::from_f32(bad).to_le_bytes()),
            }
            let scale = vec![2.0; cols];
            for (table, grid) in all().into_iter().flat_map(|t| GRIDS.map(|grid| (t, grid))) {
                for input_scale in [None, Some(scale.as_slice())] {
                    let case = Case {
                        float,
                        cols,
                        x: &x,
                        input_scale,
                        width: Width::Eight,
                        grid,
                        offset: 0,
                    };
                    let fault = case.run(table).unwrap().unwrap_err();
                    assert_eq!((fault.row, fault.col), (2, at), "{case:?}");
                    assert!(!fault.value.is_finite());
                }
            }
        }
    }
}

#[test]
fn a_quotient_that_overflows_is_named() {
    let x: Vec<u8> = [1.0f32, 1e10, 2.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let scale = [1.0, 1e-30, 1.0];
    for table in all() {
        let mut case = Case {
            float: Float::F32,
            cols: 3,
            x: &x,
            input_scale: Some(&scale),
            width: Width::Eight,
            grid: Ok(0),
            offset: 0,
        };
        let fault = case.run(table).unwrap().unwrap_err();
        assert_eq!((fault.row, fault.col, fault.value), (0, 1, f32::INFINITY));
        // A static grid clamps it.
        case.grid = Err((1.0, 0.0));
        assert_eq!(case.run(table).unwrap().unwrap().0, [1, 255, 2]);
    }
}

proptest! {
    /// Any finite values, lengths, offsets and grids.
    #[test]
    fn any_activations_are_quantized_as_defined(
        (float, x) in (0usize..3).prop_flat_map(|f| {
            let float = Float::ALL[f];
            (Just(float), prop::collection::vec(finite(float), 1..500))
        }),
        grid in prop_oneof![
            prop_oneof![Just(0usize), Just(16), Just(32), Just(1024)].prop_map(Ok),
            (-30i32..30, -300.0f32..300.0).prop_map(|(e, z)| Err((1.37 * 2.0f32.powi(e), z))),
        ],
        four: bool,
        offset in 0usize..8,
    ) {
        let cols = x.len();
        let x = x.concat();
        let width = if four { Width::Four } else { Width::Eight };
        let case = Case { float, cols, x: &x, input_scale: None, width, grid, offset };
        for table in all() {
            prop_assert_eq!(case.check(table), Ok(()), "{}", table.isa().name());
        }
    }
}
