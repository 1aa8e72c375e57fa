"""Entries in tar files: blocks, headers, scans."""

import io
import json
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import DataError
from penstock.pipes.entry_shard import (
    BLOCK,
    TAIL,
    Entry,
    entry_blocks,
    header,
    name_number,
    read_header,
    read_whole,
    scan_entries,
    scan_sealed,
    source_number,
    whole,
)


def blocks_of(number: int, about: bytes = b"{}", data: bytes = b"x" * 700) -> bytes:
    entry = Entry(number, number % 7, 0, len(about), len(data))
    return b"".join(entry_blocks(entry, about, data, 1_700_000_000))


@pytest.fixture
def shard(tmp_path):
    """Return a function that writes entries to a file and opens it."""
    opened = []

    def write(data: bytes):
        path = tmp_path / f"{len(opened)}.tar"
        path.write_bytes(data)
        opened.append(os.open(path, os.O_RDWR))
        return str(path), opened[-1]

    yield write
    for fd in opened:
        os.close(fd)


def test_it_is_a_tar_to_others():
    data = b"".join(
        blocks_of(i, json.dumps({"i": i}).encode(), bytes([i]) * (500 + i)) for i in range(20)
    )
    with tarfile.open(fileobj=io.BytesIO(data + TAIL)) as tar:
        members = tar.getmembers()
        assert len(members) == 40
        assert [m.name.partition(".")[2] for m in members[:2]] == ["json", "safetensors"]
        assert members[1].name == f"{0:016x}-{0:032x}.safetensors"
        assert (members[0].mode, members[0].mtime, members[0].isreg()) == (
            0o644,
            1_700_000_000,
            True,
        )
        for i in range(20):
            assert json.loads(tar.extractfile(members[2 * i]).read()) == {"i": i}
            assert tar.extractfile(members[2 * i + 1]).read() == bytes([i]) * (500 + i)


def test_a_scan_finds_each_entry_and_its_place(shard):
    # JSON longer than a window, bodies that fill their blocks, and an empty one.
    sizes = [(2, 0), (512, 512), (9000, 513), (8192 - 1024, 1), (3, 100_000)]
    data = b"".join(blocks_of(i, b" " * a, b"y" * d) for i, (a, d) in enumerate(sizes))
    path, fd = shard(data + TAIL)
    found = scan_entries(fd, verify=True)
    assert (found.problem, found.damaged, found.end) == (None, [], len(data))
    rows = found.records.tolist()
    assert [(row[1], row[2], *row[4:]) for row in rows] == [
        (i, i, a, d) for i, (a, d) in enumerate(sizes)
    ]
    for row, (a, d) in zip(rows, sizes, strict=True):
        entry = Entry(row[1], row[2], *row[3:])
        assert whole(fd, entry)
        assert read_whole(fd, entry) == blocks_of(row[1], b" " * a, b"y" * d)
    assert (scan_sealed(path, fd) == found.records).all()
    later = scan_entries(fd, rows[2][3])
    assert later.records.tolist() == rows[2:]


@pytest.mark.parametrize("verify", [False, True])
def test_any_cut_leaves_the_whole_entries(shard, verify):
    one = len(blocks_of(0))
    path, fd = shard(blocks_of(0) + blocks_of(1))
    for size in range(2 * one, -1, -37):
        os.ftruncate(fd, size)
        found = scan_entries(fd, verify=verify)
        assert (len(found.records), found.end) == (size // one, size // one * one)
        assert (found.problem is None) == (size % one == 0)
        with pytest.raises(DataError, match=rf"0\.tar: byte {found.end} of {size}: "):
            scan_sealed(path, fd)


def test_a_changed_body_is_found_by_its_checksum(shard):
    data = bytearray(blocks_of(0) + blocks_of(1, b'{"a": 1}') + blocks_of(2))
    one = len(blocks_of(0))
    data[one + BLOCK + 3] ^= 1  # JSON
    data[2 * one + 2 * BLOCK + BLOCK + 600] ^= 1
    _, fd = shard(bytes(data) + TAIL)
    assert scan_entries(fd).damaged == []
    found = scan_entries(fd, verify=True)
    assert found.damaged == [one, 2 * one]
    assert [whole(fd, Entry(i, i, i * one, n, 700)) for i, n in enumerate((2, 8, 2))] == [
        True,
        False,
        False,
    ]


def test_other_tars_are_none_of_a_cache(shard, tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("0.json")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    path, fd = shard(file.getvalue())
    with pytest.raises(DataError, match="byte 0 of .*none of a cache"):
        scan_sealed(path, fd)
    mixed = blocks_of(0)[: 2 * BLOCK] + blocks_of(1)[2 * BLOCK :]
    path, fd = shard(mixed + TAIL)
    with pytest.raises(DataError, match="header of the same entry's tensors"):
        scan_sealed(path, fd)
    path, fd = shard(b"")
    with pytest.raises(DataError, match="byte 0 of 0"):
        scan_sealed(path, fd)


def test_no_member_name_is_a_path():
    good = header(b"%016x-%032x.json" % (1, 2), 2, 3, 4)
    assert read_header(good) == (b"%016x-%032x.json" % (1, 2), 2, 3, 4)
    for name in (b"../../etc/passwd.json", b"/a-b.json", b"%016x-%032x.jpg" % (1, 2)):
        assert read_header(header(name, 2, 3, 4)) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_a_header_with_a_changed_byte_is_none(at, change):
    block = bytearray(header(b"%016x-%032x.safetensors" % (9, 8), 12345, 0xABCDEF, 1_700_000_000))
    block[at] ^= change
    assert read_header(block) is None


def test_names():
    assert name_number("0" * 31 + "a") == 10
    for bad in ("0" * 31, "0" * 33, "A" * 32, "0" * 31 + "g", "../" + "0" * 29, "0" * 31 + "\n", 3):
        with pytest.raises(ValueError, match="32 digits"):
            name_number(bad)
    assert source_number("a") == source_number("a") != source_number("b")
    assert source_number("\udcff") < 1 << 64
