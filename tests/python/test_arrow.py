"""Models as Arrow tables, and Arrow tables as sources: without copies, and without leaks."""

import ctypes
import gc
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrowquant as aq
from common import address, noise


def table_of(tensors, **types):
    """The table of a source. `types` are those of columns other than the usual."""
    columns = {
        "name": pa.array(list(tensors), types.get("name", pa.string())),
        "shape": pa.array([list(t.shape) for t in tensors.values()], pa.list_(pa.int64())),
    }
    if "data" in types and pa.types.is_list(types["data"]):
        columns["data"] = pa.array([t.ravel() for t in tensors.values()], types["data"])
        return pa.table(columns)
    columns["dtype"] = pa.array([f"f{8 * t.itemsize}" for t in tensors.values()])
    columns["data"] = pa.array([t.tobytes() for t in tensors.values()], types.get("data", pa.binary()))
    return pa.table(columns)


# Models as tables


@pytest.mark.parametrize("fixture", ["packed", "big_packed"])
def test_the_export_is_what_parquet_readers_read(fixture, request):
    path = request.getfixturevalue(fixture)
    wanted = pq.read_table(path)
    with aq.open(path) as model:
        found = pa.table(model)
    assert found.column_names == wanted.column_names and found.num_rows == wanted.num_rows > 5
    for name in wanted.column_names:
        assert found.schema.field(name).type == wanted.schema.field(name).type, name
        assert found[name].combine_chunks().equals(wanted[name].combine_chunks()), name
    metadata = {k: v for k, v in wanted.schema.metadata.items() if k.startswith(b"arrowquant.")}
    assert found.schema.metadata == metadata and len(metadata) == 7


def test_the_export_is_the_memory_of_the_views(big_packed):
    model = aq.open(big_packed)
    compared = 0
    for batch in pa.RecordBatchReader.from_stream(model):
        row = batch.to_pylist()[0]
        tile = model[row["name"]].tiles[row["tile"]]
        assert batch.num_rows == 1
        for plane in ("codes", "scales", "biases"):
            view = getattr(tile, plane)
            if view is None:
                assert row[plane] is None
            elif view.nbytes:
                _, offsets, values = batch.column(plane).buffers()
                start = np.frombuffer(offsets, "<i4")[0].item()
                assert values.address + start == address(view), row["name"]
                compared += 1
    assert compared > 60


def test_large_planes_are_aligned(big_packed):
    aligned = [
        address(view) % 64
        for tensor in aq.open(big_packed).values()
        for tile in tensor.tiles
        for view in (tile.codes, tile.scales, tile.biases)
        if view is not None and view.nbytes > 65536
    ]
    assert len(aligned) > 5 and not any(aligned)


def test_the_export_outlives_the_model(packed, tmp_path):
    file = tmp_path / "m.parquet"
    file.write_bytes(packed.read_bytes())
    wanted = pq.read_table(file)
    model = aq.open(file)
    reader = pa.RecordBatchReader.from_stream(model)
    model.close()
    del model
    gc.collect()
    os.unlink(file)
    assert reader.read_all()["codes"].to_pylist() == wanted["codes"].to_pylist()


def test_a_model_in_memory_is_kept_by_what_was_exported(packed):
    wanted = pq.read_table(packed)["codes"].to_pylist()
    data = bytearray(packed.read_bytes())
    start = ctypes.addressof(ctypes.c_char.from_buffer(data))
    model = aq.open(data)
    tables = [pa.table(model), pa.table(model)]
    model.close()
    del model
    while tables:
        gc.collect()
        # Memory that is looked at cannot be resized.
        with pytest.raises(BufferError):
            data.append(0)
        table = tables.pop()
        assert table["codes"].to_pylist() == wanted
        address = table["codes"].chunk(0).buffers()[2].address
        assert start <= address < start + len(data)
        del table
    gc.collect()
    data.append(0)


def test_duckdb_queries_the_export(packed):
    import duckdb

    database = duckdb.connect()
    database.register("model", pa.RecordBatchReader.from_stream(aq.open(packed)))
    query = "SELECT name FROM model WHERE format = 'int4' ORDER BY name"
    names = [name for name, in database.sql(query).fetchall()]
    assert names == [f"blocks.0.{part}.weight" for part in ("attn.qkv", "conv", "mlp")]


