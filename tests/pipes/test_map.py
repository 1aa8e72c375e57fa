"""Users' functions are exact and leave the random generators of the process alone."""

import functools
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from penstock.pipes import Mapper, ShardLister, Transformer
from penstock.pipes.map import seeded, takes_rng

CHAIN = v2.Compose(
    [
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.5, hue=0.3),
        v2.RandomAffine(degrees=30, translate=(0.2, 0.2)),
        v2.RandomErasing(p=0.5),
    ]
)


@pytest.fixture
def loaded(shards):
    return ShardLister(shards).read_tar().batch(6).decode(32)


def generators():
    return (
        random.getstate(),
        tuple(map(str, np.random.get_state())),
        torch.get_rng_state().tolist(),
    )


def global_draws(sample):
    numbers = random.random(), np.random.rand(), torch.rand(1).item()
    return {**sample, "drawn": torch.tensor(numbers, dtype=torch.float64)}


def own_draws(sample, rng):
    return {**sample, "own": rng.random()}


def keyword_draws(sample, *, rng=None):
    return {**sample, "own": rng.random()}


def test_a_torchvision_chain_is_reproducible_and_random(loaded, make_batch):
    pipe = loaded.map(CHAIN)
    torch.manual_seed(1)
    first = make_batch(pipe).batch
    torch.manual_seed(2)
    random.seed(5)
    assert torch.equal(make_batch(pipe).batch["image"], first["image"])
    assert not torch.equal(make_batch(loaded).batch["image"], first["image"])
    assert first["image"].dtype == torch.uint8
    assert first["image"].shape == (6, 3, 32, 32)
    # The same samples, a pass later, get other draws.
    one = ShardLister(first["__url__"][0], shuffle=False).read_tar()
    count = len(list(one.lanes(1, repeat=False)))
    pipe = one.batch(count).decode(32).map(CHAIN)
    assert not torch.equal(make_batch(pipe).batch["image"], make_batch(pipe, 1).batch["image"])


def test_the_default_generators_are_left_as_they_were(loaded, make_batch):
    before = generators()
    make_batch(loaded.map(global_draws).map(CHAIN).transform(global_draws))
    assert generators() == before


def test_they_are_put_back_after_an_error_too(loaded, make_batch):
    def fails(sample):
        random.random()
        torch.rand(1)
        np.random.rand()
        raise KeyError("on purpose")

    before = generators()
    with pytest.raises(KeyError):
        make_batch(loaded.map(fails))
    assert generators() == before


def test_each_of_the_three_generators_is_seeded_by_the_ref(loaded, make_batch):
    drawn = make_batch(loaded.map(global_draws)).batch["drawn"]
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert torch.equal(make_batch(loaded.map(global_draws)).batch["drawn"], drawn)
    for column in range(3):
        assert len(set(drawn[:, column].tolist())) == 6
    later = make_batch(loaded.map(global_draws), 1).batch["drawn"]
    assert not set(later.flatten().tolist()) & set(drawn.flatten().tolist())


def test_a_parameter_rng_is_a_seeded_numpy_generator(loaded, make_batch):
    first = make_batch(loaded.map(own_draws)).batch["own"]
    assert len(set(first.tolist())) == 6
    assert torch.equal(make_batch(loaded.map(own_draws)).batch["own"], first)
    assert torch.equal(make_batch(loaded.map(keyword_draws)).batch["own"], first)
    assert takes_rng(own_draws)
    assert takes_rng(functools.partial(own_draws))
    assert not takes_rng(global_draws)
    assert not takes_rng(CHAIN)
    assert not takes_rng(dict)


def test_two_maps_and_two_transforms_draw_apart(loaded, make_batch):
    def renamed(name, fn):
        def wrapped(sample, rng):
            made = fn(sample, rng)
            return {**sample, name: made["own"]}

        return wrapped

    one, two = renamed("one", own_draws), renamed("two", own_draws)
    batch = make_batch(loaded.map(one).map(two)).batch
    assert not set(batch["one"].tolist()) & set(batch["two"].tolist())
    # What the first draws does not depend on there being a second.
    assert torch.equal(make_batch(loaded.map(one)).batch["one"], batch["one"])
    # Pipes of another kind in between change nothing either.
    between = make_batch(loaded.map(one).drop_caption(0.5).map(two)).batch
    assert torch.equal(between["two"], batch["two"])
    made = make_batch(loaded.transform(one).transform(two)).batch
    assert made["one"] != made["two"]


def test_transforms_draw_by_the_batch(loaded, make_batch):
    found = [make_batch(loaded.transform(own_draws), g).batch["own"] for g in (0, 1, 0)]
    assert found[0] == found[2] != found[1]


def test_a_transform_takes_and_returns_the_batch(loaded, make_batch):
    def halved(batch):
        assert batch["image"].shape == (6, 3, 32, 32)
        return {"half": batch["image"].float() / 2}

    plain = make_batch(loaded).batch
    batch = make_batch(loaded.transform(halved).transform(lambda b: {**b, "n": 1})).batch
    assert torch.equal(batch["half"], plain["image"].float() / 2)
    assert batch["n"] == 1
    assert set(batch) == {"half", "n", "__key__", "__url__", "__ref__", "__batch__"}
    for name in ("__key__", "__url__", "__batch__"):
        assert batch[name] == plain[name]
    skipping = make_batch(loaded.transform(halved), on_error="skip").batch
    assert skipping["__filled__"] == []


def test_what_is_returned_must_be_a_dict(loaded, make_batch):
    message = "a mapped function must return the sample, a dict; got NoneType"
    with pytest.raises(TypeError, match=message) as info:
        make_batch(loaded.map(lambda sample: None))
    assert "on sample" in info.value.__notes__[0]
    with pytest.raises(TypeError, match=r"a transform must return a dict .* returned Tensor"):
        make_batch(loaded.transform(lambda batch: batch["image"]))


def test_the_sample_of_a_map_is_its_own(loaded, make_batch):
    # A function may change the dict that it is given.
    def changes(sample):
        sample["caption"] = "changed"
        del sample["original_size"]
        return sample

    batch = make_batch(loaded.map(changes)).batch
    assert batch["caption"] == ["changed"] * 6
    assert "original_size" not in batch


def test_other_things_than_functions_are_refused(fake):
    with pytest.raises(TypeError, match=r"\.map\(\) takes a function, got str"):
        Mapper(fake([1]), "flip")
    with pytest.raises(TypeError, match=r"\.transform\(\) takes a function, got NoneType"):
        Transformer(fake([1]), None)


def test_seeded_is_the_same_for_the_same_seed():
    drawn = []
    for seed in (1, 2**64 - 1, 1):
        with seeded(seed):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[2]
    assert all(a != b for a, b in zip(drawn[0], drawn[1], strict=True))
