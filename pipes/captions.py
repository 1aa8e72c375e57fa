"""Captions as pure functions: from a field's bytes to one text, and what is put around it.

Every function that draws is a function of its arguments and of the sample's `Draws`; ``purpose``
names the draws, so that two pipes of one kind in a graph can draw apart.
"""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from .draws import Draws
from .errors import DataError
from .outcomes import Outcomes, merged

Pick = Literal["first", "random"] | Sequence[float]
CaptionField = bytes | bytearray | memoryview | str | Sequence[Any] | Mapping[str, Any]

CAPTIONS = ("caption", "txt", "text")
"""Names of fields that hold a sample's caption; the first that a sample has counts."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def choose_caption(
    value: CaptionField,
    *,
    pick: Pick = "first",
    lines: bool = False,
    draws: Draws,
    json_field: str | Sequence[str] | None = None,
    purpose: str = "caption.pick",
) -> str:
    """Return one caption of a field's value, stripped; "" where the field holds only blanks.

    Args:
        value: A field: bytes (UTF-8 text, or JSON where ``json_field`` is given), text, a list of
            captions, or a parsed JSON object.
        pick: Which of several; see `pick_caption`.
        lines: Whether each line of a text is a caption of its own; otherwise the text is one.
        draws: The sample's draws.
        json_field: Name of the field in the JSON object that has the caption, or a list of them; of
            several names each gives one caption, in their order, and may be missing.
        purpose: Name of the draw.

    Raises:
        DataError: If the text is not UTF-8, the JSON cannot be parsed, or it has no caption.
    """
    if json_field is not None:
        value = read_json_field(value, json_field)
    return pick_caption(caption_candidates(value, lines=lines), pick, draws=draws, purpose=purpose)


def decode_text(data: bytes | bytearray | memoryview) -> str:
    """Return the text of UTF-8 bytes, without a byte order mark.

    Raises:
        DataError: If ``data`` is not UTF-8; it names the offset of the first bad byte.
    """
    data = bytes(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        known = "UTF-16" if data.startswith(_UTF16) else "another encoding"
        raise DataError(
            f"text is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} "
            f"({error.reason}); it looks like {known}: convert it, for instance with "
            "iconv -f LATIN1 -t UTF-8, or leave the sample out with on_error='skip'"
        ) from None
    return text.removeprefix("\ufeff")


def read_json_field(value: CaptionField, names: str | Sequence[str]) -> str | list[Any]:
    """Return a field of a JSON object, or a list with one entry for each of several names.

    Args:
        value: The object, or the bytes or text of one.
        names: One name, which must be there; or several, of which at least one must be there: the
            places of the others hold "".

    Raises:
        DataError: If ``value`` is not a JSON object or lacks the names.
    """
    record = parse_json(value)
    several = [names] if isinstance(names, str) else list(names)
    if not any(name in record for name in several):
        wanted = " or ".join(map(repr, several))
        raise DataError(f"JSON has no field {wanted}; it has {sorted(map(str, record))}")
    if isinstance(names, str):
        found = record[names]
        return found if isinstance(found, list) else _caption_text(found)
    return [_caption_text(record.get(name)) for name in several]


def parse_json(value: CaptionField) -> Mapping[str, Any]:
    """Return the JSON object that ``value`` is or has the text of.

    Raises:
        DataError: If it is not UTF-8, cannot be parsed, or is no object.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        value = decode_text(value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"JSON cannot be parsed: {error}") from None
    if not isinstance(value, Mapping):
        raise DataError(f"JSON must be an object with named fields, got {type(value).__name__}")
    return value


