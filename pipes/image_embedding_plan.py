"""The graph behind DALLE2-pytorch's loader of images with embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from .captions import CAPTIONS
from .draws import hash64
from .fields import FieldOrder, field_of
from .order import Item, Lane, Order
from .pipe import Pipe
from .sample import UNLOADED, Sample
from .shard_index import image_field
from .shards import ShardLister

IMAGE, TEXT = "image_embedding", "text_embedding"
"""Names of the fields that embeddings get."""


class WantedFields(Pipe):
    """Yields samples with their image, whatever its format, and the fields named."""

    def __init__(self, source: Pipe, fields: Sequence[str]) -> None:
        self.source: Pipe = source
        self.fields = tuple(fields)

    def apply(self, sample: Sample) -> Sample:
        names = [name for name, value in sample.items() if isinstance(value, UNLOADED)]
        image = image_field([name for name in names if name not in self.fields])
        kept = {k: v for k, v in sample.items() if k.startswith("__")}
        for name in (image or "jpg", *self.fields):
            kept[name] = field_of(sample, name)
        return kept

    def _order(self, lane: Lane) -> Order[Item]:
        return FieldOrder(self.source._order(lane), lane, self)


@dataclass(frozen=True)
class Preprocess:
    """Puts each image through ``fn``, which takes a PIL image; else makes it float32 in [0, 1]."""

    fn: Callable[[Image.Image], Any] | None

    def __call__(self, sample: Sample) -> Sample:
        pixels = sample["image"]
        if self.fn is None:
            return {**sample, "image": pixels.float() / 255}
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        return {**sample, "image": self.fn(picture)}


@dataclass(frozen=True)
class ImageEmbeddingPlan:
    """What the dataset and the loader make their graphs from; see `ImageEmbeddingDataset`."""

    urls: Any
    image_url: str | None
    text_url: str | None
    index_width: int | None
    shard_width: int | None
    img_preproc: Callable[[Image.Image], Any] | None
    extra_keys: tuple[str, ...]
    on_error: Literal["raise", "skip"]
    resample: bool
    shuffle_shards: bool
    shuffle_num: int | None = None
    seed: int = 0
    allow_pipe: bool = False

    def pipe(self, batch_size: int, epoch: int) -> Pipe:
        """Return the graph of one epoch; of all of them with ``resample``."""
        seed = self.seed if self.resample else hash64(self.seed, epoch) >> 1
        pipe: Pipe = ShardLister(
            self.urls,
            seed=seed,
            shuffle=self.shuffle_shards or self.resample,
            resample=self.resample,
            allow_pipe=self.allow_pipe,
        ).read_tar()
        beside = {IMAGE: self.image_url, TEXT: self.text_url}
        fields = [name for name, url in beside.items() if url is not None] or [IMAGE]
        for name in fields:
            url = beside[name]
            widths = {} if url is None else self._widths
            pipe = pipe.join_embeddings(url, field=name, on_missing=self.on_error, **widths)
        pipe = WantedFields(pipe, (*fields, *self.extra_keys))
        if self.shuffle_num:
            pipe = pipe.shuffle(self.shuffle_num)
        caption = next((name for name in CAPTIONS if name in self.extra_keys), None)
        pipe = pipe.batch(batch_size).lanes(1, by="shards", repeat=self.resample)
        return pipe.decode(caption=caption).map(Preprocess(self.img_preproc))

    @property
    def _widths(self) -> dict[str, Any]:
        return {"index_width": self.index_width, "shard_width": self.shard_width}

    def row(self, batch: dict[str, Any]) -> list[Any]:
        """Return the images, the embeddings and the extra fields of a batch."""
        found = {"img": batch.get(IMAGE), "text": batch.get(TEXT)}
        present = {name: value for name, value in found.items() if value is not None}
        caption = next((name for name in CAPTIONS if name in self.extra_keys), None)
        embedding = present if len(present) > 1 else next(iter(present.values()))
        extras = [batch["caption" if name == caption else name] for name in self.extra_keys]
        return [batch["image"], embedding, *extras]
