"""The board's flash as a file: LittleFS v2 with the geometry of an ESP32's `vfs` partition.

    python -m tools.virtual_board.image ls  FLASH [PATH]
    python -m tools.virtual_board.image cat FLASH PATH
    python -m tools.virtual_board.image get FLASH PATH DESTINATION
    python -m tools.virtual_board.image put FLASH SOURCE PATH

Images of real boards (esptool's read_flash of the `vfs` partition) read the same way.
Limits: write only while no board runs on the image; LittleFS has no lock.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from littlefs import LittleFS, LittleFSError, UserContext

BLOCK_BYTES = 4096
BLOCKS = 512  # 2 MiB, the vfs partition of a 4 MiB ESP32


def blank(path: Path, blocks: int = BLOCKS) -> None:
    """An erased flash, as the factory delivers it."""
    path.write_bytes(b"\xff" * (BLOCK_BYTES * blocks))


@contextmanager
def mounted(path: Path, *, write: bool = False) -> Iterator[LittleFS]:
    """The file system on the image; with `write` a blank one is formatted and changes stay."""
    data = bytearray(path.read_bytes())
    context = UserContext(len(data))
    context.buffer = data
    fs = LittleFS(
        context=context,
        mount=False,
        block_size=BLOCK_BYTES,
        block_count=len(data) // BLOCK_BYTES,
        read_size=32,
        prog_size=32,
        cache_size=128,
        lookahead_size=32,
        disk_version=0,
    )
    if write and data.count(0xFF) == len(data):
        fs.format()
    fs.mount()
    yield fs
    fs.unmount()
    if write:
        path.write_bytes(context.buffer)


def write_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` (path on the board -> content) on the image; other files stay."""
    with mounted(path, write=True) as fs:
        for name, content in files.items():
            folder = name.strip("/").rpartition("/")[0]
            if folder:
                fs.makedirs("/" + folder, exist_ok=True)
            with fs.open("/" + name.strip("/"), "wb") as file:
                file.write(content)


def read_files(path: Path, top: str = "/") -> dict[str, bytes]:
    """Every file below `top`, path without leading slash -> content."""
    files = {}
    with mounted(path) as fs:
        for folder, _, names in fs.walk(top):
            for name in names:
                full = f"{folder.rstrip('/')}/{name}"
                with fs.open(full, "rb") as file:
                    files[full.lstrip("/")] = file.read()
    return files


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.virtual_board.image")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in {
        "ls": ["path"],
        "cat": ["path"],
        "get": ["path", "destination"],
        "put": ["source", "path"],
    }.items():
        command = commands.add_parser(name)
        command.add_argument("flash", type=Path, help="flash.bin in the board's state directory")
        for argument in arguments:
            if name == "ls":
                command.add_argument(argument, nargs="?", default="/")
            else:
                command.add_argument(argument)
    args = parser.parse_args()
    try:
        if args.command == "put":
            write_files(args.flash, {args.path: Path(args.source).read_bytes()})
            return 0
        files = read_files(args.flash)
        if args.command == "ls":
            top = args.path.strip("/")
            for name, content in sorted(files.items()):
                if not top or name == top or name.startswith(top + "/"):
                    print(f"{len(content):8}  {name}")
            return 0
        content = files[args.path.strip("/")]
        if args.command == "cat":
            sys.stdout.buffer.write(content)
        else:
            Path(args.destination).write_bytes(content)
    except KeyError:
        print(f"{args.path}: not on {args.flash}; `ls` shows what there is", file=sys.stderr)
        return 1
    except (LittleFSError, OSError) as error:
        print(f"{args.flash}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