def caption_candidates(value: CaptionField, *, lines: bool = False) -> list[str]:
    """Return all captions in ``value``, stripped; blank ones keep their places as "".

    Places are kept for the sake of weights: `pick_caption` never picks a blank while there is
    another.

    Raises:
        DataError: If the text is not UTF-8, or an entry of a list is no text.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        value = decode_text(value)
    if isinstance(value, str):
        text = value.replace("\r\n", "\n").replace("\r", "\n")
        return [part.strip() for part in text.split("\n")] if lines else [text.strip()]
    if isinstance(value, Mapping):
        raise DataError(
            f"caption is an object with fields {sorted(map(str, value))}; name one of them"
        )
    return [_caption_text(entry) for entry in value]


def pick_caption(
    candidates: Sequence[str], pick: Pick = "first", *, draws: Draws, purpose: str = "caption.pick"
) -> str:
    """Return one of ``candidates``; blank ones are left out, and without others it is "".

    Args:
        candidates: Captions; "" holds a place.
        pick: "first"; "random", all alike; or a weight for each place: weights of blank or missing
            captions fall to the others in proportion, captions beyond the last weight have none.
            Where all that are there have no weight, the first is taken.
        draws: The sample's draws.
        purpose: Name of the draw.
    """
    there = [(i, caption) for i, caption in enumerate(candidates) if caption]
    if not there:
        return ""
    if pick == "first" or len(there) == 1:
        return there[0][1]
    if pick == "random":
        return there[draws.below(len(there), purpose)][1]
    weights = [float(pick[i]) if i < len(pick) else 0.0 for i, _ in there]
    left = draws.uniform(purpose) * sum(weights)
    for weight, (_, caption) in zip(weights, there, strict=True):
        if left < weight:
            return caption
        left -= weight
    # Rounding may leave a crumb for the last caption that has a weight.
    return next((c for w, (_, c) in zip(weights[::-1], there[::-1], strict=True) if w), there[0][1])


def pick_outcomes(candidates: Sequence[str], pick: Pick = "first") -> Outcomes[str]:
    """Return what `pick_caption` may pick, each with its weight; arguments as there."""
    there = [(i, caption) for i, caption in enumerate(candidates) if caption]
    if pick == "random":
        weights = [Fraction(1)] * len(there)
    elif pick == "first":
        weights = []
    else:
        weights = [Fraction(pick[i]) if i < len(pick) else Fraction(0) for i, _ in there]
    total = sum(weights)
    if not total:
        return [(Fraction(1), there[0][1] if there else "")]
    return merged((w / total, caption) for w, (_, caption) in zip(weights, there, strict=True))


def add_affixes(
    caption: str,
    *,
    prefix: str = "",
    suffix: str = "",
    trigger: str = "",
    separator: str = ", ",
) -> str:
    """Return trigger, prefix, caption and suffix as one text; an empty caption stays empty.

    ``add_affixes("a dog", prefix="photo of ", trigger="sks")`` is "sks, photo of a dog".

    Args:
        caption: The caption.
        prefix: Put directly in front: bring the space along.
        suffix: Put directly behind.
        trigger: A phrase put in front of all, with ``separator``, unless the text already has it
            (as words of their own: "cat" is not in "category"; upper and lower case differ).
        separator: Stands between the trigger and the rest.
    """
    if not caption:
        return caption
    text = prefix + caption + suffix
    # ASCII: scripts without spaces between words have no word bounds to find.
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text, re.ASCII):
        return text
    return trigger + separator + text


def check_pick(pick: Pick) -> None:
    """Raise a ValueError unless ``pick`` is "first", "random" or a list of weights."""
    if isinstance(pick, str):
        if pick not in ("first", "random"):
            raise ValueError(f"pick is 'first', 'random' or a list of weights, got {pick!r}")
    elif not all(0 <= w < float("inf") for w in pick) or not sum(pick) > 0:
        raise ValueError(f"weights must be 0 or more, and not all 0, got {list(pick)}")


def _caption_text(entry: Any) -> str:
    """Return an entry of a list or of a JSON object as a stripped caption; None is a blank."""
    if entry is None:
        return ""
    if not isinstance(entry, str):
        raise DataError(f"caption must be text, got {type(entry).__name__} {entry!r:.80}")
    try:
        entry.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; tokenizers choke
        raise DataError(f"caption has half a surrogate pair at character {error.start}") from None
    return entry.strip()
