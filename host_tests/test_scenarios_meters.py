"""Whole stories of meters that misbehave: firmware in its VM, mosquitto, gateway, eMSP, pymodbus.

Each fault that the simulated meter can play, and a meter that is exchanged or feeds back: every
story ends with a session whose CDR is right or with a clear refusal, and all energy is on record.
Where a register is moved, the meter's clock stands still, so that energies are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from host_tests.scenario_kit import Fields, Scene
from tools import paths
from tools.meter.simulator import METER_FAULTS, WIRE_FAULTS
from tools.stage import EVSE, LOCATION, until

PLACE = {"location_id": LOCATION, "evse_uid": EVSE}
# each fault of the wire, and what it wants to know
WIRE: dict[str, Fields] = {kind: {} for kind in WIRE_FAULTS} | {
    "exception": {"code": 6}, "late": {"ms": 1500},
}  # fmt: skip


@pytest.fixture(scope="module")
def played(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with Scene(mosquitto, tmp_path_factory.mktemp("stage")) as scene:
        scene.begin()
        yield scene


@pytest.fixture
def scene(played: Scene) -> Iterator[Scene]:
    marks = played.marks()
    played.settle()
    played.read_again()
    yield played
    played.evidence(marks)


def billed_wh(cdr: Fields) -> int:
    return round(cdr["total_energy"] * 1000)


def charging(scene: Scene) -> tuple[str, int]:
    """Alice charges: (session id, register at its start)."""
    since = scene.mark()
    scene.plug("C")
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    scene.record(since, t="status", status="CHARGING")
    start = scene.record(since, t="start")
    return start["session_id"], start["register_wh"]


def stands_still(scene: Scene, back_wh: int = 0) -> int:
    """The meter's clock is stopped at a whole Wh, and the board has read it: the register, which
    is set back by `back_wh`."""
    scene.meter.ask("speed", x=0)
    wh = scene.meter.wh() + 1
    scene.meter.ask("set", wh=wh + back_wh)
    scene.read_again()
    return wh


def goes_on(scene: Scene, wh: int) -> None:
    scene.meter.ask("speed", x=1)
    scene.charge(wh)


def stopped(scene: Scene, session_id: str) -> tuple[Fields, Fields]:
    """(stop record, CDR) of a session that Alice ends."""
    since = scene.mark()
    assert scene.obey("STOP_SESSION", session_id=session_id) == "ACCEPTED"
    stop = scene.record(since, t="stop", session_id=session_id)
    cdr = scene.cdr(session_id)
    assert billed_wh(cdr) == stop["total_wh"]
    return stop, cdr


# --- on the wire


def test_no_start_without_a_meter(scene: Scene) -> None:
    scene.fresh()
    since, pins = scene.mark(), scene.board.watch.mark()
    scene.plug("C")
    scene.fault("silence")
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "FAILED"
    scene.board.advance(15_000)
    scene.show("alice")
    scene.record(since, t="refused", what="card", why="no_meter")
    assert scene.closings(pins) == [] and scene.facts(since, t="start") == []

    scene.later(since, t="meter", what="lost")
    scene.well("silence")
    scene.later(since, t="meter", what="back")
    scene.plug("C")
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    scene.board.wait(contactor=1, timeout_s=20)


def test_a_meter_that_dies_in_the_charge_ends_it(scene: Scene) -> None:
    """A minute without a reading: the session ends with what was read; what flowed unread is
    on record as unobserved when the meter is back."""
    since = scene.mark()
    session_id, first_wh = charging(scene)
    scene.charge(5)
    # what the meter has counted is not yet what the board has read
    until("a reading", lambda: scene.ups()[-1][0]["live"]["1"].get("wh", 0) > 0, 30)
    pins = scene.board.watch.mark()
    scene.fault("silence")
    dead_wh = scene.meter.wh()
    scene.charge(5)
    scene.board.advance(61_000)
    scene.opened(pins)
    stop = scene.record(since, t="stop")
    assert stop["cause"] == "meter_lost"
    assert 0 < stop["total_wh"] <= dead_wh - first_wh
    assert billed_wh(scene.cdr(session_id)) == stop["total_wh"]
    scene.well("silence")
    gap = scene.later(since, t="meter", what="gap")
    assert gap["after_wh"] == scene.meter.wh()
    assert gap["unobserved_wh"] == scene.meter.wh() - stop["register_wh"]
    assert scene.conserved() == scene.meter.wh()


def test_what_is_wrong_on_the_wire_for_a_while_costs_a_session_nothing(scene: Scene) -> None:
    """Every fault in one charge, for two replies in a row; a glitch of a reading; and silence for
    as long as a whole poll and its retries. Dropped, counted, asked again: billed to the Wh."""
    scene.fresh()  # it counts from here
    since = scene.mark()
    session_id, first_wh = charging(scene)
    for kind, more in WIRE.items():
        scene.fault(kind, count=2, **more)
        until(f"{kind} is over", lambda: not scene.meter.ask("get")["faults"], 30)
        scene.read_again()
    scene.fault("rollback", wh=700, count=1)
    scene.record(since, t="meter", what="glitch")
    scene.fault("silence", count=4)
    until("silence is over", lambda: not scene.meter.ask("get")["faults"], 30)
    scene.read_again()
    health = scene.health()
    for counted in ("timeout", "crc", "short", "unit", "exception"):
        assert health[f"meter1_{counted}"] >= 1, health
    _, cdr = stopped(scene, session_id)
    assert billed_wh(cdr) == scene.meter.wh() - first_wh > 0
    glitches = scene.facts(since, t="meter", what="glitch")
    # 700 less than the reading that was wrong; the good one after it is some Wh on
    told = [(g["count"], 700 <= g["before_wh"] - g["after_wh"] < 730) for g in glitches]
    assert told == [(1, True)]
    assert {r["what"] for r in scene.facts(since, t="meter")} <= {"glitch", "gap", "lost", "back"}
    assert scene.conserved() == scene.meter.wh()
    scene.whole()


def test_what_is_wrong_on_the_wire_for_good_starts_nothing(scene: Scene) -> None:
    pins, since = scene.board.watch.mark(), scene.mark()
    scene.plug("C")
    for kind, more in WIRE.items():
        scene.fault(kind, **more)
        assert scene.obey("START_SESSION", driver="alice", **PLACE) == "FAILED", kind
        scene.well(kind)
    scene.read_again()
    assert scene.closings(pins) == [] and scene.facts(since, t="start") == []
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    scene.board.wait(contactor=1, timeout_s=20)


# --- in the meter


def test_a_register_that_freezes_ends_the_charge_and_starts_none(scene: Scene) -> None:
    """It stands still while 21 kW flow: after the time in which 300 Wh would have come it is not
    a meter any more. The session ends with what was read, and nobody starts, until it moves."""
    since = scene.mark()
    session_id, first_wh = charging(scene)
    scene.charge(5)
    frozen_wh = stands_still(scene)
    scene.fault("frozen")
    scene.meter.ask("speed", x=1)
    pins = scene.board.watch.mark()

    def open_again() -> bool:
        scene.board.advance(5_000)
        scene.read_again()
        return not scene.board.pins()["contactor"]

    until("the contactor open", open_again, 90)
    scene.opened(pins)
    fact = scene.record(since, t="meter", what="frozen")
    assert fact["before_wh"] == fact["after_wh"] == frozen_wh
    assert fact["power_w"] == 21_000
    stop = scene.record(since, t="stop", session_id=session_id)
    assert (stop["cause"], stop["total_wh"]) == ("meter_lost", frozen_wh - first_wh)
    assert billed_wh(scene.cdr(session_id)) == frozen_wh - first_wh > 0
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "FAILED"

    scene.well("frozen")
    thawed = scene.later(since, t="meter", what="back")
    assert thawed["before_wh"] >= frozen_wh
    scene.read_again()
    missed = [
        r["unobserved_wh"] for r in scene.facts(since, t="meter") if r["what"] in ("gap", "jump")
    ]
    assert sum(missed) == scene.meter.wh() - frozen_wh > 0
    assert scene.conserved() == scene.meter.wh()
    scene.plug("C")
    session_id, first_wh = charging(scene)
    scene.charge(3)
    _, cdr = stopped(scene, session_id)
    assert billed_wh(cdr) == scene.meter.wh() - first_wh


def test_a_meter_that_freezes_before_a_stop_keeps_no_cable_and_welds_no_contactor(
    scene: Scene,
) -> None:
    """It shows 21 kW for ever. The contactor is seen open: the cable is free. Told when 20 Wh
    should have come, and nobody starts until it thaws."""
    since = scene.mark()
    session_id, _ = charging(scene)
    scene.charge(5)
    scene.fault("frozen")
    scene.read_again()
    stopped(scene, session_id)
    scene.board.wait(contactor=0, lock=0, timeout_s=10)
    fact = scene.later(since, t="meter", what="frozen")
    assert fact["power_w"] == 21_000
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "FAILED"
    scene.board.advance(60_000)
    scene.read_again()
    assert scene.facts(since, t="event", what="fault") == []
    assert scene.board.pins()["lock"] == 0
    scene.well("frozen")
    scene.later(since, t="meter", what="back")
    session_id, first_wh = charging(scene)
    scene.charge(3)
    _, cdr = stopped(scene, session_id)
    assert billed_wh(cdr) == scene.meter.wh() - first_wh
    assert scene.conserved() == scene.meter.wh()


def test_a_register_that_is_set_back_in_a_charge_bills_both_parts(scene: Scene) -> None:
    """And set forward again, which no car can have done: that much is nobody's."""
    since = scene.mark()
    session_id, first_wh = charging(scene)
    scene.charge(5)
    high_wh = stands_still(scene)
    scene.fault("rollback", wh=700)
    fact = scene.record(since, t="meter", what="rollback")
    assert (fact["before_wh"], fact["after_wh"]) == (high_wh, high_wh - 700)
    assert (fact["outside_wh"], fact["unobserved_wh"]) == (0, 0)
    goes_on(scene, 5)
    low_wh = stands_still(scene, 700)
    scene.well("rollback")
    jump = scene.record(since, t="meter", what="jump")
    assert (jump["before_wh"], jump["after_wh"]) == (low_wh, low_wh + 700)
    assert jump["unobserved_wh"] == 700 and jump["epoch"] == fact["epoch"]
    goes_on(scene, 5)
    stop, cdr = stopped(scene, session_id)
    # both shifts undone, the register says what has flowed
    assert billed_wh(cdr) == scene.meter.wh() - first_wh >= 15
    assert stop["unobserved_wh"] == 700
    assert scene.conserved() == scene.meter.wh()


