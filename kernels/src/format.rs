//! What a quantized tensor is: bits, groups, symmetric or affine, plane sizes, tiles and packing.
//!
//! `core` only, like the kernels that work on it. The byte layout is described for
//! readers in other languages in `docs/format.md`.

use core::fmt;
use core::str::FromStr;

/// Names an enum's variants as they stand in files, flags and reports, and reads them back.
macro_rules! named {
    ($type:ty, $what:literal, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// Every value, in the order in which messages list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in files, flags and reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(UnknownName { what: $what, allowed: &[$($name),+] }),
                }
            }
        }
    };
}

/// Static quantization of a layer's input at the timesteps from `t_begin` to before `t_end`:
/// `q = x / scale + zero_point`, rounded and clamped to the codes there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationRange {
    /// The first timestep.
    pub t_begin: i32,
    /// The first timestep after them.
    pub t_end: i32,
    /// Distance of two levels; finite and above 0.
    pub scale: f32,
    /// Where 0 is, in levels; finite, no integer.
    pub zero_point: f32,
}

/// A name that is none of those allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownName {
    what: &'static str,
    allowed: &'static [&'static str],
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be one of: ", self.what)?;
        for (i, name) in self.allowed.iter().enumerate() {
            write!(f, "{}{name}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownName {}

/// Width of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// 2 bits; symmetric levels are -1.5, -0.5, 0.5 and 1.5 scales.
    Int2,
    /// 4 bits; symmetric levels are -8 … 7 scales.
    Int4,
    /// 8 bits; symmetric levels are -128 … 127 scales.
    Int8,
}

named!(Format, "format", { Int2 => "int2", Int4 => "int4", Int8 => "int8" });

impl Format {
    /// Bits of one code.
    pub const fn bits(self) -> usize {
        match self {
            Self::Int2 => 2,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }

    /// The format with codes of `bits` bits.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            2 => Some(Self::Int2),
            4 => Some(Self::Int4),
            8 => Some(Self::Int8),
            _ => None,
        }
    }

    /// The largest code, `2^bits - 1`.
    pub const fn max_code(self) -> u8 {
        ((1u16 << self.bits()) - 1) as u8
    }

    /// The code that decodes to zero in the symmetric scheme (half-integer for 2 bits).
    pub const fn zero_point(self) -> f32 {
        match self {
            Self::Int2 => 1.5,
            Self::Int4 => 8.0,
            Self::Int8 => 128.0,
        }
    }

    /// Bytes of one packed row of `cols` codes; rows start on a byte boundary.
    pub const fn row_bytes(self, cols: usize) -> usize {
        let per_byte = 8 / self.bits();
        cols / per_byte + (!cols.is_multiple_of(per_byte)) as usize
    }
}

/// Whether a group has a bias beside its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `w = scale * (q - z)`, z fixed per format.
    Symmetric,
    /// `w = scale * q + bias`.
    Affine,
}

named!(Scheme, "scheme", { Symmetric => "symmetric", Affine => "affine" });

/// How scales and biases are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleDtype {
    /// IEEE half precision, the usual case.
    F16,
    /// IEEE single precision, for tiles whose scales do not fit f16.
    F32,
}

named!(ScaleDtype, "scale_dtype", { F16 => "f16", F32 => "f32" });

impl ScaleDtype {
    /// Bytes of one scale.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Reads scale `index` of a packed plane.
    ///
    /// # Panics
    /// If the plane is shorter than `index + 1` scales.
    #[inline(always)]
    pub fn get(self, plane: &[u8], index: usize) -> f32 {
        match self {
            Self::F16 => {
                let at = index * 2;
                half::f16::from_le_bytes([plane[at], plane[at + 1]]).to_f32()
            }
            Self::F32 => {
                let at = index * 4;
                f32::from_le_bytes([plane[at], plane[at + 1], plane[at + 2], plane[at + 3]])
            }
        }
    }

