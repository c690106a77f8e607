"""Random lives of the agent: after every transition a reset would find the same state, and the
energy adds up.

Hypothesis drives a real App on the bench (`portable.bench`): cars, cards, commands, meters that
die, jump and are exchanged, links, failing flash, power cuts. After each durable group a second
Station is rebuilt from a copy of the journal and compared. At the end the records, as the journal
gave them, are added up here with arithmetic of this file's own (P1), and every start has its stop.

Limits: what the outputs may do while reserved is checked against a model of who may start (P4);
the other promises are the simulation's.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from portable.bench import ANNA, BERT, KEY, STATION, World
from portable.store import Store
from wattlock import mac
from wattlock.journal import Journal
from wattlock.station import Station

CARLA = {"country_code": "DE", "party_id": "OTH", "type": "RFID", "uid": "AA11"}
TOKENS = {"anna": ANNA, "bert": BERT, "carla": CARLA}
MINUTE = 60000
SPAN = 10**7  # Wh at which the register begins again, where a story says so
SAID_ONLY = ("lost", "back", "frozen", "glitch")  # facts that move no register


class Life(World):
    """A world that checks, at each durable group, that a reset would find the same state."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.log: list[dict[str, Any]] = []  # every record that is durable, in order
        self.groups = 0
        self.cars: list[str] = []

    def boot(self):
        app = super().boot()
        inner = app.write

        def commit(records, spare):
            seq = app.journal.seq
            done = inner(records, spare)
            if done:
                self.groups += 1
                self._same_after_a_reset(app, seq)
            else:
                assert app.journal.seq == seq
            return done

        app.write = commit
        # a failed append may have been durable after all: the log is what the journal says
        self._reread()
        return app

    def _rebuild(self) -> tuple[Station, Journal]:
        station = Station(list(self.pins))
        journal = Journal(Store(self.store.files), mac.purpose(KEY, "chain", STATION))
        self.replayed: list[dict[str, Any]] = []

        def evolve(record):
            self.replayed.append(record)
            station.evolve(record)

        journal.open(station.restore, evolve, lambda n: bytes(n))
        self.first_replayed = journal.seq - len(self.replayed) + 1
        return station, journal

    def _same_after_a_reset(self, app, seq: int) -> None:
        station, journal = self._rebuild()
        assert journal.seq == app.journal.seq and journal.link == app.journal.link
        assert plain(station.checkpoint()) == plain(app.station.checkpoint())
        self._take(app.journal.seq)

    def _reread(self) -> None:
        _, journal = self._rebuild()
        self._take(journal.seq)

    def _take(self, seq: int) -> None:
        if len(self.log) < seq:
            fresh = self.replayed[len(self.log) - self.first_replayed + 1 :]
            assert len(self.log) + len(fresh) == seq, "a transition spans segments"
            self.log += fresh


def plain(state: Any) -> Any:
    return json.loads(json.dumps(state))


# What may happen ----------------------------------------------------------------------------


def reserve(w: Life, who: str, id: str, minutes: int) -> None:
    data = {"evse": 1, "reservation_id": id, "token": TOKENS[who]}
    w.ask("RESERVE_NOW", data | {"expiry_ms": w.unix_ms() + minutes * MINUTE})


def stop(w: Life) -> None:
    now = w.evse().session
    w.ask("STOP_SESSION", {"session_id": now.id if now else "none"})


def allow(w: Life, who: str) -> None:
    if w.app.asking is not None:
        uid = w.app.asking[1]
        token = TOKENS[who]
        allowed = "ALLOWED" if token["uid"] == uid else "BLOCKED"
        w.ask("AUTHORIZE", {"evse": 1, "uid": uid, "allowed": allowed, "token": token})


def cut(w: Life, off_ms: int, locked: bool, time: bool) -> None:
    w.gateway.deaf = not time
    w.store.fail_at = None
    w.cut(off_ms, locked)


def swap(w: Life, serial: str, wh: int) -> None:
    w.real[1].serial = serial
    w.real[1].mwh = wh * 1000


def begin_again(w: Life, wh: int) -> None:
    """The register is `wh` before the end of its width."""
    w.real[1].rolls_wh = w.board.meters[1].rolls_wh = (SPAN,)
    w.real[1].mwh = (SPAN - wh) * 1000


def feed_back(w: Life, wh: int) -> None:
    w.real[1].export_wh = (w.real[1].export_wh or 0) + wh


