"""Caches that are filled beforehand: what training asks for is there, and nothing is made twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from penstock.pipes import EntryStore
from penstock.recipes import cache as recipe
from penstock.recipes.cache import Config, fill, main
from penstock.recipes.image_data import ImageData
from penstock.recipes.tiny_flux import write_tiny_flux
from penstock.transforms import LatentCache, TextCache

COUNT = 9
KINDS = ("latents", "clip", "t5")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny_flux(tmp_path_factory.mktemp("made") / "tiny"))


@pytest.fixture
def folder(tmp_path, make_jpeg):
    """Nine images of several shapes with captions of four parts."""
    root = tmp_path / "photographs"
    root.mkdir()
    for i in range(COUNT):
        (root / f"{i}.jpg").write_bytes(make_jpeg(50 + 13 * (i % 3), 64, i))
        (root / f"{i}.txt").write_text(f"sample {i}, red, round, large")
    return root


@pytest.fixture
def config(folder, tiny, tmp_path):
    data = ImageData(
        url=str(folder),
        resolution=32,
        crop="random",
        crop_variants=2,
        flip=0.5,
        shuffle_caption=0.5,
        caption_variants=3,
        drop_caption=0.2,
        validation=0.3,
    )
    return Config(
        data=data,
        model=tiny,
        out=tmp_path / "cache",
        dtype="float32",
        precision="float32",
        num_workers=0,
        device="cpu",
    )


def made(done):
    return {name: filled.made for name, filled in done.items()}


def counts(out):
    return {name: EntryStore(out / name).sizes()[0] for name in KINDS}


def test_training_finds_every_entry_without_the_models(config):
    done = fill(config)
    # 6 images with two crops, mirrored or not, and 3 of the validation split as they are.
    assert done["latents"].made == 6 * 4 + 3
    # Of 6 captions: as it is, and three shuffles; 3 as they are; and the empty one.
    assert done["t5"].made == done["clip"].made <= 6 * 4 + 3 + 1
    latents = LatentCache(EntryStore(config.out / "latents"), None)
    texts = {name: TextCache(EntryStore(config.out / name), None, name=name) for name in KINDS[1:]}
    for split, passes in (("train", 12), ("validation", 1)):
        order = config.data.batches(2, split, repeat=split == "train")
        pipe = config.data.decoded(order, latents=latents, augment=split == "train")
        pipe = pipe.transform(texts["clip"].lookup).transform(texts["t5"].lookup)
        loader = pipe.loader(epoch_batches=4 * passes if split == "train" else None)
        fills = (latents.fill, texts["clip"].fill, texts["t5"].fill)
        captions = []
        for batch in loader.on_device("cpu", *fills):
            captions += batch["caption"]
            assert "image" not in batch  # nothing was decoded
            assert batch["latents"].shape[1] == 16
            assert batch["t5_embeds"].shape == (len(batch["caption"]), 512, 32)
        assert captions
        assert ("" in captions) == (split == "train")
    assert latents.misses == texts["t5"].misses == 0


def test_what_is_there_is_not_made_again_and_what_changes_is(config, folder):
    fill(config)
    before = counts(config.out)
    assert set(made(fill(config)).values()) == {0}
    (folder / "0.txt").write_text("another caption")
    done = fill(config)
    assert made(done)["latents"] == 0
    assert made(done)["t5"] == made(done)["clip"] == 1
    shutil.copy(folder / "1.jpg", folder / "2.jpg")
    done = fill(replace(config, data=replace(config.data, drop_caption=0.0)))
    assert done["latents"].made in (1, 4)  # crops are the sample's own; one where it is held out
    assert made(done)["t5"] == 0
    fill(replace(config, data=replace(config.data, resolution=48)), 0, 1)
    assert counts(config.out)["latents"] > before["latents"]


def test_two_processes_share_the_work(config):
    config = replace(config, batch_size=2)
    alone = fill(replace(config, out=config.out / "alone"))
    parts = [fill(config, rank, 2) for rank in range(2)]
    for name in KINDS:
        assert sum(part[name].made for part in parts) == alone[name].made
        one, two = (EntryStore(out / name) for out in (config.out, config.out / "alone"))
        assert set(one.names()) == set(two.names())
    assert all(part["latents"].made for part in parts)


@pytest.mark.parametrize("kept", ["float8", "ids"])
def test_smaller_texts(config, kept, capsys):
    config = replace(config, texts=kept, latents="none")
    main(config)
    out = capsys.readouterr().out
    assert ("float8 loses" in out) == (kept == "float8")
    full = replace(config, texts="full", out=config.out / "full")
    fill(full)
    sizes = [EntryStore(c.out / "t5").sizes() for c in (config, full)]
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1] / 2


def test_prune_drops_what_was_not_asked_for(config, capsys):
    fill(config)
    smaller = replace(config.data, flip=0.0, crop="center", shuffle_caption=0.0)
    main(replace(config, data=smaller, prune=True))
    assert "entries dropped" in capsys.readouterr().out
    assert counts(config.out) == {"latents": COUNT, "clip": COUNT + 1, "t5": COUNT + 1}
    assert set(made(fill(replace(config, data=smaller))).values()) == {0}


def test_an_image_that_cannot_be_read(config, folder, capsys):
    (folder / "3.jpg").write_bytes((folder / "3.jpg").read_bytes()[:400])
    with pytest.raises(SystemExit, match=r"error: .*3.*truncated|error: .*3\.jpg"):
        main(config)
    main(replace(config, on_error="skip"))
    assert "could not be read" in capsys.readouterr().out
    assert "3" in (config.out / "unread-00000.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "nowhere/at/all"}, "nowhere"),
        ({"data": {"url": "no_such_folder"}}, "no_such_folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(config, change, says):
    if "data" in change:
        change = {"data": replace(config.data, **change["data"])}
    with pytest.raises(SystemExit, match=f"error: .*{says}"):
        main(replace(config, **change))
    assert not config.out.exists()


def test_nothing_to_compute_is_refused(config):
    with pytest.raises(ValueError, match="nothing to compute"):
        replace(config, latents="none", texts="none")


@pytest.mark.slow
def test_killed_under_two_processes(config, tmp_path):
    """SIGKILL loses no entry that was written, and leaves no work to be done twice."""
    argv = [
        *(sys.executable, "-m", "penstock.recipes.cache", "--data.url", config.data.url),
        *("--data.resolution", "32", "--data.crop", "random", "--data.crop_variants", "16"),
        *("--data.flip", "0.5", "--model", config.model, "--out", str(config.out)),
        *("--dtype", "float32", "--precision", "float32", "--batch_size", "1"),
        *("--num_workers", "0", "--device", "cpu"),
    ]
    chance, seen, lives = random.Random(3), 0, 0
    while True:
        ranks = start(argv, tmp_path, lives)
        lives += 1
        if lives <= 2:
            wait_for_entries(config.out / "latents", seen + chance.randrange(20, 60), ranks)
            for rank in ranks:
                rank.send_signal(signal.SIGKILL)
            for rank in ranks:
                rank.wait()
            store = EntryStore(config.out / "latents")
            there = sum(store.read(name) is not None for name in store.names())
            assert there >= seen + 20
            assert not store.check()
            seen = there
            continue
        assert [rank.wait(120) for rank in ranks] == [0, 0]
        break
    said = (tmp_path / f"life{lives - 1}-0").read_text()
    assert f"{COUNT * 32:,} entries" in said
    assert f"{COUNT * 32 - seen:,} computed" in said  # what was written is not made again
    assert f"{seen:,} were there" in said


def start(argv, folder, life):
    """Start two processes as torchrun does; they meet over gloo at the end."""
    port = free_port()
    ranks = []
    for rank in range(2):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        with open(folder / f"life{life}-{rank}", "w") as out:
            ranks.append(subprocess.Popen(argv, env=env, stdout=out, stderr=subprocess.STDOUT))
    return ranks


def wait_for_entries(folder, count, ranks):
    for _ in range(6000):
        if EntryStore(folder).sizes()[0] >= count:
            return
        assert all(rank.poll() is None for rank in ranks), "it ended before it was killed"
        time.sleep(0.02)
    raise AssertionError("no entries came")


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_estimate_is_said(config, capsys):
    main(replace(config, batch_size=1))
    said = capsys.readouterr()
    assert "entries of" in said.err
    assert "were there" in said.out
    assert recipe.Config.__doc__ in ("Compute latents and text embeddings once, before training.",)


def test_latents_alone_and_the_mean(config):
    done = fill(replace(config, texts="none", latents="mean"))
    assert set(done) == {"latents"}
    store = EntryStore(config.out / "latents")
    entry = store.read(next(iter(store.names())))
    assert set(entry) == {"mean"}
    assert entry["mean"].dtype == torch.float32
