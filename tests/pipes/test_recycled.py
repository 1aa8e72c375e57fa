"""Memory that is used again, and never while anybody has it."""

import gc

import pytest
import torch

from penstock.pipes import EntryStore, ShardLister, recycled
from penstock.pipes.recycled import LEAST, MOST, Recycled


def test_memory_is_given_again_when_nobody_has_it():
    memory = Recycled()
    first = memory.empty(LEAST)
    at = first.data_ptr()
    second = memory.empty(LEAST)
    assert second.data_ptr() != at
    del first
    third = memory.empty(LEAST - LEAST // 4)
    assert third.data_ptr() != at or third.nbytes < LEAST
    del third
    assert memory.empty(LEAST).data_ptr() == at


@pytest.mark.parametrize(
    "hold",
    [
        lambda t: t,
        lambda t: t[5:7],
        lambda t: t.view(torch.bfloat16).view(2, -1)[1],
        lambda t: t.numpy(),
        lambda t: t[3:].numpy()[2:],
        lambda t: memoryview(t.numpy()),
        lambda t: t.untyped_storage(),
        lambda t: t.view(torch.uint8).detach(),
        lambda t: torch.from_numpy(t.numpy()),
        lambda t: {"a": [t[:1]]},
    ],
)
def test_whatever_holds_it_keeps_it(hold):
    memory = Recycled()
    tensor = memory.empty(LEAST)
    at = tensor.data_ptr()
    held = hold(tensor)
    del tensor
    gc.collect()
    others = [memory.empty(LEAST) for _ in range(3)]
    assert at not in [t.data_ptr() for t in others]
    del held, others
    gc.collect()
    assert at in [t.data_ptr() for t in [memory.empty(LEAST) for _ in range(4)]]


def test_no_more_is_kept_than_two_batches_have():
    memory = Recycled()
    held = [memory.empty(LEAST + i) for i in range(2 * MOST)]
    assert len(memory._pieces) == MOST
    assert len({t.data_ptr() for t in held}) == 2 * MOST
    for i, tensor in enumerate(held):
        tensor.fill_(i)
    assert [int(t[0]) for t in held] == [int(t[-1]) for t in held] == list(range(2 * MOST))
    small = memory.empty(10)
    assert small.shape == (10,)
    assert len(memory._pieces) == MOST
    assert memory.empty(0).shape == (0,)


def test_much_larger_memory_is_not_given_for_less():
    memory = Recycled()
    at = memory.empty(5 * LEAST).data_ptr()
    assert memory.empty(LEAST).data_ptr() != at


def test_batches_that_are_kept_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(recycled, "LEAST", 16)
    with EntryStore(tmp_path) as store:
        for i in range(40):
            about = {"field": "latents", "n": i}
            store.write(f"{i:032x}", {"mean": torch.full((8, 8), float(i))}, about, str(i))
    pipe = ShardLister(str(tmp_path / "*.tar")).read_tar().shuffle(9).batch(4).decode()
    kept = []
    for step, batch in zip(range(60), pipe.loader(epoch_batches=100), strict=False):
        if step % 3 == 0:
            kept.append((batch["latents"]["mean"][2], batch["json"][2]["n"]))
    assert len(kept) == 20
    for row, n in kept:
        assert row.tolist() == [[float(n)] * 8] * 8
