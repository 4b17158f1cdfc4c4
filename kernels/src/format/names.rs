//! Names of enum variants in files, flags and reports.

use core::fmt;

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

        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }

        impl core::str::FromStr for $type {
            type Err = $crate::format::UnknownName;

            fn from_str(text: &str) -> Result<Self, $crate::format::UnknownName> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err($crate::format::UnknownName::new($what, &[$($name),+])),
                }
            }
        }
    };
}
pub(super) use named;

/// A name that is none of those allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownName {
    what: &'static str,
    allowed: &'static [&'static str],
}

impl UnknownName {
    pub(super) const fn new(what: &'static str, allowed: &'static [&'static str]) -> Self {
        Self { what, allowed }
    }
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
