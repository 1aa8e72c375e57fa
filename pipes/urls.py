"""Expand what a user says about shards into the URLs of the shards."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs

from .braces import expand_braces

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.zst")
"""Endings of the names that are taken for shards where a folder is given."""

LIST_ENDINGS = (".txt", ".list")
"""Endings of the names of text files that list URLs."""

MAX_URLS = 10_000_000
"""The most URLs that one brace expression may make: beyond it a number was mistyped."""

# The second half spares the IPv6 address of http://[::1]:9000/0.tar.
_SEPARATOR = re.compile(r"::(?![^\[\]]*\])")
_DIGITS = re.compile(r"[0-9]+")


def expand_urls(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    start: int | None = None,
    end: int | None = None,
    options: Mapping[str, Any] | None = None,
    allow_pipe: bool = False,
) -> list[str]:
    """Return the URLs of the shards that ``urls`` describes, in its order.

    Args:
        urls: One of these, or a list of them, each expanded in order:

            - a path, or a URL that fsspec opens; ``~`` is expanded in local paths;
            - with braces, as bash and webdataset expand them: ``{00000..00999}``, ``{0..9..2}``,
              ``{a,b}``, several and nested ones; a backslash takes a character as it is, and
              braces without a partner stand for themselves;
            - several of these with ``::`` between them, as in webdataset;
            - with ``*``, ``?`` or ``[ ]``: the files that match, numbers in the names in numeric
              order (``?`` is no wildcard in http URLs);
            - a local folder, or any URL that ends in ``/``: the `TAR_ENDINGS` in it;
            - a name that ends in one of `LIST_ENDINGS`, or begins with ``@``: a text file (UTF-8)
              with one of these a line. Blank lines and those that begin with ``#`` are passed
              over; a relative path is relative to the working directory.
        start: The first shard number to keep (see `shard_number`), as in img2dataset's and
            DALLE2's configs.
        end: The last shard number to keep: itself kept.
        options: fsspec's storage options, for globs, folders and lists.
        allow_pipe: Whether ``pipe:`` URLs are let through; their braces are expanded.

    Raises:
        ValueError: Where nothing is found, a pattern matches nothing, a URL comes twice, a name
            has no number though ``start`` or ``end`` is given, or a URL is a ``pipe:``.
        FileNotFoundError: If a list of URLs or a folder does not exist.
    """
    items = [urls] if isinstance(urls, str | os.PathLike) else list(urls)
    how = _How(dict(options or {}), allow_pipe)
    found = [url for item in items for url in _expand_item(_text(item), how)]
    if not found:
        raise ValueError(f"no shards in {urls!r}: expected at least one URL")
    _refuse_duplicates(found)
    return found if start is None and end is None else _in_range(found, start, end)


def base_name(url: str) -> str:
    """Return the last part of the path of ``url``, without the query of an http URL."""
    if url.startswith(("http://", "https://")):
        url = url.partition("#")[0].partition("?")[0]
    return url.rstrip("/").rpartition("/")[2]


def shard_number(url: str) -> int | None:
    """Return the last number in the base name's stem, or None: 12 of ``s3://b/part2-00012.tar``."""
    found = _DIGITS.findall(_split_ending(base_name(url))[0])
    return int(found[-1]) if found else None


def local_path(url: str) -> str | None:
    """Return the absolute path of a local file's path or URL, or None for a remote one."""
    protocol, rest = _split_protocol(url)
    if protocol in ("", "file", "local") and not url.startswith("pipe:"):
        return os.path.abspath(os.path.expanduser(rest))
    return None


class _How(NamedTuple):
    """What holds for a whole expansion, and the lists of URLs that an item stands in."""

    options: dict[str, Any]
    allow_pipe: bool
    lists: tuple[str, ...] = ()


def _text(item: str | os.PathLike[str]) -> str:
    text = os.fspath(item)
    if not isinstance(text, str):
        raise TypeError(f"a URL must be a str or a path, got {type(text).__name__}: {text!r}")
    return text


def _expand_item(item: str, how: _How) -> Iterator[str]:
    """Yield the URLs of one item."""
    for part in [item] if item.startswith("pipe:") else _SEPARATOR.split(item):
        if not part.strip():
            raise ValueError(f"empty URL in {item!r}")
        for count, url in enumerate(expand_braces(part)):
            if count == MAX_URLS:
                raise ValueError(f"{part!r} expands to more than {MAX_URLS:,} URLs")
            yield from _expand_url(url, how)


def _expand_url(url: str, how: _How) -> Iterator[str]:
    if url.startswith("pipe:"):
        if not how.allow_pipe:
            raise ValueError(
                f"{url!r} is refused: a shell command is run only with allow_pipe=True; else fetch "
                "the shard first, or give a URL that fsspec opens, such as s3://bucket/00000.tar"
            )
        yield url
        return
    at = url.startswith("@")
    for match in _matches(url[at:], how):
        if at or base_name(match).endswith(LIST_ENDINGS):
            yield from _read_list(match, how)
        elif match.endswith("/") or _is_local_folder(match):
            yield from _tars_in(match, how)
        else:
            yield match


