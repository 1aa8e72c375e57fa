"""Fill a cache of latents."""

from typing import Any

import torch

from ..pipes import Decoder, Pipe
from ..pipes.draws import Draws
from ..pipes.graph import Graph
from ..pipes.sample import Sample
from ..pipes.slot import Slot
from ..pipes.work import Decoding
from ..transforms import LatentCache
from ..transforms.latent_cache import RECORDS
from .cache_walk import Filled, Progress, Walk, samples_of, splits_of
from .image_data import ImageData


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
    parts: list[EveryCrop] = []
    for split in splits_of(data):
        order = data.batches(batch_size, split, repeat=False)
        pipe = data.decoded(order, latents=cache, augment=split == "train")
        parts.append(EveryCrop(order, Graph.of(pipe).work[0]))
    images = sum(samples_of(pipe) * len(pipe.decoders) for pipe in parts)
    with Progress("latents", images, " images", how, [cache]) as progress:
        for pipe in parts:
            for batch, skipped in how.batches(pipe, PrefillEvery(cache)):
                done.names.update(record["name"] for record in batch[RECORDS])
                done.skipped += skipped
                progress.add(len(batch[RECORDS]))
    return progress.close_into(done, cache)


class EveryCrop(Decoding):
    """Yields samples with all crops and flips that a decoder may make of each.

    ``image`` is uint8 [V, 3, H, W], and what is said of its latents a list of V.

    Args:
        source: The order half.
        decoder: The decoder, with a cache of latents.
    """

    def __init__(self, source: Pipe, decoder: Pipe) -> None:
        assert isinstance(decoder, Decoder)
        self.source: Pipe = source
        self.decoders = [decoder.at_variant(*choice) for choice in decoder.crops.choices()]

    def arguments(self) -> dict[str, Any]:
        return self.decoders[0].arguments()

    def check(self, bucketed: bool) -> None:
        self.decoders[0].check(bucketed)

    def begin(self, sample: Sample) -> Sample:
        return self.decoders[0].begin(sample)

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        made = [decoder.work(sample, draws, Slot(slot.size)) for decoder in self.decoders]
        missing = any(not one[RECORDS]["hit"] for one in made)
        image = torch.stack([one["image"] for one in made]) if missing else None
        return {"image": image, RECORDS: [one[RECORDS] for one in made]}


class PrefillEvery:
    """Encodes and writes what is missing of a batch of `EveryCrop`.

    Args:
        cache: Where it goes.
    """

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what is said of each image's latents."""
        records = [record for some in batch[RECORDS] for record in some]
        images: list[Any] = []
        for image, some in zip(batch["image"], batch[RECORDS], strict=True):
            images += [None] * len(some) if image is None else list(image)
        return self.cache.prefill({"image": images, RECORDS: records})
