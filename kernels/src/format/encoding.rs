//! What a matrix is stored as: the formats there are, and what is known of each.
//!
//! A new one is a row of [`SPECS`] and a variant of [`Encoding`]; the compiler leads to the rest
//! of this file, and to its codec (`kernel/codec.rs`).

use core::fmt;
use core::str::FromStr;

use super::float::ScaleDtype;
use super::layout::{GroupSize, Layout, Scheme};
use super::method::{Gain, Method};
use super::names::UnknownName;
use super::width::Width;

/// All that is known of a format, whatever matrix is stored in it.
#[derive(Debug)]
pub struct Spec {
    /// The format, whose number is that of its row.
    pub format: Format,
    /// The name in files, settings and reports.
    pub name: &'static str,
    /// The number of its constant in the C API.
    pub c_code: i32,
    /// The value of the setting `bit_width` that asks for it.
    pub setting: &'static str,
    /// Bits of one code.
    pub bits: usize,
    /// Columns that are encoded together; 1 where each has a code of its own.
    pub block: usize,
    /// The encoding, given what there is to choose.
    pub encoding: fn(Choice) -> Encoding,
    /// Whether scheme, group size and scale dtype are the user's choice.
    pub has_choices: bool,
    /// What the fallback ladder tries next; `None` before the tensor is kept.
    pub climbs_to: Option<Format>,
    /// Whether amplitude is restored, unless the user says.
    pub gain: Gain,
    /// The methods that can make it, the best one without calibration first.
    pub methods: &'static [Method],
    /// What can hold it: names of sinks.
    pub sinks: &'static [&'static str],
    /// Schemes and group sizes that a budget tries where the user names none.
    pub usual: &'static [(Scheme, &'static [u16])],
}

