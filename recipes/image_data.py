"""Which images and captions a model is trained on: the part of a config that several recipes share.

The recipe that fills a cache and the one that trains from it must make the very same images and
captions; so both say it here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..pipes import ManifestReader, Pipe
from ..pipes.sources import SourcePipe
from .open_source import is_manifest, open_source

if TYPE_CHECKING:
    from ..transforms import LatentCache

Split = Literal["train", "validation"]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images and captions, and how they become batches."""

    url: str | list[str]
    """A folder of images, a manifest (CSV, TSV, JSON, JSONL, Parquet), or tar shards; local or at a
    URL."""
    image: str | None = None
    """The image's column or field; else it is found by its name."""
    caption: str | None = None
    """The caption's column or field (json.text: a field of a JSON object); else it is found by its
    name."""
    caption_pick: Literal["first", "random"] = "first"
    """Which of several captions."""
    caption_lines: bool = False
    """Whether each line of a text is a caption of its own."""
    caption_default: str | None = None
    """The caption of an image that has none; else the trigger phrase is."""
    trigger: str = ""
    """A phrase put in front of each caption that does not have it."""
    prefix: str = ""
    """Put directly in front of each caption."""
    suffix: str = ""
    """Put directly behind each caption."""
    shuffle_caption: float = 0.0
    """Probability that the comma-separated parts of a caption are shuffled."""
    shuffle_keep: int = 0
    """Number of first parts that stay in place."""
    drop_caption: float = 0.0
    """Probability that a caption is left empty, for classifier-free guidance."""
    caption_variants: int = 8
    """Number of shuffles of one caption, so that a cache can hold them."""
    resolution: int | list[int] = 1024
    """Side in pixels of the square whose area the images get, in buckets by aspect ratio. Several:
    an image goes to the largest that it fills without being enlarged."""
    step: int = 16
    """Sides are multiples of it, in pixels."""
    max_ratio: float = 2.5
    """Largest ratio of the longer side to the shorter."""
    upscale: bool = True
    """Whether images may be enlarged; else those that are too small are passed over."""
    crop: Literal["center", "random", "resized"] = "center"
    """Which part of an image that does not fit its bucket."""
    flip: float = 0.0
    """Probability of a mirror image."""
    crop_variants: int = 4
    """Number of random crops of one image, so that a cache can hold them."""
    shuffle: int = 10_000
    """Samples in the window that shards are shuffled in."""
    validation: float = 0.0
    """Share of the images that is held out for the validation loss."""
    seed: int = 0
    """Of the order, of every random draw, and of what is held out."""
    cache: str | None = None
    """Folder of the cache for what URLs name."""

    def __post_init__(self) -> None:
        for name in ("shuffle_caption", "drop_caption", "flip", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("caption_variants", "crop_variants", "shuffle", "step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def source(self, split: Split | None = None, *, shuffle: bool = True) -> SourcePipe:
        """Return the samples.

        Args:
            split: Which part; None: all. What is held out is drawn by a hash of each sample of
                shards, and as an exact number of rows of a manifest or a folder.
            shuffle: Whether they come in a random order.

        Raises:
            FileNotFoundError: There is nothing.
            ValueError: It cannot be read, has no images, or no captions and nothing that stands in.
        """
        rows = self.is_table()
        source = open_source(
            self.url,
            image=self.image if rows else None,
            caption=self.caption if rows else None,
            seed=self.seed,
            shuffle=shuffle,
            cache=self.cache,
            split=split if self.validation else None,
            splits={"train": 1 - self.validation, "validation": self.validation}
            if split and self.validation
            else None,
        )
        if isinstance(source, ManifestReader):
            if not len(source.table):
                raise ValueError(f"{self.url} holds no images")
            if not source.table.map.captions and self.default is None:
                raise ValueError(
                    f"{self.url} has no captions: write them (photo.txt for photo.jpg), or give "
                    "trigger, a phrase that stands for what the images show, such as 'a photo of "
                    "sks dog'"
                )
        return source

    def is_table(self) -> bool:
        """Return whether it is manifests or a folder of images, rather than tar shards."""
        urls = [self.url] if isinstance(self.url, str) else self.url
        return all(map(is_manifest, urls))

    @property
    def default(self) -> str | None:
        """The caption of an image that has none."""
        return self.caption_default if self.caption_default is not None else self.trigger or None

    def batches(
        self,
        batch_size: int,
        split: Split | None = None,
        *,
        lanes: int = 1,
        repeat: bool = True,
    ) -> Pipe:
        """Return the order half: batches of one size each, shuffled where they repeat."""
        pipe: Pipe = self.source(split, shuffle=repeat)
        if repeat and not isinstance(pipe, ManifestReader):  # its rows are shuffled as a whole
            pipe = pipe.shuffle(self.shuffle)
        return pipe.bucket_by_aspect_ratio(
            self.resolution,
            batch_size,
            step=self.step,
            max_ratio=self.max_ratio,
            upscale=self.upscale,
        ).lanes(lanes, repeat=repeat)

    def decoded(
        self,
        pipe: Pipe,
        *,
        latents: "LatentCache | None" = None,
        augment: bool = True,
        alpha: Literal["matte", "mask"] = "matte",
    ) -> Pipe:
        """Return the work half: pixels, or latents from a cache, and captions.

        Args:
            pipe: From `batches`, or any other order half of `source`.
            latents: A cache of latents.
            augment: Whether crops, flips and captions are drawn; else the crop is central, and the
                caption the first, as validation wants them.
            alpha: Whether the opacity comes along as ``mask``.
        """
        rows = self.is_table()
        pipe = pipe.decode(
            image=None if rows else self.image,
            caption=None if rows or not isinstance(self.caption, str) else self.caption,
            caption_pick=self.caption_pick if augment else "first",
            caption_lines=self.caption_lines,
            caption_default=self.default,
            crop=self.crop if augment else "center",
            flip=self.flip if augment else 0.0,
            variants=self.crop_variants if augment and self.crop != "center" else None,
            alpha=alpha,
            latents=latents,
        )
        if augment and self.shuffle_caption:
            pipe = pipe.shuffle_caption(
                p=self.shuffle_caption, keep=self.shuffle_keep, variants=self.caption_variants
            )
        if self.prefix or self.suffix or self.trigger:
            pipe = pipe.affix_caption(prefix=self.prefix, suffix=self.suffix, trigger=self.trigger)
        if augment and self.drop_caption:
            pipe = pipe.drop_caption(self.drop_caption)
        return pipe
