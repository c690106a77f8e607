"""The boards' pins against what Espressif documents about each chip's GPIOs.

Sources: ESP-IDF Programming Guide, "GPIO & RTC GPIO" for ESP32 and ESP32-S3 (strapping, flash and
PSRAM, input-only, USB and console pins), "Ethernet" (the RMII pins of the ESP32's MAC).
"""

import json
import re

import pytest
from wattlock import config

from tools import build, deploy, paths

STRAPPING = {"esp32": {0, 2, 5, 12, 15}, "esp32s3": {0, 3, 45, 46}}
TAKEN = {
    "esp32": {1, 3, *range(6, 12), 16, 17, 20, 24, *range(28, 32)},
    "esp32s3": {19, 20, *range(22, 38), 43, 44},
}
INPUT_ONLY = {"esp32": set(range(34, 40)), "esp32s3": set()}
LAST = {"esp32": 39, "esp32s3": 48}
RMII = {19, 21, 22, 25, 26, 27}  # fixed; clock and management pins are the board's choice
NO_PSRAM = {"olimex_poe": {16}}  # free with the module that the board's page names
OUTPUTS = ("contactor", "lock", "led")
CHIPS = [name for name in build.boards() if "chip" in build.load_board(name)]

EVSES = {name: build.load_board(name)["evses"] for name in CHIPS}


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


def ethernet(board: dict) -> set[int]:
    """GPIOs that belong to the board's Ethernet."""
    if "lan" not in board:
        return set()
    return RMII | {board["lan"][name] for name in ("mdc", "mdio", "power", "ref_clk")}


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
    taken = TAKEN[chip] - NO_PSRAM.get(name, set()) | ethernet(board)
    for what, pin, driven, entry in pins(board):
        assert pin not in used, f"GPIO {pin}: {what} and {used.get(pin)}"
        used[pin] = what
        assert 0 <= pin <= LAST[chip], f"{what}: GPIO {pin} does not exist"
        assert pin not in STRAPPING[chip], f"{what}: GPIO {pin} is sampled at reset"
        assert pin not in taken, f"{what}: GPIO {pin} is taken by the module"
        if pin in INPUT_ONLY[chip]:
            assert not driven, f"{what}: GPIO {pin} is an input only"
            assert "pull" not in entry, f"{what}: GPIO {pin} has no pulls"


@pytest.mark.parametrize("name", CHIPS)
def test_a_broken_wire_reads_as_the_safe_side(name: str):
    """With its pull-up an open input reads 1: not plugged, not ready, fault, emergency stop."""
    board = build.load_board(name)
    text = (paths.BOARDS / name / "README.md").read_text()

    def pulled_up(entry: dict) -> bool:
        """By the chip, or by a resistor that the board's page asks for."""
        row = next((r for r in text.splitlines() if f"| {entry['pin']} |" in r), "")
        return entry.get("pull") == "up" or "**10 kOhm to 3.3 V**" in row

    for evse in board["evses"].values():
        for role, safe in (("plugged", False), ("ready", False), ("fault", True)):
            if role in evse:
                assert pulled_up(evse[role]), role
                assert (evse[role]["active"] == 1) is safe, role
        assert evse["contactor"]["active"] == 1, "the resistor at the pin pulls it to 0: open"
        assert {"plugged", "fault"} <= set(evse)
    assert pulled_up(board["estop"]) and board["estop"]["active"] == 1


def test_the_board_with_ethernet_is_as_its_maker_says():
    """MicroPython's quick reference for the ESP32 ("Olimex ESP32 PoE") and Olimex' netlist."""
    board = build.load_board("olimex_poe")
    assert board["lan"] == {
        "phy": "LAN8720", "addr": 0, "mdc": 23, "mdio": 18, "power": 12, "ref_clk": 17
    }  # fmt: skip
    on_connectors = {0, 1, 2, 3, 4, 5} | {13, 14, 15, 16, 32, 33, 34, 35, 36, 39}
    assert {pin for _, pin, _, _ in pins(board)} <= on_connectors
    site = {
        "station_id": "MY-1", "board": "olimex_poe",
        "link": {"kind": "mqtt", "host": "10.0.0.1", "insecure": True},
        "buses": {"rs485": {"kind": "rtu", "uart": 1}},
        "evses": [{"n": 1, "meter": "m", "bus": "rs485", "max_a": 32}],
    }  # fmt: skip
    assert config.load(json.dumps(site), board, ["m"])["network"] == {"kind": "lan"}


@pytest.mark.parametrize("name", [n for n in CHIPS if "pulse" in EVSES[n]["1"]])
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


