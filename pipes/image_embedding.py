"""DALLE2-pytorch's loader of images with embeddings, under its own names, on these pipes.

The names and arguments are those of lucidrains/DALLE2-pytorch, its README's and its code's
(``dalle2_pytorch/dataloaders``, v1.15.6). Programs that import them from here run as they are; new
ones chain `ShardLister`, ``.join_embeddings`` and ``.decode``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from .graph import Graph
from .image_embedding_plan import ImageEmbeddingPlan
from .loader import ElasticDataLoader
from .replaced import warn_replaced
from .stream import Stream

_INSTEAD = (
    "ShardLister(urls).read_tar().join_embeddings(folder).shuffle(n).batch(b).decode(), whose "
    ".loader() resumes exactly"
)

_HANDLERS: dict[str, Literal["raise", "skip"]] = {
    "reraise_exception": "raise",
    "warn_and_continue": "skip",
    "ignore_and_continue": "skip",
}


class ImageEmbeddingDataset(IterableDataset[tuple[Any, ...]]):
    """Yields (image, embedding, *extra fields) of samples, as DALLE2-pytorch's dataset of the name.

    ``image`` is what ``img_preproc`` makes of the PIL image, or float32 [3, H, W] in [0, 1];
    ``embedding`` a tensor [dim], or where images' and texts' are joined the dict
    ``{"img": …, "text": …}``. In a DataLoader each worker gets its part of the samples, and each
    epoch has an order of its own, drawn from the loader's base seed.

    Args:
        urls: The tars, as for `ShardLister`.
        img_embedding_folder_url: Folder of the ``.npy`` files of the images' embeddings.
        text_embedding_folder_url: Folder of those of the texts.
        index_width: Number of last characters of a key that are its row; None: what follows the
            digits of the tar's name.
        img_preproc: Takes a PIL image.
        extra_keys: Other fields of the tar to yield, such as ``"txt"``.
        handler: webdataset's ``reraise_exception`` (as None), or ``warn_and_continue`` or
            ``ignore_and_continue``, with which samples that are bad, or have no embedding, are
            passed over.
        resample: Draw shards with replacement, without end.
        shuffle_shards: Whether shards come in a random order.
        embedding_folder_url: The README's name for ``img_embedding_folder_url``. Without any
            folder, the embedding is a ``.npy`` or ``.img_emb`` in the tar.
        shard_width: The README's: number of first characters of a key that are not its row.
        seed: Seed of all draws.
        allow_pipe: Whether ``pipe:`` URLs may run their command.

    Raises:
        ValueError: Arguments contradict each other, or tars and ``.npy`` files do not pair.
    """

    def __init__(
        self,
        urls: Any,
        img_embedding_folder_url: str | None = None,
        text_embedding_folder_url: str | None = None,
        index_width: int | None = None,
        img_preproc: Callable[[Image.Image], Any] | None = None,
        extra_keys: Sequence[str] = (),
        handler: Callable[..., Any] | None = None,
        resample: bool = False,
        shuffle_shards: bool = True,
        *,
        embedding_folder_url: str | None = None,
        shard_width: int | None = None,
        seed: int = 0,
        allow_pipe: bool = False,
    ) -> None:
        warn_replaced("ImageEmbeddingDataset", _INSTEAD)
        image_url = _either(
            "img_embedding_folder_url",
            img_embedding_folder_url,
            "embedding_folder_url",
            embedding_folder_url,
        )
        self.plan = ImageEmbeddingPlan(
            urls=urls,
            image_url=image_url,
            text_url=text_embedding_folder_url,
            index_width=index_width,
            shard_width=shard_width,
            img_preproc=img_preproc,
            extra_keys=tuple(extra_keys),
            on_error=_on_error(handler),
            resample=resample,
            shuffle_shards=shuffle_shards,
            seed=seed,
            allow_pipe=allow_pipe,
        )
        self.plan.pipe(1, 0)  # what is wrong is wrong now, and not in a worker
        self.key_map = {key: i for i, key in enumerate(("jpg", "emb", *extra_keys))}
        self.skipped = 0
        self._epoch = 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        worker = get_worker_info()
        # The base seed is the same in all workers of one epoch; counting epochs here would not be.
        epoch = self._epoch if worker is None else worker.seed - worker.id
        self._epoch += 1
        stream = Stream(Graph.of(self.plan.pipe(1, epoch)), 0, 1, self.plan.on_error)
        for made in stream:
            self.skipped += len(made.skipped)
            if made.batch is not None:
                yield tuple(_only(value) for value in self.plan.row(made.batch))


class ImageEmbeddingLoader:
    """Yields [images, embeddings, *extra fields] of batches.

    `create_image_embedding_dataloader` makes it.

    Each ``for`` is one epoch, in an order of its own; with ``resample_shards`` it has no end, and
    the next ``for`` goes on. Its position can be saved at any time.

    Attributes:
        loader: The loader of the present epoch.
        epoch: Number of the present epoch.
    """

    def __init__(self, plan: ImageEmbeddingPlan, batch_size: int, num_workers: int) -> None:
        self.plan = plan
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.epoch = 0
        self.loader = self._made()
        self._fresh = True  # the present epoch is still to be iterated

    def _made(self) -> ElasticDataLoader:
        return self.plan.pipe(self.batch_size, self.epoch).loader(
            self.num_workers,
            rank=0,  # each process was given its own shards
            world_size=1,
            on_error=self.plan.on_error,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[list[Any]]:
        if not self._fresh and not self.plan.resample:
            self.loader.close()
            self.epoch += 1
            self.loader = self._made()
        self._fresh = False
        for batch in self.loader:
            row = self.plan.row(batch)
            _refuse_ragged(row[:2])
            yield row

    @property
    def skipped(self) -> int:
        """Number of samples passed over in the present epoch."""
        return self.loader.skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as JSON."""
        return {"epoch": self.epoch, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the position of a `state_dict`: the next ``for`` goes on from there."""
        self.loader.close()
        self.epoch = state["epoch"]
        self.loader = self._made()
        self.loader.load_state_dict(state["loader"])
        self._fresh = True


def create_image_embedding_dataloader(
    tar_url: Any,
    num_workers: int,
    batch_size: int,
    img_embeddings_url: str | None = None,
    text_embeddings_url: str | None = None,
    index_width: int | None = None,
    shuffle_num: int | None = None,
    shuffle_shards: bool = True,
    resample_shards: bool = False,
    img_preproc: Callable[[Image.Image], Any] | None = None,
    extra_keys: Sequence[str] = (),
    handler: Callable[..., Any] | None = None,
    *,
    embeddings_url: str | None = None,
    shard_width: int | None = None,
    seed: int = 0,
    allow_pipe: bool = False,
) -> ImageEmbeddingLoader:
    """Return a loader of [images, embeddings, *extra fields], as DALLE2-pytorch's of the name.

    Images are a tensor [B, …] of what ``img_preproc`` gives, or float32 [B, 3, H, W] in [0, 1];
    embeddings a tensor [B, dim], or where images' and texts' are joined the dict
    ``{"img": …, "text": …}``. Each sample comes once in an epoch, whatever the number of workers;
    the last batch may be short.

    Args:
        tar_url: The tars, as for `ShardLister`; all of them are this process's, whatever its rank.
        num_workers: Worker processes; 0 works in this one.
        batch_size: Samples in a batch.
        img_embeddings_url: Folder of the ``.npy`` files of the images' embeddings.
        text_embeddings_url: Folder of those of the texts.
        index_width: As in `ImageEmbeddingDataset`.
        shuffle_num: Size of the window in which samples are shuffled; None: they are not.
        shuffle_shards: Whether shards come in a random order, another in each epoch.
        resample_shards: Draw shards with replacement: an epoch has no end.
        img_preproc: Takes a PIL image.
        extra_keys: Other fields of the tar to yield, such as ``"txt"``.
        handler: As in `ImageEmbeddingDataset`.
        embeddings_url: The README's name for ``img_embeddings_url``. Without any folder, the
            embedding is a ``.npy`` or ``.img_emb`` in the tar.
        shard_width: The README's: number of first characters of a key that are not its row.
        seed: Seed of all draws.
        allow_pipe: Whether ``pipe:`` URLs may run their command.

    Raises:
        ValueError: Arguments contradict each other, or tars and ``.npy`` files do not pair.
    """
    warn_replaced("create_image_embedding_dataloader", _INSTEAD)
    image_url = _either("img_embeddings_url", img_embeddings_url, "embeddings_url", embeddings_url)
    plan = ImageEmbeddingPlan(
        urls=tar_url,
        image_url=image_url,
        text_url=text_embeddings_url,
        index_width=index_width,
        shard_width=shard_width,
        img_preproc=img_preproc,
        extra_keys=tuple(extra_keys),
        on_error=_on_error(handler),
        resample=resample_shards,
        shuffle_shards=shuffle_shards,
        shuffle_num=shuffle_num,
        seed=seed,
        allow_pipe=allow_pipe,
    )
    return ImageEmbeddingLoader(plan, batch_size, num_workers)


def _either(name: str, value: str | None, other_name: str, other: str | None) -> str | None:
    if value is not None and other is not None:
        raise ValueError(f"{other_name} is the older name of {name}: give one of them")
    return other if value is None else value


def _on_error(handler: Callable[..., Any] | None) -> Literal["raise", "skip"]:
    name = "reraise_exception" if handler is None else getattr(handler, "__name__", repr(handler))
    if name not in _HANDLERS:
        raise ValueError(
            f"handler is webdataset's {', '.join(_HANDLERS)} or None; {name} is not called here: "
            "chain the pipes, and give .loader() on_error='skip'"
        )
    return _HANDLERS[name]


def _refuse_ragged(columns: Sequence[Any]) -> None:
    for value in columns:
        parts = value.values() if isinstance(value, dict) else (value,)
        if not all(isinstance(part, torch.Tensor) for part in parts):
            raise ValueError(
                "the images or embeddings of a batch differ in shape: pass an img_preproc that "
                "makes tensors of one size, such as torchvision's Compose([RandomResizedCrop(256), "
                "ToTensor()])"
            )


def _only(value: Any) -> Any:
    """Return the only sample's value of a batch's column."""
    if isinstance(value, dict):
        return {name: part[0] for name, part in value.items()}
    return value[0]
