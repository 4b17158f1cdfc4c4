"""Calibrations: compared with numpy, read back by pyarrow and DuckDB from files that
docs/calibration.md alone describes."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import duckdb
import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest

import arrowquant as aq
from common import from_bf16, noise, round_to_bf16


def stored(cal, path):
    """Header and rows of a saved calibration, by kind, layer and first timestep; the pieces of a
    Hessian joined to a symmetric matrix."""
    cal.save(path)
    table = pq.ParquetFile(path)
    header = json.loads(table.metadata.metadata[b"arrowquant.calibration"])
    bins, hessians = {}, {}
    for row in table.read().to_pylist():
        key = row["layer"], row["t_begin"]
        if row["kind"] == "bin":
            assert key not in bins
            bins[key] = row
            continue
        h = hessians.setdefault(key, {"rows": row["rows"], "numbers": [], "n": row["channels"]})
        assert row["kind"] == "hessian" and row["rows"] == h["rows"]
        done = row["first_row"]
        assert done * (done + 1) // 2 == len(h["numbers"])
        h["numbers"] += row["hessian"]
    for h in hessians.values():
        lower = np.zeros((h["n"], h["n"]))
        lower[np.tril_indices(h["n"])] = h["numbers"]
        h["matrix"] = lower + np.tril(lower, -1).T
    return header, bins, hessians


def bounds(i, count, timesteps):
    return i * timesteps // count, (i + 1) * timesteps // count


def bin_begin(t, count, timesteps):
    begins = [bounds(i, count, timesteps)[0] for i in range(count)]
    return max(begin for begin in begins if begin <= t)


def bucket(x):
    """Returns the bucket as in docs/calibration.md, by logarithms."""
    counts = np.zeros(641, int)
    magnitude = np.abs(np.float64(x).ravel())
    exponent = np.floor(np.log2(np.maximum(magnitude, 1e-300)))
    step = np.floor((magnitude / 2.0**exponent - 1) * 8)
    place = np.minimum((exponent + 20) * 8 + step + 1, 320)
    place = np.where(magnitude < 2.0**-20, 0, place)
    np.add.at(counts, (320 + np.sign(np.float64(x).ravel()) * place).astype(int), 1)
    return counts


def check(cal, path, seen, timesteps, bins, groups):
    """Compares the stored statistics with numpy, over all observations: (layer, timestep, f32 rows)."""
    header, found, hessians = stored(cal, path)
    assert header["timesteps"] == timesteps and header["bins"] == bins
    by_bin, by_group = {}, {}
    for layer, t, x in seen:
        by_bin.setdefault((layer, bin_begin(t, bins, timesteps)), []).append(x)
        by_group.setdefault((layer, bin_begin(t, groups, timesteps)), []).append(x)
    assert set(found) == set(by_bin)
    for (layer, begin), parts in by_bin.items():
        x, row = np.float64(np.concatenate(parts)), found[layer, begin]
        ends = {first: last for first, last in (bounds(i, bins, timesteps) for i in range(bins))}
        assert (row["t_end"], row["channels"], row["rows"]) == (ends[begin], x.shape[1], len(x))
        np.testing.assert_array_equal(row["low"], x.min(axis=0))
        np.testing.assert_array_equal(row["high"], x.max(axis=0))
        # Up to 256 rows add up in f32.
        np.testing.assert_allclose(row["squares"], (x * x).sum(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(row["histogram"], bucket(x))
        assert row["first_row"] == 0 and row["hessian"] == []
    if not header["hessian"]:
        assert hessians == {}
        return
    assert set(hessians) == set(by_group)
    for key, parts in by_group.items():
        x = np.float64(np.concatenate(parts))
        assert hessians[key]["rows"] == len(x)
        h = hessians[key]["matrix"]
        error = np.abs(h - x.T @ x)
        norms = np.sqrt((x * x).sum(axis=0))
        assert (error <= 1e-5 * np.outer(norms, norms)).all()


def activity(seed, timesteps=40):
    """Makes observations as of a model's layers, with different numbers of rows."""
    rng = np.random.default_rng(seed)
    for t in [*range(timesteps), 0, timesteps - 1, 7]:
        for layer, cols in (("blocks.0.qkv", 40), ("blocks.0.out", 7), ("head", 300)):
            rows = int(rng.integers(1, 60))
            x = rng.standard_t(3, (rows, cols)) * np.exp(rng.normal(0, 2, cols))
            yield layer, t, x.astype("<f4")