/// Writes down [`Format`] and [`SPECS`] from one row for each format.
macro_rules! specs {
    ($($(#[doc = $doc:literal])+ $format:ident { $($column:ident: $value:expr,)+ })+) => {
        /// The name of an encoding, in the order in which messages list them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Format {
            $($(#[doc = $doc])+ $format,)+
        }

        impl Format {
            /// Every format, in the order in which messages list them.
            pub const ALL: &'static [Self] = &[$(Self::$format),+];
        }

        /// The table of formats; [`Format::spec`] is the row of one.
        pub static SPECS: [Spec; Format::ALL.len()] = [
            $(Spec { format: Format::$format, $($column: $value,)+ }),+
        ];
    };
}

/// Every method, as for uniform codes.
const ALL_METHODS: &[Method] = &[Method::Lsq, Method::MinMax, Method::Gptq];

specs! {
    /// Uniform codes of 2 bits.
    Int2 {
        name: "int2",
        c_code: 2,
        setting: "2",
        bits: 2,
        block: 1,
        encoding: |choice| choice.uniform(Width::Two),
        has_choices: true,
        climbs_to: Some(Format::Int4),
        gain: Gain::Unit,
        methods: ALL_METHODS,
        sinks: &["parquet"],
        // Biases are worth their bits at 2 bits only.
        usual: &[(Scheme::Symmetric, &[0, 256, 128, 64, 32]), (Scheme::Affine, &[128, 64, 32])],
    }
    /// Uniform codes of 4 bits.
    Int4 {
        name: "int4",
        c_code: 4,
        setting: "4",
        bits: 4,
        block: 1,
        encoding: |choice| choice.uniform(Width::Four),
        has_choices: true,
        climbs_to: Some(Format::Int8),
        gain: Gain::Unit,
        methods: ALL_METHODS,
        sinks: &["parquet"],
        usual: &[(Scheme::Symmetric, &[256, 128, 64, 32])],
    }
    /// Uniform codes of 8 bits.
    Int8 {
        name: "int8",
        c_code: 8,
        setting: "8",
        bits: 8,
        block: 1,
        encoding: |choice| choice.uniform(Width::Eight),
        has_choices: true,
        climbs_to: None,
        // They lose too little to be made up for.
        gain: Gain::Lsq,
        methods: ALL_METHODS,
        sinks: &["parquet"],
        usual: &[(Scheme::Symmetric, &[128])],
    }
}

/// The names of all formats.
const NAMES: [&str; SPECS.len()] = {
    let mut names = [""; SPECS.len()];
    let mut i = 0;
    while i < names.len() {
        // The table is in the order of the enum.
        assert!(SPECS[i].format as usize == i);
        names[i] = SPECS[i].name;
        i += 1;
    }
    names
};

impl Format {
    /// What is known of it.
    pub const fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }

    /// The name in files, settings and reports.
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// The encoding of this format, given what there is to choose.
    pub fn encoding(self, choice: Choice) -> Encoding {
        (self.spec().encoding)(choice)
    }

    /// Bits of a uniform code of this format; `None` where codes are not uniform.
    pub fn width(self) -> Option<Width> {
        self.encoding(Choice::DEFAULT).layout().map(|l| l.width)
    }

    /// The format of uniform codes.
    pub const fn uniform(width: Width) -> Self {
        match width {
            Width::Two => Self::Int2,
            Width::Four => Self::Int4,
            Width::Eight => Self::Int8,
        }
    }

    /// The method that makes it where `wanted` is asked for: that one, or the best there is.
    pub fn method(self, wanted: Method) -> Method {
        let methods = self.spec().methods;
        match methods.contains(&wanted) {
            true => wanted,
            false => methods[0],
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let spec = SPECS.iter().find(|spec| spec.name == text);
        let unknown = const { UnknownName::new("format", &NAMES) };
        spec.map(|spec| spec.format).ok_or(unknown)
    }
}

/// What some formats leave to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// With or without biases.
    pub scheme: Scheme,
    /// Weights per scale.
    pub group_size: GroupSize,
    /// Storage of scales and biases.
    pub scale_dtype: ScaleDtype,
}

impl Choice {
    /// What is chosen for a format that leaves nothing to choose, should another one follow it.
    pub const DEFAULT: Self = Self {
        scheme: Scheme::Symmetric,
        group_size: GroupSize::ROW,
        scale_dtype: ScaleDtype::F16,
    };

    const fn uniform(self, width: Width) -> Encoding {
        Encoding::Uniform(Layout {
            width,
            scheme: self.scheme,
            group_size: self.group_size,
            scale_dtype: self.scale_dtype,
        })
    }
}

/// What a matrix is stored as: all that decoding its planes takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Uniform codes, with a scale and perhaps a bias for each group.
    Uniform(Layout),
}

/// What each encoding has to say.
impl Encoding {
    /// The name of the encoding.
    pub const fn format(self) -> Format {
        match self {
            Self::Uniform(layout) => Format::uniform(layout.width),
        }
    }

    /// Bytes of a row's codes, scales and biases; 0 for a plane that it does not have.
    #[inline]
    pub const fn plane_bytes(self, cols: usize) -> [usize; 3] {
        match self {
            Self::Uniform(layout) => layout.plane_bytes(cols),
        }
    }

    /// Columns that share a scale, all groups of a row but the last having as many; never 0.
    #[inline]
    pub const fn span(self, cols: usize) -> usize {
        match self {
            Self::Uniform(layout) => layout.group_size.span(cols),
        }
    }

    /// The layout of uniform codes; `None` where codes are not uniform.
    #[inline]
    pub const fn layout(self) -> Option<Layout> {
        match self {
            Self::Uniform(layout) => Some(layout),
        }
    }
}

/// What follows from that.
impl Encoding {
    /// What is known of the format.
    pub const fn spec(self) -> &'static Spec {
        self.format().spec()
    }

    /// The name in files and reports.
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// With or without biases, where that is a choice.
    pub fn scheme(self) -> Option<Scheme> {
        self.layout().map(|layout| layout.scheme)
    }

    /// Weights per scale, where that is a choice.
    pub fn group_size(self) -> Option<GroupSize> {
        self.layout().map(|layout| layout.group_size)
    }

    /// Storage of scales and biases, where that is a choice.
    pub fn scale_dtype(self) -> Option<ScaleDtype> {
        self.layout().map(|layout| layout.scale_dtype)
    }

    /// What was chosen.
    pub const fn choice(self) -> Choice {
        match self.layout() {
            Some(layout) => Choice {
                scheme: layout.scheme,
                group_size: layout.group_size,
                scale_dtype: layout.scale_dtype,
            },
            None => Choice::DEFAULT,
        }
    }

    /// The encoding with something else chosen, as far as there is a choice.
    pub fn chosen(self, choose: impl FnOnce(&mut Choice)) -> Self {
        let mut choice = self.choice();
        choose(&mut choice);
        self.format().encoding(choice)
    }

    /// The encoding with scales stored as f32, where that is a choice.
    pub fn with_f32_scales(self) -> Option<Self> {
        let has_choices = self.spec().has_choices;
        has_choices.then(|| self.chosen(|choice| choice.scale_dtype = ScaleDtype::F32))
    }

    /// Whether scales are a plane of their own.
    pub const fn has_scales(self) -> bool {
        self.layout().is_some()
    }

    /// Whether biases are a plane of their own.
    pub const fn has_biases(self) -> bool {
        matches!(
            self.layout(),
            Some(Layout {
                scheme: Scheme::Affine,
                ..
            })
        )
    }

    /// Bytes of all planes of a row.
    #[inline]
    pub const fn row_bytes(self, cols: usize) -> usize {
        let [codes, scales, biases] = self.plane_bytes(cols);
        codes + scales + biases
    }

    /// True bits per weight of rows of `cols` weights, scales and biases counted.
    pub fn bits_per_weight(self, cols: usize) -> f64 {
        self.row_bytes(cols) as f64 * 8.0 / cols as f64
    }

    /// Groups of a row that have a scale each.
    #[inline]
    pub const fn groups(self, cols: usize) -> usize {
        cols.div_ceil(self.span(cols))
    }
}

