"""Small tensors go from a worker as bytes, and come out the same."""

import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from penstock.pipes import ShardLister
from penstock.pipes.hand_over import SMALL, hand_over

DTYPES = (
    torch.uint8,
    torch.bool,
    torch.int64,
    torch.float32,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.complex64,
)


def through(value):
    return pickle.loads(ForkingPickler.dumps(hand_over(value)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_small_tensors_come_out_bit_for_bit(dtype, shape):
    tensor = (torch.arange(24)[: torch.Size(shape).numel()] % 2).reshape(shape).to(dtype)
    (found,) = through({"a": tensor}).values()
    assert (found.dtype, found.shape, found.is_shared()) == (dtype, shape, False)
    assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    if found.numel():
        found.zero_()  # it may be written to


def test_what_is_not_small_or_plain_goes_as_before():
    large = torch.zeros(SMALL + 1, dtype=torch.uint8)
    assert hand_over(large) is large
    limit = large[:SMALL]
    assert hand_over(limit) is not limit
    for tensor in (
        torch.ones(2, requires_grad=True),
        torch.ones(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64).conj(),
    ):
        assert hand_over(tensor) is tensor
    for value in (None, 3, "text", ["a", "b"], [], (1, 2), b"bytes"):
        assert hand_over(value) is value


def test_fields_in_dicts_and_lists():
    batch = {
        "latents": {"mean": torch.ones(2, 3), "logvar": torch.zeros(2, 3)},
        "ragged": [torch.ones(2), torch.ones(3)],
        "maybe": [{"mean": torch.ones(1)}, None],
        "json": [{"a": {"b": [1, 2]}}, {}],
        "turned": torch.arange(6).reshape(2, 3).T,
        "__batch__": 7,
    }
    found = through(batch)
    assert found.keys() == batch.keys()
    assert found["json"] == batch["json"]
    assert found["maybe"][1] is None
    assert torch.equal(found["maybe"][0]["mean"], torch.ones(1))
    assert [r.tolist() for r in found["ragged"]] == [[1, 1], [1, 1, 1]]
    assert torch.equal(found["latents"]["mean"], torch.ones(2, 3))
    assert torch.equal(found["turned"], batch["turned"])


def test_a_workers_batch_is_that_of_no_worker(shards):
    pipe = ShardLister(shards).read_tar().batch(4).decode(64)
    there, here = (next(iter(pipe.loader(num_workers=n, epoch_batches=1))) for n in (1, 0))
    assert there.keys() == here.keys()
    for name, value in here.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(there[name], value)
            assert there[name].is_shared() == (value.nbytes > SMALL)
        else:
            assert there[name] == value or name == "__url__"