def test_an_unused_capsule_releases_its_stream(packed):
    model = aq.open(packed)
    capsule = model.__arrow_c_stream__()
    pointer = _capsule_pointer(capsule)
    stream = Stream.from_address(pointer)
    released = []
    stream.release, keep = counting(stream.release, released)
    del capsule
    assert released == [pointer]


# Tables as sources


@pytest.mark.parametrize(
    "types",
    [
        {},
        {"name": pa.large_string(), "data": pa.large_binary()},
        {"name": pa.string_view(), "data": pa.binary_view()},
        {"data": pa.list_(pa.float32())},
        {"data": pa.large_list(pa.float32())},
    ],
)
def test_tables_of_all_types_are_sources(types, tmp_path):
    tensors = {"a.weight": noise(1, 6, 40), "b.weight": noise(2, 3, 2, 16), "c.bias": noise(3, 5)}
    wanted, _ = aq.quantize_to_bytes(tensors)
    if types.get("data") == pa.large_list(pa.float32()):
        table = table_of(tensors, data=pa.list_(pa.float32()))
        table = table.set_column(2, "data", table["data"].cast(types["data"]))
    else:
        table = table_of(tensors, **types)
    source = aq.Source.from_arrow(table)
    assert [(t.name, t.shape, t.dtype) for t in source] == [
        (name, t.shape, "f32") for name, t in tensors.items()
    ]
    for input in [source, table, table.to_reader(), table.slice(0), pa.concat_tables([table])]:
        assert aq.quantize_to_bytes(input)[0] == wanted


def test_half_floats_and_slices_are_sources():
    tensors = {f"{i}.weight": noise(i, 4, 16).astype("<f2") for i in range(5)}
    table = table_of(tensors, data=pa.list_(pa.float16()))
    source = aq.Source.from_arrow(table.slice(2, 2))
    assert [(t.name, t.dtype) for t in source] == [("2.weight", "f16"), ("3.weight", "f16")]
    part = {name: tensors[name] for name in ["2.weight", "3.weight"]}
    assert aq.quantize_to_bytes(source)[0] == aq.quantize_to_bytes(part)[0]


def test_tensors_can_be_added_to_a_table():
    tensors = {"a.weight": noise(1, 6, 40)}
    source = aq.Source.from_arrow(table_of(tensors))
    source.add_tensor("b.weight", noise(2, 6, 40))
    assert [t.name for t in source] == ["a.weight", "b.weight"]


# Release callbacks, counted


class Stream(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("get_schema", "get_next", "get_last_error", "release", "private_data")
    ]


class Schema(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("format", "name", "metadata")]
    _fields_ += [("flags", ctypes.c_int64), ("n_children", ctypes.c_int64)]
    _fields_ += [(n, ctypes.c_void_p) for n in ("children", "dictionary", "release", "private_data")]


class Array(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int64) for n in ("length", "null_count", "offset", "n_buffers", "n_children")
    ]
    _fields_ += [
        (n, ctypes.c_void_p)
        for n in ("buffers", "children", "dictionary", "release", "private_data")
    ]


RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
GET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LAST_ERROR = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)

_capsule_pointer = lambda capsule: ctypes.PYFUNCTYPE(
    ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p
)(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"arrow_array_stream")
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


def counting(release, told):
    """Returns a release callback that counts and calls the previous one, and the object that keeps it."""
    original = RELEASE(release)

    def count(pointer):
        told.append(pointer)
        original(pointer)

    callback = RELEASE(count)
    return ctypes.cast(callback, ctypes.c_void_p).value, callback


class Counted:
    """A table with `__arrow_c_stream__`, all of whose releases are counted. `fail` says where the
    stream fails: "schema", or the number of a batch."""

    def __init__(self, batches, fail=None):
        self.released = {"stream": [], "schema": [], "array": []}
        self.given = {"stream": 0, "schema": 0, "array": 0}
        self.keep = []
        self.batches, self.fail = batches, fail
        self.message = ctypes.create_string_buffer(b"the disk is on fire")
        self.stream = Stream()
        self.callbacks = [
            GET(self.get_schema), GET(self.get_next),
            LAST_ERROR(lambda _: ctypes.addressof(self.message)), RELEASE(self.release),
        ]
        names = ("get_schema", "get_next", "get_last_error", "release")
        for name, callback in zip(names, self.callbacks):
            setattr(self.stream, name, ctypes.cast(callback, ctypes.c_void_p).value)
        self.given["stream"] += 1

    def __arrow_c_stream__(self, requested_schema=None):
        return _new_capsule(ctypes.addressof(self.stream), b"arrow_array_stream", None)

    def release(self, pointer):
        self.released["stream"].append(pointer)
        Stream.from_address(pointer).release = None

    def count(self, kind, struct):
        struct.release, keep = counting(struct.release, self.released[kind])
        self.keep.append(keep)
        self.given[kind] += 1

    def get_schema(self, _, out):
        if self.fail == "schema":
            return 5
        self.batches[0].schema._export_to_c(out)
        self.count("schema", Schema.from_address(out))
        return 0

    def get_next(self, _, out):
        number = self.given["array"]
        if self.fail == number:
            return 5
        if number == len(self.batches):
            Array.from_address(out).release = None
            return 0
        self.batches[number]._export_to_c(out)
        self.count("array", Array.from_address(out))
        return 0

    def counts(self):
        return {kind: len(told) for kind, told in self.released.items()}


