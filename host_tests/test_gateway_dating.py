"""Every stored record gets a time and says how sure it is: against true time, which only the test
knows; and after a gateway whose clock was wrong by years."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gateway_kit import Bare, Gateway, board_token
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session
from uplink_peer import Board

from tools.gateway import ocpi
from tools.gateway.dating import Timeline, When
from tools.gateway.store import (
    Alarm,
    CdrRow,
    Command,
    Outbox,
    Record,
    SessionRow,
    Station,
    open_store,
)

T0 = 1_790_000_000_000
HOUR, DAY, YEAR = 3_600_000, 86_400_000, 31_536_000_000


class History:
    """A board's journal in a database, with the true time of each record beside it."""

    def __init__(self) -> None:
        self.db: Session = open_store("sqlite://")()
        self.db.add(Station(id="S", boot=0))
        self.db.flush()
        self.ms = 0  # true time
        self.boot = 0
        self.truth: list[tuple[int, int]] = []  # (record's id, true unix ms)
        self.power_up(0)

    def up_ms(self) -> int:
        span = self.ms - self.born
        return span + span * self.ppm // 1_000_000

    def power_up(self, ppm: int, alive_ms: int | None = None) -> None:
        self.boot, self.born, self.ppm = self.boot + 1, self.ms, ppm
        self.write("boot", **({} if alive_ms is None else {"alive_ms": alive_ms}))

    def write(self, t: str, **fields: Any) -> None:
        up_ms = self.up_ms()
        body = json.dumps({"t": t, "boot": self.boot, "up_ms": up_ms} | fields).encode()
        row = Record(
            station_id="S", journal="j", seq=len(self.truth) + 1, link=b"", body=body, t=t,
            boot=self.boot, up_ms=up_ms, received_ms=T0 + self.ms,
        )  # fmt: skip
        self.db.add(row)
        self.db.flush()
        self.truth.append((row.id, T0 + self.ms))

    def anchor(self, err_ms: int, off_ms: int = 0, step: bool = False) -> None:
        fields = {"unix_ms": T0 + self.ms + off_ms, "err_ms": err_ms}
        self.write("time", **fields, **({"step": True} if step else {}))
        if step:
            seq = len(self.truth)
            self.db.add(Alarm(station_id="S", kind="clock_step", journal="j", first=seq, last=seq,
                              text="", at_ms=0))  # fmt: skip
            self.db.flush()

    def dates(self) -> list[tuple[int, When | None]]:
        """(true time, what the gateway says) of each record."""
        line = Timeline(self.db, "S")
        rows = {row.id: row for row in self.db.scalars(select(Record))}
        found = []
        for id, true in self.truth:
            found.append((true, line.when("j", rows[id].boot or 0, rows[id].up_ms or 0)))
        return found


def holds(true: int, when: When | None) -> None:
    # a ms for each of the roundings: of the uptime here, of the anchor, of the middle
    assert when is None or abs(when.unix_ms - true) <= when.err_ms + 3, (true, when)


ppm = st.integers(-95, 95)
events = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 2 * DAY)),
    st.tuples(st.just("write")),
    st.tuples(st.just("anchor"), st.integers(0, 5000), st.integers(-100, 100)),
    st.tuples(st.just("boot"), st.integers(0, 3 * DAY), ppm, st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(events, min_size=4, max_size=30))
