"""What to change where fine-tuning FLUX.1 would not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .flux_memory import GIB, FluxMemory, FluxPlan, FluxSizes, flux_memory

WORTH = GIB // 4
"""Bytes that a change must save to be named."""


@dataclass(frozen=True)
class Change:
    """One thing to change, on top of those before it.

    Attributes:
        text: What, in words.
        plan: With it.
        memory: What that takes.
    """

    text: str
    plan: FluxPlan
    memory: FluxMemory


def fit_flux(plan: FluxPlan, free: int, sizes: FluxSizes | None = None) -> list[Change]:
    """Return changes, each on top of the last, until the plan fits; none where it does as it is.

    First what changes nothing in what is learnt (caches, checkpointing), then what costs precision
    (quantization, 8-bit states), then what costs resolution, then more GPUs. If the last one's
    ``memory.total`` is above ``free``, nothing here makes it fit.

    Args:
        plan: What is to be trained.
        free: Bytes of the GPU that are free.
        sizes: Of the checkpoint; None: FLUX.1-dev's.
    """
    sizes = FluxSizes() if sizes is None else sizes
    changes: list[Change] = []
    now = flux_memory(plan, sizes)
    for text, settings in _measures(plan):
        if now.total <= free:
            break
        tried = replace(plan, **settings)  # type: ignore[arg-type]
        memory = flux_memory(tried, sizes)
        if now.total - memory.total >= WORTH:
            changes.append(Change(text, tried, memory))
            plan, now = tried, memory
    return changes


def fit_text(plan: FluxPlan, free: int, sizes: FluxSizes | None = None) -> str:
    """Return the estimate, and what to change if it is more than ``free`` bytes, as lines."""
    memory = flux_memory(plan, sizes)
    lines = [str(memory)]
    if memory.total <= free:
        return "\n".join([*lines, f"fits into {free / GIB:.1f} GiB"])
    lines.append(f"does not fit into {free / GIB:.1f} GiB. In this order, until it does:")
    changes = fit_flux(plan, free, sizes)
    lines += [f"  {c.text}: {c.memory.total / GIB:.1f} GiB" for c in changes]
    if not changes or changes[-1].memory.total > free:
        lines.append("  and still it does not fit: take a GPU with more memory")
    return "\n".join(lines)


def _measures(plan: FluxPlan) -> Iterator[tuple[str, dict[str, object]]]:
    if not plan.cached:
        yield "cache latents and text embeddings", {"cached": True}
    if not plan.gradient_checkpointing:
        yield "switch gradient checkpointing on", {"gradient_checkpointing": True}
    if plan.batch_size > 1:
        yield "batches of 1, and more of them accumulated", {"batch_size": 1}
    if plan.lora_rank is not None and plan.quantize == "none":
        yield "quantize the frozen weights to int8", {"quantize": "int8"}
    if plan.lora_rank is not None and plan.quantize != "nf4":
        yield "quantize the frozen weights to nf4", {"quantize": "nf4"}
    if plan.optimizer == "adamw":
        yield "an 8-bit optimizer", {"optimizer": "adamw8bit"}
    if plan.lora_rank is None and plan.trained == "float32":
        yield "train in bfloat16", {"trained": "bfloat16"}
    for side in (768, 512):
        size = _lowered(plan.height, plan.width, side)
        if size[0] * size[1] < plan.height * plan.width:
            settings = {"height": size[0], "width": size[1]}
            yield f"images of {size[0]} x {size[1]} (height x width)", {**settings}
    for shards in (2, 4, 8):
        if shards > plan.shards:
            yield f"spread it over {shards} GPUs by FSDP2", {"shards": shards}
    if plan.lora_rank is None:
        lora: dict[str, object] = {"lora_rank": 16, "trained": "float32"}
        yield "train a LoRA of rank 16 instead of the whole transformer", lora


def _lowered(height: int, width: int, side: int) -> tuple[int, int]:
    factor = min(1.0, side / (height * width) ** 0.5)
    return max(16, round(height * factor / 16) * 16), max(16, round(width * factor / 16) * 16)
