"""A meter that signs, from the driver's start to the eMSP's CDR, in the heap of a plain ESP32.

A BSM-WS36A played by pymodbus, with a key made for the occasion, behind the real firmware,
mosquitto, gateway and eMSP. What the eMSP holds goes through `python -m tools.meter verify`.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_tests.scenario_kit import Fields, Scene
from tools import paths
from tools.stage import DRIVERS, EVSE, LOCATION, STATION

PLACE = {"location_id": LOCATION, "evse_uid": EVSE}
METER = {"n": 1, "meter": "bauer_bsm_ws36a", "bus": "rs485", "unit": 42, "max_a": 32, "phases": 3}


@pytest.fixture(scope="module")
def played(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("stage")
    with Scene(mosquitto, folder, heap="112k", evses=[METER]) as scene:
        scene.begin()
        yield scene


def begun(scene: Scene) -> Fields:
    """Alice's card starts a charge: its start record."""
    since = scene.mark()
    scene.plug("C")
    scene.show("alice")
    scene.record(since, t="status", status="CHARGING")
    return scene.record(since, t="start")


def ended(scene: Scene) -> Fields:
    """Alice's card ends it: the stop record."""
    since = scene.mark()
    scene.show("alice")
    return scene.record(since, t="stop")


def verified(cdr: Fields, folder: Path) -> list[Fields]:
    """What `tools.meter verify` says of the CDR's records, a line each; all are valid."""
    file = folder / "cdr.json"
    file.write_text(json.dumps(cdr))
    done = subprocess.run(
        [sys.executable, "-m", "tools.meter", "verify", str(file)],
        cwd=paths.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and {row["verdict"] for row in said} == {"valid"}, done
    return said


def test_a_session_is_signed_from_the_meter_to_the_cdr(scene: Scene, tmp_path: Path) -> None:
    boot = scene.board.boot()
    for _ in range(3):  # the second one is served as the first
        since, pins = scene.mark(), scene.board.watch.mark()
        start = begun(scene)
        first = scene.record(since, t="signed", nature="start")
        assert "failed" not in first and len(scene.closings(pins)) == 1
        scene.charge(10)
        stop = ended(scene)
        cdr = scene.cdr(start["session_id"])
        wh = stop["total_wh"]
        assert (
            round(cdr["total_energy"] * 1000) == wh == stop["register_wh"] - start["register_wh"]
        )
        assert wh >= 10 and cdr["signed_data"]["encoding_method"] == "OCMF"
        before, after = verified(cdr, tmp_path)
        assert (before["nature"], after["nature"]) == ("Start", "End")
        assert before["id"] == after["id"] == DRIVERS["alice"]["uid"]
        # the signed registers enclose what is billed, to the Wh
        ((begin, _, first_wh, _),) = before["readings"]
        ((end, _, last_wh, _),) = after["readings"]
        assert (begin, end) == ("B", "E") and int(last_wh) - int(first_wh) == wh
        for value in cdr["signed_data"]["signed_values"]:
            payload = json.loads(base64.b64decode(value["signed_data"]).split(b"|")[1])
            assert (payload["X2"], payload["X3"]) == (f"{STATION} 1", start["session_id"])
        scene.plug("A")
        scene.status("AVAILABLE")
    scene.whole()
    assert scene.board.boot() == boot, "it lived in its heap"


def test_a_cut_while_the_end_is_signed_loses_no_record(scene: Scene, tmp_path: Path) -> None:
    start = begun(scene)
    scene.charge(5)
    ended(scene)
    scene.power_cycle()
    assert [row["nature"] for row in verified(scene.cdr(start["session_id"]), tmp_path)] == [
        "Start", "End",
    ]  # fmt: skip
    assert scene.conserved() == scene.meter.wh()


def test_a_meter_that_is_silent_at_the_end_is_stated_and_holds_up_no_stop(scene: Scene) -> None:
    start = begun(scene)
    scene.charge(5)
    pins, since = scene.board.watch.mark(), scene.mark()
    scene.fault("silence")
    ended(scene)
    scene.opened(pins)
    failed = scene.later(since, t="signed", nature="end")
    assert failed["failed"]
    cdr = scene.cdr(start["session_id"])
    assert [v["nature"] for v in cdr["signed_data"]["signed_values"]] == ["Start"]
    assert "sign" in cdr["remark"]


def test_what_was_said_keeps_the_contract(played: Scene) -> None:
    assert played.valid() > 50
    played.whole()
