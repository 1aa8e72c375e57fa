"""Folders of images and manifests are looked at as shards are."""

import json
from html import unescape

import pytest
from PIL import Image

from penstock.pipes import ManifestReader
from penstock.recipes.findings import KINDS
from penstock.recipes.inspect import Config, main

SMALL = {"resolution": 64, "step": 16, "batch_size": 4}


@pytest.fixture
def photos(tmp_path, make_jpeg):
    """A folder with one of each fault, and the key and the words of each."""
    root = tmp_path / "photos"
    files = {}
    for i in range(7):
        files[f"{'ab'[i % 2]}/{i}.jpg"] = make_jpeg(64 + i, 70, i)
        files[f"{'ab'[i % 2]}/{i}.txt"] = f"no {i}".encode()
    files |= {
        "truncated.jpg": make_jpeg(64, 64, 8)[:-300],
        "truncated.txt": b"a",
        "empty.jpg": b"",
        "empty.txt": b"a",
        "captionless.jpg": make_jpeg(65, 64, 1),
        "blank.jpg": make_jpeg(66, 64, 2),
        "blank.txt": b" \n",
        "latin.jpg": make_jpeg(67, 64, 3),
        "latin.txt": b"caf\xe9",
        "small.jpg": make_jpeg(32, 32, 4),
        "small.txt": b"a",
        "long.jpg": make_jpeg(80, 800, 5),
        "long.txt": b"a",
        "c/3.jpg": files["b/3.jpg"],
        "c/3.txt": b"the same",
        "lone.txt": b"a",
    }
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root, {
        "damaged_shard": {},
        "corrupt_image": {"truncated.jpg": "field 'image'"},
        "no_image": {"empty.jpg": "empty.jpg is empty"},
        "no_caption": {"captionless.jpg": "no caption beside", "latin.jpg": "not UTF-8"},
        "empty_caption": {"blank.jpg": "blank.txt is empty"},
        "lone_caption": {"lone.txt": "no image of this name"},
        "copy": {"c/3.jpg": "the same as b/3.jpg of"},
        "duplicate_key": {},
        "refused": {},
        "enlarged": {"small.jpg": "32x32: 2.00x to 64x64"},
        "cropped": {"long.jpg": "80x800: loses 83% to 48x80"},
    }


def report_of(out):
    return json.loads((out / "report.json").read_text())


def names(report, kind):
    return [e["key"] for e in report["findings"][kind]["examples"]]


def test_every_fault_of_a_folder_is_found_counted_and_named(photos, tmp_path, capsys):
    root, expected = photos
    out = tmp_path / "out"
    main(Config(url=str(root), out=out, **SMALL))
    report, words = report_of(out), capsys.readouterr().out
    page = (out / "contact_sheet.html").read_text()
    assert list(expected) == list(KINDS)
    for kind, samples in expected.items():
        found = report["findings"][kind]
        assert found["count"] == len(samples), kind
        assert names(report, kind) == list(samples)
        for example, reason in zip(found["examples"], samples.values(), strict=True):
            assert reason in example["reason"]
            assert example["shard"] == str(root)
            assert example["reason"] in words
            assert example["reason"] in unescape(page)
    assert report["rows"] == {"checked": 15, "all": 15}
    assert report["samples"] == 15
    assert report["faults"] == 5
    assert report["buckets"]["images"] == 14
    assert report["smallest"]["key"] == "small.jpg"
    assert "15 of 15 rows" in words
    assert "2 captions missing" in page
    for key in ("a/0.jpg", "captionless.jpg", "c/3.jpg"):
        assert key in page
    assert "empty.jpg</small>" not in page
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 1000


