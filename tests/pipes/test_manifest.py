"""Manifests and folders as sources: what is read, what is reported, and in which order."""

import csv
import json
import os
import pickle
import random
import struct

import numpy as np
import pytest

from penstock.pipes import DataError, ManifestReader, ShardLister, merge_states
from penstock.pipes.draws import hash64
from penstock.pipes.graph import Graph
from penstock.pipes.sample import Extent
from penstock.pipes.table import ColumnMap, Table
from penstock.pipes.verify import fingerprints, verify_resume

TEXTS = ["one, a", 'two "b"', "three\nlines\r\nlong", "vier, grün", "five\ttabs"]


@pytest.fixture
def images(tmp_path, make_jpeg):
    """A folder with img/0.jpg to img/4.jpg, each of its own size."""
    (tmp_path / "img").mkdir()
    for i in range(5):
        (tmp_path / "img" / f"{i}.jpg").write_bytes(make_jpeg(40 + i, 60 + i, i))
    return tmp_path


def records():
    return [{"path": f"img/{i}.jpg", "text": text, "n": i} for i, text in enumerate(TEXTS)]


def write(folder, kind, rows, name="rows"):
    """Write rows as a manifest of this kind, and return its path."""
    path = folder / f"{name}.{kind}"
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            out.writeheader()
            out.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def once(pipe):
    return list(pipe.lanes(1, repeat=False))


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
def test_rows_are_samples_of_every_format(kind, images):
    path = write(images, kind, records())
    found = once(ManifestReader(path, shuffle=False))
    assert [s["caption"] for s in found] == TEXTS
    assert [s["n"] for s in found] == [i if "json" in kind else str(i) for i in range(5)]
    for i, sample in enumerate(found):
        image = str(images / "img" / f"{i}.jpg")
        assert sample["image"] == Extent(image, 0, os.stat(image).st_size)
        assert sample["__key__"] == f"img/{i}.jpg"
        assert sample["__ref__"] == (0, i, 0)
        assert set(sample) == {"__key__", "__url__", "__ref__", "image", "caption", "n"}


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("csv", [2, 3, 4, 7, 8]),
        ("tsv", [2, 3, 4, 7, 8]),
        ("jsonl", [1, 2, 3, 4, 5]),
        ("json", [2, 7, 12, 17, 22]),
    ],
)
def test_a_row_is_named_by_its_line(kind, lines, images):
    path = write(images, kind, records())
    found = once(ManifestReader(path, shuffle=False))
    assert [s["__url__"] for s in found] == [f"{path}#line={line}" for line in lines]
    first = [path.read_bytes().split(b"\n")[line - 1] for line in lines]
    if kind != "json":
        assert all(f"img/{i}.jpg".encode() in line for i, line in enumerate(first))


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_a_byte_order_mark_and_blank_lines_are_no_rows(kind, images):
    path = write(images, kind, records()[3:])
    text = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\n\n") + b"\n \n"[kind == "csv" :])
    if kind == "csv":
        path.write_bytes(path.read_bytes().rstrip(b" \n") + b"\n\n\n")
    assert [s["caption"] for s in once(ManifestReader(path, shuffle=False))] == TEXTS[3:]


def test_torchtunes_tsv_has_no_line_of_names(images):
    path = images / "data.tsv"
    path.write_text("img/0.jpg\ta\nimg/1.jpg\tb\n")
    assert [s["caption"] for s in once(ManifestReader(path, shuffle=False))] == ["a", "b"]
    path.write_text("a\thttps://x.org/0\nb\thttps://x.org/1\n")
    assert [s["caption"] for s in once(ManifestReader(path, shuffle=False))] == ["a", "b"]
    path.write_text("img/0.jpg\ta\t1\nimg/1.jpg\tb\t2\n")
    with pytest.raises(ValueError, match=r"its columns are: 'img/0.jpg', 'a', '1'"):
        ManifestReader(path)
    named = ManifestReader(path, columns=["image", "caption", "n"], shuffle=False)
    assert [(s["caption"], s["n"]) for s in once(named)] == [("a", "1"), ("b", "2")]


