"""Pipes chain by methods."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .caption_methods import CaptionMethods

if TYPE_CHECKING:
    from ..transforms.latent_cache import LatentCache
    from .loader import ElasticDataLoader


class Pipe(CaptionMethods):
    """A pipe: what to do to the samples of its source, and the methods that put a pipe behind it.

    Up to ``.decode()`` (or ``.load()``) pipes decide the order; from there on they do the work.
    """

    # -- the order half -------------------------------------------------------------------------

    def filter(self, predicate: Callable[[dict[str, Any]], bool]) -> "Pipe":  # type: ignore[override]
        """Keep the samples for which ``predicate(sample)`` is true.

        Fields are extents here; ``sample["txt"].read()`` gives a field's bytes.
        """
        from .filter import Filter

        return Filter(self, predicate)

    def filter_size(
        self,
        *,
        min_side: int = 0,
        max_side: int | None = None,
        min_pixels: int = 0,
        max_pixels: int | None = None,
        max_ratio: float | None = None,
    ) -> "Pipe":
        """Keep the samples whose image has the right size in pixels; see `SizeFilter`."""
        from .filter import SizeFilter

        return SizeFilter(
            self,
            min_side=min_side,
            max_side=max_side,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_ratio=max_ratio,
        )

    def filter_caption(
        self, *, min_length: int = 1, max_length: int | None = None, field: str | None = None
    ) -> "Pipe":
        """Keep the samples whose text has from ``min_length`` to ``max_length`` characters."""
        from .filter import CaptionFilter

        return CaptionFilter(self, min_length=min_length, max_length=max_length, field=field)

    def select(self, *fields: str) -> "Pipe":
        """Keep only these fields of each sample, and those whose names begin with ``__``."""
        from .fields import Selector

        return Selector(self, fields)

    def rename(self, **new_to_old: str) -> "Pipe":
        """Rename fields: ``rename(caption="txt")``. Names with dots go in as ``**{"a.b": "c"}``."""
        from .fields import Renamer

        return Renamer(self, new_to_old)

    def join_embeddings(
        self,
        url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        *,
        field: str = "image_embedding",
        member: str | None = None,
        index_width: int | None = None,
        shard_width: int | None = None,
        dtype: Any = None,
        stored: Literal["bfloat16"] | None = None,
        dim: int | None = None,
        normalize: bool = False,
        on_missing: Literal["raise", "skip"] = "raise",
        storage_options: dict[str, Any] | None = None,
    ) -> "Pipe":
        """Join each sample with its row of the ``.npy`` file beside its tar, as ``field``.

        Without ``url``: with the array that it has in the tar. See `EmbeddingJoiner`.
        """
        from .embeddings import EmbeddingJoiner

        return EmbeddingJoiner(
            self,
            url,
            field=field,
            member=member,
            index_width=index_width,
            shard_width=shard_width,
            dtype=dtype,
            stored=stored,
            dim=dim,
            normalize=normalize,
            on_missing=on_missing,
            storage_options=storage_options,
        )

    def join(
        self,
        other: "Pipe",
        on: str = "__key__",
        *,
        rename: Mapping[str, str] | None = None,
        prefix: str = "",
        on_missing: Literal["raise", "skip"] = "raise",
    ) -> "Pipe":
        """Join each sample with the one of other shards that has its key; see `KeyJoiner`."""
        from .join import KeyJoiner

        return KeyJoiner(self, other, on, rename=rename, prefix=prefix, on_missing=on_missing)

    def shuffle(self, buffer_size: int) -> "Pipe":  # type: ignore[override]
        """Shuffle in a window of ``buffer_size`` samples, which holds refs and no data."""
        from .shuffle import Shuffler

        return Shuffler(self, buffer_size)

    def mix(self, *others: "Pipe", weights: Sequence[float] | None = None) -> "Pipe":
        """Draw from this graph and ``others`` in proportion to ``weights`` (equal where None)."""
        from .mix import Mixer

        return Mixer((self, *others), weights)

    def batch(self, batch_size: int, *, drop_last: bool = False) -> "Pipe":  # type: ignore[override]
        """Batch ``batch_size`` samples in the order in which they come."""
        from .batch import Batcher

        return Batcher(self, batch_size, drop_last=drop_last)

    def bucket_by_aspect_ratio(
        self,
        resolution: int | Sequence[int] = 512,
        batch_size: int | None = None,
        *,
        pixels: int | None = None,
        step: int = 64,
        max_ratio: float = 2.5,
        min_gap: float = 0.05,
        sizes: Sequence[tuple[int, int]] | None = None,
        upscale: bool | float = True,
        drop_last: bool = False,
    ) -> "Pipe":
        """Batch samples whose images have nearly the same shape; see `AspectRatioBucketer`."""
        from .bucket import AspectRatioBucketer

        return AspectRatioBucketer(
            self,
            resolution,
            batch_size,
            pixels=pixels,
            step=step,
            max_ratio=max_ratio,
            min_gap=min_gap,
            sizes=sizes,
            upscale=upscale,
            drop_last=drop_last,
        )

    def lanes(
        self, n: int = 1, by: Literal["samples", "shards"] = "samples", repeat: bool = True
    ) -> "Pipe":
        """Deal the whole order half out to ``n`` lanes; see `Lanes`."""
        from .lanes import Lanes

        return Lanes(self, n, by, repeat)

    def preview(self, n: int = 8) -> list[dict[str, Any]]:
        """Return the first ``n`` samples as their batches will have them; see `preview_samples`."""
        from .preview import preview_samples

        return preview_samples(self, n)

    # -- the work half --------------------------------------------------------------------------

    def load(self) -> "Pipe":
        """Begin the work half without decoding: each field's bytes are read."""
        from .load import FieldLoader

        return FieldLoader(self)

    def decode(
        self,
        size: int | tuple[int, int] | None = None,
        *,
        image: str | None = None,
        caption: str | None = None,
        caption_pick: Literal["first", "random"] | Sequence[float] = "first",
        caption_lines: bool = False,
        caption_default: str | None = None,
        crop: Literal["center", "random", "resized"] = "center",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] | None = None,
        flip: float = 0.0,
        matte: tuple[int, int, int] = (255, 255, 255),
        alpha: Literal["matte", "mask"] = "matte",
        icc: bool = True,
        max_pixels: int = 178_956_970,
        keep_in_memory: int = 0,
        variants: int | None = None,
        latents: "LatentCache | None" = None,
    ) -> "Pipe":
        """Begin the work half: images to uint8 tensors, texts to str; see `Decoder`."""
        from .decode import Decoder

        return Decoder(
            self,
            size,
            image=image,
            caption=caption,
            caption_pick=caption_pick,
            caption_lines=caption_lines,
            caption_default=caption_default,
            crop=crop,
            scale=scale,
            ratio=ratio,
            flip=flip,
            matte=matte,
            alpha=alpha,
            icc=icc,
            max_pixels=max_pixels,
            keep_in_memory=keep_in_memory,
            variants=variants,
            latents=latents,
        )

    def map(  # type: ignore[override]
        self, fn: Callable[..., dict[str, Any]], *, keeps_caption: bool = False
    ) -> "Pipe":
        """Apply ``fn`` to each SAMPLE (for whole batches: ``transform``); see `Mapper`."""
        from .map import Mapper

        return Mapper(self, fn, keeps_caption=keeps_caption)

    def transform(self, t: Callable[..., Any]) -> "Pipe":
        """Apply ``t`` to each BATCH (for single samples: ``map``); see `Transformer`."""
        from .map import Transformer

        return Transformer(self, t)

    def loader(
        self,
        num_workers: int = 0,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        epoch_batches: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        quarantine: str | os.PathLike[str] = "quarantine.jsonl",
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        timeout: float = 600,
        multiprocessing_context: str | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
    ) -> "ElasticDataLoader":
        """Return the graph's loader, a torchdata StatefulDataLoader; see `ElasticDataLoader`."""
        from .loader import ElasticDataLoader

        return ElasticDataLoader(
            self,
            num_workers,
            rank=rank,
            world_size=world_size,
            epoch_batches=epoch_batches,
            on_error=on_error,
            quarantine=quarantine,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            timeout=timeout,
            multiprocessing_context=multiprocessing_context,
            worker_init_fn=worker_init_fn,
        )