# An image of our own ------------------------------------------------------------------------
# Rules: ESP-IDF Programming Guide, "Partition Tables" (table at 0x8000, one sector; apps on
# 64 KiB, data on 4 KiB; names of at most 16 bytes) and "Non-Volatile Storage" (a page of 4 KiB has
# 126 entries of 32 bytes; one page is kept free).

FLASH = 4 << 20
MODULES = paths.BOARDS / "modules"


def partitions() -> dict[str, tuple[str, str, int, int]]:
    """Name -> (type, subtype, offset, size)."""
    rows = {}
    for line in (MODULES / "partitions.csv").read_text().splitlines():
        if not line.startswith("#"):
            name, kind, subtype, offset, size = (cell.strip() for cell in line.split(","))
            assert name not in rows and 0 < len(name.encode()) <= 16
            rows[name] = kind, subtype, int(offset, 16), int(size, 16)
    return rows


def test_the_partition_table_of_our_image_keeps_espressifs_rules():
    end = 0x9000  # behind the table itself
    for name, (kind, _, offset, size) in partitions().items():
        assert offset >= end, f"{name} overlaps what is before it"
        assert offset % (0x10000 if kind == "app" else 0x1000) == 0, name
        assert size > 0 and size % 0x1000 == 0, name
        end = offset + size
    assert end <= FLASH
    table = partitions()
    assert table["nvs"][:2] == ("data", "nvs") and table["phy_init"][:2] == ("data", "phy")
    # the boot loader starts the first app, and MicroPython's makeimg.py puts it there
    assert table["factory"] == ("app", "factory", 0x10000, 0x1F0000)


def test_what_has_to_fit_into_the_partitions_fits():
    from wattlock import journal

    table = partitions()
    text = (MODULES / "rebuild.py").read_text()
    assert 'TYPE_DATA, label="aside"' in text and table["aside"][0] == "data"
    assert table["aside"][3] == table["vfs"][3], "what was there is kept whole"
    for name in CHIPS:
        made = build.build(name, {"evses": [{"meter": "eastron_sdm630_v2"}]})
        files = [*made.root.values(), *made.slot.values(), *made.slot.values()]  # two slots
        life = journal.LIMIT + journal.RESERVED
        needed = sum(deploy.blocks(len(data)) for data in files)
        needed += 2 * life + journal.RESERVED  # the journal, one set aside, the file `reserve`
        assert needed + deploy.RESERVE < table["vfs"][3] * 0.9
    # the second copy of site and identity, old and new at once
    meter = max(len(path.read_text()) for path in paths.METERS.glob("*.json"))
    site = 4 * 1024 + 2 * meter + len((paths.BOARDS / "virtual4" / "board.json").read_text())
    assert 2 * site < (table["nvs"][3] // 4096 - 1) * 126 * 32


@pytest.mark.parametrize("name", CHIPS)
def test_the_recipe_names_what_is_there(name: str):
    """MicroPython's generic board first, then ours: its files, and those of this repository."""
    folder = paths.BOARDS / name
    text = (folder / "README.md").read_text()
    generic = re.findall(r"`((?:ESP32|OLIMEX)_[A-Z0-9_]+)`", text)[0]  # MicroPython's own image
    ours = "${MICROPY_BOARD_DIR}/../modules/image.cmake"
    includes = [
        line[len("include(") : -1]
        for line in (folder / "mpconfigboard.cmake").read_text().splitlines()
        if line.startswith("include(")
    ]
    assert includes == [f"boards/{generic}/mpconfigboard.cmake", ours]
    header = (folder / "mpconfigboard.h").read_text()
    assert header == f'#include "boards/{generic}/mpconfigboard.h"\n'
    cmake = (MODULES / "image.cmake").read_text()
    assert "${CMAKE_CURRENT_LIST_DIR}/partitions.csv" in cmake
    assert "${CMAKE_CURRENT_LIST_DIR}/manifest.py" in cmake and (MODULES / "manifest.py").is_file()
    assert f"boards/{name} " in text or f"boards/{name}`" in text


@pytest.mark.parametrize("name", CHIPS)
def test_the_readme_has_the_pins_of_board_json(name: str):
    """Every GPIO of board.json is in the table of pins."""
    text = (paths.BOARDS / name / "README.md").read_text()
    table = text.partition("## Pins")[2].partition("## Why" if name == "esp32" else "\n| fact")[0]
    missing = [
        (what, pin)
        for what, pin, _, _ in pins(json.loads((paths.BOARDS / name / "board.json").read_text()))
        if not any(str(pin) in cell.replace(",", " ").split() for cell in table.split("|"))
    ]
    assert not missing
