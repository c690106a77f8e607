"""The reservation lessons of other projects on the virtual board, each under its name.

The firmware in its VM, mosquitto, gateway, the strict eMSP; what tells is the board's pins, the
records and what the eMSP holds. `test_reservation_lessons.py` plays the same to the millisecond in
virtual time and names the issues; here it is that they hold through the real chain, in the heap of
the plain agent. Two EVSEs of one board are in `test_scenario_four.py`.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from host_tests.scenario_kit import Scene, board_token
from tools.stage import EVSE, LOCATION, until

PLACE = {"location_id": LOCATION, "evse_uid": EVSE}


@pytest.fixture(scope="module")
def played(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with Scene(mosquitto, tmp_path_factory.mktemp("lessons")) as scene:
        scene.begin()
        yield scene


def cancel(scene: Scene, reservation_id: str) -> str:
    return scene.obey("CANCEL_RESERVATION", reservation_id=reservation_id)


def held(scene: Scene, since: int) -> str:
    """The Session id of the reservation placed since."""
    session_id: str = scene.record(since, t="reserve")["session_id"]
    return session_id


# --- FIELD_NOTES, section 1: in the order of its lines


def test_lesson_remote_start_accepted_on_a_reserved_connector(scene: Scene) -> None:
    """With the plug in, before a reboot and after it; and a card."""
    scene.fresh()
    since, pins = scene.mark(), scene.board.watch.mark()
    assert scene.reserve("alice", "L1") == "ACCEPTED"
    scene.plug("C")
    assert scene.obey("START_SESSION", driver="bob", **PLACE) == "EVSE_OCCUPIED"
    scene.fresh()
    assert scene.obey("START_SESSION", driver="bob", **PLACE) == "EVSE_OCCUPIED"
    scene.show("bob")
    scene.record(since, t="refused", what="card", why="reserved")
    assert scene.closings(pins) == []
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    scene.board.wait(contactor=1, timeout_s=20)
    assert scene.record(since, t="start")["session_id"] == held(scene, since)


def test_lesson_cannot_cancel_an_expired_reservation_after_a_reboot(scene: Scene) -> None:
    since = scene.mark()
    assert scene.reserve("alice", "L2", 4) == "ACCEPTED"
    expires = time.time() + 4
    scene.board.power_off()
    until("the expiry", lambda: time.time() > expires, 10)
    scene.power_on()
    scene.online()
    assert scene.record(since, t="release")["cause"] == "expired"
    assert cancel(scene, "L2") == "UNKNOWN_RESERVATION"
    scene.status("AVAILABLE")
    assert len(scene.facts(since, t="release")) == 1
    scene.completed(held(scene, since))


@pytest.mark.parametrize("event", ["placed", "replaced", "cancelled", "used"])
def test_lesson_reservations_lost_or_resurrected_after_a_reboot(scene: Scene, event: str) -> None:
    """A reboot after each transition: what holds is what held, the empty set as well."""
    scene.fresh()
    since = scene.mark()
    assert scene.reserve("alice", f"L3-{event}") == "ACCEPTED"
    holder = "alice"
    if event == "replaced":
        holder = "bob"
        assert scene.reserve(holder, f"L3-{event}") == "ACCEPTED"
    elif event == "cancelled":
        assert cancel(scene, f"L3-{event}") == "ACCEPTED"
    elif event == "used":
        scene.plug("C")
        scene.show(holder)
        scene.board.wait(contactor=1, timeout_s=20)
        scene.record(since, t="status", status="CHARGING")
        scene.taken_away(holder)  # one that is still held is read anew after a reboot
    releases = len(scene.facts(since, t="release"))
    for _ in range(2):
        scene.fresh()
    assert len(scene.facts(since, t="release")) == releases == (event in ("cancelled", "used"))
    if event == "used":
        scene.status("CHARGING")
        assert len({r["session_id"] for r in scene.facts(since, t="start")}) == 1
    elif event == "cancelled":
        scene.status("AVAILABLE")
        assert scene.reserve("bob", "L3-next") == "ACCEPTED"
    else:
        scene.status("RESERVED")
        assert scene.reserve("carol", "L3-other") == "EVSE_OCCUPIED"
        scene.plug("C")
        scene.show(holder)
        scene.board.wait(contactor=1, timeout_s=20)
        assert scene.record(since, t="start")["session_id"] == held(scene, since)


def test_lesson_expiry_leaves_the_status_reserved(scene: Scene) -> None:
    since = scene.mark()
    assert scene.reserve("alice", "L4", 5) == "ACCEPTED"
    scene.status("RESERVED")
    scene.status("AVAILABLE")
    session_id = held(scene, since)
    scene.completed(session_id)
    cdr = scene.cdr(session_id)
    kinds = [d["type"] for p in cdr["charging_periods"] for d in p["dimensions"]]
    assert kinds == ["RESERVATION_TIME"] and cdr["total_energy"] == 0
    assert scene.reserve("bob", "L4-next") == "ACCEPTED"


def test_lesson_a_replacement_that_fails_cancels_the_old_one(scene: Scene) -> None:
    """The EVSE is out of service when the update comes, and well again before it is given back."""
    since = scene.mark()
    assert scene.reserve("alice", "L5") == "ACCEPTED"
    scene.board.fault("estop")
    scene.status("OUTOFORDER")
    assert scene.reserve("bob", "L5") == "EVSE_INOPERATIVE"
    scene.board.fault("estop", on=False)
    scene.status("RESERVED")
    assert scene.facts(since, t="release") == []
    scene.plug("C")
    scene.show("alice")
    scene.board.wait(contactor=1, timeout_s=20)
    assert scene.record(since, t="start")["session_id"] == held(scene, since)


# --- what else may happen


def test_two_drivers_arrive_together(scene: Scene) -> None:
    """Two cards and a remote start in the same moment: one session, the others hear no."""
    scene.fresh()
    since, pins = scene.mark(), scene.board.watch.mark()
    scene.plug("C")
    scene.show("alice")
    scene.show("bob")
    asked = scene.command("START_SESSION", driver="carol", **PLACE)
    word = scene.result(asked)
    start = scene.record(since, t="start")
    mine = start["token"] == board_token("carol")
    assert word == ("ACCEPTED" if mine else "EVSE_OCCUPIED")
    scene.online()
    time.sleep(2)
    assert len(scene.facts(since, t="start")) == len(scene.closings(pins)) == 1


@pytest.mark.parametrize("who", ["holder", "stranger"])
def test_a_reservation_expires_in_the_second_the_card_is_shown(scene: Scene, who: str) -> None:
    """By one moment the place is hers, from then on it is anybody's; never neither, never both."""
    since = scene.mark()
    scene.plug("A")
    asked_at = time.time()
    assert scene.reserve("alice", f"L6-{who}", 8) == "ACCEPTED"
    reserve = scene.record(since, t="reserve")
    scene.plug("C")
    until("the second", lambda: time.time() * 1000 > reserve["expiry_ms"] - 500, 20)
    if who == "holder":
        scene.show("alice")
        start = scene.record(since, t="start")
        used = start["session_id"] == reserve["session_id"]
        cause = scene.record(since, t="release")["cause"]
        assert cause == ("used" if used else "expired")
        assert start["token"] == board_token("alice")
    else:
        scene.show("bob")
        release = scene.record(since, t="release")
        assert release["cause"] == "expired"
        scene.online()
        starts = scene.facts(since, t="start")
        assert all(s["session_id"] != reserve["session_id"] for s in starts)
        seen = [t for r in scene.facts(since) if (t := r["t"]) in ("release", "start")]
        assert seen[0] == "release", "it was not his before"
    assert asked_at + 7 < time.time()


