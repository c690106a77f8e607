"""Session, reservation and lock against the tables at their tops: every state, every event.

The table says what becomes of a state; the code decides and evolves. Where a cell is empty nothing
is decided, and a record that comes all the same (a replay of what never was) is not at stake here.
The README's tables and diagrams are made from the same sources.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from wattlock import lock, reservation, session

from tools import tables

TOKEN = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1"}
START = {"t": "start", "evse": 1, "session_id": "S1", "token": TOKEN}
Records = tuple[dict[str, Any], ...]


def test_the_readme_has_todays_tables_and_diagrams():
    text = tables.README.read_text()
    assert tables.render(text) == text, "run `python -m tools.tables`"
    assert text.count("```mermaid") == 3


def test_a_change_of_the_code_shows(monkeypatch: pytest.MonkeyPatch):
    text = tables.README.read_text()
    monkeypatch.setattr("wattlock.gate._TABLE", "." * 120)
    assert tables.render(text) != text


# --- session


def play(state: session.Session | None, records: Records) -> session.Session | None:
    for record in records:
        record = {"boot": 1, "up_ms": 2000, **record}
        state = session.evolve(state, record, [1, 1900])
    return state


READING = ([1, 3000], "charging", 5100, 100)
SESSION_EVENTS: dict[str, Callable[[Any], Records]] = {
    "closed": lambda s: session.energised(s, 1),
    "cut": lambda s: session.cut(s, 1, *READING),
    "stopping": lambda s: session.stopping(s, 1, session.REMOTE),
    "settled": lambda s: session.stop(s, 1, [1, 3000], 5100, 100),
    "resume": lambda s: session.resumed(s, 1, [1, 1900], 5100, 100),
    "reset": lambda s: ({"t": "boot", "boot": 2, "up_ms": 90},),
}
SESSION_WAYS = {
    "NONE": (),
    "STARTED": ("start",),
    "ENERGISED": ("start", "closed"),
    "INTERRUPTED": ("start", "closed", "reset"),
    "RESUMED": ("start", "closed", "reset", "resume"),
    "ENDING": ("start", "closed", "stopping"),
}


def step(state: session.Session | None, event: str) -> Records:
    if event == "start":  # the gate lets nobody start in an open session
        return (dict(START),) if state is None else ()
    return () if state is None else SESSION_EVENTS[event](state)


def name_of(state: session.Session | None) -> str:
    if state is None:
        return "NONE"
    if state.phase == session.STARTED and state.resumes:
        return "RESUMED"
    names = {getattr(session, n): n for n in ("STARTED", "ENERGISED", "INTERRUPTED", "ENDING")}
    return names[state.phase]


SESSION = tables.machine(session)


def test_the_session_table_is_whole():
    assert set(SESSION) == set(SESSION_WAYS)
    assert {e for events in SESSION.values() for e in events} == {"start", *SESSION_EVENTS}


@pytest.mark.parametrize("state", SESSION)
@pytest.mark.parametrize("event", ["start", *SESSION_EVENTS])
def test_session(state: str, event: str):
    now = None
    for before in SESSION_WAYS[state]:
        now = play(now, step(now, before))
    assert name_of(now) == state
    was = copy.deepcopy(now)
    records = step(now, event)
    assert name_of(now) == state, "deciding changed the state"
    wanted = SESSION[state][event]
    if not wanted:
        assert records == ()
        return
    after = play(now, records)
    assert name_of(after) == wanted
    again = play(was, records)  # a replay of the same records gives the same
    assert (again and vars(again)) == (after and vars(after))


def test_a_session_is_resumed_three_times():
    now = play(None, (START,))
    for _ in range(session.MAX_RESUMES):
        for event in ("closed", "reset", "resume"):
            now = play(now, step(now, event))
        assert name_of(now) == "RESUMED"
    now = play(now, step(now, "reset"))
    assert step(now, "resume") == ()


# --- reservation


def wish(id: str) -> dict[str, Any]:
    return {"reservation_id": id, "token": TOKEN, "expiry_ms": 1790000900000}


RESERVATION = tables.machine(reservation)
ENDS = ("used", "expired", "cancelled_by_emsp", "cancelled_by_cpo", "replaced")


def test_the_reservation_table_is_whole():
    assert {e for row in RESERVATION.values() for e in row} == {"place", "place other", *ENDS}
    assert set(RESERVATION) == {"NONE", "HELD"}


@pytest.mark.parametrize("state", RESERVATION)
@pytest.mark.parametrize("event", ["place", "place other", *ENDS])
def test_reservation(state: str, event: str):
    held = None if state == "NONE" else reservation.Reservation("R1", "S1", TOKEN, 1790000900000)
    if event in ENDS:
        records = reservation.decide(held, 1, event)
    else:
        id = "r1" if event == "place" else "R2"
        records = reservation.decide(held, 1, reservation.PLACE, wish(id), "S2")
    wanted = RESERVATION[state][event]
    assert len(records) == (1 if wanted else 0)
    for record in records:
        after = reservation.evolve(held, record)
        assert ("NONE" if after is None else "HELD") == wanted
        assert reservation.evolve(after, record) is None or wanted == "HELD"
        if state == "HELD":
            assert record["session_id"] == "S1", "one session throughout"


# --- lock


def test_lock():
    """Every wanted and observed value, before and after the time it is given."""
    words = {"wait": lock.WAIT, "well": lock.WELL}
    said = {(wanted, seen): (soon, late) for wanted, seen, soon, late in tables.rows(lock)[1:]}
    for wanted in (True, False):
        for observed in (True, False, None):
            drive = lock.Drive()
            drive.want(wanted, 0)
            if observed is None or observed == wanted:
                soon, late = said["same", "same"]  # what cannot be seen is believed
            else:
                name = {True: "closed", False: "open"}
                soon, late = said[name[wanted], name[observed]]
            for elapsed in (0, lock.FOLLOW_MS - 1):
                assert lock.decide(drive, observed, elapsed) == words[soon]
            for elapsed in (lock.FOLLOW_MS, 10**9):
                want = words.get(late, lock.STUCK)
                assert lock.decide(drive, observed, elapsed) == want
    faults = {late for _, late in said.values() if late.startswith("fault ")}
    assert faults == {f"fault {lock.WELDED}", f"fault {lock.STUCK_OPEN}"}
