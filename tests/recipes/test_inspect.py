import json
import sys
import tarfile
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipes import Buckets, ShardLister, bucket_report
from penstock.pipes.decode_image import DecodePolicy
from penstock.pipes.shard_index import ShardIndex
from penstock.recipes.check import check_data
from penstock.recipes.check_copies import CopyCheck, digest_of
from penstock.recipes.check_keys import KeyCheck, name_doubles
from penstock.recipes.check_shards import image_fault
from penstock.recipes.check_sizes import SizeCheck
from penstock.recipes.findings import KINDS, Findings
from penstock.recipes.inspect import Config, main, only_shown
from penstock.recipes.tally import Tally

BUCKETS = Buckets.make(64, step=16)
TALLY = Tally(BUCKETS, 0.1, None, DecodePolicy())


@pytest.fixture
def faulty(make_tar, make_jpeg):
    """The URL of four shards with one of each fault, and what must be said of each."""
    good = {i: {"jpg": make_jpeg(64 + i, 70, i), "txt": b"red, round"} for i in range(9)}
    samples = [(f"k{i}", fields) for i, fields in good.items()]
    samples += [
        ("truncated", {"jpg": make_jpeg(64, 64, 0)[:-300], "txt": b"a"}),
        ("text", {"jpg": b"<script>alert(5)</script>", "txt": b"a"}),
        ("imageless", {"txt": b"a"}),
        ("captionless", {"jpg": make_jpeg(64, 64, 0)}),
        ("blank", {"jpg": make_jpeg(64, 64, 0), "txt": b" \n"}),
        ("latin", {"jpg": make_jpeg(64, 64, 0), "txt": b"caf\xe9"}),
        ("small", {"jpg": make_jpeg(32, 32, 0), "txt": b"a"}),
        ("long", {"jpg": make_jpeg(80, 800, 0), "txt": b"a"}),
    ]
    first = make_tar(samples, "00000.tar")
    make_tar([("k3", good[3]), ("other", good[4])], "00001.tar")
    damaged = make_tar(samples, "00002.tar")
    with open(damaged, "r+b") as file:
        file.truncate(3000)
    url = first.replace("00000", "{00000..00003}")
    return url, {
        "damaged_shard": {"": "byte", " ": "no such shard"},
        "corrupt_image": {"truncated": "field 'jpg'", "text": "not an image"},
        "no_image": {"imageless": "txt"},
        "no_caption": {"captionless": "jpg", "latin": "not UTF-8"},
        "empty_caption": {"blank": "txt"},
        "lone_caption": {},
        "copy": {
            "blank": "the same as captionless of",
            "latin": "the same as captionless of",
            "k3": "the same as k3 of",
            "other": "the same as k4 of",
        },
        "duplicate_key": {"k3": "00001.tar"},
        "refused": {},
        "enlarged": {"small": "32x32: 2.00x to 64x64"},
        "cropped": {"long": "80x800: loses 83% to 48x80"},
    }


def names(report, kind):
    return [e["key"] for e in report["findings"][kind]["examples"]]


def test_every_fault_is_found_counted_and_named(faulty, tmp_path, capsys):
    url, expected = faulty
    out = tmp_path / "out"
    main(Config(url=url, out=out, resolution=64, step=16, batch_size=4))
    report = json.loads((out / "report.json").read_text())
    words = capsys.readouterr().out
    page = (out / "contact_sheet.html").read_text()
    assert list(expected) == list(KINDS) == list(report["findings"])
    for kind, samples in expected.items():
        found = report["findings"][kind]
        assert found["count"] == len(samples), kind
        assert names(report, kind) == [key.strip() for key in samples]
        for example, reason in zip(found["examples"], samples.values(), strict=True):
            assert reason in example["reason"]
            assert example["shard"] in words
            assert example["reason"] in unescape(page)
            assert example["reason"] in words
    assert report["shards"] == {"checked": 4, "all": 4}
    assert report["samples"] == 19
    assert report["faults"] == 8
    assert report["smallest"]["key"] == "small"
    assert (report["largest"]["height"], report["largest"]["width"]) == (80, 800)
    assert report["buckets"]["images"] == 18
    assert "<script" not in page
    assert str(out / "contact_sheet.html") in words
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 1000


