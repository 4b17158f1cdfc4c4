"""The package works without numpy and other packages."""

import base64
import json

import numpy as np
import pytest

import arrowquant as aq
from common import round_to_bf16, write_safetensors, noise

PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numpy", "tqdm", "pyarrow", "ml_dtypes"):
            raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, Missing())
try:
    import numpy
except ModuleNotFoundError:
    pass
else:
    sys.exit("numpy is there")

import array, base64, json
import arrowquant as aq

model_path, output, back = sys.argv[1:]
text = lambda data: base64.b64encode(bytes(memoryview(data).cast("B"))).decode()
report = aq.quantize(model_path, output, bits=4, group_size=32, progress=True)
model = aq.open(output)
tensor = model["w.weight"]
x = array.array("f", range(100))
(tile,) = tensor.tiles
weights = array.array("f", (i * 37 % 101 / 50 - 1 for i in range(256)))
planes = aq.kernels.quantize_rows(weights, rows=4, bits=8, group_size=16, scheme="affine")
y = aq.kernels.dequantize_rows(planes)
assert type(y) is array.array and y.typecode == "f" and len(y) == 256
assert max(abs(a - b) for a, b in zip(weights, y)) < 0.01
assert aq.kernels.compare(weights, y).cosine > 0.9999
acts = aq.kernels.quantize_vectors(planes, weights[:64])
assert acts.values.typecode == "b" and acts.sums.typecode == "f"
assert type(tensor.dequantize()) is array.array and type(tensor.dequantize("f16")) is bytes
file, _ = aq.quantize_to_bytes({"w.weight": tensor.dequantize()}, bits=8)
assert len(aq.open(file)["w.weight"].dequantize()) == 2000
try:
    tile.numpy()
except ImportError as error:
    assert "pip install numpy" in str(error)
else:
    sys.exit("numpy() gave something")
model.dequantize(back)
assert model.verify(model_path, min_cosine=0.9)
model.__arrow_c_stream__()
print(json.dumps({
    "cosine": report.totals.cosine,
    "codes": text(tile.codes), "scales": text(tile.scales),
    "f32": text(tensor.dequantize()), "f16": text(tensor.dequantize("f16")),
    "bf16": text(tensor.dequantize("bf16")),
    "rows": text(tensor.dequantize(rows=slice(3, 5))),
    "y": text(tensor.matvec(x)),
    "int8": text(aq.kernels.matvec_int8(planes, acts)),
    "kernel": [text(planes.codes), text(planes.scales), text(planes.biases), text(y)],
    "slice": text(tensor[3:5]), "row": text(tensor[7]),
    "products": text(aq.kernels.matvec(tensor, x)),
}))
"""


def test_all_works_without_numpy(python, tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {"w.weight": noise(1, 20, 100)})
    output, back = tmp_path / "m.parquet", tmp_path / "b.safetensors"
    done = python(PROGRAM, path, output, back)
    assert "100%" in done.stderr
    found = json.loads(done.stdout)
    data = lambda key: base64.b64decode(found[key])

    wanted = tmp_path / "wanted.parquet"
    report = aq.quantize(path, wanted, bits=4, group_size=32)
    assert output.read_bytes() == wanted.read_bytes() and back.exists()
    assert found["cosine"] == report.totals.cosine
    tensor = aq.open(wanted)["w.weight"]
    planes, y = tensor.tiles[0].numpy(), tensor.dequantize()
    assert data("codes") == planes.codes.tobytes() and data("scales") == planes.scales.tobytes()
    assert data("f32") == y.tobytes() and data("f16") == y.astype("<f2").tobytes()
    assert data("bf16") == round_to_bf16(y).tobytes() and data("rows") == y[3:5].tobytes()
    x = np.arange(100, dtype="<f4")
    assert data("y") == tensor.matvec(x).tobytes()
    assert np.frombuffer(data("y"), "<f4") == pytest.approx(np.float64(y) @ x, rel=1e-3, abs=1e-2)
    weights = np.array([i * 37 % 101 / 50 - 1 for i in range(256)], "<f4").reshape(4, 64)
    kernel = aq.kernels.quantize_rows(weights, bits=8, group_size=16, scheme="affine")
    parts = [kernel.codes, kernel.scales, kernel.biases, aq.kernels.dequantize_rows(kernel).tobytes()]
    assert [base64.b64decode(part) for part in found["kernel"]] == parts
    acts = aq.kernels.quantize_vectors(kernel, weights[0])
    assert data("int8") == aq.kernels.matvec_int8(kernel, acts).tobytes()
    assert data("slice") == data("rows") and data("row") == y[7].tobytes()
    assert data("products") == data("y")
