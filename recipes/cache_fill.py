"""The walks over a data set that fill its caches."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import torch
from tqdm import tqdm

from ..pipes import Decoder, Pipe, caption_variants
from ..pipes.draws import Draws
from ..pipes.graph import Graph
from ..pipes.sample import Sample
from ..pipes.work import Decoding, Slot
from ..transforms import LatentCache, TextCache, estimate
from ..transforms.cache import Cache
from ..transforms.latent_cache import RECORDS
from .image_data import ImageData, Split

CAPTIONS = "captions"
MEASURED = 3
"""Batches after the first one that the estimate is made of; a model's first call is slow."""


@dataclass
class Filled:
    """What was done for one cache.

    Attributes:
        made: Entries that were computed.
        there: Entries asked for that were there, or came from another process.
        seconds: It took.
        skipped: Samples that could not be read.
        error: What float8 loses, relative.
        names: Of all entries that were asked for.
    """

    made: int = 0
    there: int = 0
    seconds: float = 0.0
    skipped: int = 0
    error: float | None = None
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Walk:
    """How the data set is gone through.

    Attributes:
        num_workers: Worker processes that read and decode.
        device: Where the models run.
        on_error: What a sample that cannot be read does.
        quarantine: Where it is named.
        rank: Number of this process.
        world_size: Of so many.
    """

    num_workers: int
    device: torch.device
    on_error: Literal["raise", "skip"]
    quarantine: str | PathLike[str]
    rank: int
    world_size: int

    def batches(self, pipe: Pipe, function: Any) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield this process's batches, gone through ``function`` on the device, and skips."""
        loader = pipe.loader(
            self.num_workers,
            rank=self.rank,
            world_size=self.world_size,
            on_error=self.on_error,
            quarantine=self.quarantine,
        )
        before = 0
        with closing(loader.on_device(self.device, function)) as batches:
            for batch in batches:
                yield batch, loader.skipped - before
                before = loader.skipped


def fill_latents(data: ImageData, cache: LatentCache, batch_size: int, **walk: Any) -> Filled:
    """Compute this process's part of the latents that a data set may ask for and that are missing.

    Every crop and flip of what is trained on, and the central crop of what is held out.

    Args:
        data: Images.
        cache: Where they go.
        batch_size: Images in a batch.
        walk: See `Walk`.

    Raises:
        DataError: A sample is bad, and not to be passed over.
    """
    how, done = Walk(**walk), Filled()
    cache.filling = True
    parts: list[Pipe] = []
    for split in _splits(data):
        pipe = data.decoded(
            data.batches(batch_size, split, repeat=False),
            latents=cache,
            augment=split == "train",
        )
        decoder = first_work(pipe)
        assert isinstance(decoder, Decoder)
        parts += [decoder.at_variant(*choice) for choice in decoder.crops.choices()]
    images = sum(_samples(pipe) for pipe in parts)
    with _Progress("latents", images, " images", how, [cache]) as progress:
        for pipe in parts:
            for batch, skipped in how.batches(pipe, cache.prefill):
                names = [record["name"] for record in batch[RECORDS]]
                done.names.update(names)
                done.skipped += skipped
                progress.add(len(names))
    return progress.close_into(done, cache)


def fill_texts(
    data: ImageData, caches: Mapping[str, TextCache], batch_size: int, **walk: Any
) -> dict[str, Filled]:
    """Compute this process's part of the captions' outputs that may be asked for and are missing.

    Every caption that may come of a sample, and the empty one, for classifier-free guidance.

    Args:
        data: Captions.
        caches: Where they go, by name.
        batch_size: Samples in a batch.
        walk: See `Walk`.

    Raises:
        DataError: A sample has no caption, or a bad one.
        ValueError: A caption may become too many others to list them.
    """
    how = Walk(**walk)
    done = {name: Filled() for name in caches}
    for cache in caches.values():
        cache.filling = True
    look, fill = LookUp(caches), Prefill(caches)
    parts: list[Pipe] = []
    for split in _splits(data):
        order = data.source(split, shuffle=False).batch(batch_size).lanes(repeat=False)
        graph = data.decoded(order, augment=split == "train")
        parts.append(CaptionLister(order, graph).transform(look))
    samples = sum(_samples(pipe) for pipe in parts)
    with _Progress("captions", samples, " samples", how, list(caches.values())) as progress:
        fill(look({CAPTIONS: [[""]]}))
        for pipe in parts:
            for batch, skipped in how.batches(pipe, fill):
                for name, filled in done.items():
                    filled.names.update(record["name"] for record in batch[f"__{name}__"])
                    filled.skipped += skipped
                progress.add(len(batch["__key__"]))
    for name, filled in done.items():
        progress.close_into(filled, caches[name])
        filled.names.update(r["name"] for r in look({CAPTIONS: [[""]]})[f"__{name}__"])
        filled.error = caches[name].error()
    return done


