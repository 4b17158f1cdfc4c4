//! The header of one GGUF file, and the descriptions of its tensors.

use std::collections::{BTreeMap, HashSet};

use xxhash_rust::xxh3::Xxh3;

use super::blocks::{PACKED, PackedType};
use super::reader::{GgufReader, SHAPE_KEY};
use crate::error::{Error, Result};
use crate::source::file::SourceFile;
use crate::tensor::{Dtype, MAX_DIMS, MAX_TENSORS, Shape, TensorInfo};

/// The most bytes of keys and values that are preserved, together.
const MAX_METADATA: usize = 4 << 20;

/// The types that are not packed, by their number in the file.
const PLAIN: &[(u32, Dtype)] = &[
    (0, Dtype::F32),
    (1, Dtype::F16),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

/// Names of unsupported types, for messages.
const OTHER_TYPES: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// The header of one file, checked against the file's size.
#[derive(Debug)]
pub(super) struct GgufHeader {
    /// Tensors in the order of their values.
    pub(super) tensors: Vec<(TensorInfo, GgufPlace)>,
    pub(super) metadata: BTreeMap<String, String>,
    /// True shapes of tensors that are stored in other shapes, by name.
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    pub(super) split: Split,
}

/// A file's keys about the parts of its model.
#[derive(Debug)]
pub(super) struct Split {
    /// Number of this part, from 0.
    pub(super) no: Option<u64>,
    pub(super) count: Option<u64>,
    /// Number of tensors in all parts.
    pub(super) tensors: Option<u64>,
}

/// Location of a tensor's values in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct GgufPlace {
    pub(super) start: u64,
    pub(super) packed: Option<&'static PackedType>,
}

impl GgufPlace {
    /// Bytes of the values in the file.
    fn bytes(self, info: &TensorInfo) -> u64 {
        match self.packed {
            Some(packed) => (info.shape.elements() / packed.weights * packed.bytes) as u64,
            None => info.bytes().unwrap_or(0) as u64,
        }
    }
}

