"""boot.py and main.py: whatever is wrong, it is named and the contactors are open."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools import build, paths

BOARD = build.load_board("virtual")
CONTACTOR = str(BOARD["evses"]["1"]["contactor"]["pin"])
LOCK = str(BOARD["evses"]["1"]["lock"]["pin"])
CONFIG: dict[str, Any] = {
    "station_id": "DEMO-1",
    "board": "virtual",
    "link": {"kind": "mqtt", "host": "127.0.0.1", "port": 1883, "insecure": True},
    "buses": {"rs485": {"kind": "rtu", "uart": 1}},
    "evses": [{"n": 1, "meter": "eastron_sdm630_v2", "bus": "rs485", "max_a": 32}],
}
SECRETS = {"kid": 1, "key": "00112233445566778899aabbccddeeff" * 2}


@dataclass
class Ended:
    text: str
    boot: dict[str, Any]
    report: dict[str, Any]


def run(folder: Path, end: str = "KeyboardInterrupt", ctrl_c: str = "", **files: Any) -> Ended:
    """A board with these files, from power-on. None leaves one out, a text is taken as it is."""
    contents = {"slot": "a", "board": BOARD, "config": CONFIG, "secrets": SECRETS} | files
    for name, value in contents.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / (name if name == "slot" else f"{name}.json")).write_text(text)
    (folder / "a" / "meters").mkdir(parents=True, exist_ok=True)
    for source in paths.METERS.glob("*.json"):
        (folder / "a" / "meters" / source.name).write_text(source.read_text())
    done = subprocess.run(
        [sys.executable, paths.ROOT / "host_tests" / "run_door.py", folder, end, ctrl_c],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(paths.ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith('{"after"')]
    text = "\n".join(lines[:at] + lines[at + 1 : -1]) + done.stderr
    return Ended(text, json.loads(lines[at]), json.loads(lines[-1]))


def changed(path: str, value: Any) -> dict[str, Any]:
    site: Any = copy.deepcopy(CONFIG)
    where = site
    *keys, last = path.split(".")
    for key in keys:
        where = where[int(key)] if isinstance(where, list) else where[key]
    if value is None:
        del where[last]
    else:
        where[last] = value
    return site


def safe(ended: Ended) -> bool:
    """The contactor's pin drives low, from boot.py on, and never did anything else."""
    low = [["pin", int(CONTACTOR), 0]]
    moves = [row for row in ended.report["log"] if row[:2] == ["pin", int(CONTACTOR)]]
    return (
        ended.boot["outputs"][CONTACTOR] == 0
        and ended.boot["modes"][CONTACTOR] == 3
        and ended.report["outputs"][CONTACTOR] == 0
        and moves == low
    )


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"config": changed("evses.0.meter", "sdm6300")},
         ["config.evses[0].meter", "'sdm6300'", "tools.meter list"]),
        ({"config": changed("evses.0.max_a", None)}, ["config.evses[0].max_a", "add it"]),
        ({"config": changed("link.port", "1883")},
         ["config.link.port", "'1883'", "whole number"]),
        ({"config": changed("evses.0.unit", 300)}, ["config.evses[0].unit", "300", "1 to 247"]),
        ({"config": "{'station_id': 'x'}"}, ["config.json", "JSON"]),
        ({"config": changed("board", "esp32")}, ["config.board", "'esp32'", "'virtual'"]),
        ({"config": None}, ["/config.json", "make deploy"]),
        ({"secrets": None}, ["/secrets.json", "make provision"]),
        ({"secrets": {"kid": 1, "key": "abc"}}, ["secrets.key", "make provision"]),
        ({"secrets": "nonsense"}, ["secrets.json", "JSON"]),
        ({"slot": None}, ["no application", "make deploy"]),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_and_the_outputs_are_safe(
    tmp_path: Path, files: dict[str, Any], names: list[str]
) -> None:
    ended = run(tmp_path, **files)
    for name in names:
        assert name in ended.text, ended.text
    assert safe(ended) and ended.report["ended"] == "returned"
    assert "Traceback" not in ended.text
    assert LOCK not in ended.report["modes"]  # nobody knows whether it has to hold
    assert not (tmp_path / "journal").exists()


def test_a_board_that_nobody_described(tmp_path: Path) -> None:
    for i, board in enumerate((None, "nonsense", "[]", {"board": "virtual"})):
        folder = tmp_path / str(i)
        folder.mkdir()
        ended = run(folder, board=board)
        assert "wattlock: boot:" in ended.text and "cannot start" in ended.text, ended.text
        assert ended.report["ended"] == "returned" and "Traceback" not in ended.text


def test_an_active_low_contactor_is_open_at_high(tmp_path: Path) -> None:
    board = copy.deepcopy(BOARD)
    board["evses"]["1"]["contactor"]["active"] = 0
    ended = run(tmp_path, board=board, config="{}")
    assert ended.boot["outputs"][CONTACTOR] == 1
    # the level is set before the pin is an output: it never was low
    assert [row for row in ended.report["log"] if row[:2] == ["pin", int(CONTACTOR)]] == [
        ["pin", int(CONTACTOR), 1]
    ]


