"""Words for people: tables, sizes, ages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEPS = ((86400, "d"), (3600, "h"), (60, "m"))


def format_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns, left aligned, two spaces apart; the titles alone where there are no rows."""
    lines = [list(titles), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def format_record(record: Mapping[str, Any]) -> str:
    """One line a field; inner ones as `outer.inner`."""
    return format_table(["FIELD", "VALUE"], list(_flatten(record)))


def format_size(count: int) -> str:
    """`1.5 MiB`"""
    size = float(count)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise ValueError(count)


def format_age(moment: str) -> str:
    """How long ago an RFC 3339 time was: `5m`, `3h`; empty for an unreadable one."""
    try:
        seconds = int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    except (ValueError, TypeError):
        return ""
    for step, unit in _STEPS:
        if seconds >= step:
            return f"{seconds // step}{unit}"
    return f"{max(0, seconds)}s"


def _flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        elif value not in (None, [], {}):
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}", text