def freeze(w: Life, what: str | None) -> None:
    w.real[1].frozen = what


def glitch(w: Life, wh: int) -> None:
    w.real[1].glitch = wh


def fail(w: Life, at: int, done: int) -> None:
    w.store.fail_at, w.store.done = at, done


def pin(w: Life, name: str, on: bool | str) -> None:
    setattr(w.pins[1], name, on)


def charge(w: Life, who: str, ms: int) -> None:
    """A car comes, its driver starts from the app, and it charges."""
    pin(w, "car", "C")
    w.ask("START_SESSION", {"evse": 1, "token": TOKENS[who]})
    w.run(ms)


who = st.sampled_from(["anna", "anna", "anna", "anna", "bert", "carla"])
mostly_well = st.sampled_from([True] * 6 + [False])
rarely = st.sampled_from([False] * 6 + [True])
pause = st.tuples(st.just(Life.run), st.sampled_from([100, 300, 1000, 3000, 10000, 70000]))
start = st.tuples(st.just(charge), who, st.sampled_from([300, 5000, 20000]))
power_cut = st.tuples(
    st.just(cut), st.sampled_from([0, 3000, 900000]), mostly_well, mostly_well
)
EVENTS = st.one_of(
    pause,
    pause,
    start,
    start,
    start,
    start,
    power_cut,
    st.tuples(st.just(lambda w, ms: w.run(ms, 1000)), st.sampled_from([5 * MINUTE, 20 * MINUTE])),
    st.tuples(st.just(lambda w, car: pin(w, "car", car)), st.sampled_from("ABCC")),
    st.tuples(st.just(lambda w, t: w.app.card(TOKENS[t]["uid"])), who),
    st.tuples(st.just(allow), who),
    st.tuples(st.just(reserve), who, st.sampled_from(["R1", "r1", "R2"]), st.integers(1, 30)),
    st.tuples(
        st.just(lambda w, id: w.ask("CANCEL_RESERVATION", {"reservation_id": id})),
        st.sampled_from(["R1", "R2", "R3"]),
    ),
    st.tuples(
        st.just(lambda w, t: w.ask("START_SESSION", {"evse": 1, "token": TOKENS[t]})),
        who,
    ),
    st.tuples(st.just(stop)),
    st.tuples(st.just(lambda w: w.ask("UNLOCK_CONNECTOR", {"evse": 1}))),
    st.tuples(
        st.just(lambda w, on: w.ask("SET_AVAILABILITY", {"evse": 1, "operative": on})),
        mostly_well,
    ),
    st.tuples(st.just(swap), st.sampled_from(["S1", "S2"]), st.integers(0, 9000)),
    st.tuples(st.just(glitch), st.integers(1, 20000)),
    st.tuples(st.just(begin_again), st.integers(0, 200)),
    st.tuples(st.just(feed_back), st.integers(0, 200)),
    st.tuples(st.just(freeze), st.sampled_from([None, None, "all", "energy"])),
    st.tuples(st.just(fail), st.integers(1, 9), st.integers(0, 2)),
    st.tuples(
        st.just(pin),
        st.sampled_from(["welded", "stuck_open", "lock_stuck", "fail"]),
        rarely,
    ),
    st.tuples(st.just(lambda w, on: setattr(w, "online", on)), mostly_well),
    st.tuples(st.just(lambda w, on: setattr(w, "estop", on)), rarely),
    st.tuples(st.just(lambda w, on: setattr(w.real[1], "dead", on)), rarely),
)


# What must hold at the end ------------------------------------------------------------------


def conserved(log: list[dict[str, Any]]) -> None:
    """P1: per (serial, epoch), what the records give away is last register - first register."""
    registers: dict[Any, list[int]] = {}
    given: dict[Any, int] = {}
    now = None
    for r in log:
        if r["t"] == "meter" and r["what"] not in SAID_ONLY:
            share = r["outside_wh"] + r["unobserved_wh"]
            new = (r["serial"], r["epoch"])
            assert r["outside_wh"] >= 0 and r["unobserved_wh"] >= 0
            if now is None or new[1] != now[1]:  # a new epoch begins at this register
                if now is not None:
                    # what the old register still gave; its last reading is the sum so far
                    registers[now].append(registers[now][-1] + share)
                    given[now] += share
                now = new
                registers[now] = [r["after_wh"]]
                given[now] = 0
            else:
                now_key = now
                registers[now_key].append(r["after_wh"])
                given[now_key] += share
        elif r["t"] in ("start", "period") and r["register_wh"] is not None:
            wh = r["outside_wh"] if r["t"] == "start" else r["wh"]
            assert wh >= 0
            if now is None:
                assert wh == 0
                continue
            registers[now].append(r["register_wh"])
            given[now] += wh
    fed_back(log)
    for key, row in registers.items():
        assert row == sorted(row), (key, row)
        assert given[key] == row[-1] - row[0], (key, given[key], row)