def test_a_good_one_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert "boot 1 slot a ready" in ended.text and "stopped by Ctrl-C" in ended.text
    assert safe(ended) and ended.report["ended"] == "returned"
    assert ended.report["next_cause"] == "hard"  # whoever pressed Ctrl-C
    dogs = [row for row in ended.report["log"] if row[0] in ("watchdog", "feed")]
    assert dogs[0] == ["watchdog", BOARD["watchdog_ms"]] and dogs[-1] == ["watchdog", 120000]
    assert dogs.count(["feed"]) > 30
    names = sorted(path.name for path in (tmp_path / "journal").iterdir())
    assert names == ["00000001.j", "reserve"]


def test_a_second_ctrl_c_stops_nothing_half_way(tmp_path: Path) -> None:
    """pyboard.py and Thonny send two, 87 us from each other at 115200 baud."""
    ended = run(tmp_path, ctrl_c="at once")
    assert "stopped by Ctrl-C" in ended.text and safe(ended)
    assert ended.report["ended"] == "returned" and ended.report["next_cause"] == "hard"
    assert ended.report["further"] == "came"


def test_a_person_gets_the_prompt_of_a_board_that_restarts_for_ever(tmp_path: Path) -> None:
    ended = run(tmp_path, "RuntimeError", ctrl_c="in the wait")
    assert ended.report["ended"] == "interrupted" and safe(ended)
    assert ended.report["next_cause"] == "error"  # and not a panic


@pytest.mark.parametrize("end", ["RuntimeError", "MemoryError", "SystemExit"])
def test_whatever_escapes_ends_safe_and_restarts(tmp_path: Path, end: str) -> None:
    ended = run(tmp_path, end)
    assert end in ended.text and safe(ended) and ended.report["ended"] == "reset"
    assert ended.report["next_cause"] == "error"


def test_a_description_that_makes_no_meter(tmp_path: Path) -> None:
    meters = tmp_path / "a" / "meters"
    meters.mkdir(parents=True)
    (meters / "broken.json").write_text('{"meter": "broken"}')
    ended = run(tmp_path, config=changed("evses.0.meter", "broken"))
    assert "Traceback" in ended.text and ended.report["ended"] == "reset" and safe(ended)
    assert ended.report["next_cause"] == "error"


RESULT = {"t": "result", "command_id": "c" * 32, "type": "SET_CONFIG", "result": "FAILED",
          "exp": 1790000000000, "digest": "d" * 16}  # fmt: skip


def trial(config: dict[str, Any] | None) -> dict[str, Any]:
    return {"boots": 0, "result": RESULT, "config": config, "secrets": None}


def journal(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "journal").glob("*.j"))


def test_a_bad_configuration_on_trial_does_not_cost_a_boot(tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text(json.dumps(trial(changed("evses.0.meter", "sdm6300"))))
    ended = run(tmp_path)
    assert "boot 1 slot a ready" in ended.text
    assert not (tmp_path / "trial.json").exists()
    told = journal(tmp_path)
    assert b'"refused"' in told and b"config.evses[0].meter" in told and b'"REJECTED"' in told


@pytest.mark.parametrize("broken", ["meter", "uart"])
def test_a_configuration_on_trial_that_cannot_start_is_left_after_three_boots(
    tmp_path: Path, broken: str
) -> None:
    """Whatever ends the boot: what is not there at all, or what main.py would wait over."""
    (tmp_path / "a" / "meters").mkdir(parents=True)
    text = '{"meter": "broken"}' if broken == "meter" else "no JSON"
    (tmp_path / "a" / "meters" / "broken.json").write_text(text)
    (tmp_path / "trial.json").write_text(json.dumps(trial(changed("evses.0.meter", "broken"))))
    for boots in (1, 2, 3):
        ended = run(tmp_path)
        assert ended.report["ended"] == "reset" and safe(ended)
        assert json.loads((tmp_path / "trial.json").read_text())["boots"] == boots
    ended = run(tmp_path)
    assert "slot a ready" in ended.text and safe(ended)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    told = journal(tmp_path)
    assert b'"rolled_back"' in told and b"3 boots" in told


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"boots": 0}', '{"result": {}}'])
def test_a_trial_that_nobody_can_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "trial.json").write_text(text)
    ended = run(tmp_path)
    assert "slot a ready" in ended.text and not (tmp_path / "trial.json").exists()


def test_a_trial_that_keeps_the_board_from_starting_is_forgotten(tmp_path: Path) -> None:
    """Six boots, and nobody has come to tell what became of it: one as if it had never been."""
    for boots, there in ((4, True), (5, True), (6, False)):
        shown = trial(changed("live_s", 33)) | {"boots": boots}
        (tmp_path / "trial.json").write_text(json.dumps(shown))
        ended = run(tmp_path, "RuntimeError")
        kept = (tmp_path / "trial.json").exists()
        assert "slot a ready" in ended.text
        assert not kept or there
        assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
