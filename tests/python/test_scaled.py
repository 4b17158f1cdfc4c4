"""f8 weights with scales, against numpy and ml_dtypes: in every form that files have them."""

import json
import os
import subprocess

import ml_dtypes
import numpy as np
import pytest

import arrowquant as aq
from common import noise, write_safetensors

E4M3, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
NAMES = {
    np.dtype(E4M3): "F8_E4M3",
    np.dtype(E5M2): "F8_E5M2",
    np.dtype(E8M0): "F8_E8M0",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype("f8"): "F64",
}
# Weights of neighbouring blocks differ, so that a scale that is applied to others shows.
SPREAD = 1.5


def save(path, tensors, metadata=None):
    def named(array):
        array = np.asarray(array)
        name = NAMES.get(array.dtype)
        return (name, array.view(f"u{array.itemsize}")) if name else array

    return write_safetensors(path, {k: named(v) for k, v in tensors.items()}, metadata)


def blocked(seed, shape, block, dtype=E4M3):
    """Makes weights, their f8 values, and the scales of blocks."""
    rng = np.random.default_rng(seed)
    counts = [-(-n // b) for n, b in zip(shape, block)]
    spread = expand(np.exp(rng.normal(size=counts) * SPREAD), shape, block)
    weights = (rng.standard_normal(shape) * 0.02 * spread).astype("f4")
    scales = np.zeros(counts, "f4")
    largest = float(ml_dtypes.finfo(dtype).max)
    for at in np.ndindex(*counts):
        part = tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, block))
        scales[at] = np.abs(weights[part]).max() / largest
    values = (weights / expand(scales, shape, block)).astype(dtype)
    return weights, values, scales


def expand(scales, shape, block):
    for axis, (n, b) in enumerate(zip(shape, block)):
        scales = np.repeat(scales, b, axis=axis).take(range(n), axis=axis)
    return scales


def alike(found, true, cosine=0.9999):
    found, true = found.astype("f8").ravel(), true.astype("f8").ravel()
    norms = np.sqrt((found @ found) * (true @ true))
    assert found @ true / norms > cosine
    assert 0.99 < np.sqrt(found @ found / (true @ true)) < 1.01


def exact(values, scales):
    """The values of a source: the product in f32, rounded to bf16."""
    product = values.astype("f4") * scales.astype("f4")
    return product.astype(ml_dtypes.bfloat16).astype("f4")


def quantized(path, tmp_path, **settings):
    settings = {"bits": 8, "group_size": 32} | settings
    aq.quantize(path, tmp_path / "out.parquet", **settings)
    return aq.open(tmp_path / "out.parquet")


