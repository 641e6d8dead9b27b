"""Runs independent jobs in several processes, in order, with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import TypeVar

from wm_node.errors import WmError

Job = TypeVar("Job")
Result = TypeVar("Result")


def end_with_parent() -> None:
    """Call in a worker process: it ends when its parent is killed.

    Otherwise it would wait for its next job for ever, or go on with the one that it has.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def follow_parent() -> None:
    """Call in a worker process: it ends with its parent, to whom it leaves Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def in_processes(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Iterator[Result]:
    """Yield ``function(job)`` in the order of the jobs; a few jobs a worker are under way at once.

    Args:
        function: importable by name.
        jobs: its arguments, read as they are needed.
        workers: processes; with 1 everything happens in this process.

    Raises:
        WmError: ``workers`` is below 1, or a worker process died.
    """
    if workers < 1:
        raise WmError(f"{workers} workers cannot do anything; use at least 1.")
    if workers == 1:
        yield from map(function, jobs)
        return
    # spawn: a process that has an OpenGL context or threads must not be forked.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), follow_parent)
    under_way: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            under_way.append(pool.submit(function, job))
            if len(under_way) >= 3 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise WmError(
            "a worker process died, perhaps for lack of memory; run again with fewer workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
