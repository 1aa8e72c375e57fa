"""Latents that are computed once: looked up in workers, filled by the process that trains."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .cache import Cache, Encoder, Record
from .entry import Store, Tensors
from .entry_rows import Fields, stack_rows, unpack_rows
from .explain import differences, in_words
from .held import Hold
from .pixel_sums import denormalized, row_sums
from .posterior import draw_latents

RECORDS = "__latents__"
"""The batch's field of what workers say of each row."""

Batch = dict[str, Any]


class LatentCache(Cache):
    """Gives batches their latents; a VAE runs for those alone that were never computed.

        latents = LatentCache(EntryStore("cache/latents"), LatentEncoder(vae))
        pipe = ShardLister(…).read_tar().bucket_by_aspect_ratio(1024, 4).decode(latents=latents)
        for batch in pipe.loader(num_workers=8).on_device("cuda", latents.fill):
            batch["latents"]    # float32 [B, C, h, w], as the VAE gives them: not scaled

    An entry is named by the image file's bytes, how they are decoded, the region, the size, whether
    it is mirrored, and the encoder. Change one, and what depends on it is computed anew, nothing
    else. What is stored is the posterior, from which each visit draws afresh, or its mean
    (``LatentEncoder(keep="mean")``).

    In workers it looks up: a row that is found is not read nor decoded. What it served would be the
    same had nothing been found, to the bit: rounded as it is stored, and drawn by the batch's own
    generator. What changes pixels behind ``.decode()`` (a ``.map()`` that jitters colours) is
    refused when a row is to be encoded.

    Args:
        store: Keeps entries: `penstock.pipes.EntryStore`.
        encoder: `LatentEncoder`. None trains without the VAE on a store that one encoder filled:
            whatever is missing is an error then.
        hold: ``"memory"`` or ``"device"``: keep entries there once they were read, if all of the
            store's are within ``limit``; in this process alone, never in workers.
        limit: Most bytes to hold, or such as ``"2GB"``.
        draw: Whether to draw from the posterior; False gives its mean each time.

    Attributes:
        hits: Rows of batches that needed no VAE.
        misses: Rows that were encoded.
        seconds: Time that encoding took.

    Raises:
        ValueError: There is no encoder, and the store tells of none or of several.
    """

    words: ClassVar[Mapping[str, str]] = {
        "image": "the image's bytes",
        "matte": "the colour behind transparent pixels",
        "icc": "whether colour profiles are converted",
        "crop": "the region that is cut out",
        "size": "the size in pixels",
        "flip": "whether it is mirrored",
        "decoder": "penstock's decoder",
        "interpolation": "the filter that resizes",
        "encoder.class": "the class of the VAE",
        "encoder.weights": "the VAE's weights",
        "encoder.compute": "the type that the VAE computes in",
        "encoder.stored": "the type that latents are stored in",
        "encoder.keep": "what of the posterior is kept",
        "encoder.convention": "the scaling of what is stored",
    }

    def __init__(
        self,
        store: Store,
        encoder: Encoder | None,
        *,
        hold: Hold = None,
        limit: int | str = "2GB",
        draw: bool = True,
    ) -> None:
        super().__init__("latents", store, encoder, hold=hold, limit=limit)
        self.draw = draw

    @staticmethod
    def inputs(
        image: str,
        *,
        matte: Sequence[int] | None,
        icc: bool | None,
        crop: Sequence[float],
        size: Sequence[int],
        flip: bool,
        decoder: int,
        interpolation: str,
    ) -> dict[str, Any]:
        """Return all that an image's latents depend on but the encoder.

        Args:
            image: Hash of the file's bytes.
            matte: The colour behind transparent pixels; None where the file can have none.
            icc: Whether a profile is converted from; None where the file has none.
            crop: (top, left, height, width) of the region, in the original's pixels.
            size: (height, width) of the region's pixels once resized.
            flip: Whether they are mirrored.
            decoder: Version of the code that decodes.
            interpolation: Name of the filter that resizes.
        """
        return {
            "image": image,
            "matte": None if matte is None else list(matte),
            "icc": icc,
            "crop": [float(number) for number in crop],
            "size": list(size),
            "flip": bool(flip),
            "decoder": decoder,
            "interpolation": interpolation,
        }

    def fill(self, batch: Batch, rng: torch.Generator | None = None) -> Batch:
        """Return the batch with ``latents``, float32 [B, C, h, w], in the place of ``image``.

        A list of [C, h, w] where images differ in size. For ``loader.on_device(device, fill)``,
        which gives the generator. What is missing is encoded and written.

        Args:
            batch: From a loader with ``.decode(latents=…)``, or of a cache's shards themselves.
            rng: Of the draws from the posterior.

        Raises:
            ValueError: The batch has no latents, an entry is missing and cannot be encoded, the
                pixels were changed behind ``.decode()``, or there is no generator to draw by.
        """
        if "latents" not in batch:
            raise ValueError(
                f"the batch has no field 'latents', only {sorted(batch)}: "
                ".decode(latents=cache) gives it"
            )
        device = _device(batch) if rng is None else rng.device
        out = {name: value for name, value in batch.items() if name != "image"}
        out["latents"] = draw_latents(self._fields(batch, device), rng, self.draw)
        return out

    def _fields(self, batch: Batch, device: torch.device | None) -> Fields:
        found, records = batch["latents"], batch.get(RECORDS)
        if records is not None:
            chunk = getattr(self.encoder, "batch_size", None)
            return self.whole(found, records, lambda rows: self._encode(batch, rows), device, chunk)
        # A cache's shards, read as a data set.
        for told in batch.get("json", ()):
            self._check_own(told)
        if isinstance(found, dict):
            return {k: v if device is None else v.to(device) for k, v in found.items()}
        entries = [entry for entry in unpack_rows(found, len(found)) if entry is not None]
        if len(entries) < len(found):
            raise ValueError("a row of the batch has no latents")
        return stack_rows(entries, device)

    def _check_own(self, told: Any) -> None:
        """Refuse an entry that says it is another encoder's: several may lie in one folder."""
        made = told.get("ingredients") if isinstance(told, Mapping) else None
        if isinstance(made, Mapping) and made.get("encoder") != self.about:
            wrong = in_words(
                differences({"encoder": made.get("encoder")}, {"encoder": self.about}), self.words
            )
            raise ValueError(
                f"the entry of {told.get('url')}/{told.get('key')} is not this encoder's: {wrong}; "
                "filter the shards for it, or prune the store of the others"
            )

    def _encode(self, batch: Batch, rows: list[int]) -> list[Tensors]:
        """Return the entries of these rows, of their pixels."""
        encoder: Any = self.encoder
        images = batch.get("image")
        if images is None:
            raise ValueError(
                f"{batch[RECORDS][rows[0]]['source']} is not in the cache, and its batch has no "
                "field 'image' to encode: something between .decode() and fill has dropped it"
            )
        some = [images[row] for row in rows]
        for row, image in zip(rows, some, strict=True):
            _check_pixels(image, batch[RECORDS][row])
        if len({image.shape for image in some}) == 1:
            return list(encoder(torch.stack(some)))
        return [entry for image in some for entry in encoder(image[None])]

    def explain(self, sample: Mapping[str, Any]) -> str:
        """Return in plain words why a sample's latents would be computed, or that they would not.

        Args:
            sample: From ``pipe.preview()``, or a batch: one line for each of its rows.

        Raises:
            ValueError: It did not come from ``.decode(latents=…)``.
        """
        records = sample.get(RECORDS)
        if records is None:
            raise ValueError(
                "the sample tells nothing of its latents: take it from pipe.preview(), of a pipe "
                "with .decode(latents=cache)"
            )
        each: list[Record] = [records] if isinstance(records, dict) else records
        return "\n".join(self.explain_record(record) for record in each)


def _check_pixels(image: torch.Tensor, record: Record) -> None:
    """Refuse pixels that are not the decoder's: under the entry's name, they would be stale."""
    if image.ndim != 3 or row_sums(denormalized(image)) != record["pixels"]:
        raise ValueError(
            f"the pixels of {record['source']} were changed between .decode(latents=…) and fill, "
            "by a .map() or a .transform(): latents are cached of pixels as they are decoded, so "
            "changes are to be left out, or the cache"
        )


def _device(batch: Batch) -> torch.device | None:
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and not name.startswith("__"):
            return value.device
    return None
