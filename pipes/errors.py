"""The one error that `on_error="skip"` may pass over."""


class DataError(ValueError):
    """A sample's data is bad: corrupt, truncated, undecodable, or a join's miss.

    The message names the shard, the key, the field and the cause. ``on_error="skip"`` covers these
    errors and no others: I/O errors are retried and then raised, and a bug in a mapped function is
    raised as it is. A function given to ``.map`` may raise it to have its sample skipped.
    """

    # One string is the only argument: torch rebuilds a worker's exception from its text alone.


class MissingData(DataError):
    """A field is missing or empty where the data set has it: a default may take its place."""


def name_sample(url: str, key: str, field: str | None = None) -> str:
    """Return how every error names a sample: ``sample 'k' of s.tar, field 'jpg'``."""
    where = f"sample {key!r} of {url}"
    return where if field is None else f"{where}, field {field!r}"
