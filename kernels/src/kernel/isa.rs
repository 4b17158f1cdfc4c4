//! The instruction sets there are kernels for, and which one is used: the only CPU detection.

use core::ffi::CStr;
use core::fmt;

macro_rules! isas {
    ($(#[doc = $doc:literal] $(#[cfg($($cfg:tt)*)])? $isa:ident = $name:literal, $available:expr;)+) => {
        /// An instruction set with a kernel table of its own, weakest first.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Isa {
            $(#[doc = $doc] $(#[cfg($($cfg)*)])? $isa,)+
        }

        impl Isa {
            /// Every instruction set this build has kernels for.
            pub const ALL: &'static [Self] = &[$($(#[cfg($($cfg)*)])? Self::$isa),+];

            /// The name, as [`Isa::name`] gives it, for C.
            pub const fn c_name(self) -> &'static CStr {
                match self {
                    $($(#[cfg($($cfg)*)])? Self::$isa => $name,)+
                }
            }

            /// Whether this machine has it.
            pub fn available(self) -> bool {
                match self {
                    $($(#[cfg($($cfg)*)])? Self::$isa => $available,)+
                }
            }
        }
    };
}

isas! {
    /// Plain Rust: the specification that all others reproduce bit for bit.
    Scalar = c"scalar", true;
    /// AVX2 with FMA and F16C.
    #[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
    Avx2 = c"avx2", std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c");
    /// AVX-512 F, BW and VL.
    #[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
    Avx512 = c"avx512", Self::Avx2.available()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl");
    /// AVX-512 with VBMI and VNNI.
    #[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
    Avx512Vnni = c"avx512vnni", Self::Avx512.available()
        && std::is_x86_feature_detected!("avx512vbmi")
        && std::is_x86_feature_detected!("avx512vnni");
    /// NEON.
    #[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
    Neon = c"neon", std::arch::is_aarch64_feature_detected!("neon");
    /// NEON with the dot product instructions.
    #[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
    NeonDotprod = c"neon-dotprod", Self::Neon.available()
        && std::arch::is_aarch64_feature_detected!("dotprod");
}

impl Isa {
    /// The name `AQ_ISA` and reports use.
    pub const fn name(self) -> &'static str {
        match self.c_name().to_str() {
            Ok(name) => name,
            Err(_) => "",
        }
    }

    /// The strongest instruction set of this machine that there are kernels for.
    pub fn detect() -> Self {
        let mut available = Self::ALL.iter().copied().filter(|isa| isa.available());
        available.next_back().unwrap_or(Self::Scalar)
    }

    /// What is used: [`Isa::detect`], lowered (never raised) by `AQ_ISA`. Decided at the first
    /// call, for the life of the process.
    ///
    /// # Errors
    /// `AQ_ISA` names no instruction set of this build.
    #[cfg(feature = "std")]
    pub fn choose() -> Result<Self, UnknownIsa> {
        static CHOSEN: std::sync::OnceLock<Result<Isa, UnknownIsa>> = std::sync::OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let Some(wanted) = std::env::var_os("AQ_ISA").filter(|isa| !isa.is_empty()) else {
                return Ok(Self::detect());
            };
            let isa = Self::ALL.iter().copied().find(|isa| wanted == isa.name());
            isa.map(|isa| isa.min(Self::detect())).ok_or(UnknownIsa)
        })
    }

    /// What is used: [`Isa::detect`].
    ///
    /// # Errors
    /// Never, without an environment.
    #[cfg(not(feature = "std"))]
    pub fn choose() -> Result<Self, UnknownIsa> {
        Ok(Self::detect())
    }
}

/// `AQ_ISA` holds something that is no instruction set of this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownIsa;

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be one of:")?;
        Isa::ALL
            .iter()
            .try_for_each(|isa| write!(f, " {}", isa.name()))
    }
}

impl core::error::Error for UnknownIsa {}
