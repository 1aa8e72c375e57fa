"""DALLE2-pytorch's data for the diffusion prior: whole batches of image embeddings and texts."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset

from .embedding_reader import EmbeddingReader
from .epoch import Epoch
from .errors import DataError, name_sample
from .graph import Graph
from .loader import ElasticDataLoader
from .pipe import Pipe
from .prior_tokens import PriorTokens
from .replaced import warn_replaced
from .sample import KEY, URL
from .state import LoaderState, describe

WINDOW = 100_000
"""Rows in the shuffle window."""

Pair = tuple[torch.Tensor, torch.Tensor]


class PriorRows(IterableDataset[Pair]):
    """Rows for the prior, in batches of (image embeddings, tokens or text embeddings).

    The first are float32 [B, D]; the second are int32 [B, 77] where ``text_conditioned``, made of
    the captions, and float32 [B, D] where not. The last batch may be short. In several workers of a
    DataLoader (``batch_size=None``) each batch comes once.

    Args:
        text_conditioned: Whether the texts are captions.
        batch_size: Rows of a batch.
        start: First row.
        stop: Row behind the last.
        image_reader: The image embeddings; where ``text_conditioned``, with a column ``caption``.
        text_reader: The text embeddings, where not; its rows belong to those of ``image_reader``.
        tokenize: How captions become tokens; see `PriorTokens`.
        shuffle: Whether rows are shuffled, anew in each epoch, or come as they lie.
        seed: Seed of their order.

    Raises:
        ValueError: There are no such rows, or readers do not fit.
        DataError: The readers' files do not have the same rows.
    """

    def __init__(
        self,
        text_conditioned: bool,
        batch_size: int,
        start: int,
        stop: int,
        image_reader: EmbeddingReader,
        text_reader: EmbeddingReader | None = None,
        *,
        tokenize: Callable[..., Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.text_conditioned = text_conditioned
        self.batch_size = batch_size
        self.start = start
        self.stop = stop
        self.reader = paired(text_conditioned, image_reader, text_reader)
        self.tokens = PriorTokens(tokenize)
        self.shuffle = shuffle
        self.seed = seed
        if stop > self.reader.count:
            raise ValueError(f"stop={stop} is beyond the {self.reader.count} rows that there are")
        self.pipe()

    def pipe(self, lanes: int = 1) -> Pipe:
        """Return the graph of these rows, which any number of lanes can walk."""
        rows = self.reader.part(self.start, self.stop)
        rows.seed, rows.shuffle_shards = self.seed, self.shuffle
        mixed = rows.shuffle(WINDOW) if self.shuffle else rows
        batches = mixed.batch(self.batch_size).lanes(lanes, repeat=False)
        return batches.load().transform(_ToPrior(rows.fields, self.tokens))

    def __iter__(self) -> Iterator[Pair]:
        # In a worker of a DataLoader this is that worker's share, which the stream itself finds.
        return iter(PriorLoader(self))

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-(self.stop - self.start) // self.batch_size)

    def set_start(self, start: int) -> None:
        """Have the next iterator begin at row ``start``."""
        self.start = start

    def get_start(self) -> int:
        """Return the first row."""
        return self.start

    def __str__(self) -> str:
        return f"<PriorEmbeddingDataset: start: {self.start}, stop: {self.stop}, len: {len(self)}>"


class PriorEmbeddingDataset(PriorRows):
    """`PriorRows` under the name that programs for DALLE2-pytorch import; a warning says so once.

    Its defects are gone: ``len()`` counts batches, and several workers share the batches.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warn_replaced(
            "PriorEmbeddingDataset",
            "EmbeddingReader(…).shuffle(n).batch(b).lanes(1, repeat=False).load().loader()",
        )
        super().__init__(*args, **kwargs)


class PriorLoader(ElasticDataLoader):
    """Yields the batches of `PriorRows` to one of several ranks; each ``for`` is one pass.

    A state continues on any number of ranks and workers: `load_state_dict` takes the number of
    lanes from it. Where rows are shuffled, each pass has an order of its own.

    Args:
        data: The rows.
        num_workers: Worker processes.
        rank: This consumer's number.
        world_size: Number of consumers. Each has a lane, so that all get the same number of rows,
            give or take one.

    Raises:
        ValueError: There are fewer rows than consumers.
    """

    def __init__(
        self,
        data: PriorRows,
        num_workers: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data = data
        rows = data.stop - data.start
        if rows < world_size:
            raise ValueError(
                f"rows {data.start} to {data.stop} are too few for {world_size} ranks: one would "
                "get none, and the others would wait for it"
            )
        super().__init__(data.pipe(world_size), num_workers, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[Any]:
        if not self._resumed:
            # Every lane begins at this epoch's pass, of which the order is drawn anew.
            start = json.dumps([[self.epoch, 0, -1, None], self.epoch, 0, -1, -1])
            lanes = range(self.graph.lanes.n) if self.data.shuffle else ()
            self._set_position(0, self.epoch, 0, dict.fromkeys(lanes, (0, start)))
        self._resumed = False
        return Epoch(self)

    def next_batch(self) -> Any:
        """Return the next batch: (image embeddings, tokens or text embeddings)."""
        batch = super().next_batch()
        return batch["image"], batch["text"]

    def load_state_dict(self, state_dict: LoaderState) -> None:
        """Take a position; see `ElasticDataLoader.load_state_dict`."""
        lanes = state_dict.get("lanes") if isinstance(state_dict, dict) else None
        if isinstance(lanes, int) and lanes != self.graph.lanes.n:
            self._drop_stream()
            self.graph = self.dataset.graph = Graph.of(self.data.pipe(lanes))
            self._says = describe(self.graph)
        super().load_state_dict(state_dict)


@dataclass(frozen=True)
class _ToPrior:
    """Makes of a batch what the prior takes."""

    fields: tuple[str, ...]
    tokens: PriorTokens

    def __call__(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        image = batch[self.fields[0]].float()
        if len(self.fields) > 1:
            return {"image": image, "text": batch[self.fields[1]].float()}
        captions = batch["caption"]
        for i, caption in enumerate(captions):
            if not isinstance(caption, str):
                where = name_sample(batch[URL][i], batch[KEY][i], "caption")
                raise DataError(f"{where}: expected text, got {type(caption).__name__}")
        return {"image": image, "text": self.tokens(captions)}


def paired(text_conditioned: bool, image_reader: Any, text_reader: Any | None) -> EmbeddingReader:
    """Return one reader of the images' embeddings and what goes with them.

    Raises:
        TypeError: A reader is not an `EmbeddingReader`.
        ValueError: The text reader is missing, or there are no captions.
    """
    for name, reader in (("image_reader", image_reader), ("text_reader", text_reader)):
        if reader is not None and not isinstance(reader, EmbeddingReader):
            raise TypeError(
                f"{name} must be an EmbeddingReader, as get_reader returns it, got "
                f"{type(reader).__name__}; without text_conditioned it returns two"
            )
    if text_conditioned:
        if "caption" not in image_reader.meta_columns:
            raise ValueError(
                "text_conditioned=True needs captions: EmbeddingReader(…, 'parquet_npy', "
                "meta_columns=['caption'], metadata_folder=…)"
            )
        return image_reader  # type: ignore[no-any-return]
    if text_reader is None:
        raise ValueError("text_conditioned=False needs text_reader, the texts' embeddings")
    return EmbeddingReader.joined(image_embedding=image_reader, text_embedding=text_reader)