def fed_back(log: list[dict[str, Any]]) -> None:
    """The same for what flows back: each record goes on where the one before has ended."""
    register = None
    for r in log:
        if r["t"] == "export":
            moved = r["after_wh"] - r["before_wh"] if r["before_wh"] is not None else 0
            assert r["before_wh"] == register or r["what"] == "found"
            assert r["wh"] >= 0 and r["unobserved_wh"] >= 0
            if r["what"] == "rollback":
                assert moved < 0 == r["wh"] == r["unobserved_wh"]
            else:
                assert moved == r["wh"] + r["unobserved_wh"]
            register = r["after_wh"]
        elif r["t"] == "meter" and r["what"] in ("found", "serial"):
            register = r.get("export_wh")


def sessions_are_whole(log: list[dict[str, Any]], open_id: str | None) -> None:
    """One start, one stop, in that order; periods in between join without a gap and sum up."""
    started: dict[str, Any] = {}
    stopped = set()
    for r in log:
        id = r.get("session_id")
        if r["t"] == "start":
            assert id is not None and id not in started, "started twice"
            started[id] = {"wh": 0, "at": [r["boot"], r["up_ms"]]}
        elif r["t"] == "period":
            assert id in started and id not in stopped
            s = started[id]
            assert r["from"] == s["at"] <= r["to"], "periods do not join"
            s["at"] = r["to"]
            s["wh"] += r["wh"]
            assert r["total_wh"] == s["wh"]
        elif r["t"] == "stop":
            assert id in started and id not in stopped
            stopped.add(id)
            assert r["total_wh"] == started[id]["wh"] and r["at"] == started[id]["at"]
    assert set(started) - stopped == ({open_id} if open_id else set())


def nobody_else(log: list[dict[str, Any]]) -> None:
    """P4 on the records: while reserved, a start is the reservation's token's, and uses it up."""
    held = None
    for i, r in enumerate(log):
        if r["t"] == "reserve":
            assert held is None or held["reservation_id"].upper() == r["reservation_id"].upper()
            held = r
        elif r["t"] == "release":
            if r["cause"] == "used":
                assert log[i + 1]["t"] == "start" and log[i + 1]["token"] == held["token"]
                assert log[i + 1]["session_id"] == held["session_id"]
            held = None
        elif r["t"] == "start":
            assert held is None


