//! How such files are laid out, and damaged ones.

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::*;
use crate::run::{Options, verify};

/// The fields in the order of docs/format.md, put together by hand.
#[test]
fn the_checksum_is_over_the_fields_as_documented() {
    let (tile, [codes, scales, _]) = given()[0].quantized(0);
    let mut text = Vec::new();
    let mut field = |bytes: &[u8]| {
        text.extend((bytes.len() as u64).to_le_bytes());
        text.extend(bytes);
    };
    field(b"both");
    field(&[0; 4]);
    field(&[0; 8]);
    field(&[6, 0, 0, 0, 0, 0, 0, 0]);
    field(&[6, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0]);
    field(b"f32");
    field(b"int4");
    field(b"symmetric");
    field(&[16, 0, 0, 0]);
    field(b"f16");
    field(&[8, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]);
    // 0 to 300, 0.25, 8; 300 to 999, 0.5, -1.5.
    field(&[
        0, 0, 0, 0, 0x2C, 1, 0, 0, 0, 0, 0x80, 0x3E, 0, 0, 0, 0x41, 0x2C, 1, 0, 0, 0xE7, 3, 0, 0,
        0, 0, 0, 0x3F, 0, 0, 0xC0, 0xBF,
    ]);
    field(&codes);
    field(&scales);
    text.extend([0xFF; 8]); // biases
    let scale = [0x00, 0x38, 0x00, 0x3A, 0x00, 0x3C, 0x00, 0x3D, 0x00, 0x3E].repeat(8);
    text.extend((scale.len() as u64).to_le_bytes());
    text.extend(scale);
    assert_eq!(xxhash_rust::xxh3::xxh3_64(&text), tile.checksum);
}

/// Every bit of the columns counts: flipped, it is found by opening or verifying the file.
#[test]
fn no_flipped_bit_of_a_transform_passes_for_right() {
    let (_folder, path, model) = opened();
    let whole = std::fs::read(&path).unwrap();
    let expected: Vec<_> = (0..model.tensors().len())
        .map(|i| {
            (
                decoded(&model, i, Float::F32),
                model.tensors()[i].activation().to_vec(),
            )
        })
        .collect();
    let reader = SerializedFileReader::new(Bytes::from(whole.clone())).unwrap();
    let groups = reader.metadata().row_groups().iter();
    let chunks = groups.flat_map(|group| group.columns()).filter(|chunk| {
        let path = chunk.column_path().string();
        ["input_scale", "rotation", "activation"]
            .iter()
            .any(|c| path.starts_with(c))
    });
    let mut flipped = 0;
    for at in chunks.flat_map(|chunk| {
        let (start, len) = chunk.byte_range();
        start as usize..(start + len) as usize
    }) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        flipped += 1;
        let Ok(model) = Model::from_bytes(bytes) else {
            continue;
        };
        let options = Options {
            threads: 1,
            ..Options::default()
        };
        if verify(&model, None, None, options)
            .unwrap()
            .failures()
            .count()
            > 0
        {
            continue;
        }
        let found: Vec<_> = (0..model.tensors().len())
            .map(|i| {
                (
                    decoded(&model, i, Float::F32),
                    model.tensors()[i].activation().to_vec(),
                )
            })
            .collect();
        assert_eq!(found, expected, "byte {at}");
    }
    assert!(flipped > 1000, "{flipped}");
}