FORMS = {
    # name: shape, block, leaf of the scale, its shape (None: as it is), dtype
    "comfy scalar": ((96, 80), (96, 80), "scale_weight", (), E4M3),
    "scalar of one element": ((96, 80), (96, 80), "weight_scale", (1,), E4M3),
    "e5m2 scalar": ((96, 80), (96, 80), "scale_weight", (), E5M2),
    "a scale for each row": ((96, 80), (1, 80), "weight_scale", (96, 1), E4M3),
    "rows as a vector": ((96, 80), (1, 80), "weight_scale", (96,), E4M3),
    "1 x N": ((96, 80), (96, 1), "weight_scale", None, E4M3),
    "blocks that divide": ((256, 384), (128, 128), "weight_scale_inv", None, E4M3),
    "short last blocks": ((310, 450), (128, 128), "weight_scale_inv", None, E4M3),
    "blocks of 64": ((200, 130), (64, 64), "weight_scale", None, E4M3),
    "blocks of rows only": ((303, 50), (64, 50), "weight_scale_inv", None, E4M3),
    "groups of a row": ((40, 310), (1, 128), "weight_scale", None, E4M3),
    "e5m2 blocks": ((151, 301), (128, 128), "weight_scale_inv", None, E5M2),
    "a convolution": ((24, 8, 3, 3), (1, 8, 3, 3), "weight_scale", (24, 1, 1, 1), E4M3),
    "a stack of experts": ((3, 96, 160), (1, 64, 64), "weight_scale_inv", None, E4M3),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_values_times_scales(tmp_path, form):
    shape, block, leaf, scale_shape, dtype = FORMS[form]
    weights, values, scales = blocked(1, shape, block, dtype)
    stored = scales if scale_shape is None else scales.reshape(scale_shape)
    tensors = {"a.weight": values, f"a.{leaf}": stored, "b.weight": noise(2, 64, 64)}
    path = save(tmp_path / "m.safetensors", tensors)
    with quantized(path, tmp_path, keep=["b.weight"]) as model:
        assert model["a.weight"].info.dtype == "bf16"
        assert not any("scale" in name for name in model)
        alike(model["a.weight"].dequantize(), exact(values, expand(scales, shape, block)))
        # e5m2 has 2 bits of mantissa.
        alike(model["a.weight"].dequantize(), weights, 0.999 if dtype is E4M3 else 0.995)
    # Kept, they are the products to the bit.
    with quantized(path, tmp_path, keep=["*"]) as model:
        true = exact(values, expand(scales, shape, block))
        np.testing.assert_array_equal(model["a.weight"].dequantize(), true.reshape(shape))


def test_what_files_say_or_other_weights_tell_settles_doubts(tmp_path):
    # Blocks of 100 or of 128 rows.
    rng = np.random.default_rng(1)
    values = noise(1, 200, 40).astype(E4M3)
    scales = np.exp(rng.normal(size=(2, 1))).astype("f4")
    tensors = {"a.weight": values, "a.weight_scale_inv": scales}
    folder = tmp_path / "model"
    folder.mkdir()
    path = save(folder / "model.safetensors", tensors)
    with pytest.raises(aq.TensorError, match="blocks of 100 or of 128"):
        aq.Plan.create(folder)
    config = {"quant_method": "fp8", "weight_block_size": [100, 128]}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    with quantized(folder, tmp_path, keep=["*"]) as model:
        true = exact(values, expand(scales, (200, 40), (100, 40)))
        np.testing.assert_array_equal(model["a.weight"].dequantize(), true)
    (folder / "config.json").unlink()
    _, others, other_scales = blocked(2, (576, 40), (128, 40))
    save(path, tensors | {"b.weight": others, "b.weight_scale_inv": other_scales})
    with quantized(folder, tmp_path, keep=["*"]) as model:
        true = exact(values, expand(scales, (200, 40), (128, 40)))
        np.testing.assert_array_equal(model["a.weight"].dequantize(), true)


@pytest.mark.parametrize("scale_dtype", [E8M0, np.uint8])
def test_mxfp8(tmp_path, scale_dtype):
    rng = np.random.default_rng(5)
    weights = (rng.standard_normal((48, 160)) * np.exp(rng.normal(size=(48, 1)))).astype("f4")
    largest = np.abs(weights.reshape(48, 5, 32)).max(2)
    power = np.clip(np.floor(np.log2(largest)) - 8, -127, 127)
    values = np.clip(weights / np.repeat(2.0**power, 32, 1), -448, 448).astype(E4M3)
    codes = (power + 127).astype("u1")
    scales = codes.view(E8M0) if scale_dtype is E8M0 else codes
    path = save(tmp_path / "m.safetensors", {"a.weight": values, "a.weight_scale": scales})
    with quantized(path, tmp_path) as model:
        assert list(model) == ["a.weight"]
        alike(model["a.weight"].dequantize(), exact(values, np.repeat(2.0**power, 32, 1)))


def test_comfyui_files_leave_nothing_to_apply_twice(tmp_path):
    weights, values, scales = blocked(1, (96, 80), (96, 80))
    comfy = np.frombuffer(b'{"format": "float8_e4m3fn"}', "u1")
    layers = {"p.a": {"format": "float8_e4m3fn"}, "p.b": {"format": "float8_e4m3fn"}}
    tensors = {
        "scaled_fp8": np.zeros(2, E4M3),
        "p.a.weight": values,
        "p.a.weight_scale": scales.reshape(()),
        "p.a.input_scale": np.array(1.0, "f4"),
        "p.a.comfy_quant": comfy,
        "p.a.bias": noise(3, 96),
        "p.b.weight": values,
        "p.b.scale_weight": scales.reshape(()),
        "p.b.scale_input": np.array(1.0, "f4"),
    }
    metadata = {"_quantization_metadata": json.dumps({"layers": layers}), "other": "kept"}
    path = save(tmp_path / "m.safetensors", tensors, metadata)
    plan = aq.Plan.create(path)
    evidence = "\n".join(plan.evidence)
    for name in tensors:
        if name not in ("p.a.weight", "p.a.bias", "p.b.weight"):
            assert name in evidence
    with quantized(path, tmp_path) as model:
        assert sorted(model) == ["p.a.bias", "p.a.weight", "p.b.weight"]
        back = tmp_path / "back.safetensors"
        model.dequantize(back, "f32")
        record = json.loads(model.metadata["arrowquant.source"])
        assert "2 f8 weights are multiplied by their scales" in record["notes"][0]
        assert json.loads(model.metadata["arrowquant.source_metadata"]) == {"other": "kept"}
    length = int.from_bytes(back.read_bytes()[:8], "little")
    header = json.loads(back.read_bytes()[8 : 8 + length])
    assert header["__metadata__"] == {"other": "kept"}


def cli(*args):
    command = [os.environ["ARROWQUANT_CLI"], *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_program_says_so_in_a_line(tmp_path):
    _, values, scales = blocked(1, (96, 80), (96, 80))
    tensors = {"a.weight": values, "a.scale_weight": scales.reshape(())}
    path = save(tmp_path / "m.safetensors", tensors)
    line = (
        "source: 1 f8 weight is multiplied by its scale, one per tensor, and rounded to bf16: "
        "a.scale_weight"
    )
    for args in (["plan", path], ["quantize", path, tmp_path / "m.parquet"]):
        code, text = cli(*args)
        assert code == 0 and line in text, text
    code, text = cli("inspect", tmp_path / "m.parquet")
    assert code == 0 and line in text, text


def test_budget_ladder_calibration_and_verify_see_true_weights(tmp_path):
    # Scales a million apart: unscaled weights of the two layers look alike.
    tensors, true = {}, {}
    for i, factor in enumerate((1e-3, 1e3)):
        weights, values, scales = blocked(i, (128, 128), (64, 64))
        tensors[f"l.{i}.weight"] = values
        tensors[f"l.{i}.weight_scale_inv"] = scales * factor
        true[f"l.{i}.weight"] = exact(values, expand(scales * np.float32(factor), (128, 128), (64, 64)))
    scaled = save(tmp_path / "scaled.safetensors", tensors)
    wide = {name: array.astype(ml_dtypes.bfloat16) for name, array in true.items()}
    wide = save(tmp_path / "wide.safetensors", wide)
    calibration = aq.Calibration()
    for name in true:
        calibration.observe(name, 1, noise(7, 64, 128))
    calibration.save(tmp_path / "c.aqcal")
    for settings in (
        {"avg_bits": 4.5},
        {"bits": 2, "min_cosine": 0.99},
        {"bits": 4, "calibration": tmp_path / "c.aqcal"},
    ):
        planes = []
        for path in (scaled, wide):
            aq.quantize(path, tmp_path / "out.parquet", **settings)
            with aq.open(tmp_path / "out.parquet") as model:
                planes.append(
                    [
                        (name, tile.recipe, bytes(tile.codes), bytes(tile.scales))
                        for name in model
                        for tile in model[name].tiles
                    ]
                )
        assert planes[0] == planes[1]
        # Against the scaled file and against the true weights.
        for path in (scaled, wide):
            code, text = cli("verify", tmp_path / "out.parquet", "--against", path)
            assert code == 0, text


def test_arrays_in_memory_are_resolved_too(tmp_path):
    _, values, scales = blocked(1, (96, 80), (96, 80))
    arrays = {"a.weight": values, "a.weight_scale": scales.reshape(())}
    data, _ = aq.quantize_to_bytes(arrays, bits=8)
    with aq.open(data) as model:
        assert list(model) == ["a.weight"]
        alike(model["a.weight"].dequantize(), exact(values, scales))


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"a.weight_scale": np.ones((3, 7), "f4")}, ["a.weight", "a.weight_scale"]),
        ({"a.weight_scale": np.ones(80, "f4")}, ["a.weight", "a.weight_scale"]),
        ({"a.weight_scale": np.ones((2, 1), "i4")}, ["a.weight", "a.weight_scale"]),
        # Blocks of 48 or of 64.
        ({"a.weight_scale": np.ones((2, 1), "f4")}, ["a.weight", "a.weight_scale"]),
        (
            {"a.weight_scale": np.array(1, "f4"), "a.scale_weight": np.array(1, "f4")},
            ["a.weight_scale", "a.scale_weight"],
        ),
        ({"a.scale": np.ones((96, 1), "f4")}, ["a.weight", "a.scale"]),
        (
            {"a.weight_scale": np.array(1, "f4"), "a.weight_scale_2": np.array(1, "f4")},
            ["a.weight", "a.weight_scale"],
        ),
        ({"a.weight_scale": np.ones((96, 8), "u1")}, ["a.weight", "a.weight_scale"]),
        ({"a.weight_scale_2": np.array(1, "f4")}, ["a.weight", "a.weight_scale_2"]),
        # Names that nobody knows.
        ({"a.weight_scales": np.ones((96, 1), "f4")}, ["a.weight", "a.weight_scales"]),
        ({"a.scales": np.ones((96, 1), "f4")}, ["a.weight", "a.scales"]),
        ({"a.weight.scale": np.ones((96, 1), "f4")}, ["a.weight", "a.weight.scale"]),
        ({"a.Weight_Scale": np.array(1, "f4")}, ["a.weight", "a.Weight_Scale"]),
        (
            {"a.weight_scale": np.array(1, "f4"), "a.dequant_scale": np.array(1, "f4")},
            ["a.weight", "a.dequant_scale"],
        ),
        # Inputs are multiplied, too.
        (
            {"a.weight_scale": np.array(1, "f4"), "a.pre_quant_scale": np.ones(80, "f4")},
            ["a.weight", "a.pre_quant_scale"],
        ),
        ({"b.weight_scale": np.array(1, "f4")}, ["b.weight_scale", "b.weight"]),
        (
            {"b.weight": noise(1, 8, 8), "b.scale_weight": np.array(2, "f4")},
            ["b.scale_weight", "b.weight"],
        ),
    ],
)
def test_uncertain_scales_are_errors_that_name_both(tmp_path, extra, names):
    values = noise(1, 96, 80).astype(E4M3)
    path = save(tmp_path / "m.safetensors", {"a.weight": values} | extra)
    for command in (["plan", path], ["quantize", path, tmp_path / "m.parquet"]):
        code, text = cli(*command)
        assert code == 1 and "error:" in text
        assert all(f"'{name}'" in text for name in names), text
    assert not (tmp_path / "m.parquet").exists()
    # Whoever wants the file as it is can have it.
    with quantized(path, tmp_path, packed="keep") as model:
        for name, array in extra.items():
            if "scale" in name:
                (tile,) = model[name].tiles
                assert tile.recipe is None and bytes(tile.codes) == array.tobytes()