def _matches(url: str, how: _How) -> list[str]:
    """Return the files that ``url`` matches where it is a glob, else itself; ``~`` is expanded."""
    if url.startswith("~"):
        url = os.path.expanduser(url)
    if not _is_glob(url):
        return [url]
    found = _glob_local(url) if local_path(url) is not None else _glob_remote(url, how)
    if not found:
        raise ValueError(f"{url!r} matches no file")
    return sorted(found, key=natural)


def _is_glob(url: str) -> bool:
    protocol, rest = _split_protocol(url)
    if protocol in ("http", "https"):
        # "?" begins the query of an http URL, and "[" an IPv6 address.
        return any(char in rest.partition("/")[2] for char in "*[")
    return any(char in rest for char in "*?[")


def _glob_local(url: str) -> list[str]:
    protocol, rest = _split_protocol(url)
    prefix = f"{protocol}://" if protocol else ""
    found = [path for path in glob.glob(rest, recursive=True) if not os.path.isdir(path)]
    if not found and os.path.exists(rest):
        return [url]  # a file whose name has brackets in it
    return [prefix + path for path in found]


def _glob_remote(url: str, how: _How) -> list[str]:
    protocol, rest = _split_protocol(url)
    fs, path = url_to_fs(url, **how.options)
    found = [name for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
    if not found and fs.exists(path):
        return [url]
    if not rest.startswith("/"):
        found = [name.lstrip("/") for name in found]  # the memory filesystem's begin with one
    # http's names are URLs already.
    return [name if "://" in name else f"{protocol}://{name}" for name in found]


def _is_local_folder(url: str) -> bool:
    if url.endswith(TAR_ENDINGS):  # spares a stat of each of 100,000 shards
        return False
    path = local_path(url)
    return path is not None and os.path.isdir(path)


def _tars_in(folder: str, how: _How) -> list[str]:
    path = local_path(folder)
    if path is not None:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    else:
        fs, inside = url_to_fs(folder, **how.options)
        entries_ = fs.ls(inside, detail=True)
        names = [base_name(entry["name"]) for entry in entries_ if entry["type"] == "file"]
    names = [name for name in names if name.endswith(TAR_ENDINGS) and not name.startswith(".")]
    if not names:
        raise ValueError(f"no shards ({', '.join(TAR_ENDINGS)}) in the folder {folder!r}")
    return [folder.rstrip("/") + "/" + name for name in sorted(names, key=natural)]


def _read_list(url: str, how: _How) -> Iterator[str]:
    if url in how.lists:
        raise ValueError(f"the list of URLs {url!r} names itself: {' -> '.join((*how.lists, url))}")
    options = how.options if local_path(url) is None else {}
    try:
        with fsspec.open(url, "rb", **options) as file:
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError as err:
        raise FileNotFoundError(f"no such list of URLs: {url}") from err
    except UnicodeDecodeError as err:
        raise ValueError(f"{url}: expected a text file (UTF-8) of URLs: {err}") from err
    for number, line in enumerate(text.splitlines(), 1):
        item = line.strip()
        if not item or item.startswith("#"):
            continue
        try:
            yield from _expand_item(item, how._replace(lists=(*how.lists, url)))
        except (ValueError, FileNotFoundError) as err:
            raise type(err)(f"{url}, line {number}: {err}") from err


def _in_range(urls: list[str], start: int | None, end: int | None) -> list[str]:
    numbers = [shard_number(url) for url in urls]
    if None in numbers:
        url = urls[numbers.index(None)]
        raise ValueError(f"start and end choose shards by number, but {url!r} has none in its name")
    known = [number for number in numbers if number is not None]
    low = min(known) if start is None else start
    high = max(known) if end is None else end
    found = [url for url, number in zip(urls, known, strict=True) if low <= number <= high]
    if not found:
        raise ValueError(
            f"no shard has a number from start={start} to end={end} (both included): "
            f"the {len(urls)} shards have {min(known)} to {max(known)}"
        )
    return found


def _refuse_duplicates(urls: list[str]) -> None:
    names = [local_path(url) or url for url in urls]
    count = Counter(names)
    pairs = zip(urls, names, strict=True)
    double = list(dict.fromkeys(url for url, name in pairs if count[name] > 1))
    if double:
        more = f" and {len(double) - 5} more" if len(double) > 5 else ""
        raise ValueError(f"shards are given twice: {', '.join(double[:5])}{more}; give each once")


def _split_protocol(url: str) -> tuple[str, str]:
    protocol, mark, rest = url.partition("://")
    return (protocol, rest) if mark else ("", url)


def _split_ending(name: str) -> tuple[str, str]:
    """Return stem and ending: ("00012", ".tar.gz")."""
    for ending in sorted(TAR_ENDINGS, key=len, reverse=True):
        if name.endswith(ending):
            return name[: -len(ending)], ending
    return os.path.splitext(name)


def natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which ``b2`` stands before ``b10``; the text itself settles ties."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name
