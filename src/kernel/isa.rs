//! The instruction sets there are kernels for, and which one is used: the only CPU detection.

use core::ffi::CStr;
use core::fmt;

/// An instruction set with a kernel table of its own, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust: the specification that all others reproduce bit for bit.
    Scalar,
}

impl Isa {
    /// Every instruction set this build has kernels for.
    pub const ALL: &'static [Self] = &[Self::Scalar];

    /// The name `AQ_ISA` and reports use.
    pub const fn name(self) -> &'static str {
        match self.c_name().to_str() {
            Ok(name) => name,
            Err(_) => "",
        }
    }

    /// The same, for C.
    pub const fn c_name(self) -> &'static CStr {
        match self {
            Self::Scalar => c"scalar",
        }
    }

    /// The strongest instruction set of this machine that there are kernels for.
    pub fn detect() -> Self {
        Self::Scalar
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
    /// None without an environment.
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
