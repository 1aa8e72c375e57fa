"""The same programs on one library or the other: only the import line differs.

    python programs.py LIBRARY FOLDER > results.json

LIBRARY is ``theirs`` or ``penstock``. Each program is a case: what it gives, or the error that ends
it, is one line of the output.
"""

import importlib
import json
import sys
import warnings
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import data
import numpy as np
import webdataset
from torchvision.transforms.functional import to_tensor

warnings.filterwarnings("ignore")
LIBRARY = sys.argv[1] if __name__ == "__main__" else "penstock"
LOADERS = importlib.import_module(
    "penstock.pipes" if LIBRARY == "penstock" else "dalle2_pytorch.dataloaders"
)
READERS = importlib.import_module("penstock.pipes" if LIBRARY == "penstock" else "embedding_reader")
CASES: dict[str, Callable[[Path], Any]] = {}


def case(program: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CASES[program.__name__] = program
    return program


def digest(array: Any) -> str:
    return blake2b(np.ascontiguousarray(array).tobytes(), digest_size=8).hexdigest()


# -- tars with embeddings ------------------------------------------------------------------------


def triples(loader: Any) -> list[Any]:
    """Return [number of the image, of its embedding, of its caption, digests] of each sample."""
    found = []
    for image, emb, *text in loader:
        rows = emb.get("img", emb.get("text")) if isinstance(emb, dict) else emb
        for i in range(len(image)):
            caption = text[0][i].split()[1] if text else None
            vector = None if rows is None else rows[i]
            whose = None if vector is None else round(abs(float(vector[0])))
            which = round(float(image[i].mean()) * 255 / 8)
            sums = [digest(image[i]), None if vector is None else digest(vector)]
            found.append([which, whose, None if caption is None else int(caption), *sums])
    return found


def loader(urls: str, rows: str | None, workers: int = 1, **how: Any) -> Any:
    settings = {
        "index_width": 4,
        "shuffle_shards": False,
        "img_preproc": to_tensor,
        "extra_keys": ["txt"],
        **how,
    }
    if rows is not None:
        settings["img_embeddings_url"] = rows
    return LOADERS.create_image_embedding_dataloader(urls, workers, 4, **settings)


@case
def image_embedding_caption(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    return triples(loader(urls, rows))


@case
def text_embeddings(folder: Path) -> Any:
    urls = data.write_tars(folder / "tars")
    rows = data.write_rows(folder / "rows", "text_emb", -1)
    return triples(loader(urls, None, text_embeddings_url=rows))


@case
def image_and_text_embeddings(folder: Path) -> Any:
    urls = data.write_tars(folder / "tars")
    images = data.write_rows(folder / "images")
    texts = data.write_rows(folder / "texts", "text_emb", -1)
    found = []
    for image, emb, _ in loader(urls, images, text_embeddings_url=texts):
        found += [[digest(image[i]), *(digest(emb[k][i]) for k in ("img", "text"))] for i in (0, 1)]
    return found


@case
def dataset_without_a_loader(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    dataset = LOADERS.ImageEmbeddingDataset(
        urls,
        img_embedding_folder_url=rows,
        index_width=4,
        img_preproc=to_tensor,
        extra_keys=["txt"],
        shuffle_shards=False,
    )
    # One embedding is a tensor, as their README says; their code gives a dict of one.
    one = lambda emb: emb["img"] if isinstance(emb, dict) else emb  # noqa: E731
    return [[digest(image), digest(one(emb)), text] for image, emb, text in dataset]


@case
def two_workers(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    return sorted(t[:3] for t in triples(loader(urls, rows, 2)))


@case
def no_workers(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    return sorted(t[:3] for t in triples(loader(urls, rows, 0)))


@case
def shuffle_num(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    order = [t[0] for t in triples(loader(urls, rows, shuffle_num=200))]
    return {"all": sorted(order) == list(range(30)), "shuffled": order != sorted(order)}


@case
def an_unreadable_npy_is_passed_over(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    Path(rows, "img_emb_0001.npy").write_bytes(b"\x93NUMPY\x01\x00no more")
    found = triples(loader(urls, rows, handler=webdataset.warn_and_continue))
    return {"samples": len(found), "wrong": sum(t[0] != t[1] for t in found)}


@case
def embeddings_in_the_tar(folder: Path) -> Any:
    urls = data.write_tars(folder / "tars", lambda n: {"npy": data.npy(data.row(n))})
    return [t[:3] for t in triples(loader(urls, None))]


@case
def img_emb_in_the_tar(folder: Path) -> Any:
    urls = data.write_tars(folder / "tars", lambda n: {"img_emb": data.npy(data.row(n))})
    return [t[:3] for t in triples(loader(urls, None))]


@case
def png_images(folder: Path) -> Any:
    urls = data.write_tars(folder / "tars", ext="png")
    return [t[:3] for t in triples(loader(urls, data.write_rows(folder / "rows")))]


@case
def another_file_in_the_folder(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    Path(rows, "README.md").write_text("rows")
    Path(rows, "notes.npy").write_bytes(data.npy(data.row(0)))
    return [t[:3] for t in triples(loader(urls, rows))]


@case
def a_tar_without_its_npy(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    Path(rows, "img_emb_0001.npy").unlink()
    return len(triples(loader(urls, rows)))


@case
def an_npy_in_fortran_order(folder: Path) -> Any:
    urls, rows = data.write_tars(folder / "tars"), data.write_rows(folder / "rows")
    path = Path(rows, "img_emb_0001.npy")
    np.save(path, np.asfortranarray(np.load(path)))
    return [t[:3] for t in triples(loader(urls, rows))]


# -- embeddings alone ----------------------------------------------------------------------------


def read(reader: Any, batch_size: int = 5, **how: Any) -> list[Any]:
    """Return [rows, digest, numbers of the first rows, captions] of each batch."""
    found = []
    if LIBRARY != "penstock":
        how["show_progress"] = False
    for rows, meta in reader(batch_size=batch_size, **how):
        captions = list(meta["caption"]) if "caption" in meta else None
        first = [round(float(x)) for x in rows[:, 0]]
        found.append([list(rows.shape), str(rows.dtype), digest(rows), first, captions])
    return found


def reader(folder: str, **how: Any) -> Any:
    return READERS.EmbeddingReader(folder, **how)


@case
def read_npy(folder: Path) -> Any:
    rows, _ = data.write_files(folder, range(4))
    return [read(reader(rows)), read(reader(rows), 100), read(reader(rows), 3, start=4, end=17)]


@case
def read_parquet(folder: Path) -> Any:
    rows = data.write_parquet(folder)
    found = reader(rows, file_format="parquet", meta_columns=["caption"])
    return [read(found), read(found, 4, start=5, end=20), found.dimension, found.count]


@case
def read_parquet_npy(folder: Path) -> Any:
    rows, metadata = data.write_files(folder, range(4))
    found = reader(
        rows, file_format="parquet_npy", meta_columns=["caption"], metadata_folder=metadata
    )
    return [read(found), read(found, 8, start=3), found.dimension, found.count]


@case
def read_more_than_nine_files(folder: Path) -> Any:
    rows, _ = data.write_files(folder, range(12), rows=2)
    return [n for batch in read(reader(rows)) for n in batch[3]]


@case
def read_fortran_order(folder: Path) -> Any:
    rows, _ = data.write_files(folder, range(2))
    path = Path(rows, "img_emb_1.npy")
    np.save(path, np.asfortranarray(np.load(path)))
    return [n for batch in read(reader(rows)) for n in batch[3]]


@case
def read_big_endian(folder: Path) -> Any:
    rows, _ = data.write_files(folder, range(2))
    path = Path(rows, "img_emb_1.npy")
    np.save(path, np.load(path).astype(">f4"))
    return [n for batch in read(reader(rows)) for n in batch[3]]


@case
def read_an_empty_npy_among_captions(folder: Path) -> Any:
    rows, metadata = data.write_files(folder, range(3))
    import pyarrow as pa
    import pyarrow.parquet as pq

    np.save(Path(rows, "img_emb_1.npy"), np.zeros((0, data.DIM), np.float32))
    pq.write_table(
        pa.table({"caption": pa.array([], pa.string())}), f"{metadata}/metadata_1.parquet"
    )
    found = reader(
        rows, file_format="parquet_npy", meta_columns=["caption"], metadata_folder=metadata
    )
    wrong = 0
    for _, _, _, numbers, captions in read(found):
        wrong += sum(f"caption {n}" != c for n, c in zip(numbers, captions, strict=True))
    return {"wrong": wrong}


@case
def read_a_missing_metadata_file(folder: Path) -> Any:
    rows, metadata = data.write_files(folder, range(3))
    Path(metadata, "metadata_1.parquet").unlink()
    found = reader(
        rows, file_format="parquet_npy", meta_columns=["caption"], metadata_folder=metadata
    )
    wrong = 0
    for _, _, _, numbers, captions in read(found):
        wrong += sum(f"caption {n}" != c for n, c in zip(numbers, captions, strict=True))
    return {"wrong": wrong}


# -- the prior's pairs ---------------------------------------------------------------------------


def pair_folders(folder: Path, files: int = 4) -> tuple[Any, Any]:
    images, texts = folder / "images", folder / "texts"
    images.mkdir(parents=True)
    texts.mkdir()
    for i in range(files):
        found = np.stack([data.row(i * 5 + k) for k in range(5)])
        np.save(images / f"img_emb_{i}.npy", found)
        np.save(texts / f"text_emb_{i}.npy", -found)
    pair: tuple[Any, Any] = LOADERS.get_reader(False, str(images), txt_url=str(texts))
    return pair


def splits(pair: tuple[Any, Any], train: float, evaluation: float, **how: Any) -> list[list[Any]]:
    """Return the sorted numbers of the rows of each split, each with its partner's."""
    found = []
    settings = {"num_data_points": 20, **how}
    for split in LOADERS.make_splits(
        text_conditioned=False,
        batch_size=3,
        train_split=train,
        eval_split=evaluation,
        image_reader=pair[0],
        text_reader=pair[1],
        **settings,
    ):
        rows = [
            [round(float(i[0])), round(-float(t[0]))]
            for images, texts in split
            for i, t in zip(images, texts, strict=True)
        ]
        found.append(sorted(rows))
    return found


@case
def pairs_in_splits(folder: Path) -> Any:
    return splits(pair_folders(folder), 0.5, 0.25)


@case
def pairs_dataset(folder: Path) -> Any:
    images, texts = pair_folders(folder)
    dataset = LOADERS.PriorEmbeddingDataset(
        text_conditioned=False,
        batch_size=4,
        start=2,
        stop=17,
        image_reader=images,
        text_reader=texts,
    )
    return [[digest(i), digest(t), str(i.dtype)] for i, t in dataset]


@case
def splits_of_three_ranks(folder: Path) -> Any:
    pair = pair_folders(folder)
    ranks = [splits(pair, 0.5, 0.25, rank=r, world_size=3) for r in range(3)]
    return [sorted(len(rank[i]) for rank in ranks) for i in range(3)]


@case
def splits_that_start_later(folder: Path) -> Any:
    found = splits(pair_folders(folder), 0.5, 0.25, start=4, num_data_points=16)
    return [[rows[0][0], rows[-1][0], len(rows)] for rows in found]


@case
def splits_without_a_test_part(folder: Path) -> Any:
    return [len(rows) for rows in splits(pair_folders(folder), 0.75, 0.25)]


def main() -> None:
    root = Path(sys.argv[2])
    chosen = sys.argv[3:] or list(CASES)
    for name in chosen:
        try:
            result = {"gives": data.plain(CASES[name](root / LIBRARY / name))}
        except BaseException as error:
            lines = str(error).strip().splitlines() or [""]  # the last of a worker's traceback
            name_of = f"{type(error).__name__}: "
            result = {"fails": name_of + lines[-1].removeprefix(name_of)[:400]}
        print(json.dumps({"case": name, **result}), flush=True)


if __name__ == "__main__":
    main()