def test_experts_that_are_stacked_have_scales(tmp_path):
    _, values, scales = blocked(1, (3, 96, 160), (1, 64, 64))
    tensors = {"e.gate_up_proj": values, "e.gate_up_proj_scale_inv": scales}
    other = {"e.down_proj": values, "e.down_proj_scale": np.full((3, 1, 1), 0.25, "f4")}
    path = save(tmp_path / "m.safetensors", tensors | other)
    with quantized(path, tmp_path, keep=["*"]) as model:
        assert sorted(model) == ["e.down_proj", "e.gate_up_proj"]
        true = exact(values, expand(scales, (3, 96, 160), (1, 64, 64)))
        np.testing.assert_array_equal(model["e.gate_up_proj"].dequantize().ravel(), true.ravel())
        true = exact(values, np.float32(0.25))
        np.testing.assert_array_equal(model["e.down_proj"].dequantize().ravel(), true.ravel())


def test_scales_that_files_promise_must_be_there(tmp_path):
    path = save(tmp_path / "model.safetensors", {"a.weight": noise(1, 96, 80).astype(E4M3)})
    assert cli("plan", path)[0] == 0
    config = {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, text = cli("plan", path)
    assert code == 1 and "'a.weight': it is f8 without a scale" in text
    assert "'a.weight_scale'" in text


def test_f8_without_scales_is_what_it_says(tmp_path):
    values = noise(1, 96, 80).astype(E4M3)
    path = save(tmp_path / "m.safetensors", {"scaled_fp8": np.zeros(0, E4M3), "a.weight": values})
    with quantized(path, tmp_path, keep=["a.weight"]) as model:
        assert list(model) == ["a.weight"] and model["a.weight"].info.dtype == "f8_e4m3"
    _, others, scales = blocked(1, (96, 80), (96, 80))
    tensors = {"a.weight": values, "b.weight": others, "b.weight_scale": scales.reshape(())}
    path = save(tmp_path / "n.safetensors", tensors)
    code, text = cli("plan", path)
    assert code == 0 and "warning: 1 f8 matrix without a scale" in text, text
