"""A flash that is full, takes nothing, gives nothing, or gives garbage: see vm_broken.py; one that
takes its time: see vm_slow.py; and a file system that cannot be mounted, on an image of our own:
see vm_rebuild.py."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

from tools import build, paths

TESTS = paths.ROOT / "host_tests"
MODULES = paths.BOARDS / "modules"
HELPERS = {"main", "site", "fill", "prepared"}
SCRIPTS = ("vm_broken.py", "vm_slow.py", "vm_rebuild.py")


def plays(name: str) -> list[tuple[str, str]]:
    """The functions of a file that take nothing: each is a test."""
    tree = ast.parse((TESTS / name).read_text())
    functions = [f for f in tree.body if isinstance(f, ast.FunctionDef) and not f.args.args]
    return [(name, f.name) for f in functions if f.name not in HELPERS]


@pytest.mark.parametrize(("script", "play"), [p for name in SCRIPTS for p in plays(name)])
def test_the_agent_on_a_bad_flash(micropython: Path, script: str, play: str) -> None:
    host = {
        "meters": {"eastron_sdm630_v2": build.meter_file("eastron_sdm630_v2").decode()},
        "door": (paths.FIRMWARE / "start.py").read_text(),
        "boot": (MODULES / "_boot.py").read_text(),
        "test": play,
    }
    done = subprocess.run(
        [micropython, "-X", "heapsize=6m", TESTS / script],
        env={"MICROPYPATH": f"{paths.FIRMWARE}:{TESTS}:{MODULES}"},
        input=json.dumps(host),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stdout[-2000:] + done.stderr[-2000:]


def test_the_manifest_freezes_what_is_there() -> None:
    """Its calls, played: each names files of this repository, or the port's own."""
    folder = MODULES
    frozen: list[Path] = []

    def freeze(base: str, names: tuple[str, ...], opt: int = 0) -> None:
        if not base.startswith("$("):
            frozen.extend(folder / base / name for name in names)

    def package(name: str, base_path: str, opt: int = 0) -> None:
        frozen.extend(sorted((folder / base_path / name).glob("*.py")))

    def ignore(name: str) -> None:
        pass

    calls = {"freeze": freeze, "package": package, "include": ignore, "require": ignore}
    exec((folder / "manifest.py").read_text(), calls)
    assert all(path.is_file() for path in frozen), frozen
    names = {path.resolve().relative_to(paths.ROOT).as_posix() for path in frozen}
    firmware = {p.relative_to(paths.ROOT).as_posix() for p in paths.FIRMWARE.rglob("*.py")}
    assert names == firmware | {"boards/modules/_boot.py", "boards/modules/rebuild.py"}
