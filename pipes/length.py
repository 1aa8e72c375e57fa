"""How many global batches an epoch has."""

import numpy as np

from .batch import Batcher
from .bucket import AspectRatioBucketer
from .graph import Graph
from .lanes import Lanes
from .mix import Mixer

_HINT = "; pass epoch_batches=… to .loader() to say how many global batches an epoch has"


def epoch_length(graph: Graph) -> tuple[int | None, str]:
    """Return the number of global batches in an epoch, or (None, why it is not known).

    It is known where batches have one size and every sample of a pass comes: max(1, N // batch).
    With a pixel budget it is counted from the images' sizes. This is for lanes that repeat.
    """
    batcher = _batcher(graph)
    for step in graph.steps:
        if isinstance(step, Mixer):
            return None, f"the sources of a mix have passes of their own{_HINT}"
        if step.filters:
            return None, f"{type(step).__name__} lets an unknown number of samples through{_HINT}"
    source, counts = graph.sources[0], graph.sample_counts()
    if counts is None:
        return None, f'with by="shards" the shards\' numbers of samples are not known{_HINT}'
    if source.splits_samples():
        return None, f'split_by="sample" takes an unknown number of samples{_HINT}'
    size = batcher.batch_size
    if size is None or (isinstance(batcher, AspectRatioBucketer) and batcher.upscale is not True):
        assert isinstance(batcher, AspectRatioBucketer)
        try:
            return _counted(graph, batcher), ""
        except LookupError as error:
            return None, f"{error}{_HINT}"
    return max(1, int(counts["total"]) // size), ""


def _batcher(graph: Graph) -> Batcher | AspectRatioBucketer:
    step = graph.top
    while isinstance(step, Lanes):
        step = step.source
    assert isinstance(step, Batcher | AspectRatioBucketer)
    return step


def _counted(graph: Graph, bucketer: AspectRatioBucketer) -> int:
    """Count a pass's batches from the sizes of all images."""
    counts = np.zeros(len(bucketer.buckets.sizes), np.int64)
    for sizes in graph.sources[0].image_sizes():
        which = bucketer.buckets.assign_many(sizes[(sizes > 0).all(axis=1)])
        counts += np.bincount(which[which >= 0], minlength=len(counts))
    return max(1, int((counts / np.array(bucketer.batch_sizes())).sum()))


def lane_advice(graph: Graph) -> str | None:
    """Return words of warning where half-filled buckets would hold too much of the data back."""
    lanes, counts, held = graph.lanes.n, graph.sample_counts(), graph.held_samples()
    if (
        lanes == 1
        or counts is None
        or not graph.lanes.repeat
        or held * lanes <= counts["total"] / 10
    ):
        return None
    fits = max(1, counts["total"] // (10 * held))
    return (
        f"{lanes} lanes hold up to {held * lanes} samples back in half-filled buckets, of "
        f"{counts['total']}: rare shapes will wait for many passes; .lanes({fits}) would fit"
    )


def pass_length(graph: Graph, rank: int, world_size: int) -> int:
    """Return how many batches of the one pass (``repeat=False``) rank ``rank`` gets.

    Lane l's k-th batch is global batch k L + l, and rank r has those with r = g mod R.

    Raises:
        TypeError: It is not known; the message says why, and what to pass.
    """
    batcher = _batcher(graph)
    uneven = [s for s in graph.steps if isinstance(s, Mixer) or s.filters]
    if uneven or isinstance(batcher, AspectRatioBucketer) or graph.sources[0].splits_samples():
        raise TypeError(f"how many short batches a single pass ends with is not known{_HINT}")
    counts = graph.sample_counts()
    if counts is None:
        raise TypeError(f'with by="shards" the numbers of samples are not known{_HINT}')
    lanes, total, length = graph.lanes.n, counts["total"], 0
    rounding = 0 if batcher.drop_last else batcher.batch_size - 1
    for lane in range(lanes):
        samples = (lane + 1) * total // lanes - lane * total // lanes
        batches = (samples + rounding) // batcher.batch_size
        length += sum((k * lanes + lane) % world_size == rank for k in range(batches))
    return length
