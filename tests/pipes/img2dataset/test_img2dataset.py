"""Shards made by the real img2dataset, streamed from S3: all that was fetched, exactly, anywhere.

A web server has cuts of photographs; img2dataset fetches them into shards; these lie on a real S3
server; runs over them are killed and go on elsewhere.
"""

import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import tarfile
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from penstock.pipes import ShardLister
from penstock.pipes.verify import fingerprints
from penstock.recipes import inspect
from penstock.recipes._cli import cli

fork = multiprocessing.get_context("fork")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*half-filled buckets"),
]
BATCH = 4
COUNT = 40
"""Batches that runs are compared over: more than two passes."""


@pytest.fixture
def remote(s3, crawl):
    """All that img2dataset has written, on S3."""
    for path in crawl.folder.iterdir():
        s3.put(path.name, path.read_bytes())
    return s3.url(crawl.shards)


def order(urls, by, repeat=True, **how):
    pipe = ShardLister(urls, seed=11, **how).read_tar().shuffle(25)
    return pipe.bucket_by_aspect_ratio(96, BATCH, step=32).lanes(3, by, repeat)


def graph(urls, by, **how):
    pipe = order(urls, by, **how).decode(crop="random", flip=0.5, caption_default="none")
    return pipe.shuffle_caption(keep=1).drop_caption(parts=0.1, keep=1, p=0)


def load(pipe, workers=0):
    context = "fork" if workers else None
    return pipe.loader(workers, epoch_batches=17, multiprocessing_context=context)


def prints(batch):
    return fingerprints({k: v for k, v in batch.items() if k != "__url__"})


@pytest.fixture(scope="module")
def expected(crawl):
    """Return a function that gives the batches' prints of a whole run over local shards."""
    runs = {}

    def run(by):
        if by not in runs:
            loader, found = load(graph(str(crawl.folder / crawl.shards), by)), []
            while len(found) < COUNT:
                found += [prints(batch) for batch in loader]
            runs[by] = found[:COUNT]
        return runs[by]

    return run


def test_img2dataset_has_written_what_it_writes_in_real_life(crawl):
    """Failures of all kinds, an empty shard, keys in no order: else this file would test little."""
    from pyarrow import parquet

    statuses, words, in_order, sizes = Counter(), Counter(), [], []
    for i in range(6):
        stats = json.loads((crawl.folder / f"{i:05d}_stats.json").read_text())
        words += Counter(stats["status_dict"])
        rows = parquet.read_table(crawl.folder / f"{i:05d}.parquet").to_pylist()
        statuses += Counter(row["status"] for row in rows)
        with tarfile.open(crawl.folder / f"{i:05d}.tar") as tar:
            names = tar.getnames()
        keys = [name.removesuffix(".jpg") for name in names if name.endswith(".jpg")]
        members = [f"{key}.{kind}" for key in keys for kind in ("jpg", "json", "txt")]
        assert sorted(names) == sorted(members)
        assert stats["successes"] == len(keys)
        sizes.append(len(keys))
        in_order.append(keys == sorted(keys))
    assert statuses == {"success": len(crawl.good), "failed_to_download": 19, "failed_to_resize": 3}
    assert words["HTTP Error 404: Not Found"] == 17
    assert words["Image decoding error"] == 2
    assert words["image too small"] == 1
    assert sizes[4] == 0
    assert min(sizes[:4] + sizes[5:]) > 10
    assert not all(in_order[:4] + in_order[5:])


def test_shards_are_found_among_what_lies_beside_them(s3, remote, crawl):
    names = [s3.url(f"{i:05d}.tar") for i in range(6)]
    for urls in (remote, s3.url(""), s3.url("*.tar")):
        assert ShardLister(urls, storage_options=s3.options).urls == names
    local = [str(crawl.folder / f"{i:05d}.tar") for i in range(6)]
    assert ShardLister(crawl.folder).urls == local


def test_samples_are_counted_by_the_statistics_alone(s3, remote, crawl):
    loader = order(remote, "samples", storage_options=s3.options).load().loader()
    assert len(loader) == len(crawl.good) // BATCH
    assert not any(s3.gets(f"{i:05d}.tar") for i in range(6))


@pytest.mark.parametrize("by", ["samples", "shards"])
def test_every_image_comes_once_with_its_own_caption(by, s3, remote, crawl):
    pipe = graph(remote, by, repeat=False, storage_options=s3.options)
    loader = pipe.loader(2, multiprocessing_context="fork")
    numbers = []
    for batch in loader:
        for i, record in enumerate(batch["json"]):
            page = crawl.good[record["number"]]
            numbers.append(page.number)
            caption = batch["caption"][i]
            if page.caption is None:
                assert caption == "none"
            else:
                first, *parts = caption.split(", ")
                assert first == f"number {page.number}"
                assert set(parts) <= set(page.caption.split(", ")[1:])
            assert record["key"] == batch["__key__"][i] == page.key
            assert tuple(batch["original_size"][i].tolist()) == page.pixels.shape[:2]
            shown = batch["image"][i].permute(1, 2, 0).numpy().astype(float)
            how = batch["crop_top_left"][i], batch["flipped"][i]
            served = cut_again(page, *how, *shown.shape[:2])
            assert np.abs(in_blocks(shown) - in_blocks(served)).mean() < 4, page
    loader.close()
    assert sorted(numbers) == sorted(crawl.good)


