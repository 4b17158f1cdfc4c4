//! Walks Thrift's compact encoding, which Parquet uses for its footer and page headers, without
//! building anything: so it is known in advance what a reader will allocate.
//!
//! A struct is its fields and a zero byte. A field is a byte `id - last id << 4 | type` and its
//! value; booleans are part of the type. Integers are zigzag varints, byte strings are preceded by
//! their length, lists by a byte `elements << 4 | type` (15: the number follows as a varint).

/// The required contents of a field. Readers only look at the number of a field, so they would read
/// a field of another type differently than it is walked here.
pub(super) enum ThriftKind {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Bytes,
    List(&'static ThriftKind),
    Struct(&'static [Field]),
}

/// Number and kind of a field.
pub(super) type Field = (i16, ThriftKind);

impl ThriftKind {
    /// Returns the encoded type; a boolean in a struct may also be 2.
    fn code(&self) -> u8 {
        match self {
            Self::Bool => 1,
            Self::Byte => 3,
            Self::I16 => 4,
            Self::I32 => 5,
            Self::I64 => 6,
            Self::Double => 7,
            Self::Bytes => 8,
            Self::List(_) => 9,
            Self::Struct(_) => 12,
        }
    }
}

/// An item found during a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// A struct begins.
    Struct,
    /// A list with this number of elements begins.
    List(usize),
    /// A byte string of this length.
    Bytes(usize),
    Int(i64),
    Bool(bool),
}

/// Why a walk ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ThriftFault {
    /// The bytes end before the struct does.
    Short,
    /// The bytes are malformed, or the visitor refused something.
    Bad(String),
}

impl From<&str> for ThriftFault {
    fn from(reason: &str) -> Self {
        Self::Bad(reason.to_owned())
    }
}

/// Receives each item found; it may refuse it.
pub(super) type Visit<'a> = dyn FnMut(&[i16], Met) -> Result<(), ThriftFault> + 'a;

/// A depth that Parquet never reaches.
const MAX_DEPTH: usize = 24;

/// Walks one struct. `visit` receives every item found in known fields, with the numbers of the
/// fields that lead there; unknown fields are skipped. Returns the length of the struct.
///
/// # Errors
/// The bytes end early, are malformed, or `visit` refuses something.
pub(super) fn walk(
    bytes: &[u8],
    fields: &'static [Field],
    visit: &mut Visit<'_>,
) -> Result<usize, ThriftFault> {
    let mut walker = Walker {
        rest: bytes,
        path: Vec::new(),
        visit,
    };
    walker.fields(fields)?;
    Ok(bytes.len() - walker.rest.len())
}

struct Walker<'a, 'v> {
    rest: &'a [u8],
    path: Vec<i16>,
    visit: &'a mut Visit<'v>,
}

impl Walker<'_, '_> {
    fn met(&mut self, met: Met) -> Result<(), ThriftFault> {
        (self.visit)(&self.path, met)
    }