def test_a_register_that_forgot_its_last_wh_in_an_outage_resumes_nothing(scene: Scene) -> None:
    """Board and meter lose their power; the meter comes back with less than it had shown."""
    since = scene.mark()
    session_id, first_wh = charging(scene)
    scene.charge(5)
    high_wh = stands_still(scene)
    scene.board.power_off()
    scene.fault("rollback", wh=300)
    pins = scene.board.watch.mark()
    scene.power_on()
    fact = scene.record(since, t="meter", what="rollback")
    stop = scene.record(since, t="stop", session_id=session_id)
    assert stop["cause"] == "power_loss" and scene.closings(pins) == []
    # the last reading before the cut was not on record: it is gone with the meter's memory
    assert fact["after_wh"] == high_wh - 300
    assert first_wh <= fact["before_wh"] <= high_wh
    assert billed_wh(scene.cdr(session_id)) == fact["before_wh"] - first_wh
    assert scene.conserved() == high_wh - 300
    scene.meter.ask("speed", x=1)


def test_a_meter_that_is_exchanged_in_a_charge_bills_what_both_have_counted(scene: Scene) -> None:
    since = scene.mark()
    session_id, first_wh = charging(scene)
    scene.charge(5)
    old_wh = stands_still(scene)
    scene.meter.ask("set", wh=77_000, serial="22220001")
    # the serial number is read again after a failed poll, as it is when a meter was without supply
    scene.fault("silence", count=3)
    fact = scene.later(since, t="meter", what="serial")
    assert (fact["before_wh"], fact["after_wh"], fact["serial"]) == (old_wh, 77_000, "22220001")
    goes_on(scene, 5)
    _, cdr = stopped(scene, session_id)
    assert billed_wh(cdr) == old_wh - first_wh + scene.meter.wh() - 77_000
    assert scene.conserved() == scene.meter.wh()