/// Another reader: the parquet crate's, which makes rows of any file.
#[test]
fn columns_hold_what_tiles_have() {
    let (_folder, path, _) = opened();
    let reader = SerializedFileReader::try_from(path.as_path()).unwrap();
    let tiles = all_tiles().into_iter().map(|(tile, _)| tile);
    let rows: Vec<_> = reader
        .get_row_iter(None)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(rows.len(), tiles.len());
    for (row, tile) in rows.iter().zip(tiles) {
        let column = |name: &str| row.get_column_iter().find(|c| c.0 == name).unwrap().1;
        match (column("input_scale"), &tile.input_scale) {
            (Field::Null, None) => {}
            (Field::Bytes(found), Some(scale)) => assert_eq!(found.data(), &scale[..]),
            other => panic!("{other:?}"),
        }
        match (column("rotation"), tile.rotation) {
            (Field::Null, None) => {}
            (Field::Group(found), Some(rotation)) => {
                let expected = [
                    Field::Int(rotation.block as i32),
                    Field::ULong(rotation.seed),
                ];
                assert!(found.get_column_iter().map(|c| c.1).eq(&expected));
            }
            other => panic!("{other:?}"),
        }
        let list = match column("activation") {
            Field::Null => &[],
            Field::ListInternal(list) => list.elements(),
            other => panic!("{other:?}"),
        };
        assert_eq!(list.len(), tile.activation.len());
        for (found, range) in list.iter().zip(tile.activation.iter()) {
            let Field::Group(found) = found else {
                panic!("{found:?}");
            };
            let expected = [
                Field::Int(range.t_begin),
                Field::Int(range.t_end),
                Field::Float(range.scale),
                Field::Float(range.zero_point),
            ];
            assert!(found.get_column_iter().map(|c| c.1).eq(&expected));
        }
    }
}

/// The file for readers in other languages is what the sink writes. `UPDATE_DATA=1` writes it anew.
#[test]
fn the_file_for_other_readers_is_of_these_tiles() {
    let (_folder, path, _) = opened();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/transformed.parquet");
    if std::env::var_os("UPDATE_DATA").is_some() {
        std::fs::copy(&path, &kept).unwrap();
    }
    // Without the footer, which has the program's version.
    let rows = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let (rest, _) = bytes.split_last_chunk::<8>().unwrap();
        let len = u32::from_le_bytes(*bytes[rest.len()..].first_chunk().unwrap());
        rest[..rest.len() - len as usize].to_vec()
    };
    assert!(rows(&path) == rows(&kept), "UPDATE_DATA=1 writes it anew");
}

/// A tile in parts is the same file.
#[test]
fn a_tile_that_comes_in_parts_is_the_same() {
    let (folder, path, _) = opened();
    let parts = folder.path().join("parts.parquet");
    let destination = Destination::File(StagedFile::create(&parts).unwrap());
    let mut sink = (PARQUET.create)(destination, false).unwrap();
    for (tile, planes) in given().iter().flat_map(Given::tiles) {
        let planes = planes.each_ref().map(Vec::as_slice);
        // Given up, it leaves nothing; begun anew, neither.
        let mut given_up = sink.open(&tile).unwrap();
        given_up.fill([&planes[0][..1], &[], &[]]).unwrap();
        drop(given_up);
        let mut open = sink.open(&tile).unwrap();
        open.fill(planes).unwrap();
        open.restart(&tile).unwrap();
        open.fill(planes).unwrap();
        open.end(Tile {
            checksum: 0,
            ..tile
        })
        .unwrap();
    }
    let (tile, [values, ..]) = kept();
    let mut buffer = Buffers::new(0).take(values.len());
    buffer.bytes_mut().copy_from_slice(&values);
    let planes = TileBuffers {
        codes: buffer,
        scales: None,
        biases: None,
    };
    put(sink.as_mut(), tile, planes);
    sink.finish(footer(), &mut || Ok(())).unwrap();
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&parts).unwrap());
}

