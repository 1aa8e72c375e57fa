"""What is said of a whole cache."""

import json
import os

import pytest

from penstock.pipes import DataError, entry_manifest
from penstock.pipes.entry_manifest import read_manifest, write_manifest


def test_it_is_written_whole_and_only_where_it_changed(tmp_path):
    path = str(tmp_path / "cache" / "manifest.json")
    assert read_manifest(path) == {}
    write_manifest(path, {"encoder": "ab", "sizes": (1, 2)})
    assert read_manifest(path) == {"encoder": "ab", "sizes": [1, 2]}
    inode = os.stat(path).st_ino
    write_manifest(path, {"sizes": [1, 2], "encoder": "ab"})
    assert os.stat(path).st_ino == inode
    write_manifest(path, {})
    assert read_manifest(path) == {}
    assert os.listdir(tmp_path / "cache") == ["manifest.json"]


def test_no_json_is_refused_and_nothing_written(tmp_path):
    path = str(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match="Out of range float"):
        write_manifest(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_manifest(path, {"a": object()})
    assert os.listdir(tmp_path) == []


def test_a_damaged_one_is_named_and_can_be_written_anew(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    for text in ("[1]", "{", "[" * 100_000, "\udc00".encode("utf-8", "surrogatepass")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            read_manifest(str(path))
    write_manifest(str(path), {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    monkeypatch.setattr(entry_manifest, "MOST", 5)
    with pytest.raises(DataError, match="more than 5 bytes"):
        read_manifest(str(path))
