"""The store of a cache's entries: processes that write, read, are killed."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from penstock.pipes import DataError, EntryStore, entry_reader
from penstock.pipes.entry_shard import BLOCK, name_number
from penstock.transforms.entry import Store

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def name(i: int) -> str:
    return f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"


def tensors(i: int, size: int = 100) -> dict[str, torch.Tensor]:
    return {"mean": torch.full((2, size), float(i)).bfloat16(), "logvar": torch.arange(size) + i}


def write(store: Store, i: int, size: int = 100) -> None:
    store.write(name(i), tensors(i, size), {"caption": f"c{i}"}, f"source {i % 3}")


def check(store: Store, i: int, size: int = 100) -> None:
    found = store.read(name(i))
    assert found is not None, i
    want = tensors(i, size)
    assert found.keys() == want.keys()
    assert all(found[k].dtype == want[k].dtype and torch.equal(found[k], want[k]) for k in want), i


def files(store: EntryStore, ending: str) -> list[str]:
    return sorted(f for f in os.listdir(store.folder) if f.endswith(ending))


@pytest.fixture
def store(tmp_path):
    return EntryStore(tmp_path / "cache")


def test_what_is_written_is_found_at_once_here_and_by_others(store):
    other = EntryStore(store.folder)
    assert other.read(name(0)) is None
    assert (name(0) in store, store.sizes(), list(store.names())) == (False, (0, 0), [])
    assert not os.path.exists(store.folder)  # it is made at the first write
    for i in range(20):
        write(store, i)
        check(store, i)
    other.refresh()
    for each in (store, other):
        for i in range(20):
            assert name(i) in each
            check(each, i)
        assert name(20) not in each
        assert each.sizes()[0] == 20
        assert sorted(each.names()) == sorted(name(i) for i in range(20))
        assert each.about("source 1") == [{"caption": f"c{i}"} for i in range(1, 20, 3)]
        assert each.about("source 9") == []
    store.close()
    store.close()
    assert files(store, ".part") == []
    assert len(files(store, ".tar")) == 1
    check(other, 3)
    check(EntryStore(store.folder), 19)
    assert store.check() == []


def test_it_satisfies_the_protocol(store):
    def takes(store: Store) -> None:
        store.describe({"encoder": "ab"})

    takes(store)
    assert store.manifest() == {"encoder": "ab"}
    assert EntryStore(store.folder).manifest() == {"encoder": "ab"}


def test_a_name_is_written_once(store):
    write(store, 1)
    size = store.sizes()
    store.write(name(1), tensors(2), {}, "another")
    check(store, 1)
    assert store.sizes() == size
    assert store.about("another") == []


def test_tensors_are_their_own_and_dtypes_stay(store):
    whole = torch.randn(1000, 64).to(torch.float8_e4m3fn)
    store.write(name(0), {"a": whole[5], "b": whole[5]}, {}, "s")
    assert store.sizes()[1] < 400  # not the 64,000 bytes that the views look at
    found = store.read(name(0))
    assert found["a"].dtype == torch.float8_e4m3fn
    assert torch.equal(found["a"].view(torch.uint8), whole[5].view(torch.uint8))
    found["a"].view(torch.uint8).zero_()
    assert torch.equal(store.read(name(0))["a"].view(torch.uint8), whole[5].view(torch.uint8))


def test_what_cannot_be_kept(store):
    good = tensors(0)
    for bad in ("../../x", name(0).upper().replace("0", "A"), name(0)[1:]):
        for call in (
            lambda bad=bad: store.write(bad, good, {}, "s"),
            lambda bad=bad: store.read(bad),
            lambda bad=bad: bad in store,
        ):
            with pytest.raises(ValueError, match="32 digits"):
                call()
    with pytest.raises(ValueError, match="Out of range float"):
        store.write(name(0), good, {"a": float("inf")}, "s")
    with pytest.raises(TypeError):
        store.write(name(0), good, {"a": object()}, "s")
    with pytest.raises(ValueError, match="2,000,0.* of JSON; at most"):
        store.write(name(0), good, {"a": "x" * 2_000_000}, "s")
    with pytest.raises(ValueError, match="1 to 1024 tensors"):
        store.write(name(0), {}, {}, "s")
    with pytest.raises(ValueError, match="local folder"):
        EntryStore("s3://bucket/cache")
    for size in ("big", 0):
        with pytest.raises(ValueError, match="shard_size|bytes"):
            EntryStore("cache", shard_size=size)
    assert not os.path.exists(store.folder)


def test_shards_are_finished_at_their_size(tmp_path):
    store = EntryStore(tmp_path / "cache", shard_size="20kB")
    for i in range(40):
        write(store, i)
        write(store, 100, 9000)  # larger than a shard: it is one
    sizes = [os.stat(os.path.join(store.folder, f)).st_size for f in files(store, ".tar")]
    assert len(sizes) >= 5
    assert all(size <= 20_000 + 2 * BLOCK for size in sizes if size < 30_000)
    assert sum(size > 30_000 for size in sizes) == 1
    assert len(files(store, ".idx.npy")) == len(sizes)
    for i in range(40):
        check(EntryStore(store.folder) if i % 10 == 0 else store, i)


def test_it_may_be_moved(store, tmp_path):
    for i in range(5):
        write(store, i)
    store.close()
    write(store, 5)
    moved = EntryStore(os.fspath(Path(store.folder).rename(tmp_path / "elsewhere")))
    for i in range(6):
        check(moved, i)
    for file in files(moved, ".tar") + files(moved, ".part"):
        assert str(tmp_path).encode() not in Path(moved.folder, file).read_bytes()


def test_a_store_is_pickled_as_its_arguments(tmp_path):
    store = EntryStore(tmp_path / "cache", shard_size="1MB")
    for i in range(1000):
        write(store, i, 2)
    data = pickle.dumps(store)
    assert len(data) < 300
    again = pickle.loads(data)
    assert (again.folder, again.shard_size) == (store.folder, 1_000_000)
    check(again, 500, 2)
    assert repr(again) == f"EntryStore('{tmp_path}/cache', shard_size=1000000)"


def test_a_miss_looks_for_what_others_wrote_once_in_a_while(store, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(entry_reader.time, "monotonic", lambda: now[0])
    other = EntryStore(store.folder)
    looks = []
    real = other._files.look
    monkeypatch.setattr(other._files, "look", lambda: looks.append(1) or real())
    assert name(0) not in other
    write(store, 0)
    for _ in range(5):
        assert name(0) not in other
    assert len(looks) == 1
    now[0] += 1.01
    check(other, 0)
    check(other, 0)
    assert len(looks) == 2


# -- processes ----------------------------------------------------------------------------------


def run(*targets) -> None:
    crew = [fork.Process(target=target, args=args) for target, *args in targets]
    for process in crew:
        process.start()
    for process in crew:
        process.join(100)
        assert process.exitcode == 0


def write_some(folder, numbers, size):
    torch.set_num_threads(1)
    store = EntryStore(folder, shard_size=size)
    for i in numbers:
        write(store, i)
        check(store, i)
    store.close()


def look_on(folder, count):
    """Read whatever there is until all is there; what was there once stays."""
    torch.set_num_threads(1)
    store = EntryStore(folder)
    seen = set()
    end = time.monotonic() + 60
    while len(seen) < count and time.monotonic() < end:
        store.refresh()
        for i in range(count):
            if store.read(name(i)) is not None:
                check(store, i)
                seen.add(i)
            assert (i in seen) == (name(i) in store)
    assert len(seen) == count


def test_four_write_overlapping_names_while_two_read(tmp_path):
    folder = str(tmp_path / "cache")
    numbers = []
    for seed in range(4):
        order = [i for i in range(60) if (i + seed) % 4 < 2]
        random.Random(seed).shuffle(order)
        numbers.append(order)
    run(
        *((write_some, folder, order, 15_000) for order in numbers),
        *((look_on, folder, 60) for _ in range(2)),
    )
    store = EntryStore(folder)
    assert store.sizes()[0] == len(list(store.names())) == 60
    assert files(store, ".part") == []
    store.prune()
    assert store.check() == []
    for i in range(60):
        check(store, i)
    members = sum(len(store.about(f"source {k}")) for k in range(3))
    assert members == 60


def test_a_forked_child_writes_a_shard_of_its_own(store):
    for i in range(3):
        write(store, i)
    part = files(store, ".part")

    def child():
        torch.set_num_threads(1)
        check(store, 1)  # by the parent's index, through a file of its own
        for i in range(10, 13):
            write(store, i)
            check(store, i)
        assert len(files(store, ".part")) == 2
        os._exit(0)  # as a kill: its shard stays as it is

    run((child,))
    assert set(files(store, ".part")) > set(part)
    for i in range(3, 6):
        write(store, i)
    assert len(files(store, ".part")) == 2
    store.refresh()
    for i in (0, 1, 2, 3, 4, 5, 10, 11, 12):
        check(store, i)
    store.close()  # what the child left, too
    assert files(store, ".part") == []
    assert store.check() == []
    assert EntryStore(store.folder).sizes()[0] == 9


def test_a_spawned_child_finds_all(store):
    for i in range(3):
        write(store, i)
    code = "import pickle, sys; s = pickle.load(sys.stdin.buffer); print(len(list(s.names())))"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=pickle.dumps(store),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.path.join(os.getcwd(), ".dev")},
    )
    assert found.stdout.split() == [b"3"]


def test_what_a_killed_process_left_is_gone_on_with(store):
    def child(numbers):
        torch.set_num_threads(1)
        own = EntryStore(store.folder)
        for i in numbers:
            write(own, i)
        os.kill(os.getpid(), signal.SIGKILL)

    for numbers in (range(3), range(3, 5)):
        process = fork.Process(target=child, args=(numbers,))
        process.start()
        process.join()
    (part,) = files(store, ".part")  # the second went on with the first's
    with open(os.path.join(store.folder, part), "ab") as file:
        file.write(Path(store.folder, part).read_bytes()[:1700])  # and a torn one
    assert store.sizes()[0] == 5
    write(store, 5)
    assert files(store, ".part") == [part]
    for i in range(6):
        check(store, i)
    store.close()
    assert store.check() == []
    assert EntryStore(store.folder).sizes()[0] == 6


def write_until_killed(folder, rank, rendezvous, log, size):
    torch.set_num_threads(1)
    group = torch.distributed.FileStore(rendezvous, 2)
    torch.distributed.init_process_group("gloo", store=group, rank=rank, world_size=2)
    store = EntryStore(folder, shard_size="3MB")
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"begun\n")
    start = int(time.time() * 1e6)
    for i in range(start, start + 100_000):
        write(store, 2 * i + rank, size)
        os.write(fd, b"%d\n" % (2 * i + rank))
        torch.distributed.barrier()


def test_kills_of_two_ranks_at_random_moments_lose_nothing(tmp_path):
    """All that `write` returned from is there, and at most one entry of each rank more."""
    folder, rng = str(tmp_path / "cache"), random.Random(0)
    done: set[int] = set()
    kills, size = 8, 60_000  # 720 kB an entry: kills hit writes
    for k in range(kills):
        logs = [str(tmp_path / f"log{k}.{rank}") for rank in range(2)]
        crew = [
            fork.Process(
                target=write_until_killed, args=(folder, rank, f"{tmp_path}/{k}", logs[rank], size)
            )
            for rank in range(2)
        ]
        for process in crew:
            process.start()
        while not all(os.path.exists(log) and os.stat(log).st_size for log in logs):
            assert all(process.is_alive() for process in crew)
            time.sleep(0.01)
        time.sleep(0.05 + rng.random() * 0.3)
        for process in rng.sample(crew, 2):
            process.kill()
        for process in crew:
            process.join()
        new = {int(n) for log in logs for n in Path(log).read_text().split()[1:]}
        done |= new
        store = EntryStore(folder)
        assert {name(i) for i in done} <= set(store.names())
        assert len(done) <= store.sizes()[0] <= len(done) + 2 * (k + 1)
        for i in new:
            check(store, i, size)
    assert len(done) > 2 * kills
    store = EntryStore(folder)
    store.close()
    assert files(store, ".part") == []
    assert store.check() == []
    again = EntryStore(folder)
    assert {name(i) for i in done} <= set(again.names())
    for i in rng.sample(sorted(done), 10):
        check(again, i, size)


# -- damage -------------------------------------------------------------------------------------


def place_of(store, i):
    place = store._files.index.find(name_number(name(i)))
    return store._files.open(place.shard)[1], place.entry


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.fixture
def sealed(store):
    for i in range(5):
        write(store, i)
    store.close()
    return store


def test_damage_of_a_finished_shard_names_file_and_byte(sealed):
    path, entry = place_of(sealed, 2)
    overwrite(path, entry.body + BLOCK + 20, b"\xff\xff")
    with pytest.raises(DataError, match=rf"\.tar: byte {entry.body + BLOCK}: .*its header is no"):
        sealed.read(name(2))
    overwrite(path, entry.body, b"x")
    with pytest.raises(DataError, match=rf"\.tar: byte {entry.body}: expected the tensors of"):
        sealed.read(name(2))
    overwrite(path, entry.offset + BLOCK, b"x")
    with pytest.raises(DataError, match=rf"\.tar: byte {entry.offset}: the JSON of entry"):
        sealed.about("source 2")
    check(sealed, 3)
    os.truncate(path, entry.offset)
    with pytest.raises(DataError, match="expected the tensors of"):
        sealed.read(name(3))
    with pytest.raises(DataError, match=rf"\.tar: byte {entry.offset} of {entry.offset}: "):
        EntryStore(sealed.folder).read(name(0))


def test_what_is_not_whole_in_a_part_is_a_miss_and_made_anew(store):
    for i in range(3):
        write(store, i)
    path, entry = place_of(store, 1)
    other = EntryStore(store.folder)
    assert other.sizes()[0] == 3
    overwrite(path, entry.body + BLOCK + entry.data - 1, b"\xaa")
    for each in (store, other):
        assert each.read(name(1)) is None
        assert name(1) not in each
    write(store, 1)
    check(store, 1)


def test_pruned_by_another_process_is_a_miss(sealed):
    other = EntryStore(sealed.folder)
    assert name(1) in other
    sealed.prune({name(2)})
    assert other.read(name(1)) is None
    check(other, 2)
    assert other.about("source 1") == []
    assert [a["caption"] for a in other.about("source 2")] == ["c2"]


def test_a_shard_that_is_listed_and_cannot_be_found_is_an_error(sealed):
    path = place_of(sealed, 1)[0]
    other = EntryStore(sealed.folder)
    assert name(1) in other
    os.rename(path, path + ".moved")
    os.symlink("nothing", path)
    with pytest.raises(FileNotFoundError, match="comes and goes|No such file"):
        other.read(name(1))


def test_about_goes_on_where_a_shard_was_pruned(sealed):
    other = EntryStore(sealed.folder)
    assert other.sizes()[0] == 5
    sealed.prune({name(2)})
    assert other.about("source 1") == []


def test_two_sources_of_one_hash_are_told_apart(sealed, monkeypatch):
    monkeypatch.setattr(entry_reader, "source_number", lambda _: place_of(sealed, 1)[1].source)
    assert [a["caption"] for a in sealed.about("source 1")] == ["c1", "c4"]
    assert sealed.about("source 2") == []


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files open
def test_webdataset_reads_the_shards(sealed):
    import webdataset

    urls = [os.path.join(sealed.folder, f) for f in files(sealed, ".tar")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 5
    for i, sample in enumerate(samples):
        assert sample["__key__"].endswith(f"-{name(i)}")
        assert json.loads(sample["json"])["caption"] == f"c{i}"
