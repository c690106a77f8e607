"""Reservations and bookings with the time unknown (P4, P5): outages of every length and storms of
short boots, in virtual time, `hold` and `release`; and power cuts between the sync of a transition
and its output.

The bound is DESIGN's: what holds is let go no later than its expiry plus the time without power
plus one anchor interval for each boot; it is never let go before its expiry. A booked slot counts
from the guard time to its end.
"""

from __future__ import annotations

from typing import Any

import pytest
from portable.bench import ANNA, World
from wattlock import app as agent

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
EXPIRY = 20 * MINUTE
INTERVAL = 10 * MINUTE  # firmware/README.md: a moment on record at least so often while reserved


def reserved(**fields: Any) -> World:
    w = World(**fields)
    w.boot()
    w.run(5 * SECOND)
    data = {"evse": 1, "reservation_id": "R1", "token": ANNA, "expiry_ms": w.unix_ms() + EXPIRY}
    w.ask("RESERVE_NOW", data)
    w.run(2 * SECOND)
    assert w.evse().reservation is not None
    return w


def test_the_interval_is_the_codes():
    assert agent._ALIVE_MS == INTERVAL


def booked(**fields: Any) -> World:
    """Anna's slot: in ten minutes, for ten."""
    w = World(**fields)
    w.config["bookings"] = True
    w.boot()
    w.run(5 * SECOND)
    slot = {
        "booking_id": "B1",
        "start_ms": w.unix_ms() + EXPIRY // 2,
        "end_ms": w.unix_ms() + EXPIRY,
        "tokens": [ANNA],
    }
    w.ask("SET_BOOKINGS", {"evse": 1, "base": 0, "version": 1, "put": [slot]})
    w.run(2 * SECOND)
    assert w.evse().slots.rows
    return w


def expiry_of(w: World) -> int:
    held = w.evse().reservation
    return held.expiry_ms if held is not None else w.evse().slots.rows["B1"]["end_ms"]


def holds(w: World) -> bool:
    return w.evse().reservation is not None or bool(w.evse().slots and w.evse().slots.rows)


SITES = {"reservation": reserved, "booking": booked}
OFF = {  # every class of outage, and its edges around the expiry
    "no time": 0,
    "a second": SECOND,
    "half a minute": 30 * SECOND,
    "minutes": 5 * MINUTE,
    "just before": 19 * MINUTE,
    "just then": EXPIRY,
    "just after": 21 * MINUTE,
    "hours": 3 * HOUR,
    "days": 50 * HOUR,
}


@pytest.mark.parametrize("up_ms", [SECOND, 8 * SECOND, 9 * MINUTE, 11 * MINUTE, 35 * MINUTE])
@pytest.mark.parametrize("off", list(OFF))
@pytest.mark.parametrize("what", list(SITES))
def test_hold(what: str, off: str, up_ms: int) -> None:
    """Boot after boot without a gateway: held until the expiry has surely passed, let go within
    the bound; with the time back, at once. The shortest boots are a storm of sixty."""
    w = SITES[what](clock_lost="hold")
    expiry, off_ms = expiry_of(w), OFF[off]
    w.gateway.deaf = True
    boots = 1
    for _ in range(60 if up_ms == SECOND else 6):
        w.cut(off_ms)
        boots += 1
        end = w.ms + up_ms
        while w.ms < end and holds(w):
            w.run(SECOND, SECOND)
            assert w.unix_ms() <= expiry + boots * INTERVAL + (boots - 1) * off_ms + 2 * SECOND
            if not holds(w):
                assert w.unix_ms() >= expiry
            else:
                assert w.post().status() == "RESERVED"
                assert w.post().live()["time_unknown"] is True
        if not holds(w):
            break
    assert holds(w) or w.unix_ms() >= expiry
    w.gateway.deaf = False
    w.app.uplink.wait_ms = SECOND  # it may be two minutes until it is tried again
    w.run(3 * MINUTE)
    assert holds(w) == (w.unix_ms() < expiry)
    causes = [r["cause"] for r in w.records("release")]
    causes += [r["cause"] for r in w.records("event") if r["what"] == "unbooked"]
    over = "expired" if what == "reservation" else "over"
    assert causes == ([] if w.unix_ms() < expiry else [over])


