import gzip
import io
import json
import os
import pickle
import tarfile
import warnings

import fsspec
import pytest
from PIL import Image

from penstock.pipes import index_store
from penstock.pipes.errors import DataError
from penstock.pipes.index_store import IndexStore
from penstock.pipes.shard_index import ShardIndex


def png(height, width):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def tar_of(*members):
    """Return a tar of (name, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


THREE = tar_of(("0.png", png(3, 5)), ("0.txt", b"a"), ("1.png", b"no image"), ("2.txt", b"b"))
SIZES = [[3, 5], [-1, -1], [0, 0]]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "data" / "00000.tar"
    path.parent.mkdir()
    path.write_bytes(THREE)
    return str(path)


@pytest.fixture
def store(tmp_path):
    return IndexStore(str(tmp_path / "cache"))


@pytest.fixture
def memory():
    """fsspec's memory filesystem with the shard of three samples at memory://store/00000.tar."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/store/00000.tar", THREE)
    yield fs
    fs.rm("/store", recursive=True)


@pytest.fixture
def scans(monkeypatch):
    """The URLs that have been scanned, and those whose image headers have been read."""
    log = []
    scan, measure = index_store.scan_tar, index_store._measure
    monkeypatch.setattr(
        index_store, "scan_tar", lambda path, url: (log.append("scan"), scan(path, url))[1]
    )
    monkeypatch.setattr(
        index_store, "_measure", lambda index, path: (log.append("sizes"), measure(index, path))[1]
    )
    return log


def test_an_index_is_scanned_once_and_measured_once(store, shard, scans):
    path, index = store.open(shard)
    assert path == shard
    assert index.keys() == ["0", "1", "2"]
    assert index.image_sizes is None
    assert scans == ["scan"]
    assert store.open(shard)[1].image_sizes is None
    assert scans == ["scan"]
    assert store.open(shard, image_sizes=True)[1].image_sizes.tolist() == SIZES
    assert scans == ["scan", "sizes"]
    again = pickle.loads(pickle.dumps(store)).open(shard, image_sizes=True)[1]
    assert again.image_sizes.tolist() == SIZES
    assert "not an image" in again.image_error(1)
    assert again.image_error(0) is None
    assert store.open(shard)[1].image_sizes.tolist() == SIZES
    assert store.count(shard) == 3
    assert scans == ["scan", "sizes"]


