"""Batches on a device: the same, in the same order, with the state of the one handed out."""

import json
from typing import Any

import pytest
import torch

from penstock.pipes import DataError, Pipe, ShardLister
from penstock.pipes.verify import fingerprints

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def pipe(shards: str) -> Pipe:
    source = ShardLister(shards, seed=1).read_tar().shuffle(15)
    return source.batch(4).lanes(2).decode(size=(32, 48), crop="random")


def halve(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "image": batch["image"].float() / 2}


def noise(batch: dict[str, Any], rng: torch.Generator) -> dict[str, Any]:
    image = batch["image"]
    return {"image": image, "noise": torch.rand(4, device=image.device, generator=rng)}


def on_cpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def prints(batch: dict[str, Any]) -> Any:
    return fingerprints(on_cpu(batch))


def take(loader: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        for batch in loader:
            found.append(prints(batch))
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [0, 2, 50])
def test_batches_are_the_loaders_run_through_the_functions(
    pipe: Pipe, device: str, ahead: int
) -> None:
    loader = pipe.loader().on_device(device, halve, ahead=ahead)
    assert len(loader) == 23
    for one, plain in zip(loader, pipe.loader(), strict=True):
        assert one["image"].device.type == device
        assert one["caption"] == plain["caption"]
        assert one["__batch__"] == plain["__batch__"]
        assert torch.equal(one["image"].cpu(), plain["image"].float() / 2)
    assert loader.epoch == 1
    assert next(iter(loader))["__batch__"] == 23


@pytest.mark.parametrize("ahead", [0, 1, 3, 40])
@pytest.mark.parametrize("workers", [0, 2])
def test_position_and_state_are_of_the_batch_last_handed_out(
    pipe: Pipe, ahead: int, workers: int
) -> None:
    plain = pipe.loader()
    loader = pipe.loader(workers).on_device("cpu", halve, noise, ahead=ahead)
    assert loader.state_dict() == plain.state_dict()
    for _ in range(2):
        for batch, other in zip(loader, plain, strict=True):
            assert batch["__batch__"] == other["__batch__"]
            assert (loader.position, loader.epoch) == (plain.position, plain.epoch)
            assert loader.state_dict() == plain.state_dict()
        assert loader.state_dict() == plain.state_dict()
        assert (loader.position, loader.epoch) == (plain.position, plain.epoch)
    loader.close()


def test_a_break_loses_nothing_and_a_resume_goes_on_exactly(pipe: Pipe) -> None:
    expected = take(pipe.loader().on_device("cpu", noise), 60)
    loader = pipe.loader(2).on_device("cpu", noise, ahead=4)
    found, state = [], None
    for count in (1, 6, 0, 20, 11, 22):
        found += take(loader, count)
        state = json.loads(json.dumps(loader.state_dict()))
        assert loader.state_dict() == state
        if count % 2 == 0:  # elsewhere, with other workers
            loader.close()
            loader = pipe.loader(count % 3).on_device("cpu", noise, ahead=1)
            loader.load_state_dict(state)
    assert found == expected
    assert loader.gather_state() == state
    loader.close()


def test_draws_are_the_batchs_own(pipe: Pipe) -> None:
    loader = pipe.loader().on_device("cpu", noise, ahead=3)
    batches = [batch["noise"] for batch, _ in zip(loader, range(6), strict=False)]
    assert len({tuple(b.tolist()) for b in batches}) == 6
    before = loader.state_dict()
    assert torch.equal(loader.batch_at(2)["noise"], batches[2])
    assert loader.state_dict() == before
    twice = pipe.loader().on_device(
        "cpu", noise, lambda b, rng: {"b": torch.rand(4, generator=rng)}
    )
    first = next(iter(twice))
    assert not torch.equal(first["b"], batches[0])


def test_close_puts_the_loader_back(pipe: Pipe) -> None:
    loader = pipe.loader(1)
    device = loader.on_device("cpu", ahead=5)
    take(device, 3)
    assert loader.position > 3
    device.close()
    assert loader.position == 3
    assert next(iter(loader))["__batch__"] == 3
    loader.close()


def test_an_error_comes_in_its_turn_and_its_batch_is_not_counted(pipe: Pipe) -> None:
    fail = [True]

    def broken(batch: dict[str, Any]) -> dict[str, Any]:
        if batch["__batch__"] == 5 and fail[0]:
            raise RuntimeError("out of memory")
        return batch

    loader = pipe.loader().on_device("cpu", broken, ahead=4)
    seen = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for batch in loader:
            seen.append(batch["__batch__"])
    assert seen == [0, 1, 2, 3, 4]
    assert loader.position == 5
    fail[0] = False
    assert [b["__batch__"] for b in loader] == list(range(5, 23))


def test_an_error_of_the_data_comes_in_its_turn(shards: str) -> None:
    def bad(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["__ref__"] == (0, 3, 2):
            raise DataError("not this one")
        return sample

    pipe = ShardLister(shards, shuffle=False).read_tar().batch(5).decode(size=32).map(bad)
    loader = pipe.loader(1).on_device("cpu", ahead=3)
    seen = []
    for _ in range(2):  # the same again
        with pytest.raises(DataError, match="not this one"):
            for batch in loader:
                seen.append(batch["__batch__"])
        assert loader.position == 9
    assert seen == list(range(9))
    loader.close()


def test_one_pass_begins_anew_with_each_for(shards: str) -> None:
    pipe = ShardLister(shards).read_tar().batch(10).lanes(2, repeat=False).load()
    loader = pipe.loader().on_device("cpu", ahead=3)
    whole = [b["__batch__"] for b in loader]
    assert whole == [b["__batch__"] for b in pipe.loader()]
    for batch in loader:
        if batch["__batch__"] == 3:
            break
    state = loader.state_dict()
    assert [b["__batch__"] for b in loader] == whole
    resumed = pipe.loader().on_device("cpu", ahead=1)
    resumed.load_state_dict(state)
    assert [b["__batch__"] for b in resumed] == [g for g in whole if g > 3]


def test_names_are_kept_and_nested_tensors_moved(pipe: Pipe) -> None:
    def nest(batch: dict[str, Any]) -> dict[str, Any]:
        return {"deep": {"list": [batch["image"]], "size": batch["target_size"]}}

    class Asked(dict[str, Any]):
        pass

    batch = next(iter(pipe.transform(nest).loader().on_device("meta", lambda b: Asked(b))))
    assert batch["deep"]["list"][0].device.type == "meta"
    assert batch["deep"]["size"].device.type == "meta"
    assert len(batch["__key__"]) == 4
    assert batch["__ref__"].device.type == "cpu"  # names stay where they are read


def test_gradients_are_not_recorded_and_may_be_taken_later(pipe: Pipe) -> None:
    weight = torch.ones(1, requires_grad=True)
    loader = pipe.loader().on_device("cpu", halve, lambda b: {"x": b["image"] * weight})
    batch = next(iter(loader))
    assert not batch["x"].requires_grad
    (batch["x"] * weight).sum().backward()
    assert weight.grad is not None


def test_nonsense_is_refused(pipe: Pipe) -> None:
    with pytest.raises(ValueError, match="ahead must be at least 0"):
        pipe.loader().on_device("cpu", ahead=-1)
    with pytest.raises(TypeError, match="takes functions, got str"):
        pipe.loader().on_device("cpu", "vae")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must return a dict"):
        next(iter(pipe.loader().on_device("cpu", lambda batch: batch["image"])))
