"""Embed the images and captions of shards with CLIP, in the order of the shards.

    python -m penstock.recipes.embed --url 'shards/*.tar' --model MODEL --out embeddings/
    torchrun --nproc_per_node 8 -m penstock.recipes.embed --url ... --model ... --out ...

``MODEL`` is a folder or a hub id of a model of transformers that embeds images and texts: CLIP,
SigLIP, ... Images go through its own image processor. For ``00012.tar`` there will be
``img_emb/img_emb_00012.npy`` and ``text_emb/text_emb_00012.npy``, [rows, dimension], which
``.join_embeddings("embeddings/img_emb")`` reads: row 34 is that of the sample whose key ends in the
index 34. ``metadata/metadata_00012.parquet`` says key and caption of each row, so that tools for
clip-retrieval's output read them too. Rows without an embedding are zero, and null in the table.

Vectors have the length 1, as clip-retrieval writes them and DALLE2-pytorch makes them itself.

A run that was interrupted goes on when it is started again, at the batch. Another model, or options
that make other embeddings, are refused: ``embed.json`` holds what the folder was begun with. The
same shards make the same files, whoever embeds them: process r of R takes every R-th shard.
"""

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from ..pipes import ShardLister
from ..pipes.decode_fields import CaptionField
from ..pipes.embedding_files import tar_digits
from ..pipes.errors import DataError
from ..pipes.pipe import Pipe
from ..pipes.rank import place_of
from ..pipes.shard_cache import ShardCache
from ..pipes.tar import TarReader
from ..pipes.urls import expand_urls
from ._cli import cli
from .all_ranks import all_ranks
from .embed_input import Prepare
from .embed_part import Part, samples_done
from .embed_run import UNREAD, Entry, Job, ShardRun, Undone, Walk, entries_of
from .embed_settings import check_settings
from .embed_shard import Record, ShardFiles
from .embedder import Embedder, Kinds
from .embedding_rows import index_rows, numbered_shards

AT_ONCE = 16
"""Remote shards whose versions are asked for at once."""

MOST_NAMED = 100
"""Samples without an embedding that are named at the end."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Embed the images and captions of shards with a model of transformers."""

    url: str | list[str]
    """The shards, as ShardLister takes them."""
    model: str
    """A folder, or the id of a model on the Hugging Face hub."""
    out: Path
    """Folder for the embeddings; made if missing."""
    kinds: Kinds = "both"
    """What is embedded: image, text, or both."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the numbers in the files."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which the model computes."""
    normalize: bool = True
    """Whether each vector is divided by its length."""
    rows: Literal["index", "ordinal"] = "index"
    """Which row a sample gets: that of the index in its key, or where keys have none, that of its
    place in the shard, which .join_embeddings() does not read."""
    index_width: int | None = None
    """Digits at the end of a key that are the index; else those behind the shard's number."""
    image: str | None = None
    """Name of the image's field; else it is found by its ending."""
    caption: str | None = None
    """Name of the caption's field, or json.text; else known names are looked for."""
    caption_default: str | None = None
    """The caption of a sample that has none; without it that is bad data."""
    columns: list[str] = field(default_factory=list)
    """Values of each sample's json that come along in the metadata, such as url; as texts."""
    batch_size: int = 64
    """Samples at a time. Another one may change last bits of the numbers."""
    num_workers: int = 2
    """Worker processes that read and decode; 0: none."""
    device: str = "auto"
    """Where the model runs; auto is this process's GPU, or the CPU where there is none."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an image that is missing or cannot be decoded, or a missing caption, does: end the run,
    or leave a row of zeros, named and counted."""
    cache: str | None = None
    """Folder of the cache for remote shards and indexes."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                "batch_size must be at least 1 and num_workers at least 0, got "
                f"{self.batch_size} and {self.num_workers}"
            )
        if self.rows == "ordinal" and self.index_width is not None:
            raise ValueError("index_width is for rows by index; with rows=ordinal there is none")
        if {"image_path", "key", "caption"} & set(self.columns):
            raise ValueError("columns image_path, key and caption are there already")


_CONTENT: tuple[str, ...] = (
    *("kinds", "dtype", "precision", "normalize", "rows", "index_width", "image", "caption"),
    *("caption_default", "columns"),
)
"""Options that what is in the files depends on."""


@dataclass(frozen=True)
class Report:
    """What a process has done.

    Attributes:
        records: Of its shards that are whole.
        known: How many of them were whole before.
        failed: What is wrong with shards that cannot be read.
    """

    records: list[Record]
    known: int
    failed: list[str]


def main(cfg: Config) -> None:
    """Embed this process's shards; the first process sums up what all have done."""
    rank, world_size = place_of(None, None)
    if rank == 0:
        print(cfg)
    try:
        report = embed(cfg, rank, world_size)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    ranks = all_ranks(report, world_size)
    if rank == 0 or len(ranks) < world_size:
        print(_summary(ranks, cfg.out))
    if any(other.failed for other in ranks):
        sys.exit(1)


