"""Models packed by another quantizer: refused, or kept byte for byte."""

import json
import os
import subprocess

import ml_dtypes
import numpy as np
import pytest

import arrowquant as aq
from common import NUMPY, noise, read_safetensors, write_safetensors

F8 = ml_dtypes.float8_e4m3fn
RNG = np.random.default_rng(3)


def cli(*args):
    command = [os.environ["ARROWQUANT_CLI"], *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def integers(dtype, *shape):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return RNG.integers(low, high, shape, dtype=dtype, endpoint=True)


def small(dtype, *shape):
    """Makes scales: small and positive."""
    return (np.abs(RNG.normal(size=shape)) * 0.003 + 0.001).astype(dtype)


def half(array):
    """Makes bf16 as in safetensors, because numpy lacks it."""
    return ("BF16", np.asarray(array).astype(ml_dtypes.bfloat16).view("<u2"))


def f8(array):
    return ("F8_E4M3", np.asarray(array).astype(F8).view("u1"))


def nvfp4():
    layer = {"format": "nvfp4"}
    tensors = {
        "a.weight": integers("u1", 384, 64),
        "a.weight_scale": f8(small("f4", 384, 8) * 5e4),
        "a.weight_scale_2": np.array(3e-5, "f4"),
        "a.comfy_quant": np.frombuffer(json.dumps(layer).encode(), "u1"),
    }
    layers = {"format_version": "1.0", "layers": {"a": layer}}
    return "ComfyUI nvfp4", tensors, {"_quantization_metadata": json.dumps(layers)}, None


def comfy_int8():
    layer = json.dumps({"format": "int8_tensorwise"}).encode()
    tensors = {
        "a.weight": integers("i1", 64, 64),
        "a.weight_scale": np.array(0.01, "f4"),
        "a.comfy_quant": np.frombuffer(layer, "u1"),
    }
    return "ComfyUI int8_tensorwise", tensors, None, None


def gptq():
    tensors = {
        "a.qweight": integers("i4", 32, 256),
        "a.qzeros": np.full((2, 32), 0x77777777, "i4"),
        "a.scales": small("f2", 2, 256),
        "a.g_idx": (np.arange(256) // 128).astype("i4"),
    }
    return "gptq", tensors, None, {"quant_method": "gptq", "bits": 4, "group_size": 128}


def auto_round():
    _, tensors, _, _ = gptq()
    del tensors["a.g_idx"]
    return "auto-round", tensors, None, {"quant_method": "auto-round", "bits": 4}


def awq():
    tensors = {
        "a.qweight": integers("i4", 256, 32),
        "a.qzeros": integers("i4", 2, 32),
        "a.scales": small("f2", 2, 256),
    }
    return "AWQ", tensors, None, None


def bitsandbytes():
    state = json.dumps({"quant_type": "nf4", "shape": [64, 64]}).encode()
    tensors = {
        "a.weight": integers("u1", 2048, 1),
        "a.weight.absmax": integers("u1", 64),
        "a.weight.quant_map": small("f4", 16),
        "a.weight.nested_absmax": small("f4", 1),
        "a.weight.nested_quant_map": small("f4", 256),
        "a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, "u1"),
    }
    return "bitsandbytes 4-bit", tensors, None, None


def bitsandbytes_int8():
    tensors = {
        "a.weight": integers("i1", 64, 64),
        "a.SCB": small("f4", 64, 1),
        "a.weight_format": np.array(0, "u1"),
    }
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return "bitsandbytes", tensors, None, config


def torchao():
    tensors = {
        "a._weight_qdata": integers("i1", 64, 32),
        "a._weight_scale": half(small("f4", 64, 2)),
        "a._weight_zero_point": half(small("f4", 64, 2)),
    }
    return "torchao", tensors, {"a.weight": "{}"}, None


def compressed_tensors():
    tensors = {
        "a.weight_packed": integers("i4", 64, 8),
        "a.weight_scale": half(small("f4", 64, 2)),
        "a.weight_shape": np.array([64, 64]),
    }
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return "compressed-tensors", tensors, None, config


def quanto():
    tensors = {
        "a.weight._data": integers("i1", 64, 64),
        "a.weight._scale": half(small("f4", 64, 1)),
        "a.input_scale": half(1.0),
        "a.output_scale": half(1.0),
    }
    return "quanto", tensors, {"quantization_format": "quanto"}, None


def sdnq():
    tensors = {
        "a.weight": integers("u1", 64, 32),
        "a.scale": small("f4", 64, 4),
        "a.zero_point": noise(1, 64, 4),
        "a.svd_up": half(noise(2, 64, 8)),
        "a.svd_down": half(noise(3, 8, 64)),
    }
    return "sdnq", tensors, None, {"quant_method": "sdnq", "weights_dtype": "uint4"}


def mlx():
    tensors = {
        "a.weight": integers("u4", 64, 8),
        "a.scales": half(small("f4", 64, 1)),
        "a.biases": half(noise(4, 64, 1)),
    }
    return "MLX", tensors, None, {"group_size": 64, "bits": 4}


def nunchaku():
    tensors = {
        "a.qweight": integers("i1", 128, 64),
        "a.wscales": half(small("f4", 2, 128)),
        "a.smooth": half(small("f4", 128)),
        "a.smooth_orig": half(small("f4", 128)),
        "a.proj_down": half(noise(5, 128, 32)),
        "a.proj_up": half(noise(6, 128, 32)),
    }
    config = json.dumps({"method": "svdquant", "weight": {"dtype": "int4"}})
    return "svdquant", tensors, {"quantization_config": config}, None


SCHEMES = [
    nvfp4, comfy_int8, gptq, auto_round, awq, bitsandbytes, bitsandbytes_int8, torchao,
    compressed_tensors, quanto, sdnq, mlx, nunchaku,
]  # fmt: skip
NUMPY |= {"I8": "i1", "I32": "<i4", "U32": "<u4", "F64": "<f8"}


@pytest.fixture(params=SCHEMES, ids=lambda scheme: scheme.__name__)
def model(request, tmp_path):
    """Returns the scheme's name, and a folder with a packed and an unpacked layer."""
    name, tensors, metadata, config = request.param()
    folder = tmp_path / "model"
    folder.mkdir()
    plain = {"a.bias": noise(7, 64), "b.weight": noise(8, 128, 96), "norm.weight": noise(9, 64)}
    write_safetensors(folder / "model.safetensors", tensors | plain, metadata)
    if config is not None:
        text = json.dumps({"architectures": ["X"], "quantization_config": config})
        (folder / "config.json").write_text(text)
    return name, folder, tensors


def test_packed_models_are_refused(model, tmp_path):
    name, folder, _ = model
    for command in (["plan", folder], ["quantize", folder, tmp_path / "out.parquet"]):
        code, text = cli(*command)
        assert code == 1 and f"already quantized ({name})" in text, text
        assert "start from the original weights" in text
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(aq.TensorError, match="already quantized"):
        aq.Plan.create(folder)


def test_packed_models_are_kept_byte_for_byte(model, tmp_path):
    name, folder, tensors = model
    out, back = tmp_path / "out.parquet", tmp_path / "back.safetensors"
    code, text = cli("quantize", folder, out, "--packed", "keep", "--bits", "2")
    assert code == 0 and f"already quantized ({name})" in text, text
    with aq.open(out) as found:
        assert found["b.weight"].tiles[0].recipe is not None
        for tensor in (*tensors, "a.bias", "norm.weight"):
            assert found[tensor].tiles[0].recipe is None, tensor
        found.dequantize(back)
        source = json.loads(found.metadata["arrowquant.source_metadata"])
    original = read_safetensors(folder / "model.safetensors")
    decoded = read_safetensors(back)
    for tensor in (*tensors, "a.bias", "norm.weight"):
        assert decoded[tensor].tobytes() == original[tensor].tobytes(), tensor
        assert decoded[tensor].shape == original[tensor].shape, tensor
    if "nvfp4" in name:
        assert "a" in json.loads(source["_quantization_metadata"])["layers"]
    assert cli("verify", out, "--against", folder)[0] == 0


def test_a_pattern_does_not_reach_companions(model, tmp_path):
    _, folder, tensors = model
    plan = aq.Plan.create(folder, packed="keep", rules=["*=bits:8", "re:scale=bits:4"])
    formats = {entry.name: entry.format for entry in plan}
    assert formats["b.weight"] == "int8"
    assert all(formats[name] == "kept" for name in tensors)


def test_a_config_without_packed_weights_is_told(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"b.weight": noise(1, 128, 96)})
    config = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, text = cli("plan", tmp_path)
    assert code == 0 and "packed by awq, but none are packed here" in text, text
    assert "int4" in text


def test_components_of_a_pipeline_have_their_own_schemes(tmp_path):
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for component, tensors, config in (
        ("transformer", {"b.weight": noise(1, 128, 96)}, {}),
        (
            "text_encoder_2",
            {"a.weight": integers("u1", 2048, 1), "c.weight": noise(2, 64, 64)},
            {"quantization_config": {"quant_method": "bitsandbytes"}},
        ),
    ):
        (tmp_path / component).mkdir()
        write_safetensors(tmp_path / component / "model.safetensors", tensors)
        (tmp_path / component / "config.json").write_text(json.dumps(config))
    code, text = cli("plan", tmp_path)
    assert code == 1 and "text_encoder_2.a.weight': already quantized (bitsandbytes)" in text
    plan = aq.Plan.create(tmp_path, packed="keep")
    formats = {entry.name: entry.format for entry in plan}
    assert formats["transformer.b.weight"] == "int4" and formats["text_encoder_2.a.weight"] == "kept"


# f64, and weights that are all zero


def test_f64_is_read_as_f32(tmp_path):
    weights = RNG.standard_normal((64, 96))
    arrays = {"a.weight": weights, "a.bias": weights[0]}
    found, report = aq.quantize_to_bytes(arrays, bits=4)
    narrow = {name: array.astype("f4") for name, array in arrays.items()}
    expected, _ = aq.quantize_to_bytes(narrow, bits=4)
    assert report.totals.quantized == 1
    with aq.open(found) as found, aq.open(expected) as expected:
        for plane in ("codes", "scales"):
            tiles = [model["a.weight"].tiles[0] for model in (found, expected)]
            assert bytes(getattr(tiles[0], plane)) == bytes(getattr(tiles[1], plane))
        # What is kept keeps its bytes.
        assert bytes(found["a.bias"].tiles[0].codes) == weights[0].tobytes()
        assert found["a.bias"].info.dtype == "f64"
        np.testing.assert_array_equal(found["a.bias"].dequantize("f32"), narrow["a.bias"])


@pytest.mark.parametrize(("value", "ok"), [(1e-50, True), (1e300, False)])
def test_f64_values_that_f32_does_not_hold_are_told(tmp_path, value, ok):
    weights = RNG.standard_normal((64, 96))
    weights[3, 5] = value
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"a.weight": ("F64", weights)})
    code, text = cli("quantize", path, tmp_path / "m.parquet")
    assert "source: 1 tensor is f64" in text
    if ok:
        assert code == 0 and "warning: f64 weights outside the range of f32" in text, text
    else:
        assert code == 1 and "row 3, column 5 is inf as f32, of f64" in text, text


def test_all_zero_weights_are_named_and_have_no_cosine(tmp_path):
    path = tmp_path / "m.safetensors"
    tiny = np.full((64, 64), 1e-30, "f4")
    tensors = {"a.weight": np.zeros((64, 64), "f4"), "b.weight": noise(1, 64, 64), "c.weight": tiny}
    write_safetensors(path, tensors)
    code, text = cli("quantize", path, tmp_path / "m.parquet", "--report", tmp_path / "r.json")
    assert code == 0 and "warning: all weights are zero" in text and "a.weight" in text
    line = next(line for line in text.splitlines() if "all weights are zero" in line)
    assert "b.weight" not in line and "c.weight" not in line
    report = json.loads((tmp_path / "r.json").read_text())
    cosines = {tensor["name"]: tensor["cosine"] for tensor in report["tensors"]}
    assert cosines["a.weight"] is None and cosines["b.weight"] > 0.9
    code, text = cli("verify", tmp_path / "m.parquet", "--against", path)
    assert code == 0, text
    _, report = aq.quantize_to_bytes(tensors)
    assert report["a.weight"].cosine is None
