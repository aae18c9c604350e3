"""What commands print: text for people, one JSON object with `--json`. What was named elsewhere (files, arguments) cannot steer a terminal: `visible`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from cliproxy.processes.lines import visible

__all__ = ["emit", "table", "visible", "when"]


def emit(data: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """Print `data` as JSON or `lines` as text, each on one line."""
    if as_json:
        sys.stdout.write(json.dumps(data) + "\n")
    else:
        sys.stdout.write("".join(f"{visible(line)}\n" for line in lines))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows: a table on a terminal, else tab-separated lines for other programs, without headings."""
    if not sys.stdout.isatty():
        sys.stdout.write("".join("\t".join(map(visible, row)) + "\n" for row in rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(visible(cell)) for cell in row))  # Text: no markup in what an operator named
    Console().print(drawn)


def when(seconds: int) -> str:
    """Return seconds since the epoch as UTC to the minute; 0 as a dash."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else "-"
