"""What the board sends, judged by the gateway's own reading of the contract; and when it sends it.

`tools.gateway.uplink` and `tools.gateway.schema` are written from UPLINK.md by other hands than
the board's, with hmac and JSON Schema.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from portable.bench import ANNA, BERT, KEY, STATION, World
from portable.store import Store
from wattlock import clock, mac
from wattlock.journal import Journal, body
from wattlock.uplink import Uplink

from tools.gateway import schema
from tools.gateway import uplink as contract

MINUTE = 60000


def a_day() -> World:
    """A world in which most that a board can say has been said."""
    w = World(evses=2)
    w.gateway.keep_raw = True
    w.boot()
    w.run(3000)

    def reserve(token: dict[str, str], minutes: int, **more: Any) -> None:
        data = {"evse": 1, "reservation_id": "R1", "token": token}
        w.ask("RESERVE_NOW", data | {"expiry_ms": w.unix_ms() + minutes * MINUTE} | more)
        w.run(1000)

    reserve(ANNA | {"group_id": "G1"}, 30, authorization_reference="A1")
    w.app.card(BERT["uid"])  # goes to the other EVSE and waits
    w.run(500)
    w.run(20000)
    w.run(15 * MINUTE, 1000)  # "alive" while reserved
    w.pins[1].car = "C"
    w.app.card(ANNA["uid"])
    w.run(20 * MINUTE)
    w.real[1].frozen = "all"
    w.run(2 * MINUTE + 10000)
    w.real[1].frozen = None
    w.board.meters[1].rolls_wh = w.real[1].rolls_wh = (w.real[1].mwh // 1000 + 100,)
    w.run(MINUTE)
    w.cut(20000)
    w.run(MINUTE)
    w.pins[1].car = "B"
    w.run(MINUTE)
    w.real[1].dead = True
    w.run(30000)
    w.real[1].dead = False
    w.run(5000)
    w.real[1].serial = "NEW"
    w.real[1].export_wh = 0
    w.run(5000)
    w.real[1].glitch = 1
    w.real[1].export_wh = 20
    w.run(3000)
    w.app.card(ANNA["uid"])
    w.run(10000)
    w.pins[1].car = "A"
    w.run(1000)
    reserve(ANNA, 1)
    w.run(2 * MINUTE)
    w.pins[2].fail = True
    w.run(5000)
    w.pins[2].fail = False
    w.ask("SET_AVAILABILITY", {"evse": 2, "operative": False})
    w.ask("GET_HEALTH")
    w.ask("UNLOCK_CONNECTOR", {"evse": 1})
    w.run(15000)
    w.store.files[max(w.store.files)] += b"torn"  # bytes that no append leaves
    w.cut(0)
    w.run(15000)
    w.store.files[max(w.store.files)] += b"R\x40\0\0torn"  # a group of 64 bytes, cut short
    w.rtc = (w.unix_ms() + 1000, 2000)
    w.gateway.deaf = True
    w.cut(0)
    w.run(3000)
    w.gateway.deaf = False
    w.run(5000)
    return w


@pytest.fixture(scope="module")
def day() -> World:
    return a_day()


def test_every_message_satisfies_the_schemas(day: World) -> None:
    kinds = set()
    states = set()
    for raw in day.gateway.raw:
        header, records = schema.validate_up(raw)
        kinds |= {(r["t"], r.get("what", r.get("class"))) for r in records}
        states.add(header["clock"]["state"])
    assert states == {"unset", "holdover", "synced"}
    assert kinds >= {
        ("boot", None),
        ("time", None),
        ("reserve", None),
        ("release", None),
        ("start", None),
        ("status", None),
        ("period", None),
        ("stop", None),
        ("result", None),
        ("meter", "found"),
        ("meter", "serial"),
        ("meter", "lost"),
        ("meter", "back"),
        ("meter", "frozen"),
        ("meter", "glitch"),
        ("meter", "rollover"),
        ("export", "counted"),
        ("refused", "card"),
        ("event", "alive"),
        ("event", "resumed"),
        ("event", "stopping"),
        ("event", "torn_tail"),
        ("lost", "unreadable"),
        ("event", "availability"),
        ("event", "fault"),
        ("event", "fault_cleared"),
        ("event", "journal_new"),
    }
    assert any("health" in h for h in day.gateway.headers)
    assert any("authorize" in h for h in day.gateway.headers)


def test_the_gateway_reads_mac_lines_and_chain(day: World) -> None:
    key = contract.derive_key(KEY, "chain", STATION)
    for raw in day.gateway.raw:
        message = contract.parse(raw, KEY, "up", STATION)
        header = json.loads(message.header)
        links = contract.links(
            key, bytes.fromhex(header["prev"]), header["seq"], message.records
        )
        assert links[-1].hex() == header["head"]
    ups = [(h["boot"], h["up_ms"]) for h in day.gateway.headers]
    assert len(set(ups)) == len(ups), "two messages of a boot share an up_ms"
    sids = {h["boot"]: h["sid"] for h in day.gateway.headers}
    assert len(set(sids.values())) == len(sids) == 4


def test_a_down_message_by_the_contract_is_taken() -> None:
    w = World()
    w.boot()
    w.run(3000)
    head = w.gateway.header(w.gateway.headers[-1])
    head["commands"] = [
        {"id": "c" * 32, "type": "RESERVE_NOW", "exp": w.unix_ms() + 1000, "data": {
            "evse": 1, "reservation_id": "R1", "token": ANNA, "expiry_ms": w.unix_ms() + MINUTE}}
    ]  # fmt: skip
    raw = contract.build(KEY, "down", STATION, json.dumps(head).encode())
    schema.validate_down(raw)
    w.board.link.down.append((raw, False))
    w.run(200)
    assert w.evse().reservation.id == "R1"


# The message by itself ----------------------------------------------------------------------


def make(sizes: list[int]) -> tuple[Uplink, Journal]:
    journal = Journal(Store(), mac.purpose(KEY, "chain", STATION))
    journal.open(lambda state: None, lambda record: None, lambda n: bytes(n))
    for i, size in enumerate(sizes):
        journal.append([body(1, i, {"t": "event", "what": "." * size})], lambda: 0)
    up = Uplink(journal, mac.purpose(KEY, "up", STATION), 65535, "f" * 32, 60000)
    up.greeted = True
    return up, journal


def synced() -> clock.Clock:
    now = clock.Clock()
    clock.evolve(now, {"t": "time", "up_ms": 0, "unix_ms": 1790000000000, "err_ms": 5000}, 0)
    return now


def live(evses: int) -> dict[str, Any]:
    one = {"status": "OUTOFORDER", "plugged": False, "session": "x" * 36, "wh": 2**31, "w": -99999}
    return {str(n): one for n in range(1, evses + 1)}


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 950), max_size=30),
    evses=st.integers(1, 8),
    health=st.booleans(),
)
def test_no_message_is_too_long_and_each_carries_something(
    sizes: list[int], evses: int, health: bool
) -> None:
    up, journal = make(sizes)
    asked = {"authorize": {"evse": 1, "type": "RFID", "uid": "x" * 36}}
    if health:
        asked["health"] = {"net": "x" * 90} | {f"meter{n}_failed": 2**31 for n in range(evses)}
    got: list[bytes] = []
    for i in range(len(sizes) + 1):
        raw = b"".join(up.message(2**31, 2**40 + i, 0, synced(), live(evses), asked, 255))
        assert len(raw) <= contract.MESSAGE_MAX_BYTES
        message = contract.parse(raw, KEY, "up", STATION)
        header = json.loads(message.header)
        assert header["seq"] == len(got) + 1
        assert message.records or len(got) == len(sizes)
        got += message.records
        up.answer({"journal": journal.id, "ack": len(got), "re": header["up_ms"]}, header["up_ms"])
    want = [body(1, i, {"t": "event", "what": "." * s}) for i, s in enumerate(sizes)]
    assert got == want


def test_the_first_message_of_a_boot_carries_no_records() -> None:
    up, journal = make([10, 10])
    up.greeted = False
    raw = b"".join(up.message(1, 5, 0, synced(), {}, {}, 0))
    assert contract.parse(raw, KEY, "up", STATION).records == []
    up.answer({"journal": journal.id, "ack": 1, "re": 5}, 6)  # the gateway has the first already
    raw = b"".join(up.message(1, 6, 0, synced(), {}, {}, 0))
    assert len(contract.parse(raw, KEY, "up", STATION).records) == 1


def test_up_ms_is_never_used_twice() -> None:
    up, _ = make([])
    ups = []
    for at in (5, 5, 5, 6, 100, 99):
        raw = b"".join(up.message(1, at, 0, synced(), {}, {}, 0))
        ups.append(json.loads(contract.parse(raw, KEY, "up", STATION).header)["up_ms"])
    assert ups == sorted(set(ups)) and ups[0] == 5 and 100 in ups


@pytest.mark.parametrize(
    ("head", "acked"),
    [
        ({"journal": "00000000", "ack": 2}, 2),
        ({"journal": "00000000", "ack": 0}, 0),
        ({"journal": "00000000", "ack": 4}, 1),  # beyond head
        ({"journal": "00000000", "ack": -1}, 1),
        ({"journal": "00000000", "ack": "2"}, 1),
        ({"journal": "00000000", "ack": None}, 1),
        ({"journal": "00000000"}, 1),
        ({"journal": "11111111", "ack": 2}, 1),  # of another life
        ({"ack": 2}, 1),
    ],
)
def test_acknowledgements(head: dict[str, Any], acked: int) -> None:
    up, journal = make([10, 10, 10])
    up.message(1, 5, 0, synced(), {}, {}, 0)
    up.answer({"journal": journal.id, "ack": 1, "re": 5}, 6)
    up.message(1, 9, 0, synced(), {}, {}, 0)
    up.answer(head, 10)
    assert journal.acked == acked
    assert up.sent_up == 9  # no answer to what is on its way


# When it is sent ----------------------------------------------------------------------------


class Ticks:
    def __init__(self, up: Uplink) -> None:
        self.ms = 0
        self.up = up
        self.sent: list[int] = []

    def run(self, until: int, jitter: int, answer: Any = None) -> list[int]:
        """Moments of sending up to `until`, in steps of 10 ms."""
        self.sent = []
        while self.ms < until:
            self.ms += 10
            if self.up.due(lambda ticks: self.ms - ticks, True):
                self.up.message(1, self.ms, self.ms, synced(), {}, {}, jitter)
                self.sent.append(self.ms)
                if answer is not None:
                    self.up.answer({"re": self.ms} | answer, self.ms)
        return self.sent


@pytest.mark.parametrize("jitter", [0, 128, 255])
def test_an_unanswered_message_is_sent_again_ever_more_rarely(jitter: int) -> None:
    up, _ = make([10])
    sent = Ticks(up).run(900000, jitter)
    waits = [b - a for a, b in itertools.pairwise(sent)]
    wait = 1000
    for got in waits:  # doubling up to two minutes, and up to half of it on top
        assert wait <= got <= wait * 3 // 2 + 10
        wait = min(wait * 2, 120000)
    assert len(waits) >= 8


def test_what_is_new_does_not_sit_out_the_wait_for_an_answer() -> None:
    """A card is shown while a dead gateway is asked each two minutes: one more try, no more."""
    up, _ = make([10])
    clockwork = Ticks(up)
    last = clockwork.run(900_000, 0)[-1]
    assert last + 2000 < 900_000 < last + 110_000
    up.hurry = True
    assert clockwork.run(900_500, 0) == [900_010]
    up.hurry = True
    assert clockwork.run(1_020_000, 0) == [901_010], "not sooner than a second after the last"
    assert clockwork.run(1_030_000, 0) == [1_021_010], "and the wait goes on as it was"


def test_what_is_new_makes_no_wait_longer() -> None:
    up, _ = make([10])
    clockwork = Ticks(up)
    assert clockwork.run(1500, 0) == [10, 1010]  # now it would wait for two seconds
    up.hurry = True
    assert clockwork.run(4500, 0) == [2010, 4010]


@pytest.mark.parametrize("answer", [{}, {"journal": "00000000", "ack": 0}])
def test_an_answer_that_acknowledges_nothing_is_no_reason_to_hurry(answer: dict) -> None:
    up, _ = make([10])
    sent = Ticks(up).run(900000, 0, answer)
    assert 8 <= len(sent) <= 16
    up.answer({"journal": "00000000", "ack": 1}, 900000)
    more = Ticks(up)
    more.ms = 900000
    assert len(more.run(960000, 0, {})) <= 2  # nothing is left but the picture


def test_an_idle_link_shows_a_picture_every_live_s() -> None:
    up, _ = make([])
    sent = Ticks(up).run(600000, 0, {})
    assert [b - a for a, b in itertools.pairwise(sent)] == [60000] * (len(sent) - 1)
    assert len(sent) == 10


def test_records_leave_at_once() -> None:
    up, journal = make([])
    clockwork = Ticks(up)
    clockwork.run(10000, 0, {})
    journal.append([b'{"t":"event"}'], lambda: 0)
    assert clockwork.run(10100, 0) == [10010]


def test_nothing_is_sent_while_the_link_is_down() -> None:
    up, _ = make([10])
    assert not up.due(lambda ticks: 10**9, False)
