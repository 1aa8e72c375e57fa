"""The index of a cache's entries."""

import os
import random

import numpy as np
import pytest

from penstock.pipes import entry_index
from penstock.pipes.entry_index import (
    EntryIndex,
    Place,
    entry_of,
    save_records,
    sealed_records,
    sidecar,
)
from penstock.pipes.entry_shard import RECORD, TAIL, Entry, entry_blocks


def records(names, *, source=5, data=10):
    entries = [Entry(n, source, 1024 * i, 2, data) for i, n in enumerate(names)]
    return np.array([e.record for e in entries], RECORD)


@pytest.mark.parametrize("few", [0, 100_000])
def test_each_entry_is_found_and_no_other(few, monkeypatch):
    monkeypatch.setattr(entry_index, "FEW", few)
    rng = random.Random(0)
    names = [rng.getrandbits(128) for _ in range(3000)]
    names += [7 << 64 | rng.getrandbits(64) for _ in range(500)] + [0, 1, (1 << 128) - 1, 1 << 127]
    rng.shuffle(names)
    index = EntryIndex()
    index.add([(0, records(names[:1000])), (1, records(names[1000:1500]))])
    index.add([(2, records(names[1500:]))])
    assert len(index) == len(names)
    assert index.bytes == 10 * len(names)
    for i, name in enumerate(names):
        shard = 0 if i < 1000 else 1 if i < 1500 else 2
        place = Place(shard, Entry(name, 5, 1024 * (i - (0, 1000, 1500)[shard]), 2, 10))
        assert index.find(name) == place
    known = set(names)
    near = {n + d for n in names for d in (-1, 1, 1 << 64)} - known
    assert not any(index.find(n) for n in near if 0 <= n < 1 << 128)
    assert sorted(index.names()) == sorted(f"{n:032x}" for n in names)


@pytest.mark.parametrize("few", [0, 100])
def test_of_two_of_one_name_the_first_counts(few, monkeypatch):
    monkeypatch.setattr(entry_index, "FEW", few)
    index = EntryIndex()
    index.add([(0, records([1, 2])), (1, records([2, 3]))])
    index.put(2, Entry(3, 5, 0, 2, 99))
    assert (len(index), index.bytes) == (3, 30)
    assert [index.find(n).shard for n in (1, 2, 3)] == [0, 0, 1]


def test_single_entries_are_sorted_in_when_they_are_many(monkeypatch):
    monkeypatch.setattr(entry_index, "FEW", 10)
    index = EntryIndex()
    for i in range(200):
        index.put(i % 3, Entry(i * 977 % 200, i % 5, i, 2, 1))
        assert len(index) == index.bytes == i + 1
    assert len(index._latest) <= 25
    assert [index.find(n).entry.name for n in range(200)] == list(range(200))
    assert sorted(p.entry.offset for p in index.of_source(3)) == list(range(3, 200, 5))
    assert index.of_source(9) == []


def test_what_is_dropped_is_gone():
    index = EntryIndex()
    index.put(0, Entry(1, 5, 0, 2, 3))
    index.drop(1)
    index.drop(1)
    assert (index.find(1), len(index), index.bytes) == (None, 0, 0)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "ab.tar"
    data = b"".join(
        b"".join(entry_blocks(Entry(i, 1, 0, 2, 700), b"{}", bytes(700), 0)) for i in range(4)
    )
    path.write_bytes(data + TAIL)
    return str(path)


def read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return [entry_of(row).name for row in sealed_records(path, fd).tolist()]
    finally:
        os.close(fd)


def test_an_index_is_made_kept_and_made_again(shard, monkeypatch):
    scans = []
    real = entry_index.scan_sealed
    monkeypatch.setattr(entry_index, "scan_sealed", lambda *a: scans.append(a) or real(*a))
    assert read(shard) == read(shard) == [0, 1, 2, 3]
    assert len(scans) == 1
    assert sidecar(shard).endswith("/ab.idx.npy")
    os.utime(shard, ns=(1, 1))  # as after a copy
    assert read(shard) == read(shard) == [0, 1, 2, 3]
    assert len(scans) == 2
    os.unlink(sidecar(shard))
    assert read(shard) == [0, 1, 2, 3]
    assert len(scans) == 3


def test_a_damaged_or_lying_index_is_not_believed(shard):
    assert read(shard) == [0, 1, 2, 3]
    with open(sidecar(shard), "rb") as file:
        good = file.read()
    stat = os.stat(shard)
    lies = []
    for column, value in (
        ("offset", 1 << 40),
        ("offset", 100),
        ("data", 1 << 31),
        ("about", 1 << 21),
    ):
        rows = records([9])
        rows[column] = value
        save_records(shard, rows, stat)
        with open(sidecar(shard), "rb") as file:
            lies.append(file.read())
    np.save(sidecar(shard), np.array([{"a": 1}], object), allow_pickle=True)
    with open(sidecar(shard), "rb") as file:
        lies.append(file.read())
    for data in (b"", good[:-1], good[:60], b"\x00" + good[1:], *lies):
        with open(sidecar(shard), "wb") as file:
            file.write(data)
        assert read(shard) == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_is_scanned_each_time(shard, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(entry_index, "save_records", refuse)
    assert read(shard) == [0, 1, 2, 3]
    assert not os.path.exists(sidecar(shard))