impl GgufHeader {
    /// Reads the header of `file`, and adds its bytes to `hash`.
    pub(super) fn read(file: &SourceFile, hash: &mut Xxh3) -> Result<Self> {
        let mut reader = GgufReader::new(file, hash);
        if reader.take::<4>()? != *b"GGUF" {
            return Err(reader.refuse("it does not begin with GGUF"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            let big_endian = (1..=3).contains(&version.swap_bytes());
            let reason = match big_endian {
                true => "big-endian, which is not supported".to_owned(),
                false => format!("version {version} is not supported (expected 2 or 3)"),
            };
            return Err(reader.refuse(&reason));
        }
        let tensor_count = reader.u64()?;
        let key_count = reader.u64()?;
        let (mut metadata, shapes) = read_keys(&mut reader, key_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(text) => {
                let alignment = text.parse().ok().filter(|n: &u32| n.is_power_of_two());
                u64::from(alignment.ok_or_else(|| {
                    reader.refuse(&format!("general.alignment {text} is not a power of two"))
                })?)
            }
        };
        let mut number = |key: &str| {
            let text = metadata.remove(key);
            let refuse = |text: &str| reader.refuse(&format!("{key} {text} is not a count"));
            text.map(|text| text.parse().map_err(|_| refuse(&text)))
                .transpose()
        };
        let split = Split {
            no: number("split.no")?,
            count: number("split.count")?,
            tensors: number("split.tensors.count")?,
        };

        reader.check_count(tensor_count, 24, "tensors")?;
        if tensor_count > MAX_TENSORS as u64 {
            return Err(reader.refuse(&format!("over {MAX_TENSORS} tensors")));
        }
        let mut found = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let (info, place) = read_tensor(&mut reader, alignment)?;
            if !names.insert(info.name.clone()) {
                return Err(Error::tensor(file.path(), &info.name, "duplicate name"));
            }
            found.push((info, place));
        }
        let data_start = reader.position.next_multiple_of(alignment);
        let tensors = place(file, found, data_start)?;
        Ok(Self {
            tensors,
            metadata,
            shapes,
            split,
        })
    }
}

/// Values of the keys: text, numbers and booleans as text, and shapes by tensor.
type Keys = (BTreeMap<String, String>, BTreeMap<String, Vec<usize>>);

fn read_keys(reader: &mut GgufReader<'_>, count: u64) -> Result<Keys> {
    // Each has at least a key, a type and a byte.
    reader.check_count(count, 13, "keys")?;
    let mut metadata = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    let mut carried = 0;
    for _ in 0..count {
        let key = reader.text("a key")?;
        let kind = reader.u32()?;
        let is_new = if let Some(tensor) = key.strip_prefix(SHAPE_KEY) {
            let dims = reader.shape(kind, tensor)?;
            carried += key.len() + size_of_val(&dims[..]);
            shapes.insert(tensor.to_owned(), dims).is_none()
        } else if let Some(value) = reader.value(kind, 0)? {
            carried += key.len() + value.len();
            metadata.insert(key.clone(), value).is_none()
        } else {
            true
        };
        if carried > MAX_METADATA {
            return Err(reader.refuse(&format!("over {MAX_METADATA} bytes of keys")));
        }
        if !is_new {
            return Err(reader.refuse(&format!("key '{key}' appears twice")));
        }
    }
    Ok((metadata, shapes))
}

/// Reads one tensor's description; its place is still relative to the end of the header.
fn read_tensor(reader: &mut GgufReader<'_>, alignment: u64) -> Result<(TensorInfo, GgufPlace)> {
    let name = reader.text("a tensor's name")?;
    let path = reader.file.path();
    let refuse = |reason: String| Error::tensor(path, &name, reason);
    let dim_count = reader.u32()?;
    if dim_count > MAX_DIMS as u32 {
        return Err(refuse(format!(
            "{dim_count} dimensions exceed the limit of {MAX_DIMS}"
        )));
    }
    let mut dims = Vec::new();
    for _ in 0..dim_count {
        dims.push(reader.u64()?);
    }
    let kind = reader.u32()?;
    let start = reader.u64()?;

    let packed = PACKED.iter().find(|row| row.id == kind);
    let plain = PLAIN.iter().find(|row| row.0 == kind);
    let dtype = match (packed, plain) {
        (Some(_), _) => Dtype::F32,
        (None, Some(&(_, dtype))) => dtype,
        (None, None) => return Err(refuse(unread(kind))),
    };
    if let Some(packed) = packed {
        let fills = |row: &u64| row.is_multiple_of(packed.weights as u64);
        if !dims.first().is_some_and(fills) {
            return Err(refuse(format!(
                "shape {dims:?} does not fill blocks of {}",
                packed.name
            )));
        }
    }
    dims.reverse();
    let sizes: Option<Vec<usize>> = dims.iter().map(|&dim| dim.try_into().ok()).collect();
    let shape = sizes.and_then(Shape::new);
    let shape = shape.ok_or_else(|| refuse(format!("shape {dims:?} is too large")))?;
    if !start.is_multiple_of(alignment) {
        return Err(refuse(format!(
            "offset {start} is not a multiple of {alignment}"
        )));
    }
    let info = TensorInfo { name, dtype, shape };
    if info.bytes().is_none() {
        let reason = format!("shape {} is too large", info.shape);
        return Err(Error::tensor(path, &info.name, reason));
    }
    Ok((info, GgufPlace { start, packed }))
}

/// Explains why a tensor of type `kind` is refused.
fn unread(kind: u32) -> String {
    let known = OTHER_TYPES.iter().find(|row| row.0 == kind);
    let kind = known.map_or(format!("of type {kind}"), |row| row.1.to_owned());
    let packed: Vec<&str> = PACKED.iter().map(|row| row.name).collect();
    let packed = packed.join(", ");
    format!(
        "it is {kind}, which is not supported (GGUF types that are: f32, f16, bf16, {packed}, i8 to i64, f64)"
    )
}

/// Sorts tensors by their values, and checks that these are within the file and do not overlap.
fn place(
    file: &SourceFile,
    mut found: Vec<(TensorInfo, GgufPlace)>,
    data_start: u64,
) -> Result<Vec<(TensorInfo, GgufPlace)>> {
    // A tensor without values overlaps nothing.
    found.sort_by_key(|(info, place)| (place.start, place.bytes(info)));
    let data_bytes = file.bytes().saturating_sub(data_start);
    let mut free = 0;
    for (info, place) in &mut found {
        let bytes = place.bytes(info);
        let refuse = |reason: String| Err(Error::tensor(file.path(), &info.name, reason));
        let Some(end) = place
            .start
            .checked_add(bytes)
            .filter(|&end| end <= data_bytes)
        else {
            let (size, start) = (file.bytes(), place.start);
            return refuse(format!(
                "its {bytes} bytes at offset {start} are not all in the file of {size} bytes"
            ));
        };
        if place.start < free && bytes > 0 {
            return refuse(format!(
                "its values at offset {} overlap others",
                place.start
            ));
        }
        free = free.max(end);
        place.start += data_start;
    }
    Ok(found)
}