def test_cable_in_before_the_reservation(scene: Scene) -> None:
    """A cable occupies; a stranger's in a reserved EVSE changes nothing for who reserved it."""
    scene.fresh()
    since, pins = scene.mark(), scene.board.watch.mark()
    scene.plug("C")
    scene.status("CHARGING")
    assert scene.reserve("alice", "L7") == "EVSE_OCCUPIED"
    scene.plug("A")
    scene.status("AVAILABLE")
    assert scene.reserve("alice", "L7") == "ACCEPTED"
    scene.plug("C")
    scene.status("RESERVED")
    scene.show("bob")
    scene.record(since, t="refused", what="card", why="reserved")
    assert scene.closings(pins) == []
    scene.plug("A")
    scene.plug("C")
    scene.show("alice")
    scene.board.wait(contactor=1, timeout_s=20)


def test_a_reserved_evse_fails(scene: Scene) -> None:
    """Its eMSP named it: given back, CANCELED_RESERVATION to the URL of the RESERVE_NOW."""
    since = scene.mark()
    asked = scene.command(
        "RESERVE_NOW", driver="alice", **PLACE, reservation_id="L8", expiry_s=900
    )
    assert scene.result(asked) == "ACCEPTED"
    scene.plug("F")
    scene.board.advance(10_000)

    def results() -> list[str]:
        return [r["result"] for r in scene.emsp()["commands"][asked["id"]]["results"]]

    until("given back", lambda: len(results()) == 2, 30)
    assert results() == ["ACCEPTED", "CANCELED_RESERVATION"]
    assert scene.record(since, t="release")["cause"] == "cancelled_by_cpo"
    scene.completed(held(scene, since))
    assert cancel(scene, "L8") == "UNKNOWN_RESERVATION"
    scene.plug("A")
    scene.status("AVAILABLE")


