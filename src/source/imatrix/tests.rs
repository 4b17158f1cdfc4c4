use super::*;

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Makes a GGUF file of f32 tensors, dimensions innermost first.
fn gguf(kind: Option<&str>, tensors: &[(&str, &[u64], &[f32])]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((1 + u64::from(kind.is_some())).to_le_bytes());
    if let Some(kind) = kind {
        file.extend([text("general.type"), vec![8, 0, 0, 0], text(kind)].concat());
    }
    // An array of one text.
    file.extend([text("imatrix.datasets"), vec![9, 0, 0, 0, 8, 0, 0, 0]].concat());
    file.extend([&1u64.to_le_bytes()[..], &text("wiki.txt")].concat());
    let mut data = Vec::new();
    for (name, dims, values) in tensors {
        file.extend([text(name), (dims.len() as u32).to_le_bytes().to_vec()].concat());
        file.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        file.extend([&0u32.to_le_bytes()[..], &(data.len() as u64).to_le_bytes()].concat());
        data.extend(floats(values));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}

fn int(value: i32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// Makes a file in the older format; name, calls and values of each layer.
fn legacy(layers: &[(&str, i32, &[f32])]) -> Vec<u8> {
    let mut file = int(layers.len() as i32);
    for (name, calls, values) in layers {
        let parts = [
            int(name.len() as i32),
            name.as_bytes().to_vec(),
            int(*calls),
        ];
        file.extend(parts.concat());
        file.extend([int(values.len() as i32), floats(values)].concat());
    }
    file
}

fn read(bytes: &[u8]) -> Result<Imatrix> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix.dat");
    std::fs::write(&path, bytes).unwrap();
    Imatrix::read(&path)
}

fn refused(bytes: &[u8]) -> String {
    let message = read(bytes).unwrap_err().to_string();
    assert!(message.contains("imatrix.dat: "), "{message}");
    message
}

#[test]
fn gguf_files_are_read() {
    let file = gguf(
        Some("imatrix"),
        &[
            ("blk.0.attn_q.weight.in_sum2", &[3], &[2.0, 8.0, 0.0]),
            ("blk.0.attn_q.weight.counts", &[1], &[4.0]),
            // Three experts with two channels each; the second one was not used.
            (
                "blk.0.ffn_up_exps.weight.in_sum2",
                &[2, 3],
                &[1.0, 2.0, 9.0, 9.0, 30.0, 60.0],
            ),
            (
                "blk.0.ffn_up_exps.weight.counts",
                &[1, 3],
                &[2.0, 0.0, 10.0],
            ),
            // Another statistic.
            ("blk.0.attn_q.weight.in_sum", &[3], &[0.0, -1.0, 5.0]),
        ],
    );
    let imatrix = read(&file).unwrap();
    assert_eq!(imatrix.layers.len(), 2);
    assert_eq!(
        imatrix.find("blk.0.attn_q.weight"),
        Some(&[0.5, 2.0, 0.0][..])
    );
    assert_eq!(
        imatrix.find("blk.0.attn_q"),
        imatrix.find("blk.0.attn_q.weight")
    );
    let experts = [0.5, 1.0, 1.0, 1.0, 3.0, 6.0];
    assert_eq!(imatrix.find("blk.0.ffn_up_exps.weight"), Some(&experts[..]));
    assert_eq!(imatrix.find("0.attn_q.weight"), None);
    // Files written before the type was recorded.
    let untyped = gguf(
        None,
        &[("a.in_sum2", &[1], &[3.0]), ("a.counts", &[1], &[2.0])],
    );
    assert_eq!(read(&untyped).unwrap().find("a.weight"), Some(&[1.5][..]));
}

#[test]
fn legacy_files_are_read() {
    let mut file = legacy(&[
        ("blk.1.ffn_down.weight", 4, &[2.0, 8.0]),
        ("out", 0, &[3.0]),
    ]);
    let expected = |file: &[u8]| {
        let imatrix = read(file).unwrap();
        assert_eq!(imatrix.find("blk.1.ffn_down.weight"), Some(&[0.5, 2.0][..]));
        // Not divided if nothing was counted.
        assert_eq!(imatrix.find("out"), Some(&[3.0][..]));
        assert_eq!(imatrix.layers.len(), 2);
    };
    expected(&file);
    file.extend([int(17), int(4), b"wiki".to_vec()].concat());
    expected(&file);
}

#[test]
fn what_is_no_importance_matrix_is_refused() {
    let sums: (&str, &[u64], &[f32]) = ("a.in_sum2", &[4], &[1.0; 4]);
    let cases = [
        (
            gguf(Some("model"), &[sums, ("a.counts", &[1], &[1.0])]),
            "of type 'model'",
        ),
        (gguf(Some("imatrix"), &[]), "has no sums"),
        (
            gguf(Some("imatrix"), &[("a.weight", &[1], &[1.0])]),
            "has no sums",
        ),
        (
            gguf(Some("imatrix"), &[sums]),
            "'a.in_sum2': has no 'a.counts'",
        ),
        (
            gguf(Some("imatrix"), &[("a.counts", &[1], &[1.0])]),
            "'a.counts': has no 'a.in_sum2'",
        ),
        (
            gguf(Some("imatrix"), &[sums, ("a.counts", &[3], &[1.0; 3])]),
            "4 sums for 3 counts",
        ),
        (
            gguf(Some("imatrix"), &[sums, ("a.counts", &[0], &[])]),
            "4 sums for 0 counts",
        ),
        (
            gguf(
                Some("imatrix"),
                &[
                    ("a.in_sum2", &[2], &[1.0, -1.0]),
                    ("a.counts", &[1], &[2.0]),
                ],
            ),
            "'a': the mean square of input channel 1 is -0.5",
        ),
        (
            legacy(&[("a", 1, &[1.0, f32::NAN])]),
            "'a': the mean square of input channel 1 is NaN",
        ),
        (legacy(&[("a", 1, &[f32::INFINITY])]), "channel 0 is inf"),
        (
            legacy(&[("a", 1, &[])]),
            "neither a calibration nor an importance matrix",
        ),
        (
            legacy(&[("a", 1, &[1.0]), ("a", 1, &[2.0])]),
            "'a': duplicate name",
        ),
        (
            legacy(&[]),
            "neither a calibration nor an importance matrix",
        ),
        (int(-1), "neither a calibration nor an importance matrix"),
        (Vec::new(), "it ends before its number of layers"),
        (b"GGU".to_vec(), "it ends before its number of layers"),
        (
            b"{\"a\":1} and more than this".to_vec(),
            "neither a calibration",
        ),
        (
            [int(1), int(i32::MAX), vec![0; 30]].concat(),
            "a name of 2147483647 bytes",
        ),
        (
            [int(1), int(-5), vec![0; 30]].concat(),
            "a name of -5 bytes",
        ),
        (
            [int(1), int(100), vec![b'a'; 30]].concat(),
            "ends before the name of layer 0",
        ),
        (
            [int(1), int(1), vec![0xFF], vec![0; 30]].concat(),
            "layer 0 is not UTF-8",
        ),
        (
            [int(1), int(1), b"a".to_vec(), int(1), int(-2), vec![0; 9]].concat(),
            "it has -2 values",
        ),
        // Two billion values that do not exist.
        (
            [
                int(1),
                int(1),
                b"a".to_vec(),
                int(1),
                int(i32::MAX),
                vec![0; 9],
            ]
            .concat(),
            "ends before the values of 'a'",
        ),
    ];
    for (bytes, text) in cases {
        let message = refused(&bytes);
        assert!(message.contains(text), "{message}, not {text}");
    }
}

#[test]
fn no_piece_of_a_file_is_taken_for_all_of_it() {
    let whole = legacy(&[("a.weight", 2, &[1.0, 2.0]), ("b.weight", 2, &[3.0])]);
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err(), "{len} bytes");
    }
    let whole = gguf(
        Some("imatrix"),
        &[("a.in_sum2", &[1], &[3.0]), ("a.counts", &[1], &[2.0])],
    );
    // Except for the padding at its end.
    for len in 0..whole.len() - 28 {
        assert!(read(&whole[..len]).is_err(), "{len} bytes");
    }
}
