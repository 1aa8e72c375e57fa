"""Train, validation and test of manifests and folders."""

import json

import pytest

from penstock.pipes import ManifestReader, text_to_image_dataset
from penstock.pipes.verify import verify_resume

SPLITS = {"train": 0.75, "val": 0.15, "test": 0.1}


@pytest.fixture
def manifest(tmp_path, make_jpeg):
    """A manifest of 40 rows, two captions for each of its images."""
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(make_jpeg(40 + i, 50, i))
    rows = [{"image": f"{i % 20}.jpg", "caption": f"c {i}", "n": i} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def once(pipe):
    return list(pipe.lanes(1, repeat=False))


@pytest.mark.parametrize("split_by", ["row", "sample"])
def test_each_row_is_in_one_split_and_each_image_too(split_by, manifest):
    parts = {
        name: once(ManifestReader(manifest, split=name, splits=SPLITS, split_by=split_by, seed=1))
        for name in SPLITS
    }
    found = sorted(s["n"] for part in parts.values() for s in part)
    assert found == list(range(40))
    images = [{s["__key__"] for s in part} for part in parts.values()]
    assert sum(map(len, images)) == 20
    counts = {name: len(part) for name, part in parts.items()}
    assert (counts == {"train": 30, "val": 6, "test": 4}) == (split_by == "row")
    if split_by == "sample":  # adding data moves nothing
        with open(manifest, "a") as file:
            file.write('{"image": "0.jpg", "caption": "new", "n": 40}\n')
        more = once(ManifestReader(manifest, split="val", splits=SPLITS, split_by="sample", seed=1))
        assert {s["n"] for s in more} - {40} == {s["n"] for s in parts["val"]}


def test_rows_keep_their_lines_sizes_and_order(manifest):
    reader = ManifestReader(manifest, split="val", splits=SPLITS, shuffle=False)
    found = once(reader)
    assert [s["n"] for s in found] == sorted(s["n"] for s in found)
    assert [s["__url__"] for s in found] == [f"{manifest}#line={s['n'] + 1}" for s in found]
    (sizes,) = reader.image_sizes()
    assert sizes.tolist() == [[40 + s["n"] % 20, 50] for s in found]
    assert [s["__ref__"].shard for s in found] == list(range(6))


def test_it_resumes_and_a_state_of_another_split_is_refused(manifest):
    def make(workers, rank=0, ranks=1, split="train"):
        pipe = text_to_image_dataset(
            manifest, batch_size=3, resolution=64, split=split, splits=SPLITS, seed=2
        )
        return pipe.loader(workers, rank=rank, world_size=ranks, epoch_batches=9)

    verify_resume(make, steps=2, legs=((0, 1), (1, 2)))
    with pytest.raises(ValueError, match=r"had (rows|split)="):
        make(0).load_state_dict(make(0, split="val").state_dict())


def test_images_inside_are_split_too(make_jpeg, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [make_jpeg(40 + i, 50, i) for i in range(20)]
    table = pa.table({"image": images, "text": [f"{i}" for i in range(20)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    parts = [
        ManifestReader(tmp_path / "rows.parquet", split=name, splits={"a": 0.5, "b": 0.5})
        for name in "ab"
    ]
    assert [len(part.table) for part in parts] == [10, 10]
    for part in parts:
        for sample in once(part.filter_size(min_side=1)):
            assert sample["image"].read() == images[int(sample["caption"])]
            assert sample["__image_size__"] == (40 + int(sample["caption"]), 50)


def test_a_folder_may_have_splits_of_its_own(make_jpeg, tmp_path):
    for name in ("train/a", "train/b", "test/c"):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_jpeg(40, 40, 0))
    assert len(once(ManifestReader(tmp_path))) == 3
    keys = [s["__key__"] for s in once(ManifestReader(tmp_path, split="train", shuffle=False))]
    assert keys == ["a.jpg", "b.jpg"]
    with pytest.raises(ValueError, match=r"has no split 'val' of its own.*splits=.'val': 0.9"):
        ManifestReader(tmp_path, split="val")
    both = {"split": "a", "splits": {"a": 0.5, "b": 0.5}}
    assert len(once(ManifestReader(tmp_path / "train", **both))) == 1


def test_what_is_wrong_is_named(manifest):
    with pytest.raises(ValueError, match=r"rows.jsonl has no split 'train' of its own"):
        ManifestReader(manifest, split="train")
    with pytest.raises(ValueError, match="say which one with split="):
        ManifestReader(manifest, splits=SPLITS)
    with pytest.raises(ValueError, match="must sum to 1"):
        ManifestReader(manifest, split="train", splits={"train": 0.5})
    with pytest.raises(ValueError, match="no split 'dev'; there are 'train', 'val', 'test'"):
        ManifestReader(manifest, split="dev", splits=SPLITS)
    with pytest.raises(ValueError, match="split_by must be"):
        ManifestReader(manifest, split="val", splits=SPLITS, split_by="shard")
    with pytest.raises(ValueError, match=r"split 'val' gets none of the 40 rows"):
        splits = {"train": 0.999999, "val": 0.000001}
        ManifestReader(manifest, split="val", splits=splits, split_by="sample")
