"""The boards' pins against what Espressif documents about each chip's GPIOs.

Sources: ESP-IDF Programming Guide, "GPIO & RTC GPIO" for ESP32 and ESP32-S3 (strapping, flash and
PSRAM, input-only, USB and console pins).
"""

import json

import pytest
from wattlock import config

from tools import build, paths

STRAPPING = {"esp32": {0, 2, 5, 12, 15}, "esp32s3": {0, 3, 45, 46}}
TAKEN = {
    "esp32": {1, 3, *range(6, 12), 16, 17, 20, 24, *range(28, 32)},
    "esp32s3": {19, 20, *range(22, 38), 43, 44},
}
INPUT_ONLY = {"esp32": set(range(34, 40)), "esp32s3": set()}
LAST = {"esp32": 39, "esp32s3": 48}
OUTPUTS = ("contactor", "lock", "led")
CHIPS = [name for name in build.boards() if "chip" in build.load_board(name)]


def pins(board: dict) -> list[tuple[str, int, bool, dict]]:
    """(what, GPIO, is it driven, its entry) of everything that board.json names."""
    found = []
    for n, uart in board["uarts"].items():
        for role, pin in uart.items():
            found.append((f"uart {n} {role}", pin, role != "rx", uart))
    for n, evse in board["evses"].items():
        for role, pin in evse.items():
            found.append((f"evse {n} {role}", pin["pin"], role in OUTPUTS, pin))
    if "estop" in board:
        found.append(("estop", board["estop"]["pin"], False, board["estop"]))
    return found


def test_there_are_boards_of_both_chips():
    assert {build.load_board(name)["chip"] for name in CHIPS} >= {"esp32", "esp32s3"}


@pytest.mark.parametrize("name", build.boards())
def test_the_reader_that_a_board_names_is_there(name: str):
    reader = build.load_board(name)["rfid"]
    text = (paths.FIRMWARE / "hal" / f"{reader['kind']}.py").read_text()
    assert "def open_reader(reader, uarts):" in text


@pytest.mark.parametrize("name", CHIPS)
def test_pins_suit_the_chip(name: str):
    board = build.load_board(name)
    chip = board["chip"]
    used: dict[int, str] = {}
    for what, pin, driven, entry in pins(board):
        assert pin not in used, f"GPIO {pin}: {what} and {used.get(pin)}"
        used[pin] = what
        assert 0 <= pin <= LAST[chip], f"{what}: GPIO {pin} does not exist"
        assert pin not in STRAPPING[chip], f"{what}: GPIO {pin} is sampled at reset"
        assert pin not in TAKEN[chip], f"{what}: GPIO {pin} is taken by the module"
        if pin in INPUT_ONLY[chip]:
            assert not driven, f"{what}: GPIO {pin} is an input only"
            assert "pull" not in entry, f"{what}: GPIO {pin} has no pulls"


@pytest.mark.parametrize("name", CHIPS)
def test_a_broken_wire_reads_as_the_safe_side(name: str):
    """With its pull-up an open input reads 1: not plugged, not ready, fault, emergency stop."""
    board = build.load_board(name)
    for evse in board["evses"].values():
        for role, safe in (("plugged", False), ("ready", False), ("fault", True)):
            assert evse[role]["pull"] == "up"
            assert (evse[role]["active"] == 1) is safe, role
        assert evse["contactor"]["active"] == 1, "the resistor at the pin pulls it to 0: open"
    assert board["estop"] == {"pin": board["estop"]["pin"], "active": 1, "pull": "up"}


@pytest.mark.parametrize("name", CHIPS)
def test_a_meter_with_pulses_can_be_connected(name: str):
    """The pin that the board's page names makes a config that the board accepts; open, the wire
    reads as no pulse."""
    board = build.load_board(name)
    pin = board["evses"]["1"]["pulse"]
    assert pin["active"] == 0, "S0 pulls down: pulled up from outside, a pulse is 0"
    site = {
        "station_id": "MY-1", "board": name,
        "link": {"kind": "mqtt", "host": "10.0.0.1", "insecure": True},
        "buses": {"s0": {"kind": "pulse", "pin": pin["pin"], "imp_per_kwh": 1000}},
        "evses": [{"n": 1, "meter": "pulse", "bus": "s0", "max_a": 32}],
    }  # fmt: skip
    assert config.load(json.dumps(site), board, [])["evses"][0]["meter"] == "pulse"
    shared = (paths.BOARDS / "esp32" / "README.md").read_text()
    assert f'"pin": {build.load_board("esp32")["evses"]["1"]["pulse"]["pin"]},' in shared
    assert "stub only" in shared.lower()


@pytest.mark.parametrize("name", CHIPS)
def test_the_readme_has_the_pins_of_board_json(name: str):
    """Every GPIO of board.json is in the table of pins."""
    text = (paths.BOARDS / name / "README.md").read_text()
    table = text.partition("## Pins")[2].partition("\n\n|" if name == "esp32s3" else "## Why")[0]
    missing = [
        (what, pin)
        for what, pin, _, _ in pins(json.loads((paths.BOARDS / name / "board.json").read_text()))
        if not any(str(pin) in cell.replace(",", " ").split() for cell in table.split("|"))
    ]
    assert not missing
