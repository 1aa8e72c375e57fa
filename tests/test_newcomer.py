"""A newcomer's folder of photographs, with captions and without: looked at, then batched."""

import json

import pytest

from penstock.pipes import text_to_image_dataset
from penstock.recipes.inspect import look
from penstock.recipes.make_shapes import shape_samples


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Stand beside a folder of nine photographs, each with a caption, in folders of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    for i, sample in enumerate(shape_samples(9, image_format="jpg")):
        path = tmp_path / "photographs" / f"{2020 + i % 3}" / f"IMG {i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample["jpg"])
        path.with_suffix(".txt").write_bytes(sample["txt"])
    return tmp_path / "photographs"


def report(folder="looked_at"):
    with open(f"{folder}/report.json", encoding="utf-8") as file:
        return json.load(file)


@pytest.mark.slow
def test_with_captions(photographs, capsys):
    look("photographs", "looked_at")
    pipe = text_to_image_dataset("photographs", batch_size=4)
    batches = list(pipe.loader(num_workers=2))
    assert [len(batch["caption"]) for batch in batches] == [4, 4]
    texts = {path.read_text() for path in photographs.rglob("*.txt")}
    assert {caption for batch in batches for caption in batch["caption"]} <= texts
    assert report()["samples"] == 9
    assert report()["faults"] == 0
    assert "9 of 9 rows" in capsys.readouterr().out
    assert "IMG 3.jpg" in (photographs.parent / "looked_at" / "contact_sheet.html").read_text()


@pytest.mark.slow
def test_without(photographs):
    for path in photographs.rglob("*.txt"):
        path.unlink()
    look("photographs", "looked_at")
    assert report()["findings"]["no_caption"]["count"] == 9
    with pytest.raises(ValueError, match=r"photographs has no captions: .* give caption_default="):
        text_to_image_dataset("photographs", batch_size=4)
    pipe = text_to_image_dataset("photographs", batch_size=4, caption_default="a photograph")
    (first, second) = pipe.loader(num_workers=2)
    assert first["caption"] + second["caption"] == ["a photograph"] * 8