@pytest.mark.parametrize("off", list(OFF))
def test_release(off: str) -> None:
    """Given back after two minutes without the time, as the CPO's cancellation; not sooner."""
    w = reserved(clock_lost="release")
    w.gateway.deaf = True
    for _ in range(3):  # boots that are too short to decide anything
        w.cut(OFF[off])
        w.run(MINUTE, SECOND)
        assert w.evse().reservation is not None
    w.run(59 * SECOND, SECOND)
    assert w.evse().reservation is not None
    w.run(4 * SECOND, SECOND)
    assert w.evse().reservation is None and w.post().status() == "AVAILABLE"
    w.gateway.deaf = False
    w.run(3 * MINUTE)
    assert [r["cause"] for r in w.records("release")] == ["cancelled_by_cpo"]


@pytest.mark.parametrize("off", list(OFF))
def test_release_of_a_booking(off: str) -> None:
    """The place is free at once while the time is unknown; the slot stays on the list, and locks
    again when the time is back and it still runs."""
    w = booked(clock_lost="release")
    expiry = expiry_of(w)
    w.gateway.deaf = True
    w.cut(OFF[off])
    w.run(MINUTE, SECOND)
    assert w.post().status() == "AVAILABLE" and "time_unknown" not in w.post().live()
    w.gateway.deaf = False
    w.app.uplink.wait_ms = SECOND
    w.run(3 * MINUTE, SECOND)
    runs = expiry - EXPIRY // 2 <= w.unix_ms() < expiry
    assert (w.post().status() == "RESERVED") == runs and holds(w) == (w.unix_ms() < expiry)


def test_a_booking_is_not_older_than_some_hours_after_days_without_a_gateway() -> None:
    """The board knows the time for two days without a word from the gateway; then a blink of the
    power. What its records say is not two days old, or the slot would lock for as long."""
    w = booked(clock_lost="hold")
    slot = dict(w.evse().slots.rows["B1"], start_ms=w.unix_ms() + 60 * HOUR)
    slot["end_ms"] = slot["start_ms"] + HOUR
    w.ask("SET_BOOKINGS", {"evse": 1, "base": 1, "version": 2, "put": [slot]})
    w.run(2 * SECOND)
    w.gateway.deaf = True
    w.run(50 * HOUR, 30 * SECOND)
    w.cut(SECOND)
    w.run(10 * SECOND)
    assert w.app.now() is None and w.post().status() == "RESERVED"
    least = w.app.least()
    assert least is not None and w.unix_ms() - least < 8 * HOUR
    assert len([r for r in w.records("event") if r["what"] == "alive"]) < 50 // 7 + 1


@pytest.mark.parametrize("policy", ["hold", "release"])
@pytest.mark.parametrize("what", list(SITES))
def test_the_time_comes_back_in_time(what: str, policy: str) -> None:
    w = SITES[what](clock_lost=policy)
    w.gateway.deaf = True
    w.cut(30 * SECOND)
    w.run(MINUTE)
    w.gateway.deaf = False
    w.run(3 * MINUTE)
    assert holds(w) and "time_unknown" not in w.post().live()


class CutError(BaseException):
    """The power is gone: no `except Exception` of the agent sees it."""


class Cut(World):
    """Power fails right after the `at`-th group has been synced, before anything is done."""

    at = 0
    groups = 0

    def boot(self):
        self.config["bookings"] = True
        made = super().boot()
        inner = made.journal.append

        def append(*args):
            done = inner(*args)
            self.groups += done is True
            if done and self.groups == self.at:
                raise CutError
            return done

        made.journal.append = append
        return made


def story(w: World, acts: list[Any]) -> None:
    """Each act, and time for it; what the power cut took is done again by its driver or not: the
    car and the card stay as they are."""
    for act in acts:
        try:
            act(w)
        except CutError:
            w.cut(8 * SECOND)
            w.run(10 * SECOND)


def ask(kind: str, **data: Any) -> Any:
    def act(w: World) -> None:
        more = dict(data)
        if "expiry_s" in more:
            more["expiry_ms"] = w.unix_ms() + more.pop("expiry_s") * SECOND
        if more.get("session_id") == "now":
            more["session_id"] = w.evse().session.id if w.evse().session else "none"
        w.command = w.ask(kind, more)
        w.run(4 * SECOND)

    return act


def car(state: str) -> Any:
    def act(w: World) -> None:
        w.pins[1].car = state
        w.run(4 * SECOND)

    return act


def wait(ms: int) -> Any:
    return lambda w: w.run(ms, SECOND if ms > MINUTE else 100)


