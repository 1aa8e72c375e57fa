"""The texts of a large Parquet file are unpacked once, and mapped from then on."""

import os
import pickle

import pytest

from penstock.pipes import ManifestReader
from penstock.pipes import parquet_texts as module

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A Parquet file of 60 rows, all that a large one is."""
    monkeypatch.setattr("penstock.pipes.table_parquet.KEPT_FROM", 50)
    path = tmp_path / "rows.parquet"
    write(path, 60)
    return path


def write(path, count, word="caption"):
    columns = {
        "image": [{"bytes": b"x%d" % i, "path": None} for i in range(count)],
        "text": [f"{word} {i}" for i in range(count)],
        "more": [[i, None] if i % 3 else None for i in range(count)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=25)


def open_rows(path, cache):
    return ManifestReader(path, shuffle=False, cache=str(cache))


def texts(reader):
    return [s["caption"] for s in reader.lanes(1, repeat=False)]


def kept(cache):
    return sorted(name for name in os.listdir(cache / "index") if "arrow" in name)


def test_they_are_what_the_file_has(rows, tmp_path, monkeypatch):
    first = open_rows(rows, tmp_path / "cache")
    assert len(kept(tmp_path / "cache")) == 2
    again = open_rows(rows, tmp_path / "cache")
    monkeypatch.setattr("penstock.pipes.table_parquet.KEPT_FROM", 10_000)
    plain = open_rows(rows, tmp_path / "none")
    assert not (tmp_path / "none" / "index").exists()
    for reader in (first, again):
        assert reader.arguments() == plain.arguments()
        assert [reader.table.row(i)["more"] for i in range(60)] == [
            plain.table.row(i)["more"] for i in range(60)
        ]
        assert texts(reader) == texts(plain) == [f"caption {i}" for i in range(60)]
        assert next(iter(reader))["image"].read() == b"x0"


def test_they_are_unpacked_once(rows, tmp_path, monkeypatch):
    expected = open_rows(rows, tmp_path / "cache").arguments()

    def fail(*_):
        raise AssertionError("read again")

    monkeypatch.setattr("penstock.pipes.table_parquet.keep_texts", fail)
    monkeypatch.setattr("penstock.pipes.table_parquet.ParquetTable._take", fail)
    reader = open_rows(rows, tmp_path / "cache")
    assert reader.arguments() == expected
    sent = pickle.dumps(reader)
    assert b"caption 7" not in sent
    assert texts(pickle.loads(sent))[7] == "caption 7"
    write(rows, 61)
    with pytest.raises(AssertionError, match="read again"):
        open_rows(rows, tmp_path / "cache")
    with pytest.raises(RuntimeError, match="was changed under the run"):
        pickle.loads(sent)


@pytest.mark.parametrize("what", ["replaced", "cut", "foreign", "digest"])
def test_what_does_not_fit_is_made_anew(what, rows, tmp_path):
    before = open_rows(rows, tmp_path / "cache")
    arrow, digest = (tmp_path / "cache" / "index" / name for name in kept(tmp_path / "cache"))
    word = "caption"
    if what == "replaced":
        word = "another"
        write(rows, 60, word)
        os.utime(rows, ns=(1, 1))
    elif what == "cut":
        part = tmp_path / "part"
        part.write_bytes(arrow.read_bytes()[:900])
        os.replace(part, arrow)  # what is mapped stays whole
    elif what == "foreign":
        os.unlink(arrow)
        arrow.write_bytes(b"nothing of the kind")
    else:
        digest.write_text('["no"]')
    after = open_rows(rows, tmp_path / "cache")
    assert texts(after) == [f"{word} {i}" for i in range(60)]
    assert (after.arguments() == before.arguments()) == (what != "replaced")
    assert module.map_texts(str(arrow), after.table.version) is not None
    assert module.kept_digest(str(arrow), after.table.version) == after.table.digest


def test_without_a_cache_they_are_held_in_memory(rows, tmp_path):
    (tmp_path / "file").write_text("no folder")
    reader = open_rows(rows, tmp_path / "file" / "cache")
    assert texts(reader) == [f"caption {i}" for i in range(60)]
    assert texts(pickle.loads(pickle.dumps(reader)))[59] == "caption 59"
