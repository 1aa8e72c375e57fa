"""Manifests, folders and shards packed into shards, and read again."""

import csv
import gc
import io
import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from penstock.pipes import DataError, ManifestReader, ShardLister
from penstock.pipes.index_store import IndexStore
from penstock.recipes import pack as recipe
from penstock.recipes.pack import Config, main, pack
from penstock.recipes.pack_members import read_members

COUNT = 7


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (30 + number, 20), (number, 50, 99)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path, make_jpeg):
    """Seven images with captions beside them, one a PNG that is called .jpg."""
    root = tmp_path / "photographs"
    (root / "cats").mkdir(parents=True)
    for i in range(COUNT):
        path = root / (f"cats/{i}.jpg" if i % 2 else f"{i}.jpeg")
        path.write_bytes(png(i) if i == 3 else make_jpeg(40 + i, 60, i))
        path.with_suffix(".txt").write_text(f"nummer {i}, grün\n", encoding="utf-8")
    return root


@pytest.fixture
def manifest(folder, tmp_path):
    """A CSV of the images, with a column more."""
    path = tmp_path / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "licence"])
        for i in range(COUNT):
            name = f"cats/{i}.jpg" if i % 2 else f"{i}.jpeg"
            rows.writerow([f"photographs/{name}", f"caption {i}", "CC0" if i else ""])
    return path


def files(out):
    return {path.name: path.read_bytes() for path in sorted(Path(out).iterdir())}


def tars(out):
    return {name: data for name, data in files(out).items() if name.endswith(".tar")}


def members(path):
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


def decoded(pipe):
    """Return every sample of a pipe, image decoded, by its caption."""
    loader = pipe.batch(1).lanes(1, repeat=False).decode().loader(0)
    return {batch["caption"][0]: batch["image"][0] for batch in loader}


def run(cfg):
    main(cfg)


def test_a_folder_becomes_shards_that_read_the_same(folder, tmp_path, capsys):
    out = tmp_path / "out"
    run(Config(url=str(folder), out=out, samples_per_shard=3))
    assert sorted(tars(out)) == ["00000.tar", "00001.tar", "00002.tar"]
    assert "7 samples in 3 shards" in capsys.readouterr().out
    expected = decoded(ManifestReader(folder))
    found = decoded(ShardLister(str(out)).read_tar())
    assert found.keys() == expected.keys() == {f"nummer {i}, grün" for i in range(COUNT)}
    assert all(found[name].equal(expected[name]) for name in expected)
    assert not list(out.glob("*.part"))


