//! GGUF files made by hand, valid and invalid. `tests/python/test_gguf.py` tests files written by
//! the package `gguf`.

use arrowquant::source::{self, Source};
use arrowquant::tensor::Dtype;

use crate::common::*;

mod packed;
mod parts;
mod shapes;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Makes a key of type `kind`.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

/// Makes a tensor's description; `dims` has the innermost first.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

/// Makes a file of version 3 with an alignment of 32.
fn gguf(keys: &[Vec<u8>], tensors: &[Vec<u8>], values: &[u8]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    file.extend(keys.concat());
    file.extend(tensors.concat());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(values);
    file
}

/// Makes a Q8_0 block of one scale and 32 integers.
fn q8_0(scale: f32, codes: [i8; 32]) -> Vec<u8> {
    let mut block = half::f16::from_f32(scale).to_le_bytes().to_vec();
    block.extend(codes.map(|code| code as u8));
    block
}

fn codes(start: i8) -> [i8; 32] {
    std::array::from_fn(|i| start.wrapping_add(i as i8))
}

/// Makes a file with f32 [2, 3], then Q8_0 [2, 32], in the order of their values.
fn small() -> Vec<u8> {
    let keys = [
        key("general.architecture", 8, &text("flux")),
        key("general.file_type", 4, &7u32.to_le_bytes()),
        key("flux.scale", 6, &0.5f32.to_le_bytes()),
        key("flux.guided", 7, &[1]),
        key(
            "tokens",
            9,
            &[
                &8u32.to_le_bytes()[..],
                &2u64.to_le_bytes(),
                &text("a"),
                &text("bc"),
            ]
            .concat(),
        ),
        key(
            "scores",
            9,
            &[&6u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0; 8]].concat(),
        ),
    ];
    let tensors = [
        tensor("packed.weight", &[32, 2], 8, 32),
        tensor("plain.weight", &[3, 2], 0, 0),
    ];
    let mut values: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    values.resize(32, 0);
    values.extend(q8_0(0.5, codes(-16)));
    values.extend(q8_0(-0.25, codes(96)));
    gguf(&keys, &tensors, &values)
}

fn opened(bytes: &[u8]) -> arrowquant::error::Result<Box<dyn Source>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    source::open(&path)
}

fn floats(source: &dyn Source, index: usize) -> Vec<f32> {
    let bytes = values_of(source, index);
    let floats = bytes.chunks_exact(4);
    floats
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn tensors_keys_and_values_of_a_small_file() {
    let source = opened(&small()).unwrap();
    let [plain, packed] = source.tensors() else {
        panic!("two tensors");
    };
    assert_eq!(
        (plain.name.as_str(), plain.dtype),
        ("plain.weight", Dtype::F32)
    );
    assert_eq!(plain.shape.dims(), [2, 3]);
    assert_eq!(
        (packed.name.as_str(), packed.dtype),
        ("packed.weight", Dtype::F32)
    );
    assert_eq!(packed.shape.dims(), [2, 32]);
    assert_eq!(floats(source.as_ref(), 0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let first = codes(-16).map(|code| f32::from(code) * 0.5);
    let second = codes(96).map(|code| f32::from(code) * -0.25);
    assert_eq!(floats(source.as_ref(), 1), [first, second].concat());
    let metadata = source.metadata().iter();
    let metadata: Vec<(&str, &str)> = metadata.map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = [
        ("flux.guided", "true"),
        ("flux.scale", "0.5"),
        ("general.architecture", "flux"),
        ("general.file_type", "7"),
    ];
    assert_eq!(metadata, expected);
    assert_eq!(source.id().name, "m.gguf");
    assert_eq!(source.id().bytes, small().len() as u64);
}

#[test]
fn what_it_is_decides_not_what_it_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    std::fs::write(&path, small()).unwrap();
    assert_eq!(source::open(&path).unwrap().tensors().len(), 2);
    std::fs::write(&path, b"PK\x03\x04 a pickle").unwrap();
    let message = source::open(&path).err().unwrap().to_string();
    assert!(
        message.contains("safetensors, GGUF and Parquet"),
        "{message}"
    );
    let path = folder.path().join("empty.gguf");
    std::fs::write(&path, b"").unwrap();
    let message = source::open(&path).err().unwrap().to_string();
    assert!(message.contains("not a readable GGUF file"), "{message}");
}

#[test]
fn it_is_quantized_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("m.gguf"), small()).unwrap();
    let model = quantized_and_verified(&at("m.gguf"), &at("m.parquet"));
    assert!(model.tensors().iter().all(|tensor| tensor.is_quantized()));
    assert_eq!(
        model.source_metadata().unwrap()["general.architecture"],
        "flux"
    );
}