    /// Writes scale `index` of a packed plane and returns the value as rounded to storage
    /// (infinite when it does not fit f16).
    ///
    /// # Panics
    /// If the plane is shorter than `index + 1` scales.
    #[inline(always)]
    pub fn put(self, plane: &mut [u8], index: usize, value: f32) -> f32 {
        match self {
            Self::F16 => {
                let rounded = half::f16::from_f32(value);
                plane[index * 2..index * 2 + 2].copy_from_slice(&rounded.to_le_bytes());
                rounded.to_f32()
            }
            Self::F32 => {
                plane[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes());
                value
            }
        }
    }
}

/// A floating-point type the kernels read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
}

named!(Float, "dtype", { F32 => "f32", F16 => "f16", BF16 => "bf16" });

impl Float {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Reads value `index` of little-endian `bytes`.
    ///
    /// # Panics
    /// If `bytes` is shorter than `index + 1` values.
    pub fn get(self, bytes: &[u8], index: usize) -> f32 {
        match self {
            Self::F16 => ScaleDtype::F16.get(bytes, index),
            Self::F32 => ScaleDtype::F32.get(bytes, index),
            Self::BF16 => {
                half::bf16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32()
            }
        }
    }
}

/// How a group's scale (and bias) is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// From the range of the group.
    MinMax,
    /// Least squares over trial scales: the default without calibration.
    Lsq,
    /// Columns make up for each other's errors, as a calibration's Hessian says how; the default
    /// with one.
    Gptq,
}

named!(Method, "method", { MinMax => "minmax", Lsq => "lsq", Gptq => "gptq" });

/// Whether the loss of amplitude of a row is made up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gain {
    /// A row's scales and biases are multiplied by `|w|^2 / <w, q>`.
    Unit,
    /// Scales stay as the method chose them.
    Lsq,
}

impl Gain {
    /// What codes of `format` get by default: 8 bits lose too little to be made up for.
    pub const fn of(format: Format) -> Self {
        match format {
            Format::Int2 | Format::Int4 => Self::Unit,
            Format::Int8 => Self::Lsq,
        }
    }
}

named!(Gain, "gain", { Unit => "unit", Lsq => "lsq" });

/// Weights that share one scale: 16 to 1024 in steps of 16, or 0 for the whole row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupSize(u16);

impl GroupSize {
    /// One group for the whole row.
    pub const ROW: Self = Self(0);

    /// A group size of format.md, or `None` for any other number.
    pub const fn new(size: u64) -> Option<Self> {
        if size.is_multiple_of(16) && size <= 1024 {
            Some(Self(size as u16))
        } else {
            None
        }
    }

    /// The number as stored: 0 for the whole row.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Length of all groups of a row of `cols` weights but the last, never 0.
    pub const fn span(self, cols: usize) -> usize {
        if self.0 > 0 {
            self.0 as usize
        } else if cols > 0 {
            cols
        } else {
            1
        }
    }

    /// Groups in a row of `cols` weights; the last may be short.
    pub const fn count(self, cols: usize) -> usize {
        cols.div_ceil(self.span(cols))
    }
}

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a quantized matrix is laid out: everything that decoding needs beside the planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Width of the codes.
    pub format: Format,
    /// With or without biases.
    pub scheme: Scheme,
    /// Weights per scale.
    pub group_size: GroupSize,
    /// Storage of scales and biases.
    pub scale_dtype: ScaleDtype,
}

impl Layout {
    /// Bytes of a row's codes, scales and biases.
    pub const fn plane_bytes(&self, cols: usize) -> [usize; 3] {
        [
            self.code_bytes(cols),
            self.scale_bytes(cols),
            self.bias_bytes(cols),
        ]
    }

    /// Bytes of the codes of one row.
    pub const fn code_bytes(&self, cols: usize) -> usize {
        self.format.row_bytes(cols)
    }

    /// Bytes of the scales of one row.
    pub const fn scale_bytes(&self, cols: usize) -> usize {
        self.group_size.count(cols) * self.scale_dtype.size()
    }

    /// Bytes of the biases of one row: 0 when symmetric.
    pub const fn bias_bytes(&self, cols: usize) -> usize {
        match self.scheme {
            Scheme::Symmetric => 0,
            Scheme::Affine => self.scale_bytes(cols),
        }
    }

    /// Bytes of all planes of one row.
    pub const fn row_bytes(&self, cols: usize) -> usize {
        self.code_bytes(cols) + self.scale_bytes(cols) + self.bias_bytes(cols)
    }

