"""Tables are read right whatever their layout, and broken ones are named."""

import json

import pyarrow as pa
import pytest

from bevstack.datasets.errors import DataError
from bevstack.datasets.nuscenes import tables
from bevstack.datasets.nuscenes.tables import read_table, table_path

SCHEMA = pa.schema({"token": pa.string(), "name": pa.string(), "at": pa.list_(pa.float64())})
PLAIN = [{"token": f"t{i}", "skip": {"a": [i]}, "name": "x", "at": [i, 0.5]} for i in range(100)]
FLAT = [{"token": f"t{i}", "skip": i, "name": "x", "at": [i, -0.5e-8]} for i in range(100)]
ODD = [{"token": f"t{i}", "name": 'a "} , {" \\ \n é', "at": []} for i in range(100)]


def expected(records):
    return [{name: record[name] for name in SCHEMA.names} for record in records]


@pytest.mark.parametrize("records", [PLAIN, FLAT, ODD, FLAT[:1], []], ids=len)
@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("block_bytes", [7, 300, 1 << 20])
def test_any_layout_gives_the_records(tmp_path, monkeypatch, records, indent, block_bytes):
    monkeypatch.setattr(tables, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(records, indent=indent))
    assert read_table(path, SCHEMA).to_pylist() == expected(records)


def test_usual_layout_takes_the_fast_path(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_parse_slowly", None)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(FLAT, indent=0).replace("\n", "\r\n"))
    assert read_table(path, SCHEMA).to_pylist() == expected(FLAT)


@pytest.mark.parametrize("damage", [lambda t: t[:-1], lambda t: t[: len(t) // 2], lambda t: ""])
def test_broken_json_is_named_with_a_remedy(tmp_path, damage):
    path = tmp_path / "x.json"
    path.write_text(damage(json.dumps(FLAT, indent=0)))
    with pytest.raises(DataError, match=r"x\.json is not a table .*extract"):
        read_table(path, SCHEMA)


@pytest.mark.parametrize(
    "content", ['{"token": "a"}', "[1, 2]", '[{"token": 5, "name": [], "at": 1}]']
)
def test_json_that_is_no_table_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"x\.json"):
        read_table(path, SCHEMA)


def test_record_without_a_field_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([*FLAT, {"token": "lonely", "name": "x"}], indent=0))
    with pytest.raises(DataError, match=r"x\.json: record lonely has no at"):
        read_table(path, SCHEMA)


def test_folder_that_is_not_nuscenes(tmp_path):
    with pytest.raises(DataError, match="is not a nuScenes folder"):
        table_path(tmp_path, "v1.0-mini", "sample")


def test_unknown_version_lists_those_that_exist(tmp_path):
    (tmp_path / "v1.0-mini").mkdir()
    (tmp_path / "v1.0-mini/sample.json").write_text("[]")
    with pytest.raises(DataError, match=r"no version v1\.0-trainval, but: v1\.0-mini"):
        table_path(tmp_path, "v1.0-trainval", "sample")
    with pytest.raises(DataError, match=r"log\.json is missing"):
        table_path(tmp_path, "v1.0-mini", "log")
