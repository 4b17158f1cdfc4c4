"""Tensors scaled and rotated before quantization: what the package reports about them,
and what it makes of them, against numpy. tests/data/transformed.parquet is described where it is
made, in src/run/transform_tests."""

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrowquant


@pytest.fixture
def file(root):
    return root / "tests" / "data" / "transformed.parquet"


@pytest.fixture
def model(file):
    with arrowquant.open(file) as model:
        yield model


def scale_of(tensor):
    return (0.5 + 0.25 * (np.arange(tensor.info.cols) % 5)).astype("<f2")


def test_what_was_done_to_a_tensor(model):
    both, plain = model["both"], model["plain"]
    assert both.input_scale.tolist() == scale_of(both).tolist()
    assert both.input_scale.dtype == np.float16 and not both.input_scale.flags.writeable
    assert both.rotation == arrowquant.Rotation(8, 77)
    assert model["seeded"].rotation == arrowquant.Rotation(block=128, seed=2**64 - 1)
    assert (plain.input_scale, plain.rotation) == (None, None)
    assert model["tiles"].input_scale is None
    tiles = model["tiles"].tiles
    assert len(tiles) == 3 and {tile.rotation for tile in tiles} == {arrowquant.Rotation(64, 0)}
    assert bytes(both.tiles[0].input_scale) == scale_of(both).tobytes()
    assert plain.tiles[0].input_scale is plain.tiles[0].rotation is None


def test_activation_params_by_timestep(model):
    both = model["both"]
    early = arrowquant.ActivationParams(t_begin=0, t_end=300, scale=0.25, zero_point=8)
    late = arrowquant.ActivationParams(t_begin=300, t_end=999, scale=0.5, zero_point=-1.5)
    assert [both.activation_params(t) for t in (0, 299, 300, 998)] == [early, early, late, late]
    assert model["kept"].activation_params(0).scale == 2
    for name, timestep in [("both", 999), ("both", -1), ("plain", 0), ("tiles", 9)]:
        expected = f"'{name}': it has no activation parameters for timestep {timestep}"
        with pytest.raises(arrowquant.TensorError, match=expected):
            model[name].activation_params(timestep)


def test_weights_and_products(model):
    assert model.verify().failures == ()
    for tensor in (model[name] for name in ("both", "plain", "tiles", "scaled", "seeded")):
        stored = np.concatenate([common.decode_tile(tile) for tile in tensor.tiles])
        rotation, scale = tensor.rotation, tensor.input_scale
        known = rotation and {"block": rotation.block, "seed": rotation.seed}
        expected = common.undo(stored, None if scale is None else scale.tobytes(), known)
        assert tensor.dequantize().tobytes() == expected.astype("<f4").tobytes()
        half = tensor.dequantize("f16")
        assert half.tobytes() == expected.astype("<f2").tobytes()
        x = common.noise(7, 3, tensor.info.cols)
        y = tensor.matvec(x)
        assert np.abs(y - x.astype("f8") @ expected.T).max() < 1e-5
        there = tensor.transform_activations(x)
        expected = x if scale is None else x / scale.astype("<f4")
        if rotation:
            expected = common.rotate(expected, rotation.block, rotation.seed)
        assert there.tobytes() == expected.astype("<f4").tobytes()
        assert np.abs(y - there.astype("f8") @ stored.T).max() < 1e-5
        assert tensor.transform_activations(x[0]).shape == (tensor.info.cols,)


def test_as_an_arrow_table(model, file):
    columns = ["name", "input_scale", "rotation", "activation"]
    exported = pa.table(model).select(columns)
    assert exported.to_pylist() == pq.read_table(file).select(columns).to_pylist()
    assert exported.column("rotation")[0].as_py() == {"block": 8, "seed": 77}
    assert len(exported.column("activation")[0]) == 2


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_files_that_another_program_wrote(model, file, tmp_path, compression):
    """pyarrow writes dictionaries, statistics and pages of its own, and all elements nullable."""
    path = tmp_path / "again.parquet"
    pq.write_table(pq.read_table(file), path, compression=compression, row_group_size=2)
    with arrowquant.open(path) as again:
        assert again.verify().failures == ()
        for name in model:
            assert again[name].dequantize().tobytes() == model[name].dequantize().tobytes()
            assert again[name].rotation == model[name].rotation
        assert again["both"].activation_params(300) == model["both"].activation_params(300)


def test_columns_of_another_programs_that_are_wrong(file, tmp_path):
    rows = pq.read_table(file)
    element = rows.schema.field("activation").type.value_type
    null = pa.array([[None]] + [None] * (len(rows) - 1), pa.list_(element))
    nan = [{"t_begin": 0, "t_end": 1, "scale": float("nan"), "zero_point": 0.0}]
    nan = pa.array([nan] + [None] * (len(rows) - 1), pa.list_(element))
    short = pa.array([b"\0\x3c"] + [None] * (len(rows) - 1), pa.binary())
    block = pa.array([{"block": 6, "seed": 0}] + [None] * (len(rows) - 1),
                     rows.schema.field("rotation").type)
    for column, values, reason in [
        ("activation", nan, "activation parameters"),
        ("input_scale", short, "input scale"),
        ("rotation", block, "cannot be rotated by 6"),
    ]:
        path = tmp_path / "wrong.parquet"
        index = rows.schema.get_field_index(column)
        pq.write_table(rows.set_column(index, column, values), path)
        with pytest.raises(arrowquant.Error, match=f"tensor 'both'.*{reason}"):
            arrowquant.open(path)
    # A null among ranges has no parameters: it is as if it were not there.
    index = rows.schema.get_field_index("activation")
    pq.write_table(rows.set_column(index, "activation", null), path)
    with arrowquant.open(path) as model:
        with pytest.raises(arrowquant.TensorError, match="no activation parameters"):
            model["both"].activation_params(0)