    /// Whether every code of a group with this scale and bias decodes to a finite f32.
    #[inline(always)]
    pub fn decodable(&self, scale: f32, bias: f32) -> bool {
        let top = f32::from(self.format.max_code());
        match self.scheme {
            // Code 0 lies as far from zero as any.
            Scheme::Symmetric => (scale * self.format.zero_point()).is_finite(),
            Scheme::Affine => {
                let product = scale * top;
                product.is_finite() && bias.is_finite() && (product + bias).is_finite()
            }
        }
    }

    /// The value of symmetric code 0 in scales, subtracted before scaling; 0 when affine.
    pub const fn zero_point(&self) -> f32 {
        match self.scheme {
            Scheme::Symmetric => self.format.zero_point(),
            Scheme::Affine => 0.0,
        }
    }
}

/// Which scale storage a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScalePolicy {
    /// f16, and f32 for the tiles that need it.
    Auto,
    /// f16 only: a scale that does not fit is an error.
    F16,
    /// f32 always.
    F32,
}

named!(ScalePolicy, "scale_dtype", { Auto => "auto", F16 => "f16", F32 => "f32" });

/// How one tensor is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// Width of the codes.
    pub format: Format,
    /// With or without biases.
    pub scheme: Scheme,
    /// Weights per scale.
    pub group_size: GroupSize,
    /// How scales are chosen.
    pub method: Method,
    /// Whether amplitude is restored.
    pub gain: Gain,
    /// Storage of scales and biases.
    pub scales: ScalePolicy,
}

impl Recipe {
    /// The layout with scales stored as `scale_dtype`.
    pub const fn layout(&self, scale_dtype: ScaleDtype) -> Layout {
        Layout {
            format: self.format,
            scheme: self.scheme,
            group_size: self.group_size,
            scale_dtype,
        }
    }

    /// The layout a plan predicts: f16 scales unless f32 is forced.
    pub const fn planned_layout(&self) -> Layout {
        self.layout(match self.scales {
            ScalePolicy::F32 => ScaleDtype::F32,
            ScalePolicy::Auto | ScalePolicy::F16 => ScaleDtype::F16,
        })
    }
}

/// The largest block that columns are rotated by.
pub const MAX_ROTATION: u32 = 4096;

/// A Hadamard rotation of the input dimension, block by block: `R = diag(signs) H / sqrt(block)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rotation {
    /// Columns that are rotated together: a power of two from 2 to [`MAX_ROTATION`] that divides
    /// the columns.
    pub block: u32,
    /// What the signs follow from; 0 is all plus.
    pub seed: u64,
}

impl Rotation {
    /// The rotation of the largest block that rows of `cols` allow, if there is one.
    pub const fn largest(cols: usize, seed: u64) -> Option<Self> {
        if cols == 0 || !cols.is_multiple_of(2) {
            return None;
        }
        let power = cols.trailing_zeros();
        let most = MAX_ROTATION.trailing_zeros();
        let block = 1 << if power < most { power } else { most };
        Some(Self { block, seed })
    }

    /// Whether rows of `cols` can be rotated by it.
    pub const fn fits(self, cols: usize) -> bool {
        let block = self.block;
        block.is_power_of_two()
            && block >= 2
            && block <= MAX_ROTATION
            && cols > 0
            && cols.is_multiple_of(block as usize)
    }

    /// `1 / sqrt(block)` as f32.
    pub const fn norm(self) -> f32 {
        let power = self.block.trailing_zeros();
        let whole = 1.0 / (1u64 << (power / 2)) as f32;
        match power % 2 {
            0 => whole,
            _ => whole * core::f32::consts::FRAC_1_SQRT_2,
        }
    }

