import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.pipes import ShardLister, index_store
from penstock.pipes.index_store import IndexStore
from penstock.recipes import index
from penstock.recipes.index import Config, index_path, index_shard, main


@pytest.fixture
def copied(shards, tmp_path):
    """Four of the shards in a folder of their own."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in sorted(Path(shards).parent.glob("0000[0-3].tar")):
        shutil.copy(path, folder)
    return folder


def sidecars(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".tar")


@pytest.fixture
def no_scan(monkeypatch):
    """Have every scan of a shard, and every reading of images' headers, fail from now on."""

    def forbid():
        def refuse(*_):
            raise AssertionError("the shard was scanned")

        monkeypatch.setattr(index_store, "scan_tar", refuse)
        monkeypatch.setattr(index_store, "read_image_size", refuse)

    return forbid


def sizes_of(url, cache=None):
    """Return the sizes of all images, as a run with a bucketer would ask for them."""
    return [s.tolist() for s in ShardLister(url, cache=cache).read_tar().image_sizes()]


def test_sidecars_spare_every_scan(copied, no_scan, capsys, monkeypatch, tmp_path):
    expected = sizes_of(str(copied))
    main(Config(url=str(copied)))
    assert sidecars(copied) == [f"0000{i}.tar.index.npz" for i in range(4)]
    words = capsys.readouterr().out
    assert "4 indexes written, 0 were up to date, 0 shards failed" in words
    assert str(copied / "00000.tar.index.npz") in words
    no_scan()
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "empty"))
    assert sizes_of(str(copied)) == expected


def test_it_goes_on_where_it_was_interrupted(copied, capsys):
    main(Config(url=str(copied / "{00000..00001}.tar")))
    before = {name: (copied / name).stat().st_mtime_ns for name in sidecars(copied)}
    os.utime(copied / "00001.tar", ns=(1, 1))  # another version
    main(Config(url=str(copied)))
    assert "3 indexes written, 1 were up to date" in capsys.readouterr().out
    after = {name: (copied / name).stat().st_mtime_ns for name in before}
    assert [after[name] == before[name] for name in sorted(before)] == [True, False]
    assert index_shard(str(copied / "00001.tar")) == "fresh"


def test_an_index_without_image_sizes_is_not_up_to_date(copied, tmp_path):
    url, cache = str(copied / "00000.tar"), str(tmp_path / "cache")
    IndexStore(cache).open(url)
    assert index_shard(url, cache) == "written"
    assert index_shard(url, cache) == "fresh"


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_cache_that_a_lister_finds(copied, no_scan, tmp_path, capsys, sidecar):
    url, cache = str(copied / "*.tar"), tmp_path / "indexes"
    if sidecar:
        main(Config(url=url))
    expected = sizes_of(url)
    main(Config(url=url, out=cache))
    assert str(cache / "index") in capsys.readouterr().out
    assert len(list((cache / "index").iterdir())) == 4
    assert len(sidecars(copied)) == (4 if sidecar else 0)
    for name in sidecars(copied):
        (copied / name).unlink()
    no_scan()
    assert sizes_of(url, str(cache)) == expected


def test_a_remote_shard_is_indexed_and_not_kept(copied, tmp_path, no_scan):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/index-test/0.tar", (copied / "00000.tar").read_bytes())
    url, cache = "memory://index-test/0.tar", tmp_path / "cache"
    assert index_shard(url, str(cache)) == "written"
    assert [p.relative_to(cache).parts[0] for p in cache.rglob("*") if p.is_file()] == ["index"]
    no_scan()
    assert IndexStore(str(cache)).count(url, fetch=False) == 17
    assert index_shard(url, str(cache)) == "fresh"


def test_a_compressed_shard_gets_a_sidecar_and_is_not_kept_unpacked(copied, no_scan):
    packed = copied / "00009.tar.gz"
    packed.write_bytes(gzip.compress((copied / "00000.tar").read_bytes()))
    assert index_shard(str(packed)) == "written"
    assert sidecars(copied) == ["00009.tar.gz", "00009.tar.gz.index.npz"]
    no_scan()
    assert IndexStore().count(str(packed)) == 17


def test_what_fails_is_named_and_the_rest_is_done(copied, capsys):
    whole = (copied / "00001.tar").read_bytes()
    (copied / "00001.tar").write_bytes(whole[:1000])
    with pytest.raises(SystemExit) as ended:
        main(Config(url=str(copied / "{00000..00004}.tar")))
    assert ended.value.code == 1
    words = capsys.readouterr().out
    assert "3 indexes written, 0 were up to date, 2 shards failed" in words
    assert f"{copied / '00001.tar'}: byte" in words
    assert f"no such shard: {copied / '00004.tar'}" in words
    assert [name[:5] for name in sidecars(copied)] == ["00000", "00002", "00003"]


def test_a_url_that_matches_nothing_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*matches no file"):
        main(Config(url=str(tmp_path / "*.tar")))


def test_each_process_takes_its_share(copied, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, done in enumerate((["00000", "00003"], ["00001"], ["00002"])):
        for name in sidecars(copied):
            (copied / name).unlink()
        monkeypatch.setenv("RANK", str(rank))
        main(Config(url=str(copied)))
        assert [name[:5] for name in sidecars(copied)] == done
        assert f"{len(done)} indexes written" in capsys.readouterr().out


@pytest.mark.slow
def test_under_torchrun(copied):
    (copied / "00000.tar").write_bytes(b"no tar")
    root = Path(index.__file__).parents[2]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", index.__name__, f"--url={copied}"),
    ]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    # Rank 0's failure has not kept rank 1 from its work, nor from being counted.
    assert "3 indexes written, 0 were up to date, 1 shards failed" in done.stdout, done.stderr
    assert done.returncode == 1
    assert [name[:5] for name in sidecars(copied)] == ["00001", "00002", "00003"]


def test_the_place_of_an_index(tmp_path):
    assert index_path("data/0.tar") == os.path.abspath("data/0.tar.index.npz")
    assert index_path("s3://b/0.tar", str(tmp_path)).startswith(str(tmp_path / "index"))
    assert index_path("data/0.tar", str(tmp_path)).startswith(str(tmp_path / "index"))
