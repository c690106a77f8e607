"""Meters that sign, from the driver's start to the eMSP's CDR, in the heap of a plain ESP32.

Each meter whose description says `signs`, played by pymodbus with a key made for the occasion,
behind the real firmware, mosquitto, gateway and eMSP. What the eMSP holds goes through `python -m
tools.meter verify`.
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
from tools.meter import catalog
from tools.stage import DRIVERS, EVSE, LOCATION, STATION

PLACE = {"location_id": LOCATION, "evse_uid": EVSE}
BSM = "bauer_bsm_ws36a"
SIGN = [key for key in catalog.known() if "signs" in catalog.load(key)]


@pytest.fixture(scope="module", params=SIGN)
def meter(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def played(
    meter: str, micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    unit = catalog.load(meter)["bus"]["unit"]
    evse = {"n": 1, "meter": meter, "bus": "rs485", "unit": unit, "max_a": 32, "phases": 3}
    folder = tmp_path_factory.mktemp("stage")
    with Scene(mosquitto, folder, heap="112k", evses=[evse]) as scene:
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


def natures(meter: str) -> list[str]:
    """A BSM signs start and end each in a record of its own, the others both in one."""
    return ["Start", "End"] if meter == BSM else ["End"]


def names(meter: str, payload: Fields) -> tuple[str, str]:
    """(place, session) where the maker's record has them."""
    if meter == BSM:
        return payload["X2"], payload["X3"]
    if meter == "cg_em580":
        return payload["CI"], payload["TT"]
    return payload["CI"], payload["ID"].partition(" ")[2]


def test_a_session_is_signed_from_the_meter_to_the_cdr(
    scene: Scene, meter: str, tmp_path: Path
) -> None:
    boot = scene.board.boot()
    for _ in range(2):  # the second one is served as the first
        since, pins = scene.mark(), scene.board.watch.mark()
        start = begun(scene)
        scene.charge(10)
        stop = ended(scene)
        cdr = scene.cdr(start["session_id"])
        wh = stop["total_wh"]
        assert (
            round(cdr["total_energy"] * 1000) == wh == stop["register_wh"] - start["register_wh"]
        )
        assert wh >= 10 and cdr["signed_data"]["encoding_method"] == "OCMF"
        assert len(scene.closings(pins)) == 1
        assert not [r for r in scene.facts(since, t="signed") if "failed" in r]
        said = verified(cdr, tmp_path)
        assert [row["nature"] for row in said] == natures(meter)
        assert {row["id"].partition(" ")[0] for row in said} == {DRIVERS["alice"]["uid"]}
        # the signed registers enclose what is billed, to the Wh
        first, last = [reading for row in said for reading in row["readings"]]
        assert (first[0], last[0]) == ("B", "E") and int(last[2]) - int(first[2]) == wh
        for value in cdr["signed_data"]["signed_values"]:
            payload = json.loads(base64.b64decode(value["signed_data"]).split(b"|")[1])
            assert names(meter, payload) == (f"{STATION} 1", start["session_id"])
        scene.plug("A")
        scene.status("AVAILABLE")
    scene.whole()
    assert scene.board.boot() == boot, "it lived in its heap"


def test_a_cut_while_the_end_is_signed_loses_no_record(
    scene: Scene, meter: str, tmp_path: Path
) -> None:
    start = begun(scene)
    scene.charge(5)
    since = scene.mark()
    # not by the card, which would be at the reader still when the power is back
    assert scene.obey("STOP_SESSION", session_id=start["session_id"]) == "ACCEPTED"
    scene.record(since, t="stop")
    scene.power_cycle()
    cdr = scene.cdr(start["session_id"])
    assert [row["nature"] for row in verified(cdr, tmp_path)] == natures(meter)
    assert scene.conserved() == scene.meter.wh()


def test_a_meter_that_is_silent_at_the_end_is_stated_and_holds_up_no_stop(
    scene: Scene, meter: str
) -> None:
    start = begun(scene)
    scene.charge(5)
    pins, since = scene.board.watch.mark(), scene.mark()
    scene.fault("silence")
    ended(scene)
    scene.opened(pins)
    failed = scene.later(since, t="signed", nature="end")
    assert failed["failed"]
    cdr = scene.cdr(start["session_id"])
    values = (cdr.get("signed_data") or {"signed_values": []})["signed_values"]
    assert [v["nature"] for v in values] == natures(meter)[:-1]
    assert "no signed end" in cdr["remark"]


def test_what_was_said_keeps_the_contract(played: Scene) -> None:
    assert played.valid() > 50
    played.whole()
