"""Manifests in Parquet and Arrow, with the images inside or beside."""

import json
import pickle

import pytest

from penstock.pipes import DataError, ManifestReader
from penstock.pipes.verify import fingerprints, verify_resume

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def images(make_jpeg):
    return [make_jpeg(40 + i, 60 + i, i) for i in range(23)]


def once(pipe):
    return list(pipe.lanes(1, repeat=False))


def inside(images, kind):
    """Return a table with images inside: as bytes, or as Hugging Face has them."""
    column = images
    if kind == "struct":
        column = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
    texts = [f"c {i}" for i in range(len(images))]
    return pa.table({"image": column, "text": texts, "n": list(range(len(images)))})


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
@pytest.mark.parametrize("kind", ["bytes", "struct"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_images_inside(kind, suffix, images, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    table = inside(images, kind)
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=5)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    reader = ManifestReader(path, shuffle=False)
    found = once(reader)
    assert [s["image"].read() for s in found] == images
    assert [s["caption"] for s in found] == [f"c {i}" for i in range(23)]
    assert [s["n"] for s in found] == list(range(23))
    assert found[3]["__url__"] == f"{path}#row=4"
    # Bytes have no name in Parquet's column; Arrow keeps that of the struct out of the key too.
    assert found[3]["__key__"] == "000000003"
    sizes = [tuple(size) for block in reader.image_sizes() for size in block.tolist()]
    assert sizes == [(40 + i, 60 + i) for i in range(23)]
    again = pickle.loads(pickle.dumps(reader))
    assert again.open(False).sample(22, 0)["image"].read() == images[22]
    shuffled = ManifestReader(path, seed=2)
    pipe = shuffled.filter_size(min_side=42).bucket_by_aspect_ratio(32, 2, step=16)
    make = pipe.lanes(2).decode(crop="random")
    report = verify_resume(
        lambda w, r, n: make.loader(w, rank=r, world_size=n, epoch_batches=9),
        steps=2,
        legs=((0, 1), (1, 2)),
    )
    assert report.batches


def test_paths_in_parquet(images, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(images[i])
    rows = {"file_name": ["0.jpg", "1.jpg", None], "caption": [["a", "b"], ["c"], ["d"]]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    reader = ManifestReader(tmp_path / "rows.parquet", shuffle=False)
    found = once(reader)
    assert [s["caption"] for s in found] == [["a", "b"], ["c"], ["d"]]
    assert [s["__key__"] for s in found] == ["0.jpg", "1.jpg", "000000002"]
    with pytest.raises(DataError, match=r"rows.parquet, row 3: there is no image in column 'file"):
        next(iter(reader.batch(3).decode(8).loader()))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_struct_may_have_a_path_in_the_place_of_bytes(suffix, images, tmp_path):
    (tmp_path / "beside.jpg").write_bytes(images[9])
    column = [
        {"bytes": images[0], "path": "0.jpg"},
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": str(tmp_path / "beside.jpg")},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    table = pa.table({"image": column, "text": list("abcdef")})
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=4)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    found = once(ManifestReader(path, shuffle=False))
    read = [s["image"].read() for s in found[:3]]
    assert read == [images[0], images[9], images[9]]
    assert [s["__key__"] for s in found[1:3]] == ["beside.jpg", str(tmp_path / "beside.jpg")]
    for sample, message in zip(
        found[3:], ("row 4: there is no image at .*gone.jpg", "row 5", "row 6"), strict=True
    ):
        with pytest.raises(DataError, match=rf"rows.{suffix}, {message}"):
            sample["image"].read()
    batch = next(iter(ManifestReader(path, shuffle=False).batch(3).decode(8).loader()))
    assert batch["image"].shape == (3, 3, 8, 8)


def test_an_image_that_is_not_there_is_named_with_its_row(images, tmp_path):
    column = pa.array([images[0], None, b"x"], pa.binary())
    pq.write_table(pa.table({"image": column, "text": list("abc")}), tmp_path / "rows.parquet")
    pipe = ManifestReader(tmp_path / "rows.parquet", shuffle=False).filter_size(min_side=1)
    with pytest.raises(DataError, match=r"rows.parquet, row 2: there is no image in column"):
        list(pipe.lanes(1, repeat=False))
    loader = (
        pipe.batch(1)
        .decode(8)
        .loader(epoch_batches=2, on_error="skip", quarantine=tmp_path / "quarantine.jsonl")
    )
    assert [batch["caption"] for batch in loader] == [["a"], ["a"]]


def test_a_folder_of_parquet_files_is_read_in_their_order(images, tmp_path):
    table = inside(images, "struct")
    pq.write_table(table.slice(10), tmp_path / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(0, 10), tmp_path / "train-00000-of-00002.parquet", row_group_size=3)
    found = once(ManifestReader(tmp_path, shuffle=False))
    assert [s["n"] for s in found] == list(range(23))
    assert [s["image"].read() for s in found] == images


def test_the_tables_of_img2dataset_beside_its_shards_are_no_data_set(images, make_tar, tmp_path):
    rows = pa.table({"url": ["http://x/a.jpg"], "caption": ["a"], "status": ["success"]})
    for name in ("00000", "00001"):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    assert len(ManifestReader(tmp_path).table) == 2
    make_tar([("a", {"jpg": images[0]})], "00001.tar")
    words = rf"{tmp_path} has tar shards, which ShardLister\(.*name the files: .*/00001.parquet"
    with pytest.raises(ValueError, match=words):
        ManifestReader(tmp_path)
    assert len(ManifestReader(tmp_path / "00001.parquet").table) == 1
    for name in ("00000", "00001"):
        (tmp_path / f"{name}.parquet").unlink()
    with pytest.raises(ValueError, match=r"no image .* tar shards are read by ShardLister"):
        ManifestReader(tmp_path)


def test_a_parquet_metadata_of_an_imagefolder(images, tmp_path):
    (tmp_path / "a.jpg").write_bytes(images[0])
    pq.write_table(pa.table({"file_name": ["a.jpg"], "text": ["t"]}), tmp_path / "metadata.parquet")
    (sample,) = once(ManifestReader(tmp_path))
    assert sample["caption"] == "t"
    assert sample["image"].read() == images[0]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_what_is_none_or_changes_is_named(suffix, images, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=rf"rows.{suffix} is no "):
        ManifestReader(path)
    if suffix == "parquet":
        pq.write_table(inside(images, "bytes"), path, row_group_size=4)
        reader = ManifestReader(path)
        state = reader.batch(2).decode(8).loader().state_dict()
        pq.write_table(inside(images[:22], "bytes"), path)
        with pytest.raises(RuntimeError, match="was changed under the run"):
            reader.open(False).sample(0, 0)["image"].read()
        with pytest.raises(ValueError, match="ManifestReader had rows="):
            ManifestReader(path).batch(2).decode(8).loader().load_state_dict(state)


@pytest.fixture
def saved(images, tmp_path):
    """A data set as `datasets.Dataset.save_to_disk` leaves it, without that package."""
    table = inside(images, "struct")
    files = []
    for i, (start, length) in enumerate(((0, 9), (9, 14))):
        name = f"data-{i:05d}-of-00002.arrow"
        with (
            pa.OSFile(str(tmp_path / name), "wb") as out,
            pa.ipc.new_stream(out, table.schema) as writer,
        ):
            writer.write_table(table.slice(start, length))
        files.append({"filename": name})
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (tmp_path / "dataset_info.json").write_text("{}")
    return tmp_path


def test_a_saved_data_set(saved, images):
    reader = ManifestReader(saved, shuffle=False)
    found = once(reader)
    assert [s["image"].read() for s in found] == images
    batches = [fingerprints(b) for b in reader.batch(4).decode(8).loader(2)]
    assert batches == [fingerprints(b) for b in reader.batch(4).decode(8).loader()]


def test_a_saved_data_set_of_several_parts(saved, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("dict")
    saved.rename(root / "train")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"of the splits train, test; name one with split="):
        ManifestReader(root)
    with pytest.raises(ValueError, match=r"name one with split='…', not 'val'"):
        ManifestReader(root, split="val")
    assert len(once(ManifestReader(root, split="train"))) == 23
    (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert len(once(ManifestReader(root))) == 23


def test_indices_beside_the_rows_are_refused(saved):
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{}]}))
    with pytest.raises(ValueError, match="flatten_indices"):
        ManifestReader(saved)


def test_parquet_files_of_several_splits_are_never_read_as_one(images, tmp_path):
    table = inside(images, "struct")
    pq.write_table(table.slice(0, 9), tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(9, 9), tmp_path / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(18), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"of the splits test, train; name one with split="):
        ManifestReader(tmp_path)
    counts = {
        split: len(once(ManifestReader(tmp_path, split=split))) for split in ("train", "test")
    }
    assert counts == {"train": 18, "test": 5}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_datasets_writes(images, tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in images], "text": ["t"] * 23},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    kept = made.select(range(22, -1, -2))
    kept.save_to_disk(tmp_path / "kept")
    datasets.DatasetDict({"train": kept, "test": made}).save_to_disk(tmp_path / "parts")
    made.to_parquet(tmp_path / "made.parquet")
    for path, split, expected in (
        (tmp_path / "kept", None, images[::-2]),
        (tmp_path / "parts", "train", images[::-2]),
        (tmp_path / "made.parquet", None, images),
    ):
        found = once(ManifestReader(path, split=split, shuffle=False))
        assert [s["image"].read() for s in found] == expected