def test_an_image_that_may_not_be_enlarged_is_refused(faulty, tmp_path):
    config = Config(url=faulty[0], out=tmp_path, resolution=64, step=16, upscale=False)
    main(config)
    report = json.loads((tmp_path / "report.json").read_text())
    assert names(report, "refused") == ["small"]
    assert report["findings"]["enlarged"]["count"] == 0


def test_without_a_picture_there_is_a_report_all_the_same(make_tar, tmp_path, capsys):
    url = make_tar([("a", {"jpg": b"no", "txt": b"x"}), ("b", {"txt": b"x"})])
    out = tmp_path / "out"
    main(Config(url=url, out=out))
    assert sorted(path.name for path in out.iterdir()) == ["report.json"]
    assert "no contact sheet" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_one_batch_is_that_of_the_training(shards, tmp_path, capsys):
    training = (
        ShardLister(shards, seed=4)
        .read_tar()
        .shuffle(30)
        .bucket_by_aspect_ratio(64, 5, step=16)
        .lanes(2)
        .decode(crop="random", flip=0.5)
    )
    loader = training.loader(epoch_batches=40)
    batches = list(loader)
    state = tmp_path / "state.json"
    state.write_text(json.dumps(loader.state_dict()))
    options = {"resolution": 64, "step": 16, "batch_size": 5, "lanes": 2, "shuffle": 30, "seed": 4}
    for g, saved in ((33, None), (44, state)):
        config = Config(
            url=shards, out=tmp_path, batch=g, state=saved, crop="random", flip=0.5, **options
        )
        main(config)
        expected = batches[g] if g < 40 else loader.batch_at(g)
        lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
        shown = [line for line in lines if len(line) == 3]
        given = (expected[name] for name in ("__url__", "__key__", "caption"))
        assert shown == [list(sample) for sample in zip(*given, strict=True)]
        assert not (tmp_path / "report.json").exists()


def test_a_state_that_comes_after_the_batch_or_of_another_graph_is_refused(shards, tmp_path):
    loader = ShardLister(shards, seed=1).read_tar().batch(4).decode(size=32).loader()
    state = tmp_path / "state.json"
    state.write_text(json.dumps(loader.state_dict()))
    with pytest.raises(SystemExit, match=r"^error: the state is another graph's"):
        main(Config(url=shards, out=tmp_path, batch=3, state=state))
    with pytest.raises(SystemExit, match=r"^error: batches are numbered from 0"):
        main(Config(url=shards, out=tmp_path, batch=-1))


