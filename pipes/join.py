"""Join samples with those of other shards, by key."""

from collections.abc import Mapping, Sequence
from typing import Any

from .companion import Companion
from .embedding_files import stem
from .embeddings import EmbeddingJoiner
from .errors import DataError, MissingData
from .fields import Renamer, Selector
from .join_order import JoinOrder, OnMissing, PresentOrder, check_on_missing, tar_listers
from .order import Item, Lane, Order
from .pipe import Pipe
from .sample import KEY, REF, URL, Ref, Sample
from .shards import ShardLister
from .sources import Sources, source_pipes
from .tar import TarReader


class KeyJoiner(Pipe):
    """Yields samples with the fields that other shards have for their key (``.join(other)``).

    For what is kept apart from the images: latents, second captions, masks. ``00012.tar`` is joined
    to the other set's ``00012.tar`` (or ``.tar.gz``; the folders differ), and in it each sample to
    the one with its key, in whatever order they stand. Fields stay byte ranges until they are
    loaded, and what is not loaded is never read. Remote shards of the other set are fetched with
    their partners, and stay while those are in use.

    Args:
        source: Pipe of samples of tars.
        other: Pipe of samples of tars, with `Selector`, `Renamer` and joiners at most behind its
            reader: ``ShardLister("latents/{00000..00999}.tar").read_tar().select("safetensors")``.
            Its lister's seed and order mean nothing here.
        on: What samples are joined by: ``"__key__"``.
        rename: New name to the other set's name of a field, where both sets have the name; a field
            of one name in both is bad data.
        prefix: Put before the names of all joined fields that ``rename`` does not name.
        on_missing: ``"raise"``: a sample without a partner is bad data, when it is loaded.
            ``"skip"``: the order half looks, and passes over such samples; they are counted in
            ``loader.skipped``.

    Raises:
        ValueError: The names of the shards do not pair (with ``"skip"``: none does), or ``other``
            has pipes that choose or reorder samples.
        TypeError: The samples of either are not those of tars.
    """

    def __init__(
        self,
        source: Pipe,
        other: Pipe,
        on: str = "__key__",
        *,
        rename: Mapping[str, str] | None = None,
        prefix: str = "",
        on_missing: OnMissing = "raise",
    ) -> None:
        check_on_missing(on_missing)
        if on != KEY:
            raise ValueError(f"samples are joined on {KEY!r}; got on={on!r}")
        self.source: Pipe = source
        self.other = other
        self.on = on
        self.rename_fields = dict(rename or {})
        self.prefix = prefix
        self.on_missing = on_missing
        self.filters = on_missing == "skip"
        _check_other(other)
        urls = [u for lister in tar_listers(source, "join") for u in lister.urls]
        (lister,) = tar_listers(other, "join")
        self._pairs = _pairs(urls, lister.urls, on_missing == "raise")

    def arguments(self) -> dict[str, Any]:
        return {
            "other": [_described(step) for step in _steps(self.other)],
            "on": self.on,
            "rename": self.rename_fields,
            "prefix": self.prefix,
            "on_missing": self.on_missing,
        }

    def _order(self, lane: Lane) -> Order[Item]:
        companion = lane.sources.companion(self, lambda: JoinedShards(self))
        source = self.source._order(lane)
        if self.on_missing == "raise":
            return JoinOrder(source, lane, companion)
        return PresentOrder(source, lane, companion, f"{type(self).__name__}")


class JoinedShards(Companion):
    """The other set's open shards, in one process."""

    def __init__(self, joiner: KeyJoiner) -> None:
        self._pairs = joiner._pairs
        self._sources = Sources(source_pipes(joiner.other), image_sizes=False)
        # By shards: nothing is counted. Only its `resolve` is used: it never walks.
        lane = Lane(0, 1, "shards", True, 0, "raise", self._sources)
        self._other = joiner.other._order(lane)
        self._new = {old: new for new, old in joiner.rename_fields.items()}
        self._prefix = joiner.prefix
        self.holds = self._sources.holds

    def join(self, sample: Sample) -> Sample:
        url, key = sample[URL], sample[KEY]
        shard = self._pairs.get(url)
        if shard is None:
            raise MissingData(f"has no partner: the shards joined to have no {stem(url)}.tar")
        found = self._sources.find(shard, key, sample[REF].sample)
        if found is None:
            raise MissingData(
                f"has no partner in {self._sources.url(shard)}: no sample there has this key"
            )
        joined = dict(sample)
        for name, value in self._other.resolve(Ref(0, shard, found)).items():
            if name.startswith("__"):
                continue
            new = self._new.get(name, self._prefix + name)
            if new in sample:
                raise DataError(
                    f"has a field {new!r}, and so has its partner in {self._sources.url(shard)}: "
                    f"give the partner's another name with rename={{'new': {name!r}}}"
                )
            joined[new] = value
        return joined

    def hold(self, url: str) -> None:
        if url in self._pairs:
            self._sources.hold(self._pairs[url])

    def release(self, url: str) -> None:
        if url in self._pairs:
            self._sources.release(self._pairs[url])

    def ahead(self, url: str) -> None:
        if url in self._pairs:
            self._sources.ahead(self._pairs[url])


def _steps(pipe: Pipe) -> list[Pipe]:
    """Return the pipes up to and with ``pipe``, the lister first."""
    return [step for source in pipe.sources for step in _steps(source)] + [pipe]


def _check_other(other: Pipe) -> None:
    if not isinstance(other, Pipe):
        raise TypeError(f".join() takes a pipe, got {type(other).__name__}")
    whole = (ShardLister, TarReader, Selector, Renamer, EmbeddingJoiner, KeyJoiner)
    for step in _steps(other):
        if not isinstance(step, whole) or step.filters:
            raise ValueError(
                f"the pipe joined to must give each sample of its shards, whatever their order: "
                f"{type(step).__name__} may stand behind the join, and not in the other pipe"
            )
        if isinstance(step, ShardLister) and step.sample_split is not None:
            raise ValueError(
                "the shards joined to are not to be split by samples: leave split= out"
            )


def _described(step: Pipe) -> dict[str, Any]:
    arguments = step.arguments()
    if isinstance(step, ShardLister):  # the rest is about its order
        arguments = {"shards": arguments["shards"]}
    return {"pipe": type(step).__name__, **arguments}


def _pairs(urls: Sequence[str], others: Sequence[str], missing_is_error: bool) -> dict[str, int]:
    """Return the number of each shard's partner, by its URL."""
    number = {name: i for i, name in enumerate(_stems(others))}
    stems = _stems(list(dict.fromkeys(urls)))
    lacking = [name for name in stems if name not in number]
    if lacking and (missing_is_error or len(lacking) == len(stems)):
        few = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
        have = ", ".join(list(number)[:3]) + (", …" if len(number) > 3 else "")
        raise ValueError(
            f"{len(lacking)} of {len(stems)} shards have no shard of their name to be joined to: "
            f"{few}; there are {have}. Give both sets the same names, leave shards out with start= "
            "and end=, or pass on_missing='skip' to pass their samples over"
        )
    return {url: number[name] for name, url in stems.items() if name in number}


def _stems(urls: Sequence[str]) -> dict[str, str]:
    """Return shards by the stems of their names, in order."""
    found: dict[str, str] = {}
    for url in urls:
        other = found.setdefault(stem(url), url)
        if other != url:
            raise ValueError(
                f"{other} and {url} have one name, so it is not known which of them a shard is "
                "joined to: join each set of shards by itself, and mix them then"
            )
    return found
