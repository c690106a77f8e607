"""Reservations on the virtual board with four EVSEs: one scene, the real firmware in its VM.

The meter stands at EVSE 1; the others require none. `test_reservation_lessons.py` plays the same
parts in virtual time; here it is the board's own pins that tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_tests.scenario_kit import Scene
from tools.stage import DRIVERS, LOCATION, METER, STATION, gateway_config, until

HEAP = "112k"
"""Four EVSEs take all that a plain ESP32 ends at."""
UIDS = [f"WATT-E{n}" for n in range(1, 5)]


class Four(Scene):
    board_name = "virtual4"

    def __init__(self, program: Path, folder: Path) -> None:
        row = {"meter": METER, "bus": "rs485", "max_a": 32, "phases": 3}
        evses = [row | {"n": n, "unit": n, "require_meter": n == 1} for n in range(1, 5)]
        config = gateway_config(folder, 1, "00" * 32)
        (location,) = config["locations"]
        (pattern,) = location["evses"]
        location["evses"] = [
            pattern | {
                "uid": uid, "evse_id": f"NL*WLK*E{n}", "board": {"station_id": STATION, "evse": n},
            }
            for n, uid in enumerate(UIDS, 1)
        ]  # fmt: skip
        super().__init__(
            program, folder, cpo={"locations": [location]}, heap=HEAP, evses=evses
        )

    def statuses(self) -> list[str]:
        evses = self.emsp()["evses"]
        return [evses[uid]["status"] if uid in evses else "" for uid in UIDS]

    def see(self, *wanted: str) -> None:
        until(f"{wanted}", lambda: self.statuses() == list(wanted), 30)

    def place(self, driver: str, id: str, uid: str | None = None) -> str:
        fields: dict[str, Any] = {"location_id": LOCATION, "reservation_id": id, "expiry_s": 900}
        if uid is not None:
            fields["evse_uid"] = uid
        return self.obey("RESERVE_NOW", driver=driver, **fields)


@pytest.fixture(scope="module")
def four(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Four]:
    with Four(mosquitto, tmp_path_factory.mktemp("four")) as scene:
        try:
            scene.begin()
            scene.see(*["AVAILABLE"] * 4)
            yield scene
        finally:
            scene.evidence({})


def test_four_evses_of_one_board(four: Four) -> None:
    """Named and not named; a place that fails moves, through a reboot; each lock opens for its own
    card; what nobody can have is refused."""
    since = four.mark()
    assert four.place("alice", "R-1", UIDS[1]) == "ACCEPTED"
    assert four.place("bob", "R-2") == "ACCEPTED"  # the gateway picks a free one
    four.see("RESERVED", "RESERVED", "AVAILABLE", "AVAILABLE")
    assert four.place("bob", "R-3", UIDS[1]) == "EVSE_OCCUPIED"

    four.power_cycle()
    four.online()
    four.see("RESERVED", "RESERVED", "AVAILABLE", "AVAILABLE")

    four.board.car("F", evse=1)  # Bob's place fails: he named none
    four.see("OUTOFORDER", "RESERVED", "RESERVED", "AVAILABLE")
    bobs = DRIVERS["bob"]["uid"]
    moved = [r for r in four.facts(since, t="reserve") if r["token"]["uid"] == bobs]
    assert [r["evse"] for r in moved] == [1, 3]
    assert len({r["session_id"] for r in moved}) == 1
    assert [r["cause"] for r in four.facts(since, t="release")] == ["replaced"]

    pins = four.board.watch.mark()
    four.board.car("C", evse=2)
    four.board.car("C", evse=3)
    four.show("bob")
    four.board.wait(evse=3, contactor=1, lock=1, timeout_s=20)
    four.show("alice")
    four.board.wait(evse=2, contactor=1, lock=1, timeout_s=30)
    until("both closings", lambda: len(four.closings(pins)) > 1)
    closed = [event["evse"] for event in four.closings(pins)]
    assert closed == [3, 2], "each card opens its own place"
    four.see("OUTOFORDER", "CHARGING", "CHARGING", "AVAILABLE")

    start = {"location_id": LOCATION, "driver": "alice"}
    assert four.obey("START_SESSION", evse_uid=UIDS[2], **start) == "EVSE_OCCUPIED"
    assert four.obey("START_SESSION", evse_uid=UIDS[0], **start) == "EVSE_INOPERATIVE"
    sessions = {r["evse"]: r["session_id"] for r in four.facts(since, t="start")}
    for n in (3, 2):
        assert four.obey("STOP_SESSION", session_id=sessions[n]) == "ACCEPTED"
        four.completed(sessions[n])
        assert four.cdr(sessions[n])["cdr_location"]["evse_uid"] == UIDS[n - 1]
        four.board.wait(evse=n, lock=0, timeout_s=20)
        four.board.car("A", evse=n)
    four.board.car("A", evse=1)
    four.see(*["AVAILABLE"] * 4)
    four.whole()
