//! One table of kernels for each instruction set, and which one is used.

use super::activations::{self, QuantizeActivations};
use super::channels::{self, ChannelSums};
#[cfg(all(feature = "std", not(fuzzing)))]
use super::codec::UNIFORM;
use super::codec::codecs;
use super::element::{Element, with_element};
use super::errors;
use super::isa::{Isa, UnknownIsa};
use super::lanes::Lanes;
#[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
use super::neon::{Dotprod, Neon};
use super::product::{ActivationsMut, ByteMatVec, MatVec};
use super::row::{CompareRow, DecodeRow, ErrorRow, QuantizeRow, RescaleRow, RowFault};
use super::scalar::Scalar;
use super::sums::ErrorSums;
use super::table::{CodecTable, KernelTable};
use super::transform::{self, TransformRows};
use super::uniform::code::{Code, layout_of, with_code};
use super::uniform::errors as uniform_errors;
use super::uniform::{Feedback, Projection, decode, dot, dot_bytes, encode, feedback};
#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
use super::{
    avx2::Avx2,
    avx512::{Avx512, VnniBytes},
};
use crate::format::Float;

impl KernelTable {
    /// The table of `isa`, or `None` when this machine lacks it.
    pub fn of(isa: Isa) -> Option<&'static Self> {
        isa.available().then(|| table_of(isa))
    }

    /// The best table of this machine, lowered by `AQ_ISA` where that is set.
    ///
    /// # Errors
    /// `AQ_ISA` names no instruction set of this build.
    pub fn choose() -> Result<&'static Self, UnknownIsa> {
        Self::of(Isa::choose()?).ok_or(UnknownIsa)
    }
}