def book(begin_s: int, end_s: int, **more: Any) -> Any:
    def act(w: World) -> None:
        version = w.evse().slots.version
        slot = {"booking_id": f"B{version}", "tokens": [ANNA], **more}
        slot["start_ms"] = w.unix_ms() + begin_s * SECOND
        slot["end_ms"] = w.unix_ms() + end_s * SECOND
        data = {"evse": 1, "base": version, "version": version + 1, "put": [slot]}
        w.ask("SET_BOOKINGS", data)
        w.run(4 * SECOND)

    return act


RESERVE = {"evse": 1, "reservation_id": "R1", "token": ANNA, "expiry_s": 120}
STORIES = {
    "placed, replaced, cancelled": [
        ask("RESERVE_NOW", **RESERVE),
        ask("RESERVE_NOW", **RESERVE | {"expiry_s": 900}),
        ask("CANCEL_RESERVATION", reservation_id="R1"),
    ],
    "placed, expired": [ask("RESERVE_NOW", **RESERVE), wait(3 * MINUTE)],
    "placed, used, stopped": [
        ask("RESERVE_NOW", **RESERVE | {"expiry_s": 3600}),
        car("C"),
        lambda w: (w.app.card(ANNA["uid"]), w.run(20 * SECOND)),
        wait(2 * MINUTE),
        ask("STOP_SESSION", session_id="now"),
        wait(30 * SECOND),
        car("A"),
    ],
    "booked, used, ended by the slot": [
        book(0, 240),
        car("C"),
        lambda w: (w.app.card(ANNA["uid"]), w.run(20 * SECOND)),
        wait(5 * MINUTE),
        car("A"),
    ],
    "booked twice, nobody came": [
        book(30, 600, noshow_ms=MINUTE),
        book(900, 1200),
        wait(4 * MINUTE),
    ],
    "disabled, given back": [
        ask("RESERVE_NOW", **RESERVE | {"expiry_s": 3600}),
        ask("SET_AVAILABILITY", evse=1, operative=False),
        wait(20 * SECOND),
    ],
}


def listed(log: list[Any]) -> set[str]:
    """The ids of the slots, as the records tell."""
    ids: set[str] = set()
    used: dict[str, str] = {}  # by session
    for r in log:
        if r["t"] == "start" and "booking_id" in r:
            used[r["session_id"]] = r["booking_id"]
        elif r["t"] == "stop":
            ids.discard(used.get(r["session_id"], ""))
        elif r.get("what") == "booked":
            ids.add(r["slot"]["booking_id"])
        elif r.get("what") == "unbooked":
            ids.remove(r["booking_id"])
    return ids


@pytest.mark.parametrize("name", list(STORIES))
def test_no_transition_is_lost_between_sync_and_output(name: str) -> None:
    """Cut after the sync of each group in turn, before the agent has done anything about it: what
    was written is in force after the reset, its outputs follow, each command has one result, and
    the gateway has every record."""
    whole = Cut()
    whole.boot()
    whole.run(5 * SECOND)
    first = whole.groups
    story(whole, STORIES[name])
    whole.run(10 * SECOND)
    assert whole.groups >= first + 2
    for at in range(first + 1, whole.groups + 1):
        w = Cut()
        w.boot()
        w.run(5 * SECOND)
        w.at = at
        story(w, STORIES[name])
        assert w.groups >= at
        w.run(2 * MINUTE)
        state, pins = w.evse(), w.pins[1]
        # outputs are what the state wants
        going = state.session is not None and state.session.phase in (1, 2)
        assert pins.contactor_out == going, at
        if state.session is None:
            assert not pins.lock_out, at
        # reported is what was written, once, and each start has its stop
        log = w.gateway.records
        assert w.gateway.acked == w.app.journal.seq
        ids = [r["command_id"] for r in log if r["t"] == "result"]
        assert len(ids) == len(set(ids)), at
        held = None
        for r in log:
            if r["t"] == "reserve":
                held = r["reservation_id"]
            elif r["t"] == "release":
                assert held is not None, "released twice"
                held = None
        assert (held is None) == (state.reservation is None)
        assert state.slots.rows.keys() == listed(log), at
        started = [r["session_id"] for r in log if r["t"] == "start"]
        stopped = [r["session_id"] for r in log if r["t"] == "stop"]
        open_id = [state.session.id] if state.session is not None else []
        assert sorted(started) == sorted(stopped + open_id) and len(set(started)) == len(started)
        assert not w.troubles
