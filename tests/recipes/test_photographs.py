import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from penstock.pipes.draws import Draws
from penstock.pipes.sample import Ref
from penstock.recipes import photographs
from penstock.recipes.photographs import (
    CAPTIONS,
    Config,
    cut_box,
    find_photographs,
    main,
    photograph_samples,
)


def test_photographs_are_found_where_they_are_installed():
    found = find_photographs()
    assert {path.name for path in found} <= {name.split("/")[-1] for _, name in CAPTIONS}
    assert {"astronaut.png", "china.jpg"} <= {path.name for path in found}
    assert all("," in caption for caption in found.values())


def test_without_the_packages_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(photographs, "CAPTIONS", {("no_such_package_here", "a.png"): "a"})
    with pytest.raises(FileNotFoundError, match="pip install scikit-image scikit-learn"):
        find_photographs()


def test_only_files_that_are_present_are_taken(monkeypatch):
    captions = {("skimage", "data/astronaut.png"): "a", ("skimage", "data/no.png"): "b"}
    monkeypatch.setattr(photographs, "CAPTIONS", captions)
    assert [path.name for path in find_photographs()] == ["astronaut.png"]


@pytest.mark.parametrize(("height", "width"), [(300, 451), (1411, 1411), (150, 900)])
def test_cuts_lie_inside_and_are_large_enough(height, width):
    boxes = [cut_box(height, width, Draws(0, Ref(0, 0, i))) for i in range(400)]
    assert all(0 <= left < right <= width for left, _, right, _ in boxes)
    assert all(0 <= top < bottom <= height for _, top, _, bottom in boxes)
    assert min(b - t for _, t, _, b in boxes) >= min(200, height)
    assert min(r - l for l, _, r, _ in boxes) >= min(200, width)  # noqa: E741
    assert 20 < boxes.count((0, 0, width, height)) < 90
    assert len(set(boxes)) > 200


def test_samples_are_cuts_of_what_they_say():
    samples = list(photograph_samples(24, seed=1))
    assert samples[:6] == list(photograph_samples(6, seed=1))
    paths = {path.name: path for path in find_photographs()}
    for i, sample in enumerate(samples):
        assert sample["__key__"] == f"{i:06d}"
        record = json.loads(sample["json"])
        left, top, right, bottom = record["box"]
        assert (record["height"], record["width"]) == (bottom - top, right - left)
        path = paths[record["source"]]
        assert sample["txt"].decode().startswith(find_photographs()[path])
        with Image.open(path) as whole, Image.open(io.BytesIO(sample["jpg"])) as cut:
            expected = np.asarray(whole.convert("RGB").crop(record["box"]), float)
            error = np.abs(np.asarray(cut, float) - expected).mean()
        assert error < 8
    formats = {sample["txt"].decode().split(", ")[-1] for sample in samples}
    assert formats == {"wide format", "upright format", "square format"}


def test_main_writes_shards(tmp_path, capsys):
    main(Config(out=tmp_path, count=5, samples_per_shard=3))
    with tarfile.open(tmp_path / "00001.tar") as tar:
        assert sorted(tar.getnames()) == [
            f"{i:06d}.{kind}" for i in (3, 4) for kind in ("jpg", "json", "txt")
        ]
    assert str(tmp_path) in capsys.readouterr().out
