import sys

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from penstock.recipes.training.track_tensorboard import TensorBoardTracker


def read(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_numbers_pictures_and_words_are_read_back(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.progress(1)
    for step in (1, 2):
        tracker.log(step, {"train/loss": 1 / step})
    tracker.images(2, "samples", [Image.new("RGB", (200, 100))] * 2, ["one", "two"])
    tracker.text(2, "note", "# no heading\n<b>")
    tracker.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width) == (2, 2 * 24 + 2 * 200 + 16)
    (words,) = events.Tensors("note/text_summary")
    assert words.tensor_proto.string_val == [b"    # no heading\n    <b>\n"]


def test_a_run_that_goes_on_hides_what_it_makes_again(tmp_path):
    for steps, value, begin in ((range(1, 6), 1.0, 0), (range(4, 8), 2.0, 3)):
        tracker = TensorBoardTracker(tmp_path, step=begin)
        for step in steps:
            tracker.log(step, {"train/loss": value})
        tracker.close()
    found = [(e.step, e.value) for e in read(tmp_path).Scalars("train/loss")]
    assert found == [*((s, 1.0) for s in (1, 2, 3)), *((s, 2.0) for s in (4, 5, 6, 7))]


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'penstock\[track\]'"):
        TensorBoardTracker(tmp_path)
    assert list(tmp_path.iterdir()) == []