#[test]
fn damaged_transforms_are_refused_by_name_and_reason() {
    let given = given();
    let refused = |tiles: Vec<(Tile, [Vec<u8>; 3])>| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.parquet");
        write(&path, tiles);
        Model::open(&path).unwrap_err().to_string()
    };
    let one = |change: &dyn Fn(&mut Tile)| {
        let (mut tile, planes) = given[0].quantized(0);
        change(&mut tile);
        refused(vec![(tile, planes)])
    };
    let scale = |at: usize, value: half::f16| {
        one(&|tile| {
            let mut scale = tile.input_scale.clone().unwrap().to_vec();
            scale[at * 2..at * 2 + 2].copy_from_slice(&value.to_le_bytes());
            tile.input_scale = Some(scale.into());
        })
    };
    let of_scale = "bad.parquet: tensor 'both': its input scale is not a finite f16 above 0";
    for value in [0.0, -0.0, -1.0, f32::INFINITY, f32::NAN] {
        let error = scale(39, half::f16::from_f32(value));
        assert!(error.contains(of_scale), "{value}: {error}");
    }
    for len in [0, 2, 79, 81, 82] {
        let error = one(&|tile| tile.input_scale = Some(vec![0x3C; len].into()));
        assert!(error.contains(of_scale), "{len}: {error}");
    }
    for block in [0, 1, 3, 16, 8192, 1 << 31] {
        let error = one(&|tile| tile.rotation = Some(Rotation { block, seed: 0 }));
        let expected = "tensor 'both': 40 columns cannot be rotated by";
        assert!(error.contains(expected), "{block}: {error}");
    }
    let ranges = |ranges: &[ActivationRange]| one(&|tile| tile.activation = ranges.into());
    for bad in [
        range(5, 5, 1.0, 0.0),
        range(5, 4, 1.0, 0.0),
        range(-1, 4, 1.0, 0.0),
        range(0, 4, 0.0, 0.0),
        range(0, 4, -1.0, 0.0),
        range(0, 4, f32::NAN, 0.0),
        range(0, 4, f32::INFINITY, 0.0),
        range(0, 4, 1.0, f32::NAN),
        range(0, 4, 1.0, f32::NEG_INFINITY),
    ] {
        let error = ranges(&[bad]);
        assert!(
            error.contains("tensor 'both': it has activation parameters"),
            "{error}"
        );
    }
    for (a, b) in [((0, 5), (4, 9)), ((5, 9), (0, 5)), ((0, 5), (0, 5))] {
        let error = ranges(&[range(a.0, a.1, 1.0, 0.0), range(b.0, b.1, 1.0, 0.0)]);
        assert!(error.contains("not in order of timesteps"), "{error}");
    }
    let many: Vec<_> = (0..=schema::MAX_RANGES as i32)
        .map(|t| range(t, t + 1, 1.0, 0.0))
        .collect();
    assert!(ranges(&many).contains("activation"));
    // Kept tensors were not transformed.
    let (mut tile, planes) = kept();
    tile.input_scale = Some(vec![0x3C; 6].into());
    assert!(refused(vec![(tile, planes)]).contains("'kept': it is kept, but has an input scale"));
    // Tiles of a tensor have all in common.
    let changes: [&dyn Fn(&mut Tile); 3] = [
        &|tile| tile.rotation = Some(Rotation { block: 64, seed: 1 }),
        &|tile| tile.input_scale = Some([0, 0x3C].repeat(192).into()),
        &|tile| tile.activation = Arc::default(),
    ];
    for change in changes {
        let mut tiles: Vec<_> = given[2].tiles().collect();
        change(&mut tiles[1].0);
        let error = refused(tiles);
        assert!(
            error.contains("'tiles': its tiles disagree on input scale"),
            "{error}"
        );
    }
}

/// Scales that decode, but not after all that was done to the columns is undone.
#[test]
fn weights_that_become_infinite_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.parquet");
    let (mut tile, [codes, scales, _]) = given()[3].quantized(0);
    tile.encoding = tile.encoding.unwrap().with_f32_scales();
    let mut wide: Vec<u8> = vec![0; scales.len() * 2];
    for (row, scale) in [1.0, 1e36, 1.0].into_iter().enumerate() {
        ScaleDtype::F32.put(&mut wide, row, scale);
    }
    let smallest = half::f16::from_bits(1).to_le_bytes();
    tile.input_scale = Some(smallest.repeat(7).into());
    tile.checksum = schema::checksum(&tile, &codes, Some(&wide), None);
    write(&path, [(tile, [codes, wide, Vec::new()])]);
    let model = Model::open(&path).unwrap();
    let expected = "tensor 'scaled': row 1 ";
    let error = model.check_tile(0, 0).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    for &float in Float::ALL {
        let mut out = vec![0; 3 * 7 * float.size()];
        let error = model.dequantize_rows(0, 0..3, float, &mut out).unwrap_err();
        assert!(error.to_string().contains("tensor 'scaled'"), "{error}");
        model
            .dequantize_rows(0, 0..1, Float::F32, &mut [0; 28])
            .unwrap();
    }
}
