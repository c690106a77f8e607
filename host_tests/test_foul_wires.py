"""Foul networks, dead brokers and gateways: whatever they do, each record arrives once.

The firmware in its VM, mosquitto, gateway and eMSP as processes of their own; between any two of
them a wire of `foul_wire` that cuts, stalls, delays, truncates, repeats, loses and reorders from a
seed. Afterwards the wires are fair again, and then nothing may be missing or there twice. The
longest turn of the board's loop stays within the budget (counted by the virtual board, see
`stubs/vm/wires.py`), and the board has not restarted.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from host_tests.foul_wire import Wire
from host_tests.mosquitto_kit import free_port
from host_tests.scenario_kit import Scene
from tools.stage import EVSE, LOCATION, STATION, until

PLACE = {"location_id": LOCATION, "evse_uid": EVSE}
STALL_MS = 50  # of a turn of the loop: DESIGN, section 10
STALL_SYNC_MS = 150
"""... that writes to the flash, which it does once: three erases at most, see JOURNAL.md."""


class FoulScene(Scene):
    def __init__(self, program: Path, folder: Path) -> None:
        super().__init__(program, folder)
        self.to_board = Wire("mqtt", self.broker.port)
        self.to_gateway = Wire("mqtt", self.broker.port)
        self.to_emsp = Wire("http", 0)
        self.wires = [self.to_board, self.to_gateway, self.to_emsp]
        self._mqtt_port = self.to_board.port
        self._gateway_changes["mqtt"]["port"] = self.to_gateway.port

    def start_emsp(self, *words: str) -> None:
        """It has to know the wire's port before it listens, and the wire its."""
        self.to_emsp.target = free_port()
        url = f"http://127.0.0.1:{self.to_emsp.port}"
        super().start_emsp("--base-url", url, "--port", str(self.to_emsp.target), *words)

    def foul(self, on: bool) -> None:
        for wire in self.wires:
            wire.foul = on
        if not on:
            for wire in self.wires:
                wire.mute = ""
                wire.cut()

    def stop(self) -> None:
        for wire in self.wires:
            wire.stop()
        super().stop()

    def again(self) -> None:
        """The wires are fair: the pauses of a link that was cut often enough are skipped, until a
        message was answered. That sets the board's clock ahead, and until it has the gateway's
        time again, which takes two answers, commands look expired to it."""
        sid = self.ups()[-1][0]["sid"]
        said, heard = len(self.ups()), len(self.downs())

        def answered() -> bool:
            self.board.advance(10_000)
            moments = [up["up_ms"] for up, _ in self.ups()[said:] if up["sid"] == sid]
            heads = [json.loads(raw.split(b"\n")[1]) for raw in self.downs()[heard:]]
            return any(head.get("re") in moments for head in heads)

        until("the board on a fair wire", answered, 60)
        self.online()
        self.admin(f"stations/{STATION}/commands", {"type": "GET_HEALTH"})  # whole messages
        until("the board's clock right", self.timely, 30)

    def timely(self) -> bool:
        clock = next(up["clock"] for up, _ in reversed(self.ups()) if "clock" in up)
        return abs(clock.get("unix_ms", 0) - time.time_ns() // 1_000_000) < 3000


@pytest.fixture(scope="module")
def played(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FoulScene]:
    with FoulScene(mosquitto, tmp_path_factory.mktemp("foul")) as scene:
        scene.begin()
        yield scene


@pytest.fixture
def scene(played: FoulScene) -> Iterator[FoulScene]:
    marks = played.marks()
    played.settle()
    boot = played.board.boot()
    played.board.stall()
    yield played
    if any(wire.foul or wire.mute for wire in played.wires):  # it failed in the middle
        played.foul(False)
    played.evidence(marks)
    stall = played.board.stall()
    assert stall["ms"] <= STALL_MS and 0 < stall["sync_ms"] <= STALL_SYNC_MS, stall
    assert played.board.boot() == boot, "the board restarted"


def begin(scene: FoulScene, wh: int) -> None:
    """A session by a reserved card, which needs no link; the pins tell how far it is."""
    scene.plug("C")
    scene.show("alice")
    scene.board.wait(contactor=1, timeout_s=20)
    scene.charge(wh)


def end(scene: FoulScene) -> None:
    """Until the last reading is taken: time that is skipped before would be taken from it."""
    pins = scene.board.watch.mark()
    scene.taken_away("alice")
    scene.show("alice")
    scene.opened(pins)
    scene.board.wait(lock=0, timeout_s=20)
    scene.plug("A")


def complete(scene: FoulScene, since: int, first_wh: int, sessions: int) -> None:
    """Everything is at the gateway once, and at the eMSP: each session, one CDR, its energy."""
    stops = until(
        f"{sessions} stops", lambda: (f := scene.facts(since, t="stop"))[sessions - 1 :] and f, 60
    )
    assert len(stops) == len(scene.facts(since, t="start")) == sessions
    billed = 0
    for stop in stops:
        cdr = scene.cdr(stop["session_id"])
        assert round(cdr["total_energy"] * 1000) == stop["total_wh"]
        scene.completed(stop["session_id"])
        billed += stop["total_wh"]
    assert billed == scene.meter.wh() - first_wh
    scene.whole()
    assert scene.conserved() == scene.meter.wh()


@pytest.mark.parametrize("seed", [1, 2])
def test_foul_wires_lose_nothing_and_double_nothing(scene: FoulScene, seed: int) -> None:
    first_wh, since = scene.meter.wh(), scene.mark()
    for wire in scene.wires:
        wire.begin(seed)
    for number in range(2):
        assert scene.reserve("alice", f"FOUL-{seed}-{number}") == "ACCEPTED"
        scene.foul(True)
        begin(scene, 3)
        end(scene)
        for operative in (False, True):  # may come late, or time out: that is not asked here
            scene.admin(
                f"stations/{STATION}/commands",
                {"type": "SET_AVAILABILITY", "data": {"evse": 1, "operative": operative}},
            )
        scene.foul(False)
        scene.again()
        scene.operator("SET_AVAILABILITY", evse=1, operative=True)
        scene.status("AVAILABLE")
    complete(scene, since, first_wh, 2)
    done = [wire.done for wire in scene.wires]
    assert sum(sum(one.values()) - one["pass"] for one in done) > 0, done


def test_a_gateway_that_dies_between_commit_and_acknowledgement(scene: FoulScene) -> None:
    """What it says is swallowed; the record is in its database; SIGKILL; another one over it."""
    first_wh, since = scene.meter.wh(), scene.mark()
    assert scene.reserve("alice", "COMMIT-1") == "ACCEPTED"
    begin(scene, 3)
    scene.online()
    scene.to_gateway.mute = "up"  # the gateway is the client here
    end(scene)
    stop = scene.record(since, t="stop")  # committed, and the board does not know
    assert scene.to_gateway.done["muted"] > 0
    scene.gateway.kill()
    scene.to_gateway.mute = ""
    heard = len(scene.ups())
    scene.start_gateway()
    scene.again()
    again = [body for _, bodies in scene.ups()[heard:] for body in bodies]
    assert stop in again, "sent again, as nobody had acknowledged it"
    assert len(scene.facts(since, t="stop")) == 1
    complete(scene, since, first_wh, 1)


def test_a_broker_killed_in_the_middle_of_a_session(scene: FoulScene) -> None:
    first_wh, since = scene.meter.wh(), scene.mark()
    assert scene.reserve("alice", "BROKER-1") == "ACCEPTED"
    begin(scene, 1)
    scene.broker.kill()
    scene.charge(3)
    end(scene)
    scene.broker.start()
    scene.ear.ready()
    scene.again()
    complete(scene, since, first_wh, 1)


def test_a_database_from_an_hour_ago(scene: FoulScene) -> None:
    """A session was charged, billed and acknowledged since the backup: it is told again, its CDR
    has one id, and commands are heard at once."""
    first_wh, since = scene.meter.wh(), scene.mark()
    database = scene.folder / "gateway.sqlite3"
    backup = scene.folder / "backup.sqlite3"
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(backup)) as copy:
        live.backup(copy)
    assert scene.reserve("alice", "BACKUP-1") == "ACCEPTED"
    begin(scene, 3)
    end(scene)
    scene.record(since, t="stop")
    scene.online()
    known = scene.station()["ack"]
    cdrs = scene.emsp()["cdrs"]
    scene.gateway.kill()
    for name in ("gateway.sqlite3-wal", "gateway.sqlite3-shm"):
        (scene.folder / name).unlink(missing_ok=True)
    database.write_bytes(backup.read_bytes())
    scene.start_gateway()
    scene.again()
    until("told again", lambda: scene.station()["ack"] >= known, 30)
    assert scene.operator("SET_AVAILABILITY", evse=1, operative=True) == "ACCEPTED"
    stops = scene.facts(since, t="stop")
    assert len(stops) == 1 and len(scene.facts(since, t="start")) == 1
    (cdr,) = [c for c in cdrs.values() if c["session_id"] == stops[0]["session_id"]]
    held = [c for c in scene.emsp()["cdrs"].values() if c["session_id"] == cdr["session_id"]]
    assert len(held) == 1 and held[0]["id"] == cdr["id"], "billed twice"
    assert round(cdr["total_energy"] * 1000) == scene.meter.wh() - first_wh
    station: dict[str, Any] = scene.station()
    assert not station["gaps"] and not station["forks"]