def test_the_bytes_are_as_they_were_under_the_right_ending(folder, tmp_path):
    out = tmp_path / "out"
    run(Config(url=str(folder), out=out))
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.jp*g"), key=str)]
    names.sort()
    inside = members(out / "00000.tar")
    assert len(inside) == 3 * COUNT
    for i, name in enumerate(names):
        ending = "png" if name == "cats/3.jpg" else "jpg"
        assert inside[f"{i:09d}.{ending}"] == (folder / name).read_bytes()
        assert json.loads(inside[f"{i:09d}.json"]) == {"key": name}


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(manifest, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "out"
    run(Config(url=str(manifest), out=out, samples_per_shard=4))
    data = webdataset.WebDataset(
        [str(out / f"0000{i}.tar") for i in range(2)], shardshuffle=False
    ).decode("pil")
    samples = list(data)
    del data
    gc.collect()  # it leaves the last shard open
    assert [s["__key__"] for s in samples] == [f"{i:09d}" for i in range(COUNT)]
    assert [s["txt"] for s in samples] == [f"caption {i}" for i in range(COUNT)]
    assert samples[3]["png"].size == (33, 20)
    assert samples[4]["json"] == {"key": "photographs/4.jpeg", "licence": "CC0"}


def test_the_same_input_makes_the_same_bytes_whoever_writes_them(manifest, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    pack(Config(url=str(manifest), out=one, samples_per_shard=2))
    numbers = []
    for rank in (2, 0, 1):
        pack(Config(url=str(manifest), out=two, samples_per_shard=2), rank, 3)
        numbers.append([int(name[:5]) for name in tars(two)])
    assert numbers == [[2], [0, 2, 3], [0, 1, 2, 3]]
    assert files(one) == files(two)


def test_a_run_goes_on_where_it_was_interrupted(manifest, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    cfg = Config(url=str(manifest), out=out, samples_per_shard=2)
    run(Config(url=str(manifest), out=whole, samples_per_shard=2))
    run(cfg)
    # As a kill leaves them: a shard not yet written, one without its record, half a file.
    (out / "00001.tar").unlink()
    (out / "00002_stats.json").unlink()
    (out / "00002.tar").write_bytes(b"older")
    (out / "00001.tar.part").write_bytes(b"half" * 10_000)
    (out / "00003.tar").write_bytes(b"cut short")
    before = (out / "00000.tar").stat()
    capsys.readouterr()
    run(cfg)
    assert "7 samples in 4 shards" in (words := capsys.readouterr().out)
    assert "1 of them written before" in words
    assert (out / "00000.tar").stat() == before
    assert files(out) == files(whole)


def test_a_killed_write_leaves_no_shard(manifest, tmp_path, monkeypatch):
    cfg = Config(url=str(manifest), out=tmp_path / "out", samples_per_shard=3)

    def broken(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("penstock.recipes.pack_shard.os.fsync", broken)
    with pytest.raises(SystemExit, match="No space left"):
        run(cfg)
    assert tars(cfg.out) == {}


def test_a_shard_that_another_process_writes_is_left_alone(manifest, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    with (out / "00000.tar.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match=r"another process is writing .*00000\.tar"):
            run(Config(url=str(manifest), out=out))


@pytest.mark.parametrize("change", ["image", "caption", "row", "column"])
def test_a_changed_input_is_refused_by_name(manifest, folder, tmp_path, make_jpeg, change):
    cfg = Config(url=str(manifest), out=tmp_path / "out", samples_per_shard=3)
    run(cfg)
    before = files(cfg.out)
    text = manifest.read_text(encoding="utf-8")
    if change == "image":
        (folder / "4.jpeg").write_bytes(make_jpeg(80, 80, 9))
        words = r"photographs/4\.jpeg of .*#line=6 has changed .* delete 00001_stats\.json"
    elif change == "row":
        manifest.write_text(text + "photographs/0.jpeg,more,\n", encoding="utf-8")
        words = "samples was 7, is 8"
    else:
        old, new = ("caption 4", "other") if change == "caption" else ("4,CC0", "4,GPL")
        manifest.write_text(text.replace(old, new), encoding="utf-8")
        words = r"photographs/4\.jpeg of .*#line=6 has changed"
    with pytest.raises(SystemExit, match=words):
        run(cfg)
    assert files(cfg.out) == before
    if change == "image":
        (cfg.out / "00001_stats.json").unlink()
        run(cfg)
        assert members(cfg.out / "00001.tar")["000000004.jpg"] == make_jpeg(80, 80, 9)


def test_a_changed_caption_file_is_refused_by_name(folder, tmp_path):
    cfg = Config(url=str(folder), out=tmp_path / "out")
    run(cfg)
    (folder / "cats/1.txt").write_text("another one altogether")
    with pytest.raises(SystemExit, match=r"cats/1\.jpg of .* has changed"):
        run(cfg)


def test_other_options_and_foreign_shards_are_refused(manifest, tmp_path):
    cfg = Config(url=str(manifest), out=tmp_path / "out", samples_per_shard=3)
    run(cfg)
    with pytest.raises(SystemExit, match=r"plan\.json .* options was .*'samples_per_shard': 3"):
        run(Config(url=str(manifest), out=cfg.out, samples_per_shard=2))
    (cfg.out / "plan.json").unlink()
    with pytest.raises(SystemExit, match=r"has shards already \(00000\.tar\)"):
        run(cfg)


@pytest.fixture
def damaged(folder, manifest):
    """The manifest, with an image gone, one truncated, one that is none, and an empty caption."""
    (folder / "0.jpeg").unlink()
    whole = (folder / "2.jpeg").read_bytes()
    (folder / "2.jpeg").write_bytes(whole[:-50])
    (folder / "4.jpeg").write_text("<html>gone</html>")
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("caption 6", " "), encoding="utf-8")
    return manifest


def test_bad_samples_are_named_and_counted(damaged, tmp_path, capsys):
    cfg = Config(url=str(damaged), out=tmp_path / "out", samples_per_shard=3, on_error="skip")
    for _ in range(2):  # the second run knows from the records
        run(cfg)
        words = capsys.readouterr().out
        assert "3 samples in 3 shards" in words
        assert "4 samples left out" in words
        assert f"line 2: there is no image at {damaged.parent}/photographs/0.jpeg" in words
        assert "photographs/2.jpeg of" in words
        assert "not an image: begins with b'<html>gone</'" in words
        assert "line 8: there is no caption" in words
    # The last row was alone in its shard: readers refuse one without samples.
    assert sorted(tars(cfg.out)) == ["00000.tar", "00001.tar"]
    assert sorted(members(cfg.out / "00000.tar"))[0] == "000000001.jpg"
    assert len(decoded(ShardLister(str(cfg.out)).read_tar())) == 3


def test_bad_samples_end_the_run_unless_told(damaged, tmp_path):
    cfg = Config(url=str(damaged), out=tmp_path / "out", samples_per_shard=3)
    with pytest.raises(SystemExit, match=r"error: photographs/0\.jpeg of .*there is no image at"):
        run(cfg)
    assert tars(cfg.out) == {}
    run(Config(url=str(damaged), out=cfg.out, samples_per_shard=3, on_error="skip"))


def test_without_verify_the_header_is_enough(damaged, tmp_path):
    cfg = Config(url=str(damaged), out=tmp_path / "out", on_error="skip", verify=False)
    run(cfg)
    assert "000000002.jpg" in members(cfg.out / "00000.tar")  # truncated
    assert "000000004.jpg" not in members(cfg.out / "00000.tar")  # no image


def test_nothing_packed_is_an_error(damaged, folder, tmp_path):
    for path in folder.rglob("*.jp*g"):
        path.write_bytes(b"no image")
    with pytest.raises(SystemExit, match="no sample was packed"):
        run(Config(url=str(damaged), out=tmp_path / "out", on_error="skip"))


def test_shards_are_packed_anew(shards, tmp_path):
    out = tmp_path / "out"
    run(Config(url=shards, out=out, samples_per_shard=40))
    assert sorted(tars(out)) == ["00000.tar", "00001.tar", "00002.tar"]
    expected = decoded(ShardLister(shards).read_tar())
    found = decoded(ShardLister(str(out)).read_tar())
    assert len(found) == 95
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
    first = members(out / "00000.tar")
    assert json.loads(first["000000017.json"]) == {"key": "0000"}  # the second shard's first
    assert len(members(out / "00002.tar")) == 3 * 15


def test_a_replaced_shard_is_refused_by_name(make_tar, fields_of, tmp_path):
    url = make_tar([(f"{i}", fields_of(i)) for i in range(3)])
    cfg = Config(url=url, out=tmp_path / "out")
    run(cfg)
    # Of the same sizes, so that its index is the same.
    other = {**fields_of(1), "txt": fields_of(1)["txt"][::-1]}
    make_tar([(f"{i}", other if i == 1 else fields_of(i)) for i in range(3)])
    with pytest.raises(SystemExit, match=r"of .*00000\.tar has changed"):
        run(cfg)


def test_fields_of_a_tar_stay_what_they_are(make_tar, fields_of, tmp_path):
    fields = fields_of(1)
    record = json.dumps({"key": "theirs", "n": [1]}).encode()
    url = make_tar([("a", {**fields, "json": record, "cls": b"7", "seg.png": png(1)})])
    run(Config(url=url, out=tmp_path / "out"))
    inside = members(tmp_path / "out" / "00000.tar")
    assert inside["000000000.cls"] == b"7"
    assert inside["000000000.seg.png"] == png(1)
    assert inside["000000000.txt"] == fields["txt"]
    assert json.loads(inside["000000000.json"]) == {"key": "theirs", "n": [1]}


def test_parquet_with_images_inside_and_several_manifests(tmp_path, make_jpeg):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for part in range(2):
        numbers = range(part * 3, part * 3 + 3)
        rows = {
            "image": [{"bytes": make_jpeg(40, 50, i), "path": f"{i}.jpg"} for i in numbers],
            "text": [f"text {i}" for i in numbers],
            "score": [math.nan if i == 0 else i / 2 for i in numbers],
        }
        pq.write_table(pa.table(rows), tmp_path / f"part{part}.parquet")
    out = tmp_path / "out"
    cfg = Config(url=str(tmp_path / "*.parquet"), out=out, samples_per_shard=4)
    run(cfg)
    run(cfg)
    assert members(out / "00001.tar")["000000005.jpg"] == make_jpeg(40, 50, 5)
    assert json.loads(members(out / "00000.tar")["000000000.json"])["score"] is None
    assert json.loads(members(out / "00000.tar")["000000003.json"])["score"] == 1.5


def test_several_captions_and_chosen_columns(folder, tmp_path):
    path = tmp_path / "more.jsonl"
    row = {"image": "photographs/0.jpeg", "a": " ", "b": "two", "c": "three", "x": 1, "y": 2}
    path.write_text(json.dumps(row))
    cfg = Config(url=str(path), out=tmp_path / "out", caption=["a", "b", "c"], columns=["y"])
    run(cfg)
    inside = members(tmp_path / "out" / "00000.tar")
    assert inside["000000000.txt"] == b"two"
    record = {"key": "photographs/0.jpeg", "captions": ["two", "three"], "y": 2}
    assert json.loads(inside["000000000.json"]) == record


def test_images_without_captions(folder, tmp_path):
    for path in folder.rglob("*.txt"):
        path.unlink()
    run(Config(url=str(folder), out=tmp_path / "none"))
    assert not [n for n in members(tmp_path / "none" / "00000.tar") if n.endswith(".txt")]
    run(Config(url=str(folder), out=tmp_path / "given", caption_default="a photograph"))
    texts = [d for n, d in members(tmp_path / "given/00000.tar").items() if n.endswith(".txt")]
    assert texts == [b"a photograph"] * COUNT


def test_urls_are_fetched(folder, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/pack-test/0.jpeg", (folder / "0.jpeg").read_bytes())
    path = tmp_path / "urls.csv"
    urls = ["memory://pack-test/0.jpeg", "memory://pack-test/none.jpeg"]
    path.write_text("url,caption\n" + "".join(f"{url},text\n" for url in urls))
    run(Config(url=str(path), out=tmp_path / "out", on_error="skip"))
    inside = members(tmp_path / "out" / "00000.tar")
    assert inside["000000000.jpg"] == (folder / "0.jpeg").read_bytes()
    record = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert "there is no file at memory://pack-test/none.jpeg" in record["failed"][0][1]


def test_the_record_counts_for_readers_of_remote_shards(damaged, tmp_path):
    import fsspec

    out = tmp_path / "out"
    run(Config(url=str(damaged), out=out, on_error="skip"))
    memory = fsspec.filesystem("memory")
    for name, data in files(out).items():
        memory.pipe(f"/pack-count/{name}", data)
    assert IndexStore().count("memory://pack-count/00000.tar", fetch=False) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"txt": b"text"}, "has no image; its fields are: txt"),
        ({"image": png(1), "x": b"raw"}, "column 'x' has bytes, which JSON cannot hold"),
        ({"jpg": png(1), "png": png(2)}, "field 'jpg' is a png, and there is a field of that name"),
        ({"image": b"P6 1 1 255 abc"}, "'image' is a PPM image, which has no place"),
        ({"image": png(1), "caption": ["", None]}, "caption is empty: write one"),
    ],
)
def test_what_has_no_place_in_a_shard(fields, words, tmp_path):
    (tmp_path / "png").write_bytes(png(2))
    if isinstance(fields.get("png"), bytes):
        from penstock.pipes import Extent

        fields = {**fields, "png": Extent(str(tmp_path / "png"), 0, len(png(2)))}
    with pytest.raises(DataError, match=words):
        read_members({"__key__": "k", **fields})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "nothing/here.csv"}, "no such manifest or folder|matches no file"),
        ({"url": "nothing/{0..3}.tar", "image": "x"}, "are tar shards, which have no columns"),
        ({"url": "nothing/0.tar"}, "no such shard: .*nothing/0.tar"),
        ({"url": "nothing/*.tar"}, "matches no file"),
    ],
)
def test_an_input_that_is_none_is_one_line(tmp_path, options, words):
    with pytest.raises(SystemExit, match=rf"^error: .*({words})"):
        run(Config(out=tmp_path / "out", **options))


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 4"):
        Config(url="x", out=tmp_path, samples_per_shard=0)


@pytest.mark.slow
def test_under_torchrun(manifest, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    pack(Config(url=str(manifest), out=one, samples_per_shard=2))
    root = Path(recipe.__file__).parents[2]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", recipe.__name__, f"--url={manifest}", f"--out={two}", "--samples_per_shard=2"),
    ]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "7 samples in 4 shards" in done.stdout
    assert files(one) == files(two)
