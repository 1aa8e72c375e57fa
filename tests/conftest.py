"""Fixtures: small real shards, and a source of fake samples."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import hypothesis
import numpy as np
import pytest
from PIL import Image

from penstock.pipes.draws import hash64
from penstock.pipes.graph import Graph
from penstock.pipes.order import Item, Lane, Order
from penstock.pipes.passes import PassOrder
from penstock.pipes.pipe import Pipe
from penstock.pipes.sample import IMAGE_SIZE, KEY, URL, Sample
from penstock.pipes.sources import Source, SourcePipe
from penstock.pipes.stream import LaneWalker, Made

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep indexes and unpacked shards out of the user's cache."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def jpeg(height: int, width: int, number: int, **save: object) -> bytes:
    """Return a JPEG whose pixels tell which sample and which place they are of."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), x * 0 + number * 7 % 256], 2
    )
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90, **save)
    return file.getvalue()


def write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    """Write samples to a tar, as webdataset lays them out."""
    with tarfile.open(path, "w") as tar:
        for key, fields in samples:
            for ext, data in fields.items():
                member = tarfile.TarInfo(f"{key}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def sample_fields(number: int) -> dict[str, bytes]:
    """Return the fields of the sample with this number: an image of its own shape, tags."""
    height, width = 40 + number * 37 % 80, 40 + number * 53 % 80
    return {
        "jpg": jpeg(height, width, number),
        "txt": f"sample {number}, red, round, {height} by {width}".encode(),
    }


SHARD_SIZES = (17, 5, 23, 11, 30, 9)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six tars of 95 samples in all, of many image shapes; keys recur in other shards."""
    folder = tmp_path_factory.mktemp("shards")
    number = 0
    for i, size in enumerate(SHARD_SIZES):
        samples = [(f"{k:04d}", sample_fields(number + k)) for k in range(size)]
        number += size
        write_tar(folder / f"{i:05d}.tar", samples)
    return str(folder / "{00000..00005}.tar")


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes samples (key, fields) to a tar and returns its path."""

    def make(samples: list[tuple[str, dict[str, bytes]]], name: str = "00000.tar") -> str:
        return str(write_tar(tmp_path / name, samples))

    return make


@pytest.fixture(scope="session")
def make_jpeg() -> Callable[..., bytes]:
    return jpeg


@pytest.fixture(scope="session")
def fields_of() -> Callable[[int], dict[str, bytes]]:
    return sample_fields


class FakeReader(SourcePipe):
    """Samples without data: shards of given sizes, images of pseudo-random sizes."""

    def __init__(
        self,
        sizes: list[int],
        *,
        seed: int = 0,
        shuffle_shards: bool = True,
        resample: bool = False,
    ) -> None:
        self.sizes = sizes
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self.resample = resample

    def shard_count(self) -> int:
        return len(self.sizes)

    def shard_sizes(self, skip: bool) -> np.ndarray:
        return np.array(self.sizes, np.int64)

    def image_sizes(self) -> Iterator[np.ndarray]:
        source = self.open(True)
        for shard, size in enumerate(self.sizes):
            yield np.array([source.sample(shard, i)[IMAGE_SIZE] for i in range(size)]).reshape(
                -1, 2
            )

    def open(self, image_sizes: bool) -> "FakeSource":
        return FakeSource(self.sizes)

    def _order(self, lane: Lane) -> Order[Item]:
        return PassOrder(self, lane)


class FakeSource(Source):
    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def size(self, shard: int) -> int:
        return self.sizes[shard]

    def sample(self, shard: int, index: int) -> Sample:
        bits = hash64(shard, index)
        size = (256 + bits % 512, 256 + (bits >> 32) % 512)
        return {KEY: f"{index:06d}", URL: f"{shard:05d}.tar", IMAGE_SIZE: size}

    def name(self, shard: int, index: int) -> tuple[str, str]:
        return f"{shard:05d}.tar", f"{index:06d}"

    def url(self, shard: int) -> str:
        return f"{shard:05d}.tar"

    def fingerprint(self, shard: int) -> int:
        return hash64(shard, self.sizes[shard])


@pytest.fixture(scope="session")
def fake() -> type[FakeReader]:
    """The class of a source whose samples have names and image sizes and no data."""
    return FakeReader


@pytest.fixture(scope="session")
def open_lane() -> Callable[..., tuple[Order[Any], Lane]]:
    """Return a function that gives the live order of one lane of a pipe, and the lane."""

    def opened(
        pipe: Pipe, number: int = 0, on_error: Literal["raise", "skip"] = "raise"
    ) -> tuple[Order[Any], Lane]:
        graph = Graph.of(pipe)
        lane = graph.lane(number, graph.open(), on_error)
        return graph.top._order(lane), lane

    return opened


def step(order: Order[Any]) -> Any:
    """Return the ref or the batch that comes next, or "end"."""
    try:
        item = order.next()
    except StopIteration:
        return "end"
    return item.ref if isinstance(item, Item) else item


@pytest.fixture(scope="session")
def take() -> Callable[[Order[Any], int], list[Any]]:
    """Return a function that gives the next refs or batches of an order; fewer where it ends."""

    def taken(order: Order[Any], count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count and (item := step(order)) != "end":
            found.append(item)
        return found

    return taken


@pytest.fixture(scope="session")
def check_tails() -> Callable[..., None]:
    """Return a function that resumes an order at every position, twice, and compares the tails."""

    def check(make: Callable[[], Order[Any]], count: int, tail: int = 12) -> None:
        order = make()
        states, items = [], []
        for _ in range(count):
            states.append(json.dumps(order.state()))
            items.append(step(order))
        used = make()  # a live order, wherever it stands, takes a state too
        for k in range(count):
            expected = items[k : k + tail]
            half = len(expected) // 2
            used.load(json.loads(states[k]))
            assert json.dumps(used.state()) == states[k]
            used.load(json.loads(states[k]))
            assert [step(used) for _ in range(half)] == expected[:half], f"resumed at {k}"
            fresh = make()
            fresh.load(json.loads(json.dumps(used.state())))
            assert [step(fresh) for _ in expected[half:]] == expected[half:], f"resumed after {k}"

    return check


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Any]:
    """Return a function that makes one global batch of a pipe, and what was skipped for it."""

    def made(pipe: Pipe, g: int = 0, on_error: Literal["raise", "skip"] = "raise") -> Made:
        return LaneWalker(Graph.of(pipe), on_error).make(g)

    return made


def embedding_rows(number: int, count: int, dim: int = 4, dtype: str = "f4") -> np.ndarray:
    """Return rows whose numbers tell their file and their place in it."""
    rows = number * 100 + np.arange(count)[:, None]
    return (rows + np.arange(dim) / 4).astype(dtype)


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., np.ndarray]:
    return embedding_rows


