import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.pipes.draws import Draws
from penstock.pipes.sample import Ref
from penstock.recipes import make_shapes
from penstock.recipes._cli import cli
from penstock.recipes.make_shapes import (
    COLOURS,
    PLACES,
    SCALES,
    SHAPES,
    Config,
    Scene,
    draw_scene,
    draw_shape,
    draw_size,
    main,
    shape_samples,
    write_shards,
)


def share_of(picture, scene):
    """Return which pixels are nearer to the shape's colour than to the background's, [H, W]."""
    pixels = np.asarray(picture, dtype=float)
    near, far = (np.array(COLOURS[name], float) for name in (scene.colour, scene.background))
    return np.abs(pixels - near).sum(-1) < np.abs(pixels - far).sum(-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", PLACES)
def test_the_shape_is_where_the_caption_says(shape, place):
    scene = Scene(shape, "white", "black", place, "large")
    picture = draw_shape(scene, (90, 160))
    assert picture.size == (160, 90)
    y, x = np.nonzero(share_of(picture, scene))
    centre = (y.min() + y.max() + 1) / 2 / 90, (x.min() + x.max() + 1) / 2 / 160
    assert centre == pytest.approx(PLACES[place], abs=0.06)


def test_scales_are_of_the_shorter_side():
    for scale, share in SCALES.items():
        scene = Scene("square", "red", "white", scale=scale)
        for size in ((300, 200), (200, 300)):
            inside = share_of(draw_shape(scene, size), scene)
            assert inside.any(axis=0).sum() == inside.any(axis=1).sum() == round(share * 200)


def test_shapes_differ_in_area_as_they_should():
    area = {}
    for shape in SHAPES:
        scene = Scene(shape, "white", "black", scale="large")
        inside = share_of(draw_shape(scene, (500, 500)), scene)
        area[shape] = inside.sum() / 230**2
    assert area["square"] == pytest.approx(1, abs=0.01)
    assert area["circle"] == pytest.approx(np.pi / 4, abs=0.01)
    assert area["diamond"] == pytest.approx(0.5, abs=0.01)
    assert area["triangle"] == pytest.approx(3 * 3**0.5 / 16, abs=0.01)
    assert area["hexagon"] == pytest.approx(3 * 3**0.5 / 8, abs=0.01)
    assert area["star"] < area["ring"] < area["pentagon"] < area["circle"]


def test_edges_are_antialiased():
    picture = draw_shape(Scene("circle", "white", "black"), (100, 100))
    assert len(picture.getcolors()) > 10


def test_captions():
    scene = Scene("circle", "red", "orange", "at the top left", "large")
    assert scene.caption == "a large red circle, on an orange background, at the top left"
    for i in range(200):
        scene = draw_scene(Draws(0, Ref(0, 0, i)))
        assert scene.colour != scene.background


def test_sizes_are_many_and_bounded():
    sizes = [draw_size(Draws(0, Ref(0, 0, i))) for i in range(500)]
    ratios = [h / w for h, w in sizes]
    assert len(set(sizes)) > 400
    assert min(ratios) < 0.5 < 2 < max(ratios) < 2.6
    assert all(150 < (h * w) ** 0.5 < 650 for h, w in sizes)


def test_samples_are_what_they_say_and_reproducible():
    samples = list(shape_samples(40, seed=3))
    assert samples == list(shape_samples(40, seed=3))
    assert samples[:5] == list(shape_samples(5, seed=3))
    assert samples[0] != next(shape_samples(1, seed=4))
    kinds = set()
    for i, sample in enumerate(samples):
        assert sample["__key__"] == f"{i:06d}"
        (kind,) = sample.keys() & {"jpg", "png"}
        kinds.add(kind)
        with Image.open(io.BytesIO(sample[kind])) as picture:
            size = picture.size
            assert picture.format == {"jpg": "JPEG", "png": "PNG"}[kind]
        record = json.loads(sample["json"])
        assert (record["width"], record["height"]) == size
        assert record["caption"].encode() == sample["txt"]
    assert kinds == {"jpg", "png"}
    assert all("jpg" in sample for sample in shape_samples(9, image_format="jpg"))


def test_sizes_can_be_given():
    sizes = {(20, 30), (40, 10)}
    records = [json.loads(s["json"]) for s in shape_samples(20, sizes=sorted(sizes))]
    assert {(r["height"], r["width"]) for r in records} == sizes


def test_main_writes_shards(tmp_path, capsys):
    out = tmp_path / "50% off"
    main(Config(out=out, count=7, samples_per_shard=3))
    assert [p.name for p in sorted(out.iterdir())] == ["00000.tar", "00001.tar", "00002.tar"]
    assert str(out / "00000.tar") in capsys.readouterr().out
    keys = []
    for path in sorted(out.iterdir()):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            keys.append(sorted({name.split(".")[0] for name in names}))
    assert keys == [[f"{i:06d}" for i in k] for k in (range(3), range(3, 6), range(6, 7))]


def test_shards_are_reproducible_and_readable_by_webdataset(tmp_path):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    first, second = (
        write_shards(shape_samples(5), tmp_path / name, samples_per_shard=9) for name in "ab"
    )
    assert first[0].read_bytes() == second[0].read_bytes()
    with first[0].open("rb") as tar:
        source = {"stream": tar, "url": "00000.tar"}
        read = list(group_by_keys(tar_file_expander([source])))
    for sample, expected in zip(read, shape_samples(5), strict=True):
        assert {k: sample[k] for k in expected} == expected


def test_existing_shards_are_kept_unless_told(tmp_path):
    write_shards(shape_samples(4), tmp_path, samples_per_shard=1)
    (tmp_path / "other.tar").touch()
    with pytest.raises(FileExistsError, match=r"00000\.tar"):
        write_shards(shape_samples(1), tmp_path, samples_per_shard=1)
    assert len(list(tmp_path.iterdir())) == 5
    write_shards(shape_samples(1), tmp_path, samples_per_shard=1, prefix="more-")
    write_shards(shape_samples(1), tmp_path, samples_per_shard=1, overwrite=True)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["00000.tar", "more-00000.tar", "other.tar"]


def test_an_interrupted_run_leaves_no_broken_shard(tmp_path):
    def failing():
        yield from shape_samples(5)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(failing(), tmp_path, samples_per_shard=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.tar", "00001.tar"]


@pytest.mark.parametrize(("count", "per_shard"), [(0, 5), (5, 0)])
def test_nothing_to_write_is_an_error(tmp_path, count, per_shard):
    with pytest.raises(ValueError, match=r"no samples|at least 1"):
        write_shards(shape_samples(count), tmp_path, samples_per_shard=per_shard)
    assert list(tmp_path.iterdir()) == []


def test_missing_webdataset_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ModuleNotFoundError, match="pip install webdataset"):
        write_shards(shape_samples(1), tmp_path, samples_per_shard=1)


def test_command_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("count: 9\nseed: 4\n")
    argv = [f"--config={path}", f"--out={tmp_path}", "--seed=5", "--image_format=png"]
    expected = Config(out=tmp_path, count=9, seed=5, image_format="png")
    assert cli(Config, argv) == expected
    with pytest.raises(SystemExit):
        cli(Config, [*argv, "--image_format=gif"])


@dataclass(frozen=True, kw_only=True)
class Even:
    """Refuses odd counts."""

    count: int
    """An even number."""

    def __post_init__(self):
        if self.count % 2:
            raise ValueError("count must be even")


def test_a_config_that_refuses_is_one_line():
    assert cli(Even, ["--count=2"]) == Even(count=2)
    with pytest.raises(SystemExit, match=r"^error: .*count must be even$"):
        cli(Even, ["--count=3"])


@pytest.mark.slow
def test_it_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", make_shapes.__name__, "--out", str(tmp_path), "--count", "2"]
    root = Path(make_shapes.__file__).parents[2]  # where `penstock` is
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "00000.tar").is_file()
    assert str(tmp_path) in done.stdout
