"""The package, cffi with only the header, and the command line write the same bytes."""

import ctypes
import json
import shutil
import subprocess

import cffi
import pytest

import arrowquant as aq
from arrowquant import _library
from common import noise

SETTINGS = [
    {},
    {"bit_width": "2", "scheme": "affine", "group_size": "32", "method": "minmax"},
    {"bit_width": "8", "scale_dtype": "f32", "gain": "unit", "compression": "zstd"},
    {"deployment_profile": "edge", "rules": ["*.attn.*=bits:4,group:64", "*.mlp.*=keep"]},
]
FLAGS = {"bit_width": "bits", "deployment_profile": "profile"}


def flags(settings):
    args = []
    for key, value in settings.items():
        if key == "rules":
            args += [arg for rule in value for arg in ("--rule", rule)]
        else:
            args += [f"--{FLAGS.get(key, key).replace('_', '-')}", value]
    return args


@pytest.fixture(scope="module")
def ffi(root, tmp_path_factory):
    """cffi that has read the header: what another language's bindings would be made of."""
    folder = tmp_path_factory.mktemp("include")
    # cffi knows the standard types, but not what compilers write around them.
    for name in ("stdbool.h", "stddef.h", "stdint.h"):
        (folder / name).touch()
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed"
    command = [compiler, "-E", "-P", "-nostdinc", "-DAQ_API=", "-I", folder, "-I", root / "include", "-"]
    done = subprocess.run(
        command, input='#include "arrowquant.h"\n', capture_output=True, encoding="utf-8", check=True
    )
    ffi = cffi.FFI()
    ffi.cdef(done.stdout)
    return ffi


@pytest.fixture(scope="module")
def lib(ffi):
    return ffi.dlopen(_library.library_path())


def by_cffi(ffi, lib, input, output, settings):
    error = ffi.new("aq_error *", {"struct_size": ffi.sizeof("aq_error")})

    def check(status):
        assert status == 0, ffi.string(error.message).decode()

    config, report = ffi.new("aq_config **"), ffi.new("aq_report **")
    check(lib.aq_config_new(ffi.NULL, config, error))
    for key, value in settings.items():
        value = ";".join(value) if key == "rules" else value
        check(lib.aq_config_set(config[0], key.encode(), value.encode(), error))
    told = []

    @ffi.callback("aq_progress_fn")
    def progress(user_data, progress):
        told.append((progress.done, progress.total))
        return True

    options = ffi.new("aq_run_options *", {"struct_size": ffi.sizeof("aq_run_options")})
    options.progress = progress
    paths = str(input).encode(), str(output).encode()
    check(lib.aq_quantize_file(*paths, config[0], options, report, error))
    total = ffi.new("aq_report_total *", {"struct_size": ffi.sizeof("aq_report_total")})
    check(lib.aq_report_totals(report[0], total, error))
    assert total.output_bytes == output.stat().st_size and told[-1][0] == told[-1][1]
    lib.aq_report_free(report[0])
    lib.aq_config_free(config[0])


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings) or "defaults")
@pytest.mark.parametrize("model", ["small", "dit"])
def test_all_ways_give_the_same_file(settings, model, request, tmp_path, ffi, lib, cli, module):
    input = request.getfixturevalue(model)
    path = lambda name: tmp_path / f"{name}.parquet"
    cli("quantize", input, path("cli"), "--quiet", *flags(settings))
    wanted = path("cli").read_bytes()
    aq.quantize(input, path("package"), **settings)
    module("quantize", input, path("module"), "--quiet", *flags(settings))
    by_cffi(ffi, lib, input, path("cffi"), settings)
    source = aq.Source.open(input)
    plan = aq.Plan.create(source, settings)
    plan.run(source, path("plan"), threads=1)
    again = aq.Plan.from_json(plan.to_json())
    again.run(source, path("again"))
    for name in ("package", "module", "cffi", "plan", "again"):
        assert path(name).read_bytes() == wanted, name
    assert aq.quantize_to_bytes(input, **settings)[0] == wanted
    assert aq.quantize_to_bytes(source, threads=1, config=aq.Config(**settings))[0] == wanted