    fn fields(&mut self, known: &'static [Field]) -> Result<(), ThriftFault> {
        let mut last = 0;
        while let Some((id, code)) = self.field(last)? {
            // Every writer emits fields in order and once; a second one would replace the first.
            if id <= last {
                return Err("fields are out of order".into());
            }
            last = id;
            match known.iter().find(|field| field.0 == id) {
                Some((_, ThriftKind::Bool)) if code == 1 || code == 2 => {
                    self.path.push(id);
                    self.met(Met::Bool(code == 1))?;
                    self.path.pop();
                }
                Some((_, kind)) if kind.code() == code => {
                    self.path.push(id);
                    self.value(kind)?;
                    self.path.pop();
                }
                Some(_) => return Err("a field is of another type".into()),
                None => self.skip(code, MAX_DEPTH)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, kind: &'static ThriftKind) -> Result<(), ThriftFault> {
        match kind {
            ThriftKind::Bool => Err("a list of booleans".into()),
            ThriftKind::Byte => self.take(1).map(drop),
            ThriftKind::I16 => self.int(i64::from(i16::MIN)..=i64::from(i16::MAX)),
            ThriftKind::I32 => self.int(i64::from(i32::MIN)..=i64::from(i32::MAX)),
            ThriftKind::I64 => self.int(i64::MIN..=i64::MAX),
            ThriftKind::Double => self.take(8).map(drop),
            ThriftKind::Bytes => {
                let len = self.length()?;
                self.take(len)?;
                self.met(Met::Bytes(len))
            }
            ThriftKind::List(element) => {
                let (code, len) = self.list()?;
                if len > 0 && code != element.code() {
                    return Err("a list of another type".into());
                }
                self.met(Met::List(len))?;
                (0..len).try_for_each(|_| self.value(element))
            }
            ThriftKind::Struct(fields) => {
                self.met(Met::Struct)?;
                self.fields(fields)
            }
        }
    }

    fn int(&mut self, allowed: std::ops::RangeInclusive<i64>) -> Result<(), ThriftFault> {
        let coded = self.varint()?;
        let value = (coded >> 1) as i64 ^ -((coded & 1) as i64);
        if !allowed.contains(&value) {
            return Err("a number is too large for its type".into());
        }
        self.met(Met::Int(value))
    }

    fn skip(&mut self, code: u8, depth: usize) -> Result<(), ThriftFault> {
        if depth == 0 {
            return Err("nested too deep".into());
        }
        match code {
            1 | 2 => Ok(()),
            3 => self.take(1).map(drop),
            4..=6 => self.varint().map(drop),
            7 => self.take(8).map(drop),
            8 => {
                let len = self.length()?;
                self.take(len).map(drop)
            }
            9 | 10 => {
                let (code, len) = self.list()?;
                self.skip_elements(&[code], len, depth)
            }
            11 => {
                let len = self.length()?;
                if len == 0 {
                    return Ok(());
                }
                let codes = self.take(1)?[0];
                self.skip_elements(&[codes >> 4, codes & 15], len, depth)
            }
            12 => {
                let mut last = 0;
                while let Some((id, code)) = self.field(last)? {
                    last = id;
                    self.skip(code, depth - 1)?;
                }
                Ok(())
            }
            13 => self.take(16).map(drop),
            _ => Err("an unknown type".into()),
        }
    }

    fn skip_elements(&mut self, codes: &[u8], len: usize, depth: usize) -> Result<(), ThriftFault> {
        // Readers disagree on the size of booleans in lists, and Parquet has none here.
        if len > 0 && codes.iter().any(|code| (1..=2).contains(code)) {
            return Err("a list of booleans".into());
        }
        for _ in 0..len {
            for &code in codes {
                self.skip(code, depth - 1)?;
            }
        }
        Ok(())
    }

    /// Reads number and type of the next field; `None` at the end of a struct.
    fn field(&mut self, last: i16) -> Result<Option<(i16, u8)>, ThriftFault> {
        let head = self.take(1)?[0];
        let (delta, code) = (head >> 4, head & 15);
        if code == 0 {
            return Ok(None);
        }
        let id = match delta {
            0 => {
                let coded = self.varint()?;
                let id = (coded >> 1) as i64 ^ -((coded & 1) as i64);
                i16::try_from(id).ok()
            }
            _ => last.checked_add(i16::from(delta)),
        };
        let id = id.ok_or("a field's number is too large")?;
        Ok(Some((id, code)))
    }

    /// Reads type and number of elements. A list cannot have more elements than bytes.
    fn list(&mut self) -> Result<(u8, usize), ThriftFault> {
        let head = self.take(1)?[0];
        let len = match head >> 4 {
            15 => self.length()?,
            len => usize::from(len),
        };
        match len <= self.rest.len() {
            true => Ok((head & 15, len)),
            false => Err(ThriftFault::Short),
        }
    }

    fn length(&mut self) -> Result<usize, ThriftFault> {
        let length = i32::try_from(self.varint()?);
        Ok(length.map_err(|_| "a length is too large")? as usize)
    }

    fn varint(&mut self) -> Result<u64, ThriftFault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too large".into())
    }

    fn take(&mut self, len: usize) -> Result<&[u8], ThriftFault> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ThriftFault::Short)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER: &[Field] = &[(2, ThriftKind::I32)];
    const OUTER: &[Field] = &[
        (1, ThriftKind::I32),
        (2, ThriftKind::List(&ThriftKind::Struct(INNER))),
        (3, ThriftKind::Bool),
        (5, ThriftKind::Bytes),
    ];

    fn met(bytes: &[u8]) -> Result<Vec<(Vec<i16>, Met)>, ThriftFault> {
        let mut all = Vec::new();
        let len = walk(bytes, OUTER, &mut |path, met| {
            all.push((path.to_vec(), met));
            Ok(())
        })?;
        assert!(len <= bytes.len());
        Ok(all)
    }

    #[test]
    fn known_fields_are_met_and_unknown_ones_passed_over() {
        let bytes = [
            0x15, 0x03, // 1: -2
            0x19, 0x2C, // 2: two structs
            0x25, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0x00, // 2: i32::MAX
            0x1C, 0x16, 0x02, 0x00, 0x00, // 1: unknown, a struct
            0x11, // 3: true
            0x18, 0x01, b'x', // 4: unknown, a byte string
            0x18, 0x02, b'y', b'z', // 5
            0x00,
        ];
        let expected = vec![
            (vec![1], Met::Int(-2)),
            (vec![2], Met::List(2)),
            (vec![2], Met::Struct),
            (vec![2, 2], Met::Int(i64::from(i32::MAX))),
            (vec![2], Met::Struct),
            (vec![3], Met::Bool(true)),
            (vec![5], Met::Bytes(2)),
        ];
        assert_eq!(met(&bytes), Ok(expected));
        for len in 0..bytes.len() {
            assert_eq!(met(&bytes[..len]), Err(ThriftFault::Short), "{len}");
        }
    }

    #[test]
    fn what_readers_would_take_otherwise_is_refused() {
        for (bytes, reason) in [
            (&[0x18, 0x00, 0x00][..], "a field is of another type"),
            (
                &[0x15, 0x02, 0x05, 0x02, 0x02, 0x00],
                "fields are out of order",
            ),
            (&[0x29, 0x15, 0x00, 0x00], "a list of another type"),
            (&[0x49, 0x21, 0x01, 0x01, 0x00], "a list of booleans"),
            (
                &[0x15, 0x80, 0x80, 0x80, 0x80, 0x20],
                "too large for its type",
            ),
            (
                &[
                    0x15, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02,
                ],
                "too large",
            ),
            (
                &[0x58, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F],
                "a length is too large",
            ),
            (&[0x4E, 0x00], "an unknown type"),
        ] {
            let Err(ThriftFault::Bad(found)) = met(bytes) else {
                panic!("{bytes:?}: {:?}", met(bytes));
            };
            assert!(found.contains(reason), "{bytes:?}: {found}");
        }
        let deep = [0x4C].repeat(100);
        assert_eq!(met(&deep), Err("nested too deep".into()));
        // A list that claims more elements than there are bytes.
        assert_eq!(
            met(&[0x29, 0xFC, 0xFF, 0xFF, 0x03, 0x00]),
            Err(ThriftFault::Short)
        );
    }
}
