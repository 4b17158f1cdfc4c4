//! Importance matrices: statistics of a model's activations, collected by llama.cpp or
//! stable-diffusion.cpp. For each input channel of each layer they have the sum of the observed
//! squares.
//!
//! There are two formats. A GGUF file has tensors `NAME.in_sum2` and `NAME.counts` (f32): sums, and
//! the number of summands, one count per matrix if a layer has several (experts). The older format,
//! all little-endian: i32 number of entries; for each an i32 length of its name, the name, i32
//! number of calls, i32 number of values and these, sums times calls over counts, as f32. The
//! number of chunks and the data set's name may follow and are ignored.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::SourceFile;
use super::{GgufSource, Source};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, MAX_NAME, MAX_TENSORS};

/// Suffixes of tensor names.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Mean squares of the inputs of a model's layers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Imatrix {
    /// The mean square of each input channel, finite and not negative, by the name of the layer's
    /// weight in the file. A layer of several matrices (experts) has those of one matrix after the
    /// other.
    pub layers: BTreeMap<String, Vec<f32>>,
}

impl Imatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// The file cannot be read, is not an importance matrix, or has invalid values.
    pub fn read(path: &Path) -> Result<Self> {
        let file = SourceFile::open(path)?;
        let mut magic = [0; 4];
        if file.bytes() >= 4 {
            file.read_header(&mut magic, 0)?;
        }
        let layers = match &magic {
            b"GGUF" => read_gguf(&GgufSource::open(path)?)?,
            _ => read_legacy(&file)?,
        };
        Ok(Self { layers })
    }

    /// Returns the mean squares for a tensor with this name, with or without `.weight` at the end.
    /// Only exact names match.
    pub fn find(&self, tensor: &str) -> Option<&[f32]> {
        const WEIGHT: &str = ".weight";
        let found = self
            .layers
            .get(tensor)
            .or_else(|| match tensor.strip_suffix(WEIGHT) {
                Some(layer) => self.layers.get(layer),
                None => self.layers.get(&format!("{tensor}{WEIGHT}")),
            });
        found.map(Vec::as_slice)
    }
}

fn read_gguf(source: &GgufSource) -> Result<BTreeMap<String, Vec<f32>>> {
    let path = source.path();
    if let Some(kind) = source
        .metadata()
        .get("general.type")
        .filter(|kind| *kind != "imatrix")
    {
        return Err(Error::file(
            path,
            format!("of type '{kind}', not an importance matrix"),
        ));
    }
    let names = source.tensors().iter().map(|info| info.name.as_str());
    let by_name: BTreeMap<&str, usize> = names.zip(0..).collect();
    let other = |name: &str, layer: &str, end: &str| {
        let found = by_name.get(format!("{layer}{end}").as_str()).copied();
        found.ok_or_else(|| Error::tensor(path, name, format!("has no '{layer}{end}' beside it")))
    };
    let mut layers = BTreeMap::new();
    for (name, &sums) in &by_name {
        if let Some(layer) = name.strip_suffix(COUNTS) {
            other(name, layer, SUMS)?;
        }
        let Some(layer) = name.strip_suffix(SUMS) else {
            continue;
        };
        let counts = other(name, layer, COUNTS)?;
        let (mut values, counts) = (read_f32(source, sums)?, read_f32(source, counts)?);
        if counts.is_empty() || values.is_empty() || values.len() % counts.len() != 0 {
            let (values, counts) = (values.len(), counts.len());
            let reason = format!("{values} sums for {counts} counts");
            return Err(Error::tensor(path, layer, reason));
        }
        let cols = values.len() / counts.len();
        for (values, count) in values.chunks_exact_mut(cols).zip(counts) {
            // Counts are integers.
            let count = libm::rintf(count);
            // Without observations, all channels count equally.
            let mean = |sum: f32| if count > 0.0 { sum / count } else { 1.0 };
            values.iter_mut().for_each(|value| *value = mean(*value));
        }
        check(path, layer, &values)?;
        layers.insert(layer.to_owned(), values);
    }
    match layers.is_empty() {
        true => Err(Error::file(
            path,
            "not an importance matrix: it has no sums of squares",
        )),
        false => Ok(layers),
    }
}

