"""Pruning: what goes, what stays, and a kill in the middle."""

import itertools
import multiprocessing
import os
import shutil
import signal
import warnings

import pytest
import torch

from penstock.pipes import EntryStore, entry_prune
from penstock.pipes.entry_shard import BLOCK, name_number

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def name(i: int) -> str:
    return f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"


def fill(store, numbers):
    for i in numbers:
        store.write(name(i), {"a": torch.full((200,), float(i))}, {"i": i}, f"s{i % 3}")


def held(store) -> set[int]:
    found = {i for i in range(100) if store.read(name(i)) is not None}
    for i in found:
        assert store.read(name(i))["a"].tolist() == [float(i)] * 200
    assert store.check() == []
    return found


@pytest.fixture
def store(tmp_path):
    """30 entries in 10 shards."""
    store = EntryStore(tmp_path / "cache", shard_size=9000)
    fill(store, range(30))
    store.close()
    assert len(tars(store)) == 10
    return store


def tars(store):
    return sorted(f for f in os.listdir(store.folder) if f.endswith(".tar"))


def test_what_is_not_kept_goes_and_the_rest_stays_bit_for_bit(store):
    other = EntryStore(store.folder)
    assert held(other) == set(range(30))
    before = sum(os.stat(os.path.join(store.folder, f)).st_size for f in tars(store))
    done = store.prune({name(i) for i in range(0, 30, 3)})
    assert done.entries == 20
    after = sum(os.stat(os.path.join(store.folder, f)).st_size for f in tars(store))
    assert done.bytes == before - after
    assert held(store) == set(range(0, 30, 3))
    assert [a["i"] for a in store.about("s0")] == list(range(0, 30, 3))
    assert store.about("s1") == []
    assert store.sizes()[0] == 10
    # Another process, whose index is of the shards before, finds them where they are now.
    other._files._open.clear()
    assert held(other) == set(range(0, 30, 3))
    stems = {f.split(".")[0] for f in os.listdir(store.folder)} - {"prune"}
    assert stems == {f.split(".")[0] for f in tars(store)}
    assert store.prune(lambda n: n != name(0)).entries == 1
    assert held(store) == set(range(3, 30, 3))
    assert store.prune(()).entries == 9
    assert (held(store), tars(store)) == (set(), [])


def test_shards_that_need_nothing_are_left(store):
    inodes = {f: os.stat(os.path.join(store.folder, f)).st_ino for f in tars(store)}
    assert store.prune() == (0, 0)
    assert {f: os.stat(os.path.join(store.folder, f)).st_ino for f in tars(store)} == inodes
    gone = min(i for i in range(30))
    store.prune(lambda n: n != name(gone))
    assert sum(f in inodes for f in tars(store)) == 9


def test_small_shards_become_one_and_doubles_go(tmp_path):
    for numbers in (range(3), range(2, 5), range(4, 8)):
        writer = EntryStore(tmp_path / "own")
        fill(writer, numbers)
        writer.close()
        os.makedirs(tmp_path / "all", exist_ok=True)
        for file in os.listdir(writer.folder):
            os.rename(os.path.join(writer.folder, file), tmp_path / "all" / file)
    store = EntryStore(tmp_path / "all")
    assert len(tars(store)) == 3
    assert store.sizes()[0] == 8
    assert store.prune().entries == 2
    assert len(tars(store)) == 1
    assert held(store) == set(range(8))
    inode = os.stat(os.path.join(store.folder, tars(store)[0])).st_ino
    assert store.prune() == (0, 0)
    assert os.stat(os.path.join(store.folder, tars(store)[0])).st_ino == inode


