"""Embeddings of single samples: fields whose value is a tensor [dimension], checked."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import DataError, MissingData
from .npy import parse_npy
from .npy_row_file import RowFile, npy_prefix
from .read import read_field
from .sample import Extent, Stored, Typed

FLOATS = {np.dtype(name): name for name in ("float16", "float32", "float64")}
TYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class EmbeddingForm:
    """What an embedding looks like, where it is stored and as a tensor.

    Attributes:
        dim: Number of elements; None: any.
        stored: ``"bfloat16"`` where 16-bit integers are the bits of bfloat16; None: as numpy says.
        dtype: Name of the tensor's type; None: as stored.
        normalize: Whether it is divided by its length.
    """

    dim: int | None = None
    stored: str | None = None
    dtype: str | None = None
    normalize: bool = False

    def check(self, dtype: np.dtype, dim: int) -> None:
        """Refuse rows of another type or dimension.

        Raises:
            DataError: The type is none of `TYPES`, or the dimension is not `dim`.
        """
        plain = dtype.newbyteorder("=")
        bits = plain == np.uint16 or (plain.kind == "V" and plain.itemsize == 2 and not plain.names)
        if self.stored == "bfloat16":
            if not bits:
                raise DataError(
                    f"stored='bfloat16' wants uint16, the bits of bfloat16; it has {dtype}"
                )
        elif plain not in FLOATS:
            hint = "; where these are the bits of bfloat16, say stored='bfloat16'" if bits else ""
            raise DataError(f"expected float16, float32 or float64, found {dtype}{hint}")
        if self.dim is not None and dim != self.dim:
            raise DataError(f"its embeddings have {dim} dimensions, expected {self.dim}")

    def is_zero(self, row: np.ndarray) -> bool:
        """Return whether all elements are zero, as where there was nothing to embed."""
        if self.stored == "bfloat16":
            return not (_bits(row) & 0x7FFF).any()  # but for the sign
        return not row.any()

    def tensor(self, row: np.ndarray) -> torch.Tensor:
        """Return the tensor [dim] of a row.

        Raises:
            MissingData: It is all zeros.
            DataError: It holds NaN or infinity, or would as a tensor of `dtype`.
        """
        # Copies, which torch may write to.
        if self.stored == "bfloat16":
            tensor = torch.from_numpy(_bits(row).view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(row.astype(row.dtype.newbyteorder("=")))
            # One pass instead of three: a sum other than 0 tells that there is a number in it, and
            # one that is finite that all are.
            with np.errstate(all="ignore"):
                total = float(np.add.reduce(row, dtype=np.float64))
        if self.stored == "bfloat16" or total == 0 or not math.isfinite(total):
            if self.is_zero(row):
                raise MissingData(ZEROS)
            _refuse_infinite(tensor, "holds NaN or infinity")
        if self.normalize:
            wide = tensor.to(torch.float64)
            tensor = (wide / wide.norm()).to(tensor.dtype if self.dtype is None else torch.float64)
        if self.dtype is None or TYPES[self.dtype] == tensor.dtype:
            return tensor
        tensor = tensor.to(TYPES[self.dtype])
        _refuse_infinite(tensor, f"has elements that are too large for {self.dtype}")
        return tensor


ZEROS = "is all zeros: no embedding was made of this sample"


def _bits(row: np.ndarray) -> np.ndarray:
    """Return a copy of 16-bit elements as integers in this machine's order of bytes."""
    # numpy gives other packages' bfloat16 the type V2, which has no order: it is little-endian.
    return (row.view("<u2") if row.dtype.kind == "V" else row).astype(np.uint16)


def _refuse_infinite(tensor: torch.Tensor, fault: str) -> None:
    if not torch.isfinite(tensor).all():
        raise DataError(fault)