#[test]
fn wrong_files_say_what_is_wrong() {
    let one = |info: Vec<u8>, values: usize| gguf(&[], &[info], &vec![0; values]);
    let twice = |name: &str| vec![tensor("a", &[8], 0, 0), tensor(name, &[8], 0, 16)];
    let list_of = |kind: u32, count: u64| {
        let list = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
        gguf(&[key("k", 9, &list)], &[], &[])
    };
    let version = |version: u32| {
        let mut file = small();
        file[4..8].copy_from_slice(&version.to_le_bytes());
        file
    };
    let counts = |at: usize| {
        let mut file = small();
        file[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        file
    };
    let alignment = |n: u32| gguf(&[key("general.alignment", 4, &n.to_le_bytes())], &[], &[]);
    let parts = key("split.count", 2, &3u16.to_le_bytes());
    for (file, parts) in [
        (
            version(1),
            &["version 1 is not supported (expected 2 or 3)"][..],
        ),
        (version(3 << 24), &["big-endian"]),
        (counts(8), &["no room for 18446744073709551615 tensors"]),
        (counts(16), &["no room for 18446744073709551615 keys"]),
        (
            alignment(24),
            &["general.alignment 24 is not a power of two"],
        ),
        (alignment(0), &["general.alignment 0"]),
        (gguf(&[parts], &[], &[]), &["one of 3 parts"]),
        (list_of(9, u64::MAX), &["no room for"]),
        (list_of(4, 1 << 62), &["no room for"]),
        (list_of(8, 1 << 40), &["no room for"]),
        (list_of(99, 1), &["a list of type 99"]),
        (
            gguf(&[key("k", 13, &[0; 8])], &[], &[]),
            &["a value of type 13"],
        ),
        (
            gguf(&[key("k", 7, &[0]), key("k", 7, &[0])], &[], &[]),
            &["'k' appears twice"],
        ),
        (
            one(tensor("w", &[256], 15, 0), 292),
            &["'w'", "it is Q8_K", "Q4_K, "],
        ),
        (one(tensor("w", &[8], 777, 0), 32), &["'w'", "of type 777"]),
        (
            one(tensor("w", &[33], 8, 0), 68),
            &["'w'", "blocks of Q8_0"],
        ),
        (
            one(tensor("w", &[8], 0, 0), 31),
            &["'w'", "32 bytes at offset 0"],
        ),
        (
            one(tensor("w", &[8], 0, 1 << 60), 32),
            &["'w'", "not all in the file"],
        ),
        (
            one(tensor("w", &[8], 0, 8), 64),
            &["'w'", "offset 8 is not a multiple of 32"],
        ),
        (
            one(tensor("w", &[1 << 40, 1 << 40], 0, 0), 32),
            &["'w'", "too large"],
        ),
        (
            one(tensor("w", &[1 << 62], 0, 0), 32),
            &["'w'", "too large"],
        ),
        (
            one(tensor("w", &[1; 65], 0, 0), 32),
            &["'w'", "65 dimensions"],
        ),
        (
            gguf(&[], &twice("a"), &[0; 64]),
            &["'a'", "not a multiple of 32"],
        ),
        (
            gguf(
                &[],
                &[tensor("a", &[9], 0, 0), tensor("b", &[8], 0, 32)],
                &[0; 64],
            ),
            &["'b'", "overlap"],
        ),
        (
            gguf(
                &[],
                &[tensor("a", &[8], 0, 0), tensor("a", &[8], 0, 32)],
                &[0; 64],
            ),
            &["'a'", "duplicate name"],
        ),
    ] {
        let message = opened(&file).err().expect("refused").to_string();
        for part in parts.iter().chain(&["m.gguf"]) {
            assert!(message.contains(part), "'{part}' is not in: {message}");
        }
    }
}

/// If it is truncated anywhere, or any byte of the header is changed, a file is refused or is
/// another valid one, without a panic or an out-of-bounds read.
#[test]
fn any_damage_is_survived() {
    let whole = small();
    let check = |bytes: &[u8]| {
        if let Ok(source) = opened(bytes) {
            for index in 0..source.tensors().len() {
                values_of(source.as_ref(), index);
            }
        }
    };
    for end in 0..whole.len() {
        assert!(opened(&whole[..end]).is_err(), "{end} bytes");
    }
    for at in 0..whole.len() - 132 {
        for value in [0, 1, 0x7F, 0x80, 0xFF, whole[at] ^ 1, whole[at] ^ 0x80] {
            let mut changed = whole.clone();
            changed[at] = value;
            check(&changed);
        }
    }
}
