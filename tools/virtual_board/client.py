"""A virtual board of one's own, for tests and the demo.

    with VirtualBoard(files={"main.py": b"..."}) as board:
        board.car("C")
        board.wait(contactor=1)
        board.power_off(when="flash_op:3", torn="half")
        board.watch.wait_for(lambda event: event["ev"] == "power")
        board.power_on()

Every command of the control port is a method; an answer that is not ok raises `BoardError`. The
process, its state and its sockets are gone at the end of the block. `watch` collects every event
from the start on.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tools import paths

Event = dict[str, Any]
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


class BoardError(Exception):
    """The board refused, or it did not come up. Caught by tests that expect a refusal."""


class Watch:
    """Every event since the board was ready, collected in the background."""

    def __init__(self, control: str) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._ended = False
        self._line = _Line(control, timeout_s=None)
        self._line.ask({"do": "watch"})
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := self._line.read():
                with self._changed:
                    self.events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def mark(self) -> int:
        """A place in the events, for `since`."""
        with self._changed:
            return len(self.events)

    def wait_for(
        self, predicate: Callable[[Event], object], timeout_s: float = 10.0, since: int = 0
    ) -> Event:
        """The first event from place `since` on that fulfils `predicate`."""
        deadline = time.monotonic() + timeout_s
        at = since
        with self._changed:
            while True:
                while at < len(self.events):
                    if predicate(self.events[at]):
                        return self.events[at]
                    at += 1
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    last = self.events[-5:]
                    raise BoardError(f"no such event within {timeout_s} s; the last: {last}")
                self._changed.wait(left)

    def close(self) -> None:
        self._line.close()
        self._thread.join(_STOP_TIMEOUT_S)


class _Line:
    """A connection to the control port."""

    def __init__(self, control: str, timeout_s: float | None) -> None:
        host, _, port = control.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._socket.settimeout(timeout_s)
        self._file = self._socket.makefile("rb")

    def read(self) -> bytes:
        return self._file.readline()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        line = self.read()
        if not line:
            raise BoardError("the board has ended")
        answer = json.loads(line)
        if not answer.get("ok"):
            raise BoardError(answer.get("error", "no reason given"))
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()


class VirtualBoard:
    """`files` (path on the board -> content) or `config` and `secrets` (paths) go on it first.

    With `state` the board lives in that directory and stays there; otherwise in a temporary one.
    """

    def __init__(
        self,
        *,
        state: Path | None = None,
        files: Mapping[str, bytes] | None = None,
        config: Path | None = None,
        secrets: Path | None = None,
        serial: str | None = None,
        pty: Path | None = None,
        control: str = "127.0.0.1:0",
        heap: str = "96k",
        vm: str = "unix32",
        arguments: Sequence[str] = (),
    ) -> None:
        self._temporary = None if state else Path(tempfile.mkdtemp(prefix="wattlock-board-"))
        self.state = state or self._temporary or Path()
        self.link = pty or self.state / "tty"
        self._files = files or {}
        options = {
            "state": self.state, "pty": self.link, "control": control, "heap": heap, "vm": vm,
            "config": config, "secrets": secrets, "serial": serial,
        }
        self._command = [sys.executable, "-m", "tools.virtual_board", *arguments]
        for name, value in options.items():
            if value:
                self._command += [f"--{name}", str(value)]

    # --- life

    def start(self) -> Self:
        if self._files:
            from tools.virtual_board import image

            self.state.mkdir(parents=True, exist_ok=True)
            if not self.flash.exists():
                image.blank(self.flash)
            image.write_files(self.flash, self._files)
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=paths.ROOT
        )
        assert self._process.stdout and self._process.stderr
        timer = threading.Timer(_START_TIMEOUT_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            error = self._process.stderr.read().decode(errors="replace").strip()
            self.stop()
            raise BoardError(f"the board did not start: {error}")
        ready = json.loads(line)
        self.pty: str = ready["pty"]
        self.control: str = ready["control"]
        self._errors = threading.Thread(target=self._pass_on, daemon=True)
        self._errors.start()
        self._line = _Line(self.control, timeout_s=120)
        self.watch = Watch(self.control)
        return self

    def _pass_on(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            sys.stderr.write("virtual board: " + line.decode(errors="replace"))

    def kill(self) -> None:
        """The whole board is gone at once, parent and VM."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        for part in ("watch", "_line"):
            if hasattr(self, part):
                getattr(self, part).close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if hasattr(self, "_errors"):
            self._errors.join(_STOP_TIMEOUT_S)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what it leaves behind

    @property
    def flash(self) -> Path:
        """The LittleFS image; read it with `tools.virtual_board.image` while the power is off."""
        return self.state / "flash.bin"

    def console(self) -> str:
        """Everything the board has printed, as it came out of the VM."""
        path = self.state / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_console(self, text: str, timeout_s: float = 10.0) -> str:
        """Wait until `text` was printed; gives the whole console."""
        deadline = time.monotonic() + timeout_s
        while text not in (console := self.console()):
            if time.monotonic() > deadline:
                raise BoardError(f"{text!r} not printed in {timeout_s} s: {console[-800:]}")
            time.sleep(0.02)
        return console

    def exec(self, code: str, timeout_s: float = 30.0) -> str:
        """What `code` prints, run by mpremote in the VM as it is (main.py is interrupted)."""
        command = [sys.executable, "-m", "mpremote", "connect", self.pty, "resume", "exec", code]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise BoardError(f"exec: {(done.stdout + done.stderr).strip()}")
        return done.stdout

    # --- the control port, command by command

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        return self._line.ask({"do": do, **fields})

    def get(self) -> dict[str, Any]:
        return self.ask("get")

    def pins(self, evse: int = 1) -> dict[str, int]:
        return self.get()["evses"][str(evse)]["pins"]

    def boot(self) -> int:
        return self.get()["boot"]

    def wait(self, *, evse: int = 1, timeout_s: float = 10.0, **until: Any) -> dict[str, Any]:
        """`wait(contactor=1)`; several conditions must hold together."""
        return self.ask("wait", evse=evse, until=until, timeout_s=timeout_s)

    def car(self, cp: str, evse: int = 1) -> None:
        self.ask("car", evse=evse, cp=cp)

    def token(self, uid: str, evse: int = 1) -> None:
        self.ask("token", evse=evse, uid=uid)

    def pulse(self, count: int, evse: int = 1) -> None:
        self.ask("pulse", evse=evse, count=count)

    def power_off(self, when: str = "now", torn: str = "none") -> None:
        self.ask("power", on=False, when=when, torn=torn)

    def power_on(self, rtc: str = "lost") -> None:
        self.ask("power", on=True, rtc=rtc)

    def reset(self, cause: str = "hard") -> None:
        self.ask("reset", cause=cause)

    def fail_flash(self, what: str, at: int = 1) -> None:
        self.ask("flash", fail=what, at=at)

    def fill_flash(self, full: bool = True) -> None:
        self.ask("flash", fill=full)

    def flash_stat(self) -> dict[str, int]:
        return self.ask("flash", stat=True)

    def fault(self, what: str, on: bool = True, evse: int = 1) -> None:
        self.ask("fault", what=what, evse=evse, on=on)

    def net(self, **modes: str | int) -> None:
        """`net(wifi="down")`, `net(lan="unplugged")`, `net(dns="slow")`, `net(sntp=PORT)`."""
        self.ask("net", **modes)

    def clock(self, **fields: int | None) -> None:
        """`clock(unix_ms=None)`, `clock(ppm=20)`."""
        self.ask("clock", **fields)

    def advance(self, ms: int) -> None:
        self.ask("time", advance_ms=ms)

    def stall(self) -> dict[str, float]:
        """The loop's longest turns since the last asking: `ms` without a flash operation,
        `sync_ms` with one; counted, not timed."""
        told = self.ask("stall")
        return {name: told[name] for name in ("ms", "sync_ms")}

    def heap(self, collect: bool = False) -> dict[str, int]:
        return self.ask("heap", collect=collect)