OPTIONS = {"timesteps": 40, "bins": 12, "hessian_groups": 4}


def calibrated(seen, **options):
    cal = aq.Calibration(**{**OPTIONS, **options})
    for layer, t, x in seen:
        cal.observe(layer, t, x)
    return cal


def test_sums_are_those_of_numpy(tmp_path):
    seen = list(activity(1))
    cal = calibrated(seen)
    check(cal, tmp_path / "c.parquet", seen, 40, 12, 4)
    rows = {}
    for layer, _, x in seen:
        rows[layer] = rows.get(layer, 0) + len(x)
    assert cal.layers == [(name, {"blocks.0.qkv": 40, "blocks.0.out": 7, "head": 300}[name], rows[name])
                          for name in sorted(rows)]


def test_saving_changes_nothing(tmp_path):
    seen = list(activity(2))
    cal = aq.Calibration(**OPTIONS)
    for i, (layer, t, x) in enumerate(seen):
        cal.observe(layer, t, x)
        if i == len(seen) // 2:
            cal.save(tmp_path / "half.parquet")
    check(cal, tmp_path / "c.parquet", seen, 40, 12, 4)
    # And half of it may be gone on with.
    cal = aq.Calibration.load(tmp_path / "half.parquet")
    for layer, t, x in seen[len(seen) // 2 + 1 :]:
        cal.observe(layer, t, x)
    check(cal, tmp_path / "c.parquet", seen, 40, 12, 4)


def test_more_rows_at_once_than_are_multiplied_together(tmp_path):
    seen = [("w", 3, noise(5, 1000, 24)), ("w", 39, noise(6, 256, 24)), ("w", 39, noise(7, 1, 24))]
    cal = aq.Calibration(**OPTIONS)
    for layer, t, x in seen:
        cal.observe(layer, t, x)
    check(cal, tmp_path / "c.parquet", seen, 40, 12, 4)


@pytest.mark.parametrize("rows", [1, 300])
def test_dtypes(tmp_path, rows):
    x = noise(8, rows, 33)
    bf16 = round_to_bf16(x)
    variants = {
        "f32": (x, x, {}),
        "f16": (x.astype("<f2"), x.astype("<f2").astype("<f4"), {}),
        "bf16": (bf16, from_bf16(bf16), {"dtype": "bf16"}),
        "ml_dtypes": (x.astype(ml_dtypes.bfloat16), from_bf16(bf16), {}),
    }
    for given, meant, options in variants.values():
        cal = aq.Calibration(**OPTIONS)
        cal.observe("w", 0, given, **options)
        check(cal, tmp_path / "c.parquet", [("w", 0, meant)], 40, 12, 4)


def test_dimensions_before_the_last_are_rows(tmp_path):
    x = noise(9, 2, 3, 4, 5)
    with aq.Calibration(**OPTIONS) as cal:
        cal.observe("w.weight", 1, x)
        cal.observe("w", 1, x[0, 0, 0])
        cal.observe("w", 1, memoryview(x[0]))
        cal.observe("w", 1, np.zeros((0, 5), "<f4"))
        assert cal.layers == [aq.LayerInfo("w", 5, 24 + 1 + 12)]
    with pytest.raises(aq.ArgumentError, match="Calibration is closed"):
        cal.observe("w", 1, x)


def test_no_hessian(tmp_path):
    seen = [("w", t, noise(t, 5, 6)) for t in range(7)]
    cal = aq.Calibration(timesteps=7, bins=7, hessian=False)
    for layer, t, x in seen:
        cal.observe(layer, t, x)
    check(cal, tmp_path / "c.parquet", seen, 7, 7, 1)
    again = aq.Calibration.load(tmp_path / "c.parquet")
    check(again, tmp_path / "d.parquet", seen, 7, 7, 1)


def test_file_is_read_by_duckdb(tmp_path):
    seen = list(activity(3))
    calibrated(seen).save(tmp_path / "c.parquet")
    found = duckdb.sql(
        f"SELECT layer, SUM(rows), SUM(list_sum(squares)), SUM(list_sum(histogram)) "
        f"FROM '{tmp_path / 'c.parquet'}' WHERE kind = 'bin' GROUP BY layer ORDER BY layer"
    ).fetchall()
    assert len(found) == 3
    for layer, rows, squares, values in found:
        x = [x for name, _, x in seen if name == layer]
        assert rows == sum(map(len, x)) and values == sum(part.size for part in x)
        assert squares == pytest.approx(sum((np.float64(part) ** 2).sum() for part in x), rel=1e-5)


def test_schedule(tmp_path):
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 40))
    cal = calibrated(activity(4))
    assert stored(cal, tmp_path / "a.parquet")[0]["schedule"] == []
    cal.set_schedule(alphas)
    assert stored(cal, tmp_path / "a.parquet")[0]["schedule"] == alphas.tolist()
    again = aq.Calibration.load(tmp_path / "a.parquet")
    again.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    # A merge brings it along, and two of them must be the same.
    fresh = calibrated(activity(4))
    fresh.merge(cal)
    assert stored(fresh, tmp_path / "c.parquet")[0]["schedule"] == alphas.tolist()
    fresh.set_schedule(alphas / 2)
    with pytest.raises(aq.ConfigError, match="differ in schedule"):
        fresh.merge(cal)