def test_plans_that_were_printed_are_done_alike(small, tmp_path, cli, module):
    printed = cli("plan", small, "--json", "--bits", "2").stdout
    plan = tmp_path / "plan.json"
    edited = json.loads(printed)
    edited["tensors"][0]["group_size"] = 32
    printed = json.dumps(edited)
    plan.write_text(printed)
    path = lambda name: tmp_path / f"{name}.parquet"
    cli("quantize", small, path("cli"), "--plan", plan, "--quiet")
    module("quantize", small, path("module"), "--plan", plan, "--quiet")
    aq.Plan.from_json(printed).run(small, path("package"))
    assert path("cli").read_bytes() == path("module").read_bytes() == path("package").read_bytes()
    assert aq.open(path("cli"))[edited["tensors"][0]["name"]].tiles[0].group_size == 32


def test_order_of_keep_and_rule_is_kept(small, tmp_path, cli, module):
    args = ["--keep", "*.mlp.*", "--rule", "*.weight=bits:8", "--keep", "*.conv.*"]
    paths = [tmp_path / name for name in ("cli.parquet", "module.parquet", "package.parquet")]
    cli("quantize", small, paths[0], "--quiet", *args)
    module("quantize", small, paths[1], "--quiet", *args)
    rules = ["*.mlp.*=keep", "*.weight=bits:8", "*.conv.*=keep"]
    aq.quantize(small, paths[2], rules=rules)
    assert len({path.read_bytes() for path in paths}) == 1
    formats = {name: tensor.tiles[0].format for name, tensor in aq.open(paths[0]).items()}
    assert formats["blocks.0.mlp.weight"] == "int8" and formats["blocks.0.conv.weight"] == "kept"


def test_the_same_arrays_give_the_same_bytes_from_anywhere():
    import pyarrow as pa

    w = noise(1, 8, 32)
    table = pa.table({"name": ["w.weight"], "shape": [[8, 32]], "dtype": ["f32"], "data": [w.tobytes()]})
    files = {
        bytes(aq.quantize_to_bytes(input)[0])
        for input in ({"w.weight": w}, {"w.weight": memoryview(w)}, table)
    }
    assert len(files) == 1


# The package's declarations are those of the header.


def structs():
    return [cls for cls in _library.Sized.__subclasses__()]


@pytest.mark.parametrize("struct", structs(), ids=lambda struct: struct.__name__)
def test_structs_are_laid_out_as_in_the_header(struct, ffi):
    kind = ffi.typeof(struct.__name__)
    assert ffi.sizeof(kind) == ctypes.sizeof(struct)
    assert [name for name, _ in kind.fields] == [name for name, _ in struct._fields_]
    for name, field in kind.fields:
        ours = getattr(struct, name)
        assert (ours.offset, ours.size) == (field.offset, ffi.sizeof(field.type)), name


def test_functions_take_what_the_header_says(ffi, lib):
    declared = {name: [ctypes.c_int32, *args, ctypes.c_void_p] for name, args in _library.FALLIBLE.items()}
    declared.update({name: [result, *args] for name, (result, args) in _library.PLAIN.items()})
    for name, (result, *args) in declared.items():
        kind = ffi.typeof(getattr(lib, name))
        assert len(kind.args) == len(args), name
        for theirs, ours in zip((kind.result, *kind.args), (result, *args)):
            if ours is None:
                assert theirs.kind == "void", name
                continue
            assert ffi.sizeof(theirs) == ctypes.sizeof(ours), name
            pointer = not hasattr(ours, "_type_") or ours._type_ in ("P", "z") or not isinstance(
                ours._type_, str
            )
            assert (theirs.kind in ("pointer", "function")) == pointer, (name, theirs)


def test_every_struct_of_the_header_is_checked(ffi):
    typedefs, _, _ = ffi.list_types()
    named = {name for name in typedefs if ffi.typeof(name).kind == "struct"}
    opaque = {name for name in named if ffi.typeof(name).fields is None}
    handles = "config source plan report model verification calibration fold_report analysis evolution"
    assert opaque == {f"aq_{name}" for name in handles.split()}
    assert named - opaque == {struct.__name__ for struct in structs()}