def test_what_a_car_feeds_back_is_neither_billed_nor_set_off(scene: Scene) -> None:
    since = scene.mark()
    exported_wh = scene.meter.ask("get")["export_wh"]
    session_id, first_wh = charging(scene)
    scene.charge(10)
    scene.meter.ask("load", w=-9_000)
    turned_wh = scene.meter.wh()
    until("10 Wh back", lambda: scene.meter.ask("get")["export_wh"] >= exported_wh + 10, 60)
    assert scene.meter.wh() == turned_wh
    scene.meter.ask("load", w=21_000)
    scene.charge(10)
    _, cdr = stopped(scene, session_id)
    back_wh = scene.meter.ask("get")["export_wh"] - exported_wh
    assert billed_wh(cdr) == scene.meter.wh() - first_wh >= 20
    rows = scene.facts(since, t="export")
    assert rows[0]["before_wh"] == exported_wh and rows[-1]["after_wh"] == exported_wh + back_wh
    assert {(r["what"], r["session_id"]) for r in rows} == {("counted", session_id)}
    assert sum(r["wh"] for r in rows) == back_wh >= 10
    assert f"fed back: {back_wh / 1000:.3f} kWh" in cdr["remark"]
    assert scene.conserved() == scene.meter.wh()


# --- all of them


def test_every_fault_was_played_and_everything_kept_the_contract(played: Scene) -> None:
    """No fault of the simulated meter is without its story above, nor without its row in the
    firmware's page."""
    every = {*WIRE_FAULTS, *METER_FAULTS}
    assert played.played == every
    page = (paths.FIRMWARE / "README.md").read_text()
    table = page.partition("<!-- meter faults -->")[2].partition("<!-- end -->")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| `")]
    assert {word.strip("`, ") for row in rows for word in row.split()} == every
    assert played.valid() > 100
    played.whole()