impl From<Layout> for Encoding {
    fn from(layout: Layout) -> Self {
        Self::Uniform(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names_and_numbers_of_their_own() {
        for (i, spec) in SPECS.iter().enumerate() {
            assert_eq!(spec.name.parse(), Ok(spec.format));
            let others = SPECS[..i].iter();
            for other in others {
                assert_ne!(spec.name, other.name);
                assert_ne!(spec.setting, other.setting);
                assert_ne!(spec.c_code, other.c_code);
            }
            assert!(spec.c_code > 0 && !spec.methods.is_empty() && !spec.sinks.is_empty());
        }
        let message = "int3".parse::<Format>().unwrap_err().to_string();
        assert!(
            message.starts_with("format must be one of: int2, int4, int8"),
            "{message}"
        );
    }

    #[test]
    fn encodings_are_of_their_format() {
        for spec in &SPECS {
            let encoding = spec.format.encoding(Choice::DEFAULT);
            assert_eq!(encoding.format(), spec.format);
            let codes = encoding.plane_bytes(256 * spec.block)[0] * 8;
            assert!(codes >= 256 * spec.block * spec.bits, "{}", spec.name);
            assert_eq!(encoding.scheme().is_some(), spec.has_choices);
            assert_eq!(encoding.with_f32_scales().is_some(), spec.has_choices);
        }
    }

    #[test]
    fn bits_per_weight_count_scales() {
        let encoding = Format::Int2.encoding(Choice {
            scheme: Scheme::Affine,
            group_size: GroupSize::new(128).unwrap(),
            scale_dtype: ScaleDtype::F16,
        });
        // b + 32/g = 2.25 bits for each of 4096 weights.
        assert_eq!(encoding.bits_per_weight(4096), 2.25);
    }

    #[test]
    fn ladders_end() {
        for spec in &SPECS {
            let mut format = spec.format;
            let mut steps = 0;
            while let Some(next) = format.spec().climbs_to {
                assert!(next.spec().bits > format.spec().bits, "{format}");
                format = next;
                steps += 1;
                assert!(steps < SPECS.len());
            }
        }
    }
}
