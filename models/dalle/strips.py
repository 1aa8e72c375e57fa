"""An image cut into strips, each with the few keys that it may see."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Layout
from .patterns import KERNEL


class Strips:
    """Rows or columns of an image as samples of a batch of their own.

    The keys of a strip are the whole text's and its own; for the convolution-like kind those of
    its row and the four above. A code is so compared with t + w or t + 5w keys, and not t + w**2.
    Below, S is the number of strips and l their length: the w rows of w codes, or columns.

    Args:
        kind: "axial_row", "axial_col" or "conv_like".
        layout: Where text and image stand.
        n: Positions: the text's and those of whole rows.
    """

    def __init__(self, kind: str, layout: Layout, n: int) -> None:
        self.text, self.width, self.rows = layout.text_len, layout.width, 1
        self.by_column = kind == "axial_col"
        self.length = (n - layout.text_len) // layout.width if self.by_column else layout.width
        self.count = (n - layout.text_len) // self.length
        if kind == "conv_like":
            self.rows = KERNEL

    def cut(self, words: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the strips' queries and what they see.

        Args:
            words: Queries, keys and values of the text, [B, t, 3, H, D].
            image: The same of the image, [B, S l, 3, H, D].

        Returns:
            Queries [B S, l, H, D]; keys and values [B S, t + s, 2, H, D].
        """
        rows = torch.unflatten(image, 1, (-1, self.width))
        rows = rows.transpose(1, 2) if self.by_column else rows
        queries, own = torch.split(rows, [1, 2], dim=3)
        if self.rows > 1:
            above = F.pad(own, (0, 0, 0, 0, 0, 0, 0, 0, self.rows - 1, 0))
            own = above.unfold(1, self.rows, 1).movedim(-1, 2).flatten(2, 3)
        text = words[:, None, :, 1:].expand(-1, self.count, -1, -1, -1, -1)
        seen = torch.cat([text, own], dim=2)
        return queries.squeeze(3).flatten(0, 1), seen.flatten(0, 1)

    def together(self, out: Tensor) -> Tensor:
        """Return [B S, l, H, D] as the image's positions, [B, S l, H, D]."""
        image = torch.unflatten(out, 0, (-1, self.count))
        return (image.transpose(1, 2) if self.by_column else image).flatten(1, 2)

    def mask(self, batch: int, visible: Tensor | None, like: Tensor) -> Tensor:
        """Return what is added to the scores, 0 or -inf, to broadcast to [B S, 1, l, t + s].

        Args:
            batch: B.
            visible: Bool [B, m]: which of the first m positions may be seen; None for all.
            like: Gives dtype and device.
        """
        device = like.device
        at = torch.arange(self.length, device=device)
        right = at[:, None] - at
        if self.rows == 1:
            image = (right >= 0)[None]
        else:
            window = (right >= 0) & (right < KERNEL)
            strip = torch.arange(self.count, device=device)
            above = torch.arange(self.rows - 1, -1, -1, device=device)
            there = strip[:, None] >= above  # strips that begin above the image have fewer rows
            image = (there[:, None, :, None] & window[:, None]).flatten(2)
        words = image.new_ones(*image.shape[:2], self.text)
        seen = torch.cat([words, image], dim=2)
        if visible is not None:
            padded = F.pad(visible[:, : self.text], (0, seen.shape[2] - self.text), value=True)
            seen = (seen & padded[:, None, None]).expand(-1, self.count, -1, -1).flatten(0, 1)
        elif len(seen) > 1:
            seen = seen.expand(batch, -1, -1, -1).flatten(0, 1)
        added = torch.zeros(seen.shape, dtype=like.dtype, device=device)
        return added.masked_fill_(~seen, -torch.inf)[:, None]
