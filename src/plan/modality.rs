//! What a diffusion model generates.

/// What a diffusion model generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// Text.
    Text,
    /// Programs: text whose names do not distinguish it from other text, so it must be set
    /// explicitly.
    Code,
    /// Images and video: transformers, UNets and VAEs.
    Image,
    /// Audio.
    Audio,
    /// No modality was recognized.
    Unknown,
}

impl Modality {
    /// Every modality.
    pub const ALL: &'static [Self] = &[
        Self::Text,
        Self::Code,
        Self::Image,
        Self::Audio,
        Self::Unknown,
    ];

    /// Order of precedence if a model has marks of several: audio models have parts named like
    /// those of image models, and image models have parts that read text.
    pub(super) const BY_RANK: &'static [Self] = &[Self::Audio, Self::Image, Self::Text];

    /// The name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Code => "code",
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Unknown => "unknown",
        }
    }

    /// Returns the modality with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|modality| modality.name() == name)
    }
}
