"""Reservations with the time unknown (P4, P5): every kind of outage and storm of boots, in virtual
time, `hold` and `release`; and power cuts between the sync of a transition and its output.

The bound is DESIGN's: what holds is let go no later than its expiry plus the time without power
plus one anchor interval for each boot; it is never let go before its expiry.
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


@pytest.mark.parametrize("up_ms", [8 * SECOND, 9 * MINUTE, 11 * MINUTE, 35 * MINUTE])
@pytest.mark.parametrize(
    "off_ms",
    [0, SECOND, 30 * SECOND, 5 * MINUTE, 19 * MINUTE, EXPIRY, 21 * MINUTE, 3 * HOUR],
)
def test_hold(off_ms: int, up_ms: int) -> None:
    """Boot after boot without a gateway: held until the expiry has surely passed, let go within
    the bound; with the time back, at once."""
    w = reserved(clock_lost="hold")
    expiry = w.evse().reservation.expiry_ms
    w.gateway.deaf = True
    boots = 1
    for _ in range(6):
        w.cut(off_ms)
        boots += 1
        end = w.ms + up_ms
        while w.ms < end and w.evse().reservation is not None:
            w.run(SECOND, SECOND)
            assert w.unix_ms() <= expiry + boots * INTERVAL + (boots - 1) * off_ms + 2 * SECOND
            if w.evse().reservation is None:
                assert w.unix_ms() >= expiry
            else:
                assert w.post().status() == "RESERVED"
                assert w.post().live()["time_unknown"] is True
        if w.evse().reservation is None:
            break
    held = w.evse().reservation is not None
    assert held or w.unix_ms() >= expiry
    w.gateway.deaf = False
    w.app.uplink.wait_ms = SECOND  # it may be two minutes until it is tried again
    w.run(3 * MINUTE)
    assert (w.evse().reservation is not None) == (w.unix_ms() < expiry)
    causes = [r["cause"] for r in w.records("release")]
    assert causes == ([] if w.unix_ms() < expiry else ["expired"])


@pytest.mark.parametrize("off_ms", [0, SECOND, 5 * MINUTE, 19 * MINUTE, 21 * MINUTE])
def test_release(off_ms: int) -> None:
    """Given back after two minutes without the time, as the CPO's cancellation; not sooner."""
    w = reserved(clock_lost="release")
    expiry = w.evse().reservation.expiry_ms
    w.gateway.deaf = True
    for _ in range(3):  # boots that are too short to decide anything
        w.cut(off_ms)
        w.run(MINUTE, SECOND)
        assert w.evse().reservation is not None
    w.run(59 * SECOND, SECOND)
    assert w.evse().reservation is not None
    w.run(4 * SECOND, SECOND)
    assert w.evse().reservation is None and w.post().status() == "AVAILABLE"
    w.gateway.deaf = False
    w.run(3 * MINUTE)
    assert [r["cause"] for r in w.records("release")] == ["cancelled_by_cpo"]
    assert expiry


@pytest.mark.parametrize("policy", ["hold", "release"])
def test_the_time_comes_back_in_time(policy: str) -> None:
    w = reserved(clock_lost=policy)
    w.gateway.deaf = True
    w.cut(30 * SECOND)
    w.run(MINUTE)
    w.gateway.deaf = False
    w.run(3 * MINUTE)
    assert w.evse().reservation is not None and "time_unknown" not in w.post().live()


class CutError(BaseException):
    """The power is gone: no `except Exception` of the agent sees it."""


class Cut(World):
    """Power fails right after the `at`-th group has been synced, before anything is done."""

    at = 0
    groups = 0

    def boot(self):
        made = super().boot()
        inner = made.journal.append

        def append(*args):
            done = inner(*args)
            self.groups += done
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
    "disabled, given back": [
        ask("RESERVE_NOW", **RESERVE | {"expiry_s": 3600}),
        ask("SET_AVAILABILITY", evse=1, operative=False),
        wait(20 * SECOND),
    ],
}


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
        started = [r["session_id"] for r in log if r["t"] == "start"]
        stopped = [r["session_id"] for r in log if r["t"] == "stop"]
        open_id = [state.session.id] if state.session is not None else []
        assert sorted(started) == sorted(stopped + open_id) and len(set(started)) == len(started)
        assert not w.troubles
