import pytest
import torch

from penstock.transforms import ClipTokenize, CutReport, T5Tokenize, cut_report


def batch(keys, **cut):
    counts = {f"{name}_cut": torch.tensor(values) for name, values in cut.items()}
    return {"__key__": list(keys), "__url__": ["0.tar"] * len(keys), **counts}


def test_it_counts_over_batches():
    report = CutReport(longest=2)
    assert str(report) == "nothing was seen"
    report.add(batch("abc", clip=[0, 3, 0], t5=[0, 0, 0]))
    report.add(batch("def", clip=[7, 0, 1], t5=[0, 0, 0]))
    clip = report.cuts["clip"]
    assert (clip.seen, clip.captions, clip.tokens) == (6, 3, 11)
    assert clip.longest == [(7, "0.tar", "d"), (3, "0.tar", "b")]
    assert str(report).splitlines() == [
        "clip: 3 of 6 captions cut (50.0 %), 11 tokens in all; "
        "worst: 'd' of 0.tar by 7; 'b' of 0.tar by 3",
        "t5: none of 6 captions cut",
    ]


def test_a_caption_that_comes_again_is_named_once():
    report = cut_report([batch("ab", t5=[5, 2])] * 3, longest=3)
    assert report.cuts["t5"].longest == [(5, "0.tar", "a"), (2, "0.tar", "b")]
    assert report.cuts["t5"].captions == 6


def test_it_takes_what_transforms_give(clip, t5, make_batch_of):
    long = ["a " * 80, "a ring", "a " * 300]
    made = T5Tokenize(t5, max_length=256)(ClipTokenize(clip)(make_batch_of(long)))
    report = cut_report([made])
    assert report.cuts["clip"].longest == [
        (300 + 2 - 77, "shards/00000.tar", "0002"),
        (80 + 2 - 77, "shards/00000.tar", "0000"),
    ]
    assert report.cuts["t5"].captions == 1
    assert report.cuts["t5"].tokens == len(t5(long[2])["input_ids"]) - 256


def test_batches_without_counts_are_refused():
    with pytest.raises(ValueError, match=r"no field that ends in '_cut', only \['caption'\]"):
        cut_report([{"caption": ["a"]}])