def test_checkers_find_what_they_are_for() -> None:
    found = {"t": "meter", "what": "found", "serial": "A", "epoch": 0, "after_wh": 100}
    found |= {"outside_wh": 0, "unobserved_wh": 0}
    period = {"t": "period", "session_id": "S", "wh": 5, "total_wh": 5, "register_wh": 106}
    period |= {"from": [1, 1], "to": [1, 2]}
    back = {"t": "export", "what": "counted", "before_wh": 5, "after_wh": 12, "wh": 7}
    back |= {"unobserved_wh": 0}
    conserved([found | {"export_wh": 5}, back])
    start = {"t": "start", "session_id": "S", "token": ANNA, "boot": 1, "up_ms": 1}
    start |= {"register_wh": 100, "outside_wh": 0}
    held = {"t": "reserve", "reservation_id": "R", "token": BERT, "session_id": "S"}
    for broken in (
        lambda: conserved([found, period]),
        lambda: conserved([found | {"export_wh": 5}, back | {"before_wh": 6}]),
        lambda: conserved([found | {"export_wh": 5}, back | {"wh": 8}]),
        lambda: sessions_are_whole([period], None),
        lambda: sessions_are_whole([start], None),
        lambda: sessions_are_whole([start, period | {"from": [1, 0]}], "S"),
        lambda: nobody_else([held, start]),
        lambda: nobody_else([held, {"t": "release", "cause": "used"}, start]),
    ):
        try:
            broken()
        except AssertionError:
            continue
        raise AssertionError("not found")


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    events=st.lists(EVENTS, min_size=12, max_size=40),
    power_return=st.sampled_from(["resume", "stop"]),
    require=st.booleans(),
    free_vend=st.booleans(),
)
@example(
    events=[
        (lambda w, car: pin(w, "car", car), "C"),
        (lambda w, t: w.ask("START_SESSION", {"evse": 1, "token": TOKENS[t]}), "anna"),
        (Life.run, 10000),
        (swap, "S2", 0),
        (Life.run, 10000),
        (cut, 3000, True, True),
        (Life.run, 70000),
        (stop,),
        (Life.run, 10000),
    ],
    power_return="resume",
    require=True,
    free_vend=False,
)
def test_any_life(events, power_return: str, require: bool, free_vend: bool) -> None:
    w = Life(on_power_return=power_return, require_meter=require, free_vend=free_vend)
    w.boot()
    w.run(3000)
    for event in events:
        note(f"{w.ms} {event[0]} {event[1:]}")
        event[0](w, *event[1:])
        w.run(100)
        reserved = w.evse().reservation
        if reserved is not None and w.evse().session is None:
            assert not w.pins[1].contactor_out
    # everything is well again, and the car leaves
    w.store.fail_at = None
    w.estop = w.real[1].dead = w.gateway.deaf = False
    w.real[1].frozen = None
    w.online = True
    for fault in ("welded", "stuck_open", "lock_stuck", "fail"):
        pin(w, fault, False)
    pin(w, "car", "A")
    w.run(90000)
    assert w.evse().session is None, "a session that began did not end"
    assert not w.pins[1].contactor_out and not w.pins[1].lock_out
    assert w.until(lambda: w.app.journal.acked == w.app.journal.seq, 5 * MINUTE)
    log = w.log
    conserved(log)
    sessions_are_whole(log, None)
    nobody_else(log)
    assert not w.troubles, w.troubles
    # the gateway has all of it, once and in order
    assert plain(w.gateway.records) == log


def test_what_the_rtc_kept_changes_nothing_that_is_durable() -> None:
    """Commands are forgotten an hour after they are over, by durable time: a reset forgets what
    the RTC knew, and must not remember a command again."""
    w = Life()
    w.boot()
    w.run(3000)
    id = w.ask("STOP_SESSION", {"session_id": "none"})
    w.run(2000)
    assert id in w.app.station.results
    w.rtc = (w.unix_ms() + 3 * 3600000, 2000)
    w.gateway.deaf = True
    w.cut(3 * 3600000)
    w.run(3000)
    assert w.app.station.clock.state == "holdover"
    row = {"id": "d" * 32, "type": "STOP_SESSION", "exp": w.unix_ms() + 9000, "data": {}}
    head = w.gateway.header(w.gateway.headers[-1], [row])
    w.gateway.send(head | {"re": None})
    w.run(1000)  # Life compares the state with that of a reset
    assert "d" * 32 in w.app.station.results


def test_a_reset_between_any_two_transitions_of_a_day() -> None:
    """One plain story; a Station is rebuilt after every group of it, and power is cut there."""
    story = [
        (reserve, "anna", "R1", 30),
        (Life.run, 2000),
        (reserve, "anna", "R1", 60),
        (Life.run, 2000),
        (lambda w: pin(w, "car", "C"),),
        (lambda w: w.app.card(ANNA["uid"]),),
        (Life.run, 20 * MINUTE),
        (lambda w: pin(w, "car", "B"),),
        (Life.run, 5 * MINUTE),
        (lambda w: pin(w, "car", "C"),),
        (Life.run, 5 * MINUTE),
        (stop,),
        (Life.run, 10000),
    ]
    whole = Life()
    whole.boot()
    whole.run(3000)
    for act in story:
        act[0](whole, *act[1:])
    assert whole.groups > 12
    for at in range(1, whole.groups + 1):
        w = Life()
        w.boot()
        w.run(3000)
        done = False
        for act in story:
            if not done and w.groups >= at:
                done = True
                w.cut(4000)
                w.run(3000)
            act[0](w, *act[1:])
        pin(w, "car", "A")
        w.run(90000)
        assert w.evse().session is None
        conserved(w.log)
        sessions_are_whole(w.log, None)
        nobody_else(w.log)
        stops = [r for r in w.log if r["t"] == "stop"]
        assert len(stops) <= 1 and len([r for r in w.log if r["t"] == "start"]) == len(stops)
        assert sum(r["total_wh"] for r in stops) <= w.real[1].mwh // 1000 - 5000
        assert w.evse().reservation is None or not stops
