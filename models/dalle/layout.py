"""Where text and image stand in a sequence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A text and then an image, row by row.

    Attributes:
        text_len: Text positions, the begin included.
        width: Side of the image in codes.
    """

    text_len: int
    width: int

    @property
    def length(self) -> int:
        """All positions: the text's and the image's."""
        return self.text_len + self.width**2

    def whole_rows(self, n: int) -> int:
        """Return the positions of the first ``n``, filled up to whole rows of the image."""
        if n <= self.text_len:
            return n
        return self.text_len + -(-(n - self.text_len) // self.width) * self.width