def same(one, other, exact):
    """Compares two results of `stored`: sums up to rounding, or everything exactly."""
    # The hash is of all bits.
    headers = [{k: v for k, v in h.items() if exact or k != "hash"} for h in (one[0], other[0])]
    assert headers[0] == headers[1] and set(one[1]) == set(other[1]) and set(one[2]) == set(other[2])
    for key, row in one[1].items():
        theirs = other[1][key]
        for name in ("rows", "low", "high", "histogram", "channels", "t_end"):
            assert row[name] == theirs[name], name
        np.testing.assert_allclose(row["squares"], theirs["squares"], rtol=0 if exact else 1e-13)
    for key, h in one[2].items():
        assert h["rows"] == other[2][key]["rows"]
        a, b = h["matrix"], other[2][key]["matrix"]
        # Which rows are multiplied together in f32 differs by the order.
        scale = np.sqrt(np.outer(np.diag(a), np.diag(a)))
        assert (np.abs(a - b) <= (0 if exact else 1e-5) * scale).all()


def test_two_that_are_merged_are_one_over_both(tmp_path):
    seen = list(activity(5)) + [("only.there", 20, noise(1, 30, 11))]
    half = len(seen) // 2
    one, first, second = calibrated(seen), calibrated(seen[:half]), calibrated(seen[half:])
    before = stored(second, tmp_path / "s.parquet")
    first.merge(second)
    same(stored(one, tmp_path / "a.parquet"), stored(first, tmp_path / "b.parquet"), exact=False)
    same(stored(second, tmp_path / "s.parquet"), before, exact=True)
    check(first, tmp_path / "c.parquet", seen, 40, 12, 4)
    assert [layer.name for layer in first.layers] == ["blocks.0.out", "blocks.0.qkv", "head", "only.there"]


def test_merge_refuses_what_does_not_fit(tmp_path):
    seen = [("a", 0, noise(1, 3, 4)), ("b", 0, noise(2, 3, 4))]
    cal = calibrated(seen)
    before = stored(cal, tmp_path / "a.parquet")
    others = [
        (calibrated(seen, bins=8), "timesteps or bins"),
        (calibrated(seen, timesteps=50), "timesteps or bins"),
        (calibrated(seen, hessian_groups=2), "Hessians"),
        (calibrated(seen, hessian=False), "Hessians"),
        (calibrated([("a", 0, noise(1, 3, 4)), ("b", 0, noise(1, 3, 5))]), "layer 'b' has 4 channels here and 5"),
        (cal, "itself"),
    ]
    for other, reason in others:
        with pytest.raises(aq.ConfigError, match=reason):
            cal.merge(other)
    with pytest.raises(TypeError, match="str"):
        cal.merge("a.parquet")
    same(stored(cal, tmp_path / "a.parquet"), before, exact=True)


