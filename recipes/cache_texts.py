"""Fill the caches of what text encoders make of captions."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..pipes import Pipe, caption_variants
from ..pipes.draws import Draws
from ..pipes.sample import Sample
from ..pipes.slot import Slot
from ..pipes.work import Decoding
from ..transforms import TextCache
from .cache_walk import Filled, Progress, Walk, samples_of, splits_of
from .image_data import ImageData

CAPTIONS = "captions"
"""The batch's field of all captions that each sample may have."""


def fill_texts(
    data: ImageData,
    caches: Mapping[str, TextCache],
    batch_size: int,
    *,
    also: Sequence[str] = (),
    **walk: Any,
) -> dict[str, Filled]:
    """Compute this process's part of the captions' outputs that may be asked for and are missing.

    Every caption that may come of a sample, and the empty one, for classifier-free guidance.

    Args:
        data: Captions.
        caches: Where they go, by name.
        batch_size: Samples in a batch.
        also: Further captions, such as those that are drawn in validation.
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
    more = {CAPTIONS: [["", *also]]}
    parts: list[Pipe] = []
    for split in splits_of(data):
        order = data.source(split, shuffle=False).batch(batch_size).lanes(repeat=False)
        graph = data.decoded(order, augment=split == "train")
        parts.append(CaptionLister(order, graph).transform(look))
    samples = sum(samples_of(pipe) for pipe in parts)
    with Progress("captions", samples, " samples", how, list(caches.values())) as progress:
        fill(look(more))
        for pipe in parts:
            for batch, skipped in how.batches(pipe, fill):
                for name, filled in done.items():
                    filled.names.update(record["name"] for record in batch[f"__{name}__"])
                    filled.skipped += skipped
                progress.add(len(batch["__key__"]))
    for name, filled in done.items():
        progress.close_into(filled, caches[name])
        filled.names.update(r["name"] for r in look(more)[f"__{name}__"])
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