def cut_again(page, top_left, flipped, height, width):
    """Return the part of a page's image that a batch's must show, float [H, W, 3]."""
    image = Image.fromarray(page.pixels)
    if flipped:
        image = ImageOps.mirror(image)
    scale = max(height / image.height, width / image.width)
    top, left = (at / scale for at in top_left.tolist())
    box = left, top, left + width / scale, top + height / scale
    box = np.clip(box, 0, image.size * 2)  # the top left corner is rounded
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, tuple(box)), float)


def in_blocks(pixels):
    """Return the means of blocks of 8 x 8 pixels: half a pixel's shift hardly changes them."""
    height, width, _ = pixels.shape
    return pixels.reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3))


def test_bytes_and_records_are_what_was_served(s3, remote, crawl):
    pipe = order(remote, "samples", repeat=False, storage_options=s3.options).load()
    samples = {}
    for batch in pipe.loader():
        for data, text, record in zip(batch["jpg"], batch["txt"], batch["json"], strict=True):
            record = json.loads(record)
            samples[record["number"]] = record
            page = crawl.good[record["number"]]
            assert text.decode() == (page.caption or "")
            assert record["sha256"] == hashlib.sha256(page.body).hexdigest()
            assert record["similarity"] == 0.25 + page.number / 1000
            assert record["url"].endswith(f"/old/{page.number}")
            assert (record["status"], record["error_message"]) == ("success", None)
            if page.body.startswith(b"\xff\xd8"):
                assert data == page.body
            with Image.open(io.BytesIO(data)) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), float)
            assert np.abs(pixels - page.pixels).mean() < 5
    assert samples.keys() == crawl.good.keys()


def train(pipe, folder, life, workers, most):
    """Log every batch and save a checkpoint after every second, in a process group of its own.

    After batch ``most`` it waits to be killed, so that none ends before it is.
    """
    os.setpgrp()
    os.environ["PENSTOCK_CACHE"] = str(folder / f"cache{life}")  # another machine: it has nothing
    loader = load(pipe, workers)
    checkpoint = folder / "state"
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    with open(folder / f"log{life}", "a") as log:
        while loader.position < COUNT:
            for batch in loader:
                log.write(json.dumps([batch["__batch__"], prints(batch)]) + "\n")
                log.flush()
                if loader.position % 2 == 0:
                    (folder / "new").write_text(json.dumps(loader.state_dict()))
                    (folder / "new").rename(checkpoint)
                if loader.position == most:
                    time.sleep(600)
                if loader.position >= COUNT:
                    break
    loader.close()


def logged(folder, life):
    path = folder / f"log{life}"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [tuple(json.loads(line)) for line in lines]


@pytest.mark.parametrize("by", ["samples", "shards"])
def test_runs_that_are_killed_and_go_on_elsewhere_are_bit_identical(
    by, s3, remote, expected, tmp_path
):
    whole, seen = expected(by), set()
    chance = random.Random(by)
    s3.fail(lambda method, path, start: ("slow", 0.05) if method == "GET" else None)
    pipe = graph(remote, by, storage_options=s3.options)
    # Workers, and batches to wait for: some are killed before the first, in the midst of fetching.
    plan = ((2, 0), (0, 3), (1, 0), (3, 9), (0, 4), (2, COUNT))
    for life, (workers, due) in enumerate(plan):
        last = life == len(plan) - 1
        saved = tmp_path / "state"
        position = json.loads(saved.read_text())["position"] if saved.exists() else 0
        args = (pipe, tmp_path, life, workers, position + due + 4)
        process = fork.Process(target=train, args=args)
        process.start()
        if not last:
            deadline = time.monotonic() + 60
            while len(logged(tmp_path, life)) < due and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(chance.random() * (0.02 if due else 0.4))
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has not made its group yet
                process.kill()
        process.join(120)
        assert process.exitcode == (0 if last else -signal.SIGKILL)
        found = logged(tmp_path, life)
        for k, (g, batch) in enumerate(found):
            assert g == position + k
            assert batch == whole[g], f"batch {g}"
            seen.add(g)
    assert seen == set(range(COUNT))
    assert position >= 10  # it went on, and did not begin anew
    assert any((tmp_path / f"cache{life}" / "shards").iterdir())


def test_inspect_finds_the_data_sound(crawl, tmp_path, capsys):
    options = ["--url", str(crawl.folder), "--out", str(tmp_path), "--resolution", "96"]
    inspect.main(cli(inspect.Config, [*options, "--step", "32", "--batch_size", "4"]))
    report = json.loads((tmp_path / "report.json").read_text())
    counts = {kind: found["count"] for kind, found in report["findings"].items()}
    assert report["samples"] == len(crawl.good)
    assert report["shards"] == {"checked": 6, "all": 6}
    assert report["faults"] == counts["empty_caption"] == 1
    assert report["findings"]["empty_caption"]["examples"][0]["key"] == crawl.pages[45].key
    areas = [page.pixels.shape[0] * page.pixels.shape[1] for page in crawl.good.values()]
    found = report["smallest"], report["largest"]
    extremes = [extreme["height"] * extreme["width"] for extreme in found]
    assert extremes == [min(areas), max(areas)]
    assert (tmp_path / "contact_sheet.html").exists()
    assert f"{len(crawl.good)} samples in 6 of 6 shards" in capsys.readouterr().out