def test_a_folder_without_captions(tmp_path, make_jpeg):
    (tmp_path / "p").mkdir()
    for i in range(3):
        (tmp_path / "p" / f"{i}.jpg").write_bytes(make_jpeg(64, 64, i))
    main(Config(url=str(tmp_path / "p"), out=tmp_path / "out", **SMALL))
    report = report_of(tmp_path / "out")
    assert report["findings"]["no_caption"]["count"] == 3
    assert "no caption" in (tmp_path / "out" / "contact_sheet.html").read_text()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_manifest_is_reported_by_row(kind, photos, tmp_path):
    root = photos[0]
    rows = [
        {"photo": "a/0.jpg", "words": "one"},
        {"photo": "gone.jpg", "words": "two"},
        {"photo": None, "words": "three"},
        {"photo": "a/0.jpg", "words": "four"},
        {"photo": "small.jpg", "words": ""},
        {"photo": "truncated.jpg", "words": "six"},
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"image": "photo", "caption": "words", "image_dir": str(root)}
    main(Config(url=str(path), out=tmp_path / "out", **columns, **SMALL))
    findings = report_of(tmp_path / "out")["findings"]
    word = "line" if kind == "jsonl" else "row"
    for found, row in (
        ("no_image", (2, 3)),
        ("copy", (4,)),
        ("no_caption", (5,)),
        ("corrupt_image", (6,)),
        ("enlarged", (5,)),
    ):
        where = [e["shard"] for e in findings[found]["examples"]]
        assert where == [f"{path}#{word}={n}" for n in row], found
    assert "gone.jpg" in findings["no_image"]["examples"][0]["reason"]


def test_images_inside_a_table_are_checked(tmp_path, make_jpeg):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [make_jpeg(64, 64, i) for i in range(5)]
    images[2], images[3] = images[2][:60], None
    table = pa.table({"image": pa.array(images, pa.binary()), "text": list("abcde")})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    main(Config(url=str(tmp_path / "rows.parquet"), out=tmp_path / "out", **SMALL))
    findings = report_of(tmp_path / "out")["findings"]
    assert [e["key"] for e in findings["corrupt_image"]["examples"]] == ["000000002"]
    assert [e["shard"][-5:] for e in findings["no_image"]["examples"]] == ["row=4"]


def test_limit_takes_rows_at_random(photos, tmp_path):
    for seed in (0, 1):
        main(Config(url=str(photos[0]), out=tmp_path / f"{seed}", limit=6, seed=seed, **SMALL))
    one, other = report_of(tmp_path / "0"), report_of(tmp_path / "1")
    assert one["samples"] == other["samples"] == 6
    assert one["rows"] == {"checked": 6, "all": 15}
    assert one["buckets"] != other["buckets"] or one["findings"] != other["findings"]


def test_one_batch_is_that_of_the_training(photos, tmp_path, capsys):
    root = photos[0]
    pipe = ManifestReader(root / "b", seed=4).bucket_by_aspect_ratio(64, 2, step=16).lanes(1)
    expected = pipe.decode(flip=0.5).loader(epoch_batches=9).batch_at(7)
    options = {"resolution": 64, "step": 16, "batch_size": 2}
    main(Config(url=str(root / "b"), out=tmp_path, batch=7, seed=4, flip=0.5, **options))
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if len(line) == 3]
    given = (expected[name] for name in ("__url__", "__key__", "caption"))
    assert shown == [list(sample) for sample in zip(*given, strict=True)]


def test_a_graph_of_shards_and_rows_is_checked_as_one(
    photos, shards, fields_of, tmp_path, monkeypatch
):
    (photos[0] / "a" / "z.jpg").write_bytes(fields_of(20)["jpg"])
    (photos[0] / "a" / "z.txt").write_text("a copy of what a shard has")
    (tmp_path / "my_mix.py").write_text(
        "from penstock.pipes import ManifestReader, ShardLister\n"
        "def build(url):\n"
        f"    rows = ManifestReader({str(photos[0] / 'a')!r})\n"
        "    tars = ShardLister(url).read_tar().rename(image='jpg', caption='txt')\n"
        "    return rows.mix(tars).batch(3).decode(size=40)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    main(Config(url=shards, out=tmp_path / "out", graph="my_mix:build", batches=2))
    report = report_of(tmp_path / "out")
    assert report["samples"] == 95 + 5
    assert report["rows"]["all"] == 5
    (copy,) = report["findings"]["copy"]["examples"]
    assert copy["key"] == "z.jpg"
    assert copy["reason"].startswith("the same as 0003 of ")  # the shards have 17, 5, … samples
    assert copy["reason"].endswith("00001.tar")
    assert report["shards"]["all"] == 6
    assert report["faults"] == 0


def test_columns_of_shards_are_refused(shards, tmp_path):
    with pytest.raises(SystemExit, match="are tar shards, which have no columns"):
        main(Config(url=shards, out=tmp_path, image="x"))
    with pytest.raises(SystemExit, match="whose caption is one field"):
        main(Config(url=shards, out=tmp_path, caption=["a", "b"]))
