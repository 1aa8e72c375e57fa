import gzip
import os

import pytest

from penstock.pipes import DataError, Extent
from penstock.pipes.cached_shard import CachedShard
from penstock.pipes.read import read_extent, read_through
from penstock.pipes.remote import Remote, ShardReplaced
from penstock.pipes.shard_cache import ShardCache

DATA = bytes(range(200)) * 10


@pytest.fixture
def cache(s3, tmp_path):
    return ShardCache(str(tmp_path / "cache"), None, Remote(s3.options))


def test_a_sample_whose_shard_is_gone_is_read_singly(s3, cache):
    shard = CachedShard(cache, s3.put("0.tar", DATA))
    shard.acquire()
    assert shard.read(100, 50) == DATA[100:150]
    os.unlink(shard.path)
    assert shard.read(150, 50) == DATA[150:200]  # in use: its file is still open
    shard.release()
    assert s3.gets("0.tar") == [0]
    assert shard.read(300, 7) == DATA[300:307]
    assert shard.read(0, 0) == b""
    assert shard.read(len(DATA) - 3, 3) == DATA[-3:]
    assert s3.gets("0.tar") == [0, 300, len(DATA) - 3]
    assert sum(method == "HEAD" for method, _, _ in s3.log) <= 3
    assert not os.path.exists(shard.path)


def test_a_shard_never_held_is_read_singly_too(s3, cache):
    shard = CachedShard(cache, s3.put("0.tar", DATA))
    extent = Extent(shard.path, 300, 7)
    read_through(shard.path, shard)
    assert read_extent(extent) == DATA[300:307]
    assert extent._replace(offset=400).read() == DATA[400:407]
    assert s3.gets("0.tar") == [0, 300, 400]  # once, whether it is compressed
    del shard
    with pytest.raises(FileNotFoundError):
        read_extent(extent)


def test_single_reads_are_tried_again(s3, cache):
    shard = CachedShard(cache, s3.put("0.tar", DATA))
    s3.fail_gets("0.tar", 3, "status", 503)
    assert shard.read(300, 7) == DATA[300:307]
    s3.fail_gets("0.tar", 3, "truncate", 2)
    assert shard.read(300, 7) == DATA[300:307]


def test_a_compressed_shard_is_fetched_anew(s3, cache):
    shard = CachedShard(cache, s3.put("0.tar", gzip.compress(DATA)))
    for _ in range(2):
        assert shard.read(300, 7) == DATA[300:307]
    os.unlink(shard.path)
    assert shard.read(300, 7) == DATA[300:307]
    assert s3.gets("0.tar") == [0, 0, 0]  # its first bytes, and twice all
    again = CachedShard(cache, shard.url)
    again.acquire()
    again.release()
    os.unlink(again.path)
    assert again.read(300, 7) == DATA[300:307]
    assert len(s3.gets("0.tar")) == 4


def test_a_local_compressed_shard_is_unpacked_anew(cache, tmp_path):
    path = tmp_path / "0.tar.gz"
    path.write_bytes(gzip.compress(DATA))
    shard = CachedShard(cache, str(path))
    shard.acquire()
    shard.release()
    os.unlink(shard.path)
    assert shard.read(300, 7) == DATA[300:307]


def test_a_replaced_shard_is_named(s3, cache):
    shard = CachedShard(cache, s3.put("0.tar", DATA))
    version = shard.version
    s3.put("0.tar", DATA[::-1])
    for known in (shard, CachedShard(cache, shard.url, version)):
        with pytest.raises(ShardReplaced, match=f"{shard.url} was replaced during the run"):
            known.acquire()
        with pytest.raises(ShardReplaced, match=f"{shard.url} was replaced during the run"):
            known.read(300, 7)
    other = CachedShard(cache, shard.url)
    assert other.read(300, 7) == DATA[::-1][300:307]
    s3.put("0.tar", DATA)
    with pytest.raises(ShardReplaced):  # seen by the GET itself
        other.read(300, 7)


def test_extents_beyond_the_end(s3, cache):
    shard = CachedShard(cache, s3.put("0.tar", DATA))
    with pytest.raises(DataError, match=rf"0.tar ends at byte {len(DATA)}.*of 9 bytes from byte"):
        shard.read(len(DATA) - 3, 9)
    shard.acquire()
    with pytest.raises(DataError, match=rf"0.tar ends at byte {len(DATA)}.*of 9 bytes from byte"):
        shard.read(len(DATA) - 3, 9)
