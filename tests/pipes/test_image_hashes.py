"""Hashes of image files, remembered by all processes, and never of another file."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penstock.pipes import image_hashes
from penstock.pipes.file_cache import FileCache, RemoteFile
from penstock.pipes.image_facts import ImageFacts, image_facts
from penstock.pipes.image_hashes import ImageHashes
from penstock.pipes.sample import Extent

Jpeg = Callable[..., bytes]


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_hashes, "SETTLED", 0)


def extent(path: Path, data: bytes, before: int = 7, behind: int = 3) -> Extent:
    path.write_bytes(bytes(before) + data + bytes(behind))
    return Extent(str(path), before, len(data))


def test_a_file_is_hashed_once_by_all(tmp_path: Path, make_jpeg: Jpeg) -> None:
    data = make_jpeg(20, 30, 1)
    place = extent(tmp_path / "a.tar", data)
    path = str(tmp_path / "cache" / "hashes.bin")
    one, other = ImageHashes(path), ImageHashes(path)
    assert other.known(place) is None
    assert one.known(place) is None
    assert one.read(place) == (data, image_facts(data))
    assert one.known(place) == image_facts(data)
    assert other.known(place) == image_facts(data)  # it looks again
    assert pickle.loads(pickle.dumps(one)).known(place) == image_facts(data)
    one.read(place)
    assert os.stat(path).st_size == 64
    assert len(ImageHashes(path)) == 1
    bare = ImageHashes()
    assert bare.read(place)[1] == bare.known(place)
    assert pickle.loads(pickle.dumps(bare)).known(place) is None


def test_a_changed_file_is_hashed_again(tmp_path: Path, make_jpeg: Jpeg) -> None:
    first = make_jpeg(20, 30, 1)
    second = first[:-9] + bytes([first[-9] ^ 1]) + first[-8:]
    place = extent(tmp_path / "a.tar", first)
    hashes = ImageHashes(str(tmp_path / "hashes.bin"))
    hashes.read(place)
    stat = os.stat(place.path)
    with open(place.path, "r+b") as file:  # in its place, of its size
        file.seek(place.offset)
        file.write(second)
    os.utime(place.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and of its time
    assert hashes.known(place) is None
    assert hashes.read(place)[1] == image_facts(second)
    assert hashes.known(place) == image_facts(second)
    assert ImageHashes(hashes.path).known(place) == image_facts(second)
    assert hashes.known(place._replace(offset=place.offset + 1)) is None
    assert hashes.known(place._replace(size=place.size - 1)) is None
    other = extent(tmp_path / "b.tar", first)
    assert hashes.known(other) is None
    os.unlink(place.path)
    assert hashes.known(place) is None


def test_a_file_that_may_still_change_within_a_tick_is_not_trusted(
    tmp_path: Path, make_jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_hashes, "SETTLED", 10**12)
    place = extent(tmp_path / "a.tar", make_jpeg(20, 30, 1))
    hashes = ImageHashes(str(tmp_path / "hashes.bin"))
    hashes.read(place)
    assert hashes.known(place) is None
    assert not os.path.exists(tmp_path / "hashes.bin")


def test_a_file_that_changes_while_it_is_read_is_not_trusted(
    tmp_path: Path, make_jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = extent(tmp_path / "a.tar", make_jpeg(20, 30, 1))

    def read(value: Extent) -> bytes:
        data = value.read()
        extent(tmp_path / "a.tar", make_jpeg(20, 30, 3))
        return data

    monkeypatch.setattr(image_hashes, "read_value", read)
    hashes = ImageHashes(str(tmp_path / "hashes.bin"))
    hashes.read(place)
    assert hashes.known(place) is None
    assert len(hashes) == 0


def test_urls_are_known_by_their_version_alone(tmp_path: Path) -> None:
    facts = ImageFacts(b"d" * 16, 3, 4, True, False)
    hashes = ImageHashes()
    cache = FileCache(str(tmp_path))
    found = {}
    for version in ("", "1", "2"):
        place = image_hashes._place(RemoteFile("s3://b/a.jpg", cache, "", version))
        found[version] = place
        if place is not None:
            hashes._new[place] = facts
    assert found[""] is None
    assert found["1"] != found["2"]
    assert hashes.known(RemoteFile("s3://b/a.jpg", cache, "", "2")) == facts
    assert hashes.known(RemoteFile("s3://b/a.jpg", cache)) is None
    assert hashes.known(b"bytes") is None


def records(count: int, start: int = 0) -> list[tuple[bytes, ImageFacts]]:
    made = np.random.Generator(np.random.Philox(start))
    return [
        (made.bytes(16), ImageFacts(made.bytes(16), i + 1, 2 * i + 1, bool(i & 1), bool(i & 2)))
        for i in range(count)
    ]


def test_what_was_torn_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "hashes.bin"
    writer = ImageHashes(str(path))
    wanted = records(6)
    reader = ImageHashes(str(path))
    for i, (place, facts) in enumerate(wanted):
        writer._append(place, facts)
        if i == 1:
            with open(path, "ab") as file:  # a kill, a full disk
                file.write(path.read_bytes()[:40])
            assert len(reader) == 2
        if i == 3:
            with open(path, "r+b") as file:
                file.seek(-70, os.SEEK_END)  # in the record before
                file.write(b"x")
    damaged = wanted[2][0]
    for hashes in (ImageHashes(str(path)), reader):
        for place, facts in wanted:
            assert hashes._find(place) == (None if place == damaged else facts)
    # A whole record whose numbers were damaged is none.
    data = bytearray(path.read_bytes())
    for at in range(8, 64):
        data[at] ^= 1
        path.write_bytes(data)
        assert ImageHashes(str(path))._find(wanted[0][0]) is None
        data[at] ^= 1


def test_many_are_merged_into_sorted_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_hashes, "_MERGE", 10)
    path = str(tmp_path / "hashes.bin")
    writer, reader = ImageHashes(path), ImageHashes(path)
    wanted = records(57)
    for i, (place, facts) in enumerate(wanted):
        writer._append(place, facts)
        if i % 7 == 0:
            assert reader._find(place) == facts
    again = wanted[5][0], wanted[6][1]  # of a place that is there, the last counts
    for _ in range(12):
        writer._append(*again)
    assert len(reader._rows) > 40
    reader.refresh()
    for place, facts in dict([*wanted, again]).items():
        assert reader._find(place) == facts
    assert reader._find(wanted[0][0][:8] + b"another!") is None
    assert len(ImageHashes(path)) == 57


def _append(path: str, start: int) -> None:
    hashes = ImageHashes(path)
    for place, facts in records(200, start):
        hashes._append(place, facts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_append_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "hashes.bin")
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_append, args=(path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    hashes = ImageHashes(path)
    for n in range(4):
        assert all(hashes._find(place) == facts for place, facts in records(200, n))


def test_a_folder_that_cannot_be_written_costs_memory_alone(
    tmp_path: Path, make_jpeg: Jpeg
) -> None:
    place = extent(tmp_path / "a.tar", make_jpeg(20, 30, 1))
    hashes = ImageHashes("/proc/none/hashes.bin")
    hashes.read(place)
    assert hashes.known(place) is not None
