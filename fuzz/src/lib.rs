//! What the fuzz targets share: mutators that keep files parseable, and the panic hook.

pub mod gguf;
pub mod json;
pub mod parquet;
pub mod parts;
pub mod safetensors;
pub mod thrift;

use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;

/// Panics end a run, except those that the library is about to make errors of.
pub fn end_on_panic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !arrowquant::error::panics_are_quiet() {
            hook(panic); // libFuzzer's, which aborts
        }
    }));
}

/// A folder of this process, in TMPDIR.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let make = || tempfile::tempdir().expect("a writable TMPDIR");
    FOLDER.get_or_init(make).path()
}

/// A safetensors file of one tensor of two bytes.
pub fn shard(tensor: &str) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([1, 2]);
    file
}

/// Opens a file of this name as a source, and reads the end of every tensor.
pub fn open_source(name: &str, file: &[u8]) {
    let path = folder().join(name);
    std::fs::write(&path, file).expect("room for a file");
    let Ok(source) = arrowquant::source::open(&path) else {
        return;
    };
    for (i, tensor) in source.tensors().iter().enumerate().take(1000) {
        let bytes = tensor.bytes().expect("checked when opened");
        let mut out = vec![0; bytes.min(1 << 12)];
        // What is packed may turn out damaged.
        let _ = source.read(i, bytes - out.len(), &mut out);
    }
}

/// The body of a mutator: three times of four by structure, else bytes as libFuzzer does it.
#[macro_export]
macro_rules! mutator {
    ($mutate:path, $data:ident, $size:ident, $max_size:ident, $seed:ident) => {{
        let mut random = Random::new($seed);
        let mut bytes = |bytes: &mut Vec<u8>| {
            let size = bytes.len();
            bytes.resize(size + 32, 0);
            let size = fuzzer_mutate(bytes, size, size + 32);
            bytes.truncate(size);
        };
        let by_structure = match random.below(4) {
            0 => None,
            _ => $mutate(&$data[..$size], &mut random, &mut bytes),
        };
        match by_structure {
            Some(changed) if changed.len() <= $max_size => {
                $data[..changed.len()].copy_from_slice(&changed);
                changed.len()
            }
            _ => fuzzer_mutate($data, $size, $max_size),
        }
    }};
}

/// Small repeatable random numbers (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u32) -> Self {
        Self(u64::from(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A number that is likely to be wrong in place of `value`.
    pub fn number(&mut self, value: i64) -> i64 {
        match self.below(10) {
            0 => value.wrapping_add(1),
            1 => value.wrapping_sub(1),
            2 => value.wrapping_mul(2),
            3 => value / 2,
            4 => -value,
            5 => 1 << self.below(63),
            6 => (1 << self.below(63)) - 1,
            7 => [
                0,
                -1,
                i64::MAX,
                i64::MIN,
                i64::from(i32::MAX),
                i64::from(i32::MIN),
            ][self.below(6)],
            8 => self.below(16) as i64,
            _ => value ^ (1 << self.below(63)),
        }
    }
}
