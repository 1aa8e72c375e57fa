"""Join embeddings to samples."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from .draws import hash_text
from .embedding import EmbeddingForm, dtype_name
from .embedding_files import list_embeddings, pair
from .embedding_rows import EmbeddingMembers, EmbeddingRows, RowJoin
from .errors import DataError
from .join_order import JoinOrder, OnMissing, PresentOrder, check_on_missing, tar_listers
from .key_index import KeyIndex
from .npy_row_file import RowFile
from .order import Item, Lane, Order
from .pipe import Pipe
from .remote import Remote
from .urls import base_name, local_path

Urls = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_TRIES = 8
"""Number of files that are looked at for the dimension, where the first ones are damaged."""


class EmbeddingJoiner(Pipe):
    """Yields samples with an embedding, a tensor [dim] each (``.join_embeddings(url, field=…)``).

    Rows of ``.npy`` files beside tars: to ``00012.tar`` belongs the one file of number 12 in the
    folder, such as ``img_emb_0012.npy`` (the number behind the last ``_``, with any zeros before
    it), an array [rows, dim]; a sample's row is the index in its key. It is what clip-retrieval and
    embedding-dataset-reordering write for the tars of img2dataset. A row is read by itself. Without
    ``url``, the embedding is a member of the tar: ``.npy``, ``.img_emb`` or ``.text_emb``.

    Behind ``.decode()`` and ``.load()`` the field is a tensor [dim], in batches [B, dim]. Rows of
    zeros, NaN or infinity are errors. A row is never another sample's: keys that name another tar,
    or one row twice, a file with rows in the order of the samples, files of another dimension are
    refused.

    Remote files are fetched into the cache with their tars, and stay while those are in use.

    Args:
        source: Pipe of samples of tars.
        url: Folder of the ``.npy`` files, or a pattern of them, on any fsspec filesystem; None:
            members of the tars.
        field: Name of the field that samples get.
        member: Without ``url``, the tar's field that holds it; None: the only one that can.
        index_width: Number of last characters of a key that are its index; None: what follows the
            digits of the tar's name, with which all keys must begin, as img2dataset's do.
        shard_width: Number of first characters of a key that are the shard's number, instead.
        dtype: The tensor's type: ``"float32"``, ``torch.float16``, …; None: as stored.
        stored: ``"bfloat16"`` where uint16 are the bits of bfloat16.
        dim: The dimension that all must have; None: that of the first file.
        normalize: Divide each embedding by its length.
        on_missing: ``"raise"``: a sample without an embedding is bad data, when it is loaded.
            ``"skip"``: the order half looks, and passes over samples whose file or row is not
            there or whose row is all zeros; they are counted in ``loader.skipped``.
        storage_options: What fsspec's filesystem takes; None: those of the tars.

    Raises:
        ValueError: A tar has no file of its number, with ``"raise"``, or none has; numbers are
            ambiguous; or there is no number in a name.
        FileNotFoundError: There is no such folder.
    """

    def __init__(
        self,
        source: Pipe,
        url: Urls | None = None,
        *,
        field: str = "image_embedding",
        member: str | None = None,
        index_width: int | None = None,
        shard_width: int | None = None,
        dtype: Any = None,
        stored: Literal["bfloat16"] | None = None,
        dim: int | None = None,
        normalize: bool = False,
        on_missing: OnMissing = "raise",
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        check_on_missing(on_missing)
        if stored not in (None, "bfloat16"):
            raise ValueError(f"stored is 'bfloat16' or None, got {stored!r}")
        if dim is not None and dim < 1:
            raise ValueError(f"dim is a number of elements, at least 1, got {dim}")
        if not field or field.startswith("__"):
            raise ValueError(f"field is the name of a field, got {field!r}")
        if url is not None and member is not None:
            raise ValueError("member is a field of the tar; it goes without a url")
        self.source: Pipe = source
        self.field = field
        self.member = member
        self.index_width = index_width
        self.shard_width = shard_width
        self.dtype = dtype_name(dtype)
        self.stored = stored
        self.dim = dim
        self.normalize = normalize
        self.on_missing = on_missing
        self.filters = on_missing == "skip"
        self._rows: RowJoin | None = None
        keys = KeyIndex(index_width, shard_width)
        if url is not None:
            self._rows = self._paired(url, keys, storage_options)
            self.dim = self._rows.form.dim

    def _paired(self, url: Urls, keys: KeyIndex, storage_options: dict[str, Any] | None) -> RowJoin:
        listers = tar_listers(self.source, "join_embeddings")
        shards = listers[0].store().shards
        options = listers[0].storage_options if storage_options is None else storage_options
        cache = replace(shards, remote=Remote(options))
        files = list_embeddings(url, cache.remote)
        where = str(url) if isinstance(url, str | os.PathLike) else "the files given"
        urls = [u for lister in listers for u in lister.urls]
        digits = pair(urls, files, where, self.on_missing == "raise")
        numbers = {int(number) for number in digits.values()}
        files = {number: name for number, name in files.items() if number in numbers}
        dim = _dimension(files, cache.remote) if self.dim is None else self.dim
        form = EmbeddingForm(dim, self.stored, self.dtype, self.normalize)
        return RowJoin(self.field, where, files, digits, keys, form, cache)

    def arguments(self) -> dict[str, Any]:
        # Where the files lie is no difference.
        named = ("field", "member", "index_width", "shard_width", "dtype", "stored", "dim")
        found = {name: getattr(self, name) for name in (*named, "normalize", "on_missing")}
        if self._rows is None:
            return found
        names = [base_name(self._rows.files[n]) for n in sorted(self._rows.files)]
        files = {
            "count": len(names),
            "names": f"{hash_text('/'.join(names)):016x}",
            "first": names[0],
            "last": names[-1],
        }
        return {"files": files, **found}

    def _order(self, lane: Lane) -> Order[Item]:
        how = self._rows
        form = EmbeddingForm(self.dim, self.stored, self.dtype, self.normalize)
        companion = lane.sources.companion(
            self,
            lambda: (
                EmbeddingMembers(self.field, self.member, form)
                if how is None
                else EmbeddingRows(how, lane.sources)
            ),
        )
        source = self.source._order(lane)
        if self.on_missing == "raise":
            return JoinOrder(source, lane, companion)
        return PresentOrder(source, lane, companion, f"{type(self).__name__}({self.field!r})")


def _dimension(files: dict[int, str], remote: Remote) -> int | None:
    """Return the dimension of the first file whose header can be read; None without any."""
    for number in sorted(files)[:_TRIES]:
        name = files[number]
        path = local_path(name)
        try:
            if path is not None:
                with open(path, "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    return RowFile(name, size, lambda at, n: os.pread(file.fileno(), n, at)).dim
            size = remote.info(name).version.size
            return RowFile(name, size, lambda at, n: remote.read(name, at, at + n)).dim  # noqa: B023
        except DataError:
            continue  # it is named when its first sample is read
    return None