/// Reads the values of a tensor, which the source has checked to be within the file.
fn read_f32(source: &GgufSource, index: usize) -> Result<Vec<f32>> {
    let info = &source.tensors()[index];
    if info.dtype != Dtype::F32 {
        let reason = format!("sums and counts must be f32, not {}", info.dtype);
        return Err(Error::tensor(source.path(), &info.name, reason));
    }
    let mut bytes = vec![0; info.shape.elements() * 4];
    source.read(index, 0, &mut bytes)?;
    Ok(numbers(&bytes))
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.as_chunks().0.iter();
    numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Checks that a layer's values can be mean squares.
fn check(path: &Path, layer: &str, values: &[f32]) -> Result<()> {
    match values
        .iter()
        .position(|value| !(value.is_finite() && *value >= 0.0))
    {
        None => Ok(()),
        Some(at) => {
            let reason = format!("the mean square of input channel {at} is {}", values[at]);
            Err(Error::tensor(path, layer, reason))
        }
    }
}

fn read_legacy(file: &SourceFile) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut reader = ImatrixReader { file, position: 0 };
    let count = reader.number("its number of layers")?;
    // Each has at least a name of one byte, two numbers and a value.
    if count < 1 || count > MAX_TENSORS as i32 || reader.rest() / 17 < count as u64 {
        let reason = "neither a calibration nor an importance matrix, by its first bytes";
        return Err(Error::file(file.path(), reason));
    }
    let mut layers = BTreeMap::new();
    for i in 0..count {
        let len = reader.number("the length of a name")?;
        if !(1..=MAX_NAME as i32).contains(&len) {
            return Err(reader.refuse(&format!("layer {i} has a name of {len} bytes")));
        }
        let name = reader.take(len as u64, &format!("the name of layer {i}"))?;
        let name = String::from_utf8(name)
            .map_err(|_| reader.refuse(&format!("the name of layer {i} is not UTF-8")))?;
        let calls = reader.number("a number of calls")?;
        let cols = reader.number("a number of values")?;
        if cols < 1 {
            return Err(Error::tensor(
                file.path(),
                &name,
                format!("it has {cols} values"),
            ));
        }
        let bytes = reader.take(cols as u64 * 4, &format!("the values of '{name}'"))?;
        let mut values = numbers(&bytes);
        if calls > 0 {
            values.iter_mut().for_each(|value| *value /= calls as f32);
        }
        check(file.path(), &name, &values)?;
        if layers.insert(name.clone(), values).is_some() {
            return Err(Error::tensor(file.path(), &name, "duplicate name"));
        }
    }
    Ok(layers)
}

/// Reads a file from the beginning.
struct ImatrixReader<'a> {
    file: &'a SourceFile,
    position: u64,
}

impl ImatrixReader<'_> {
    fn refuse(&self, reason: &str) -> Error {
        let reason = format!("not a readable importance matrix: {reason}");
        Error::file(self.file.path(), reason)
    }

    fn rest(&self) -> u64 {
        self.file.bytes() - self.position
    }

    /// Reads this number of bytes, which are allocated only if the file has them.
    fn take(&mut self, count: u64, what: &str) -> Result<Vec<u8>> {
        let len = usize::try_from(count).ok().filter(|_| count <= self.rest());
        let Some(len) = len else {
            return Err(self.refuse(&format!("it ends before {what}")));
        };
        let mut bytes = vec![0; len];
        self.file.read_header(&mut bytes, self.position)?;
        self.position += count;
        Ok(bytes)
    }

    fn number(&mut self, what: &str) -> Result<i32> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

#[cfg(test)]
mod tests;
