"""Write the index of every shard, with the sizes of its images, so that no run need scan for it.

    python -m penstock.recipes.index --url 'shards/{00000..00999}.tar'
    torchrun --nproc_per_node 8 -m penstock.recipes.index --url 's3://b/{000..999}.tar' --out DIR

Local shards get sidecars beside them, ``00000.tar.index.npz``; with ``--out DIR``, and for remote
shards, the indexes go into a cache, where ``ShardLister(url, cache=DIR)`` finds them. What is up to
date is passed over, so that a run that was interrupted can be started again. A remote shard is
fetched for it, and kept only if the cache had it before.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ..pipes.errors import DataError
from ..pipes.index_store import SIDECAR, IndexStore
from ..pipes.local_file import cache_root, cached_path, source_version
from ..pipes.rank import place_of
from ..pipes.shard_index import ShardIndex
from ..pipes.urls import expand_urls, local_path
from ._cli import cli
from .all_ranks import all_ranks


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write the indexes of shards, with image sizes."""

    url: str
    """The shards: a path or URL with braces or wildcards (in quotes), or a folder."""
    out: Path | None = None
    """Cache for the indexes, see ShardLister(cache=...); else they go beside local shards."""


def main(cfg: Config) -> None:
    """Index this process's shards; the exit status is 1 where any shard of any process failed."""
    rank, world_size = place_of(None, None)
    if rank == 0:
        print(cfg)
    cache = None if cfg.out is None else str(cfg.out)
    try:
        urls = expand_urls(cfg.url)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    counts = {"written": 0, "fresh": 0}
    failed: list[str] = []
    bar = tqdm(urls[rank::world_size], unit=" shards", desc=f"rank {rank}", disable=rank > 0)
    for url in bar:
        try:
            counts[index_shard(url, cache)] += 1
        except (DataError, OSError) as error:
            failed.append(str(error) if url in str(error) else f"{url}: {error}")
            bar.set_postfix(failed=len(failed))
    ranks = all_ranks((counts, failed), world_size)
    if rank == 0 or len(ranks) < world_size:
        print(_summary(ranks))
        print(f"The indexes are {_where(urls, cache)}")
    if any(lines for _, lines in ranks):
        sys.exit(1)


def index_shard(url: str, cache: str | None = None) -> Literal["written", "fresh"]:
    """Write the index of one shard where it is missing or stale, and return what was done.

    Args:
        url: The shard.
        cache: Cache for the index; None: beside a local shard, or in the default cache.

    Raises:
        DataError: The shard is damaged.
        OSError: It cannot be read, or the index cannot be written.
    """
    path, version = index_path(url, cache), source_version(url)
    if _is_fresh(path, version):
        return "fresh"
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    at_hand = os.path.exists(cached_path(url, *version, cache))
    # What is fetched or unpacked for the index alone does not fill the disk.
    with tempfile.TemporaryDirectory(prefix=".indexing-", dir=folder) as passing:
        _, index = IndexStore(cache if at_hand else passing).open(url, image_sizes=True)
    index.save(path, source_size=version[0], source_mtime_ns=version[1])
    return "written"


def index_path(url: str, cache: str | None = None) -> str:
    """Return where the index of a shard goes; see `index_shard`."""
    local = local_path(url)
    if cache is None and local is not None:
        return local + SIDECAR
    return IndexStore(cache)._path(url)


def _is_fresh(path: str, version: tuple[int, int]) -> bool:
    try:
        index, *known = ShardIndex.load(path)
    except (FileNotFoundError, ValueError):  # missing, damaged, or of another version
        return False
    return tuple(known) == version and index.image_sizes is not None


Report = tuple[dict[str, int], list[str]]


def _summary(ranks: list[Report]) -> str:
    written, fresh = (sum(counts[name] for counts, _ in ranks) for name in ("written", "fresh"))
    failed = [line for _, lines in ranks for line in lines]
    words = f"{written:,} indexes written, {fresh:,} were up to date, {len(failed):,} shards failed"
    return "\n".join([words, *(f"  {line}" for line in failed)])


def _where(urls: list[str], cache: str | None) -> str:
    if cache is None and local_path(urls[0]) is not None:
        return f"beside the shards, such as {index_path(urls[0])}"
    return f"in {os.path.join(cache_root(cache), 'index')}: ShardLister(url, cache=...) finds them"


if __name__ == "__main__":
    main(cli(Config))
