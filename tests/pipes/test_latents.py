"""What a decoder asks of a cache; with shards and a VAE see tests/test_caches.py."""

from typing import Any

import pytest
import torch

from penstock.pipes.decode_fields import CaptionField
from penstock.pipes.draws import Draws
from penstock.pipes.latents import blank, candidates, finish
from penstock.pipes.sample import Ref

FIELDS: list[tuple[CaptionField, dict[str, Any], list[str]]] = [
    (CaptionField(None, "first", False, None), {"txt": b" one "}, ["one"]),
    (CaptionField(None, "random", True, None), {"txt": b"one\n\ntwo"}, ["one", "", "two"]),
    (CaptionField("json.t", "first", False, None), {"json": b'{"t": ["a", "b"]}'}, ["a", "b"]),
    (CaptionField("json.t", "first", False, "none"), {"json": b'{"u": "a"}'}, ["none"]),
    (CaptionField("txt", "first", False, "none"), {"txt": b"  "}, ["none"]),
    (CaptionField("txt", "first", False, "none"), {}, ["none"]),
    (CaptionField(None, "first", False, None), {"txt": b" "}, [""]),
    (CaptionField(None, "first", False, None), {}, []),
]


@pytest.mark.parametrize(("field", "sample", "expected"), FIELDS)
def test_an_entry_goes_with_all_captions_that_may_be_taken(
    field: CaptionField, sample: dict[str, Any], expected: list[str]
) -> None:
    assert candidates(field, sample) == expected
    taken = {field.read(sample, Draws(0, Ref(n, 0, 0)))[1] for n in range(50)}
    if field.pick == "random":
        assert taken == set(expected) - {""}
    else:
        assert taken == {expected[0] if expected else None}


def test_a_row_that_was_found_takes_no_memory() -> None:
    zeros = blank(None, (400, 300))
    assert zeros.shape == (3, 400, 300)
    assert zeros.untyped_storage().nbytes() == 1
    place = torch.ones(3, 2, 2)
    assert blank(place, (2, 2)) is place


def test_finished_batches() -> None:
    def batch(*hits: bool) -> dict[str, Any]:
        rows = [{"mean": torch.ones(2)} if hit else None for hit in hits]
        records = [{"hit": hit} for hit in hits]
        image = torch.ones(len(hits), 3, 4, 4)
        return {"image": image, "latents": rows, "__latents__": records, "caption": ["a"]}

    whole = finish(batch(True, True))
    assert "image" not in whole
    assert whole["latents"]["mean"].shape == (2, 2)
    assert whole["caption"] == ["a"]
    mixed = finish(batch(True, False, True))
    assert mixed["image"].sum((1, 2, 3)).tolist() == [0, 48, 0]
    assert [row is None for row in mixed["latents"]] == [False, True, False]
    ragged = batch(True, False)
    ragged["image"] = list(ragged["image"])
    assert finish(ragged)["image"] is ragged["image"]
