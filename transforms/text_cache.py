"""Text encoders' outputs, each caption's computed once."""

import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import torch

from .cache import Cache, Record
from .draws import check_chance, draw_key, uniforms
from .entry import Store, Tensors
from .held import Hold
from .text_bytes import (
    ERROR,
    IDS,
    MASK,
    Bytes,
    Row,
    check_bytes,
    pack_text,
    split_text,
    stack_text,
    unpack_text,
)
from .text_encoder import TextEncoder
from .tokenize import Batch, batch_captions


class TextCache(Cache):
    """Gives the outputs of a text encoder for a batch's captions, each caption encoded once.

    Workers look up, by ``.transform(cache.lookup)``, behind all that changes captions; what is
    missing is encoded and written by the process that trains, by `fill` in ``on_device``::

        encoder = TextEncoder.flux_t5(pipeline.text_encoder_2, pipeline.tokenizer_2)
        t5 = TextCache(EntryStore("cache/t5"), encoder, name="t5")
        pipe = pipe.shuffle_caption(keep=1).drop_caption(0.1).transform(t5.lookup)
        for batch in pipe.loader(num_workers=4).on_device("cuda", t5.fill):
            batch["t5_embeds"]  # bfloat16 [B, 512, 4096]

    `fill` gives the batch these fields more, where ``name`` is "t5":

    - ``t5_embeds``: [B, L, D], or ``t5_pooled``: [B, D]: what the encoder's ``output`` names;
    - ``t5_attention_mask``: int64 [B, L], 1 for tokens, where there are outputs [B, L, D]; FLUX.1,
      SDXL and SD3 take none;
    - ``t5_cut``: int64 [B], how many tokens of the caption did not fit; `CutReport` sums it up;
    - ``t5_dropped``: bool [B], where ``drop`` is not 0: whose outputs are those of "".

    An entry is named by the final caption, the tokenizer and its length, the encoder's weights,
    what is kept of its outputs and in what form: where one of these changes, what depends on it is
    made anew, and nothing else. A caption that recurs, such as the empty one, is one entry.

    Cached and uncached outputs are the same to the bit where the model gives the same for a caption
    whatever else is in its batch; kernels for other batch sizes may round another way.

    Args:
        store: Keeps the entries: `penstock.pipes.EntryStore`.
        encoder: None: nothing may be missing, and the store has one encoder's entries alone.
        name: Begins the names of the fields; another name has entries of its own.
        field: The field of the captions, a list of str.
        drop: Probability that a sample gets the outputs of the empty caption instead. Each cache
            draws for itself; to drop a caption for all at once there is ``.drop_caption(p)``.
        bytes: What is kept: "full", "trimmed" (of tokens alone, where the mask allows it),
            "float8" (half the bytes, and an `error`), "ids" (no outputs: tokens, encoded each
            time). See `pack_text`.
        hold: "memory" or "device": where the process that trains holds what was read, if the
            store's entries are within ``limit``.
        limit: Most bytes to hold, or such as ``"2GB"``.

    Raises:
        ValueError: If an argument is out of range, or trimming would lose something; there is no
            encoder, and the store tells of none or of several.
    """

    words: ClassVar = {
        "caption": "the caption",
        "bytes": "what is kept",
        "encoder.weights": "the text encoder's weights or settings",
        "encoder.compute": "the dtype that it computes in",
        "encoder.stored": "the dtype that is kept",
        "encoder.attends": "what it attends to",
        "encoder.padding": "what becomes of padding",
        "encoder.tokenizer.rules": "the tokenizer",
        "encoder.tokenizer.max_length": "the ids per caption",
    }

    encoder: TextEncoder | None

    def __init__(
        self,
        store: Store,
        encoder: TextEncoder | None,
        *,
        name: str = "t5",
        field: str = "caption",
        drop: float = 0.0,
        bytes: Bytes = "full",
        hold: Hold = None,
        limit: int | str = "2GB",
    ) -> None:
        check_chance(f"drop of {name}", drop)
        check_bytes(bytes, None if encoder is None else encoder.mask)
        super().__init__(name, store, encoder, hold=hold, limit=limit)
        if encoder is None and bytes == "ids":
            raise ValueError("bytes='ids' keeps no outputs, so it needs the encoder")
        self.name = name
        self.field = field
        self.drop = drop
        self.bytes: Bytes = bytes
        # Workers have no encoder, and its tokenizer all the same.
        self.tokens = None if encoder is None else encoder.tokens

    # -- in workers -----------------------------------------------------------------------------

    def lookup(self, batch: Batch, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Return the batch with what is known of its captions, for `fill`.

        Args:
            batch: With a field of captions.
            rng: The batch's draws, which ``.transform()`` gives; only ``drop`` needs them.

        Raises:
            ValueError: If there are no captions, or one is no text.
        """
        captions = batch_captions(batch, self.field)
        out = dict(batch)
        if self.drop:
            dropped = uniforms(draw_key(rng), f"{self.name}.drop", len(captions)) < self.drop
            captions = ["" if d else c for c, d in zip(captions, dropped, strict=True)]
            out[f"{self.name}_dropped"] = torch.from_numpy(dropped)
        known: dict[str, tuple[Record, Tensors | None]] = {}
        for i, caption in enumerate(captions):
            _check_caption(caption, batch, i)
            if caption not in known:
                known[caption] = self._looked(caption)
        found = [known[caption][1] for caption in captions]
        out[f"__{self.name}__"] = [known[caption][0] for caption in captions]
        whole = [entry for entry in found if entry is not None]
        out[self.name] = stack_text(whole) if len(whole) == len(found) else found
        return out

    def _looked(self, caption: str) -> tuple[Record, Tensors | None]:
        inputs = {"caption": caption, "bytes": self.bytes}
        name = self.name_of(inputs)
        hit, entry = self.look(name)
        if hit:
            return self.record(name, _source(caption), True, None), entry
        about = {"caption": caption, "ingredients": self.ingredients(inputs)}
        record = self.record(name, _source(caption), False, about)
        if self.tokens is not None:
            ids, mask, cut = self.tokens.tokens(self.tokens.texts([caption]))
            # Arrays, since each tensor would be a piece of shared memory of its own.
            record["tokens"] = (
                ids[0].numpy().astype(np.int32),
                mask[0].numpy().astype(np.uint8),
                int(cut[0]),
            )
        return record, None

    # -- in the process that trains -------------------------------------------------------------

    def fill(self, batch: Batch) -> dict[str, Any]:
        """Return the batch with the outputs for its captions; those that are missing are encoded.

        Args:
            batch: From `lookup`.

        Raises:
            ValueError: If it was not looked up, or a caption is missing and there is no encoder.
        """
        records = batch.get(f"__{self.name}__")
        if records is None:
            raise ValueError(
                f"the batch was not looked up, it has no field '__{self.name}__', only "
                f"{sorted(batch)}: chain .transform(cache.lookup) before the loader"
            )
        device = _device(batch)
        stacked = self._stacked(batch[self.name], records, device)
        kept = self.about["stored"] or self.about["compute"] or "float32"
        made = unpack_text(stacked, getattr(torch, kept))
        if self.bytes == "ids":
            made |= self._encoded_again(made, records, device)
        sequences = any(value.ndim == 3 for value in made.values())
        out = {key: value for key, value in batch.items() if key != self.name}
        for key, value in made.items():
            if key == MASK and sequences:
                out[f"{self.name}_attention_mask"] = value
            elif key not in (MASK, IDS):
                out[f"{self.name}_{key}"] = value
        return out

    def prefill(self, batch: Batch) -> dict[str, Any]:
        """Return the batch, its captions' entries that are missing encoded and written.

        To fill a cache before training: nothing of what is there is read. Set ``filling`` before
        the loader is made.

        Raises:
            ValueError: It was not looked up, or a caption is missing and there is no encoder.
        """
        records = batch.get(f"__{self.name}__")
        if records is None:
            raise ValueError("the batch was not looked up: .transform(cache.lookup) does it")
        chunk = getattr(self.encoder, "max_batch", None)
        self.add_missing(records, lambda rows: self._made(rows, records), chunk)
        return dict(batch)

    def _stacked(
        self, found: Any, records: Sequence[Record], device: torch.device | None
    ) -> Tensors:
        if isinstance(found, Mapping):
            if self.held.hold is None:
                self.hits += len(records)
                return {k: v if device is None else v.to(device) for k, v in found.items()}
            found = split_text(dict(found))
        chunk = getattr(self.encoder, "max_batch", None)
        rows = self.gather(found, records, lambda rows: self._made(rows, records), device, chunk)
        return stack_text(rows, device)

    def _made(self, rows: list[int], records: Sequence[Record]) -> list[Tensors]:
        """Return the entries of rows that are missing."""
        assert self.encoder is not None
        tokens = [records[i]["tokens"] for i in rows]
        ids, mask = (
            torch.from_numpy(np.stack(part)) for part in ([*zip(*tokens, strict=True)][:2])
        )
        outputs = {} if self.bytes == "ids" else self.encoder.encode(ids.long(), mask.long())
        entries = []
        for n, i in enumerate(rows):
            row = Row(ids[n], mask[n], tokens[n][2], {k: v[n] for k, v in outputs.items()})
            entries.append(pack_text(self.bytes, row))
            if ERROR in entries[n]:
                records[i]["about"]["error"] = float(entries[n][ERROR])
        return entries

    def _encoded_again(
        self, tokens: Tensors, records: Sequence[Record], device: torch.device | None
    ) -> Tensors:
        """Return the outputs of a batch's ids, of each caption encoded once."""
        assert self.encoder is not None
        begun = time.perf_counter()
        names = [record["name"] for record in records]
        first = {name: i for i, name in reversed([*enumerate(names)])}
        rows = sorted(first.values())
        place = {name: n for n, name in enumerate(names[i] for i in rows)}
        outputs = self.encoder.encode(tokens[IDS][rows], tokens[MASK][rows])
        again = {k: v[[place[name] for name in names]] for k, v in outputs.items()}
        self.seconds += time.perf_counter() - begun
        return {k: v if device is None else v.to(device) for k, v in again.items()}

    # -- for people -----------------------------------------------------------------------------

    def explain(self, caption: str) -> str:
        """Return in plain words why a caption would be encoded, or that it would not be."""
        return self.explain_record(self._looked(caption)[0])

    def error(self, sample: int = 256) -> float | None:
        """Return the relative error of ``bytes="float8"``, in the mean; None without entries.

        Of an entry it is the norm of what was lost by the norm of the outputs, and stands in what
        the store says of it.

        Args:
            sample: Entries that are read for it, at most, spread evenly over the store's names.
        """
        names = sorted(self.store.names())
        found = [self.store.read(name) for name in names[:: max(1, -(-len(names) // sample))]]
        errors = [float(entry[ERROR]) for entry in found if entry is not None and ERROR in entry]
        return sum(errors) / len(errors) if errors else None


def _source(caption: str) -> str:
    """Return what an entry's source is called: the caption, and where it is long its hash."""
    if len(caption) <= 120:
        return f"caption {caption!r}"
    return f"caption {caption[:100]!r}… ({blake2b(caption.encode(), digest_size=8).hexdigest()})"


def _check_caption(caption: Any, batch: Batch, i: int) -> None:
    try:
        caption.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        named = "__key__" in batch and "__url__" in batch
        where = f"sample {batch['__key__'][i]!r} of {batch['__url__'][i]}: " if named else ""
        raise ValueError(
            f"{where}its caption is no text that can be written in UTF-8: {caption!r:.200}"
        ) from error


def _device(value: Any) -> torch.device | None:
    """Return where a batch's tensors are; None where it has none."""
    if isinstance(value, torch.Tensor):
        return value.device
    if isinstance(value, Mapping):
        value = [part for name, part in value.items() if not name.startswith("__")]
    if isinstance(value, list | tuple):
        return next((found for part in value if (found := _device(part)) is not None), None)
    return None
