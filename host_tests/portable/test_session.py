"""Sessions: every phase and event of the table; after a reset and after a power cut."""

from wattlock import session
from wattlock.session import ENDING, ENERGISED, INTERRUPTED, STARTED

TOKEN = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1"}
START = {"t": "start", "evse": 1, "session_id": "S1", "token": TOKEN, "boot": 1, "up_ms": 1000}
BOOT = {"t": "boot", "boot": 2, "up_ms": 100}


def evolve(state, records, boot=1, up_ms=2000, last=(1, 1900)):
    for record in records:
        record.setdefault("boot", boot)
        record.setdefault("up_ms", up_ms)
        state = session.evolve(state, record, list(last))
    return state


def started():
    return session.evolve(None, dict(START), [1, 900])


def energised():
    s = started()
    return evolve(s, session.energised(s, 1))


def interrupted(resumes=0):
    s = energised()
    s.resumes = resumes
    return evolve(s, [dict(BOOT)])


def ending():
    s = energised()
    return evolve(s, session.stopping(s, 1, session.REMOTE))


ALL = (started, energised, interrupted, ending)


def test_start():
    s = started()
    assert (s.id, s.token, s.phase, s.kind) == ("S1", TOKEN, STARTED, "charging")
    assert s.since == [1, 1000] and s.total_wh == 0 and s.resumes == 0


def test_phases_by_event():
    want = {  # phase after: closed, stopping, boot
        started: (ENERGISED, ENDING, ENDING),
        energised: (ENERGISED, ENDING, INTERRUPTED),
        interrupted: (INTERRUPTED, ENDING, INTERRUPTED),
        ending: (ENDING, ENDING, ENDING),
    }
    for make in ALL:
        s = make()
        assert evolve(s, session.energised(s, 1)).phase == want[make][0]
        s = make()
        assert evolve(s, session.stopping(s, 1, session.LOCAL)).phase == want[make][1]
        assert evolve(make(), [dict(BOOT)]).phase == want[make][2]


def test_what_was_not_seen_energised_ends_by_power_loss():
    s = evolve(started(), [dict(BOOT)])
    assert (s.phase, s.cause) == (ENDING, session.POWER_LOSS)


def test_resumed_and_cut_before_it_closed_again():
    s = interrupted()
    s = evolve(s, session.resumed(s, 1, s.alive, 5100, 100), 2, 5000)
    assert (s.phase, s.resumes, s.kind) == (STARTED, 1, "not_offered")
    s = evolve(s, [{"t": "boot", "boot": 3, "up_ms": 100}], last=(2, 6000))
    assert s.phase == INTERRUPTED and s.alive == [2, 6000]  # it was seen energised once


def test_resumed_closes_what_ran_at_the_last_moment_alive():
    s = interrupted()
    assert s.alive == [1, 1900]
    period, event = session.resumed(s, 1, s.alive, 5100, 100)
    assert (period["from"], period["to"], period["wh"]) == ([1, 1000], [1, 1900], 100)
    assert (period["kind"], period["next"]) == ("charging", "not_offered")
    assert event["what"] == "resumed" and event["resumes"] == 1
    s = evolve(s, (period, event), 2, 5000)
    assert s.since == [1, 1900] and s.total_wh == 100


def test_interruptions_keep_the_moment_of_the_first():
    s = interrupted()
    s = evolve(s, [{"t": "boot", "boot": 3, "up_ms": 100}], last=(2, 400))
    assert s.alive == [1, 1900]


def test_stopping_is_said_once_and_keeps_its_first_cause():
    s = energised()
    s = evolve(s, session.stopping(s, 1, session.LOCAL, TOKEN))
    assert (s.cause, s.stopper) == (session.LOCAL, TOKEN)
    assert session.stopping(s, 1, session.REMOTE) == ()
    s = evolve(s, [dict(BOOT)])
    assert (s.phase, s.cause, s.alive) == (ENDING, session.LOCAL, [1, 1900])


def test_stop_sums_up():
    s = ending()
    s.total_wh = 700
    s.unobserved_wh = 5
    s.stopper = TOKEN
    period, stop = session.stop(s, 1, [1, 5000], 5730, 30)
    assert (period["wh"], period["total_wh"], period["register_wh"]) == (30, 730, 5730)
    assert (period["from"], period["to"]) == ([1, 1000], [1, 5000])
    assert stop == {
        "t": "stop",
        "evse": 1,
        "session_id": "S1",
        "cause": "remote",
        "at": [1, 5000],
        "total_wh": 730,
        "register_wh": 5730,
        "unobserved_wh": 5,
        "token": TOKEN,
    }
    assert evolve(s, (period, stop)) is None


def test_records_of_another_session_change_nothing():
    for make in ALL:
        before = make()
        s = make()
        for record in (
            {"t": "stop", "session_id": "S2"},
            {"t": "status", "session_id": "S2"},
            {"t": "event", "what": "stopping", "session_id": "S2", "cause": "local"},
            {"t": "event", "what": "alive"},
            {"t": "period", "session_id": "S2", "total_wh": 9, "to": [1, 1], "next": "charging"},
        ):
            s = evolve(s, [record])
        assert [getattr(s, f) for f in session.FIELDS] == [
            getattr(before, f) for f in session.FIELDS
        ]


def test_unobserved_energy_is_counted_apart():
    s = evolve(energised(), [{"t": "meter", "unobserved_wh": wh} for wh in (40, 2)])
    assert s.unobserved_wh == 42 and s.total_wh == 0


def test_nothing_begins_but_by_start():
    for t in ("boot", "meter", "period", "status", "event", "stop", "reserve", "result"):
        assert evolve(None, [{"t": t, "session_id": "S1"}]) is None
