"""HTML as nested calls: ``tag("p", "text", class_="note")``. Whatever is not Html already is escaped on its way in.

Texts come from items, messages of databases and people: control characters and characters that turn the direction of
writing are shown as escapes, and ``told`` isolates a text's own direction from what stands around it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from batchrun.reporting.streams import printable

_EMPTY = frozenset({"meta", "br", "path", "rect", "line", "circle", "link"})


class Html(str):
    """A text that is HTML already."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """A text as HTML shows it, in quotes too."""
    return Html(html.escape(printable(text), quote=True))


def joined(children: Iterable[str]) -> Html:
    """One after another."""
    return Html("".join(child if isinstance(child, Html) else escaped(child) for child in children))


def tag(name: str, /, *children: str | Iterable[str], **attributes: str | int | float | bool | None) -> Html:
    """An element. ``class_`` is class, ``aria_label`` aria-label; True an attribute without a value, None or False none."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    if name in _EMPTY:
        return Html(f"<{name}{shown}>" if name in ("meta", "br", "link") else f"<{name}{shown}/>")
    inside = joined(one for child in children for one in ([child] if isinstance(child, str) else child))
    return Html(f"<{name}{shown}>{inside}</{name}>")


def _attribute(key: str, value: str | int | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'


def told(text: str) -> Html:
    """What somebody else wrote: whatever direction it is written in, what follows it stays where it is."""
    return tag("bdi", text)


def data_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, numbers: Sequence[int] = (), words: Sequence[int] = ()
) -> Html:
    """A table. numbers: columns of numbers. words: of single words. One with texts becomes a list of cards on a narrow screen."""
    slim = len(numbers) + len(words) == len(columns) <= 4
    kinds = ["num" if place in numbers else "word" if place in words else None for place in range(len(columns))]
    head = (tag("th", name, scope="col", role="columnheader", class_=kind) for name, kind in zip(columns, kinds, strict=True))
    body = (tag("tr", (_cell(*known) for known in zip(columns, row, kinds, strict=True)), role="row") for row in rows)
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", head, role="row"), role="rowgroup"),
        tag("tbody", body, role="rowgroup"),
        role="table",
        class_="slim" if slim else "cards",
    )


def _cell(column: str, cell: str, kind: str | None) -> Html:
    return tag("td", tag("span", cell), role="cell", class_=kind, data_label=column)


def breakable(name: str) -> Html:
    """A dotted name that may break behind its dots."""
    return joined(
        part for place, one in enumerate(name.split(".")) for part in ([Html("."), Html("<wbr>"), one] if place else [one])
    )