def embed(cfg: Config, rank: int = 0, world_size: int = 1) -> Report:
    """Write the embeddings of this process's shards, and return what was done.

    Raises:
        DataError: A sample is bad, and not to be passed over, or a key has no index.
        ValueError: The folder was begun with something else, or the model is of another kind.
        OSError: A file cannot be read or written.
    """
    import pyarrow  # noqa: F401  (before hours of work, not after)

    urls = expand_urls(cfg.url)
    numbered_shards(urls)
    cfg.out.mkdir(parents=True, exist_ok=True)
    options = {name: getattr(cfg, name) for name in _CONTENT}
    check_settings(cfg.out, options)
    (cfg.out / "parts").mkdir(exist_ok=True)
    cache = ShardCache(cfg.cache)
    kinds = ("image", "text") if cfg.kinds == "both" else (cfg.kinds,)
    known: list[Record] = []
    jobs: list[Job] = []
    own = urls[rank::world_size]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        versions = list(pool.map(cache.version, own))
    for url, version in zip(own, versions, strict=True):
        files = ShardFiles(cfg.out, tar_digits(url), kinds)
        record = files.record(version)
        if record is None:
            jobs.append(Job(url, version, files))
        else:
            files.forget_part()
            known.append(record)
    report = Report(known, len(known), [])
    if jobs:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        embedder = Embedder(
            cfg.model,
            kinds=cfg.kinds,
            device=device if cfg.device == "auto" else cfg.device,
            precision=cfg.precision,
            normalize=cfg.normalize,
        )
        check_settings(cfg.out, options, (cfg.model, embedder.fingerprint))
        walk = _embed(cfg, jobs, embedder, rank)
        report = Report(known + walk.records, len(known), walk.failed)
    with suppress(OSError):  # not empty: another process is still at work
        (cfg.out / "parts").rmdir()
    return report


def _embed(cfg: Config, jobs: Sequence[Job], embedder: Embedder, rank: int) -> Walk:
    reader = TarReader(
        ShardLister([job.url for job in jobs], shuffle=False, cache=cfg.cache, cache_size=None)
    )
    source = reader.open(False)

    def open_keys(shard: int) -> tuple[list[str], np.ndarray]:
        url = jobs[shard].url
        keys = [source.name(shard, i)[1] for i in range(source.size(shard))]
        if not keys:
            raise DataError(f"{url} has no samples")
        if cfg.rows == "ordinal":
            return keys, np.arange(len(keys))
        return keys, index_rows(url, keys, cfg.index_width)

    bar = tqdm(unit=" images", desc=f"rank {rank}", disable=rank > 0, smoothing=0.02)
    blank = Entry(
        torch.zeros(embedder.image_shape), "", json.dumps([None] * len(cfg.columns)), "", ""
    )
    blank = blank._replace(
        image_fault=UNREAD if embedder.processor is not None else "",
        text_fault=UNREAD if embedder.tokenizer is not None else "",
    )

    def make(job: Job, keys: Sequence[str], rows: np.ndarray, part: Part) -> ShardRun:
        bar.set_postfix_str(f"{jobs.index(job) + 1:,} of {len(jobs):,} shards")
        return ShardRun(
            job=job,
            keys=keys,
            rows=rows,
            part=part,
            embedder=embedder,
            dtype=np.dtype(cfg.dtype),
            batch_size=cfg.batch_size,
            blank=blank,
            columns=cfg.columns,
            progress=bar.update,
        )

    done = {i: samples_done(job.files.part, job.version) for i, job in enumerate(jobs)}
    loader = _pipe(cfg, reader, embedder, {i: n for i, n in done.items() if n}).loader(
        cfg.num_workers,
        rank=0,  # this process has its own shards
        world_size=1,
        on_error=cfg.on_error,
        quarantine=cfg.out / f"unread-{rank:05d}.jsonl",
    )
    walk = Walk(jobs, open_keys, make, cfg.on_error == "skip")
    try:
        for batch in loader:
            for shard, sample, entry in entries_of(batch):
                walk.add(shard, sample, entry)
        walk.finish()
    finally:
        bar.close()
        walk.close()
        loader.close()
    return walk


def _pipe(cfg: Config, reader: TarReader, embedder: Embedder, done: dict[int, int]) -> Pipe:
    """Return the graph that gives samples, shard by shard, as `Prepare` makes them."""
    caption = CaptionField(cfg.caption, "first", False, cfg.caption_default)
    prepare = Prepare(
        embedder.processor,
        embedder.image_shape,
        caption if embedder.tokenizer is not None else None,
        image=cfg.image,
        columns=cfg.columns,
        strict=cfg.on_error == "raise",
    )
    pipe: Pipe = reader.filter(Undone(done)) if done else reader
    return pipe.batch(cfg.batch_size).lanes(1, by="shards", repeat=False).load().map(prepare)


def _summary(ranks: list[Report], out: Path) -> str:
    records = [record for report in ranks for record in report.records]
    faults = [fault for record in records for fault in record.faults]
    failed = [line for report in ranks for line in report.failed]
    lines = [
        f"{sum(r.samples for r in records):,} samples of {len(records):,} shards in {out}, "
        f"{sum(r.known for r in ranks):,} of them embedded before; {len(faults):,} images or "
        f"captions without an embedding; {len(failed):,} shards failed"
    ]
    lines += [f"  {line}" for line in failed]
    lines += [f"  {key}: {fault}" for key, fault in faults[:MOST_NAMED]]
    if len(faults) > MOST_NAMED:
        lines.append(f"  … and {len(faults) - MOST_NAMED:,} more")
    return "\n".join(lines)


if __name__ == "__main__":
    main(cli(Config))