    /// The signs of columns `64 * word` to `64 * word + 63`, from the lowest bit on; a set one is
    /// minus. They are the outputs of SplitMix64.
    pub const fn signs(self, word: usize) -> u64 {
        if self.seed == 0 {
            return 0;
        }
        let step = (word as u64).wrapping_add(1);
        let mut z = (self.seed).wrapping_add(step.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// What was done to the input dimension of a matrix before it was quantized; decoding undoes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transform<'a> {
    /// What each column was multiplied by, before it was rotated: little-endian f16, finite and
    /// above 0.
    pub input_scale: Option<&'a [u8]>,
    /// How columns were rotated.
    pub rotation: Option<Rotation>,
}

impl Transform<'_> {
    /// Whether there is nothing to undo.
    pub const fn is_identity(&self) -> bool {
        self.input_scale.is_none() && self.rotation.is_none()
    }

    /// Whether it is one of rows of `cols`.
    pub fn fits(&self, cols: usize) -> bool {
        self.rotation.is_none_or(|rotation| rotation.fits(cols))
            && self
                .input_scale
                .is_none_or(|scale| is_input_scale(scale, cols))
    }
}

/// Whether these are scales of `cols` columns.
fn is_input_scale(scale: &[u8], cols: usize) -> bool {
    let values = scale.as_chunks::<2>().0.iter();
    // Bits of numbers above 0 that are not infinite.
    let valid = |bytes: &[u8; 2]| (1..0x7C00).contains(&u16::from_le_bytes(*bytes));
    scale.len() / 2 == cols && scale.len().is_multiple_of(2) && values.into_iter().all(valid)
}

impl ActivationRange {
    /// Whether `t` is one of its timesteps.
    pub const fn holds(&self, t: i32) -> bool {
        self.t_begin <= t && t < self.t_end
    }

