"""One process."""

from collections.abc import Callable
from typing import Any


def rank_zero_only(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
