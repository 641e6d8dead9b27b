"""Progress of long work: a bar on a terminal, nothing or a few plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress_bar(
    console: Console, columns: Sequence[ProgressColumn], total: float | None, **fields: Any
) -> Iterator[Callable[..., None]]:
    """Show a progress bar while the block lasts, on a terminal only.

    Args:
        console: where.
        columns: of the bar.
        total: its end; None: not known yet.
        fields: first values of what the columns name besides.

    Yields:
        A function that takes ``completed``, ``total`` and fields by keyword and shows them.
    """
    if not console.is_terminal:
        yield lambda **values: None
        return
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total, **fields)
        yield partial(progress.update, task)


@contextmanager
def counted_progress(console: Console, doing: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a piece of work is done, on a terminal only.

    Yields:
        A function that takes (done, total).
    """
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def table_console() -> Console:
    """Return the console to print a wide table on: a pipe or a file has no width to fit into."""
    shown = Console()
    return shown if shown.is_terminal else Console(width=120)


@contextmanager
def bags_progress(console: Console, doing: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show how many bags are done: a bar on a terminal, a line every tenth of them elsewhere.

    Args:
        console: where.
        doing: what is done with the bags, such as ``reading``.

    Yields:
        A function that takes (bags done, all bags, name of the last one).
    """
    if not console.is_terminal:

        def line(done: int, total: int, _: str) -> None:
            if done % max(1, total // 10) == 0:
                console.print(f"{doing}: {done} of {total} bags", highlight=False)

        yield line
        return
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("", total=None)

        def advance(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=escape(name))

        yield advance