/// A kernel compiled for the target features that are named, so that what the lanes do becomes
/// single instructions.
macro_rules! kernel {
    ($($features:literal)?, $kernel:path, ($($arg:ident: $type:ty),+) $(-> $result:ty)?) => {{
        $(#[target_feature(enable = $features)])?
        fn kernel($($arg: $type),+) $(-> $result)? {
            $kernel($($arg),+)
        }
        kernel
    }};
}

/// A kernel compiled as by [`kernel`], with a function for each kind of weights and codes: one of
/// all 18 takes the compiler longer.
macro_rules! kernel_by_kind {
    ($($features:literal)?, $lanes:ty, $room:ident::$kernel:ident, $row:ty, $result:ty) => {{
        $(#[target_feature(enable = $features)])?
        #[inline(never)]
        fn of<E: Element, C: Code>(row: $row, element: E, code: C) -> $result {
            $room::$kernel::<$lanes, E, C>(row, element, code)
        }
        $(#[target_feature(enable = $features)])?
        fn kernel(row: $row) -> $result {
            type L = $lanes;
            with_element!(L, row.float, |e| with_code!(L, layout_of(row.encoding), |c| of(row, e, c)))
        }
        kernel
    }};
}

/// The kernels of uniform codes over some lanes.
macro_rules! uniform_codec {
    ($lanes:ty, $bytes:ty $(, $features:literal)?) => {
        CodecTable {
            // One function of all kinds, though the compiler takes long for it: one for each was
            // slower where it matters most, bf16 to int4 on AVX-512.
            quantize: kernel!(
                $($features)?,
                encode::quantize::<$lanes>,
                (row: QuantizeRow<'_>) -> Result<f32, RowFault>
            ),
            decode: kernel_by_kind!($($features)?, $lanes, decode::decode_row, DecodeRow<'_>, ()),
            error: kernel_by_kind!(
                $($features)?, $lanes, uniform_errors::error_row, ErrorRow<'_>, ErrorSums
            ),
            rescale: kernel!(
                $($features)?,
                decode::rescale::<$lanes>,
                (row: RescaleRow<'_>) -> Result<(), RowFault>
            ),
            matvec: kernel!($($features)?, dot::matvec::<$lanes>, (m: MatVec<'_>)),
            quantize_vectors: kernel!(
                $($features)?,
                dot_bytes::quantize_vectors::<$lanes>,
                (x: &[f32], cols: usize, out: ActivationsMut<'_>) -> bool
            ),
            matvec_bytes: kernel!(
                $($features)?, dot_bytes::matvec_bytes::<$bytes>, (m: ByteMatVec<'_>)
            ),
            decodable: decode::decodable,
        }
    };
}

/// The kernels that a [`super::codec::Codec`] is driven by, over some lanes.
#[allow(unused_macros, reason = "without a codec of blocks only tests use it")]
macro_rules! block_codec {
    ($lanes:ty, $codec:ty $(, $features:literal)?) => {
        CodecTable {
            quantize: kernel!(
                $($features)?,
                $crate::kernel::codec::quantize::<$lanes, $codec>,
                (row: QuantizeRow<'_>) -> Result<f32, RowFault>
            ),
            decode: kernel!($($features)?, $crate::kernel::codec::decode::<$lanes, $codec>, (row: DecodeRow<'_>)),
            error: kernel!(
                $($features)?,
                $crate::kernel::codec::error::<$lanes, $codec>,
                (row: ErrorRow<'_>) -> ErrorSums
            ),
            rescale: kernel!(
                $($features)?,
                $crate::kernel::codec::rescale::<$lanes, $codec>,
                (row: RescaleRow<'_>) -> Result<(), RowFault>
            ),
            matvec: kernel!($($features)?, $crate::kernel::codec::matvec::<$lanes, $codec>, (m: MatVec<'_>)),
            quantize_vectors: kernel!(
                $($features)?,
                $crate::kernel::codec::quantize_vectors::<$lanes, $codec>,
                (x: &[f32], cols: usize, out: ActivationsMut<'_>) -> bool
            ),
            matvec_bytes: kernel!(
                $($features)?, $crate::kernel::codec::matvec_bytes::<$lanes, $codec>, (m: ByteMatVec<'_>)
            ),
            decodable: $crate::kernel::codec::decodable::<$codec>,
        }
    };
}

/// The table over some lanes.
macro_rules! table {
    ($isa:expr, $lanes:ty, $bytes:ty $(, $features:literal)?) => {
        KernelTable {
            isa: $isa,
            codecs: codecs!($lanes, $bytes $(, $features)?),
            compare: kernel!(
                $($features)?,
                errors::compare::<$lanes>,
                (row: CompareRow<'_>) -> Option<ErrorSums>
            ),
            transform: kernel!(
                $($features)?,
                transform::rows::<$lanes>,
                (rows: TransformRows<'_>)
            ),
            narrow: kernel!(
                $($features)?,
                transform::narrow::<$lanes>,
                (values: &[u8], float: Float, out: &mut [u8])
            ),
            quantize_activations: kernel!(
                $($features)?,
                activations::quantize::<$lanes>,
                (a: QuantizeActivations<'_>) -> Result<(), usize>
            ),
            channel_sums: kernel!(
                $($features)?,
                channels::channel_sums::<$lanes>,
                (sums: ChannelSums<'_>)
            ),
            widen: kernel!(
                $($features)?,
                channels::widen::<$lanes>,
                (float: Float, values: &[u8], out: &mut [f32])
            ),
            project: kernel!($($features)?, feedback::project::<$lanes>, (p: Projection<'_>)),
            feedback: kernel!($($features)?, feedback::feedback::<$lanes>, (f: Feedback<'_>)),
            refine: kernel!($($features)?, feedback::refine::<$lanes>, (f: Feedback<'_>)),
        }
    };
}
#[cfg(test)]
pub(super) use {block_codec, kernel, kernel_by_kind, table, uniform_codec};

/// In a module of its own, by which the compiler divides its work.
mod portable {
    use super::*;

    pub(super) const TABLE: KernelTable = table!(Isa::Scalar, Scalar, Scalar);
}

#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx2 {
    use super::*;

    pub(super) const TABLE: KernelTable = table!(Isa::Avx2, Avx2, Avx2, "avx2,fma,f16c");
}

#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx512 {
    use super::*;

    pub(super) const TABLE: KernelTable = table!(
        Isa::Avx512,
        Avx512<false>,
        Avx2,
        "avx512f,avx512bw,avx512vl,avx2,fma,f16c"
    );

    /// Only products of uniform codes gain from more.
    pub(super) const VNNI: KernelTable = {
        let mut table = TABLE;
        table.isa = Isa::Avx512Vnni;
        table.codecs[UNIFORM].matvec = kernel!(
            "avx512f,avx512bw,avx512vl,avx512vbmi,avx2,fma,f16c",
            dot::matvec::<Avx512<true>>,
            (m: MatVec<'_>)
        );
        table.codecs[UNIFORM].matvec_bytes = kernel!(
            "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c",
            dot_bytes::matvec_bytes::<VnniBytes>,
            (m: ByteMatVec<'_>)
        );
        table
    };
}

#[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
mod neon {
    use super::*;

    pub(super) const TABLE: KernelTable = table!(Isa::Neon, Neon, Neon, "neon");

    /// Only products of uniform codes gain from more.
    pub(super) const DOTPROD: KernelTable = {
        let mut table = TABLE;
        table.isa = Isa::NeonDotprod;
        table.codecs[UNIFORM].matvec_bytes = kernel!(
            "neon,dotprod",
            dot_bytes::matvec_bytes::<Dotprod>,
            (m: ByteMatVec<'_>)
        );
        table
    };
}

/// The table of an instruction set, which the machine must have.
pub(super) fn table_of(isa: Isa) -> &'static KernelTable {
    match isa {
        Isa::Scalar => &portable::TABLE,
        #[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
        Isa::Avx2 => &avx2::TABLE,
        #[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
        Isa::Avx512 => &avx512::TABLE,
        #[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
        Isa::Avx512Vnni => &avx512::VNNI,
        #[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
        Isa::Neon => &neon::TABLE,
        #[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
        Isa::NeonDotprod => &neon::DOTPROD,
    }
}
