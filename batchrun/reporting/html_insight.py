"""The report's sections about where the time went: throughput, latency, workers, the slowest items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from batchrun.durations import text as duration
from batchrun.insight import Insight, Lane
from batchrun.reporting import html_pictures as draw
from batchrun.reporting.figures import MEANINGS, PARTS, PERCENTILES, percentiles, spent_by
from batchrun.reporting.html_build import Html, data_table, joined, tag, told
from batchrun.reporting.text import items_text, percent_text, rate_text, time_text

Clean = Callable[[str], str]
KINDS = dict(zip(PARTS, ("start", "wait", "done", "commit"), strict=True))
MOST_CELLS = 9000
"""Of the picture of the workers: with more workers its steps are longer, so that a page has a few hundred kilobytes."""

LEVELS = 4


def sections(insight: Insight, clean: Clean) -> Html:
    """All of them, in the order one asks: how did it go, how long does an item take, who was busy, which were slow."""
    made = [_timeline(insight), _latency(insight), _workers(insight, clean), _slowest(insight, clean)]
    return joined(made)


# ---------------------------------------------------------------------------------------------------- throughput
def _timeline(insight: Insight) -> Html:
    steps = max(len(insight.done), len(insight.failed))
    head = tag("h2", "Throughput and failures")
    if not steps or not any(insight.done) + any(insight.failed):
        return joined([head, tag("p", "No item was settled in the time that was measured.", class_="muted")])
    done, failed = (_rates(line, steps, insight) for line in (insight.done, insight.failed))
    items, bad = sum(insight.done), sum(insight.failed)
    caption = (
        f"{items_text(items + bad)} settled in {duration(insight.elapsed_s)} of work, {rate_text(max(done))} items/s at the "
        f"best; {bad:,} of them went wrong. One column is {duration(insight.step_s)}."
    )
    axis = draw.even_axis([duration(insight.step_s * steps * part / 4) for part in range(5)])
    numbers = data_table(
        ("From", "Done", "Failed", "Items/s"), _timeline_rows(insight, steps), caption="Items settled in each step",
        numbers=(0, 1, 2, 3),
    )  # fmt: skip
    entries = [
        ("done", "items done, per second"),
        ("bad", "items failed, quarantined or unknown, per second, on a scale of its own"),
    ]
    entries += [("break", "here a resume or retry went on")] if insight.breaks else []
    return joined(
        [
            head,
            draw.figure(
                caption,
                _series(insight, "throughput", done, "done", "Items done per second over time"),
                _series(insight, "failures", failed, "bad", "Items that went wrong per second over time", axis),
                draw.legend(entries),
                numbers=numbers,
            ),
        ]
    )


def _rates(line: Sequence[int], steps: int, insight: Insight) -> list[float]:
    """Items a second; the last step is as long as it has lasted."""
    last_s = insight.elapsed_s - (steps - 1) * insight.step_s
    found = [count / insight.step_s for count in line] + [0.0] * (steps - len(line))
    if line and len(line) == steps and 0.2 * insight.step_s < last_s < insight.step_s:
        found[-1] = line[-1] / last_s
    return found


def _series(insight: Insight, name: str, rates: Sequence[float], kind: str, title: str, axis: Html | None = None) -> Html:
    top = draw.nice_top(max(rates))
    picture = draw.svg(
        name, len(rates), draw.HEIGHT, draw.grid(len(rates)), draw.columns(rates, top, kind),
        draw.upright((at / insight.step_s for at in insight.breaks), "break"), title=title,
        description=f"{len(rates)} columns; the highest is {rate_text(max(rates)) if max(rates) else 0} items a second.",
        class_="tall" if kind == "done" else "low",
    )  # fmt: skip
    labels = [draw.number_text(top), draw.number_text(top / 2), "0/s"] if kind == "done" else [draw.number_text(top), "0/s"]
    return draw.plot(labels, picture, axis)


def _timeline_rows(insight: Insight, steps: int) -> list[list[str]]:
    rows = []
    for step in range(steps):
        done, failed = (line[step] if step < len(line) else 0 for line in (insight.done, insight.failed))
        rate = (done + failed) / insight.step_s
        rows.append([duration(step * insight.step_s), f"{done:,}", f"{failed:,}", rate_text(rate) if rate else "0"])
    return rows


# ------------------------------------------------------------------------------------------------------- latency
def _latency(insight: Insight) -> Html:
    head = tag("h2", "How long an item takes")
    counts = insight.latency.counts
    if not counts:
        return joined([head, tag("p", "No item was measured.", class_="muted")])
    steps = list(range(min(counts), max(counts) + 1))
    values = [float(counts.get(step, 0)) for step in steps]
    found = percentiles(insight)
    half, most, nearly_all = (time_text(found[percent]) for percent in PERCENTILES)
    caption = (
        f"Half of the items took less than {half}, 95 % less than {most}, 99 % less than {nearly_all}, mark and commit "
        "included. Each column spans 9 % of a duration: the scale is logarithmic."
    )
    top = draw.nice_top(max(values))
    picture = draw.svg(
        "latency", len(steps), draw.HEIGHT, draw.grid(len(steps)), draw.columns(values, top, "done"),
        *(draw.upright([_place(seconds, steps[0])], f"p{percent}") for percent, seconds in found.items()),
        title="Items by how long they took", description=caption, class_="tall",
    )  # fmt: skip
    labels = [draw.number_text(top), draw.number_text(top / 2), "0"]
    numbers = data_table(
        ("From", "To", "Items", "Up to here"), _latency_rows(insight), caption="Items by duration", numbers=(0, 1, 2, 3)
    )
    legend = draw.legend([("done", "items"), *((f"p{percent}", f"p{percent}: {time_text(s)}") for percent, s in found.items())])
    return joined([head, draw.figure(caption, draw.plot(labels, picture, _log_axis(steps)), legend, numbers=numbers)])


def _place(seconds: float, first: int) -> float:
    """Where a duration stands, in steps of the histogram."""
    return math.log2(seconds) * 8 - first


def _log_axis(steps: Sequence[int]) -> Html:
    """The ends, and between them the powers of ten that have room."""
    first, width = steps[0], len(steps)
    low, high = 2 ** (first / 8), 2 ** ((first + width) / 8)
    between = []
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        at = 100 * _place(10.0**power, first) / width
        if 12 <= at <= 88:
            between.append((at, time_text(10.0**power)))
    sparse = max(1, math.ceil(len(between) / 2))
    marks = [(at, label, len(between) < 3 or place % sparse == sparse // 2) for place, (at, label) in enumerate(between)]
    return draw.placed_axis([(0.0, time_text(low), True), *marks, (100.0, time_text(high), True)])


def _latency_rows(insight: Insight) -> list[list[str]]:
    whole, so_far, rows = insight.latency.items, 0, []
    for low, high, items in insight.latency.steps():
        so_far += items
        rows.append([time_text(low), time_text(high), f"{items:,}", f"{100 * so_far / whole:.2f} %"])
    return rows


# ------------------------------------------------------------------------------------------------------- workers
def _workers(insight: Insight, clean: Clean) -> Html:
    head = tag("h2", "Where the workers' time went")
    lanes = insight.lanes
    if not lanes:
        return joined([head, tag("p", "No worker was measured.", class_="muted")])
    shares = spent_by(lanes).shares
    parts = [(part, shares[part], KINDS[part]) for part in PARTS]
    whole = f"{len(lanes)} worker{'' if len(lanes) == 1 else 's'}, {duration(spent_by(lanes).total_s)} of time in all."
    legend = draw.legend((KINDS[part], f"{part} {percent_text(share)}: {MEANINGS[part]}") for part, share in shares.items())
    numbers = data_table(
        ("Worker", "Items", *(part.capitalize() for part in PARTS), "Died"), [_lane_row(lane, clean) for lane in lanes],
        caption="Each worker, in percent of its time", numbers=(1, 2, 3, 4, 5),
    )  # fmt: skip
    bar = draw.stacked("spent", parts, title="Shares of all workers' time")
    return joined([head, draw.figure(whole, bar, legend, numbers=numbers), _lanes(insight, clean)])


def _lane_row(lane: Lane, clean: Clean) -> list[str]:
    shares = [percent_text(share) for share in spent_by([lane]).shares.values()]
    return [_lane_name(lane), f"{lane.items:,}", *shares, told(clean(lane.died)) if lane.died else "no"]


def _lane_name(lane: Lane) -> str:
    return f"{lane.number}" + (f" (pid {lane.pid})" if lane.pid else "")


def _end_of(lane: Lane, insight: Insight) -> float:
    return lane.ended_s or insight.elapsed_s


def _lanes(insight: Insight, clean: Clean) -> Html:
    """A row for each worker: grey while it was there, in deeper blue the busier it was."""
    lanes = insight.lanes
    steps = max([1, *(len(lane.busy) for lane in lanes), math.ceil(insight.elapsed_s / insight.step_s)])
    grouped = max(1, math.ceil(steps * len(lanes) / MOST_CELLS))
    wide = math.ceil(steps / grouped)
    column_s = insight.step_s * grouped
    rows, dead = _lane_rects(insight, wide, grouped), [(n, lane) for n, lane in enumerate(lanes) if lane.died]
    pixels = 20 if len(lanes) <= 24 else 10 if len(lanes) <= 64 else 5
    picture = draw.svg(
        "lanes", wide, len(lanes), *rows,
        draw.upright((at / column_s for at in insight.breaks), "break", len(lanes)),
        draw.dots(((min(_end_of(lane, insight) / column_s, wide - 0.2), n + 0.5) for n, lane in dead), "death"),
        title="How busy each worker was over time",
        description=f"{len(lanes)} rows of {wide} columns of {duration(column_s)}; {len(dead)} of the workers died.",
        style=f"height:{pixels * len(lanes)}px",
    )  # fmt: skip
    every = max(1, math.ceil(len(lanes) * 14 / (pixels * len(lanes) or 1)), math.ceil(len(lanes) / 24))
    labels = (
        tag("span", f"{lanes[n].number}", style=f"top:{n * pixels + max(0, pixels - 14) // 2}px")
        for n in range(0, len(lanes), every)
    )
    axis = draw.even_axis([duration(column_s * wide * part / 4) for part in range(5)])
    made = tag("div", tag("div", labels, class_="axis lanes", aria_hidden="true"), picture, axis, class_="plot")
    entries = [
        ("start", "starting up"),
        ("idle", "there, without items"),
        ("done", "had items in hand: the deeper, the more of the time"),
    ]
    entries += [("death", "died")] if dead else []
    deaths = [
        tag("li", f"Worker {_lane_name(lane)} at {duration(_end_of(lane, insight))}: ", told(clean(lane.died)))
        for _, lane in dead
    ]
    listed = tag("ul", deaths) if deaths else Html("")
    return tag("figure", tag("figcaption", "A row for each worker."), made, draw.legend(entries), listed)


def _lane_rects(insight: Insight, wide: int, grouped: int) -> list[Html]:
    """One path for each kind and level."""
    column_s = insight.step_s * grouped
    there, starting = [], []
    levels: list[list[tuple[float, float, float, float]]] = [[] for _ in range(LEVELS)]
    for n, lane in enumerate(insight.lanes):
        began, ended = (min(one / column_s, float(wide)) for one in (lane.began_s, _end_of(lane, insight)))
        there.append((began, n + 0.1, max(0.05, ended - began), 0.8))
        starting.append((began, n + 0.1, min(lane.start_up_s / column_s, max(0.0, wide - began)), 0.8))
        for level, place, length in _runs(lane, grouped, insight.step_s):
            levels[level].append((place, n + 0.1, length, 0.8))
    kinds = [f"done b{level + 1}" for level in range(LEVELS)]
    busy = [draw.spans(found, kind) for found, kind in zip(levels, kinds, strict=True)]
    return [draw.spans(there, "idle"), *busy, draw.spans(starting, "start")]


def _runs(lane: Lane, grouped: int, step_s: float) -> list[tuple[int, int, int]]:
    """Columns next to each other that are as busy: (level, first column, how many). Columns without work are left out."""
    found: list[tuple[int, int, int]] = []
    for place in range(math.ceil(len(lane.busy) / grouped)):
        busy = lane.busy[place * grouped : (place + 1) * grouped]
        share = sum(busy) / (step_s * len(busy))
        if share <= 0.005:
            continue
        level = min(LEVELS - 1, int(share * LEVELS))
        if found and found[-1][0] == level and found[-1][1] + found[-1][2] == place:
            found[-1] = (level, found[-1][1], found[-1][2] + 1)
        else:
            found.append((level, place, 1))
    return found


# ------------------------------------------------------------------------------------------------------- slowest
def _slowest(insight: Insight, clean: Clean) -> Html:
    if not insight.slowest:
        return Html("")
    longest = max(one.seconds for one in insight.slowest) or 1.0
    rows = [
        [
            told(clean(one.item)),
            joined([time_text(one.seconds), draw.share_bar(100 * one.seconds / longest, "done")]),
            f"{one.worker}",
        ]
        for one in insight.slowest
    ]
    made = data_table(
        ("Item", "Took", "Worker"), rows, caption="The items that took longest, mark and commit included", words=(2,)
    )
    return joined([tag("h2", "The slowest items"), made])
