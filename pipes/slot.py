"""The memory of the batch that is being made, and each sample's place in it."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .recycled import Recycled


class BatchMemory:
    """The tensors of the batch that is being made, each made when a sample asks for its row.

    Args:
        count: Samples of the batch.
        shared: Make tensors in shared memory.
        recycled: Where other memory comes from.
    """

    def __init__(self, count: int, shared: bool, recycled: Recycled | None = None) -> None:
        self._count = count
        self._shared = shared
        self._recycled = recycled or Recycled()
        self._whole: dict[Any, torch.Tensor] = {}
        self._rows: dict[Any, tuple[tuple[int, ...], torch.dtype, Sequence[torch.Tensor]]] = {}
        self._bytes: dict[Any, memoryview] = {}

    def row(
        self, name: Any, i: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Return row ``i`` of a tensor; None where it is of another shape or type already."""
        found = self._rows.get(name)
        if found is None:
            whole = self._whole[name] = self._empty((self._count, *shape), dtype)
            found = self._rows[name] = (shape, dtype, whole.unbind())  # less time than each alone
        return found[2][i] if found[0] == shape and found[1] == dtype else None

    def row_bytes(self, name: Any, i: int) -> memoryview:
        """Return the memory of row ``i`` of a tensor that a row was asked of."""
        view = self._bytes.get(name)
        if view is None:
            view = self._bytes[name] = self._whole[name].view(-1).view(torch.uint8).numpy().data
        size = len(view) // self._count
        return view[i * size : (i + 1) * size]

    def whole(self, name: Any) -> torch.Tensor:
        """Return a tensor that a row was asked of."""
        return self._whole[name]

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        if not self._shared:
            return self._recycled.empty(size).view(dtype).view(shape)
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]


class Slot:
    """A sample's place in the batch that is being made.

    Args:
        size: (height, width) that its image gets; None: its own.
        memory: The batch's tensors; None: there are none, and rows are None.
        i: The sample's number in the batch.
        masked: Whether masks are kept.
    """

    __slots__ = ("_i", "_masked", "_memory", "_rows", "size")

    def __init__(
        self,
        size: tuple[int, int] | None,
        memory: BatchMemory | None = None,
        i: int = 0,
        masked: bool = False,
    ) -> None:
        self.size = size
        self._memory = memory
        self._i = i
        self._masked = masked
        self._rows: dict[Any, torch.Tensor | None] = {}

    @property
    def image(self) -> torch.Tensor | None:
        """Its part of the batch's tensor, uint8 [3, H, W]; None where sizes differ."""
        return None if self.size is None else self.row("image", (3, *self.size), torch.uint8)

    @property
    def mask(self) -> torch.Tensor | None:
        """Its part of the batch's masks, uint8 [1, H, W], where masks are kept."""
        if self.size is None or not self._masked:
            return None
        return self.row("mask", (1, *self.size), torch.uint8)

    def row(self, name: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """Return its part of one of the batch's tensors, to be filled: the field ``name``, or a
        (field, name) that is in a field's dict. None where other samples' are different."""
        if self._memory is None:
            return None
        row = self._rows.get(name)
        if row is None or row.shape != shape or row.dtype != dtype:
            row = self._rows[name] = self._memory.row(name, self._i, shape, dtype)
        return row

    def row_bytes(self, name: Any) -> memoryview:
        """Return the memory of a part that `row` gave."""
        assert self._memory is not None
        return self._memory.row_bytes(name, self._i)

    def holds(self, field: str, value: Any) -> bool:
        """Return whether the field's value is its part of the batch's tensor, or a dict of such."""
        if isinstance(value, dict) and value:
            return all(v is not None and v is self._rows.get((field, k)) for k, v in value.items())
        return value is not None and value is self._rows.get(field)