def test_one_name_in_two_working_directories_is_two_shards(store, tmp_path, monkeypatch, scans):
    for folder, data in (("a", THREE), ("b", tar_of(("x.txt", b"")))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(data)
    for _ in range(2):
        for folder, count in (("a", 3), ("b", 1)):
            monkeypatch.chdir(tmp_path / folder)
            assert len(store.open("0.tar")[1]) == store.count("0.tar") == count
    assert len(scans) == 2


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_changed_shard_is_scanned_anew(store, shard, scans, sidecar):
    store.open(shard)
    if sidecar:
        store.write_sidecar(shard)
    time_ns = os.stat(shard).st_mtime_ns
    with open(shard, "wb") as file:
        file.write(
            tar_of(("0.png", png(3, 5)), ("0.txt", b"a"), ("9.png", b"no image"), ("3.x", b""))
        )
    del scans[:]
    os.utime(shard, ns=(time_ns + 1, time_ns + 1))  # of the same size
    assert store.open(shard)[1].keys() == ["0", "9", "3"]
    os.utime(shard, ns=(time_ns, time_ns))  # an old copy: older is not the same either
    assert store.count(shard) == 3
    assert scans[0] == "scan"
    with open(shard, "ab") as file:
        file.write(bytes(512))
    os.utime(shard, ns=(time_ns, time_ns))
    del scans[:]
    store.open(shard)
    assert scans == ["scan"]


def test_sidecars(store, shard, tmp_path, scans):
    path = store.write_sidecar(shard)
    assert path == shard + ".index.npz"
    assert scans == ["scan", "sizes"]
    assert os.listdir(tmp_path) == ["data"]  # the cache has nothing
    written = os.stat(path)
    assert store.write_sidecar(shard) == path
    other = IndexStore(str(tmp_path / "other"))
    assert other.open(shard)[1].image_sizes.tolist() == SIZES
    assert other.count(shard) == 3
    assert scans == ["scan", "sizes"]
    assert os.stat(path).st_mtime_ns == written.st_mtime_ns
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_a_sidecar_is_written_from_the_index_in_the_cache(store, shard, scans):
    store.open(shard, image_sizes=True)
    assert ShardIndex.load(store.write_sidecar(shard))[0].image_sizes.tolist() == SIZES
    assert scans == ["scan", "sizes"]


def test_a_sidecar_without_sizes_is_completed(store, shard, tmp_path, scans):
    stat = os.stat(shard)
    index = index_store.scan_tar(shard, "")
    index.save(f"{shard}.index.npz", source_size=stat.st_size, source_mtime_ns=stat.st_mtime_ns)
    for _ in range(2):
        assert store.open(shard, image_sizes=True)[1].image_sizes.tolist() == SIZES
    assert scans == ["scan", "sizes"]  # kept in the cache
    assert os.path.isdir(tmp_path / "cache")
    path = store.write_sidecar(shard)
    assert ShardIndex.load(path)[0].image_sizes.tolist() == SIZES
    assert scans == ["scan", "sizes"]


def test_an_empty_shard_is_scanned_once_too(store, tmp_path, scans):
    path = tmp_path / "0.tar"
    path.write_bytes(bytes(1024))
    for _ in range(2):
        assert store.open(str(path))[1].keys() == []
        assert store.open(str(path), image_sizes=True)[1].image_sizes.shape == (0, 2)
    store.write_sidecar(str(path))
    assert scans == ["scan", "sizes"]


def test_compressed_shards_have_their_sidecar_beside_them(store, tmp_path, scans):
    packed = tmp_path / "0.tar.gz"
    packed.write_bytes(gzip.compress(THREE))
    path, index = store.open(str(packed))
    with open(path, "rb") as file:
        data = file.read()
    name, at, size = index.members(0)[1]
    assert (name, data[at : at + size]) == ("txt", b"a")
    assert store.write_sidecar(str(packed)) == f"{packed}.index.npz"
    assert store.count(str(packed)) == 3
    assert scans == ["scan", "sizes"]


@pytest.mark.parametrize("where", ["sidecar", "cache"])
def test_a_damaged_index_is_made_anew(store, shard, tmp_path, where):
    store.open(shard)
    kept = tmp_path / "cache" / "index"
    path = kept / os.listdir(kept)[0] if where == "cache" else f"{shard}.index.npz"
    with open(path, "wb") as file:
        file.write(b"no index")
    other = store if where == "cache" else IndexStore(str(tmp_path / "new"))
    with pytest.warns(RuntimeWarning, match=rf"{path} is no index of a shard"):
        assert len(other.open(shard)[1]) == 3
    if where == "sidecar":
        with pytest.warns(RuntimeWarning, match="is no index of a shard"):
            store.write_sidecar(shard)
    assert len(other.open(shard)[1]) == 3  # without a warning


def test_a_cache_that_cannot_be_written_is_no_error(shard, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = IndexStore(str(tmp_path / "file" / "cache"))  # root may write into any folder
    with pytest.warns(RuntimeWarning, match=r"file/cache/index \(Not a directory\): each run"):
        assert len(store.open(shard)[1]) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with warnings.catch_warnings(record=True) as seen:
            assert len(store.open(shard)[1]) == 3
    assert seen == []


def test_a_damaged_shard_is_a_data_error_and_nothing_is_kept(store, shard, tmp_path):
    with open(shard, "r+b") as file:
        file.truncate(2600)
    for attempt in (store.open, store.count, store.write_sidecar):
        with pytest.raises(DataError, match=f"^{shard}: byte "):
            attempt(shard)
    assert os.listdir(tmp_path) == ["data"]
    assert os.listdir(tmp_path / "data") == ["00000.tar"]


def test_a_missing_shard_is_named(store, tmp_path):
    for attempt in (store.open, store.count, store.write_sidecar):
        with pytest.raises(FileNotFoundError, match=f"no such shard: {tmp_path}/1.tar"):
            attempt(f"{tmp_path}/1.tar")


URL = "memory://store/00000.tar"


def test_remote_shards_are_counted_by_img2dataset_until_they_are_fetched(store, memory, scans):
    memory.pipe("/store/00000_stats.json", json.dumps({"count": 10, "successes": 7}).encode())
    assert store.count(URL) == store.count(URL, fetch=False) == 7
    assert scans == []
    assert len(store.open(URL)[1]) == 3
    assert store.count(URL) == store.count(URL, fetch=False) == 3
    assert scans == ["scan"]


def test_statistics_beside_a_local_shard_do_not_count(store, shard):
    with open(shard.replace(".tar", "_stats.json"), "w") as file:
        file.write('{"successes": 7}')
    assert store.count(shard) == store.count(shard, fetch=False) == 3


@pytest.mark.parametrize(
    "stats", [None, b"{", b"[]", b"{}", b'{"successes": -1}', b'{"successes": "7"}']
)
def test_without_statistics_a_remote_shard_is_fetched_to_be_counted(store, memory, stats):
    if stats is not None:
        memory.pipe("/store/00000_stats.json", stats)
    with pytest.raises(LookupError, match=f"samples in {URL} is not known before it is fetched"):
        store.count(URL, fetch=False)
    assert store.count(URL) == 3
    assert store.count(URL, fetch=False) == 3


def test_a_fetched_shard_without_an_index_is_scanned(store, memory, tmp_path):
    memory.pipe("/store/00000_stats.json", b'{"successes": 7}')
    store.open(URL)
    (index,) = (tmp_path / "cache" / "index").iterdir()
    index.unlink()
    assert store.count(URL, fetch=False) == 3


def test_the_sidecar_of_a_remote_shard_is_in_the_cache(store, memory, tmp_path, scans):
    path = store.write_sidecar(URL)
    assert path.startswith(f"{tmp_path}/cache/index/")
    assert store.write_sidecar(URL) == path
    assert store.open(URL, image_sizes=True)[1].image_sizes.tolist() == SIZES
    assert scans == ["scan", "sizes"]
