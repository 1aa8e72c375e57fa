"""One shard whose file lies in the cache, or did: held while in use, else read singly."""

import os

from .errors import DataError
from .hold import Hold
from .remote import Info, ShardReplaced, Version
from .shard_cache import ShardCache
from .unpack import is_packed
from .urls import local_path


class CachedShard:
    """Reads byte ranges of a shard, wherever they are to be had.

    From the cached file, which stays while it is held; else, where the file has gone, by a ranged
    request for these bytes alone: a sample that waited long in a rare bucket does not bring its
    whole shard back. A compressed shard is fetched and unpacked anew.

    Args:
        cache: The cache.
        url: The shard.
        version: Its version, where it is known already.
    """

    def __init__(self, cache: ShardCache, url: str, version: Version | None = None) -> None:
        self.cache = cache
        self.url = url
        self._version = version
        self._path: str | None = None
        self._hold: Hold | None = None
        self._holders = 0
        self._packed: bool | None = None
        self._info: Info | None = None

    @property
    def version(self) -> Version:
        """The version that this run began with; the shard is fetched where no server tells it."""
        if self._version is None:
            self._info = self.cache.info(self.url)
            version = self.cache.version_of(self.url, self._info)
            if not version.known:
                with self.cache.hold(self.url) as hold:
                    version = hold.version
            self._version = version
        return self._version

    @property
    def known(self) -> Version | None:
        """The version, where it is known already."""
        return self._version

    def know(self, version: Version) -> None:
        """Take a version that was found elsewhere, where none is known already."""
        if self._version is None:
            self._version = version

    @property
    def path(self) -> str:
        """Where the file lies while the cache has it."""
        if self._path is None:
            self._path = self.cache.path(self.url, self.version)
        return self._path

    def acquire(self) -> None:
        """Take the shard in use, once more; it is fetched where it is not there.

        Raises:
            OSError: It cannot be fetched, or there is no room for it.
            DataError: Its compressed data is damaged.
        """
        if self._hold is None or self._hold.fd < 0:
            self._hold = self.cache.hold(self.url, self._version, self._info)
            self._version = self._hold.version
            self._packed = os.fstat(self._hold.fd).st_size != self._version.size
        self._holders += 1

    def release(self) -> None:
        """Undo one `acquire`."""
        self._holders -= 1
        if not self._holders and self._hold is not None:
            self._hold.close()
            self._hold = None

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from byte ``offset`` of the unpacked shard.

        Raises:
            DataError: The shard ends before.
            ShardReplaced: The shard is another than this run began with.
            OSError: It cannot be read.
        """
        hold = self._hold
        if hold is not None and hold.fd >= 0:
            return self._pread(hold.fd, offset, size)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._read_singly(offset, size)
        try:
            os.utime(fd)
            return self._pread(fd, offset, size)
        finally:
            os.close(fd)

    def _pread(self, fd: int, offset: int, size: int) -> bytes:
        data = os.pread(fd, size, offset)
        while len(data) < size:  # one pread returns at most 2 GiB on Linux
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise DataError(
                    f"{self.url} ends at byte {offset + len(data)}, in the middle of an extent of "
                    f"{size} bytes from byte {offset}: its index does not fit it"
                )
            data += more
        return data

    def _read_singly(self, offset: int, size: int) -> bytes:
        if self._is_packed() or local_path(self.url) is not None:
            with self.cache.hold(self.url, self.version) as hold:
                return self._pread(hold.fd, offset, size)
        etag = self._present().etag
        if offset + size > self.version.size:
            raise DataError(
                f"{self.url} ends at byte {self.version.size}, in the middle of an extent of "
                f"{size} bytes from byte {offset}: its index does not fit it"
            )
        return self.cache.remote.read(self.url, offset, offset + size, etag)

    def _present(self) -> Info:
        """Return what the server says, asked once where it then watches over the ETag itself."""
        info = self._info
        if info is None or info.etag is None:
            info = self._info = self.cache.info(self.url)
            if info.version != self.version:
                raise ShardReplaced.of(self.url)
        return info

    def _is_packed(self) -> bool:
        if self._packed is None:
            if not self.cache.info(self.url).version.known:
                return True  # a command's output, say: there are no ranges of it
            self._packed = is_packed(self.cache.remote.read(self.url, 0, min(4, self.version.size)))
        return self._packed
