//! The work cut into shares for several machines, and these into parts of a folder.

use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::plan::Plan;

/// Bytes of planes after which a part ends.
pub const PART_BYTES: usize = 128 << 20;

/// More shares than this are a mistake.
const MAX_SHARES: usize = 10_000;

/// One of several shares of the work, written `K/N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which one, from 1.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Share {
    /// The K-th of N shares.
    ///
    /// # Errors
    /// There is no such share.
    pub fn new(index: usize, count: usize) -> Result<Self> {
        match (1..=count).contains(&index) && count <= MAX_SHARES {
            true => Ok(Self { index, count }),
            false => Err(Error::config(
                "part",
                format!("'{index}/{count}' is not K/N with K from 1 to N, N at most {MAX_SHARES}"),
            )),
        }
    }

    /// The whole work.
    pub(super) const ALL: Self = Self { index: 1, count: 1 };
}

impl FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        // What is no number is no share either.
        let (index, count) = numbers.unwrap_or((0, 0));
        Self::new(index, count)
            .map_err(|_| Error::config("part", format!("'{text}' is not K/N with K from 1 to N")))
    }
}

/// A part that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedPart {
    /// From 1.
    pub(super) share: usize,
    pub(super) entries: Range<usize>,
}

/// Cuts a plan into shares that are about the same work, and these into parts of whole tensors.
/// Depends on the plan and the two numbers alone, so that all machines cut alike.
pub(super) fn cut(plan: &Plan, shares: usize, part_bytes: usize) -> Vec<PlannedPart> {
    let total: u128 = plan.entries.iter().map(|e| e.source_bytes() as u128).sum();
    let mut parts: Vec<PlannedPart> = Vec::new();
    let (mut before, mut planes) = (0u128, 0usize);
    for (i, entry) in plan.entries.iter().enumerate() {
        let work = entry.source_bytes() as u128;
        // A tensor goes where its middle lies.
        let share = (2 * before + work) * shares as u128 / (2 * total).max(1);
        let share = (share as usize).min(shares - 1) + 1;
        before += work;
        planes = planes.saturating_add(entry.bytes());
        match parts.last_mut() {
            Some(part) if part.share == share && planes <= part_bytes => part.entries.end = i + 1,
            _ => {
                planes = entry.bytes();
                parts.push(PlannedPart {
                    share,
                    entries: i..i + 1,
                });
            }
        }
    }
    if parts.is_empty() {
        parts.push(PlannedPart {
            share: 1,
            entries: 0..0,
        });
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::Config;
    use crate::tensor::{Dtype, Shape, TensorInfo};

    fn plan(sizes: &[usize]) -> Plan {
        let tensors: Vec<TensorInfo> = sizes
            .iter()
            .enumerate()
            .map(|(i, &rows)| TensorInfo {
                name: format!("{i}.weight"),
                dtype: Dtype::BF16,
                shape: Shape::new(vec![rows, 128]).unwrap(),
            })
            .collect();
        let tensors = tensors.iter().map(|tensor| (tensor, Path::new("m")));
        Plan::new(tensors, &Config::new()).unwrap()
    }

    fn parts(sizes: &[usize], shares: usize, part_bytes: usize) -> Vec<(usize, Range<usize>)> {
        let parts = cut(&plan(sizes), shares, part_bytes).into_iter();
        parts.map(|part| (part.share, part.entries)).collect()
    }

    #[test]
    fn parts_end_where_planes_pass_the_limit() {
        // A row of 128 int4 codes and a scale takes 66 bytes.
        assert_eq!(parts(&[10, 10, 10], 1, 1320), [(1, 0..2), (1, 2..3)]);
        assert_eq!(
            parts(&[10, 10, 10], 1, 1319),
            [(1, 0..1), (1, 1..2), (1, 2..3)]
        );
        // One tensor may pass it.
        assert_eq!(parts(&[100], 1, 10), [(1, 0..1)]);
        assert_eq!(parts(&[], 3, 10), [(1, 0..0)]);
    }

    #[test]
    fn shares_are_about_the_same_work() {
        let all = usize::MAX;
        assert_eq!(parts(&[5, 5, 5, 5], 2, all), [(1, 0..2), (2, 2..4)]);
        assert_eq!(parts(&[1, 1, 1, 9], 2, all), [(1, 0..3), (2, 3..4)]);
        // One that is too large for a share leaves others empty.
        assert_eq!(
            parts(&[1, 90, 1], 4, all),
            [(1, 0..1), (3, 1..2), (4, 2..3)]
        );
        // A share's parts are cut on their own.
        assert_eq!(
            parts(&[10, 10, 10, 10], 2, 700),
            [(1, 0..1), (1, 1..2), (2, 2..3), (2, 3..4)]
        );
    }

    #[test]
    fn shares_are_read_from_text() {
        let share: Share = "2/4".parse().unwrap();
        assert_eq!((share.index, share.count), (2, 4));
        for text in [
            "0/4",
            "5/4",
            "4",
            "/",
            "a/b",
            "1/0",
            "1/99999999",
            "-1/2",
            "",
        ] {
            let message = text.parse::<Share>().unwrap_err().to_string();
            assert!(
                message.contains(&format!("'{text}' is not K/N")),
                "{message}"
            );
        }
    }
}
