"""Numbers of bytes."""

import pytest

from penstock.transforms.byte_size import parse_size


def test_sizes() -> None:
    assert [parse_size(s) for s in ("2GB", "1 GiB", "1.5k", 7, None)] == [
        2_000_000_000,
        1 << 30,
        1500,
        7,
        None,
    ]
    for wrong in ("many", 0, True, "-1GB", 1.5):
        with pytest.raises(ValueError, match="limit is bytes, or such as '100GB'"):
            parse_size(wrong, "limit")  # type: ignore[arg-type]
