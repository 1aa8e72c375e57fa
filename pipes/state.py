"""A loader's state: what it holds, what it refuses, and how ranks' states become one.

A state is JSON: ``version``, ``position`` (the number of global batches taken), ``epoch``,
``epoch_start``, ``lanes`` (their number), ``by``, ``repeat``, ``samples`` (how many, and a hash of
the shards' numbers), ``order`` and ``work`` (the pipes with their arguments), and ``states``: lane
to [batches that have left it, its packed state].
"""

import json
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from .graph import Graph

VERSION = 2
LoaderState = dict[str, Any]


def describe(graph: Graph) -> LoaderState:
    """Return what a state says of its graph."""
    described = {
        "version": VERSION,
        "lanes": graph.lanes.n,
        "by": graph.lanes.by,
        "repeat": graph.lanes.repeat,
        "samples": graph.sample_counts(),
        "order": graph.describe_order(),
        "work": graph.describe_work(),
    }
    return json.loads(json.dumps(described))  # type: ignore[no-any-return]


def check(state: LoaderState, graph: LoaderState) -> None:
    """Refuse a state that was not saved by this graph.

    Args:
        state: The state.
        graph: What `describe` says of the graph.

    Raises:
        ValueError: They differ; the message names what.
    """
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"this is no loader state of version {VERSION}: its version is {found!r}")
    for name in ("lanes", "by", "repeat"):
        if state[name] != graph[name]:
            raise ValueError(
                f"the state was saved with .lanes({name}={state[name]!r}) and the graph has "
                f"{name}={graph[name]!r}; the order of batches depends on it, so it must not change"
            )
    for difference in _differences(state["order"], graph["order"]):
        raise ValueError(f"the state is another graph's: {difference}")
    if state["samples"] != graph["samples"]:
        raise ValueError(
            f"the shards hold other numbers of samples than when the state was saved: "
            f"{state['samples']} then, {graph['samples']} now; restore the shards, or begin a new "
            "run"
        )
    for difference in _differences(state["work"], graph["work"]):
        warnings.warn(
            f"the work half has changed since the state was saved: {difference}", stacklevel=4
        )
    missing = sorted(set(range(graph["lanes"])) - {int(lane) for lane in state["states"]})
    if missing:
        raise ValueError(
            f"the state lacks lanes {missing[:8]}{' …' if len(missing) > 8 else ''} of "
            f"{graph['lanes']}: it is one rank's. Save loader.gather_state(), or join all ranks' "
            "states with merge_states()"
        )


def _differences(saved: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterable[str]:
    for one, other in zip(saved, now, strict=False):
        if one["pipe"] != other["pipe"]:
            yield f"it has {one['pipe']} where the graph has {other['pipe']}"
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                yield (
                    f"{one['pipe']} had {name}={json.dumps(one.get(name))} when it was saved, and "
                    f"has {name}={json.dumps(other.get(name))} now"
                )
    if len(saved) != len(now):
        longer, whose = (saved, "it") if len(saved) > len(now) else (now, "the graph")
        more = ", ".join(step["pipe"] for step in longer[min(len(saved), len(now)) :])
        yield f"{whose} has more pipes: {more}"


def merge_states(states: Iterable[LoaderState]) -> LoaderState:
    """Return one state with the lanes of all ranks' states.

    Args:
        states: `ElasticDataLoader.state_dict` of every rank, taken after the same step.

    Raises:
        ValueError: There are none, or they are of different graphs or positions.
    """
    states = list(states)
    if not states:
        raise ValueError("there are no states to merge")
    first = states[0]
    merged = {**first, "states": {}}
    for i, state in enumerate(states):
        for name in first.keys() - {"states"}:
            if state.get(name) != first[name]:
                raise ValueError(
                    f"states of different {'positions' if name == 'position' else 'runs'} do not "
                    f"merge: {name} is {first[name]!r} in the first and {state.get(name)!r} in "
                    f"number {i + 1}; take all ranks' states after the same step"
                )
        for lane, entry in state["states"].items():
            # Ranks that share a lane know it after different batches; the latest is nearest.
            known = merged["states"].get(lane)
            if known is None or entry[0] > known[0]:
                merged["states"][lane] = list(entry)
    merged["states"] = dict(sorted(merged["states"].items(), key=lambda kv: int(kv[0])))
    return merged


def gather_states(own: LoaderState, world_size: int) -> LoaderState:
    """Return one state with the lanes of all ranks' states, on every rank; a collective.

    Raises:
        RuntimeError: torch.distributed is not initialised.
    """
    if world_size == 1:
        return own
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise RuntimeError(
            "gather_state needs torch.distributed; without it, save every rank's state_dict() "
            "and join them with merge_states()"
        )
    states: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(states, own)
    return merge_states(states)
