"""How an order's items share transactions: one each, one for the chunk, one for the list, or none at all.

one by one   each item its own transaction and mark
together     a Session each, one transaction and one mark for all; any trouble: rolled back, then one by one
batched      the task takes the list; a failing list is halved, in order, until single items are known
reading      no transaction; one mark for what the order came to
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf
from operator import length_hint
from os import pwrite
from time import monotonic
from typing import Any

from batchrun.codec import Unstorable
from batchrun.database.failures import Meaning
from batchrun.database.gate import MarkMissed
from batchrun.execution.attempt import ItemRunner
from batchrun.execution.orders import (
    Ended,
    Message,
    Packed,
    Sent,
    Settled,
    Trouble,
    Unreadable,
    are_plain,
    decode_items,
    pack,
)
from batchrun.execution.recording import RUN_ENDING, Result, Row
from batchrun.execution.tally import Tally, pack_note
from batchrun.execution.timing import Stopwatch
from batchrun.execution.whereabouts import stay
from batchrun.items import Item, OutcomeStatus
from batchrun.ledger.marks import Spot

FLUSH_S = 0.001
"""How long settled items may stay unreported: a worker's death then leaves the parent in doubt about that much work."""

RECORDED_FLUSH_S = 0.25
"""The same where the ledger or a Tally can tell what was settled: a message for each item would cost both sides, for nothing,
and each costs a round trip to the database. Most chunks end before."""

BEGAN_S = 0.05

MOST_IN_BLOCK = 512
BLOCK_SHARE = 0.125
"""Of FLUSH_S, up to which a block of plain calls doubles: twice of it is still far below. One that takes longer is followed by
a single item."""


class Reporter:
    """Gathers what is settled and sends it, at once where items are slow, many in one message where they are not.

    values: of the items not told yet; None where nobody wants them. settled: how many items of the order are. tally: where
    those that are done are noted at once. before: called before anything is sent, which may take as long as the parent does.
    usual_s: what the last item took, and a half more; also that of the order before. expected: when the next will be settled.
    """

    def __init__(
        self, order: int, send: Callable[[Message], None], wants_values: bool, *, patience_s: float, wants_spans: bool = False,
        tally: Tally | None = None, before: Callable[[], None] = lambda: None, usual_s: float = inf,
    ) -> None:  # fmt: skip
        self._tally = tally
        self._before = before
        self._patience_s = patience_s
        self._order = order
        self._send = send
        self.values: list[Any] | None = [] if wants_values else None
        self._wants_values = wants_values
        self._troubles: list[Trouble] = []
        self.settled = 0
        self._told = 0
        self.watch = Stopwatch()
        self._wants_spans = wants_spans
        self._at = monotonic()
        self.due = self._at + self._patience_s
        self.usual_s = usual_s
        self.expected = self._at + usual_s

    def add(self, result: Result) -> None:
        """One more item is settled."""
        now = monotonic()
        self.usual_s = (now - self._at) * 1.5
        self.expected, self._at = now + self.usual_s, now
        if self.settled == self.watch.noted:
            self.watch.note(now)
        if result.state != "done":
            self._troubles.append(Trouble(self.settled, result.state, result.error, result.after))
            self.due = min(self.due, now + FLUSH_S)  # it may be one failure too many for the run
        if self.values is not None:
            self.values.append(result.value)
        self.settled += 1
        if now >= self.due:
            self.flush()
        elif self._tally and not self._troubles:  # of a failure only a message can tell
            pwrite(self._tally.descriptor, pack_note(self._order, self.settled), self._tally.at)

    def extend(self, values: Sequence[Any]) -> None:
        """So many more items are done, and came to these; nothing is sent."""
        if self.values is not None:
            self.values += values
        self.settled += len(values)

    def flush(self) -> None:
        """Send what has gathered."""
        self._before()
        if amount := self.settled - self._told:
            values = self.values
            are_packed = values is not None and Packed in map(type, values)
            if (untimed := self.settled - self.watch.noted) > 0:  # below 0: a list's items are noted before they are added
                self.watch.note(monotonic(), untimed)
            spans = self.watch.take() if self._wants_spans else None
            self._send(Settled(self._order, amount, self._troubles, values, are_packed, spans))
            self._told, self._troubles = self.settled, []
            self.values = [] if self._wants_values else None
        self.due = monotonic() + self._patience_s


