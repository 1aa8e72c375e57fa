"""What a check adds up, whatever the samples come from."""

from typing import Any

from ..pipes import Buckets, DataError
from ..pipes.decode_fields import CaptionField
from ..pipes.decode_image import DecodePolicy, decode
from ..pipes.draws import Draws
from ..pipes.sample import Ref
from .check_copies import CopyCheck, digest_of
from .check_sizes import SizeCheck
from .findings import Findings

AT_ONCE = 256
"""Images handed to the threads at once: what is in memory does not depend on a shard's size."""

Fault = tuple[str, str]
"""A kind of `findings.KINDS`, and the reason in words."""

_DRAWS = Draws(0, Ref(0, 0, 0))


class Tally:
    """Adds up what is found in the samples of a data set.

    Attributes:
        findings: What was found.
        sizes: What buckets do to the images.
        copies: Which images are there more than once.

    Args:
        buckets: Where images go.
        crop_share: The share of an image that a crop may take without being noted, 0 to 1.
        caption: Name of the caption's field, as in `Decoder`.
        policy: How images are decoded.
    """

    def __init__(
        self, buckets: Buckets, crop_share: float, caption: str | None, policy: DecodePolicy
    ) -> None:
        self.findings = Findings()
        self.sizes = SizeCheck(buckets, self.findings, crop_share)
        self.copies = CopyCheck()
        self._captions = CaptionField(caption, "first", False, None)
        self._policy = policy

    def look(self, field: str, data: bytes) -> tuple[int, Fault | None]:
        """Return the hash of an image's bytes, and what is wrong with it; in any thread."""
        try:
            decode(data, self._policy)
        except DataError as error:
            return digest_of(data), ("corrupt_image", f"field {field!r}: {error}")
        return digest_of(data), None

    def caption_fault(self, sample: dict[str, Any]) -> Fault | None:
        """Return what is wrong with the caption of a sample, which need have no other fields."""
        try:
            field, text = self._captions.read(sample, _DRAWS)
        except DataError as error:
            return "no_caption", str(error)
        if text is None:
            fields = [name for name in sample if not name.startswith("__")]
            return "no_caption", f"its fields are: {', '.join(fields)}"
        return None if text else ("empty_caption", f"field {field or self._captions.name!r}")

    def add(self, url: str, key: str, digest: int, *faults: Fault | None) -> None:
        """Take in what was found in the next sample.

        Args:
            url: Names its shard, or its row.
            key: Its key.
            digest: Of its image, as from `look`; 0 where there is none.
            faults: What is wrong with it.
        """
        self.copies.add(digest)
        for fault in faults:
            if fault is not None:
                self.findings.add(fault[0], url, key, fault[1])
