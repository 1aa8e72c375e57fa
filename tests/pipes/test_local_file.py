import gzip
import io
import os
import tarfile

import fsspec
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem

from penstock.pipes.errors import DataError
from penstock.pipes.local_file import cache_root, local_file, source_version

PACKERS = {
    "gzip": gzip.compress,
    "gzip in two members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd without its size": zstandard.ZstdCompressor(write_content_size=False).compress,
    "zstd in two frames": lambda data: b"".join(
        zstandard.ZstdCompressor().compress(part) for part in (data[:700], data[700:])
    ),
}


@pytest.fixture(scope="module")
def tar_bytes():
    """A small tar that compresses badly, so that its compressed forms can be cut in many places."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.bin")
            member.size = 1000
            tar.addfile(member, io.BytesIO(os.urandom(1000)))
    return file.getvalue()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("penstock.pipes.retry.FIRST_WAIT", 0.001)


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def memory():
    """fsspec's memory filesystem with an empty folder /local."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/local/other", b"")
    yield fs
    fs.rm("/local", recursive=True)


def cached(cache):
    return sorted(os.listdir(f"{cache}/shards")) if os.path.isdir(f"{cache}/shards") else []


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_a_local_tar_is_read_in_place(tmp_path, cache, tar_bytes, monkeypatch):
    path = tmp_path / "0.tar"
    path.write_bytes(tar_bytes)
    found = local_file(str(path), cache)
    assert (found.path, found.size) == (str(path), len(tar_bytes))
    assert found.mtime_ns == path.stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    assert local_file("0.tar", cache) == local_file(f"file://{path}", cache) == found
    assert cached(cache) == []


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["0.tar.gz", "0.tar.zst", "0.tar"])
def test_compressed_tars_are_unpacked_once_whatever_their_name(
    tmp_path, cache, tar_bytes, packer, name, monkeypatch
):
    path = tmp_path / name
    path.write_bytes(PACKERS[packer](tar_bytes))
    found = local_file(str(path), cache)
    assert read(found.path) == tar_bytes
    assert (found.size, found.mtime_ns) == source_version(str(path))
    assert found.size == path.stat().st_size
    assert [f"{cache}/shards/{name}" for name in cached(cache)] == [found.path]
    monkeypatch.setattr("penstock.pipes.shard_cache.unpack", None)
    assert local_file(str(path), cache) == found


def test_a_changed_source_is_unpacked_anew(tmp_path, cache, tar_bytes):
    path = tmp_path / "0.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes))
    first = local_file(str(path), cache)
    os.utime(path, ns=(1, 1))
    second = local_file(str(path), cache)
    assert (second.mtime_ns, second.path) == (1, second.path)
    assert second.path != first.path


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_remote_shards_are_fetched_whole(cache, tar_bytes, memory, pack):
    memory.pipe("/local/0.tar", pack(tar_bytes))
    found = local_file("memory://local/0.tar", cache)
    assert read(found.path) == tar_bytes
    assert found.path.startswith(f"{cache}/shards/")
    assert found.size == len(pack(tar_bytes))
    memory.pipe("/local/0.tar", pack(tar_bytes))  # as large as before, but later
    again = local_file("memory://local/0.tar", cache)
    assert again.path != found.path
    assert again.mtime_ns != found.mtime_ns


def test_the_version_of_a_remote_file_is_its_etag(monkeypatch):
    info = {"name": "x", "size": 7, "type": "file", "ETag": '"a"', "LastModified": 1}
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path: dict(info))
    first = source_version("memory://local/0.tar")
    info["LastModified"] = 2
    assert source_version("memory://local/0.tar") == first
    info["ETag"] = '"b"'
    size, version = source_version("memory://local/0.tar")
    assert size == first[0] == 7
    assert 0 <= version < 1 << 63
    assert version != first[1]
    del info["ETag"], info["LastModified"], info["size"]
    assert source_version("memory://local/0.tar") == (-1, 0)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_transfer_that_ends_early_is_an_io_error(cache, tar_bytes, memory, monkeypatch, pack):
    data = pack(tar_bytes)
    memory.pipe("/local/0.tar", data)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: data[:-600])
    with pytest.raises(OSError, match=rf"0\.tar: .*got {len(data) - 600:,} bytes of {len(data):,}"):
        local_file("memory://local/0.tar", cache)
    assert cached(cache) == []


@pytest.mark.parametrize("packer", PACKERS)
def test_damaged_compressed_data_is_a_data_error(tmp_path, cache, tar_bytes, packer):
    path = tmp_path / "0.tar"
    data = PACKERS[packer](tar_bytes)
    damaged = bytearray(data)
    damaged[4 if packer.startswith("zstd") else len(data) // 2] ^= 0xFF
    for content in (data[:-1], data[:-3], data[: len(data) // 2], data[:11], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"0\.tar: its compressed data is damaged or truncated"):
            local_file(str(path), cache)
    assert cached(cache) == []


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_bombs_are_refused(tmp_path, cache, pack):
    path = tmp_path / "0.tar"
    path.write_bytes(pack(bytes(20 << 20)))
    with pytest.raises(DataError, match=r"0\.tar: unpacks to more than 10,485,760 bytes"):
        local_file(str(path), cache, max_unpacked=10 << 20)
    assert cached(cache) == []
    assert os.path.getsize(local_file(str(path), cache, max_unpacked=20 << 20).path) == 20 << 20


def test_a_missing_shard_is_named(tmp_path, cache, memory):
    for url in (f"{tmp_path}/0.tar", "memory://local/0.tar", "file:///nowhere/0.tar"):
        with pytest.raises(FileNotFoundError, match=f"no such shard: {url}"):
            local_file(url, cache)


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_CACHE", "/p")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.chdir(tmp_path)
    assert cache_root("rel") == f"{tmp_path}/rel"
    assert cache_root("~/c") == "/h/c"
    assert cache_root() == "/p"
    monkeypatch.delenv("PENSTOCK_CACHE")
    assert cache_root() == "/x/penstock"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == "/h/.cache/penstock"
