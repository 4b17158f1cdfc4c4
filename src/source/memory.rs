//! Tensors that are in memory already.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::{Source, SourceId};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Shape, TensorInfo};

/// A source of tensors given by the caller, borrowed or owned, in the order they were added.
#[derive(Debug, Default)]
pub struct MemorySource<'a> {
    tensors: Vec<TensorInfo>,
    values: Vec<Cow<'a, [u8]>>,
    metadata: BTreeMap<String, String>,
}

/// What stands for a file name in messages about tensors in memory.
const PLACE: &str = "(memory)";

impl<'a> MemorySource<'a> {
    /// No tensors yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor of little-endian values.
    ///
    /// # Errors
    /// The name is taken, the shape overflows, or `values` has another length than shape and
    /// dtype say.
    pub fn add(
        &mut self,
        name: &str,
        dtype: Dtype,
        dims: &[usize],
        values: impl Into<Cow<'a, [u8]>>,
    ) -> Result<()> {
        let values = values.into();
        let refuse = |reason: String| Err(Error::tensor(Path::new(PLACE), name, reason));
        if self.tensors.iter().any(|tensor| tensor.name == name) {
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
            Some(bytes) if bytes == values.len() => {
                self.tensors.push(info);
                self.values.push(values);
                Ok(())
            }
            _ => refuse(format!(
                "{} bytes do not make shape {} of {dtype}",
                values.len(),
                info.shape
            )),
        }
    }
}

impl Source for MemorySource<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.values[index][offset..offset + out.len()]);
        Ok(())
    }

    fn path_of(&self, _index: usize) -> &Path {
        self.path()
    }

    fn path(&self) -> &Path {
        Path::new(PLACE)
    }

    fn id(&self) -> SourceId {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for tensor in &self.tensors {
            let (name, dtype, dims) = (&tensor.name, tensor.dtype, &tensor.shape);
            hasher.update(format!("{name}\0{dtype}\0{dims}\0").as_bytes());
        }
        SourceId {
            name: PLACE.to_owned(),
            bytes: self.values.iter().map(|values| values.len() as u64).sum(),
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
