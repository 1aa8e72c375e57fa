"""Folders of images at a URL: listed, paired and read as those of this machine."""

import json
import os
import pickle

import pytest

from penstock.pipes import DataError, ManifestReader, text_to_image_dataset
from penstock.pipes.verify import fingerprints, verify_resume

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(s3, make_jpeg, tmp_path):
    """Ten photographs with captions, in a bucket and in a local folder."""
    files = {}
    for i in range(10):
        files[f"{'ab'[i % 2]}/k{i // 2}.jpg"] = make_jpeg(40 + 3 * i, 64, i)
        files[f"{'ab'[i % 2]}/k{i // 2}.txt"] = f"no {i}, red".encode()
    for name, data in files.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        s3.put(f"photos/{name}", data)
    s3.put("photos/.hidden/x.jpg", b"no")
    s3.put("photos/notes.md", b"no")
    s3.put("photos2/other.jpg", b"no")
    return s3


def reader(s3, folder="photos", **more):
    return ManifestReader(s3.url(folder), storage_options=s3.options, **more)


def once(pipe):
    return list(pipe.lanes(1, repeat=False))


def test_it_is_the_local_folder_at_another_place(photos, tmp_path):
    far, near = reader(photos), ManifestReader(tmp_path / "photos")
    assert reader(photos, "photos/").table.path == photos.url("photos")
    assert far.arguments() == near.arguments()
    found, expected = once(far), once(near)
    assert [s["__key__"] for s in found] == [s["__key__"] for s in expected]
    assert sorted(s["__key__"] for s in found)[:2] == ["a/k0.jpg", "a/k1.jpg"]
    for one, other in zip(found, expected, strict=True):
        assert one["image"].read() == other["image"].read()
        assert one["caption"].read() == other["caption"].read()
        assert one["__url__"] == photos.url("photos")

    def batches(pipe):
        made = pipe.bucket_by_aspect_ratio(48, 2, step=16).decode(crop="random").loader(2)
        return [{k: v for k, v in b.items() if k != "__url__"} for b in made], made.state_dict()

    (ours, state), (theirs, other) = batches(far), batches(near)
    assert [fingerprints(b) for b in ours] == [fingerprints(b) for b in theirs]
    assert state == other


def test_nothing_of_the_images_is_fetched_before_it_is_needed(photos):
    made = reader(photos)
    assert len(made.table) == 10
    assert not [path for method, path, _ in photos.log if method == "GET" and "." in path]
    once(made)
    assert not [path for method, path, _ in photos.log if method == "GET" and "." in path]


def test_it_resumes_in_any_number_of_workers(photos):
    def make(workers, rank=0, ranks=1):
        pipe = text_to_image_dataset(
            photos.url("photos"), batch_size=3, resolution=64, storage_options=photos.options
        )
        return pipe.loader(workers, rank=rank, world_size=ranks, epoch_batches=6)

    verify_resume(make, steps=2, legs=((0, 1), (1, 2)))


def test_no_key_is_in_a_state_or_in_what_is_printed(photos):
    photos.options["secret"] = "s3cr3t"
    made = reader(photos)
    pipe = made.batch(2).decode(8)
    state = json.dumps(pipe.loader().state_dict())
    for words in (state, repr(pipe), repr(made), str(made.table.row(0))):
        assert "s3cr3t" not in words
        assert "127.0.0.1" not in words
    sample = pickle.loads(pickle.dumps(made)).open(True).sample(0, 0)
    assert sample["image"].read()


def test_what_is_replaced_is_fetched_anew_by_the_next_run(photos, make_jpeg):
    def all_of(made):
        samples = once(made.filter_size(min_side=1))
        return {s["__key__"]: (s["__image_size__"], s["caption"].read()) for s in samples}

    before = all_of(reader(photos))
    photos.put("photos/a/k0.jpg", make_jpeg(99, 98, 0))
    photos.put("photos/a/k0.txt", b"new")
    after = all_of(reader(photos))
    assert before.pop("a/k0.jpg") == ((40, 64), b"no 0, red")
    assert after.pop("a/k0.jpg") == ((99, 98), b"new")
    assert before == after