def test_the_graph_may_be_the_users_own(shards, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_training.py").write_text(
        "from penstock.pipes import ShardLister\n"
        "def build(url):\n"
        "    pipe = ShardLister(url, seed=9).read_tar()\n"
        "    return pipe.filter_size(min_side=60).batch(3).decode(size=40)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    main(Config(url=shards, out=out, graph="my_training:build", batch=2))
    sys.modules.pop("my_training")
    pipe = ShardLister(shards, seed=9).read_tar().filter_size(min_side=60).batch(3).decode(size=40)
    expected = pipe.loader(epoch_batches=9).batch_at(2)
    words = capsys.readouterr().out
    assert all(key in words for key in expected["caption"])
    main(Config(url=shards, out=out, graph="my_training:build", batches=2, limit=5))
    sys.modules.pop("my_training")
    assert json.loads((out / "report.json").read_text())["samples"] == 5


def test_limit_takes_few_shards_and_shows_only_those(shards, tmp_path):
    main(Config(url=shards, out=tmp_path, limit=20, resolution=64, step=16))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == 20
    assert report["shards"]["checked"] < report["shards"]["all"] == 6
    assert report["buckets"]["images"] == 20


def test_a_wrong_url_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*matches no file"):
        main(Config(url=str(tmp_path / "*.tar"), out=tmp_path))


def test_a_named_caption(make_tar, make_jpeg):
    image = make_jpeg(64, 64, 0)
    url = make_tar(
        [
            ("a", {"jpg": image, "json": b'{"text": "x"}'}),
            ("b", {"jpg": image, "json": b'{"text": ""}'}),
            ("c", {"jpg": image, "json": b"{}"}),
            ("d", {"jpg": image, "txt": b"y"}),
        ]
    )
    found = check_data([url], [], BUCKETS, caption="json.text").findings
    assert [e.key for e in found.examples["empty_caption"]] == ["b"]
    assert [e.key for e in found.examples["no_caption"]] == ["c", "d"]


def test_more_samples_than_are_decoded_at_once(make_tar, make_jpeg, monkeypatch):
    monkeypatch.setattr("penstock.recipes.check_shards.AT_ONCE", 4)
    image = make_jpeg(20, 20, 0)
    bad = (3, 4, 10)
    samples = [(f"{i}", {"jpg": image[:40] if i in bad else image}) for i in range(11)]
    found = check_data([make_tar(samples)], [], BUCKETS, threads=3).findings
    assert [e.key for e in found.examples["corrupt_image"]] == ["3", "4", "10"]
    assert found.counts["no_caption"] == 11
    assert len(found.examples["no_caption"]) == 5


def test_a_shard_that_shrinks_under_the_check_is_corrupt_and_no_crash(make_tar, fields_of):
    url = make_tar([(f"{i}", fields_of(i)) for i in range(3)])
    check_data([url], [], BUCKETS)
    with tarfile.open(url) as tar:
        end = tar.getmembers()[2].offset_data + 5
    index = ShardIndex.build([("a", [("jpg", end - 5, 400)])])
    with open(url, "r+b") as file:
        file.truncate(end)
    with open(url, "rb") as file:
        _, (kind, reason) = image_fault(TALLY, file.fileno(), index, 0)
    assert kind == "corrupt_image"
    assert "jpg" in reason


def test_sizes_add_up_over_shards():
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 300, (n, 2)) for n in (5, 0, 40, 1)]
    buckets = Buckets.make(64, step=16, upscale=1.5)
    sizes[2][3] = -1  # unreadable
    sizes[2][4] = 0  # no image
    check = SizeCheck(buckets, Findings(), crop_share=0.1)
    for number, some in enumerate(sizes):
        check.add(some, lambda i, shard=number: (f"{shard}.tar", f"{i}"))
    everything = np.concatenate(sizes)
    whole = bucket_report(buckets, everything[(everything != 0).all(axis=1)])
    assert (check.report.images, check.report.refused) == (45, whole.refused)
    assert check.report.unreadable == 1
    rows, expected_rows = (*check.report.rows, check.report.total), (*whole.rows, whole.total)
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row.images == expected.images
        assert row.enlarged == expected.enlarged
        assert row.enlargement == expected.enlargement
        assert row.cropped == pytest.approx(expected.cropped)
        assert row.aspect_error == pytest.approx(expected.aspect_error)
    assert check.findings.counts["enlarged"] == whole.total.enlarged
    assert check.findings.counts["refused"] == whole.refused
    areas = everything[(everything > 0).all(axis=1)].prod(axis=1)
    assert check.smallest.height * check.smallest.width == areas.min()
    assert check.largest.height * check.largest.width == areas.max()


def test_keys():
    shards = [("0.tar", ["a", "b", "c"]), ("1.tar", ["b", "d"]), ("2.tar", ["c", "b", "é"])]
    check = KeyCheck()
    for _, keys in shards:
        check.add(keys)
    doubles = check.doubles()
    assert len(doubles) == 2
    assert check.complete
    assert list(name_doubles(doubles, shards, 5)) == [
        ("b", ["0.tar", "1.tar"]),
        ("c", ["0.tar", "2.tar"]),
    ]
    assert list(name_doubles(doubles, shards, 1)) == [("b", ["0.tar", "1.tar"])]
    few = KeyCheck(most=4)
    for _, keys in shards:
        few.add(keys)
    assert (few.compared, few.complete, len(few.doubles())) == (4, False, 1)
    assert len(KeyCheck().doubles()) == 0


def test_copies():
    check = CopyCheck(most=9)
    for image in (b"a", b"b", None, b"a", None, b"c", b"b", b"a", b"d", b"d"):
        check.add(0 if image is None else digest_of(image))
    assert check.copies().tolist() == [[3, 0], [6, 1], [7, 0]]
    assert CopyCheck().copies().tolist() == []


def test_what_is_shown_of_a_sample():
    sample = {"image": torch.zeros(1), "caption": "a", "json": {}, "flipped": True}
    assert list(only_shown(sample)) == ["image", "caption"]
