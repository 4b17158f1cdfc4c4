//! Finds which weights share a scale, from the shapes of weights and scales.

use std::collections::BTreeSet;

/// Blocks of weights that share a scale. A block has a size along each dimension of the weight; the
/// last block along a dimension may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Dimensions of the weight, at least one.
    dims: Vec<usize>,
    /// Size of a block along each dimension.
    sizes: Vec<usize>,
    /// Distance in scales between neighbouring blocks along each dimension.
    strides: Vec<usize>,
}

/// Possible block sizes along one dimension, from its two lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Only this size makes sense.
    Certain(usize),
    /// Either a power of two with a short last block, or this size, which divides the dimension.
    Either(usize, usize),
    /// Any size in this range, none of which is more likely.
    Range(usize, usize),
}

/// Returns the possible block sizes if `scales` cover `weights`. Kernels for scaled matrices use
/// blocks of 16, 32, 64 or 128, so a power of two is more likely than its neighbours.
fn size(weights: usize, scales: usize) -> Result<Size, ()> {
    if scales == 0 || scales > weights {
        return Err(());
    }
    if scales == 1 {
        return Ok(Size::Certain(weights));
    }
    // ceil(weights / size) == scales
    let least = weights.div_ceil(scales);
    let most = (weights - 1) / (scales - 1);
    if least > most {
        return Err(());
    }
    let power = least.next_power_of_two();
    let exact = weights.is_multiple_of(scales);
    Ok(match (power <= most, exact) {
        _ if least == most => Size::Certain(least),
        (true, true) if power != least => Size::Either(power, least),
        (true, _) => Size::Certain(power),
        (false, true) => Size::Certain(least),
        (false, false) => Size::Range(least, most),
    })
}

/// Scales over a weight, whose block sizes may still be ambiguous.
#[derive(Debug)]
pub(super) struct Fit {
    dims: Vec<usize>,
    /// Number of scales along each dimension.
    counts: Vec<usize>,
    sizes: Vec<Size>,
}

impl Fit {
    /// Fits `scales` to `weights`: one scale for all; a vector with one for each row; as many
    /// dimensions, each divided into blocks; or one dimension more, of length 1, if rows are
    /// divided into groups of one size.
    ///
    /// # Errors
    /// Says that the shapes do not fit.
    pub(super) fn new(weights: &[usize], scales: &[usize]) -> Result<Self, String> {
        let refuse = || format!("scales of shape {scales:?} do not fit weights of {weights:?}");
        let dims = match weights {
            [] => vec![1],
            dims => dims.to_vec(),
        };
        let one = scales.iter().product::<usize>() == 1;
        let counts = match scales {
            _ if one => vec![1; dims.len()],
            [rows] if dims.len() > 1 && *rows == dims[0] => {
                let mut counts = vec![1; dims.len()];
                counts[0] = *rows;
                counts
            }
            [counts @ .., 1] if scales.len() == dims.len() + 1 => {
                let last = dims.len() - 1;
                if counts[last] == 0 || !dims[last].is_multiple_of(counts[last]) {
                    return Err(refuse());
                }
                counts.to_vec()
            }
            _ if scales.len() == dims.len() => scales.to_vec(),
            _ => return Err(refuse()),
        };
        if dims.contains(&0) || counts.contains(&0) {
            return Err(refuse());
        }
        let groups = scales.len() == dims.len() + 1;
        let mut sizes = Vec::with_capacity(dims.len());
        for (&weights, &scales) in dims.iter().zip(&counts) {
            sizes.push(match groups {
                true if weights.is_multiple_of(scales) => Size::Certain(weights / scales),
                _ => size(weights, scales).map_err(|()| refuse())?,
            });
        }
        Ok(Self {
            dims,
            counts,
            sizes,
        })
    }

    /// Returns the block sizes that are certain.
    pub(super) fn certain(&self) -> impl Iterator<Item = usize> {
        let places = self.sizes.iter().zip(self.dims.iter().zip(&self.counts));
        places.filter_map(|(size, (&dim, &count))| match *size {
            Size::Certain(size) if count > 1 && count < dim => Some(size),
            _ => None,
        })
    }

