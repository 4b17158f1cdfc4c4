//! The three deployment profiles: defaults under every other setting.

use crate::format::{Format, GroupSize};

/// The kind of machine that the model is to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Small devices: 2 bits, groups of 256, 2 threads, streaming.
    Edge,
    /// One machine: 4 bits, groups of 128, all threads. The default.
    Local,
    /// Servers: 8 bits, groups of 64, all threads.
    Cloud,
}

impl Profile {
    /// Every profile.
    pub const ALL: &'static [Self] = &[Self::Edge, Self::Local, Self::Cloud];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Local => "local",
            Self::Cloud => "cloud",
        }
    }

    /// Width of the codes.
    pub fn format(self) -> Format {
        match self {
            Self::Edge => Format::Int2,
            Self::Local => Format::Int4,
            Self::Cloud => Format::Int8,
        }
    }

    /// Weights per scale.
    pub fn group_size(self) -> GroupSize {
        let size = match self {
            Self::Edge => 256,
            Self::Local => 128,
            Self::Cloud => 64,
        };
        GroupSize::new(size).expect("a size of the format")
    }

    /// Whether a run holds little in memory.
    pub fn streaming(self) -> bool {
        self == Self::Edge
    }

    /// Number of timestep groups.
    pub fn time_groups(self) -> u32 {
        match self {
            Self::Edge => 5,
            Self::Local => 10,
            Self::Cloud => 20,
        }
    }

    /// Whether smoothing and rotation are tried, with a calibration.
    pub fn spatial(self) -> bool {
        self != Self::Edge
    }

    /// Cosine that every tensor must reach.
    pub fn min_cosine(self) -> f64 {
        match self {
            Self::Edge => 0.65,
            Self::Local => 0.85,
            Self::Cloud => 0.95,
        }
    }

    /// Threads of a run; 0 means all threads of the machine.
    pub fn threads(self) -> usize {
        match self {
            Self::Edge => 2,
            Self::Local | Self::Cloud => 0,
        }
    }
}
