"""Fetch shards ahead of need, in the background of one process."""

import logging
import os
import queue
import threading

from .cached_shard import CachedShard

log = logging.getLogger(__name__)


class ReadAhead:
    """Fetches the shards that are asked for, one after another, in a thread of its own.

    What goes wrong is left to happen again when the shard is needed. The thread begins with the
    first request, and is a daemon: nothing waits for it.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[CachedShard | None] = queue.SimpleQueue()
        self._owner = 0
        self._asked: set[str] = set()

    def fetch(self, shard: CachedShard) -> None:
        """Have a shard fetched, unless it was asked for and is still to come."""
        if self._owner != os.getpid():  # threads do not survive a fork
            self._owner, self._asked = os.getpid(), set()
            self._queue = queue.SimpleQueue()
            thread = threading.Thread(
                target=_run, args=(self._queue, self._asked), daemon=True, name="penstock-ahead"
            )
            thread.start()
        if shard.url not in self._asked:
            self._asked.add(shard.url)
            self._queue.put(shard)

    def __del__(self) -> None:
        if self._owner == os.getpid():
            self._queue.put(None)


def _run(requests: "queue.SimpleQueue[CachedShard | None]", asked: set[str]) -> None:
    while (shard := requests.get()) is not None:
        try:
            shard.know(shard.cache.fetch_ahead(shard.url, shard.known))
        except Exception as error:
            log.debug("%s could not be fetched ahead: %s", shard.url, error)
        asked.discard(shard.url)
        del shard
