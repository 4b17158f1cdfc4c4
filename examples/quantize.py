"""Quantizes a model, opens the result, shows its worst tensors, decodes and multiplies one, and
quantizes a matrix in memory.

    python quantize.py model.safetensors model.parquet

Settings may follow, with the keys of docs/configuration.md: bit_width=8 method=minmax.
"""

import array
import sys

import arrowquant
from arrowquant import kernels


def main(input, output, *settings):
    # From file to file, to 4 bits unless settings say otherwise.
    config = arrowquant.Config(bits=4)
    for setting in settings:
        key, _, value = setting.partition("=")
        config[key] = value

    def show_progress(done, total):
        print(f"\r{100 * done / total:3.0f}%", end="", file=sys.stderr)
        # Returning False would cancel.

    report = arrowquant.quantize(input, output, config=config, progress=show_progress)
    print(file=sys.stderr)
    total = report.totals
    print(
        f"{total.quantized} tensors quantized, {total.kept} kept: "
        f"{total.bits_per_weight:.3f} bits a weight, cosine {total.cosine:.5f}"
    )

    # The worst three; kept tensors have no cosine.
    worst = sorted((t for t in report if t.cosine is not None), key=lambda t: t.cosine)
    for tensor in worst[:3]:
        print(f"{tensor.cosine:.5f} {tensor.name}")

    # The worst one's first row, as it is now.
    with arrowquant.open(output) as model:
        tensor = model[worst[0].name]
        row = memoryview(tensor[0]).cast("B").cast("f")
        print(f"{tensor.info.rows} x {tensor.info.cols}: {row[0]:.6f} {row[1]:.6f} {row[2]:.6f}")

        # The products of its weights with a vector, without decoding them: that row.
        y = kernels.matvec(tensor, row)
        print(f"products: {y[0]:.4f} {y[1]:.4f} {y[2]:.4f}")

    # From memory to memory.
    rows, cols = 4, 64
    weights = array.array("f", (i * 37 % 101 / 50 - 1 for i in range(rows * cols)))
    planes = kernels.quantize_rows(weights, rows=rows, cols=cols, bits=4, group_size=32)
    print(
        f"{len(weights) * 4} bytes to {len(planes.codes) + len(planes.scales)}: "
        f"cosine {planes.quality.cosine:.5f}, {planes.quality.sqnr_db:.2f} dB"
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: quantize.py IN.safetensors OUT.parquet [KEY=VALUE]...")
    try:
        main(*sys.argv[1:])
    except arrowquant.Error as error:
        sys.exit(f"error {error.code}: {error}")
