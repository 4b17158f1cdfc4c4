//! The ways to store a tensor that a budget or a search chooses from.

use std::fmt;
use std::str::FromStr;

use super::rules::{parse_group_size, parse_named};
use crate::error::{Error, Result};
use crate::format::{Format, GroupSize, SPECS, Scheme};

/// One way to store a tensor. `None` follows the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Width of the codes; `None` keeps the tensor.
    pub format: Option<Format>,
    /// Weights per scale.
    pub group_size: Option<GroupSize>,
    /// With or without biases.
    pub scheme: Option<Scheme>,
}

/// The candidates to choose from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Candidates {
    /// The usual candidates, restricted by the settings.
    #[default]
    Auto,
    /// These candidates.
    These(Vec<Candidate>),
}

/// Explicit settings, which restrict the usual candidates.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fixed {
    pub(super) format: Option<Format>,
    pub(super) group_size: Option<GroupSize>,
    pub(super) scheme: Option<Scheme>,
}

impl Candidates {
    pub(super) fn list(&self, fixed: Fixed) -> Vec<Candidate> {
        let keep = Candidate {
            format: None,
            group_size: None,
            scheme: None,
        };
        let Self::Auto = self else {
            let Self::These(these) = self else {
                return Vec::new();
            };
            return these.clone();
        };
        let mut usual = Vec::new();
        let specs = SPECS.iter();
        for spec in specs.filter(|spec| fixed.format.is_none_or(|f| f == spec.format)) {
            let candidate = |scheme, size: u16| Candidate {
                format: Some(spec.format),
                group_size: fixed.group_size.or(GroupSize::new(size.into())),
                scheme: Some(fixed.scheme.unwrap_or(scheme)),
            };
            for &(scheme, sizes) in spec.usual {
                for candidate in sizes.iter().map(|&size| candidate(scheme, size)) {
                    if !usual.contains(&candidate) {
                        usual.push(candidate);
                    }
                }
            }
        }
        usual.push(keep);
        usual
    }
}

/// Parses `auto`, or `int2:256,int4:128:affine,int8,keep`.
impl FromStr for Candidates {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const KEY: &str = "candidates";
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let one = |text: &str| -> Result<Candidate> {
            let mut parts = text.trim().split(':');
            let format = match parts.next().unwrap_or_default() {
                "keep" => None,
                format => Some(parse_named(KEY, format)?),
            };
            let (mut group_size, mut scheme) = (None, None);
            for part in parts {
                match part.starts_with(|c: char| c.is_ascii_digit()) {
                    true => group_size = Some(parse_group_size(KEY, part)?),
                    false => scheme = Some(parse_named(KEY, part)?),
                }
            }
            if format.is_none() && (group_size.is_some() || scheme.is_some()) {
                let reason = format!("'{text}': keep has neither groups nor a scheme");
                return Err(Error::config(KEY, reason));
            }
            Ok(Candidate {
                format,
                group_size,
                scheme,
            })
        };
        let these: Vec<Candidate> = text.split(',').map(one).collect::<Result<_>>()?;
        if these.len() > MOST {
            let reason = format!("{} candidates exceed the limit of {MOST}", these.len());
            return Err(Error::config(KEY, reason));
        }
        Ok(Self::These(these))
    }
}

/// The most candidates: every tensor is tried with each.
const MOST: usize = 64;

impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::These(these) = self else {
            return f.write_str("auto");
        };
        for (i, candidate) in these.iter().enumerate() {
            let format = candidate.format.map_or("keep", Format::name);
            write!(f, "{}{format}", if i > 0 { "," } else { "" })?;
            if let Some(size) = candidate.group_size {
                write!(f, ":{size}")?;
            }
            if let Some(scheme) = candidate.scheme {
                write!(f, ":{scheme}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_read_and_write_the_same_text() {
        for text in ["auto", "int2:256,int4:128:affine,int8,keep", "int2:0"] {
            assert_eq!(text.parse::<Candidates>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_candidates_say_what_is_allowed() {
        for (text, part) in [
            ("int3", "format must be one of: int2, int4, int8"),
            ("int2:100", "invalid value '100' (expected a multiple of 16"),
            ("int2:odd", "scheme must be one of"),
            ("keep:16", "keep has neither groups"),
            ("", "format must be one of"),
        ] {
            let message = text.parse::<Candidates>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn what_is_fixed_stays_fixed() {
        let fixed = Fixed {
            format: None,
            group_size: GroupSize::new(128),
            scheme: Some(Scheme::Symmetric),
        };
        let found = Candidates::Auto.list(fixed);
        let formats: Vec<_> = found.iter().map(|candidate| candidate.format).collect();
        let each = [
            Some(Format::Int2),
            Some(Format::Int4),
            Some(Format::Int8),
            None,
        ];
        assert_eq!(formats, each);
    }
}