    /// Whether it may be in a file.
    pub const fn is_valid(&self) -> bool {
        0 <= self.t_begin
            && self.t_begin < self.t_end
            && self.scale > 0.0
            && self.scale.is_finite()
            && self.zero_point.is_finite()
    }
}

/// Largest codes plane of a tile in an uncompressed file (one row may pass it).
pub const TILE_BYTES: usize = 128 << 20;

/// Largest codes plane of a tile in a compressed file: small, so that a reader need not unpack 128 MiB for one row.
pub const TILE_BYTES_COMPRESSED: usize = 16 << 20;

/// The most whole rows, of `row_bytes` packed bytes each, whose codes fit a tile; at least one.
pub fn rows_per_tile(rows: usize, row_bytes: usize, tile_bytes: usize) -> usize {
    match tile_bytes.checked_div(row_bytes) {
        Some(fit) => fit.clamp(1, rows.max(1)),
        None => rows.max(1),
    }
}

/// Rows are quantized, measured and decoded in pieces of about this many weights, small enough
/// to stay in cache. Error sums are added row by row inside a piece and piece by piece in a
/// tile, so the number is part of what makes reported figures the same everywhere.
pub const PIECE_WEIGHTS: usize = 1 << 18;

/// Whole rows of `cols` weights in a piece; at least one.
pub fn rows_per_piece(cols: usize) -> usize {
    (PIECE_WEIGHTS / cols.max(1)).max(1)
}

/// Packs codes LSB first: element i sits in byte `i*bits/8` at bit `(i*bits) % 8`. The plain
/// statement of the layout, against which the kernels are tested.
///
/// # Panics
/// If `packed` is not `format.row_bytes(codes.len())` long.
///
/// ```
/// use arrowquant_kernels::format::{Format, pack};
///
/// let mut packed = [0; 2];
/// pack(Format::Int4, &[1, 2, 15], &mut packed);
/// assert_eq!(packed, [0x21, 0x0F]);
/// ```
pub fn pack(format: Format, codes: &[u8], packed: &mut [u8]) {
    assert_eq!(packed.len(), format.row_bytes(codes.len()));
    packed.fill(0);
    for (i, &code) in codes.iter().enumerate() {
        let bit = i * format.bits();
        packed[bit / 8] |= (code & format.max_code()) << (bit % 8);
    }
}

/// Unpacks what [`pack`] packed.
///
/// # Panics
/// If `packed` is shorter than `format.row_bytes(codes.len())`.
pub fn unpack(format: Format, packed: &[u8], codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        let bit = i * format.bits();
        *code = (packed[bit / 8] >> (bit % 8)) & format.max_code();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_lsb_first() {
        let mut packed = [0; 2];
        pack(Format::Int2, &[1, 2, 3, 0, 2], &mut packed);
        assert_eq!(packed, [0b00_11_10_01, 0b10]);
        pack(Format::Int4, &[0xA, 0x5, 0xF], &mut packed);
        assert_eq!(packed, [0x5A, 0x0F]);
    }

    #[test]
    fn row_sizes_round_up_to_bytes() {
        assert_eq!(Format::Int2.row_bytes(5), 2);
        assert_eq!(Format::Int4.row_bytes(5), 3);
        assert_eq!(Format::Int8.row_bytes(5), 5);
        assert_eq!(Format::Int2.row_bytes(0), 0);
    }

    #[test]
    fn group_sizes_of_the_format_and_no_others() {
        for allowed in [0, 16, 32, 48, 128, 288, 1024] {
            assert_eq!(
                GroupSize::new(allowed).map(GroupSize::get),
                Some(allowed as u16)
            );
        }
        for refused in [1, 8, 17, 100, 1040, 1 << 40] {
            assert_eq!(GroupSize::new(refused), None);
        }
        assert_eq!(GroupSize::new(128).unwrap().count(704), 6);
        assert_eq!(GroupSize::ROW.count(704), 1);
        assert_eq!(GroupSize::ROW.count(0), 0);
    }

    #[test]
    fn bits_per_weight_count_scales() {
        let recipe = Recipe {
            format: Format::Int2,
            scheme: Scheme::Affine,
            group_size: GroupSize::new(128).unwrap(),
            method: Method::MinMax,
            gain: Gain::Lsq,
            scales: ScalePolicy::Auto,
        };
        // b + 32/g = 2.25 bits for each of 4096 weights.
        assert_eq!(recipe.planned_layout().row_bytes(4096) * 8, 4096 * 9 / 4);
    }

    #[test]
    fn tiles_hold_whole_rows() {
        assert_eq!(rows_per_tile(100, 30, 100), 3);
        assert_eq!(rows_per_tile(2, 30, 100), 2);
        assert_eq!(rows_per_tile(100, 300, 100), 1);
        assert_eq!(rows_per_tile(100, 0, 100), 100);
        assert_eq!(rows_per_tile(0, 30, 100), 1);
    }

    #[test]
    fn rotations_divide_the_columns() {
        let block = |cols| Rotation::largest(cols, 1).map(|rotation| rotation.block);
        for (cols, expected) in [
            (0, None),
            (1, None),
            (705, None),
            (2, Some(2)),
            (24, Some(8)),
            (704, Some(64)),
            (4096, Some(4096)),
            (3 * 8192, Some(4096)),
        ] {
            assert_eq!(block(cols), expected, "{cols}");
            let fits = |rotation: Rotation| rotation.fits(cols);
            assert!(Rotation::largest(cols, 1).is_none_or(fits), "{cols}");
        }
        for (block, cols) in [
            (0, 8),
            (1, 8),
            (3, 9),
            (16, 8),
            (8192, 8192),
            (2, 0),
            (8, 12),
        ] {
            assert!(!Rotation { block, seed: 0 }.fits(cols), "{block} of {cols}");
        }
        for power in 1..=12 {
            let norm = Rotation::norm(Rotation {
                block: 1 << power,
                seed: 0,
            });
            assert_eq!(norm, (1.0 / f64::from(1 << power).sqrt()) as f32);
        }
    }

    /// The outputs of SplitMix64 for this seed, as its author published them.
    #[test]
    fn signs_are_those_of_splitmix64() {
        let rotation = Rotation {
            block: 64,
            seed: 1_234_567,
        };
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!([0, 1, 2, 3, 4].map(|word| rotation.signs(word)), published);
        assert_eq!(
            Rotation {
                seed: 0,
                ..rotation
            }
            .signs(3),
            0
        );
    }

    proptest::proptest! {
        #[test]
        fn packing_round_trips(codes in proptest::collection::vec(0u8..=255, 0..300)) {
            for &format in Format::ALL {
                let codes: Vec<u8> = codes.iter().map(|c| c & format.max_code()).collect();
                let mut packed = vec![0xFF; format.row_bytes(codes.len())];
                pack(format, &codes, &mut packed);
                let mut back = vec![0; codes.len()];
                unpack(format, &packed, &mut back);
                assert_eq!(back, codes);
            }
        }
    }
}
