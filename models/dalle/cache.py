"""What a causal transformer keeps of the positions that it has seen."""

from torch import Tensor


class Cache:
    """Keys, values and shifted channels by position.

    Args:
        total: Positions that there will be at most.

    Attributes:
        length: Positions seen so far.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.length = 0
        self._kept: dict[str, Tensor] = {}

    def extend(self, key: str, x: Tensor) -> Tensor:
        """Keep ``x``, [B, m, ...], for the next m positions; return [B, length + m, ...].

        What was kept before for these positions is overwritten.
        """
        end = self.length + x.shape[1]
        if key not in self._kept:
            self._kept[key] = x.new_zeros(x.shape[0], self.total, *x.shape[2:])
        kept = self._kept[key]
        kept[:, self.length : end] = x
        return kept[:, :end]

    def advance(self, m: int) -> None:
        """Count ``m`` more positions as seen."""
        self.length += m
