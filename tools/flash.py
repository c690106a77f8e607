"""`make flash PORT= BOARD= IMAGE=`: MicroPython onto a bare board, with Espressif's esptool.

Erases the whole flash, the journal and the identity included, then writes the image (a .bin of
MicroPython 1.25 or newer for this chip, from micropython.org/download). esptool is not among the
pinned packages, since only who holds a board needs it: .cache/venv/bin/pip install esptool.

Limits: no test can flash a chip that is not there. The command line is tested, its effect is not.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from tools import build
from tools.build import BuildError
from tools.deploy import Refused, check_port

# Where the ROM of each chip looks for the boot loader that an image begins with.
IMAGE_OFFSET = {"esp32": 0x1000, "esp32s2": 0x1000, "esp32s3": 0, "esp32c3": 0, "esp32c6": 0}


def esptool() -> list[str]:
    if importlib.util.find_spec("esptool"):
        return [sys.executable, "-m", "esptool"]
    if program := shutil.which("esptool") or shutil.which("esptool.py"):
        return [program]
    raise Refused("esptool is not here: .cache/venv/bin/pip install esptool")


def commands(tool: list[str], port: str, board_name: str, image: Path) -> list[list[str]]:
    """The two esptool calls for a board by name."""
    board = build.load_board(board_name)
    chip = board.get("chip")
    if chip not in IMAGE_OFFSET:
        raise Refused(
            f"BOARD: {board_name} has chip {chip!r} in its board.json; to flash it must be one of "
            f"{', '.join(IMAGE_OFFSET)}"
        )
    if not image.is_file():
        raise Refused(
            f"IMAGE: {str(image)!r} is no file; download MicroPython 1.25 or newer for {chip} "
            "from micropython.org/download"
        )
    start = [*tool, "--chip", chip, "--port", port, "--baud", "460800"]
    return [
        [*start, "erase_flash"],
        [*start, "write_flash", hex(IMAGE_OFFSET[chip]), str(image)],
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.flash", description="MicroPython onto a bare board."
    )
    parser.add_argument("--port", required=True, help="serial port of the board")
    parser.add_argument("--board", required=True, help=f"one of {', '.join(build.boards())}")
    parser.add_argument("--image", required=True, type=Path, help="MicroPython's .bin")
    options = parser.parse_args(arguments)
    try:
        calls = commands([], options.port, options.board, options.image)
        check_port(options.port)
        tool = esptool()
        for call in calls:
            subprocess.run([*tool, *call], check=True)
    except (Refused, BuildError) as error:
        print(f"flash: refused: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"flash: esptool failed with {error.returncode}, see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