def test_quotation_marks_are_never_guessed_at(images):
    path = images / "data.tsv"
    path.write_text('image\tcaption\nimg/0.jpg\t"big" dog\nimg/1.jpg\tb\n')
    with pytest.raises(ValueError, match=r"data.tsv, line 2: .*quotes=False"):
        ManifestReader(path)
    plain = ManifestReader(path, quotes=False, shuffle=False)
    assert [s["caption"] for s in once(plain)] == ['"big" dog', "b"]
    path.write_text('image\tcaption\nimg/0.jpg\t"big dog\nimg/1.jpg\tb\n')
    with pytest.raises(ValueError, match=r"data.tsv, line 3: .*quotes=False"):
        ManifestReader(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"image,caption\na,b\na,b,c\n", r"a.csv, line 3: 3 cells, and there are 2"),
        ("a.csv", b"image,caption\n", r"a.csv has no rows"),
        ("a.csv", b"", r"a.csv is empty"),
        ("a.csv", b"image,image,caption\n", r"column 'image' is there more than once"),
        ("a.csv", b"image,caption\na,b\nc,\xfcber\n", r"a.csv, line 3: text is not UTF-8: byte"),
        ("a.jsonl", b'{"image": "a", "caption": "b"}\n{"image\n', r"a.jsonl, line 2: this is no"),
        ("a.jsonl", b'\n["a"]\n', r"a.jsonl, line 2: expected an object.* found a list"),
        ("a.jsonl", b'{"image": "\xff"}\n', r"a.jsonl, line 1: text is not UTF-8"),
        (
            "a.json",
            b'[{"image": "a", "caption": "b"},\n{"image": }]',
            r"a.json, line 2: this is no",
        ),
        ("a.json", b'{"image": "a"}', r"expected a list of objects"),
        ("a.json", b'[{"image": "a", "caption": "b"}\n{}]', r"a.json, line 2: expected ','"),
        ("a.json", b'[{"image": "a", "caption": "b"}', r"expected ',' or '\]'"),
        ("a.json", b'[\n\n"\xff"]', r"a.json, line 3: text is not UTF-8"),
        (
            "a.jsonl",
            b'{"photo": "a", "caption": "b"}\n',
            r"known for the image .*'photo', 'caption'",
        ),
        ("a.jsonl", b'{"image": "a", "words": "b"}\n', r"for the caption .*'image', 'words'"),
        ("a.xml", b"", r"no kind of manifest"),
    ],
)
def test_what_cannot_be_parsed_is_named_at_once(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ManifestReader(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such manifest or folder"):
        ManifestReader(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="no image"):
        ManifestReader(tmp_path)
    write(tmp_path, "csv", records())
    with pytest.raises(ValueError, match=r"no column 'x' for image=; its columns are: 'path', 'te"):
        ManifestReader(tmp_path / "rows.csv", image="x")
    with pytest.raises(ValueError, match=r"no column 'y' for caption="):
        ManifestReader(tmp_path / "rows.csv", caption=["text", "y"])


def test_columns_are_mapped(images):
    rows = [{"x": "0.jpg", "long": "a dog", "short": "", "caption": "no"} for _ in range(2)]
    path = write(images, "jsonl", [*rows, {"x": "1.jpg", "short": "cat", "long": None}])
    reader = ManifestReader(
        path, image="x", caption=["short", "long"], image_dir=images / "img", shuffle=False
    )
    found = once(reader)
    assert [s["caption"] for s in found] == [["", "a dog"], ["", "a dog"], ["cat", ""]]
    assert "long" not in found[0]
    batch = next(iter(reader.batch(3).decode(8, caption_pick=[1, 1]).loader()))
    assert batch["caption"] == ["a dog", "a dog", "cat"]
    bare = once(ManifestReader(path, image="x", caption=(), image_dir=images / "img"))
    assert [s["caption"] for s in bare[:1]] in (["no"], [None])  # a column like any other


def test_a_list_of_captions_in_one_column(images):
    rows = [{"image": "img/0.jpg", "caption": ["a", "b"]}, {"image": "img/1.jpg", "caption": "c"}]
    reader = ManifestReader(write(images, "json", rows), shuffle=False)
    assert [s["caption"] for s in once(reader)] == [["a", "b"], "c"]
    picked = next(iter(reader.batch(2).decode(8, caption_pick=[0, 1]).loader()))["caption"]
    assert picked == ["b", "c"]


def test_columns_of_later_rows_come_along(images):
    rows = [{"image": "img/0.jpg", "caption": "a"}] * 150
    rows.append({"image": "img/0.jpg", "caption": "b", "late": 1.5})
    found = once(ManifestReader(write(images, "jsonl", rows), shuffle=False))
    assert [s["late"] for s in found] == [None] * 150 + [1.5]


def test_other_columns_reach_the_batch(images):
    batch = next(
        iter(
            ManifestReader(write(images, "jsonl", records()), shuffle=False)
            .batch(5)
            .decode(16)
            .affix_caption(prefix="x ")
            .loader()
        )
    )
    assert batch["n"].tolist() == [0, 1, 2, 3, 4]
    assert batch["image"].shape == (5, 3, 16, 16)
    assert batch["caption"][3] == "x vier, grün"
    assert batch["original_size"].tolist() == [[40 + i, 60 + i] for i in range(5)]
    loaded = next(iter(ManifestReader(images / "rows.jsonl").batch(5).load().loader()))
    assert sorted(loaded["caption"]) == sorted(TEXTS)
    assert all(data.startswith(b"\xff\xd8") for data in loaded["image"])


@pytest.mark.parametrize("field", ["missing", "empty", "none", "broken"])
def test_an_image_that_is_bad_is_named_with_its_line_and_skipped(field, images):
    rows = records()
    path = write(images, "csv", rows)
    if field == "missing":
        os.unlink(images / "img/3.jpg")
        message = r"rows.csv, line 7: there is no image at .*img/3.jpg"
    elif field == "empty":
        (images / "img/3.jpg").write_bytes(b"")
        message = r"rows.csv, line 7: the image .*img/3.jpg is empty"
    elif field == "none":
        rows[3]["path"] = ""
        path = write(images, "csv", rows)
        message = r"rows.csv, line 7: there is no image in column 'path'"
    else:
        (images / "img/3.jpg").write_bytes(b"nothing")
        message = r"sample 'img/3.jpg' of .*rows.csv#line=7.*not an image"
    reader = ManifestReader(path, shuffle=False)
    pipes = (
        reader.batch(5).decode(8),
        reader.filter_size(min_side=1).batch(5).decode(8),
        reader.bucket_by_aspect_ratio(64, 2, step=32).decode(),
    )
    for pipe in pipes:
        with pytest.raises(DataError, match=message):
            list(pipe.loader(epoch_batches=9))
        loader = pipe.loader(
            epoch_batches=4, on_error="skip", quarantine=images / "quarantine.jsonl"
        )
        keys = {key for batch in loader for key in batch["__key__"]}
        assert keys == {f"img/{i}.jpg" for i in (0, 1, 2, 4)}
        assert loader.skipped
    line = json.loads((images / "quarantine.jsonl").read_text().splitlines()[0])
    assert line["shard"] == f"{path}#line=7"


def test_a_caption_that_is_missing_is_named_unless_there_is_a_default(images):
    rows = records()
    rows[1]["text"] = "  "
    reader = ManifestReader(write(images, "csv", rows), shuffle=False)
    with pytest.raises(DataError, match=r"rows.csv, line 3: there is no caption in column 'text'"):
        next(iter(reader.batch(5).decode(8).loader()))
    batch = next(iter(reader.batch(5).decode(8, caption_default="").loader()))
    assert batch["caption"][:2] == ["one, a", ""]
    kept = once(reader.filter_caption(max_length=8))
    assert [s["n"] for s in kept] == ["0"]
    assert [s["n"] for s in once(reader.filter_caption())] == ["0", "2", "3", "4"]
    assert len(once(reader.filter_caption(min_length=0))) == 5


def test_a_caption_that_is_no_text_is_bad_data_whatever_the_default(images):
    path = write(images, "jsonl", [{"image": "img/0.jpg", "caption": 7}])
    pipe = ManifestReader(path).batch(1).decode(8, caption_default="")
    with pytest.raises(DataError, match=r"line 1: a caption must be text, found int"):
        next(iter(pipe.loader()))


def test_filters_and_buckets_read_headers(images):
    reader = ManifestReader(write(images, "csv", records()))
    assert {s["n"] for s in once(reader.filter_size(min_side=42))} == {"2", "3", "4"}
    (sizes,) = reader.image_sizes()
    assert sizes.tolist() == [[40 + i, 60 + i] for i in range(5)]
    (filtered,) = once(reader.filter_caption(min_length=15))
    assert filtered["n"] == "2"


def test_absolute_paths_and_file_urls(images):
    rows = [
        {"image": str(images / "img/0.jpg"), "caption": "a"},
        {"image": f"file://{images}/img/1.jpg", "caption": "b"},
    ]
    found = once(ManifestReader(write(images, "csv", rows), image_dir="/nowhere", shuffle=False))
    assert [os.path.basename(s["image"].path) for s in found] == ["0.jpg", "1.jpg"]


def test_several_manifests_are_one(images):
    paths = [write(images, "csv", records()[:2], "a"), write(images, "jsonl", records()[2:], "b")]
    reader = ManifestReader(paths, shuffle=False)
    found = once(reader)
    assert [s["caption"] for s in found] == TEXTS
    assert found[2]["__url__"] == f"{paths[1]}#line=1"
    assert [s["__ref__"].shard for s in found] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the list of paths is empty"):
        ManifestReader([])


def test_five_images_with_batches_of_four_four_workers_and_four_ranks(images):
    path = write(images, "csv", records())
    for rank in range(4):
        loader = ManifestReader(path).batch(4).decode(16).loader(4, rank=rank, world_size=4)
        assert len(loader) == 1
        (batch,) = loader
        assert batch["image"].shape == (4, 3, 16, 16)
        assert batch["__batch__"] == rank
        loader.close()


def test_each_row_comes_once_a_pass_in_an_order_of_its_own(images):
    rows = [{"image": f"{i}.jpg", "caption": str(i)} for i in range(101)]
    reader = ManifestReader(write(images, "jsonl", rows), seed=5)
    for lanes in (1, 4):
        graph = Graph.of(reader.lanes(lanes))
        passes = {0: [], 1: []}
        for lane in range(lanes):
            order = graph.order(lane)
            while (ref := order.next().ref).epoch < 2:
                passes[ref.epoch].append(ref.shard)
        assert sorted(passes[0]) == sorted(passes[1]) == list(range(101))
        assert passes[0] != passes[1]
    order = [s["caption"] for s in once(reader)]
    assert order != sorted(order, key=int)
    assert order == [s["caption"] for s in once(ManifestReader(images / "rows.jsonl", seed=5))]
    assert order != [s["caption"] for s in once(ManifestReader(images / "rows.jsonl", seed=6))]


def test_a_state_fits_the_same_rows_wherever_they_lie(images, tmp_path_factory):
    def loader(path, **more):
        return ManifestReader(path, **more).batch(2).decode(8).loader()

    path = write(images, "csv", records())
    first = loader(path)
    next(iter(first))
    state = json.loads(json.dumps(first.state_dict()))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    rows = [{**row, "path": str(images / row["path"])} for row in records()]
    moved = loader(write(elsewhere, "tsv", rows))
    moved.load_state_dict(state)
    again, expected = next(iter(moved)), next(iter(first))
    assert again["caption"] == expected["caption"]
    rows[2]["text"] = "another"
    with pytest.raises(ValueError, match=r"another graph's: ManifestReader had rows="):
        loader(write(elsewhere, "tsv", rows)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"ManifestReader had seed="):
        loader(path, seed=1).load_state_dict(state)


def test_a_manifest_that_changes_under_the_run_is_an_error(images):
    path = write(images, "csv", records())
    reader = ManifestReader(path, shuffle=False)
    assert pickle.loads(pickle.dumps(reader)).table.row(0)["text"] == "one, a"
    path.write_bytes(path.read_bytes().replace(b"one, a", b"one, b"))
    with pytest.raises(RuntimeError, match=r"rows.csv, line 2: .*changed under the run"):
        once(reader)


def test_an_image_that_was_replaced_is_read_anew(images, make_jpeg):
    path = write(images, "csv", records()[:1])
    pipe = ManifestReader(path).batch(1).decode()
    loader = pipe.loader(epoch_batches=9)
    assert next(iter(loader))["image"][0].shape == (3, 40, 60)
    part = images / "part"
    part.write_bytes(make_jpeg(80, 90, 1))
    os.replace(part, images / "img/0.jpg")
    assert next(iter(loader))["image"][0].shape == (3, 80, 90)


def test_it_is_mixed_with_tars(images, shards):
    rows = ManifestReader(write(images, "csv", records())).select("image", "caption")
    tars = ShardLister(shards).read_tar().rename(image="jpg", caption="txt")
    pipe = rows.mix(tars).bucket_by_aspect_ratio(32, 3, step=16).decode()
    batches = list(pipe.loader(epoch_batches=6))
    kinds = {"img/" in key for batch in batches for key in batch["__key__"]}
    assert kinds == {True, False}
    verify_resume(
        lambda w, r, n: pipe.loader(w, rank=r, world_size=n, epoch_batches=6),
        steps=2,
        legs=((0, 1), (1, 2)),
    )


@pytest.mark.parametrize("chain", range(3))
@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_resuming_is_exact_over_lanes_ranks_and_workers(chain, images, make_jpeg):
    for i in range(5, 40):
        data = make_jpeg(40 + i * 37 % 80, 40 + i * 53 % 80, i)
        (images / "img" / f"{i}.jpg").write_bytes(data)
    rows = [{"image": f"img/{i}.jpg", "caption": f"c {i}, red, round", "n": i} for i in range(40)]
    path = write(images, "jsonl", rows)
    lanes = (1, 3, 4)[chain]

    def make(workers, rank=0, ranks=1):
        pipe = ManifestReader(path, seed=chain).filter_size(min_side=42)
        pipe = pipe.bucket_by_aspect_ratio(48, 3, step=16).lanes(lanes)
        pipe = pipe.decode(crop="random", flip=0.5).shuffle_caption()
        return pipe.loader(workers, rank=rank, world_size=ranks, epoch_batches=30)

    expected = [fingerprints(batch) for batch in make(0)]
    chance, position, state = random.Random(chain), 0, None
    for ranks, workers in ((2, 0), (1, 2), (3, 0)):
        loaders = [make(workers, rank, ranks) for rank in range(ranks)]
        steps = chance.randrange(1, 4)
        for rank, loader in enumerate(loaders):
            if state is not None:
                loader.load_state_dict(state)
            for k, batch in zip(range(steps), loader, strict=False):
                assert fingerprints(batch) == expected[position + k * ranks + rank]
        state = json.loads(json.dumps(merge_states([l.state_dict() for l in loaders])))  # noqa: E741
        for loader in loaders:
            loader.close()
        position += steps * ranks


def test_a_million_rows_take_little_memory(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    text = "".join(f'{{"image": "{i}.jpg", "caption": "number {i}"}}\n' for i in range(20_000))
    path.write_text(text)
    reader = ManifestReader(path)
    size = len(pickle.dumps(reader.table))
    assert size / 20_000 < 21
    assert reader.open(False).sample(12_345, 0)["caption"] == "number 12345"
    assert np.asarray(reader.shard_sizes(False)).sum() == 20_000


class Million(Table):
    """A million rows whose images are headers alone, of sizes drawn from the row's number."""

    path, base, digest = "rows.jsonl", "/", "0" * 16
    map = ColumnMap("image", (), False)

    def __len__(self):
        return 1_000_000

    def row(self, i):
        bits = hash64(i)
        size = struct.pack(">II", 256 + bits % 512, 256 + (bits >> 32) % 512)
        return {"image": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + size + bytes(99)}

    def fragment(self, i):
        return f"line={i + 1}"


def test_the_state_of_a_million_rows_is_small(images, open_lane):
    reader = ManifestReader(write(images, "csv", records()))
    reader.table = Million()
    sides = [(512 + 64 * i, 512 + 64 * (19 - i)) for i in range(20)]
    order, lane = open_lane(reader.bucket_by_aspect_ratio(batch_size=32, sizes=sides))
    for _ in range(40):
        order.next()
    sizes = [len(json.dumps(order.state())) for _ in range(40) if order.next()]
    for held in order.bins:  # the worst case: every bucket lacks one sample
        rows = iter(range(10_007, 1_000_000, 31_013))
        while len(held) < 3 * 31:
            held.extend((1, next(rows), 0))
    assert sum(map(len, order.bins)) == 3 * 620
    state = json.dumps(order.state())
    assert max(*sizes, len(state)) <= 4096
    again = reader.bucket_by_aspect_ratio(batch_size=32, sizes=sides)._order(lane)
    again.load(json.loads(state))
    assert [again.next() for _ in range(30)] == [order.next() for _ in range(30)]
