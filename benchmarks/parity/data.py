"""Shards and embeddings whose every value tells which sample it is of."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHARDS, SAMPLES, DIM = 3, 10, 16


def number(shard: int, index: int) -> int:
    return shard * SAMPLES + index


def image(sample: int, kind: str = "JPEG") -> bytes:
    """Return an image of 32 x 32 pixels, as bright as 8 times the sample's number."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (sample * 8,) * 3).save(file, kind)
    return file.getvalue()


def row(sample: int, sign: int = 1) -> np.ndarray:
    """Return an embedding that begins with the sample's number and 1: never all zeros."""
    return np.array([sample, 1, *np.sin(np.arange(DIM - 2) + sample)], np.float32) * sign


def write_tars(
    folder: Path, more: Callable[[int], dict[str, bytes]] = lambda _: {}, ext: str = "jpg"
) -> str:
    """Write tars 00000 to 00002 with an image and a caption a sample; return their URL."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(SAMPLES):
                n = number(shard, i)
                fields = {ext: image(n, "PNG" if ext == "png" else "JPEG")}
                for name, data in {**fields, "txt": f"caption {n}".encode(), **more(n)}.items():
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar"


def write_rows(folder: Path, name: str = "img_emb", sign: int = 1) -> str:
    """Write an ``.npy`` of rows for each tar."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        rows = np.stack([row(number(shard, i), sign) for i in range(SAMPLES)])
        np.save(folder / f"{name}_{shard:04d}.npy", rows)
    return str(folder)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_files(folder: Path, numbers: Iterable[int], rows: int = 7) -> tuple[str, str]:
    """Write ``.npy`` files with metadata in Parquet, as clip-retrieval does: 7 rows a file."""
    images, metadata = folder / "img_emb", folder / "metadata"
    images.mkdir(parents=True)
    metadata.mkdir()
    for i in numbers:
        found = [row(i * rows + k) for k in range(rows)]
        np.save(images / f"img_emb_{i}.npy", np.stack(found))
        captions = [f"caption {i * rows + k}" for k in range(rows)]
        pq.write_table(pa.table({"caption": captions}), metadata / f"metadata_{i}.parquet")
    return str(images), str(metadata)


def write_parquet(folder: Path, files: int = 3, rows: int = 7) -> str:
    """Write Parquet files with an embedding column."""
    folder.mkdir(parents=True)
    for i in range(files):
        found = [row(i * rows + k).tolist() for k in range(rows)]
        captions = [f"caption {i * rows + k}" for k in range(rows)]
        kind = pa.list_(pa.float32())
        table = pa.table({"embedding": pa.array(found, kind), "caption": captions})
        pq.write_table(table, folder / f"part_{i}.parquet")
    return str(folder)


def plain(value: object) -> object:
    """Return what JSON holds."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist()))
