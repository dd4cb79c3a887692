"""The report's pictures: SVG that stretches, with labels of HTML around it, so that texts keep their size at any width.

values -> a path in a box of so many units by 100 -> <figure>: caption, axes, legend, and the numbers in <details>
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from batchrun.reporting.html_build import Html, tag

HEIGHT = 100.0


def figure(caption: str, *parts: Html, numbers: Html | None = None) -> Html:
    """A picture with what it shows in words, and its numbers behind it."""
    behind = tag("details", tag("summary", "The numbers"), numbers) if numbers else Html("")
    return tag("figure", tag("figcaption", caption), *parts, behind)


def svg(
    name: str, width: float, height: float, *drawn: Html, title: str, description: str, class_: str = "", style: str | None = None
) -> Html:
    """A picture that stretches to its box. name: unique on the page. title, description: for those who do not see it."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        *drawn,
        viewBox=f"0 0 {_short(width)} {_short(height)}",
        preserveAspectRatio="none",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
        class_=class_ or None,
        style=style,
    )


def plot(y_labels: Sequence[str], picture: Html, x_axis: Html | None = None) -> Html:
    """A picture with its axes. y_labels: from the top down."""
    y_axis = tag("div", (tag("span", label) for label in y_labels), class_="axis y", aria_hidden="true")
    return tag("div", y_axis, picture, x_axis or Html(""), class_="plot")


def even_axis(labels: Sequence[str]) -> Html:
    """Labels at even distances; on a narrow screen every second one."""
    apart = 100 / max(1, len(labels) - 1)
    return placed_axis((place * apart, label, place % 2 == 0) for place, label in enumerate(labels))


def placed_axis(labels: Iterable[tuple[float, str, bool]]) -> Html:
    """Labels where they belong, in percent of the width, the first at 0, the last at 100. bool: also on a narrow screen."""
    spans = (tag("span", label, style=f"left:{_short(at)}%", class_=None if always else "opt") for at, label, always in labels)
    return tag("div", spans, class_="axis x", aria_hidden="true")


def columns(values: Sequence[float], top: float, kind: str, *, height: float = HEIGHT) -> Html:
    """Columns side by side, one unit wide each, as one path. What is there at all is seen: it is at least a unit high."""
    parts = []
    for place, value in enumerate(values):
        if value > 0 and top > 0:
            high = min(height, max(height / 100, value / top * height))
            parts.append(f"M{place} {_short(height)}v-{_short(high)}h1v{_short(high)}z")
    return tag("path", d="".join(parts), class_=kind) if parts else Html("")


def grid(width: float, height: float = HEIGHT) -> Html:
    """Lines at a quarter, a half and three quarters."""
    return tag("path", d="".join(f"M0 {_short(height * part)}h{_short(width)}" for part in (0.25, 0.5, 0.75)), class_="grid")


def upright(at: Iterable[float], kind: str, height: float = HEIGHT) -> Html:
    """Lines from top to bottom."""
    d = "".join(f"M{_short(one)} 0v{_short(height)}" for one in at)
    return tag("path", d=d, class_=kind) if d else Html("")


def spans(found: Iterable[tuple[float, float, float, float]], kind: str) -> Html:
    """Rectangles (x, y, width, height) as one path."""
    d = "".join(f"M{_short(x)} {_short(y)}h{_short(w)}v{_short(h)}h-{_short(w)}z" for x, y, w, h in found if w > 0)
    return tag("path", d=d, class_=kind) if d else Html("")


def dots(found: Iterable[tuple[float, float]], kind: str) -> Html:
    """Round marks that no stretching distorts: lines of no length with round ends."""
    d = "".join(f"M{_short(x)} {_short(y)}h.001" for x, y in found)
    return tag("path", d=d, class_=kind) if d else Html("")


def stacked(name: str, parts: Sequence[tuple[str, float, str]], *, title: str) -> Html:
    """A bar of parts (name, share in percent, kind), a gap between each two."""
    at, drawn = 0.0, []
    for _, share, kind in parts:
        drawn.append(spans([(at, 0, max(0.3, share - 0.25), 10)], kind))
        at += share
    said = ", ".join(f"{word} {share:.1f} %" for word, share, _ in parts)
    return svg(name, 100, 10, *drawn, title=title, description=said, class_="bar")


def share_bar(share: float, kind: str) -> Html:
    """A bar beside a number that says the same."""
    drawn = tag("path", d=f"M0 0h{_short(max(share, 0.5))}v10h-{_short(max(share, 0.5))}z", class_=kind)
    return tag("svg", drawn, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true", class_="share")


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """What each colour or line means: (kind, words)."""
    return tag("ul", (tag("li", _swatch(kind), words) for kind, words in entries), class_="legend")


def _swatch(kind: str) -> Html:
    line = kind in ("p50", "p95", "p99", "break")
    d = "M0 5h16" if line else "M8 5h.001" if kind == "death" else "M0 0h16v10h-16z"
    return tag("svg", tag("path", d=d, class_=kind), viewBox="0 0 16 10", aria_hidden="true")


def nice_top(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 ... that is not below: an axis that ends on a round number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999999)


def number_text(value: float) -> str:
    """``0.5``, ``20``, ``1,200``, ``35 k``, ``1.2 M``: for an axis."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= limit:
            return f"{value / (1e3 if unit == ' k' else limit):.3g}{unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _short(value: float) -> str:
    """A coordinate in as few characters as it takes."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
