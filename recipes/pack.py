"""Pack a manifest, a folder or shards into webdataset shards.

    python -m penstock.recipes.pack --url photographs/ --out shards/
    torchrun --nproc_per_node 8 -m penstock.recipes.pack --url train.parquet --out shards/

``00000.tar`` and so on hold, for each sample, its image's bytes as they are under the ending of
their format, the caption in ``txt``, and all other columns in ``json``; a sample's key is its
number in the input. The order is the input's. ``plan.json`` says which samples each shard holds.

A run that was interrupted goes on when it is started again: shards that are whole are passed over,
and an input that has changed since is refused by the name of what has changed. The same input makes
the same bytes, whoever writes them: process r of R writes every R-th shard.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ..pipes.errors import DataError
from ..pipes.rank import place_of
from ..pipes.sample import Sample, Stored
from ._cli import cli
from .all_ranks import all_ranks
from .open_source import open_source
from .pack_input import PackInput
from .pack_members import Members, check_image, read_members
from .pack_shard import Record, Shard, check_plan, make_shards, whole_record, write_shard

AT_ONCE = 64
"""Samples in memory at once."""

MOST_NAMED = 100
"""Samples that were left out and are named at the end."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pack images and captions into webdataset shards."""

    url: str | list[str]
    """A manifest, a folder of images, or shards: a path or URL, with braces or wildcards (in
    quotes), or several."""
    out: Path
    """Folder for the shards; made if missing."""
    samples_per_shard: int = 10_000
    """Samples of the input for each shard; the last may have fewer."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an image that is missing or cannot be decoded, or a missing caption, does: end the run,
    or be left out, named and counted."""
    verify: bool = True
    """Whether every image is decoded, so that truncated ones are found; else its header is read."""
    image: str | None = None
    """The images' column in a manifest; else known names are looked for."""
    caption: str | list[str] | None = None
    """The captions' column, or several; else known names are looked for."""
    image_dir: str | None = None
    """Folder or URL that paths of images are relative to; else the manifest's."""
    columns: list[str] | None = None
    """Which other columns come along; else all."""
    caption_default: str | None = None
    """The caption of an image that has none; without it that is an error."""
    threads: int = 4
    """Threads of each process that decode images and fetch those that lie at URLs."""
    cache: str | None = None
    """Folder of the cache for what is fetched."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1 or self.threads < 1:
            raise ValueError(
                "samples_per_shard and threads must be at least 1, got "
                f"{self.samples_per_shard} and {self.threads}"
            )


def main(cfg: Config) -> None:
    """Write this process's shards; the first process sums up what all have done."""
    rank, world_size = place_of(None, None)
    if rank == 0:
        print(cfg)
    try:
        records = pack(cfg, rank, world_size)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    ranks = all_ranks(records, world_size)
    if rank == 0 or len(ranks) < world_size:
        print(_summary([pair for pairs in ranks for pair in pairs], cfg.out))
    if not any(record.successes for pairs in ranks for record, _ in pairs) and any(ranks):
        sys.exit("error: no sample was packed")


def pack(cfg: Config, rank: int = 0, world_size: int = 1) -> list[tuple[Record, bool]]:
    """Return the records of this process's shards, each with whether it was whole before.

    Raises:
        DataError: A sample is bad, and not to be left out; it names the sample.
        ValueError: The input is another one than what the folder was begun with, or is none.
        OSError: A file cannot be read or written.
    """
    pipe = open_source(
        cfg.url, image=cfg.image, caption=cfg.caption, image_dir=cfg.image_dir, cache=cfg.cache
    )
    source = PackInput(pipe)
    shards = make_shards(len(source), cfg.samples_per_shard)
    cfg.out.mkdir(parents=True, exist_ok=True)
    options = {name: getattr(cfg, name) for name in ("samples_per_shard", *_CONTENT)}
    check_plan(cfg.out, source, shards, options)
    own = shards[rank::world_size]
    whole = [whole_record(cfg.out, shard, source) for shard in own]  # before anything is written
    done: list[tuple[Record, bool]] = []
    total = sum(shard.stop - shard.start for shard in own)
    with (
        ThreadPoolExecutor(cfg.threads) as pool,
        tqdm(total=total, unit=" samples", desc=f"rank {rank}", disable=rank > 0) as bar,
    ):
        for shard, known in zip(own, whole, strict=True):
            if known is None:
                samples = _read(cfg, source, shard, pool, bar)
                done.append((write_shard(cfg.out, shard, source, samples), False))
            else:
                bar.update(known.count)
                done.append((known, True))
    return done


_CONTENT = ("image", "caption", "columns", "caption_default")
"""Options that what is in the shards depends on."""


def _read(
    cfg: Config, source: PackInput, shard: Shard, pool: ThreadPoolExecutor, bar: "tqdm[Any]"
) -> Iterator[tuple[int, Members | DataError]]:
    """Yield the number and the files of each sample of a shard, or what is wrong with it."""
    for start in range(shard.start, shard.stop, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, shard.stop))
        samples = [source.sample(i) for i in numbers]
        list(pool.map(_fetch, samples))
        # Files are read here: the files that are kept open are not for several threads.
        found = [_members(cfg, sample) for sample in samples]
        for i, one in zip(numbers, pool.map(lambda m: _checked(m, cfg.verify), found), strict=True):
            if isinstance(one, DataError):
                if cfg.on_error == "raise":
                    raise DataError(f"{source.name(i)}: {one}") from one
                tqdm.write(f"left out: {source.name(i)}: {one}", file=sys.stderr)
            bar.update()
            yield i, one


def _fetch(sample: Sample) -> None:
    """Have the cache fetch what lies at URLs, several at a time."""
    for value in sample.values():
        if isinstance(value, Stored) and value.far:
            with suppress(DataError):  # it comes again where the file is read
                value.fetch()


def _members(cfg: Config, sample: Sample) -> Members | DataError:
    try:
        return read_members(sample, caption_default=cfg.caption_default, columns=cfg.columns)
    except DataError as error:
        return error


def _checked(members: Members | DataError, whole: bool) -> Members | DataError:
    if isinstance(members, DataError):
        return members
    try:
        check_image(members[0][1], whole)
    except DataError as error:
        return DataError(f"field {members[0][0]!r}: {error}")
    return members


def _summary(done: list[tuple[Record, bool]], out: Path) -> str:
    records = [record for record, _ in done]
    whole = sum(known for _, known in done)
    failed = [failure for record in records for failure in record.failed]
    lines = [
        f"{sum(r.successes for r in records):,} samples in {len(records):,} shards in {out}, "
        f"{whole:,} of them written before; {len(failed):,} samples left out"
    ]
    lines += [f"  {name}: {fault}" for name, fault in failed[:MOST_NAMED]]
    if len(failed) > MOST_NAMED:
        lines.append(f"  … and {len(failed) - MOST_NAMED:,} more: see *_stats.json")
    return "\n".join(lines)


if __name__ == "__main__":
    main(cli(Config))
