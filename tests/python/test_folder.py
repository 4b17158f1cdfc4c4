"""Folders of parts, made by Python and read by other programs."""

import arrowquant as aq
import duckdb
import pytest


def table(pattern):
    """All rows of some Parquet files, as DuckDB reads them."""
    columns = "* EXCLUDE (tile), tile"
    query = f"SELECT {columns} FROM '{pattern}' ORDER BY name, tile"
    return duckdb.sql(query).fetchall()


def test_shares_merge_to_the_table_of_one_run(dit, tmp_path):
    one = tmp_path / "one.parquet"
    aq.quantize(dit, one, bits=4)
    folder = tmp_path / "shares"
    reports = [aq.quantize(dit, folder, bits=4, part=(k, 4)) for k in (3, 1, 4, 2)]
    with pytest.raises(aq.FileError, match="its parts are not complete"):
        aq.open(folder)
    aq.merge(folder)
    assert table(str(folder / "*.parquet")) == table(str(one))
    assert sum(len(report.tensors) for report in reports) == 52
    with aq.open(one) as whole, aq.open(folder) as merged:
        assert len(merged) == len(whole) == 52
        for name in ("blocks.0.attn.qkv.weight", "t_embedder.mlp.0.bias"):
            assert bytes(merged[name].tiles[0].codes) == bytes(whole[name].tiles[0].codes)


@pytest.mark.parametrize("flags", [{}, {"resume": True}])
def test_parts_are_resumed(dit, tmp_path, flags):
    folder = tmp_path / "parts"
    first = aq.quantize(dit, folder, bits=4, part_bytes=500_000)
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "manifest.json" and len(names) > 4
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "part-00002.parquet").unlink()
    said = []
    again = aq.quantize(
        dit, folder, bits=4, part_bytes=500_000, log=lambda *told: said.append(told), **flags
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    counts = again.to_dict()["parts"]
    assert counts == {"count": len(names) - 1, "resumed": len(names) - 2}
    assert again.to_dict()["total"] == first.to_dict()["total"]
    there = f"continuing: {len(names) - 2} of {len(names) - 1} parts are there"
    assert (25, there) in said
    with pytest.raises(aq.FileError, match="config.bit_width is 4 there and 2 here"):
        aq.quantize(dit, folder, bits=2, part_bytes=500_000, **flags)


def test_a_folder_is_begun_anew(dit, tmp_path):
    folder = tmp_path / "parts"
    plan = aq.Plan.create(dit, bits=2)
    plan.run(dit, folder, part_bytes=300_000)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(aq.FileError, match="--restart"):
        aq.quantize(dit, folder, bits=4, part_bytes=900_000)
    assert {path.name for path in folder.iterdir()} == before
    report = aq.quantize(dit, folder, bits=4, part_bytes=900_000, restart=True)
    counts = report.to_dict()["parts"]
    after = {path.name for path in folder.iterdir()}
    assert counts == {"count": len(after) - 1, "resumed": 0}
    assert after < before
    assert plan.run(dit, folder, part_bytes=300_000, restart=True).to_dict()["parts"]["resumed"] == 0
    with pytest.raises(aq.ConfigError, match="either resume or restart"):
        plan.run(dit, folder, restart=True, resume=True)


def test_the_module_goes_on_and_begins_anew(dit, tmp_path, module):
    arguments = ["quantize", dit, tmp_path / "parts"]
    module(*arguments)
    assert "nothing is left to do: 1 of 1 part is there" in module(*arguments).stderr
    assert module(*arguments, "--restart").stderr == ""


@pytest.mark.parametrize("part", [(0, 4), (5, 4), (-1, 2)])
def test_there_is_no_such_share(dit, tmp_path, part):
    with pytest.raises((aq.ConfigError, aq.ArgumentError), match="is not"):
        aq.quantize(dit, tmp_path / "out", part=part)
    assert not list(tmp_path.iterdir())


def test_a_ceiling_on_memory(dit, tmp_path):
    report = aq.quantize(dit, tmp_path / "m.parquet", memory_limit="100MB")
    assert report.to_dict()["memory_limit"] == 100_000_000
    with pytest.raises(aq.ConfigError, match="memory_limit: 1.0 MB is too small for this model"):
        aq.quantize(dit, tmp_path / "m.parquet", memory_limit="1MB")