class _FallBack(Exception):
    """The items of a chunk cannot be committed together."""


class OrderRunner:
    """Runs orders in one thread and reports what becomes of their items."""

    def __init__(
        self, runner: ItemRunner, send: Callable[[Message], None], memory: Callable[[], int] = lambda: 0,
        tally: Tally | None = None,
    ) -> None:  # fmt: skip
        self._runner = runner
        self._tally = tally
        self._usual_s = inf
        self._memory = memory
        self._send = send
        options = runner.work.options
        self._together = options.transaction == "chunk" and runner.work.has_session and not options.read_only
        self._batched = options.batched
        self._reading = options.read_only and runner.recorder is not None
        self._plain = runner.is_plain
        is_known = tally is not None or (runner.marks and runner.work.has_session)
        self._patience_s = RECORDED_FLUSH_S if is_known and not runner.work.is_urgent else FLUSH_S
        stay(runner)

    def run(self, sent: Sent) -> None:
        """Run an order as far as it goes; sends Settled messages and an Ended. Raises what ends the worker."""
        began = monotonic()
        self._runner.voice.takes(sent.id)
        try:
            items = decode_items(sent.items)
        except BaseException:  # foreign code in an item's __setstate__; sent one by one, only the guilty one fails
            self._send(Unreadable(sent.id))
            return
        work = self._runner.work
        patience_s = 0.0 if sent.alone else self._patience_s  # where a death is to be billed, the parent must know who ran
        report = Reporter(
            sent.id, self._send, work.wants_values, patience_s=patience_s, wants_spans=work.wants_spans, tally=self._tally,
            before=self._runner.fall_back, usual_s=self._usual_s,
        )  # fmt: skip
        try:
            self._choose(sent, items)(sent, items, report)
        finally:
            self._runner.at = None
            report.flush()
            self._usual_s = report.usual_s
        timing = report.watch.timing(*self._runner.take_spent())
        self._send(Ended(sent.id, monotonic() - began, self._memory(), timing))

    def _choose(self, sent: Sent, items: list[Item]) -> Callable[[Sent, list[Item], Reporter], object]:
        if self._plain and not isinstance(sent.items, list):  # a list of pickles may hold items that cannot be read
            return self._calling
        if sent.alone or len(items) == 1:
            return self._one_by_one
        if self._batched:
            return self._in_batches
        if self._together:
            return self._in_one
        return self._only_reading if self._reading else self._one_by_one

    def _spot(self, sent: Sent, offset: int) -> Spot:
        return Spot(sent.no, sent.pos + offset, sent.attempt, sent.retry, sent.base)

    def _one_by_one(self, sent: Sent, items: list[Item], report: Reporter, first: int = 0) -> bool:
        """False when the run stopped on the way."""
        runner = self._runner
        one, stopping, add = runner.one, runner.stopping, report.add
        _, no, pos, attempt, base, retry, _, start, _ = sent
        last = len(items) - 1 if runner.may_go_on and not retry else 0
        for offset in range(first, len(items)):
            if stopping():
                runner.goes_on = False
                return False
            runner.goes_on = offset < last and report.expected < report.due
            add(one(Spot(no, pos + offset, attempt, retry, base), items[offset], start + offset))
        return True

    def _calling(self, sent: Sent, items: list[Item], report: Reporter) -> None:
        """A few nanoseconds matter here: what the general way does per item costs ten times a small task's call. So items
        are called by the block, as many as take a fraction of the time for which they may stay unreported.
        """
        runner = self._runner
        call, left, size, now = runner.work.plain_call(), iter(items), 1, monotonic()
        most = 1 if sent.alone else MOST_IN_BLOCK
        while length_hint(left) and not runner.stopping():
            self._call_block(sent, items, report, map(call, islice(left, size)), lambda: len(items) - length_hint(left))
            began, now = now, monotonic()
            size = min(size * 2, most) if now - began < FLUSH_S * BLOCK_SHARE else 1
            if now >= report.due:
                report.flush()

    def _call_block(
        self, sent: Sent, items: list[Item], report: Reporter, calls: Iterator[Any], begun: Callable[[], int]
    ) -> None:
        values: list[Any] = []
        raised: BaseException | None = None
        try:
            values.extend(calls)  # keeps what came before an error
        except BaseException as error:
            raised = error
        if raised is None and report.settled + len(values) < begun():  # ``map`` takes it for its own end
            raised = StopIteration("raised by the task")
        self._keep(sent, items, report, values)
        if raised is not None:
            report.add(self._runner.failing(raised, self._spot(sent, report.settled), items[report.settled]))

    def _keep(self, sent: Sent, items: list[Item], report: Reporter, values: list[Any]) -> None:
        """These are the next items' values."""
        if report.values is None or are_plain(values):
            report.extend(values)
            return
        for value in values:
            try:
                packed = pack(value)
            except BaseException as error:  # its __reduce__ is foreign code
                report.add(self._runner.failing(error, self._spot(sent, report.settled), items[report.settled]))
            else:
                report.extend((packed,))

    # All in one transaction.

    def _in_one(self, sent: Sent, items: list[Item], report: Reporter) -> None:
        runner = self._runner
        mark = runner.marks.of_items(sent.no, sent.pos, len(items)) if runner.marks else None
        values: list[Any] = []
        seconds: list[float] = []
        try:
            runner.in_transaction(mark, self._each, sent, items, values, seconds)
        except RUN_ENDING:
            raise
        except _Stopped:
            return
        except (Exception, MarkMissed, SystemExit) as error:
            judged, meaning = runner.judge(error, self._spot(sent, 0))
            report.watch.restart()
            if meaning is Meaning.PARTIAL:
                self._partly_in_one(sent, items, report, values, judged)
            else:
                self._one_by_one(sent, items, report)  # shows who is guilty
            return
        report.watch.spread(seconds)
        for value in values:
            report.add(Result("done", value=value))

    def _partly_in_one(self, sent: Sent, items: list[Item], report: Reporter, values: list[Any], error: BaseException) -> None:
        """An item committed past its session, and with it those before it and the mark of all. It does not run again."""
        runner, guilty = self._runner, len(values)
        result = runner.result_of(error, Meaning.PARTIAL, self._spot(sent, guilty))
        row = Row(self._spot(sent, guilty), items[guilty], result)
        if runner.recorder and runner.recorder.settle_within(row, sent.pos, sent.pos + len(items)):
            for value in values:
                report.add(Result("done", value=value))
        else:
            if not self._one_by_one(sent, items[:guilty], report):
                return
            if runner.recorder:
                runner.recorder.settle(row, partly=True)
        report.add(result)
        self._one_by_one(sent, items, report, guilty + 1)

    def _each(self, sent: Sent, items: list[Item], values: list[Any], seconds: list[float]) -> None:
        runner = self._runner
        assert runner.link is not None
        gate, stopping, call = runner.link.gate, runner.stopping, runner.call_in_session
        wants_ctx, told = runner.work.shape.wants_ctx, monotonic()
        began = told
        for offset, item in enumerate(items):
            if stopping():
                raise _Stopped
            if isinstance(item, Unstorable):
                raise _FallBack
            if began - told >= BEGAN_S:
                told = began
                runner.voice.began(offset)
            runner.at = (item, sent.attempt)
            context = runner.context(self._spot(sent, offset), item, sent.start + offset) if wants_ctx else None
            value = call(item, context, final=False)
            if gate.rolled_back:
                raise _FallBack
            gate.check()  # or the items behind one that committed past its session would run outside of any
            values.append(value)
            ended = monotonic()
            seconds.append(ended - began)
            began = ended

    # The task takes the list.

    def _in_batches(self, sent: Sent, items: list[Item], report: Reporter) -> None:
        spans = [(0, len(items))]
        again = True
        while spans:
            if self._runner.stopping():
                return
            low, high = spans.pop()
            if high - low == 1:
                self._one_by_one(sent, items[:high], report, low)
                continue
            try:
                values = self._batch(sent, items, low, high)
            except RUN_ENDING:
                raise
            except (Exception, MarkMissed, SystemExit) as error:
                judged, meaning = self._runner.judge(error, self._spot(sent, low))
                if meaning is Meaning.PARTIAL:
                    self._partly_in_batch(sent, items, low, high, report, judged)
                    continue
                if meaning is Meaning.FULL:
                    self._runner.hold(judged, meaning)
                    spans.append((low, high))
                    continue
                passing = meaning in (Meaning.LOST, Meaning.CONFLICT, Meaning.RETRY) and not isinstance(error, MarkMissed)
                middle = (low + high) // 2
                spans += [(low, high)] if passing and again else [(middle, high), (low, middle)]
                again = False
                continue
            again = True
            self._add_values(values, high - low, report)

    def _partly_in_batch(
        self, sent: Sent, items: list[Item], low: int, high: int, report: Reporter, error: BaseException
    ) -> None:
        """The list committed past its session: nobody can say which of its items' work stands, so none of them runs again."""
        runner = self._runner
        result = runner.result_of(error, Meaning.PARTIAL, self._spot(sent, low))
        if runner.recorder:
            rows = [Row(self._spot(sent, offset), items[offset], result) for offset in range(low, high)]
            runner.recorder.settle_list(rows)
        for _ in range(low, high):
            report.add(result)

    def _batch(self, sent: Sent, items: list[Item], low: int, high: int) -> Any:
        runner = self._runner
        given = items[low:high]
        if any(isinstance(item, Unstorable) for item in given):
            raise _FallBack
        runner.at = (given, sent.attempt)
        context = runner.context(self._spot(sent, low), given, sent.start + low)
        if runner.work.options.read_only:
            value = runner.only_reading(given, context)
            if runner.recorder:
                runner.recorder.mark_span(self._spot(sent, low), high - low, ())
            return value
        mark = runner.marks.of_items(sent.no, sent.pos + low, high - low) if runner.marks else None
        return runner.in_transaction(mark, runner.call_in_session, given, context)

    def _add_values(self, values: Any, count: int, report: Reporter) -> None:
        single = not isinstance(values, list) or len(values) != count
        report.watch.note(monotonic(), count)
        for offset in range(count):
            report.add(Result("done", value=values if single else values[offset]))

    # Only reading.

    def _only_reading(self, sent: Sent, items: list[Item], report: Reporter) -> None:
        runner = self._runner
        results: list[Result] = []
        seconds: list[float] = []
        began = monotonic()
        for offset, item in enumerate(items):
            if runner.stopping():
                break
            results.append(runner.one(self._spot(sent, offset), item, sent.start + offset, recorded=False))
            ended = monotonic()
            seconds.append(ended - began)
            began = ended
        if results and runner.recorder:
            rows = [
                Row(self._spot(sent, n), items[n], result)
                for n, result in enumerate(results)
                if result.state != OutcomeStatus.DONE
            ]
            runner.recorder.mark_span(self._spot(sent, 0), len(results), rows)
        report.watch.spread(seconds)
        for result in results:
            report.add(result)


class _Stopped(Exception):
    """The run is stopping in the middle of a chunk that shares a transaction: all of it is rolled back."""
