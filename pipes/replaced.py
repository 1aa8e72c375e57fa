"""Names of other libraries that are kept, so that their users' programs run: each says once what
replaces it."""

import functools
import warnings


@functools.cache
def warn_replaced(name: str, instead: str) -> None:
    """Warn, once in a process, that ``name`` is there for old programs.

    Args:
        name: The name.
        instead: The code that replaces it.
    """
    warnings.warn(
        f"{name} is kept for programs that were written for DALLE2-pytorch; in new ones write "
        f"{instead}",
        FutureWarning,
        stacklevel=3,
    )
