"""The board around the VM: power, resets, watchdog, pins, contactor, lock, car, card, console.

Physics, level-triggered, after every change:

- the contactor is closed while the chip drives its pin active (`welded`: always, `stuck_open`:
  never);
- the connector lock is a motor lock: it follows its pin while the chip drives it, and stays where
  it is when the pin floats, through resets and power cuts (`lock_stuck`: it stays for ever);
- a locked connector cannot be pulled;
- inputs that sense a car (`plugged`, `ready`, `fault`) follow control pilot state A, B, C or F.

A reset of the chip (watchdog, panic, `machine.reset()`, power) makes every pin float; a soft reset
leaves the outputs as they are. RTC memory and the RTC's time survive all but `power` with rtc
"lost". The watchdog is real time, so that a starved VM is really reset; `ticks_ms` and the RTC are
real time plus whatever `time` skipped.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.virtual_board import image, vm
from tools.virtual_board.pn532 import PN532
from tools.virtual_board.wires import LAYOUT, TICKS_PERIOD, Wires

CAUSES = {"power": 1, "hard": 2, "panic": 2, "watchdog": 3, "soft": 5}  # machine.reset_cause()
RTC_START_MS = 946_684_800_000  # 2000-01-01, what an RTC without battery begins with
CAR_STATES = {"A": (0, 0, 0), "B": (1, 0, 0), "C": (1, 1, 0)}  # plugged, ready, fault
FAULTS_OF_FLASH = (
    "cut_ops", "cut_half", "cut_close", "fail_program", "fail_erase", "fail_read",
)
BOOTLOADER_S = 0.1  # between a reset of the chip and the firmware
BUS_RETRY_S = 0.2  # until a bus that is a socket is tried again
SOCKET = re.compile(r"[\w.-]+:\d+")
CARD_HELD_S = 1.0  # a card stays this long, and until it was read,
CARD_HELD_MAX_S = 6.0  # but no longer than this
CONSOLE_PATIENCE_S = 3.0  # console output that nobody reads for so long is dropped
INTERRUPT_PATIENCE_S = 5.0  # code that does not wait for so long is interrupted the hard way
_EXITS = {LAYOUT["hard_reset"]: "hard", LAYOUT["soft_reset"]: "soft"}
_EXITS |= {LAYOUT["soft_reset_raw"]: "soft", LAYOUT["power_cut"]: "power"}

Event = dict[str, Any]


class Refused(Exception):
    """The board cannot do what was asked. Caught by the control port; the text is its answer."""


class Evse:
    """Pins of one EVSE and what hangs on them."""

    def __init__(self, number: int, roles: dict[str, dict[str, int]]) -> None:
        self.number = number
        self.roles = roles
        self.faults: set[str] = set()
        self.lock = 0  # where the motor is
        self.seen: dict[str, int] = {}  # outputs as last told to the watchers
        self.agent: dict[str, Any] | None = None


class Board:
    def __init__(
        self,
        state: Path,
        description: dict[str, Any],
        *,
        vm_path: Path,
        heap: int = 96 * 1024,
        serial: str | None = None,
        link: Path | None = None,
        blocks: int = image.BLOCKS,
    ) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.state = state.absolute()
        self.description = description
        self.machine = str(description.get("machine", "Wattlock virtual board"))
        self.flash = self.state / "flash.bin"
        if not self.flash.exists():
            image.blank(self.flash, blocks)
        self.wires = Wires(self.state / "wires")
        self.wires["blocks"] = self.flash.stat().st_size // image.BLOCK_BYTES
        self.wires.unique_id[:] = hashlib.sha256(str(self.state).encode()).digest()[:6]
        self.evses = {
            int(n): Evse(int(n), {role: pin for role, pin in roles.items() if "pin" in pin})
            for n, roles in description.get("evses", {}).items()
        }
        self._levels: dict[int, int | None] = {}  # of the pins that the chip drives
        self._command = vm.command(vm_path, heap)
        self._link = link
        self._watchers: set[Callable[[Event], None]] = set()
        self._started = time.monotonic()
        self._advanced_ms = 0
        self.ppm = 0
        self._drift_ms = 0.0
        self.powered = False
        self._why: str | None = None  # why the VM was killed
        self._process: asyncio.subprocess.Process | None = None
        self._power = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._card: asyncio.Task[None] | None = None
        self._interrupted = 0.0
        self._line = b""
        self._carriage_return = False
        self._unsent = bytearray()
        self._unsent_since = 0.0
        self._wire_serial(serial)

    # --- start and end

    def _wire_serial(self, serial: str | None) -> None:
        for old in self.state.glob("uart*"):
            old.unlink()
        self._bus_address: tuple[str, int] | None = None
        if serial and SOCKET.fullmatch(serial):
            host, _, port = serial.rpartition(":")
            self._bus_address = (host, int(port))
            self._bus_fd, self._bus_slave = _raw_pty()
            serial = os.ttyname(self._bus_slave)
        if serial:
            (self.state / "uart1").symlink_to(os.path.abspath(serial))
        self.reader: PN532 | None = None
        rfid = self.description.get("rfid")
        if rfid and rfid.get("kind") == "pn532":
            self._reader_fd, self._reader_slave = _raw_pty()
            (self.state / f"uart{rfid['uart']}").symlink_to(os.ttyname(self._reader_slave))
            self.reader = PN532(self._reader_writes)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._master, self._slave = _raw_pty()
        self.pty = os.ttyname(self._slave)
        if self._link:
            self._link.parent.mkdir(parents=True, exist_ok=True)
            if self._link.is_symlink():
                self._link.unlink()
            self._link.symlink_to(self.pty)
            self.pty = str(self._link)
        self._stdin, self._to_vm = os.pipe()
        self._from_vm, self._stdout = os.pipe()
        self._events, self._events_vm = os.pipe()
        for fd in (self._to_vm, self._from_vm, self._events):
            os.set_blocking(fd, False)
        self._log = (self.state / "console.log").open("ab", buffering=0)
        self._environment = vm.environment(self.state, self._events_vm, self.machine)
        for pin, evse in self._contactor_pins():
            self.wires.contactors[pin] = 1 + evse.roles["contactor"]["active"]
        loop.add_reader(self._master, self._typed)
        loop.add_reader(self._from_vm, self._printed)
        loop.add_reader(self._events, self._take_events)
        if self.reader:
            loop.add_reader(self._reader_fd, self._reader_written)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._supervise())]
        if self._bus_address:
            self._tasks.append(asyncio.create_task(self._relay_bus(*self._bus_address)))
        self.power_on(rtc="lost")

    async def stop(self) -> None:
        self._kill("power")
        for task in [*self._tasks, *filter(None, [self._card])]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._link and self._link.is_symlink():
            self._link.unlink()
        self._log.close()

    def _contactor_pins(self) -> list[tuple[int, Evse]]:
        return [
            (evse.roles["contactor"]["pin"], evse)
            for evse in self.evses.values()
            if "contactor" in evse.roles
        ]

    async def _relay_bus(self, host: str, port: int) -> None:
        """A meter bus that is a socket: bytes to and from UART 1, while the board lives."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(BUS_RETRY_S)
                continue
            loop.add_reader(self._bus_fd, lambda w=writer: w.write(os.read(self._bus_fd, 4096)))
            try:
                while data := await reader.read(4096):
                    _write_some(self._bus_fd, data)
            except OSError:
                pass
            finally:
                loop.remove_reader(self._bus_fd)
                writer.close()
            await asyncio.sleep(BUS_RETRY_S)

    # --- the VM's life

    async def _run(self) -> None:
        while True:
            await self._power.wait()
            self.wires["boot"] += 1
            self.wires["running"] = self.wires["interrupt"] = 0
            for evse in self.evses.values():
                evse.agent = None
            cause = self._cause
            self.wires["cause"] = CAUSES[cause]
            self._emit("boot", value=self.wires["boot"], cause=cause)
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=self._stdin,
                stdout=self._stdout,
                stderr=self._stdout,
                env=self._environment,
                cwd=self.state,
                pass_fds=(self._events_vm,),
                start_new_session=True,
            )
            if self._why:  # killed before it was born
                self._kill(self._why)
            code = await self._process.wait()
            self.wires["running"] = 0
            self._take_events()
            self._printed()
            self._cause = self._why or _EXITS.get(code, "panic")
            self.wires["raw"] = int(not self._why and code == LAYOUT["soft_reset_raw"])
            self._why = None
            if self._cause == "power":
                self._power.clear()
                self.powered = False
                self._cut_power()
                self._emit("power", value=0)
            elif self._cause != "soft":
                self._reset_chip()
            if self._cause not in ("soft", "power"):
                await asyncio.sleep(BOOTLOADER_S)

    def _kill(self, why: str) -> None:
        self._why = why
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _reset_chip(self) -> None:
        wires = self.wires
        for name in ("wdt_ms", "link", "raw", "fill", "collect"):
            wires[name] = 0
        wires.modes[:] = bytes(len(wires.modes))
        wires.outputs[:] = bytes(len(wires.outputs))
        self._levels.clear()
        self._set_ticks(0)
        self._obey_pins()

    def _cut_power(self) -> None:
        for name in FAULTS_OF_FLASH:
            self.wires[name] = 0
        if self.reader:
            self.reader.power_up()
        termios.tcflush(self._slave, termios.TCIOFLUSH)
        while _waiting(self._stdin):
            os.read(self._stdin, 4096)
        self._reset_chip()

    def power_on(self, *, rtc: str = "lost") -> None:
        if self.powered:
            self.wires["cut_ops"] = self.wires["cut_close"] = 0
            return
        if rtc == "lost":
            self.wires.lose_rtc_memory()
            self.set_clock(RTC_START_MS)
        self.powered = True
        self._cause = "power"
        self._set_ticks(0)
        for name in ("programs", "erases", "program_bytes", "reads", "syncs"):
            self.wires[name] = 0
        self._cut_power()
        self._emit("power", value=1)
        self._power.set()

    async def power_off(self) -> None:
        if self.powered:
            self._kill("power")
            await until(lambda: not self.powered)

    def arm_power_cut(self, when: str, half: bool) -> None:
        what, _, number = when.partition(":")
        if what not in ("flash_op", "contactor_close") or not number.isdigit() or int(number) < 1:
            raise Refused(f"when: {when!r}; now, flash_op:N or contactor_close:N with N from 1")
        if not self.powered:
            raise Refused("power: it is off already")
        self.wires["cut_half"] = int(half)
        self.wires["cut_ops" if what == "flash_op" else "cut_close"] = int(number)

    async def reset(self, cause: str) -> None:
        if cause not in ("watchdog", "soft", "panic", "hard"):
            raise Refused(f"cause: {cause!r}; watchdog, soft, panic or hard")
        if not self.powered:
            raise Refused("reset: the power is off")
        boot = self.wires["boot"]
        self._kill(cause)
        await until(lambda: self.wires["boot"] > boot)

    async def _supervise(self) -> None:
        """The watchdog's hardware, slow crystal included."""
        fed, fed_at, period, last = -1, 0.0, 0, time.monotonic()
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            if now - last > 1:  # this machine slept, not the firmware
                fed_at += now - last
            self._drift((now - last) * 1000)
            last = now
            if self._unsent and now - self._unsent_since > CONSOLE_PATIENCE_S:
                self._unsent.clear()
            if self.wires["interrupt"] and now - self._interrupted > INTERRUPT_PATIENCE_S:
                self._interrupt_hard()
            current = self.wires["wdt_fed"]
            if current != fed or not period:
                fed, fed_at = current, now
            period = self.wires["wdt_ms"]
            if period and self.powered and (now - fed_at) * 1000 > period:
                self._kill("watchdog")
                fed, period = -1, 0

    # --- time

    def now_ms(self) -> int:
        return int((time.monotonic() - self._started) * 1000) + self._advanced_ms

    def _set_ticks(self, ticks_ms: int) -> None:
        offset = (ticks_ms - int(time.monotonic() * 1000)) % TICKS_PERIOD
        self.wires["ticks"] = offset if offset < TICKS_PERIOD // 2 else offset - TICKS_PERIOD

    def set_clock(self, unix_ms: int) -> None:
        seconds, ms = divmod(unix_ms - time.time_ns() // 1_000_000, 1000)
        self.wires["rtc_s"], self.wires["rtc_ms"] = seconds, ms

    def _skip(self, board_ms: int) -> None:
        offset = self.wires["ticks"] + board_ms
        half = TICKS_PERIOD // 2
        self.wires["ticks"] = (offset + half) % TICKS_PERIOD - half
        seconds, ms = divmod(self.wires["rtc_ms"] + board_ms, 1000)
        self.wires["rtc_s"] += seconds
        self.wires["rtc_ms"] = ms

    def _drift(self, passed_ms: float) -> None:
        self._drift_ms += passed_ms * self.ppm / 1e6
        if abs(self._drift_ms) >= 1:
            whole = int(self._drift_ms)
            self._drift_ms -= whole
            self._skip(whole)

    def advance(self, ms: int) -> None:
        if not 0 < ms < TICKS_PERIOD // 2:
            most = TICKS_PERIOD // 2 - 1
            raise Refused(f"advance_ms: {ms}; 1 to {most}, half a turn of ticks_ms")
        self._advanced_ms += ms
        self._skip(ms)
        self._drift(ms)

    # --- pins

    def _take_events(self) -> None:
        while True:
            try:
                data = os.read(self._events, 4096)
            except BlockingIOError:
                return
            for i in range(0, len(data), 4):
                kind, index, value = data[i], data[i + 1], data[i + 2]
                if kind == LAYOUT["ev_pin"]:
                    self._levels[index] = value if value < 2 else None
                    self._obey_pins()
                elif kind == LAYOUT["ev_sync"]:
                    self._emit("sync")
                elif kind == LAYOUT["ev_erase"]:
                    self._emit("erase", value=index << 8 | value)

    def _driven(self, evse: Evse, role: str) -> int | None:
        """1 active, 0 not, None when the chip leaves the pin floating."""
        pin = evse.roles[role]
        level = self._levels.get(pin["pin"])
        return None if level is None else int(level == pin["active"])

    def _sense(self, evse: Evse, role: str, active: int) -> None:
        if role in evse.roles:
            pin = evse.roles[role]
            self.wires.inputs[pin["pin"]] = pin["active"] if active else 1 - pin["active"]

    def _sensed(self, evse: Evse, role: str) -> int:
        pin = evse.roles[role]
        return int(self.wires.inputs[pin["pin"]] == pin["active"])

    def _obey_pins(self) -> None:
        for evse in self.evses.values():
            told = {}
            for role in ("contactor", "lock", "led"):
                if role in evse.roles:
                    told[role] = self._driven(evse, role) or 0
            if "lock" in evse.roles:
                driven = self._driven(evse, "lock")
                told["lock"] = evse.seen.get("lock", 0) if driven is None else driven
                if "lock_stuck" not in evse.faults:
                    evse.lock = told["lock"]
            closed = "welded" in evse.faults or (
                bool(told.get("contactor")) and "stuck_open" not in evse.faults
            )
            self._sense(evse, "contactor_feedback", int(closed))
            self._sense(evse, "lock_feedback", evse.lock)
            for role, value in told.items():
                if evse.seen.get(role, 0) != value:
                    self._emit(role, evse=evse.number, value=value)
            evse.seen = told

    def evse(self, number: object) -> Evse:
        try:
            return self.evses[int(str(number))]
        except (KeyError, ValueError):
            known = ", ".join(map(str, self.evses))
            raise Refused(f"evse: {number!r}; this board has {known}") from None

    def car(self, number: object, cp: str) -> None:
        evse = self.evse(number)
        if cp not in ("A", "B", "C", "F"):
            raise Refused(f"cp: {cp!r}; A, B, C or F")
        if cp == "A" and evse.lock and "plugged" in evse.roles and self._sensed(evse, "plugged"):
            raise Refused("the connector is locked: it cannot be pulled")
        if cp == "F":
            self._sense(evse, "fault", 1)
            self._sense(evse, "ready", 0)
            return
        for role, active in zip(("plugged", "ready", "fault"), CAR_STATES[cp], strict=True):
            self._sense(evse, role, active)

    def pulse(self, number: object, count: int) -> None:
        evse = self.evse(number)
        if "pulse" not in evse.roles:
            raise Refused(f"evse: {evse.number} has no pulse input in board.json")
        if count < 1:
            raise Refused(f"count: {count}; at least 1")
        self.wires.add_pulses(evse.roles["pulse"]["pin"], count)

    def fault(self, what: str, number: object, on: bool) -> None:
        if what == "estop":
            estop = self.description.get("estop")
            if not estop:
                raise Refused("estop: this board has none in board.json")
            self.wires.inputs[estop["pin"]] = estop["active"] if on else 1 - estop["active"]
        elif what == "rfid_dead":
            if not self.reader:
                raise Refused("rfid_dead: this board has no reader")
            self.reader.dead = on
        elif what in ("welded", "stuck_open", "lock_stuck"):
            faults = self.evse(number).faults
            (faults.add if on else faults.discard)(what)
            self._obey_pins()
        else:
            raise Refused(f"what: {what!r}; welded, stuck_open, lock_stuck, rfid_dead or estop")

    def token(self, number: object, uid: str) -> None:
        self.evse(number)
        if not self.reader:
            raise Refused("token: this board has no reader")
        try:
            self.reader.present(bytes.fromhex(uid))
        except ValueError as error:
            raise Refused(f"uid: {uid!r}; 4, 7 or 10 bytes as hex ({error})") from None
        if self._card:
            self._card.cancel()
        self._card = asyncio.create_task(self._hold_card(self.reader))

    async def _hold_card(self, reader: PN532) -> None:
        """People hold a card until it beeps."""
        await asyncio.sleep(CARD_HELD_S)
        give_up = time.monotonic() + CARD_HELD_MAX_S - CARD_HELD_S
        while not reader.times_read and time.monotonic() < give_up:
            await asyncio.sleep(0.02)
        reader.present(None)

    def _reader_writes(self, data: bytes) -> None:
        _write_some(self._reader_fd, data)

    def _reader_written(self) -> None:
        if self.reader and self.powered:
            self.reader.receive(os.read(self._reader_fd, 4096))

    # --- console

    def _typed(self) -> None:
        data = os.read(self._master, 4096)
        if not self.powered:
            return
        if b"\x03" in data and self.wires["running"]:
            before, _, after = data.rpartition(b"\x03")
            self._to_stdin(before.replace(b"\x03", b""))
            if not self.wires["interrupt"]:
                self._interrupted = time.monotonic()
                self.wires["interrupt"] = 1
            data = after
        self._to_stdin(data)

    def _interrupt_hard(self) -> None:
        """For code that never waits, a bare loop at the prompt. The VM raises out of whatever C
        code the signal finds, even its collector: then the heap is locked for good."""
        self.wires["interrupt"] = 0
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)

    def _to_stdin(self, data: bytes) -> None:
        _write_some(self._to_vm, data)

    def _printed(self) -> None:
        while True:
            try:
                data = os.read(self._from_vm, 65536)
            except BlockingIOError:
                return
            self._log.write(data)
            self._listen(data)
            cooked = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            if self._carriage_return and data.startswith(b"\n"):
                cooked = cooked[1:]
            self._carriage_return = data.endswith(b"\r")
            if not self._unsent:
                self._unsent_since = time.monotonic()
            self._unsent += cooked
            self._send()

    def _send(self) -> None:
        loop = asyncio.get_running_loop()
        sent = _write_some(self._master, bytes(self._unsent))
        if sent:
            self._unsent_since = time.monotonic()
        del self._unsent[:sent]
        if self._unsent:
            loop.add_writer(self._master, self._send)
        else:
            loop.remove_writer(self._master)

    def _listen(self, data: bytes) -> None:
        """The agent's own word: a console line that is a JSON object with `evse` and `status`."""
        *lines, self._line = (self._line + data)[-8192:].split(b"\n")
        for line in lines:
            if line.lstrip().startswith(b"{") and b'"status"' in line:
                try:
                    told = json.loads(line)
                    self.evses[told.pop("evse")].agent = told
                except (ValueError, KeyError, TypeError):
                    continue

    # --- what others see

    def watch(self, watcher: Callable[[Event], None]) -> Callable[[], None]:
        """`watcher` is called with every event; call the result to end that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    def _emit(self, what: str, **more: Any) -> None:
        event = {"t_ms": self.now_ms(), "boot": self.wires["boot"], "ev": what, **more}
        for watcher in list(self._watchers):
            watcher(event)

    def picture(self) -> dict[str, Any]:
        self._take_events()
        evses = {}
        for evse in self.evses.values():
            pins = dict(evse.seen)
            for role in evse.roles:
                if role not in pins and role != "pulse":
                    pins[role] = self._sensed(evse, role)
            evses[str(evse.number)] = {"pins": pins, "agent": evse.agent}
        return {
            "boot": self.wires["boot"],
            "power": int(self.powered),
            "t_ms": self.now_ms(),
            "evses": evses,
        }


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def _raw_pty() -> tuple[int, int]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    return master, slave


def _write_some(fd: int, data: bytes) -> int:
    """What a UART does with bytes that do not fit: they are gone."""
    try:
        return os.write(fd, data) if data else 0
    except BlockingIOError:
        return 0


def _waiting(fd: int) -> int:
    count = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return int.from_bytes(count, "little")
