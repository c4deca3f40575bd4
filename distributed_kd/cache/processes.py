"""A function over shards in processes: results as they come, and never more waiting than the processes need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items that each other process has: one to work on, one for when that is done while this process is not


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def unordered(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) by `jobs` processes, of which this is one. What the function raises is raised here.

    The function travels with every item: it must be small, and not a lambda.
    """
    if jobs == 1:
        for item in items:
            yield item, function(item)
        return
    # Processes, since decoding holds Python's lock; not forked, since the parent may have threads. This process is one
    # of them: each other one spends a second of processor time on its imports before its first item.
    with ProcessPoolExecutor(jobs - 1, mp_context=get_context("spawn")) as pool:
        waiting = iter(items)
        pending: dict[Future[Result], Item] = {}
        try:
            while True:
                own = list(islice(waiting, 1))
                for item in islice(waiting, (jobs - 1) * _AHEAD - len(pending)):
                    pending[pool.submit(function, item)] = item
                for item in own:
                    yield item, function(item)
                if not own and not pending:
                    return
                for future in wait(pending, 0 if own else None, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)
