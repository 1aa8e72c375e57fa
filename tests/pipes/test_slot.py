"""The memory of a batch, and each sample's place in it."""

import pytest
import torch

from penstock.pipes.slot import BatchMemory, Slot


@pytest.mark.parametrize("shared", [False, True])
def test_rows_are_parts_of_one_tensor_made_when_it_is_asked_for(shared):
    memory = BatchMemory(3, shared)
    slots = [Slot((4, 6), memory, i, masked=i == 0) for i in range(3)]
    assert memory._whole == {}
    for i, slot in enumerate(slots):
        slot.image.fill_(i)
    whole = memory.whole("image")
    assert (whole.shape, whole.dtype, whole.is_shared()) == ((3, 3, 4, 6), torch.uint8, shared)
    assert whole[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert slots[0].mask.shape == (1, 4, 6)
    assert slots[1].mask is None
    row = slots[1].row(("latents", "mean"), (2, 2), torch.bfloat16)
    assert row.data_ptr() == memory.whole(("latents", "mean"))[1].data_ptr()


def test_a_row_of_another_shape_or_type_is_none():
    memory = BatchMemory(2, False)
    first, second = Slot(None, memory, 0), Slot(None, memory, 1)
    assert first.row("a", (2,), torch.int8) is not None
    assert second.row("a", (3,), torch.int8) is None
    assert second.row("a", (2,), torch.uint8) is None
    assert second.row("a", (2,), torch.int8) is not None


def test_what_it_holds_is_told_by_identity():
    memory = BatchMemory(2, False)
    slot = Slot((2, 2), memory, 0)
    assert not slot.holds("image", None)
    image = slot.image
    assert slot.holds("image", image)
    assert slot.image is image
    assert not slot.holds("image", image.clone())
    assert not slot.holds("other", image)
    parts = {n: slot.row(("latents", n), (2,), torch.int8) for n in ("mean", "logvar")}
    assert slot.holds("latents", parts)
    assert not slot.holds("latents", parts | {"mean": parts["mean"].clone()})
    assert not slot.holds("latents", parts | {"more": parts["mean"]})
    assert not slot.holds("latents", {})
    assert not slot.holds("latents", {"mean": None, "other": None})


def test_without_memory_there_are_no_rows():
    slot = Slot(None)
    assert (slot.image, slot.mask, slot.row("a", (2,), torch.int8)) == (None, None, None)
    assert Slot((2, 2)).image is None
