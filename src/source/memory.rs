//! Tensors in memory.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use bytes::Bytes;

use super::{Source, SourceId};
use crate::error::{Error, MEMORY, Result};
use crate::tensor::{Dtype, Shape, TensorInfo, check_limits};

/// A source of tensors given by the caller, borrowed or owned, in the order they were added. If
/// they include f8 weights with scales, or packed weights, quantize the source returned by
/// [`resolve`](super::resolve).
///
/// ```
/// use arrowquant::{plan::Config, run, source::MemorySource, tensor::Dtype};
///
/// let weights: Vec<u8> = (0..64 * 256).flat_map(|i| (i as f32).sin().to_le_bytes()).collect();
/// let mut source = MemorySource::new();
/// source.add("layers.0.mlp.weight", Dtype::F32, &[64, 256], &weights[..])?;
///
/// let plan = run::plan(&source, &Config::new())?;
/// let entry = &plan.entries[0];
/// assert_eq!(entry.tensor.name, "layers.0.mlp.weight");
/// # Ok::<(), arrowquant::error::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemorySource<'a> {
    tensors: Vec<TensorInfo>,
    names: HashSet<String>,
    values: Vec<Values<'a>>,
    metadata: BTreeMap<String, String>,
}

/// The values of a tensor: borrowed, or kept alive by their owner.
#[derive(Debug, Clone)]
pub struct Values<'a>(Inner<'a>);

#[derive(Debug, Clone)]
enum Inner<'a> {
    Borrowed(&'a [u8]),
    Shared(Bytes),
}

impl Values<'_> {
    fn get(&self) -> &[u8] {
        match &self.0 {
            Inner::Borrowed(values) => values,
            Inner::Shared(values) => values,
        }
    }
}

impl<'a> From<&'a [u8]> for Values<'a> {
    fn from(values: &'a [u8]) -> Self {
        Self(Inner::Borrowed(values))
    }
}

impl From<Vec<u8>> for Values<'_> {
    fn from(values: Vec<u8>) -> Self {
        Bytes::from(values).into()
    }
}

impl From<Bytes> for Values<'_> {
    fn from(values: Bytes) -> Self {
        Self(Inner::Shared(values))
    }
}

impl<'a> MemorySource<'a> {
    /// Makes a source without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor of little-endian values.
    ///
    /// # Errors
    /// The name is taken or too long, the shape overflows, or the length of `values` does not match
    /// shape and dtype.
    pub fn add(
        &mut self,
        name: &str,
        dtype: Dtype,
        dims: &[usize],
        values: impl Into<Values<'a>>,
    ) -> Result<()> {
        let values = values.into();
        let refuse = |reason: String| Err(Error::tensor(Path::new(MEMORY), name, reason));
        check_limits(name, dims.len()).map_err(|reason| Error::file(Path::new(MEMORY), reason))?;
        if self.names.contains(name) {
            return refuse("added twice".into());
        }
        let Some(shape) = Shape::new(dims.to_vec()) else {
            return refuse(format!("shape {dims:?} is too large"));
        };
        let info = TensorInfo {
            name: name.to_owned(),
            dtype,
            shape,
        };
        match info.bytes() {
            Some(bytes) if bytes == values.get().len() => {
                self.names.insert(name.to_owned());
                self.tensors.push(info);
                self.values.push(values);
                Ok(())
            }
            _ => refuse(format!(
                "{} bytes do not match shape {} of {dtype}",
                values.get().len(),
                info.shape
            )),
        }
    }

    /// Adds key and value text, which is preserved.
    pub(super) fn add_metadata(&mut self, key: String, value: String) {
        self.metadata.insert(key, value);
    }
}

impl Source for MemorySource<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.values[index].get()[offset..offset + out.len()]);
        Ok(())
    }

    fn path_of(&self, _index: usize) -> &Path {
        self.path()
    }

    fn path(&self) -> &Path {
        Path::new(MEMORY)
    }

    fn id(&self) -> SourceId {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for tensor in &self.tensors {
            let (name, dtype, dims) = (&tensor.name, tensor.dtype, &tensor.shape);
            hasher.update(format!("{name}\0{dtype}\0{dims}\0").as_bytes());
        }
        SourceId {
            name: MEMORY.to_owned(),
            bytes: self.values.iter().map(|v| v.get().len() as u64).sum(),
            header_hash: format!("{:016x}", hasher.digest()),
        }
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_names_are_checked() {
        let mut source = MemorySource::new();
        source.add("w", Dtype::F16, &[2, 3], vec![0; 12]).unwrap();
        let message = |result: Result<()>| result.unwrap_err().to_string();
        assert!(
            message(source.add("w", Dtype::F16, &[1], vec![0; 2])).contains("'w': added twice")
        );
        assert!(message(source.add("v", Dtype::F32, &[2], vec![0; 7])).contains("7 bytes"));
        assert!(message(source.add("v", Dtype::F4, &[3], vec![0; 2])).contains("2 bytes"));
        assert!(message(source.add("v", Dtype::F32, &[1 << 62, 4], vec![])).contains("too large"));
        assert_eq!(source.tensors().len(), 1);
    }
}