class EmbeddingRow(Typed):
    """A row of a ``.npy`` file beside the tar.

    Args:
        file: The file.
        row: Number of the row, which is there.
        form: What it looks like.
    """

    __slots__ = ("file", "form", "row")

    def __init__(self, file: RowFile, row: int, form: EmbeddingForm) -> None:
        self.file = file
        self.row = row
        self.form = form

    def __repr__(self) -> str:
        return f"EmbeddingRow(row {self.row} of {self.file.name})"

    def read(self) -> bytes:
        """Return the row as stored, as the bytes of a ``.npy`` file."""
        raw = self.file.raw(self.row)
        if self.form.is_zero(np.frombuffer(raw, self.file.dtype)):
            raise MissingData(f"{self._name} {ZEROS}")
        return self.file.npy(raw)

    def value(self) -> torch.Tensor:
        """Return the tensor [dim]."""
        row = self.file.row(self.row)
        try:
            return self.form.tensor(row)
        except DataError as error:
            raise type(error)(f"{self._name} {error}") from error

    def check(self) -> None:
        """Raise where there is no embedding in the row."""
        if self.form.is_zero(self.file.row(self.row)):
            raise MissingData(f"{self._name} {ZEROS}")

    @property
    def _name(self) -> str:
        return f"row {self.row} of {self.file.name}"


class EmbeddingMember(Typed):
    """An embedding that a sample has in the tar, as the bytes of a ``.npy`` file.

    Args:
        member: Name of the field in the tar.
        stored: Where it lies.
        form: What it looks like; [1, dim] counts as [dim].
    """

    __slots__ = ("form", "member", "stored")

    def __init__(self, member: str, stored: Extent | Stored | bytes, form: EmbeddingForm) -> None:
        self.member = member
        self.stored = stored
        self.form = form

    def __repr__(self) -> str:
        return f"EmbeddingMember({self.member!r}, {self.stored!r})"

    def read(self) -> bytes:
        """Return the embedding as stored, as the bytes of a ``.npy`` file."""
        row = self._row()
        if self.form.is_zero(row):
            raise MissingData(f"member {self.member!r} {ZEROS}")
        return npy_prefix(row.dtype, row.shape) + row.tobytes()

    def value(self) -> torch.Tensor:
        """Return the tensor [dim]."""
        row = self._row()
        try:
            return self.form.tensor(row)
        except DataError as error:
            raise type(error)(f"member {self.member!r} {error}") from error

    def check(self) -> None:
        """Raise where there is no embedding in the member."""
        if self.form.is_zero(self._row()):
            raise MissingData(f"member {self.member!r} {ZEROS}")

    def _row(self) -> np.ndarray:
        data = read_field(self.member, self.stored)
        name = f"member {self.member!r}"
        rows = parse_npy(data, len(data), name)
        if len(rows.shape) not in (1, 2) or rows.shape[:-1] not in ((), (1,)):
            raise DataError(f"{name}: expected an array [dimension], found the shape {rows.shape}")
        if not rows.shape[-1]:
            raise MissingData(f"{name}: it is empty")
        whole = rows.offset + len(rows) * rows.row_bytes
        if len(data) != whole:
            raise DataError(f"{name}: it has {len(data):,} bytes of {whole:,}")
        try:
            self.form.check(rows.dtype, rows.shape[-1])
        except DataError as error:
            raise type(error)(f"{name}: {error}") from error
        return np.frombuffer(data, rows.dtype, offset=rows.offset)


def dtype_name(dtype: Any) -> str | None:
    """Return the name in `TYPES` of a torch type, a numpy type or a name; None of None.

    Raises:
        ValueError: It is none of them.
    """
    if dtype is None:
        return None
    if isinstance(dtype, torch.dtype):
        name = str(dtype).removeprefix("torch.")
    elif isinstance(dtype, str):
        name = dtype
    else:
        name = np.dtype(dtype).name
    if name not in TYPES:
        raise ValueError(f"dtype is one of {', '.join(TYPES)}, got {dtype!r}")
    return name