class CaptionLister(Decoding):
    """Yields samples with all captions that a graph may give them, and nothing else.

    Args:
        source: The order half.
        graph: The graph.
    """

    def __init__(self, source: Pipe, graph: Pipe) -> None:
        self.source: Pipe = source
        self.graph = graph

    def arguments(self) -> dict[str, Any]:
        return {}

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        return {CAPTIONS: [found.caption for found in caption_variants(self.graph, sample)]}


class LookUp:
    """Looks up all captions of a batch's samples, each once.

    Args:
        caches: By name.
    """

    def __init__(self, caches: Mapping[str, TextCache]) -> None:
        self.caches = caches

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the caches' `lookup` gives of them."""
        captions = list(dict.fromkeys(text for some in batch[CAPTIONS] for text in some))
        out: dict[str, Any] = {"caption": captions}
        for cache in self.caches.values():
            out = cache.lookup(out)
        return out


class Prefill:
    """Encodes and writes what is missing of a batch.

    Args:
        caches: By name.
    """

    def __init__(self, caches: Mapping[str, TextCache]) -> None:
        self.caches = caches

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch."""
        for cache in self.caches.values():
            batch = cache.prefill(batch)
        return batch


class _Progress:
    """A progress bar, and an estimate once enough batches were measured.

    Args:
        name: What is computed.
        total: Samples of all processes.
        unit: Of the bar.
        how: Which process this is.
        caches: That are filled.
    """

    def __init__(self, name: str, total: int, unit: str, how: Walk, caches: list[Any]) -> None:
        self._name, self._caches, self._world = name, caches, how.world_size
        self._total = total
        share = -(-total // how.world_size)
        self._bar = tqdm(
            total=share, unit=unit, desc=f"{name}, rank {how.rank}", disable=how.rank > 0
        )
        self._began = self._mark = time.perf_counter()
        self._batches = self._seen = self._made = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Count a batch's samples."""
        self._bar.update(count)
        made = sum(cache.misses for cache in self._caches)
        self._bar.set_postfix_str(f"{made:,} computed")
        self._batches += 1
        if self._batches == 1:
            self._mark, self._made = time.perf_counter(), made
            return
        self._seen += count
        if self._batches == MEASURED + 1 and made > self._made:
            self._tell(time.perf_counter() - self._mark)

    def _tell(self, seconds: float) -> None:
        if self._bar.disable:
            return
        for cache in self._caches:
            entries, size = cache.store.sizes()
            found = estimate(
                cache.kind,
                max(self._total, entries),
                size / max(entries, 1),
                there=entries,
                measured=(self._seen, seconds),
                processes=self._world,
            )
            tqdm.write(str(found), file=sys.stderr)

    def close_into(self, done: Filled, cache: Cache) -> Filled:
        """Finish the cache's shard, and say what was done."""
        cache.store.close()  # type: ignore[attr-defined]
        done.made, done.there = cache.misses, cache.hits
        done.seconds = time.perf_counter() - self._began
        cache.filling = False
        return done


def first_work(pipe: Pipe) -> Pipe:
    """Return the pipe that begins the work half."""
    return Graph.of(pipe).work[0]


def _splits(data: ImageData) -> list[Split]:
    return ["train", "validation"] if data.validation else ["train"]


def _samples(pipe: Pipe) -> int:
    counts = Graph.of(pipe).sample_counts()
    return 0 if counts is None else int(counts["total"])
