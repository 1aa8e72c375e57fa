"""A graph refuses what means nothing, says what it is made of, and shows what comes out."""

import functools
import inspect
import itertools
import json

import numpy as np
import pytest
import torch

from penstock.pipes import (
    AspectRatioBucketer,
    Batcher,
    CaptionFilter,
    Decoder,
    Filter,
    Mixer,
    Renamer,
    Selector,
    ShardLister,
    Shuffler,
    SizeFilter,
    TarReader,
)
from penstock.pipes.graph import Graph
from penstock.pipes.order import Batch


def keep(sample):
    return True


def same(sample):
    return sample


def work(pipe):
    """Return a graph that a loader takes."""
    return pipe.batch(2).decode(8)


WRONG = {
    "shuffle behind batches": (lambda f: f().batch(2).shuffle(3), "Shuffler takes samples"),
    "filter behind batches": (lambda f: f().batch(2).filter(keep), "Filter takes samples"),
    "select behind buckets": (
        lambda f: f().bucket_by_aspect_ratio(64, 2).select("a"),
        "Selector takes samples: put it before the batches",
    ),
    "batches of batches": (lambda f: f().batch(2).batch(2), "Batcher takes samples"),
    "behind batches and lanes": (
        lambda f: f().batch(2).lanes(2).shuffle(3),
        "Shuffler takes samples",
    ),
    "a mix of batches": (lambda f: f().batch(2).mix(f()), "Mixer takes samples"),
    "order behind work": (
        lambda f: f().batch(2).decode().shuffle(3),
        "Decoder does work and stands before Shuffler, which decides the order",
    ),
    "batch behind work": (lambda f: f().decode().batch(2), "Decoder does work.*Batcher"),
    "lanes behind work": (lambda f: f().batch(2).decode().lanes(2), "Decoder does work.*Lanes"),
    "a mix of work": (lambda f: f().batch(2).decode().mix(f()), "Decoder does work.*Mixer"),
    "map behind transform": (
        lambda f: work(f()).transform(same).map(same),
        "Mapper works on samples and stands behind Transformer, which works on batches",
    ),
    "caption behind transform": (
        lambda f: work(f()).transform(same).drop_caption(),
        "CaptionDropper works on samples",
    ),
    "map without decode": (lambda f: f().batch(2).map(same), "Mapper needs loaded samples"),
    "captions without decode": (
        lambda f: f().batch(2).shuffle_caption(),
        r"CaptionShuffler needs loaded samples: put .decode\(\) or .load\(\)",
    ),
    "two decodes": (lambda f: f().batch(2).decode().decode(), "begins once"),
    "decode and load": (lambda f: f().batch(2).load().map(same).decode(), "begins once"),
    "two lanes": (lambda f: f().lanes(2).batch(2).lanes(2), "stands 2 times"),
    "lanes in a mix": (lambda f: f().lanes(2).mix(f()).batch(2), r"put .lanes\(\) behind .mix\(\)"),
    "lanes in both": (lambda f: f().lanes(2).mix(f().lanes(2)), "stands 2 times"),
}


@pytest.mark.parametrize("name", WRONG)
def test_pipes_in_a_wrong_order_are_refused_in_words(name, fake):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Graph.of(make(lambda: fake([4])))


def test_one_source_twice_in_a_mix_is_refused(fake):
    source = fake([4])
    for pipe in (source.mix(source), source.shuffle(3).mix(fake([2]), source.filter(keep))):
        with pytest.raises(ValueError, match=r"stands twice.*a second ShardLister"):
            Graph.of(pipe.batch(2))


def test_shards_that_are_not_read_are_refused(shards):
    with pytest.raises(ValueError, match=r"read_tar\(\)"):
        Graph.of(ShardLister(shards).batch(2))


UNLOADABLE = {
    "no batches": (lambda f: f().decode(), r"nothing makes batches: put .batch\(n\) or"),
    "no work": (lambda f: f().batch(2), r"nothing loads.*\.decode\(\) or \.load\(\)"),
    "two sizes": (
        lambda f: f().bucket_by_aspect_ratio(64, 2).decode(64),
        r"decode\(size=…\) stands behind a bucketer",
    ),
    "no size to crop to": (
        lambda f: f().batch(2).decode(crop="random"),
        r"decode\(crop='random'\) needs size=…, or a bucketer",
    ),
}


@pytest.mark.parametrize("name", UNLOADABLE)
def test_graphs_that_cannot_be_loaded_say_what_they_lack(name, fake):
    make, message = UNLOADABLE[name]
    pipe = make(lambda: fake([4]))
    with pytest.raises(ValueError, match=message):
        Graph.of(pipe).check_loadable()
    with pytest.raises(ValueError, match=message):
        pipe.loader()


def order_half(fake):
    """Return a pipe of every kind of the order half, with no argument at its default."""
    mixed = Mixer([fake([3], seed=4, shuffle_shards=False), fake([4])], [1, 2.5])
    sized = SizeFilter(
        mixed, min_side=1, max_side=9999, min_pixels=2, max_pixels=10**9, max_ratio=9.0
    )
    text = CaptionFilter(Filter(sized, keep), min_length=0, max_length=77, field="text")
    chosen = Renamer(Selector(text, ["a", "b"]), {"c": "a"})
    bucketer = AspectRatioBucketer(
        Shuffler(chosen, 5), [128, 256], pixels=10**6, step=32, max_ratio=1.5, upscale=1.25,
        drop_last=True,
    )  # fmt: skip
    return bucketer.lanes(3)


