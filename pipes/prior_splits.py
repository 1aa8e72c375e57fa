"""DALLE2-pytorch's calls for the diffusion prior's data: readers, and loaders of their splits."""

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from .embedding_reader import EmbeddingReader
from .prior_dataset import PriorLoader, PriorRows, paired
from .replaced import warn_replaced
from .splits import split_range

NAMES = ("train", "eval", "test")


class NoBatches:
    """The loader of a split that has the fraction 0: it has no batch, and its state is empty."""

    def __iter__(self) -> "NoBatches":
        return self

    def __next__(self) -> Any:
        raise StopIteration

    def __len__(self) -> int:
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take nothing."""


def get_reader(
    text_conditioned: bool,
    img_url: str | os.PathLike[str],
    meta_url: str | os.PathLike[str] | None = None,
    txt_url: str | os.PathLike[str] | None = None,
    **options: Any,
) -> EmbeddingReader | tuple[EmbeddingReader, EmbeddingReader]:
    """Return the reader of image embeddings with captions, or those of image and text embeddings.

    Args:
        text_conditioned: Whether captions are wanted; otherwise two readers are returned.
        img_url: Folder of the image embeddings, ``.npy``.
        meta_url: Folder of the captions, Parquet files with a column ``caption``.
        txt_url: Folder of the text embeddings, ``.npy``.
        **options: Further arguments of `EmbeddingReader`.

    Raises:
        ValueError: A folder that is needed is not given; and as `EmbeddingReader`.
    """
    warn_replaced(
        "get_reader",
        "EmbeddingReader(img_url, 'parquet_npy', meta_columns=['caption'], "
        "metadata_folder=meta_url), or for pairs of embeddings EmbeddingReader("
        "{'image_embedding': img_url, 'text_embedding': txt_url})",
    )
    if text_conditioned:
        if meta_url is None:
            raise ValueError("text_conditioned=True needs meta_url, the folder of the captions")
        return EmbeddingReader(
            img_url,
            "parquet_npy",
            meta_columns=["caption"],
            metadata_folder=meta_url,
            **options,
        )
    if txt_url is None:
        raise ValueError("text_conditioned=False needs txt_url, the folder of text embeddings")
    return EmbeddingReader(img_url, **options), EmbeddingReader(txt_url, **options)


def make_splits(
    text_conditioned: bool,
    batch_size: int,
    num_data_points: float,
    train_split: float,
    eval_split: float,
    image_reader: EmbeddingReader,
    text_reader: EmbeddingReader | None = None,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    *,
    tokenize: Callable[..., Any] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    num_workers: int = 0,
) -> tuple[Any, Any, Any]:
    """Return this rank's loaders of the splits train, eval and test.

    The splits are ranges of rows, one behind the other from ``start`` on, which together have each
    of the ``num_data_points`` rows once: what exact fractions do not use up goes to the last. All
    ranks get the same number of rows of each, give or take one. A loader yields (image embeddings
    float32 [B, D], tokens int32 [B, 77] or text embeddings float32 [B, D]); ``len()`` is its number
    of batches; ``state_dict()`` continues on any number of ranks. See `PriorLoader`.

    Args:
        text_conditioned: Whether the texts are captions.
        batch_size: Rows of a batch.
        num_data_points: Rows that are taken; all, where there are fewer.
        train_split: Fraction for training.
        eval_split: Fraction for evaluation; the test split has the rest, if any.
        image_reader: What `get_reader` returned, or the first of it.
        text_reader: The second, without ``text_conditioned``.
        start: First row that is taken.
        rank: This process's number.
        world_size: Number of processes.
        tokenize: How captions become tokens; see `PriorTokens`.
        shuffle: Whether the training split is shuffled, anew in each epoch.
        seed: Seed of that.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: The fractions sum to more than 1, ``start`` is beyond the rows, or a split is
            too small to have a row for each rank.
    """
    warn_replaced(
        "make_splits",
        "EmbeddingReader(…, split='train', splits={'train': 0.75, 'eval': 0.25}).shuffle(n)"
        ".batch(b).load().loader(rank=…, world_size=…)",
    )
    reader = paired(text_conditioned, image_reader, text_reader)
    if not 0 <= start < reader.count:
        raise ValueError(f"start={start} is none of the {reader.count} rows")
    rows = min(int(num_data_points), reader.count - start)
    splits = _fractions(train_split, eval_split)
    loaders: list[Any] = []
    for name in NAMES:
        if not splits[name]:
            loaders.append(NoBatches())
            continue
        first, stop = split_range(rows, splits, name)
        data = PriorRows(
            text_conditioned,
            batch_size,
            start + first,
            start + stop,
            image_reader,
            text_reader,
            tokenize=tokenize,
            shuffle=shuffle and name == "train",
            seed=seed,
        )
        loaders.append(PriorLoader(data, num_workers, rank=rank, world_size=world_size))
    return loaders[0], loaders[1], loaders[2]


def _fractions(train: float, evaluate: float) -> dict[str, float]:
    """Return the three fractions; what was typed is taken exactly, so 0.8 and 0.2 leave nothing."""
    rest = 1 - Fraction(repr(float(train))) - Fraction(repr(float(evaluate)))
    if rest < 0 or train < 0 or evaluate < 0:
        raise ValueError(
            f"train_split={train} and eval_split={evaluate} must be at least 0, and sum to 1 at "
            "most: the test split has the rest"
        )
    return {"train": float(train), "eval": float(evaluate), "test": float(rest)}