def test_eight_threads_see_what_one_sees(tmp_path):
    seen = list(activity(6)) * 3
    random.Random(1).shuffle(seen)
    one, many = calibrated(seen), aq.Calibration(**OPTIONS)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda call: many.observe(*call), seen))
    same(stored(one, tmp_path / "a.parquet"), stored(many, tmp_path / "b.parquet"), exact=False)


def test_calibrations_that_are_merged_both_ways_at_once_do_not_wait_for_each_other():
    cals = [calibrated(activity(7)) for _ in range(3)]
    rows = sum(layer.rows for layer in cals[0].layers)
    pairs = [(i, j) for _ in range(4) for i in range(3) for j in range(3) if i != j]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(cals[i].merge, cals[j]) for i, j in pairs]:
            done.result(timeout=60)
    assert sum(layer.rows for layer in cals[0].layers) > 100 * rows


def test_what_is_spilled_is_the_same_bit_for_bit(tmp_path):
    seen = list(activity(8)) * 2
    bytes_all = 4 * 8 * sum(n * (n + 1) // 2 for n in (40, 7, 300))
    files = set()
    for limit in (None, 0, 1000, bytes_all // 2, bytes_all):
        folder = tmp_path / f"spill-{limit}"
        folder.mkdir()
        cal = calibrated(seen, memory_limit=limit, spill_folder=folder)
        cal.save(tmp_path / "a.parquet")
        files.add((tmp_path / "a.parquet").read_bytes())
        again = aq.Calibration.load(tmp_path / "a.parquet", memory_limit=limit)
        again.save(tmp_path / "b.parquet")
        files.add((tmp_path / "b.parquet").read_bytes())
        assert list(folder.iterdir()) == []  # nobody finds the temporary file, so nobody has to clean up
    assert len(files) == 1


def test_spill_folder_is_used(tmp_path):
    missing = tmp_path / "missing"
    cal = calibrated([("w", 0, noise(1, 255, 4))], memory_limit=0, spill_folder=missing)
    with pytest.raises(aq.MissingFile, match="missing"):
        cal.observe("w", 0, noise(1, 1, 4))
    # Sums that were lost are not saved as if they were there.
    missing.mkdir()
    with pytest.raises(aq.IOFailure, match="failed before"):
        cal.save(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == [missing]


def test_what_cannot_be_observed_is_refused_and_not_taken_in(tmp_path):
    x = noise(1, 600, 6)
    cal = calibrated([("w", 5, x)])
    before = stored(cal, tmp_path / "a.parquet")

    def spoilt(row, col, value, dtype="<f4"):
        spoilt = x.astype(dtype)
        spoilt[row, col] = value
        return spoilt

    refused = [
        (("w", 5, spoilt(599, 2, np.nan)), aq.ConfigError, "layer 'w': row 599, channel 2 is NaN"),
        (("w", 5, spoilt(0, 0, -np.inf)), aq.ConfigError, "layer 'w': row 0, channel 0 is -inf"),
        (("w", 5, spoilt(300, 5, np.inf, "<f2")), aq.ConfigError, "row 300, channel 5 is inf"),
        (("w", 5, spoilt(256, 1, 2e18)), aq.ConfigError, "row 256, channel 1 is 2"),
        (("w", 5, x[:, :5].copy()), aq.ConfigError, "layer 'w': 5 channels, but 6 were observed"),
        (("w", 40, x), aq.ConfigError, "layer 'w': timestep 40 is not from 0 to 39"),
        (("w", -1, x), aq.ArgumentError, "layer 'w': -1 is no timestep"),
        (("w", 0.5, x), aq.ArgumentError, "layer 'w': 0.5 is no timestep"),
        (("w", 5, x.astype("<f8")), aq.ArgumentError, "layer 'w': invalid value 'f64' (expected f32, f16, bf16)"),
        (("w", 5, x.T), aq.ArgumentError, "layer 'w' is not C-contiguous"),
        (("w", 5, np.float32(1)), aq.ArgumentError, "have no channels"),
        (("w", 5, [1.0]), TypeError, "buffer protocol"),
        (("", 5, x), aq.ConfigError, "its name must have 1 to 4096 bytes"),
        (("w\0", 5, x), aq.ArgumentError, "NUL"),
    ]
    for call, kind, reason in refused:
        with pytest.raises(kind) as caught:
            cal.observe(*call)
        assert reason in str(caught.value)
    same(stored(cal, tmp_path / "a.parquet"), before, exact=True)
    # Also as the first of a layer.
    with pytest.raises(aq.ConfigError, match="NaN"):
        cal.observe("new", 5, spoilt(1, 1, np.nan))
    cal.observe("new", 5, x[:, :5].copy())


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"timesteps": 0}, "timesteps: 0"), ({"timesteps": 1 << 21}, "timesteps: 2097152"),
        ({"bins": 0}, "bins: 0"), ({"bins": 1001}, "bins: 1001"),
        ({"bins": 12}, "hessian_groups: 10 does not divide"),
        ({"hessian_groups": 0}, "hessian_groups: 0"), ({"hessian_groups": -1}, "hessian_groups: -1"),
        ({"memory_limit": -1}, "memory_limit: -1"),
    ],
)
def test_options_out_of_range(options, reason):
    with pytest.raises((aq.ConfigError, aq.ArgumentError), match=reason):
        aq.Calibration(**options)