def test_describe_order_is_json_and_has_every_argument(fake):
    described = Graph.of(order_half(fake)).describe_order()
    assert json.loads(json.dumps(described)) == described
    classes = [step["pipe"] for step in described]
    assert classes == [
        *("FakeReader", "FakeReader", "Mixer", "SizeFilter", "Filter", "CaptionFilter"),
        *("Selector", "Renamer", "Shuffler", "AspectRatioBucketer"),
    ]
    kinds = {"FakeReader": fake} | {k.__name__: k for k in (
        Mixer, SizeFilter, Filter, CaptionFilter, Selector, Renamer, Shuffler, AspectRatioBucketer
    )}  # fmt: skip
    for step in described:
        arguments = set(inspect.signature(kinds[step["pipe"]]).parameters) - {"source", "sources"}
        assert step.keys() == arguments | {"pipe"}
    bucketer = described[-1]
    assert (bucketer["resolution"], bucketer["pixels"], bucketer["upscale"]) == (
        [128, 256],
        10**6,
        1.25,
    )
    assert described[2]["weights"] == [1, 2.5]
    assert described[4]["predicate"].endswith("test_graph.keep")


def test_a_change_of_any_argument_shows(fake):
    def described(**more):
        pipe = fake([3]).bucket_by_aspect_ratio(
            **{"resolution": 128, "batch_size": 2, "step": 32, **more}
        )
        return Graph.of(pipe).describe_order()

    for more in (
        {"resolution": 256},
        {"batch_size": 3},
        {"step": 64},
        {"max_ratio": 1.7},
        {"upscale": False},
        {"drop_last": True},
        {"sizes": [(64, 64)]},
    ):
        assert described(**more) != described()
    assert described(batch_size=np.int64(3)) != described(batch_size=np.int64(4))


def test_functions_are_described_by_name(fake):
    def one(pipe):
        return Graph.of(pipe).describe_order()[-1]["predicate"]

    assert one(fake([1]).filter(keep)) != one(fake([1]).filter(same))
    part, other = functools.partial(keep, 1), functools.partial(keep, 2)
    assert one(fake([1]).filter(part)) != one(fake([1]).filter(other))


def test_describe_work_is_json_and_has_every_argument(fake):
    pipe = fake([4]).batch(2).decode(8, flip=0.5).map(same).transform(torch.nn.Identity())
    described = Graph.of(pipe).describe_work()
    assert json.loads(json.dumps(described)) == described
    assert [step["pipe"] for step in described] == ["Decoder", "Mapper", "Transformer"]
    # What is kept in memory changes nothing that comes out.
    arguments = set(inspect.signature(Decoder).parameters) - {"source", "keep_in_memory"}
    assert described[0].keys() == arguments | {"pipe"}
    assert described[0]["flip"] == 0.5


def test_samples_are_counted_by_shard(fake):
    graph = Graph.of(fake([3, 4]).mix(fake([5])).batch(2).decode())
    assert graph.sample_counts()["total"] == 12
    other = Graph.of(fake([4, 3]).mix(fake([5])).batch(2).decode())
    assert other.sample_counts()["total"] == 12
    assert other.sample_counts() != graph.sample_counts()
    assert Graph.of(fake([3]).lanes(2, "shards").batch(2)).sample_counts() is None


def test_only_a_pipe_that_asks_makes_headers_be_read(fake):
    for pipe, asks in (
        (fake([1]).batch(1), False),
        (fake([1]).filter_size().batch(1), True),
        (fake([1]).bucket_by_aspect_ratio(64, 1), True),
    ):
        asked = []
        graph = Graph.of(pipe)
        source, opened = graph.sources[0], graph.sources[0].open(False)
        source.open = lambda sizes, asked=asked, opened=opened: asked.append(sizes) or opened
        graph.open()
        assert asked == [asks]


def test_previews_show_what_comes_out(shards, fields_of):
    lister = ShardLister(shards, shuffle=False)
    assert [path[-9:] for path in lister] == [f"0000{i}.tar" for i in range(6)]
    reader = lister.read_tar()
    assert isinstance(reader, TarReader)
    first = next(iter(reader))
    assert first["txt"].read() == fields_of(0)["txt"]
    for pipe in (reader.filter(keep), reader.shuffle(1), reader.select("txt"), reader.lanes(1)):
        sample = next(iter(pipe))
        assert (sample["__key__"], sample["__url__"]) == (first["__key__"], first["__url__"])
    batch = next(iter(reader.batch(3)))
    assert isinstance(batch, Batch)
    assert [ref.sample for ref in batch.refs] == [0, 1, 2]
    made = list(itertools.islice(reader.batch(3).lanes(2).decode(16).transform(same), 3))
    assert [b["__batch__"] for b in made] == [0, 2, 4]  # lane 0 of 2
    assert made[0]["image"].shape == (3, 3, 16, 16)
    whole = reader.lanes(1, repeat=False)
    assert len(list(whole)) == 95
    assert len(list(whole.batch(10).load())) == 10
    with pytest.raises(ValueError, match="nothing makes batches"):
        next(iter(reader.decode()))


def test_a_preview_can_be_had_twice(fake):
    pipe = fake([5]).shuffle(3).lanes(1, repeat=False)
    first, second = ([s["__key__"] for s in pipe] for _ in range(2))
    assert first == second
    assert len(first) == 5


def test_pipes_print_as_one_line(fake, shards):
    pipe = order_half(fake)
    assert "\n" not in repr(pipe)
    assert "Shuffler(buffer_size=5) -> AspectRatioBucketer(resolution=[128, 256]" in repr(pipe)
    assert repr(Batcher(fake([1]), 3)).endswith("-> Batcher(batch_size=3, drop_last=False)")
