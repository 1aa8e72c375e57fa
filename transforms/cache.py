"""What the caches of latents and of texts have in common.

A cache remembers what a pure function gave: an entry is named by all that went into it, so that
what is found under a name is what would be computed, and a changed ingredient gives a new name.
What is served is always the form that is stored, whether it was found or has just been computed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch

from .entry import Ingredients, Store, Tensors, entry_name
from .entry_rows import Fields, Rows, stack_rows, unpack_rows
from .explain import differences, in_words
from .held import Held, Hold

Record = dict[str, Any]
"""What workers say of a row: ``name`` of its entry, its ``source``, ``hit``: whether the store has
it, and where it does not, ``about``: what the store is to say of it, with its ``ingredients``."""


class Encoder(Protocol):
    """What a cache asks of an encoder."""

    @property
    def about(self) -> Ingredients:
        """All that its outputs depend on but its inputs, in plain JSON values."""
        ...


class Cache:
    """Looks entries up in workers, and has missing ones encoded by the process that trains.

    Pickled, it leaves its encoder behind, and all that it holds.

    Args:
        kind: What its entries are: "latents", or a text cache's name.
        store: Keeps the entries.
        encoder: Makes missing ones. None: nothing may be missing, and the store has entries of one
            encoder alone.
        hold: Where to hold entries once they were read, if the store's are within ``limit``; in the
            process that trains alone.
        limit: Most bytes to hold, or such as ``"2GB"``.

    Attributes:
        hits: Rows of batches that needed no encoder.
        misses: Rows that were encoded.
        seconds: Time that encoding took.
        filling: Set it before the loader is made where `prefill` is what it feeds: workers then
            say what is there, and read none of it.

    Raises:
        ValueError: There is no encoder, and the store tells of none or of several.
    """

    words: ClassVar[Mapping[str, str]] = {}
    """What `explain` calls ingredients."""

    def __init__(
        self,
        kind: str,
        store: Store,
        encoder: Encoder | None,
        *,
        hold: Hold = None,
        limit: int | str = "2GB",
    ) -> None:
        self.kind = kind
        self.store = store
        self.encoder = encoder
        self.held = Held(hold, limit)
        self.about = self._told() if encoder is None else dict(encoder.about)
        self.digest = entry_name(self.about)
        self.hits = self.misses = 0
        self.seconds = 0.0
        self.filling = False
        self._looks = 0
        self._fits = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "encoder": None}

    def _told(self) -> dict[str, Any]:
        """Return what the store says of its only encoder."""
        known = self.store.manifest().get(self.kind, [])
        if len(known) != 1:
            has = f"has entries of {len(known)} encoders" if known else "tells of no encoder"
            raise ValueError(
                f"the store {has} for {self.kind!r}, so give the encoder; None is for a store that "
                "was filled by one alone"
            )
        return dict(known[0])

    def _tell(self) -> None:
        """Have the store's manifest name the encoder."""
        manifest = self.store.manifest()
        known = manifest.get(self.kind, [])
        if self.about not in known:
            self.store.describe({**manifest, self.kind: [*known, self.about]})

    # -- in workers -----------------------------------------------------------------------------

    def ingredients(self, inputs: Ingredients) -> dict[str, Any]:
        """Return all that an entry of these inputs depends on."""
        return {**inputs, "kind": self.kind, "encoder": self.about}

    def name_of(self, inputs: Ingredients) -> str:
        """Return the name of the entry of these inputs."""
        # The encoder's part never changes, and is hashed once.
        return entry_name({**inputs, "kind": self.kind, "encoder": self.digest})

    def look(self, name: str) -> tuple[bool, Tensors | None]:
        """Return whether the store has an entry, and its tensors where they are to be sent along.

        They are not where the process that trains holds entries, and has room for all.
        """
        if self.filling:
            return name in self.store, None
        if self.held.hold is not None:
            if self._looks % 256 == 0:
                self._fits = self.store.sizes()[1] <= self.held.limit
            self._looks += 1
            if self._fits:
                return name in self.store, None
        found = self.store.read(name)
        return found is not None, found

    def record(self, name: str, source: str, hit: bool, about: Ingredients | None) -> Record:
        """Return what a worker says of a row; ``about`` is for a miss alone."""
        return {"name": name, "source": source, "hit": hit, "about": None if hit else about}

    # -- in the process that trains -------------------------------------------------------------

    def whole(
        self,
        found: Rows,
        records: Sequence[Record],
        encode: Callable[[list[int]], Sequence[Tensors]],
        device: torch.device | None,
        chunk: int | None = None,
    ) -> Fields:
        """Return the entries of all rows of a batch, those that are missing encoded and written.

        Args:
            found: What workers found.
            records: What they say of each row.
            encode: Gives the entries of these rows in the form that is stored, on any device.
            device: Where the entries are wanted; None: where they are.
            chunk: Most rows that are encoded at once.

        Raises:
            ValueError: An entry is missing, and there is no encoder, or no pixels to encode.
        """
        if isinstance(found, dict) and found and self.held.hold is None:
            self.hits += len(records)
            return {k: v if device is None else v.to(device) for k, v in found.items()}
        return stack_rows(self.gather(found, records, encode, device, chunk), device)

    def gather(
        self,
        found: Rows,
        records: Sequence[Record],
        encode: Callable[[list[int]], Sequence[Tensors]],
        device: torch.device | None,
        chunk: int | None = None,
    ) -> list[Tensors]:
        """Return one entry for each row, as `whole`, each where it happens to be."""
        known: dict[str, Tensors] = {}
        missing: dict[str, int] = {}
        for i, given in enumerate(unpack_rows(found, len(records))):
            name = records[i]["name"]
            if name in known or (name in missing and not given):
                continue
            entry = self.held.get(name) or given or self._read(records[i])
            if entry is None:
                missing[name] = i
            else:
                missing.pop(name, None)
                known[name] = entry
                self.held.put(name, entry, device)
        self.hits += len(records) - len(missing)
        rows = list(missing.values())
        size = chunk or len(rows)
        for start in range(0, len(rows), size or 1):
            some = rows[start : start + size]
            for row, entry in zip(some, self._encoded(some, records, encode), strict=True):
                known[records[row]["name"]] = entry
                self.held.put(records[row]["name"], entry, device)
        return [known[record["name"]] for record in records]

    def add_missing(
        self,
        records: Sequence[Record],
        encode: Callable[[list[int]], Sequence[Tensors]],
        chunk: int | None = None,
    ) -> None:
        """Encode and write the entries of a batch that are missing; those that are there stay.

        Args:
            records: What workers say of each row.
            encode: Gives the entries of these rows in the form that is stored, on any device.
            chunk: Most rows that are encoded at once.

        Raises:
            ValueError: An entry is missing, and there is no encoder, or nothing to encode.
        """
        missing = {r["name"]: i for i, r in reversed([*enumerate(records)]) if not r["hit"]}
        # Another process, or an earlier batch, may have written it since the worker looked.
        rows = sorted(i for name, i in missing.items() if name not in self.store)
        size = chunk or len(rows) or 1
        for start in range(0, len(rows), size):
            self._encoded(rows[start : start + size], records, encode)
        self.hits += len(records) - len(rows)

    def _read(self, record: Record) -> Tensors | None:
        """Return an entry from the store: it may have come meanwhile; a hit must be there."""
        found = self.store.read(record["name"])
        if found is None and record["hit"]:
            refresh = getattr(self.store, "refresh", None)
            if refresh is not None:  # another process may have written it a moment ago
                refresh()
                found = self.store.read(record["name"])
            if found is None:
                raise ValueError(
                    f"the entry {record['name']} of {record['source']} was in the cache when a "
                    "worker looked, and is not there any more: the cache was pruned under the run; "
                    "begin again from the last state"
                )
        return found

    def _encoded(
        self,
        rows: list[int],
        records: Sequence[Record],
        encode: Callable[[list[int]], Sequence[Tensors]],
    ) -> Sequence[Tensors]:
        if self.encoder is None:
            raise ValueError(
                f"{records[rows[0]]['source']} is not in the cache, and there is no encoder to "
                f"make its entry: {self.explain_record(records[rows[0]])}"
            )
        begun = time.perf_counter()
        made = encode(rows)
        # Memory of their own, and on the CPU, which waits for the device.
        stored = [{k: _own(v) for k, v in entry.items()} for entry in made]
        self.seconds += time.perf_counter() - begun
        self._tell()
        for row, entry in zip(rows, stored, strict=True):
            record = records[row]
            self.store.write(record["name"], entry, record["about"], record["source"])
        self.misses += len(rows)
        return made

    # -- for people -----------------------------------------------------------------------------

    def explain_record(self, record: Record) -> str:
        """Return in plain words why a row's entry would be computed, or that it would not be."""
        if record["hit"] or record["name"] in self.store:
            return f"{record['source']}: cached"
        wanted = record["about"]["ingredients"]
        others = [
            known["ingredients"]
            for known in self.store.about(record["source"])
            if known.get("ingredients", {}).get("kind") == self.kind
        ]
        if not others:
            return f"{record['source']}: not seen before"
        # Of several as near, the newest.
        nearest = min((differences(one, wanted) for one in reversed(others)), key=len)
        return f"{record['source']}: {in_words(nearest, self.words)}"


def _own(value: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU with memory of its own: a view would drag its storage along."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
