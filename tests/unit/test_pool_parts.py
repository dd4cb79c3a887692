"""What the pool is made of: the pipe that carries whole messages, and the one that says whose an order is."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from batchrun.execution.claims import Claims, Offers
from batchrun.execution.orders import Ended, Settled
from batchrun.execution.pipes import Channel
from batchrun.execution.processes import claims_pipe

# ---------------------------------------------------------------------------------------------------------- claims


@pytest.fixture
def sides() -> Iterator[tuple[Offers, Claims]]:
    offers, theirs = claims_pipe()
    yield offers, Claims(theirs)
    offers.close()
    theirs.close()


def test_an_order_that_was_taken_back_is_not_begun(sides: tuple[Offers, Claims]) -> None:
    offers, claims = sides
    for number in (3, 4, 5):
        offers.add(number)
    assert claims.claim(3)
    assert offers.take_back() == 4
    assert not claims.claim(4)
    assert claims.claim(5)
    assert offers.take_back() is None


def test_what_is_taken_back_last_is_not_begun_either_and_what_comes_afterwards_is(sides: tuple[Offers, Claims]) -> None:
    offers, claims = sides
    offers.add(1)
    assert offers.take_back() == 1
    assert not claims.claim(1)
    offers.add(2)
    assert claims.claim(2)


def test_an_order_that_is_sent_twice_is_begun_twice(sides: tuple[Offers, Claims]) -> None:
    """Its items could not be read together, and come again one by one, behind an order that waited."""
    offers, claims = sides
    for number in (1, 2):
        offers.add(number)
    assert claims.claim(1)
    offers.add(1)
    assert claims.claim(2)
    assert claims.claim(1)


@pytest.mark.parametrize("eager", [1, 3])
def test_each_order_goes_to_exactly_one_of_the_two_however_they_race(sides: tuple[Offers, Claims], eager: int) -> None:
    offers, claims = sides
    begun: list[int] = []
    numbers = range(1, 3001)
    sent = threading.Semaphore(0)

    def worker() -> None:
        for number in numbers:
            sent.acquire()
            if claims.claim(number):
                begun.append(number)

    thread = threading.Thread(target=worker)
    thread.start()
    taken: list[int] = []
    for number in numbers:
        offers.add(number)
        sent.release()
        if number % eager == 0 and (found := offers.take_back()) is not None:
            taken.append(found)
    thread.join()
    assert sorted([*begun, *taken]) == list(numbers)
    assert begun == sorted(begun)


# ------------------------------------------------------------------------------------------------------------ pipe


@pytest.fixture
def pipe() -> Iterator[tuple[Channel, Connection]]:
    ours, theirs = multiprocessing.Pipe(duplex=True)
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def write_all(channel: Channel) -> None:
    while channel.is_behind:
        channel.write()


def test_messages_of_any_size_come_in_whole_and_in_order(pipe: tuple[Channel, Connection]) -> None:
    channel, theirs = pipe
    messages = [Settled(number, 1, [], ["x" * size]) for number, size in enumerate((0, 10, 300_000, 1, 1_000_000, 5))]
    sender = threading.Thread(target=lambda: deque(map(theirs.send, messages)))
    sender.start()
    heard: list[Settled] = []
    while len(heard) < len(messages):
        assert channel.read()
        while channel.heard:
            message, size = channel.heard.popleft()
            assert isinstance(message, Settled)
            assert message.values
            assert size >= len(message.values[0])
            heard.append(message)
    sender.join()
    assert heard == messages


def test_what_the_pipe_does_not_take_at_once_is_kept_and_nothing_blocks(pipe: tuple[Channel, Connection]) -> None:
    channel, theirs = pipe
    messages = [("first", "x" * 3_000_000), ("second", "y" * 10), ("third", "z" * 2_000_000)]
    for message in messages:
        channel.send(message)
    heard: list[object] = []
    reader = threading.Thread(target=lambda: heard.extend(theirs.recv() for _ in messages))
    assert channel.is_behind
    reader.start()
    write_all(channel)
    reader.join()
    assert heard == messages


def test_a_dead_workers_last_words_are_read_to_the_end(pipe: tuple[Channel, Connection]) -> None:
    channel, theirs = pipe
    for number in range(5):
        theirs.send(Ended(number, 0.0))
    theirs.close()
    channel.read_to_the_end()
    assert [message.order for message, _ in channel.heard if isinstance(message, Ended)] == list(range(5))
    assert not channel.read()


def test_what_a_dying_worker_says_a_moment_later_is_heard_as_well(pipe: tuple[Channel, Connection]) -> None:
    """Its fork server was killed, which looks like its own end, and it dies next."""
    channel, theirs = pipe

    def dies() -> None:
        theirs.send(Ended(1, 0.0))
        theirs.close()

    worker = threading.Timer(0.1, dies)
    worker.start()
    channel.read_to_the_end()
    worker.join()
    assert [message for message, _ in channel.heard] == [Ended(1, 0.0)]


def test_a_pipe_that_somebody_else_keeps_open_has_an_end_all_the_same(pipe: tuple[Channel, Connection]) -> None:
    """A process that a task forked has the worker's end too, and lives on."""
    channel, theirs = pipe
    kept = os.dup(theirs.fileno())
    theirs.send(Ended(1, 0.0))
    theirs.close()
    channel.read_to_the_end()
    assert [message for message, _ in channel.heard] == [Ended(1, 0.0)]
    os.close(kept)


def test_a_message_to_a_dead_worker_goes_nowhere(pipe: tuple[Channel, Connection]) -> None:
    channel, theirs = pipe
    theirs.close()
    channel.send("anybody there?")
    assert not channel.is_behind