def test_the_true_time_is_within_the_error(story: list[tuple[Any, ...]]) -> None:
    """Boots with and without time, any drift within 100 ppm, any time without power."""
    history = History()
    history.write("event")
    for event, *values in story:
        if event == "pass":
            history.ms += values[0]
        elif event == "write":
            history.write("event")
        elif event == "anchor":
            err_ms, share = values
            history.anchor(err_ms, err_ms * share // 100)
        else:
            history.ms += values[0]
            history.power_up(values[1], history.up_ms() if values[2] else None)
    anchored = {row.boot for row in history.db.scalars(select(Record).where(Record.t == "time"))}
    found = history.dates()
    for true, when in found:
        holds(true, when)
    rows = list(history.db.scalars(select(Record).order_by(Record.id)))
    for row, (_, when) in zip(rows, found, strict=True):
        boot = row.boot or 0
        surrounded = any(b < boot for b in anchored) and any(b > boot for b in anchored)
        assert (when is not None) == (boot in anchored or surrounded)
    # what nothing dates has come, at the latest, when it came
    line = Timeline(history.db, "S")
    for row, (true, _) in zip(rows, found, strict=True):
        when = line.seen(row)
        holds(true, when)
        assert when is not None or not any(b <= (row.boot or 0) for b in anchored)


def test_numbers_by_hand() -> None:
    history = History()
    history.ms += 1000
    history.anchor(40)
    history.ms += 10 * HOUR
    history.write("event")  # 36,000 s x 100 ppm = 3.6 s
    history.ms += 100_000  # without power: nobody knows how long
    history.power_up(0)
    history.ms += 60_000
    history.write("event")
    history.ms += 200_000
    history.power_up(0)
    history.anchor(40)
    found = [when for _, when in history.dates()]
    assert found[0] == When(T0, 41)  # 1 s from the anchor: 0.1 ms, rounded up
    assert found[2] == When(T0 + 1000 + 10 * HOUR, 40 + 3600)
    # boot 2 began 60 s at least before boot 3 did, and after the last moment of boot 1 (whose
    # error is 3,640 ms): between -3,640 and 100,000 + 200,000 + 40, less 6 ms of 60 s, as before
    end = T0 + 1000 + 10 * HOUR
    first, last = end - 3640, end + 300_000 + 40 + 6
    assert found[3] == When((first + last) // 2, -(-(last - first) // 2))


def test_the_last_moment_alive_narrows_a_boot_without_time() -> None:
    errors = []
    for alive in (False, True):
        history = History()
        history.anchor(40)
        history.power_up(0)
        history.ms += HOUR
        history.power_up(0, HOUR if alive else None)
        history.anchor(40)
        errors.append([when.err_ms for _, when in history.dates() if when][2])
    assert errors[1] < 1000 < HOUR // 2 <= errors[0]


# A gateway that was wrong -------------------------------------------------------------------


def days(history: History, count: int) -> None:
    for _ in range(count):
        history.ms += DAY
        history.anchor(40)
        history.write("event")


@pytest.mark.parametrize("off", [3 * YEAR, -YEAR // 2])
def test_wrong_and_right_again_within_a_boot(off: int) -> None:
    """The board steps twice. All of it is dated right: before, between, after."""
    history = History()
    days(history, 3)
    history.ms += HOUR
    history.anchor(40, off, step=True)
    history.write("event")
    history.ms += HOUR
    history.anchor(40, 0, step=True)
    days(history, 2)
    history.power_up(0)
    history.anchor(40)
    found = history.dates()
    assert all(when is not None for _, when in found)
    wrong = len(history.db.scalars(select(Record).where(Record.t == "time")).all())
    assert wrong == 8
    for true, when in found:
        holds(true, when)


@pytest.mark.parametrize(
    ("off", "boots_before"), [(3 * YEAR, 1), (3 * YEAR, 3), (-YEAR // 2, 2), (-YEAR // 2, 3)]
)
def test_wrong_for_a_whole_boot(off: int, boots_before: int) -> None:
    """Years ahead: the boot after contradicts. Years behind: the boot itself does. That boot lies
    between its neighbours then, and the others keep their dates."""
    history = History()
    for _ in range(boots_before - 1):
        days(history, 2)
        history.power_up(0)
    days(history, 2)
    history.power_up(0)
    history.anchor(40, off, step=off < 0)
    history.ms += HOUR
    history.write("event")
    begin = len(history.truth) - 3
    history.power_up(0)
    history.anchor(40, step=off > 0)
    days(history, 2)
    found = history.dates()
    for true, when in found:
        assert when is not None
        holds(true, when)
    true, when = found[begin]
    assert when is not None and when.err_ms < 2 * HOUR


def test_a_wrong_clock_poisons_no_session(tmp_path: Path) -> None:
    """Three years ahead for an hour, then right. Afterwards a session, its CDR, the records."""
    bare = Bare(tmp_path)
    board = Board()
    board.hello()
    bare.all(board)
    board.sleep(HOUR)
    right = board.unix_ms
    board.unix_ms += 3 * YEAR
    board.anchor(step=True)
    board.status("AVAILABLE")
    board.sleep(HOUR)
    bare.clock.unix_ms = board.unix_ms
    bare.all(board)
    board.unix_ms = right + HOUR
    board.anchor(step=True)
    bare.clock.unix_ms = board.unix_ms
    start_ms = board.unix_ms
    board.start("S1", board_token())
    board.period("S1", 10_000, 60_000)
    board.stop("S1")
    bare.all(board)
    (row,) = bare.rows(SessionRow)
    assert row.status == "COMPLETED" and row.object is not None
    session = ocpi.loads(row.object)
    assert abs(ocpi.parse_datetime(session["start_date_time"]) - start_ms) <= 1000
    (cdr,) = bare.rows(CdrRow)
    assert "known to within" not in ocpi.loads(cdr.object)["remark"]
    with bare.store() as db:
        line = Timeline(db, "DEMO-1")
        for record in db.scalars(select(Record)):
            when = line.seen(record)
            assert when is not None and T0 - 60_000 <= when.unix_ms <= board.unix_ms


@pytest.mark.parametrize("restarted", [False, True])
def test_what_waits_for_a_moment_years_ahead_waits_no_longer(
    tmp_path: Path, restarted: bool
) -> None:
    """The gateway's clock was ahead: commands, pushes and silence go on from now."""
    bare = Bare(tmp_path)
    board = Board()
    board.hello()
    bare.all(board)
    bare.south.tick()
    bare.clock.unix_ms += 3 * YEAR
    bare.south.tick()
    bare.all(board)
    assert bare.up(board) is not None
    command = bare.queue("CANCEL_RESERVATION", {"reservation_id": "R0"})
    with bare.store.begin() as db:
        for kind, deadline_ms in (("cdr", None), ("command_result", bare.clock() + 30_000)):
            db.add(Outbox(party_id=1, kind=kind, key="K", next_ms=bare.clock() + 5000,
                          deadline_ms=deadline_ms, attempts=3))  # fmt: skip
    bare.clock.unix_ms -= 3 * YEAR
    now_ms = bare.clock()
    if restarted:
        bare = Bare(tmp_path, bare.clock)
    bare.south.tick()
    (row,) = bare.rows(Command)
    assert (row.id, row.state) == (command.id, "timeout")
    cdr, result = sorted(bare.rows(Outbox), key=lambda row: row.kind)
    assert cdr.next_ms == result.next_ms == now_ms and result.deadline_ms == now_ms
    assert cdr.deadline_ms is None
    bare.clock.advance(bare.config.offline_after_s * 1000 + 1)
    bare.south.tick()
    (station,) = [row for row in bare.rows(Station) if row.id == "DEMO-1"]
    assert not station.online, "nothing was heard of it for long"
    # and what is within reach stays as it is
    command = bare.queue("CANCEL_RESERVATION", {"reservation_id": "R0"})
    bare.clock.unix_ms -= 10
    bare.south.tick()
    assert [row.state for row in bare.rows(Command) if row.id == command.id] == ["pending"]


def test_a_cdr_says_when_its_times_are_unsure(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    board = Board()
    board.hello()
    board.power_up()
    board.unix_ms += 2 * HOUR
    board.start("S1", board_token())
    board.period("S1", 10_000, 60_000)
    board.stop("S1")
    bare.all(board)
    assert bare.rows(CdrRow) == []
    board.unix_ms += 2 * HOUR
    board.power_up()
    board.hello()
    bare.all(board)
    (cdr,) = bare.rows(CdrRow)
    # nobody knows where in four hours that minute was: two of them, either way
    assert "start and end are known to within 120 minutes" in ocpi.loads(cdr.object)["remark"]


def test_the_operator_sees_how_sure_each_record_is(tmp_path: Path) -> None:
    board = Board()
    with Gateway(tmp_path) as gateway:
        board.unix_ms = gateway.context.now_ms()
        board.hello()
        board.anchor(step=True)
        gateway.talk(board)
        rows = gateway.admin("stations/DEMO-1/records")
        assert [row["time"]["err_ms"] for row in rows] == [40, 40, 40]
        assert all(row["received_ms"] > 0 for row in rows)
        (step,) = gateway.station()["clock_steps"]
        assert step["first"] == 3
