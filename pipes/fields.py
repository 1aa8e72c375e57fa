"""Choose and rename fields."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from .errors import DataError, name_sample
from .order import Item, Lane, Order, Through
from .pipe import Pipe
from .sample import KEY, URL, Ref, Sample


class Applying(Protocol):
    """A pipe that is a pure function of the fields of each sample."""

    def apply(self, sample: Sample) -> Sample:
        """Return the sample with other fields; raises `DataError` where it cannot."""


class FieldOrder(Through):
    """Applies a pure function of the fields to each sample, in `next` and in `resolve` alike."""

    def __init__(self, source: Order[Item], lane: Lane, pipe: Applying) -> None:
        super().__init__(source, lane)
        self.apply = pipe.apply

    def next(self) -> Item:
        while True:
            item = self.source.next()
            if item.sample is None:  # nobody has asked for it yet; `resolve` will apply this
                return item
            try:
                return Item(item.ref, self.apply(item.sample))
            except DataError as error:
                self.fail(item.ref, error)

    def resolve(self, ref: Ref) -> Sample:
        sample = self.source.resolve(ref)
        try:
            return self.apply(sample)
        except DataError as error:
            raise DataError(f"{name_sample(sample[URL], sample[KEY])}: {error}") from error


class Selector(Pipe):
    """Yields samples with only some of their fields (``.select("jpg", "txt")``).

    What is not selected is never read. Fields whose names begin with ``__`` stay.

    Args:
        source: Pipe of samples.
        fields: Names of the fields to keep; one that a sample lacks is bad data.
    """

    def __init__(self, source: Pipe, fields: Sequence[str]) -> None:
        if isinstance(fields, str) or not fields:
            raise ValueError(f"select needs names of fields, such as 'jpg', 'txt'; got {fields!r}")
        self.source: Pipe = source
        self.fields = tuple(fields)

    def apply(self, sample: Sample) -> Sample:
        """Return the sample with the chosen fields."""
        chosen = {k: v for k, v in sample.items() if k.startswith("__")}
        for name in self.fields:
            chosen[name] = field_of(sample, name)
        return chosen

    def _order(self, lane: Lane) -> Order[Item]:
        return FieldOrder(self.source._order(lane), lane, self)


class Renamer(Pipe):
    """Yields samples with fields renamed (``.rename(caption="txt")``).

    Args:
        source: Pipe of samples.
        new_to_old: New name to old name; a field that a sample lacks is bad data.
    """

    def __init__(self, source: Pipe, new_to_old: Mapping[str, str]) -> None:
        if not new_to_old:
            raise ValueError("rename needs new and old names, such as caption='txt'")
        self.source: Pipe = source
        self.new_to_old = dict(new_to_old)

    def apply(self, sample: Sample) -> Sample:
        """Return the sample with the new names."""
        old = set(self.new_to_old.values())
        renamed = {k: v for k, v in sample.items() if k not in old}
        for new, name in self.new_to_old.items():
            renamed[new] = field_of(sample, name)
        return renamed

    def _order(self, lane: Lane) -> Order[Item]:
        return FieldOrder(self.source._order(lane), lane, self)


def field_of(sample: Sample, name: str) -> object:
    """Return a field of a sample; a `DataError` where it has none of that name."""
    try:
        return sample[name]
    except KeyError:
        fields = ", ".join(f for f in sample if not f.startswith("__"))
        raise DataError(f"has no field {name!r}; its fields are: {fields or 'none'}") from None
