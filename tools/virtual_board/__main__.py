"""A virtual board: the firmware's own files in a real MicroPython VM, with pins and a console.

    python -m tools.virtual_board --state DIR [--config FILE --secrets FILE] [--pty LINK]
        [--control 127.0.0.1:7801] [--serial /dev/pts/7] [--heap 96k] [--vm unix32]

DIR holds the board between runs: `flash.bin` (LittleFS, see `tools.virtual_board.image`), `wires`
(pins and RTC memory), `console.log`. Without --config the flash is used as it is; a new one is
blank, like a board fresh from `make flash`, and `make deploy PORT=LINK` puts the firmware on it.
One line of JSON on standard output says when it is ready. SIGTERM or Ctrl-C ends it.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from tools import build
from tools.virtual_board import image, vm
from tools.virtual_board.board import Board
from tools.virtual_board.control import Control


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.virtual_board")
    parser.add_argument("--state", type=Path, required=True, help="the board's directory")
    parser.add_argument("--board", default="virtual", help="a name in boards/ (virtual)")
    parser.add_argument("--config", type=Path, help="install the firmware with this configuration")
    parser.add_argument("--secrets", type=Path, help="secrets.json that goes with it")
    parser.add_argument("--install", type=Path, help="copy the files below this directory instead")
    parser.add_argument("--vm", default="unix32", help="unix32, unix64, float32 or a program")
    parser.add_argument("--heap", default="96k", help="Python heap of the firmware (96k)")
    parser.add_argument("--serial", help="meter bus on UART 1: a serial device, or HOST:PORT")
    parser.add_argument("--pty", type=Path, help="symbolic link to make to the console")
    parser.add_argument("--control", default="127.0.0.1:0", help="HOST:PORT; port 0 picks one")
    args = parser.parse_args(argv)
    if bool(args.config) != bool(args.secrets):
        parser.error("--config and --secrets go together")
    return args


def install(flash: Path, args: argparse.Namespace) -> None:
    """Put the firmware, or a tree of files, on the image."""
    files: dict[str, bytes] = {}
    if args.config:
        config = json.loads(args.config.read_text())
        files = build.build(args.board, config).files("a")
        files["/config.json"] = args.config.read_bytes()
        files["/secrets.json"] = args.secrets.read_bytes()
        files["/slot"] = b"a"
    for path in sorted(args.install.rglob("*")) if args.install else ():
        if path.is_file():
            files[str(path.relative_to(args.install))] = path.read_bytes()
    if not flash.exists():
        image.blank(flash)
    if files:
        image.write_files(flash, files)


async def run(args: argparse.Namespace) -> None:
    description = build.load_board(args.board)
    args.state.mkdir(parents=True, exist_ok=True)
    install(args.state / "flash.bin", args)
    board = Board(
        args.state,
        description,
        vm_path=vm.find(args.vm),
        heap=vm.heap_bytes(args.heap),
        serial=args.serial,
        link=args.pty,
    )
    host, _, port = args.control.rpartition(":")
    server = await Control(board).serve(host or "127.0.0.1", int(port))
    await board.start()
    ended = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, ended.set)
    address = server.sockets[0].getsockname()
    control = f"{address[0]}:{address[1]}"
    print(json.dumps({"ready": True, "pty": board.pty, "control": control}), flush=True)
    await ended.wait()
    server.close()
    await board.stop()


def main() -> int:
    args = arguments()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run(args))
    except (vm.VmError, build.BuildError, ValueError, OSError) as error:
        print(f"virtual board: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
