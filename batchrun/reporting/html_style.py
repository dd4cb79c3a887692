"""How the report looks: two palettes, one style sheet. Every text has a contrast of 4.5 to 1, every mark 3 to 1.

Blue, vermilion, ochre, purple and grey differ in lightness too, and no colour says anything that no word says: they can be
told apart with any kind of colour vision, and in print.
"""

from __future__ import annotations

from importlib import resources

LIGHT = {
    "page": "#ffffff",
    "panel": "#f4f6f8",
    "ink": "#1b1f24",
    "muted": "#535d69",
    "edge": "#d0d7de",
    "done": "#0b62a4",
    "bad": "#bf3a0c",
    "start": "#946200",
    "wait": "#7c8792",
    "commit": "#5c1a75",
}
DARK = {
    "page": "#11151a",
    "panel": "#1a2028",
    "ink": "#e8ebef",
    "muted": "#a5afbb",
    "edge": "#3a434e",
    "done": "#5aa9e6",
    "bad": "#ff8f5e",
    "start": "#e3b341",
    "wait": "#76818d",
    "commit": "#c04cf0",
}
TEXTS = ("ink", "muted", "done", "bad")
"""Colours that texts have."""

MARKS = ("done", "bad", "start", "wait", "commit")
"""Colours of what is drawn."""


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21, as WCAG 2 defines it."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def style_sheet() -> str:
    """The whole style sheet: both palettes, and the rules of templates/report.css."""
    rules = (resources.files("batchrun") / "templates" / "report.css").read_text("utf-8")
    light, dark = (" ".join(f"--{name}: {colour};" for name, colour in palette.items()) for palette in (LIGHT, DARK))
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{rules}"
    )