def damage(store, i):
    place = store._files.index.find(name_number(name(i)))
    path = store._files.open(place.shard)[1]
    with open(path, "r+b") as file:
        file.seek(place.entry.body + BLOCK + place.entry.data - 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return path, place.entry


def test_damage_is_named_and_dropped(store):
    path, entry = damage(store, 7)
    assert store.check() == [
        f"{path}: byte {entry.offset}: entry {name(7)} is damaged: its checksum is wrong"
    ]
    assert store.prune().entries == 1
    assert held(EntryStore(store.folder)) == set(range(30)) - {7}


def test_a_truncated_shard_is_named_and_its_whole_entries_kept(store):
    path, entry = damage(store, 7)
    os.truncate(path, entry.offset + 700)
    lines = store.check()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: byte {entry.offset} of {entry.offset + 700}: ")
    with pytest.warns(RuntimeWarning, match=f"byte {entry.offset} of .*is dropped"):
        store.prune()
    found = held(EntryStore(store.folder))
    assert 7 not in found
    assert len(found) >= 27


def test_shards_that_others_write_are_left(store):
    writer = EntryStore(store.folder, shard_size=9000)
    fill(writer, [40])
    assert store.prune(()).entries == 30
    assert held(writer) == {40}
    store.refresh()
    assert held(store) == {40}
    writer.close()
    store.refresh()
    assert held(store) == {40}


def test_there_may_be_nothing(tmp_path):
    store = EntryStore(tmp_path / "none")
    assert store.prune() == (0, 0)
    assert store.check() == []
    assert not (tmp_path / "none").exists()


def dying(folder, keep, step):
    """Prune, and be killed before the given one of all changes to the folder."""
    steps = itertools.count()

    def die(real):
        def call(*args, **kwargs):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for function in ("pwritev", "pwrite", "rename", "replace", "unlink", "fsync", "ftruncate"):
        setattr(os, function, die(getattr(os, function)))
    EntryStore(folder, shard_size=9000).prune(keep)


def test_a_kill_at_any_step_loses_nothing(tmp_path):
    first = EntryStore(tmp_path / "first", shard_size=9000)
    fill(first, range(12))
    first.close()
    keep, want = {name(i) for i in range(0, 12, 2)}, set(range(0, 12, 2))
    for step in itertools.count():
        folder = str(tmp_path / f"killed{step}")
        shutil.copytree(first.folder, folder)
        process = fork.Process(target=dying, args=(folder, keep, step))
        process.start()
        process.join(60)
        found = held(EntryStore(folder))
        assert found >= want, step
        again = EntryStore(folder, shard_size=9000)
        again.prune(keep)
        assert held(again) == want
        assert not [f for f in os.listdir(folder) if f.endswith(".part")]
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert step > 20
    assert found == want


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no names of open files here")
def test_no_shard_goes_before_what_it_had_is_on_the_disk(store, monkeypatch):
    """A kill would leave the parts; a power cut would not."""
    real, synced, gone = os.fsync, [], []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or real(fd)
    )

    def unlink(path):
        gone.append(path)
        assert not [f for f in os.listdir(store.folder) if f.endswith(".part")]
        for new in set(tars(store)) - first:
            assert any(path.endswith(new + ".part") for path in synced)
            assert store.folder in synced[synced.index(os.path.join(store.folder, new + ".part")) :]
        os.remove(path)

    first = set(tars(store))
    monkeypatch.setattr(entry_prune.os, "unlink", unlink)
    store.prune({name(i) for i in range(0, 30, 2)})
    assert len([path for path in gone if path.endswith(".tar")]) == 10
    assert held(store) == set(range(0, 30, 2))


def test_two_prune_at_once(store):
    keeps = [{name(i) for i in range(0, 30, n)} for n in (2, 3)]
    crew = [
        fork.Process(target=EntryStore(store.folder, shard_size=9000).prune, args=(keep,))
        for keep in keeps
    ]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
        assert process.exitcode == 0
    assert held(EntryStore(store.folder)) == set(range(0, 30, 6))


def test_a_shard_that_changes_under_it_is_an_error(store, monkeypatch):
    monkeypatch.setattr(entry_prune, "read_whole", lambda *_: None)
    with warnings.catch_warnings(), pytest.raises(OSError, match="was changed while it was read"):
        store.prune(lambda n: n != name(0))
    assert held(EntryStore(store.folder)) == set(range(30))