def batches(*tensors):
    return [table_of({f"{i}.weight": t}).to_batches()[0] for i, t in enumerate(tensors)]


def test_everything_is_released_once_when_the_source_is_freed():
    counted = Counted(batches(noise(1, 4, 32), noise(2, 8, 16)))
    source = aq.Source.from_arrow(counted)
    assert not counted.stream.release
    assert counted.counts()["array"] == 0
    wanted, _ = aq.quantize_to_bytes({"0.weight": noise(1, 4, 32), "1.weight": noise(2, 8, 16)})
    assert aq.quantize_to_bytes(source)[0] == wanted
    assert counted.counts()["array"] == 0
    source.close()
    del source
    gc.collect()
    assert counted.given == {"stream": 1, "schema": 1, "array": 2}
    assert counted.counts() == counted.given


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Counted(batches(noise(1, 4, 32)), fail="schema"), aq.Error, "the disk is on fire"),
        (lambda: Counted(batches(noise(1, 4, 32)), fail=0), aq.Error, "the disk is on fire"),
        (lambda: Counted(batches(noise(1, 4, 32), noise(1, 2)), fail=1), aq.Error, "disk is on fire"),
        (
            lambda: Counted([batches(noise(1, 4, 32))[0].drop_columns(["data"])]),
            aq.FileError, "no column 'data'",
        ),
        (
            lambda: Counted(batches(noise(1, 4, 32))[:1] * 2),
            aq.TensorError, "tensor '0.weight': added twice",
        ),
        (
            lambda: Counted([batches(noise(1, 4, 32))[0].drop_columns(["dtype"])]),
            aq.TensorError, "tensor '0.weight': binary data needs a dtype",
        ),
    ],
)
def test_everything_is_released_once_when_the_stream_is_refused(make, error, message):
    counted = make()
    with pytest.raises(error, match=message):
        aq.Source.from_arrow(counted)
    gc.collect()
    assert counted.counts() == counted.given and counted.given["stream"] == 1
    assert not counted.stream.release


def test_a_released_stream_is_refused():
    counted = Counted(batches(noise(1, 4, 32)))
    aq.Source.from_arrow(counted).close()
    before = counted.counts()
    with pytest.raises(aq.ArgumentError, match="released"):
        aq.Source.from_arrow(counted)
    assert counted.counts() == before == counted.given


def test_what_is_no_table_is_refused():
    with pytest.raises(TypeError, match="__arrow_c_stream__"):
        aq.Source.from_arrow([1, 2])


# Leaks


def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_round_trips_keep_no_memory(tmp_path):
    tensors = {"a.weight": noise(1, 64, 256), "b.norm.weight": noise(2, 256)}
    wanted = aq.open(aq.quantize_to_bytes(tensors)[0])["a.weight"].dequantize()
    output = tmp_path / "m.parquet"
    for number in range(1000):
        table = table_of(tensors)
        source = aq.Source.from_arrow(table)
        if number % 4:
            file, _ = aq.quantize_to_bytes(source, threads=1)
            model = aq.open(file)
        else:
            aq.quantize(source, output, threads=1)
            model = aq.open(output)
        back = pa.table(model) if number % 2 == 0 else model.__arrow_c_stream__()
        codes = model["a.weight"].tiles[0].codes
        if number % 2 == 0:
            assert back["codes"][0].as_py() == bytes(codes)
        if number == 99:
            before = resident()
    assert (model["a.weight"].dequantize() == wanted).all()
    del table, source, file, model, back, codes
    # Each turn makes 64 KiB of values: had every tenth kept them, it would be more than this.
    assert resident() - before < 5 << 20
