"""Extents are read whole or not at all, and of the file that has the name now."""

import os

import pytest

from penstock.pipes import DataError, Extent, ShardLister
from penstock.pipes.read import OpenFiles


@pytest.fixture
def path(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(100)))
    return str(tmp_path / "f")


def test_an_extent_is_its_bytes(path):
    assert Extent(path, 10, 5).read() == bytes(range(10, 15))
    assert Extent(path, 95, 5).read() == bytes(range(95, 100))
    assert Extent(path, 10, 0).read() == b""


def test_a_file_that_ends_too_early_is_bad_data(path):
    message = rf"{path} ends at byte 100, in the middle of an extent of 5 bytes from byte 98"
    with pytest.raises(DataError, match=message):
        Extent(path, 98, 5).read()
    assert Extent(path, 10, 5).read() == bytes(range(10, 15))
    os.truncate(path, 12)
    with pytest.raises(DataError, match=r"ends at byte 12.*truncated"):
        Extent(path, 10, 5).read()


def test_a_file_that_is_not_there_is_no_bad_data(tmp_path):
    with pytest.raises(FileNotFoundError):
        Extent(str(tmp_path / "none"), 0, 1).read()


def test_large_reads_that_come_in_parts_are_joined(path, monkeypatch):
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: whole(fd, min(size, 7), at))
    assert Extent(path, 3, 50).read() == bytes(range(3, 53))


def test_few_files_stay_open(tmp_path):
    files = OpenFiles(most=3)
    paths = []
    for i in range(5):
        (tmp_path / str(i)).write_bytes(b"x")
        paths.append(str(tmp_path / str(i)))
    first = [files.descriptor(path) for path in paths[:3]]
    assert files.descriptor(paths[0]) == first[0]  # now the last to go
    files.descriptor(paths[3])
    files.descriptor(paths[4])
    assert list(files._open) == [paths[0], paths[3], paths[4]]
    for fd in files._open.values():
        os.fstat(fd)
    closed = set(first[1:]) - set(files._open.values())
    for fd in closed:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for fd in files._open.values():
        os.close(fd)


def test_a_shard_that_was_replaced_is_read_anew(make_tar, make_batch):
    # A descriptor kept by an earlier loader would give the old file's bytes at the new offsets.
    for text in (b"first", b"the second one"):
        path = make_tar([("a", {"txt": text})], "new.tar")
        shard = path.replace("new.tar", "00000.tar")
        os.replace(path, shard)
        batch = make_batch(ShardLister(shard).read_tar().batch(1).load()).batch
        assert batch["txt"] == [text]
