"""What lies at a path or URL is told from its name, or from what is in it."""

import fsspec
import pytest

from penstock.pipes import ManifestReader
from penstock.pipes.tar import TarReader
from penstock.recipes.open_source import is_manifest, open_source


@pytest.fixture
def photos(tmp_path, make_jpeg):
    for name in ("a/0", "a/1", "b/0"):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_jpeg(32, 32, 0))
    return str(tmp_path)


def test_what_a_url_is(photos, shards):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/it/shards/0.tar", b"")
    memory.pipe_file("/it/photos/0.jpg", b"")
    kinds = {
        photos: True,
        f"{photos}/a/": True,
        shards.partition("{")[0]: False,
        "rows.csv": True,
        "{a,b}.parquet": True,
        "s3://x/rows.jsonl": True,
        shards: False,
        "list.txt": False,
        "@list": False,
        "s3://x/*": False,
        "memory://it/shards/": False,
        "memory://it/photos/": True,
        "memory://it/photos": True,
    }
    assert {url: is_manifest(url) for url in kinds} == kinds
    memory.rm("/it", recursive=True)


def test_what_is_opened(photos, shards):
    several = open_source([f"{photos}/a", f"{photos}/b"], caption=[])
    assert isinstance(several, ManifestReader)
    assert len(several.table) == 3
    assert not several.shuffle_shards
    tars = open_source(shards, seed=3, shuffle=True)
    assert isinstance(tars, TarReader)
    assert (tars.seed, tars.shuffle_shards) == (3, True)
    with pytest.raises(ValueError, match="are tar shards, which have no columns"):
        open_source(shards, caption="text")
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        open_source("none.csv")
    with pytest.raises(ValueError, match="matches no file"):
        open_source("none*.csv")
