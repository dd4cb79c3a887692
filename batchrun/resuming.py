"""Going on with a run: what an earlier owner left, and what must not have changed since."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from batchrun.calls import Call
from batchrun.errors import RunChanged, RunHalted, RunPaused
from batchrun.execution.orders import Order
from batchrun.fingerprints import difference
from batchrun.items import ItemError, Outcome, OutcomeStatus
from batchrun.jobs import Job
from batchrun.ledger.owner import Owner
from batchrun.ledger.reading import Reading, StoredRun
from batchrun.outages import insistently
from batchrun.parameters import dump_params
from batchrun.plans import RunPlan
from batchrun.runs import RunStatus
from batchrun.settling import MOST_FAILURES

DUE_PAGE = 1000


def params_text(job: Job, params: Mapping[str, Any]) -> str:
    """A run's parameters as the ledger compares them: two runs of a job with the same text are the same work."""
    return json.dumps(dump_params(job, params), sort_keys=True)


def unfinished_runs(reading: Reading, job: Job, params: Mapping[str, Any]) -> list[StoredRun]:
    """The job's runs with these parameters that are not finished, the newest first."""
    mine = params_text(job, params)
    return [stored for stored in reading.stored_of_job(job.name) if json.dumps(stored.params, sort_keys=True) == mine]


def refuse_decided(stored: StoredRun, is_asked_to_pause: Callable[[str], bool]) -> None:
    """A firing goes on with what was cut short, not with what somebody, or a limit, has stopped on purpose.

    A run that paused by itself (its window closed, its time was up) is meant to go on with the next firing; one that was
    asked to pause, from a shell, is not.
    """
    if stored.status is RunStatus.PAUSED and is_asked_to_pause(stored.id):
        raise RunPaused(
            f"Run {stored.id} of {stored.job} was paused by a person, so it was left alone and nothing was started. "
            f"`batchrun resume {stored.id}` goes on with it."
        )
    if stored.status is RunStatus.HALTED:
        raise RunHalted(
            f"Run {stored.id} of {stored.job} was halted by max_failures, so it was left alone and nothing was started. "
            f"See what went wrong with `batchrun failures {stored.id}`; then `batchrun retry {stored.id}` tries those items "
            f"again and goes on with the rest, `batchrun resume {stored.id}` goes on without them."
        )


def check_changes(call: Call, stored: StoredRun, fingerprint: Mapping[str, str]) -> None:
    """A resume over changed input, parameters or code is refused, and says what changed."""
    ignored = {"code"} if call.retried else set()
    names = [name for name in {**stored.fingerprint, **fingerprint} if stored.fingerprint.get(name) != fingerprint.get(name)]
    changed = [name for name in names if name not in ignored]
    if not changed or call.accept_changes:
        return
    what = "; ".join(difference(name, stored.fingerprint.get(name), fingerprint.get(name)) for name in changed)
    raise RunChanged(
        f"Run {stored.id} of {stored.job} cannot simply go on, because something changed since it began: {what}. What is "
        f"settled stays as it is. {_way_on(call, stored)} if the rest may run with what is there now, or start a new run."
    )


def _way_on(call: Call, stored: StoredRun) -> str:
    if call.continue_unfinished:  # the command `run` has no such option: nobody should set it in a crontab
        return f"Go on with `batchrun resume {stored.id} --accept-changes`"
    return "Go on with --accept-changes (accept_changes=True)"


def pick_up(call: Call, plan: RunPlan, owner: Owner, reading: Reading) -> None:
    """What an earlier owner left: open chunks, and items that wait for another try."""
    cut_off = "retry" if call.options.idempotent else "unknown"
    left = insistently(lambda: owner.adopt(cut_off=cut_off), again=owner.end_older_sessions)
    for chunk in left:
        if chunk.pos < chunk.size:
            items = reading.payload(owner.run, chunk.no)[chunk.pos :]
            plan.open_orders.append(Order(chunk.no, chunk.pos, items, alone=chunk.deaths > 0, deaths=chunk.deaths))
    through = [chunk.no for chunk in left if chunk.pos >= chunk.size]
    if through:
        insistently(lambda: owner.end_chunks(through))
    if call.retried:
        insistently(lambda: owner.requeue(("failed", "quarantined", "unknown"), call.only))
    counts = reading.counts(owner.run)
    for name in ("planned", "done", "failed", "skipped", "quarantined", "unknown", "retries"):
        setattr(plan.counts, name, getattr(counts, name))
    plan.failures = earlier_failures(reading, owner.run)
    plan.more_retries = lambda known: _due(reading, owner.run, known)
    plan.retries = plan.more_retries(set())


def earlier_failures(reading: Reading, run: str) -> list[Outcome]:
    """What a report lists of items that went wrong before this call; their tracebacks are not kept."""
    return [
        Outcome(row.item, OutcomeStatus(row.state), None, ItemError(row.error_class, row.message, row.sqlstate), row.attempts)
        for row in reading.troubled(run, MOST_FAILURES)
    ]


def _due(reading: Reading, run: str, known: set[tuple[int, int]]) -> list[tuple[float, Order]]:
    now = time.monotonic()
    return [
        (now + row.due_in_s, Order(row.no, row.pos, [row.item], attempt=row.attempts + 1, base=row.base, retry=True, alone=True))
        for row in reading.due(run, DUE_PAGE, list(known))
    ]
