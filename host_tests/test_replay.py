"""Replay: a thousand live records give the state that was running, and cost what they are.

The state after any prefix of a life is compared with what a reset finds then (`Life` does it at
each durable group), and with what every checkpoint gives with the records behind it. What opening
a journal costs is counted: reads, bytes and records, never seconds.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from portable.bench import ANNA, BERT, KEY, STATION
from portable.store import Store
from test_app import MINUTE, Life, charge, pin, plain, reserve, stop
from wattlock import mac
from wattlock.journal import LIMIT, RESERVED, SEGMENT, Journal, body
from wattlock.station import Station

LIVE = 1000


class Recorded(Life):
    """A Life that remembers the running state after each group, by its last sequence."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.states: dict[int, Any] = {}

    def _same_after_a_reset(self, app: Any, seq: int) -> None:
        super()._same_after_a_reset(app, seq)
        self.states[app.journal.seq] = plain(app.station.checkpoint())

    def opened(self, files: dict[str, bytes]) -> tuple[Station, Journal]:
        """What a boot makes of these files."""
        station = Station(list(self.pins))
        journal = Journal(Store(files), mac.purpose(KEY, "chain", STATION))
        assert journal.open(station.restore, station.evolve, bytes) == []
        return station, journal


def live(w: Life) -> int:
    return w.app.journal.seq - w.app.journal.acked


def something(w: Life, rng: random.Random) -> None:
    """One thing that happens at a station."""
    what = rng.randrange(8)
    if what == 0:
        reserve(w, rng.choice(("anna", "bert")), rng.choice(("R1", "R2")), rng.randint(1, 20))
    elif what == 1:
        w.ask("CANCEL_RESERVATION", {"reservation_id": rng.choice(("R1", "R2"))})
    elif what == 2:
        charge(w, rng.choice(("anna", "bert")), rng.choice((300, 5000, 20_000)))
    elif what == 3:
        w.app.card(rng.choice((ANNA, BERT))["uid"])
    elif what == 4:
        stop(w)
    elif what == 5:
        pin(w, "car", rng.choice("ABC"))
    elif what == 6:
        w.run(rng.choice((1, 16)) * MINUTE, 1000)
    else:
        w.cut(rng.choice((0, 3000, 900_000)), rng.random() < 0.8, rng.random() < 0.3)
    w.run(1000)


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_live_records_give_the_state_that_was_running(seed: int) -> None:
    rng = random.Random(seed)
    w = Recorded(free_vend=seed == 2)
    w.boot()
    w.run(3000)
    while w.app.journal.seq < 200:  # history, which the gateway has and the board may forget
        something(w, rng)
    w.gateway.acks = False  # from now on nobody acknowledges anything
    held = w.app.journal.acked
    w.gateway.acked = held
    short = 0
    while live(w) < LIVE:
        w.gateway.acked = held
        # a thousand of the longer ones would not fit into 128 KB: most are short
        if short < 0.85 * live(w):
            while not w.app.commit([{"t": "event", "what": "alive"} for _ in range(4)]):
                w.run(1000)  # a meter's first reading, a segment's turn
            short += 4
        else:
            something(w, rng)
        assert sum(map(len, w.store.files.values())) <= LIMIT + RESERVED
    assert len({r["t"] for r in w.log[-LIVE:]}) >= 8, "a life of many kinds"
    final = plain(w.app.station.checkpoint())
    names = sorted(w.store.files)
    assert len(names) >= 10
    # what stands at each segment's end, and all records behind it
    for count in range(1, len(names) + 1):
        files = {name: w.store.files[name] for name in names[:count]}
        station, journal = w.opened(files)
        assert plain(station.checkpoint()) == w.states[journal.seq]
        for record in w.log[journal.seq :]:
            station.evolve(json.loads(json.dumps(record)))
        assert plain(station.checkpoint()) == final
    # and all of it from nothing
    station = Station(list(w.pins))
    for record in w.log:
        station.evolve(json.loads(json.dumps(record)))
    assert plain(station.checkpoint()) == final


def test_the_state_is_compared_whole() -> None:
    """A state that evolved otherwise is found: the comparison leaves nothing out."""
    w = Recorded()
    w.boot()
    w.run(3000)
    charge(w, "anna", 20_000)
    reserve(w, "bert", "R1", 20)
    w.run(3000)
    for at in range(3, len(w.log)):
        if w.log[at]["t"] in ("start", "period", "status", "time", "result"):
            station = Station(list(w.pins))
            for record in w.log[:at] + w.log[at + 1 :]:
                station.evolve(json.loads(json.dumps(record)))
            assert plain(station.checkpoint()) != plain(w.app.station.checkpoint()), w.log[at]


# What it costs ------------------------------------------------------------------------------


class Counted(Store):
    """Counts what is asked of the file system."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.reads = self.bytes = self.looks = 0

    def read(self, name: str, offset: int, n: int) -> bytes:
        data = super().read(name, offset, n)
        self.reads += 1
        self.bytes += len(data)
        return data

    def size(self, name: str) -> int:
        self.looks += 1
        return super().size(name)


def written(history: int, records: int) -> dict[str, bytes]:
    """The files after `history` records that were acknowledged and `records` that were not."""
    store = Store()
    journal = Journal(store, mac.purpose(KEY, "chain", STATION))
    journal.open(lambda state: None, lambda record: None, lambda n: bytes(n))
    record = {"t": "status", "evse": 1, "status": "AVAILABLE", "plugged": False}
    for i in range(history + records):
        if i == history or i < history and i % 50 == 0:
            journal.acknowledge(journal.seq)
        assert journal.append([body(1, 10**6 + i, record)], lambda: {"boot": 1})
    return store.files


@pytest.mark.parametrize("history", [0, 1000, 9000])
@pytest.mark.parametrize("records", [10, 100, 1000])
def test_a_boot_reads_one_segment_whatever_lies_behind_it(history: int, records: int) -> None:
    files = written(history, records)
    store = Counted(files)
    seen: list[Any] = []
    journal = Journal(store, mac.purpose(KEY, "chain", STATION))
    assert journal.open(lambda state: None, seen.append, bytes) == []
    assert journal.seq == history + records
    assert 1 <= len(seen) <= SEGMENT // 90  # a record with its group takes 100 bytes
    assert store.bytes <= SEGMENT
    assert store.reads <= 2 * (len(seen) + 3) + 2  # head and payload of each group, and the end
    assert store.looks == len(files) <= (LIMIT + RESERVED) // (SEGMENT // 2)
    # and the first message begins behind one segment more, at the most
    journal.acknowledge(history)
    before = store.bytes
    journal.unsent(1100)
    assert store.bytes - before <= SEGMENT + 2 * 1100
