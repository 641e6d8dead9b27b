"""Progress bars show on a terminal only; a log gets a few plain lines."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import TextColumn

from wm_node.cli.progress import bags_progress, progress_bar


def test_progress_shows_on_a_terminal_only() -> None:
    columns = (TextColumn("{task.completed:.0f} of {task.total:.0f} {task.fields[present]}"),)
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal)
        with progress_bar(console, columns, 7, present="-") as update:
            update(completed=3, present="moving")
        assert ("3 of 7 moving" in out.getvalue()) is terminal
        assert bool(out.getvalue()) is terminal


def test_bags_are_counted_in_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with bags_progress(Console(file=out), "reading") as show:
        for done in range(1, 41):
            show(done, 40, "[red]bag")
    assert out.getvalue().splitlines() == [
        f"reading: {done} of 40 bags" for done in range(4, 41, 4)
    ]


def test_names_of_bags_are_not_markup() -> None:
    out = io.StringIO()
    with bags_progress(Console(file=out, force_terminal=True), "reading") as show:
        show(1, 1, "[red]bag")
    assert "[red]bag" in out.getvalue()
