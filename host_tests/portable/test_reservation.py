"""Reservations: every state and event of the table, and the empty set as state."""

from wattlock import reservation
from wattlock.reservation import (
    BY_CPO,
    BY_EMSP,
    EXPIRED,
    PLACE,
    REPLACED,
    USED,
    Reservation,
    decide,
    evolve,
    is_over,
)

TOKEN = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1"}
OTHER = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04FF"}
ENDS = (USED, EXPIRED, BY_EMSP, BY_CPO, REPLACED)


def wish(id="R1", token=TOKEN, expiry_ms=1790000900000, **more):
    out = {"reservation_id": id, "token": token, "expiry_ms": expiry_ms}
    out.update(more)
    return out


def held(id="R1"):
    return Reservation(id, "S1", TOKEN, 1790000900000, "A1")


def after(state, records):
    for record in records:
        state = evolve(state, record)
    return state


def fields(state):
    return None if state is None else [getattr(state, f) for f in reservation.FIELDS]


def test_place_on_none():
    records = decide(None, 1, PLACE, wish(authorization_reference="A1", command_id="c" * 32), "S1")
    assert records == (
        {
            "t": "reserve",
            "evse": 1,
            "session_id": "S1",
            "reservation_id": "R1",
            "token": TOKEN,
            "expiry_ms": 1790000900000,
            "authorization_reference": "A1",
            "command_id": "c" * 32,
        },
    )
    assert fields(after(None, records)) == fields(held())


def test_place_under_the_same_id_replaces_in_one_record():
    for id in ("R1", "r1"):
        records = decide(held(), 1, PLACE, wish(id, OTHER, 1790001800000), "S2")
        assert len(records) == 1 and records[0]["session_id"] == "S1"  # one session throughout
        now = after(held(), records)
        assert (now.token, now.expiry_ms) == (OTHER, 1790001800000)


def test_place_under_another_id_changes_nothing():
    assert decide(held(), 1, PLACE, wish("R2"), "S2") == ()


def test_each_end_is_one_release():
    for cause in ENDS:
        assert decide(None, 1, cause) == ()
        records = decide(held(), 1, cause)
        ids = {"evse": 1, "reservation_id": "R1", "session_id": "S1"}
        assert records == (dict({"t": "release", "cause": cause}, **ids),)
        assert after(held(), records) is None


def test_a_release_ends_only_its_own():
    record = decide(held("R1"), 1, EXPIRED)[0]
    assert evolve(held("R2"), record).id == "R2"
    assert evolve(held("r1"), record) is None
    assert evolve(None, record) is None


def test_other_records_change_nothing():
    for t in ("boot", "time", "start", "stop", "meter", "event"):
        assert evolve(None, {"t": t}) is None
        assert evolve(held(), {"t": t}).id == "R1"


def test_expiry_at_its_very_ms():
    one = held()
    assert not is_over(one, None)  # nobody knows the time: it holds
    assert not is_over(one, one.expiry_ms - 1)
    assert is_over(one, one.expiry_ms)