@pytest.fixture
def embeddings(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes ``img_emb_<number>.npy`` of so many rows into a folder."""

    def write(
        counts: dict[int, int],
        folder: str = "img_emb",
        name: str = "img_emb_{}.npy",
        dim: int = 4,
        dtype: str = "f4",
    ) -> str:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number, count in counts.items():
            path = tmp_path / folder / name.format(number)
            np.save(path, embedding_rows(number, count, dim, dtype))
        return str(tmp_path / folder)

    return write


@pytest.fixture
def captions(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes ``metadata_<number>.parquet`` of so many rows into a folder."""
    import pyarrow
    import pyarrow.parquet

    def write(counts: dict[int, int], folder: str = "metadata") -> str:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number, count in counts.items():
            columns = {
                "image_path": [f"{number:05d}{i:04d}" for i in range(count)],
                "caption": [f"row {number * 100 + i}" for i in range(count)],
                "width": list(range(count)),
            }
            types = [("image_path", "string"), ("caption", "string"), ("width", "int64")]
            schema = pyarrow.schema([(name, kind) for name, kind in types])
            table = pyarrow.table(columns, schema)
            path = tmp_path / folder / f"metadata_{number}.parquet"
            pyarrow.parquet.write_table(table, path, row_group_size=7)
        return str(tmp_path / folder)

    return write
