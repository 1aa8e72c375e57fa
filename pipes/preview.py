"""Look at what a graph makes, before it is trained on."""

from itertools import islice
from typing import Any

from .graph import Graph
from .order import Batch
from .pipe import Pipe
from .sample import Ref
from .stream import LaneWalker
from .work import Workshop


def preview_samples(pipe: Pipe, n: int = 8) -> list[dict[str, Any]]:
    """Return the first ``n`` samples of lane 0, each as it will be in its batch.

    They are what they are in training, bit for bit: cropped, flipped, augmented, captions chosen
    and changed; only what works on whole batches (``.transform``) is left out, so that ``image`` is
    a picture still. Before the order half has an end, samples with nothing loaded.

    Args:
        pipe: A graph; without batches, its samples are taken as they come.
        n: Number of samples; fewer where the order ends before (``repeat=False``).
    """
    graph = Graph.of(pipe)
    if not graph.work:
        top = graph.top
        found = islice(top, n) if not _batches(graph) else _unloaded(graph, n)
        return list(found)
    graph.check_loadable()
    work = [step for step in graph.work if step.per == "sample"]
    walker = LaneWalker(graph, "raise")
    shop = Workshop(work, graph.seed, "raise", shared=False)
    samples: list[dict[str, Any]] = []
    g = 0
    while len(samples) < n and (batch := walker.order_batch(g)) is not None:
        order = walker._lanes[0][1]
        for ref in batch.refs[: n - len(samples)]:
            made, _ = shop.run(g, Batch([ref], batch.size), order.resolve, walker.sources.name)
            samples.append({name: _first(value) for name, value in made.items()})
        g += graph.lanes.n
    return samples


def _batches(graph: Graph) -> bool:
    return any(step.makes_batches for step in graph.steps)


def _unloaded(graph: Graph, n: int) -> list[dict[str, Any]]:
    order = graph.order()
    refs: list[Ref] = []
    while len(refs) < n:
        try:
            refs += order.next().refs
        except StopIteration:
            break
    return [order.resolve(ref) for ref in refs[:n]]


def _first(value: Any) -> Any:
    """Return the only sample's value of a batch's field."""
    if isinstance(value, dict):
        return {key: tensor[0] for key, tensor in value.items()}
    return value if isinstance(value, int) else value[0]