def test_largest_values_that_are_taken_stay_finite(tmp_path):
    cal = aq.Calibration(**OPTIONS)
    for _ in range(300):
        cal.observe("w", 0, np.full((1, 3), 1e18, "<f4"))
    _, bins, hessians = stored(cal, tmp_path / "a.parquet")
    np.testing.assert_allclose(bins["w", 0]["squares"], 300e36, rtol=1e-6)
    np.testing.assert_allclose(hessians["w", 0]["matrix"], 300e36, rtol=1e-5)


# Damaged files


def test_damaged_files_are_errors(tmp_path):
    cal = calibrated(activity(9))
    cal.set_schedule(np.linspace(1, 0, 40))
    cal.save(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    path = tmp_path / "b.parquet"
    rng = np.random.default_rng(1)
    for length in [0, 1, 11, 12, *rng.integers(12, len(whole), 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(aq.FileError, match="b.parquet"):
            aq.Calibration.load(path)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for at in [*rng.integers(4, len(whole), 200), *rng.integers(footer, len(whole), 400)]:
        changed = bytearray(whole)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            aq.Calibration.load(path)  # numbers may be others, but nothing else happens
        except aq.FileError as error:
            assert "b.parquet" in str(error)
            refused += 1
    assert refused > 100


def rewrite(source, target, change):
    """Returns the file with other rows."""
    table = pq.read_table(source)
    rows = change(table.to_pylist())
    pq.write_table(type(table).from_pylist(rows, table.schema), target)


def test_files_that_contradict_themselves_are_errors(tmp_path):
    source, path = tmp_path / "a.parquet", tmp_path / "b.parquet"
    calibrated([("w", 5, noise(1, 50, 300))]).save(source)
    # As it is, it is read also when written by another program.
    rewrite(source, path, lambda rows: rows)
    same(stored(aq.Calibration.load(path), path), stored(aq.Calibration.load(source), source), exact=True)

    def put(index, **values):
        return lambda rows: [{**row, **values} if i == index else row for i, row in enumerate(rows)]

    table = pq.read_table(source).to_pylist()
    assert [row["kind"] for row in table] == ["bin", "hessian", "hessian"]
    numbers = table[1]["hessian"]
    changes = [
        (lambda rows: rows[:2], "a Hessian lacks rows"),
        (lambda rows: [rows[0], rows[2]], "does not fit"),
        (lambda rows: [rows[0], rows[2], rows[1]], "does not fit"),
        (lambda rows: [*rows, rows[1]], "does not fit"),
        (lambda rows: [*rows, rows[0]], "appears twice"),
        (put(0, channels=299), "missing"),
        (put(1, channels=299), "299 channels, and 300 before"),
        (put(0, channels=-1), "impossible"),
        (put(0, rows=-1), "impossible"),
        (put(0, t_begin=4), "there is no bin from 4"),
        (put(1, t_end=11), "there is no bin from 0 to 11"),
        (put(0, low=[0.0] * 299), "missing"),
        (put(0, high=[np.inf] * 300), "not finite"),
        (put(0, squares=[-1.0] * 300), "not finite"),
        (put(0, histogram=[1] * 640), "missing"),
        (put(1, hessian=numbers[:-1]), "does not fit"),
        (put(1, hessian=[np.nan, *numbers[1:]]), "not finite"),
        (put(1, first_row=-1), "does not fit"),
        # Much, of which next to nothing is there.
        (lambda rows: [{**rows[1], "channels": 1 << 20, "hessian": [1.0]}], "lacks rows"),
    ]
    for change, reason in changes:
        rewrite(source, path, change)
        with pytest.raises(aq.FileError, match=reason) as caught:
            aq.Calibration.load(path)
        assert "b.parquet" in str(caught.value) and "layer 'w'" in str(caught.value)


def test_files_of_another_kind(tmp_path, packed, dit):
    for path in (packed, dit, tmp_path):
        with pytest.raises(aq.FileError):
            aq.Calibration.load(path)
    with pytest.raises(aq.MissingFile):
        aq.Calibration.load(tmp_path / "nowhere.parquet")


def test_saving_all_or_nothing(tmp_path):
    cal = calibrated([("w", 5, noise(1, 50, 3))])
    with pytest.raises(aq.IOFailure, match="nowhere"):
        cal.save(tmp_path / "nowhere" / "a.parquet")
    target = tmp_path / "real.parquet"
    target.write_bytes(b"before")
    (tmp_path / "link.parquet").symlink_to(target)
    cal.save(tmp_path / "link.parquet")
    assert aq.Calibration.load(target).layers == cal.layers
    (tmp_path / "usual").touch()
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 3


# Hooks, with stand-ins for what PyTorch has


class Tensor:
    """The used subset of a PyTorch tensor."""

    def __init__(self, array, dtype):
        self._array, self.dtype, self.shape = np.ascontiguousarray(array), f"torch.{dtype}", array.shape

    def detach(self):
        return self

    cpu = contiguous = detach

    def data_ptr(self):
        return self._array.ctypes.data

    def numel(self):
        return self._array.size

    def element_size(self):
        return self._array.itemsize


class Module:
    def __init__(self, **children):
        self._hooks, self._children = {}, children

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, child in self._children.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def register_forward_pre_hook(self, function):
        key = object()
        self._hooks[key] = function
        handle = type("Handle", (), {})()
        handle.remove = lambda: self._hooks.pop(key)
        return handle

    def __call__(self, *args, **kwargs):
        for hook in list(self._hooks.values()):
            assert hook(self, args) is None
        return "forward"


class Linear(Module):
    pass


class OtherLinear(Linear):
    pass


class LayerNorm(Module):
    pass


class Conv2d(Module):
    def __init__(self, channels, kernel, stride=1, padding=0, dilation=1, groups=1, mode="zeros"):
        super().__init__()
        self.in_channels, self.kernel_size, self.stride = channels, kernel, stride
        self.padding, self.dilation, self.groups, self.padding_mode = padding, dilation, groups, mode


def model():
    block = lambda: Module(norm=LayerNorm(), qkv=Linear(), out=OtherLinear())
    return Module(blocks=Module(**{"0": block(), "1": block()}), head=Linear())


def hooked(module):
    return sum(len(m._hooks) for _, m in module.named_modules())


def test_hooks_see_the_inputs_of_linear_layers(tmp_path):
    net = model()
    inputs = {name: noise(i, 2, 5, 8) for i, (name, m) in enumerate(net.named_modules()) if isinstance(m, Linear)}
    assert sorted(inputs) == ["blocks.0.out", "blocks.0.qkv", "blocks.1.out", "blocks.1.qkv", "head"]
    cal, seen = aq.Calibration(**OPTIONS), []
    with cal.hook(net) as same_one:
        assert same_one is cal
        for t in (39, 20, 0):
            with cal.at(t):
                for name, m in net.named_modules():
                    assert m(inputs.get(name, "whatever")) == "forward"
            seen += [(name, t, x.reshape(-1, 8)) for name, x in inputs.items()]
            assert cal.timestep is None
        cal.timestep = 7
        net._children["head"](inputs["head"])
        seen.append(("head", 7, inputs["head"].reshape(-1, 8)))
    assert hooked(net) == 0
    check(cal, tmp_path / "c.parquet", seen, 40, 12, 4)


def test_hooks_read_tensors(tmp_path):
    x = noise(3, 4, 6)
    bits = round_to_bf16(x)
    net, cal = Linear(), aq.Calibration(**OPTIONS)
    tensors = [(Tensor(x, "float32"), x), (Tensor(bits, "bfloat16"), from_bf16(bits))]
    tensors.append((Tensor(x.astype("<f2"), "float16"), x.astype("<f2").astype("<f4")))
    with cal.hook(Module(proj=net), prefix="transformer."), cal.at(np.int64(3)):
        for tensor, _ in tensors:
            net(tensor)
        with pytest.raises(aq.ArgumentError, match="layer 'transformer.proj': invalid value 'torch.float64'"):
            net(Tensor(np.float64(x), "float64"))
    check(cal, tmp_path / "c.parquet", [("transformer.proj", 3, values) for _, values in tensors], 40, 12, 4)


@pytest.mark.parametrize(
    "layers, names",
    [
        ("blocks.*.qkv", ["blocks.0.qkv", "blocks.1.qkv"]),
        (["head", "*.0.*"], ["blocks.0.out", "blocks.0.qkv", "head"]),
        (lambda name, module: isinstance(module, OtherLinear), ["blocks.0.out", "blocks.1.out"]),
    ],
)
def test_hooks_of_some_layers(layers, names):
    net, cal = model(), aq.Calibration(**OPTIONS)
    with cal.hook(net, layers), cal.at(0):
        for _, m in net.named_modules():
            m(noise(1, 2, 4))
    assert [layer.name for layer in cal.layers] == names


def test_hooks_are_removed_and_errors_name_the_layer():
    net, cal = model(), aq.Calibration(**OPTIONS)
    with pytest.raises(aq.ArgumentError, match="'nothing'"):
        with cal.hook(net, "nothing"):
            pass
    with pytest.raises(aq.ArgumentError, match="no Linear or Conv2d"):
        with cal.hook(LayerNorm()):
            pass
    with pytest.raises(aq.ArgumentError, match="layer 'head' is called at no timestep"):
        with cal.hook(net):
            net._children["head"](noise(1, 2, 4))
    with pytest.raises(aq.ConfigError, match="layer 'head': row 0, channel 1 is NaN"):
        with cal.hook(net), cal.at(1):
            net._children["head"](np.array([[1, np.nan]], "<f4"))
    with pytest.raises(aq.ArgumentError, match="layer 'head' is no positional argument"):
        with cal.hook(net), cal.at(1):
            net._children["head"](input=noise(1, 2, 4))
    net._children["conv"] = Conv2d(8, 3, groups=8)
    with pytest.raises(aq.ArgumentError, match="layer 'conv' is a convolution of 8 groups"):
        with cal.hook(net):
            pass
    assert hooked(net) == 0 and cal.layers == [] and cal.timestep is None
    with cal.hook(net, lambda name, _: name != "conv"):
        assert hooked(net) == 5


def unfolded(x, kernel, stride, padding, dilation, mode):
    """Unfolds by definition: for each output all its inputs, one by one."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    numpy_mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    x = np.pad(x, [(0, 0), (0, 0), *padding], numpy_mode[mode])
    rows = []
    for image in x:
        for top in range(0, x.shape[2] - dh * (kh - 1), sh):
            for left in range(0, x.shape[3] - dw * (kw - 1), sw):
                rows.append([
                    channel[top + dh * i, left + dw * j]
                    for channel in image for i in range(kh) for j in range(kw)
                ])
    return np.array(rows, "<f4")


CONVOLUTIONS = [
    (Conv2d(3, (3, 3), padding=(1, 1)), ((3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), "zeros")),
    (Conv2d(3, 1), ((1, 1), (1, 1), [(0, 0), (0, 0)], (1, 1), "zeros")),
    (Conv2d(3, (2, 3), (2, 1), (0, 2)), ((2, 3), (2, 1), [(0, 0), (2, 2)], (1, 1), "zeros")),
    (Conv2d(3, (3, 2), 1, 2, (2, 3)), ((3, 2), (1, 1), [(2, 2), (2, 2)], (2, 3), "zeros")),
    (Conv2d(3, (4, 3), padding="same"), ((4, 3), (1, 1), [(1, 2), (1, 1)], (1, 1), "zeros")),
    (Conv2d(3, (4, 3), padding="valid"), ((4, 3), (1, 1), [(0, 0), (0, 0)], (1, 1), "zeros")),
    (Conv2d(3, 3, padding=1, mode="reflect"), ((3, 3), (1, 1), [(1, 1)] * 2, (1, 1), "reflect")),
    (Conv2d(3, 3, padding=1, mode="replicate"), ((3, 3), (1, 1), [(1, 1)] * 2, (1, 1), "replicate")),
    (Conv2d(3, 3, 2, 1, mode="circular"), ((3, 3), (2, 2), [(1, 1)] * 2, (1, 1), "circular")),
]


@pytest.mark.parametrize("conv, meaning", CONVOLUTIONS)
def test_convolutions_are_unfolded(tmp_path, conv, meaning):
    x = noise(2, 2, 3, 7, 6)
    x[0, 0, 0, 0] = -0.0
    bits = round_to_bf16(x)
    cal = aq.Calibration(**OPTIONS)
    with cal.hook(Module(conv=conv)), cal.at(5):
        conv(x)
        conv(x[1])
        conv(Tensor(bits, "bfloat16"))
    seen = [("conv", 5, unfolded(values, *meaning)) for values in (x, x[1:], from_bf16(bits))]
    check(cal, tmp_path / "c.parquet", seen, 40, 12, 4)


def test_large_convolutions_are_unfolded_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("arrowquant._unfold._PIECE", 4 * 27 * 7 * 2)
    test_convolutions_are_unfolded(tmp_path, *CONVOLUTIONS[0])


def test_convolutions_of_wrong_inputs():
    conv, cal = Conv2d(3, 3), aq.Calibration(**OPTIONS)
    for shape, reason in [((1, 4, 5, 5), "3 channels"), ((5, 5), "3 channels"), ((1, 3, 2, 5), "smaller than the kernel")]:
        with pytest.raises(aq.ArgumentError, match=f"layer 'conv'.*{reason}"):
            with cal.hook(Module(conv=conv)), cal.at(5):
                conv(noise(1, *shape))
    assert cal.layers == []


def test_wrapped_functions(tmp_path):
    cal, x = aq.Calibration(**OPTIONS), noise(1, 5, 8)

    def project(x, scale, offset=0):
        """Doc."""
        return x.sum() * scale + offset

    watched = cal.wrap(project, "proj.weight")
    assert (watched.__name__, watched.__doc__) == ("project", "Doc.")
    with pytest.raises(aq.ArgumentError, match="layer 'proj.weight' is called at no timestep"):
        watched(x, 2)
    with cal.at(30):
        with cal.at(8):
            assert watched(x, 2, offset=1) == project(x, 2, offset=1)
        assert cal.timestep == 30
    check(cal, tmp_path / "c.parquet", [("proj", 8, x)], 40, 12, 4)


# Configurations


def test_config_holds_a_calibration_for_as_long_as_it_needs():
    config = aq.Config(calibration=calibrated([("w", 0, noise(1, 5, 8))]))
    copy = config.copy()
    config["calibration"] = None
    copy.close()
    closed = aq.Calibration()
    closed.close()
    with pytest.raises(aq.ArgumentError, match="Calibration is closed"):
        config["calibration"] = closed
    assert repr(closed) == "<arrowquant.Calibration, closed>"
    assert repr(aq.Calibration()) == "<arrowquant.Calibration of 0 layers>"