    /// Returns the blocks. `said` are sizes along the last dimensions given in the model's files,
    /// and `known` those of its other weights.
    ///
    /// # Errors
    /// Says that several sizes are possible.
    pub(super) fn blocks(&self, said: &[usize], known: &BTreeSet<usize>) -> Result<Blocks, String> {
        let mut sizes = Vec::with_capacity(self.dims.len());
        for (i, size) in self.sizes.iter().enumerate() {
            let (dim, count) = (self.dims[i], self.counts[i]);
            let doubt = |sizes: String| {
                Err(format!(
                    "{count} scales over {dim} weights may belong to blocks of {sizes}; set \
                     weight_block_size in config.json"
                ))
            };
            let place = (i + said.len()).checked_sub(self.dims.len());
            let said = place.map(|place| said[place]);
            let said = said.filter(|&size| size > 0 && dim.div_ceil(size) == count);
            sizes.push(match (said, *size) {
                (Some(said), _) => said.min(dim),
                (_, Size::Certain(size)) => size,
                (_, Size::Either(power, exact)) => {
                    match (known.contains(&power), known.contains(&exact)) {
                        (true, false) => power,
                        (false, true) => exact,
                        _ => return doubt(format!("{exact} or of {power}")),
                    }
                }
                (_, Size::Range(least, most)) => {
                    let mut within = known.range(least..=most);
                    match (within.next(), within.next()) {
                        (Some(&size), None) => size,
                        _ => return doubt(format!("{least} to {most}")),
                    }
                }
            });
        }
        let mut strides = vec![1; self.dims.len()];
        for i in (1..self.dims.len()).rev() {
            strides[i - 1] = strides[i] * self.counts[i];
        }
        Ok(Blocks {
            dims: self.dims.clone(),
            sizes,
            strides,
        })
    }
}

impl Blocks {
    /// Returns the number of weights in a row: the last dimension.
    pub(super) fn cols(&self) -> usize {
        *self.dims.last().expect("a dimension")
    }

    /// Returns the number of neighbouring weights in a row that share a scale.
    pub(super) fn run(&self) -> usize {
        *self.sizes.last().expect("a dimension")
    }

    /// Returns the size of a block along each dimension.
    pub(super) fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Returns the index of the first scale of a row; rows are counted over the whole weight.
    pub(super) fn first_scale(&self, row: usize) -> usize {
        let (mut row, mut scale) = (row, 0);
        for i in (0..self.dims.len() - 1).rev() {
            scale += row % self.dims[i] / self.sizes[i] * self.strides[i];
            row /= self.dims[i];
        }
        scale
    }

