//! Small GGUF files, whole and in parts.

/// Name of the part that [`seeds`] has, and of the one that belongs beside it.
pub const PARTS: [&str; 2] = ["part-00001-of-00002.gguf", "part-00002-of-00002.gguf"];

/// Numbers of the packed types, with weights and bytes of a block.
const PACKED: &[(u32, u64, usize)] = &[
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (20, 32, 18),
    (23, 256, 136),
];

/// Files to start from: one with every type of key and tensor, and the first of two parts.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut keys = vec![
        key("general.alignment", 4, &32u32.to_le_bytes()),
        key("general.name", 8, &text("seed")),
        list("list", &[1]),
        list("comfy.gguf.orig_shape.plain", &[1, 4, 1]),
    ];
    let mut tensors = vec![Tensor::new("plain", &[2, 2], 0, 16)];
    for &(kind, weights, bytes) in PACKED {
        let name = format!("packed {kind}");
        keys.push(list(
            &format!("comfy.gguf.orig_shape.{name}"),
            &[2, weights as i32 / 2],
        ));
        tensors.push(Tensor::new(&name, &[weights], kind, bytes));
    }
    let whole = file(&keys, &tensors);
    let first = file(&split(0), &[Tensor::new("a", &[32, 2], 8, 68)]);
    vec![("every-kind", whole), ("first-part", first)]
}

/// The part that belongs beside the first.
pub fn second_part() -> Vec<u8> {
    file(&split(1), &[Tensor::new("b", &[3], 1, 6)])
}

fn split(no: u16) -> Vec<Vec<u8>> {
    vec![
        key("split.no", 2, &no.to_le_bytes()),
        key("split.count", 2, &2u16.to_le_bytes()),
        key("split.tensors.count", 5, &2i32.to_le_bytes()),
        list("comfy.gguf.orig_shape.b", &[3, 1]),
    ]
}

struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    bytes: usize,
}

impl Tensor {
    fn new(name: &str, dims: &[u64], kind: u32, bytes: usize) -> Self {
        let (name, dims) = (name.to_owned(), dims.to_vec());
        Self {
            name,
            dims,
            kind,
            bytes,
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

/// A key with a list of i32.
fn list(name: &str, numbers: &[i32]) -> Vec<u8> {
    let mut value = 5u32.to_le_bytes().to_vec();
    value.extend((numbers.len() as u64).to_le_bytes());
    numbers.iter().for_each(|n| value.extend(n.to_le_bytes()));
    key(name, 9, &value)
}

/// A file whose values are some that repeat.
fn file(keys: &[Vec<u8>], tensors: &[Tensor]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    file.extend(keys.concat());
    let mut offset = 0;
    for tensor in tensors {
        file.extend(text(&tensor.name));
        file.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor
            .dims
            .iter()
            .for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(tensor.kind.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset = (offset + tensor.bytes).next_multiple_of(32);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..offset).map(|i| (i * 37 % 61) as u8));
    file
}
