"""10,000 boards come back together: the firmware's own back-off spreads them, and a gateway that
is slow with so many of them gets little more to do than what there is to be told.

Events in virtual time; the pauses are those of hal.mqtt and wattlock.uplink, nothing is modelled
but the broker that is away and a gateway with a queue.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import types
from collections import Counter
from typing import Any

import pytest
from wattlock import clock, mac
from wattlock.uplink import Uplink

BOARDS = 10_000


@pytest.fixture
def link_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """hal.mqtt.Mqtt, with something in the place of umqtt that is never called."""
    simple: Any = types.ModuleType("umqtt.simple")
    simple.MQTTException = type("MQTTException", (Exception,), {})
    simple.MQTTClient = object
    package: Any = types.ModuleType("umqtt")
    package.simple = simple
    monkeypatch.setitem(sys.modules, "umqtt", package)
    monkeypatch.setitem(sys.modules, "umqtt.simple", simple)
    monkeypatch.delitem(sys.modules, "hal.mqtt", raising=False)
    from hal.mqtt import Mqtt

    yield Mqtt
    sys.modules.pop("hal.mqtt", None)


def returns(Mqtt: Any, outage_ms: int) -> Counter[int]:
    """Connections in each second after a broker's return; all boards lost it at one moment."""
    rng = random.Random(outage_ms)
    seconds: Counter[int] = Counter()
    for _ in range(BOARDS):
        link = object.__new__(Mqtt)
        link.__dict__.update(_wait_ms=0, _window_ms=0, _now=0)
        link._close = lambda: None
        link._random = lambda n: bytes([rng.randrange(256)])
        at = 0
        while at <= outage_ms:
            link.rebuild()
            at += link._wait_ms
        seconds[(at - outage_ms) // 1000] += 1
    return seconds


@pytest.mark.parametrize(
    ("outage_s", "most"), [(0, 0.30), (10, 0.18), (60, 0.04), (3600, 0.02), (86_400, 0.02)]
)
def test_a_broker_that_comes_back_is_not_run_over(
    link_class: Any, outage_s: int, most: float
) -> None:
    """`most`: the part of all boards that may connect within one second."""
    seconds = returns(link_class, outage_s * 1000)
    assert sum(seconds.values()) == BOARDS
    assert max(seconds.values()) <= most * BOARDS, seconds.most_common(3)
    assert max(seconds) <= 136  # and nobody waits longer than that


class Journal:
    """So many records of 200 bytes to be told, five in a message."""

    id, first, seq, acked = "00000000", 1, 0, 0

    def unsent(self, room: int) -> tuple[int, bytes, bytes, list[bytes]]:
        count = min(room // 201, self.seq - self.acked)
        return self.acked + 1, bytes(32), bytes(32), [b"x" * 200] * count

    def acknowledge(self, seq: int) -> None:
        self.acked = seq


class Fleet:
    """Boards with a backlog, and a gateway that takes `service_ms` for each message, one after
    the other, in the order in which they come."""

    def __init__(self, boards: int, records: int, service_ms: int) -> None:
        self.rng = random.Random(7)
        self.service_ms = service_ms
        self.now = 0
        self.sent = 0
        self.queued: list[int] = []
        self._busy_until = 0
        self._queue: list[tuple[int, int, int, Any]] = []
        self._order = 0
        self.boards = []
        for n in range(boards):
            journal: Any = Journal()
            journal.seq = records
            up = Uplink(journal, mac.Mac(b"k"), 1, "0" * 32, 60_000)
            self.boards.append(up)
            self._at(self.rng.randrange(4000), n, None)  # as the link's pauses spread them

    def _at(self, when: int, board: int, answer: Any) -> None:
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, board, answer))

    def run(self, until_ms: int) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            self.now, _, n, answer = heapq.heappop(self._queue)
            up = self.boards[n]
            if answer is not None:
                up.answer(answer, self.now)
            if up.due(lambda ticks: self.now - ticks, True):
                self._send(n, up)
            elif answer is not None or not self._waits(up):
                wait = 20 if up.journal.acked < up.journal.seq else 60_000
                self._at(self.now + wait, n, None)

    def _waits(self, up: Uplink) -> bool:
        return up.sent_up is not None

    def _send(self, n: int, up: Uplink) -> None:
        raw = up.message(1, self.now, self.now, clock.Clock(), {}, {}, self.rng.randrange(256))
        head = json.loads(b"".join(raw).split(b"\n")[1])
        lines = len(raw) // 2 - 1
        self.sent += 1
        self._busy_until = max(self._busy_until, self.now) + self.service_ms
        self.queued.append(self._busy_until - self.now)
        answer = {"re": head["up_ms"], "journal": "00000000", "ack": head["seq"] + lines - 1}
        self._at(self._busy_until, n, answer)
        self._at(self.now + up._retry, n, None)  # a look whether it has to be sent again


def test_a_slow_gateway_is_not_asked_over_and_over() -> None:
    """A tenth of the boards and of the speed: 1,000 boards with 50 records each, 50 messages a
    second. The work alone takes 220 s; with all of them asking at once it is over in twice that,
    and for each message that was needed not one is sent in vain."""
    fleet = Fleet(1000, 50, 20)
    fleet.run(440_000)
    assert all(up.journal.acked == 50 for up in fleet.boards)
    needed = 1000 * (1 + 50 // 5)
    assert fleet.sent <= 2 * needed
