"""Numbers of bytes as people write them."""

import re

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)


def parse_size(size: str | int | None, name: str = "cache_size") -> int | None:
    """Return a number of bytes: 100000000000 of ``"100GB"``, 1073741824 of ``"1GiB"``.

    Args:
        size: Bytes, or text; None stays None.
        name: What the error calls it.

    Raises:
        ValueError: It is no size, or less than 1 byte.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is not None:
        number, unit, binary = found.groups()
        size = round(float(number) * (1024 if binary else 1000) ** _UNITS[unit.lower()])
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} is bytes, or such as '100GB' or '64GiB'; got {size!r}")
    return size
