"""Shards that are being written: their lock, their torn ends, and what finishes them."""

import errno
import os

import pytest

from penstock.pipes import entry_part
from penstock.pipes.entry_part import EntryPart
from penstock.pipes.entry_shard import BLOCK, Entry, entry_blocks, scan_entries, scan_sealed


def append(part: EntryPart, number: int, size: int = 700) -> Entry:
    entry = Entry(number, 1, 0, 2, size)
    return part.append(entry, entry_blocks(entry, b"{}", bytes([number]) * size, 0))


def names(path: str) -> list[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [row[1] for row in scan_entries(fd, verify=True).records.tolist()]
    finally:
        os.close(fd)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "cache")


def test_an_entry_is_whole_when_append_returns(folder):
    part = EntryPart.create(folder)
    for i in range(5):
        entry = append(part, i)
        assert entry.end == part.end == os.stat(part.path).st_size
        assert names(part.path) == list(range(i + 1))
    assert EntryPart.adopt(part.path) is None  # it is locked
    path = part.seal()
    assert path == part.path.removesuffix(".part")
    assert sorted(os.listdir(folder)) == sorted(
        os.path.basename(path).replace(".tar", end) for end in (".tar", ".idx.npy")
    )
    fd = os.open(path, os.O_RDONLY)
    assert len(scan_sealed(path, fd)) == 5
    os.close(fd)


def test_every_torn_end_is_cut_and_gone_on_with(folder):
    part = EntryPart.create(folder)
    for i in range(3):
        append(part, i)
    size, one = part.end, part.end // 3
    part.leave()
    with open(part.path, "rb") as file:
        good = file.read()
    for cut in [*range(size, 2 * one - 1, -61), 1, 0]:
        with open(part.path, "wb") as file:
            file.write(good[:cut])
        again = EntryPart.adopt(part.path)
        whole = cut // one
        assert (len(again.records), again.end, os.stat(part.path).st_size) == (
            whole,
            whole * one,
            whole * one,
        )
        append(again, 9)
        assert names(part.path) == [*range(whole), 9]
        again.leave()


def test_what_a_power_cut_left_is_cut_at_the_first_bad_byte(folder):
    part = EntryPart.create(folder)
    entries = [append(part, i) for i in range(4)]
    part.leave()
    with open(part.path, "r+b") as file:
        file.seek(entries[2].body + BLOCK + 5)
        file.write(b"\xff")
    again = EntryPart.adopt(part.path)
    assert again.end == entries[1].end == os.stat(part.path).st_size
    assert len(again.records) == 2


def test_a_kill_while_it_is_finished(folder, monkeypatch):
    """Before the rename it is a part still: with zeros at its end, and perhaps an index."""
    part = EntryPart.create(folder)
    append(part, 1)
    end = part.end

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(entry_part.os, "rename", killed)
        part.seal()
    part.leave()
    assert os.stat(part.path).st_size == end + 2 * BLOCK
    again = EntryPart.adopt(part.path)
    assert (again.end, os.stat(part.path).st_size) == (end, end)
    append(again, 2)
    assert names(again.seal()) == [1, 2]


def test_an_interrupt_between_a_write_and_its_notice(folder, monkeypatch):
    part = EntryPart.create(folder)
    append(part, 1)
    real = os.pwritev

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(entry_part.os, "pwritev", interrupted)
        append(part, 2)
    append(part, 3)
    assert names(part.path) == [1, 2, 3]
    assert len(part.records) == 3


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_leaves_the_part_as_it_was(folder, monkeypatch, short):
    part = EntryPart.create(folder)
    append(part, 1)
    end, real = part.end, os.pwritev

    def full(fd, blocks, at):
        if not short:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, [b"".join(blocks)[:600]], at)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"full|space"):
        patch.setattr(entry_part.os, "pwritev", full)
        append(part, 2)
    assert (part.end, os.stat(part.path).st_size) == (end, end)
    append(part, 3)
    assert names(part.seal()) == [1, 3]


def test_an_empty_one_is_removed(folder):
    part = EntryPart.create(folder)
    assert part.seal() is None
    assert os.listdir(folder) == []
    assert EntryPart.adopt(part.path) is None


def test_one_that_is_finished_meanwhile_is_not_adopted(folder, monkeypatch):
    part = EntryPart.create(folder)
    append(part, 1)
    part.leave()
    os.link(part.path, part.path + "2")

    class Renamed(entry_part.OwnFile):
        def lock(self, kind):
            os.unlink(part.path)
            return super().lock(kind)

    monkeypatch.setattr(entry_part, "OwnFile", Renamed)
    assert EntryPart.adopt(part.path) is None
