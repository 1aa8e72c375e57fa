"""Entries held in memory."""

import pickle

import pytest
import torch

from penstock.transforms.held import Held


def test_copies_are_held_up_to_the_limit() -> None:
    held = Held("memory", 100)
    batch = torch.arange(40, dtype=torch.int64).view(4, 10)
    held.put("a", {"x": batch[0]}, None)
    assert held.size == 80
    found = held.get("a")
    assert found is not None
    assert found["x"].untyped_storage().nbytes() == 80
    batch.zero_()
    assert found["x"].tolist() == list(range(10))
    with pytest.warns(UserWarning, match="limit=100 bytes: 1 of them"):
        held.put("b", {"x": batch[1]}, None)
    held.put("c", {"x": batch[2]}, None)  # said once
    held.put("d", {"x": batch[3, :2]}, None)
    assert (held.get("b"), len(held), held.size) == (None, 2, 96)
    held.put("a", {"x": batch[3, :1]}, None)  # it is there
    assert held.size == 96
    assert len(pickle.loads(pickle.dumps(held))) == 0


def test_nothing_is_held_unasked() -> None:
    held = Held(None, "2GB")
    held.put("a", {"x": torch.ones(2)}, None)
    assert (len(held), held.limit) == (0, 2_000_000_000)