def test_what_is_missing_is_named(photos):
    photos.delete("photos/a/k0.txt")
    photos.put("photos/a/k1.txt", b" ")
    photos.put("photos/alone.txt", b"x")
    with pytest.warns(UserWarning, match=r"1 text file.* such as s3://.*/photos/alone.txt"):
        made = reader(photos, shuffle=False)
    assert made.table.alone == (1, [photos.url("photos/alone.txt")])
    first = made.batch(1)
    with pytest.raises(DataError, match=r"beside s3://.*/photos/a/k0.jpg: write .*/a/k0.txt"):
        next(iter(first.decode(8).loader()))
    photos.put("photos/a/k0.txt", b"back")
    with pytest.warns(UserWarning, match="alone.txt"):
        made = reader(photos, shuffle=False)
    loader = made.batch(2).decode(8).loader()
    with pytest.raises(DataError, match=r"s3://.*/photos/a/k1.txt is empty"):
        next(iter(loader))
    photos.delete("photos/a/k2.jpg")
    gone = made.batch(3).decode(8, caption_default="").loader()
    with pytest.raises(DataError, match=r"sample 'a/k2.jpg' of .*there is no file at s3://"):
        next(iter(gone))


def test_a_folder_that_is_not_there(photos):
    with pytest.raises(FileNotFoundError, match=r"no such manifest or folder: s3://.*/photo$"):
        reader(photos, "photo")
    with pytest.raises(ValueError, match="a web server does not list folders"):
        ManifestReader("http://127.0.0.1:9/photos/")
    with pytest.raises(ValueError, match=r"tar shards are read by ShardLister"):
        reader(photos, "0.tar")


def test_a_listing_that_fails_is_tried_again(photos):
    left = [2]

    def fault(method, path, start):
        if method == "GET" and path.rstrip("/") == f"/{photos.bucket}" and left[0]:
            left[0] -= 1
            return "status", 503
        return None

    photos.fail(fault)
    assert len(reader(photos).table) == 10
    assert not left[0]


def test_manifests_in_a_folder_at_a_url(photos, tmp_path):
    rows = [{"file_name": "a/k0.jpg", "text": "one"}, {"file_name": "b/k1.jpg", "text": "two"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    photos.put("photos/metadata.jsonl", lines.encode())
    made = reader(photos, shuffle=False)
    found = once(made)
    assert [s["caption"] for s in found] == ["one", "two"]
    assert found[0]["__url__"] == f"{photos.url('photos/metadata.jsonl')}#line=1"
    assert found[1]["image"].read() == (tmp_path / "photos/b/k1.jpg").read_bytes()
    photos.put("more/data.csv", b"image,caption\n../photos/a/k1.jpg,three\n")
    assert once(reader(photos, "more/data.csv"))[0]["caption"] == "three"


def test_splits_and_tables_in_a_folder_at_a_url(photos, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [(tmp_path / f"photos/a/k{i}.jpg").read_bytes() for i in range(5)]
    table = pa.table({"image": images, "text": list("abcde")})
    for name, some in (("train", table.slice(0, 3)), ("test", table.slice(3))):
        pq.write_table(some, tmp_path / "part.parquet")
        data = (tmp_path / "part.parquet").read_bytes()
        photos.put(f"tables/{name}-00000-of-00001.parquet", data)
    with pytest.raises(ValueError, match=r"splits test, train"):
        reader(photos, "tables")
    found = once(reader(photos, "tables", split="test", shuffle=False))
    assert [s["caption"] for s in found] == ["d", "e"]
    assert found[1]["image"].read() == images[4]
    assert len(reader(photos, split="b").table) == 5
    with pytest.raises(ValueError, match="has no split 'c' of its own"):
        reader(photos, split="c")


def test_a_saved_data_set_at_a_url(photos, tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": [b"x", b"y"], "text": ["a", "b"]})
    with (
        pa.OSFile(os.fspath(tmp_path / "d"), "wb") as out,
        pa.ipc.new_stream(out, table.schema) as writer,
    ):
        writer.write_table(table)
    photos.put("saved/train/data-00000-of-00001.arrow", (tmp_path / "d").read_bytes())
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    photos.put("saved/train/state.json", json.dumps(state).encode())
    photos.put("saved/train/dataset_info.json", b"{}")
    photos.put("saved/dataset_dict.json", b'{"splits": ["train", "test"]}')
    found = once(reader(photos, "saved", split="train", shuffle=False))
    assert [s["image"].read() for s in found] == [b"x", b"y"]
    with pytest.raises(FileNotFoundError, match="lacks its split 'test'"):
        reader(photos, "saved", split="test")
