"""``manifest.json``: what is said of a whole cache."""

import json
import os
from collections.abc import Mapping
from typing import Any

from .errors import DataError
from .shard_index import replacing

MOST = 16 << 20
"""Most bytes of a manifest."""


def read_manifest(path: str) -> dict[str, Any]:
    """Return what a manifest says; {} where there is none.

    Raises:
        DataError: It is no JSON object, or has more than `MOST` bytes.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST + 1)
    except FileNotFoundError:
        return {}
    try:
        if len(data) > MOST:
            raise ValueError(f"it has more than {MOST:,} bytes")
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it or write it anew") from error
    return found


def write_manifest(path: str, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, whole or not at all; one that says the same is left.

    Raises:
        ValueError: It holds a number that is not finite.
        TypeError: It holds no JSON values.
        OSError: It cannot be written.
    """
    text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    try:
        if os.path.exists(path) and read_manifest(path) == json.loads(text):
            return
    except DataError:
        pass
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())