def test_a_storm_of_reboots(scene: Scene) -> None:
    """Ten boots of a moment, without a gateway; it neither goes nor opens. Its own card then
    charges at once: the broker is there, the gateway is not, and nobody has to be asked."""
    scene.fresh()
    since, pins = scene.mark(), scene.board.watch.mark()
    assert scene.reserve("alice", "L9") == "ACCEPTED"
    session_id = held(scene, since)
    scene.gateway.kill()
    try:
        scene.plug("C")
        for number in range(10):
            scene.board.power_off()
            scene.power_on()
            time.sleep(0.3 + 0.2 * (number % 3))
        until("RESERVED", lambda: '"status": "RESERVED"' in scene.board.console()[-400:], 20)
        scene.show("bob")
        time.sleep(1.5)
        assert scene.closings(pins) == []
        scene.show("alice")
        scene.board.wait(contactor=1, timeout_s=14)  # it would be asked about for 15 s
    finally:
        scene.start_gateway()
    scene.online()
    assert [r["session_id"] for r in scene.facts(since, t="start")] == [session_id]


def test_a_replayed_command_after_a_reboot(scene: Scene) -> None:
    """Who heard the wire says it all again after the reboot: nothing happens."""
    since, mark = scene.mark(), len(scene.downs())
    assert scene.reserve("alice", "L10") == "ACCEPTED"
    assert cancel(scene, "L10") == "ACCEPTED"
    said = [raw for raw in scene.downs()[mark:] if b'"commands":[{' in raw]
    kinds = {
        command["type"]
        for raw in said
        for command in json.loads(raw.split(b"\n")[1])["commands"]
    }
    assert kinds == {"RESERVE_NOW", "CANCEL_RESERVATION"}
    scene.fresh()
    for raw in said:
        scene.speak(raw)
    scene.record(since, t="refused", what="message", why="other_boot")
    scene.status("AVAILABLE")
    assert len(scene.facts(since, t="reserve")) == len(scene.facts(since, t="release")) == 1


def test_gateway_restored_from_an_old_backup(scene: Scene) -> None:
    """The backup is from before the reservation: the board tells of it again, nobody else gets the
    place, its eMSP can cancel it."""
    database = scene.folder / "gateway.sqlite3"
    backup = scene.folder / "backup"
    with closing(sqlite3.connect(database)) as db, closing(sqlite3.connect(backup)) as copy:
        db.backup(copy)
    since = scene.mark()
    assert scene.reserve("alice", "L11") == "ACCEPTED"
    session_id = held(scene, since)
    scene.online()
    scene.gateway.kill()
    for file in scene.folder.glob("gateway.sqlite3*"):
        file.unlink()
    shutil.copy(backup, database)
    scene.start_gateway()
    again = scene.record(since, t="reserve")
    assert again["session_id"] == session_id
    scene.status("RESERVED")
    assert scene.reserve("bob", "L11-other") == "EVSE_OCCUPIED"
    assert cancel(scene, "L11") == "ACCEPTED"
    scene.completed(session_id)
    scene.status("AVAILABLE")
    scene.whole()
