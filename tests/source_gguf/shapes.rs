//! True shapes of tensors that are stored in other shapes.

use super::*;

/// Makes a key with a list of numbers of 4 bytes.
fn list(name: &str, kind: u32, numbers: &[i32]) -> Vec<u8> {
    let mut value = kind.to_le_bytes().to_vec();
    value.extend((numbers.len() as u64).to_le_bytes());
    numbers.iter().for_each(|n| value.extend(n.to_le_bytes()));
    key(name, 9, &value)
}

/// Makes the key with the shape of tensor `name`, outermost dimension first.
pub fn shape(name: &str, dims: &[i32]) -> Vec<u8> {
    list(&format!("comfy.gguf.orig_shape.{name}"), 5, dims)
}

#[test]
fn tensors_have_their_true_shapes() {
    let keys = [
        shape("conv.weight", &[2, 4, 3, 1]),
        shape("packed.weight", &[4, 24]),
        shape("scalar", &[]),
        shape("not there", &[7]),
        key("general.name", 8, &text("reshaped")),
    ];
    let infos = [
        tensor("conv.weight", &[24], 0, 0),
        tensor("packed.weight", &[32, 3], 8, 96),
        tensor("scalar", &[1], 0, 224),
        tensor("as it is", &[2, 3], 0, 256),
    ];
    let mut values: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
    (0..3).for_each(|row| values.extend(q8_0(1.0, codes(32 * row))));
    values.resize(288, 0);
    let file = gguf(&keys, &infos, &values);
    let source = opened(&file).unwrap();
    let shapes: Vec<&[usize]> = source.tensors().iter().map(|t| t.shape.dims()).collect();
    assert_eq!(shapes, [&[2, 4, 3, 1][..], &[4, 24], &[], &[3, 2]]);
    // The order of the values is unchanged.
    let counted = |end: u8| -> Vec<f32> { (0..end).map(f32::from).collect() };
    assert_eq!(floats(source.as_ref(), 0), counted(24));
    assert_eq!(floats(source.as_ref(), 1), counted(96));
    let names: Vec<&String> = source.metadata().keys().collect();
    assert_eq!(names, ["general.name"]);

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("m.gguf"), file).unwrap();
    let model = quantized_and_verified(&at("m.gguf"), &at("m.parquet"));
    let shapes: Vec<&[usize]> = model
        .tensors()
        .iter()
        .map(|t| t.info.shape.dims())
        .collect();
    assert!(shapes.contains(&&[2, 4, 3, 1][..]), "{shapes:?}");
}

#[test]
fn wrong_shapes_are_refused() {
    let name = "comfy.gguf.orig_shape.w";
    let key_of_f32 = key(name, 6, &1f32.to_le_bytes());
    for (key, reason) in [
        (
            shape("w", &[2, 5]),
            "it is stored as [2, 4], which does not have",
        ),
        (
            shape("w", &[8, 0]),
            "does not have the elements of its shape [8, 0]",
        ),
        (shape("w", &[i32::MAX; 5]), "does not have the elements"),
        (shape("w", &[-2, -4]), "has a dimension of -2"),
        (
            shape("w", &[1; 65]),
            "has 65 dimensions, which exceed the limit of 64",
        ),
        (list(name, 4, &[2, 4]), "is not a list of i32"),
        (list(name, 10, &[8, 0, 0, 0]), "is not a list of i32"),
        (key_of_f32, "is not a list of i32"),
        (key(name, 8, &text("[2, 4]")), "is not a list of i32"),
    ] {
        let info = tensor("w", &[4, 2], 0, 0);
        let refused = opened(&gguf(&[key], &[info], &[0; 32])).err();
        let message = refused.expect("refused").to_string();
        for part in ["m.gguf: tensor 'w'", reason, name] {
            assert!(message.contains(part), "'{part}' is not in: {message}");
        }
    }
    let twice = [shape("w", &[8]), shape("w", &[8])];
    let refused = opened(&gguf(&twice, &[tensor("w", &[4, 2], 0, 0)], &[0; 32]));
    let message = refused.err().expect("refused").to_string();
    assert!(
        message.contains(&format!("key '{name}' appears twice")),
        "{message}"
    );
}
