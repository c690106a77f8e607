"""Flash: a NOR device under LittleFS, and the agent's store (`hal/flash.py`) on top of it.

The device counts programs and erases. It can lose its power at any of them, before it (clean) or
in its middle (torn), and it can fail. LittleFS is the real one with an ESP32's geometry, and the
store's code is the board's own file: only its `os` and `open` are given to it.

Limits: a torn program leaves its first half, or scattered bits; wear and bit rot are not modelled.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any

from littlefs import LittleFSError, lfs

from tools import paths

BLOCK_BYTES = 4096
UNIT_BYTES = 32
_ENOENT, _EIO, _EEXIST = -2, -5, -17
_RDONLY, _WRONLY, _CREAT, _TRUNC, _APPEND = 1, 2, 0x100, 0x400, 0x800
_MODES = {
    "rb": _RDONLY,
    "ab": _WRONLY | _CREAT | _APPEND,
    "wb": _WRONLY | _CREAT | _TRUNC,
}
_HAL_FLASH = compile(
    (paths.FIRMWARE / "hal" / "flash.py").read_text(encoding="utf-8"), "hal/flash.py", "exec"
)


class PowerLost(BaseException):
    """The supply is gone. Not an Exception: nothing in the agent can go on after it."""


class Device:
    """The flash chip. `cut_at` counts operations down to the cut; `torn` says how it cuts."""

    def __init__(self, blocks: int, rng: Random) -> None:
        self.blocks = blocks
        self.buffer = bytearray(b"\xff" * (blocks * BLOCK_BYTES))
        self.rng = rng
        self.programs = self.erases = self.errors = 0
        self.cut_in: int | None = None  # operations left before the cut
        self.torn: str | None = None  # None, "half" or "bits"
        self.dead = False  # the cut came; nothing works until `revive`
        self.failing: str | None = None  # "program", "erase", "read" or "all" (see `Files`)
        self.fail_in: tuple[int, str] | None = None  # operations left before it fails, and how

    def revive(self) -> None:
        self.dead = False
        self.cut_in = None

    def _gone(self, change: Callable[[bool], None]) -> bool:
        """Count one operation; True when the power is gone instead of it."""
        if self.dead:
            return True
        if self.fail_in is not None:
            left, how = self.fail_in
            self.fail_in = (left - 1, how)
            if left <= 0:
                self.fail_in, self.failing = None, how
        if self.cut_in is None:
            return False
        self.cut_in -= 1
        if self.cut_in >= 0:
            return False
        self.dead = True
        if self.torn is not None:
            change(self.torn == "bits")
        return True

    # what LittleFS calls

    def read(self, cfg: Any, block: int, off: int, size: int) -> bytes:
        at = block * BLOCK_BYTES + off
        return bytes(self.buffer[at : at + size])

    def prog(self, cfg: Any, block: int, off: int, data: bytes) -> int:
        at = block * BLOCK_BYTES + off

        def tear(bits: bool) -> None:
            for i in range(len(data) if bits else len(data) // 2):
                mask = self.rng.getrandbits(8) if bits else 0
                self.buffer[at + i] &= data[i] | mask

        if self._gone(tear):
            return _EIO
        if self.failing in ("program", "all"):
            self.errors += 1
            return _EIO
        self.programs += 1
        self.buffer[at : at + len(data)] = data
        return 0

    def erase(self, cfg: Any, block: int) -> int:
        at = block * BLOCK_BYTES

        def tear(bits: bool) -> None:
            for i in range(BLOCK_BYTES if bits else BLOCK_BYTES // 2):
                self.buffer[at + i] |= self.rng.getrandbits(8) if bits else 0xFF

        if self._gone(tear):
            return _EIO
        if self.failing in ("erase", "all"):
            self.errors += 1
            return _EIO
        self.erases += 1
        self.buffer[at : at + BLOCK_BYTES] = b"\xff" * BLOCK_BYTES
        return 0

    def sync(self, cfg: Any) -> int:
        return 0


class Files:
    """LittleFS on a device, with the few calls of MicroPython's `os` and its `open`.

    The binding has no way to fail a read of the device: a device that cannot be read fails here.
    A failed write, also for want of room, leaves bytes in LittleFS's cache, at which this build
    asserts and that of MicroPython does not: it is mounted anew before it is used again.
    """

    def __init__(self, device: Device, *, fresh: bool = False) -> None:
        self.device = device
        self._cfg = lfs.LFSConfig(
            context=device,
            block_size=BLOCK_BYTES,
            block_count=device.blocks,
            read_size=UNIT_BYTES,
            prog_size=UNIT_BYTES,
            cache_size=4 * UNIT_BYTES,
            lookahead_size=32,
        )
        self._fs = lfs.LFSFilesystem()
        self._errors = device.errors
        self._open = 0
        if fresh:
            lfs.format(self._fs, self._cfg)
        self._try(lfs.mount, self._cfg)

    def _remount(self) -> None:
        if self._errors != self.device.errors and not self._open:
            self._fs = lfs.LFSFilesystem()
            self._try(lfs.mount, self._cfg)
            self._errors = self.device.errors

    def _try(self, call: Callable[..., Any], *args: Any) -> Any:
        unreadable = self.device.failing in ("read", "all")
        if unreadable and call is not lfs.file_close:  # what is open is closed: memory hangs on it
            raise OSError(-_EIO, "the device cannot be read")
        try:
            return call(self._fs, *args)
        except LittleFSError as e:
            if e.code not in (_ENOENT, _EEXIST):
                self.device.errors += 1
            raise OSError(-e.code, str(e)) from e

    def mkdir(self, path: str) -> None:
        self._remount()
        self._try(lfs.mkdir, path)

    def rename(self, old: str, new: str) -> None:
        self._remount()
        self._try(lfs.rename, old, new)

    def remove(self, path: str) -> None:
        self._remount()
        self._try(lfs.remove, path)

    rmdir = remove

    def stat(self, path: str) -> tuple[int, ...]:
        self._remount()
        size = self._try(lfs.stat, path).size
        return (0, 0, 0, 0, 0, 0, size, 0, 0, 0)

    def listdir(self, path: str) -> list[str]:
        self._remount()
        folder = self._try(lfs.dir_open, path)
        names = []
        try:
            while (entry := self._try(lfs.dir_read, folder)) is not None:
                if entry.name not in (".", ".."):
                    names.append(entry.name)
        finally:
            lfs.dir_close(self._fs, folder)
        return names

    def free_blocks(self) -> int:
        self._remount()
        return self.device.blocks - self._try(lfs.fs_size)

    def open(self, path: str, mode: str) -> File:
        self._remount()
        handle = self._try(lfs.file_open, path, _MODES[mode])
        self._open += 1
        return File(self, handle)

    def close(self, handle: lfs.LFSFile) -> None:
        self._open -= 1
        self._try(lfs.file_close, handle)


class File:
    """An open file; what was not flushed is committed by `close`."""

    def __init__(self, files: Files, handle: lfs.LFSFile) -> None:
        self._files = files
        self._try = files._try
        self._handle = handle

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close(self._handle)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._try(lfs.file_seek, self._handle, offset, whence)

    def tell(self) -> int:
        return self._try(lfs.file_tell, self._handle)

    def read(self, n: int) -> bytes:
        return self._try(lfs.file_read, self._handle, n)

    def write(self, data: bytes) -> int:
        return self._try(lfs.file_write, self._handle, data)

    def flush(self) -> None:
        self._try(lfs.file_sync, self._handle)


class Store:
    """What the agent is given: `hal/flash.py` over `files`. After each call it is looked whether
    the power was still there; `writes()` hears of each write to a segment, before it, and
    `written(seq, lines, sure)` of the records of each append."""

    def __init__(
        self,
        files: Files,
        writes: Callable[[], None],
        written: Callable[[int, list[bytes], bool], None],
    ) -> None:
        namespace: dict[str, Any] = {"__name__": "hal.flash"}
        exec(_HAL_FLASH, namespace)
        namespace["os"] = files
        namespace["open"] = files.open
        self._device = files.device
        self._flash = namespace["Flash"]()
        self._writes = writes
        self._written = written
        if self._device.dead:
            raise PowerLost

    def _call(self, name: str, *args: Any) -> Any:
        try:
            return getattr(self._flash, name)(*args)
        finally:
            if self._device.dead:
                raise PowerLost

    def names(self) -> list[str]:
        return self._call("names")

    def size(self, name: str) -> int:
        return self._call("size", name)

    def read(self, name: str, offset: int, n: int) -> bytes:
        return self._call("read", name, offset, n)

    def remove(self, name: str) -> None:
        self._call("remove", name)

    def create(self, name: str, *parts: bytes) -> None:
        if name.endswith(".j"):
            self._writes()
        self._call("create", name, *parts)

    def set_aside(self, why: str, *parts: bytes) -> None:
        self._call("set_aside", why, *parts)

    def reserve(self) -> None:
        self._call("reserve")

    def release(self) -> None:
        self._call("release")

    def append(self, name: str, *parts: bytes) -> None:
        data = b"".join(parts)
        self._writes()
        sure = False
        try:
            self._call("append", name, *parts)
            sure = True
        finally:
            # kind, u24 length, u32 sequence, 8 bytes of link, lines, CRC: firmware/JOURNAL.md
            if data[:1] == b"R":
                (seq,) = struct.unpack_from("<I", data, 4)
                self._written(seq, data[16:-4].split(b"\n"), sure)