    /// Describes the blocks: `one per tensor`, `one per row`, `one per 128x128 block`.
    pub(super) fn describe(&self) -> String {
        let whole = |i: usize| self.sizes[i] == self.dims[i];
        let all = 0..self.dims.len();
        if all.clone().all(whole) {
            return "one per tensor".to_owned();
        }
        if self.sizes[0] == 1 && all.clone().skip(1).all(whole) {
            return "one per row".to_owned();
        }
        let sizes: Vec<String> = self.sizes.iter().map(usize::to_string).collect();
        format!("one per {} block", sizes.join("x"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(weights: &[usize], scales: &[usize]) -> Result<Vec<usize>, String> {
        let blocks = Fit::new(weights, scales)?.blocks(&[], &BTreeSet::new())?;
        Ok(blocks.sizes)
    }

    #[test]
    fn shapes_imply_blocks() {
        for (weights, scales, expected) in [
            (&[6, 8][..], &[][..], &[6, 8][..]),
            (&[6, 8], &[1], &[6, 8]),
            (&[6, 8], &[1, 1], &[6, 8]),
            (&[6, 8], &[6], &[1, 8]),
            (&[6, 8], &[6, 1], &[1, 8]),
            (&[6, 8], &[1, 8], &[6, 1]),
            (&[6, 8], &[6, 8], &[1, 1]),
            (&[512, 640], &[4, 5], &[128, 128]),
            (&[303, 130], &[5, 3], &[64, 64]),
            (&[576, 7168], &[5, 56], &[128, 128]),
            // One of these alone would be ambiguous.
            (&[64, 96], &[64, 3], &[1, 32]),
            (&[7, 96], &[7, 3, 1], &[1, 32]),
            (&[7, 300], &[7, 3, 1], &[1, 100]),
            (&[320, 4, 3, 3], &[320], &[1, 4, 3, 3]),
            (&[320, 4, 3, 3], &[320, 1, 1, 1], &[1, 4, 3, 3]),
            (&[3, 256, 384], &[3, 2, 3], &[1, 128, 128]),
            (&[3, 256, 384], &[3, 1, 1], &[1, 256, 384]),
            (&[5], &[5], &[1]),
            (&[], &[], &[1]),
            // No power of two is possible.
            (&[768, 8], &[8, 1], &[96, 8]),
        ] {
            let found = fit(weights, scales);
            assert_eq!(found.as_deref(), Ok(expected), "{weights:?} {scales:?}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_or_do_not_tell_are_refused() {
        for (weights, scales, part) in [
            (&[6, 8][..], &[8][..], "do not fit"),
            (&[6, 8], &[7, 1], "do not fit"),
            (&[6, 8], &[5, 1], "do not fit"),
            (&[6, 8], &[0, 1], "do not fit"),
            (&[6, 0], &[6, 0, 1], "do not fit"),
            (&[0, 8], &[1], "do not fit"),
            (&[6, 8], &[6, 3, 1], "do not fit"),
            (&[6, 8], &[2, 2, 2], "do not fit"),
            (&[200, 8], &[2, 1], "blocks of 100 or of 128"),
            (&[250, 8], &[3, 1], "blocks of 84 to 124"),
        ] {
            let message = fit(weights, scales).unwrap_err();
            assert!(message.contains(part), "{weights:?} {scales:?}: {message}");
        }
    }

    #[test]
    fn what_is_known_of_other_weights_settles_doubts() {
        let certain = |weights: &[usize], scales: &[usize]| -> BTreeSet<usize> {
            Fit::new(weights, scales).unwrap().certain().collect()
        };
        assert!(certain(&[300, 8], &[3, 1]).is_empty(), "100 or 128");
        let known = certain(&[576, 8], &[5, 1]);
        assert_eq!(known, BTreeSet::from([128]));
        let sizes = |weights: &[usize], scales: &[usize], said: &[usize], known| {
            let blocks = Fit::new(weights, scales).unwrap().blocks(said, known);
            blocks.map(|blocks| blocks.sizes)
        };
        let one = |sizes: [usize; 2]| Ok(sizes.to_vec());
        assert_eq!(sizes(&[200, 8], &[2, 1], &[], &known), one([128, 8]));
        let known = BTreeSet::from([96]);
        assert_eq!(sizes(&[250, 8], &[3, 1], &[], &known), one([96, 8]));
        // Sizes given in the files count if they are possible.
        let none = BTreeSet::new();
        assert_eq!(sizes(&[200, 8], &[2, 1], &[100, 8], &none), one([100, 8]));
        assert_eq!(sizes(&[512, 8], &[4, 1], &[64, 64], &none), one([128, 8]));
    }

    #[test]
    fn rows_know_their_first_scale() {
        let known = BTreeSet::new();
        let fit = Fit::new(&[2, 300, 256], &[2, 3, 2]).unwrap();
        let blocks = fit.blocks(&[128, 128], &known).unwrap();
        assert_eq!((blocks.cols(), blocks.run()), (256, 128));
        for (row, scale) in [(0, 0), (127, 0), (128, 2), (299, 4), (300, 6), (599, 10)] {
            assert_eq!(blocks.first_scale(row), scale, "{row}");
        }
        // The same scales for every matrix of a stack.
        let blocks = Fit::new(&[2, 4, 6], &[1, 4, 1]).unwrap();
        let blocks = blocks.blocks(&[], &known).unwrap();
        assert_eq!((blocks.first_scale(3), blocks.first_scale(5)), (3, 1));
        assert_eq!(blocks.describe(), "one per 2x1x6 block");
    }
}
