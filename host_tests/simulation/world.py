"""The world: virtual clock, event queue, power, and the loop that drives the agent.

Time is true time in ms since the world began; the board sees it through its own quartz. The loop
gives the agent a turn, then moves on: by small steps while something happens, by large ones while
nothing does, and never past an event. A power cut is an exception that no `except Exception`
catches; an exception that escapes the agent is what `main.py` would see: outputs safe, reset.

Limits: a turn takes no time, and one process runs one world at a time.
"""

from __future__ import annotations

import heapq
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from wattlock import app, journal
from wattlock.errors import LinkError, StorageError

from . import faults
from . import plan as plans
from .checker import Checker
from .drivers import Street
from .flash import BLOCK_BYTES, Device, Files, PowerLost, Store
from .gateway import Gateway
from .link import Link, Port
from .plant import WMS_PER_WH, Bus, Meter, Outlet, Pins, Reading

UNIX0_MS = 1_790_000_000_000  # when the world begins
_MASK = (1 << 30) - 1
_HALF = 1 << 29
_PEACE_MS = 4 * plans.HOUR_MS  # the longest that things may take to settle
_JOURNAL = (journal.SEGMENT, journal.LIMIT, journal.RESERVED)
KEY = bytes(range(32))

Script = Iterator[int]


class Broken(BaseException):
    """A promise is broken; the text says which and with what numbers. Not an Exception: the agent
    must not catch it."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise


class Restart(BaseException):
    """The agent asked for a reset."""


class Reader:
    """The card reader: one for the whole station, which never fails."""

    ok = True

    def __init__(self) -> None:
        self.shown: deque[str] = deque()

    def turn(self, ticks: int) -> None:
        pass

    def read(self) -> str | None:
        return self.shown.popleft() if self.shown else None


class Board:
    """The port of the agent (see `hal/board.py`) for one boot."""

    slot = "a"
    trial = None

    def __init__(self, world: World, cause: str) -> None:
        self._world = world
        self._born = world.now
        self._ticks0 = world.plan.ticks0
        self._scale = 1_000_000 + world.plan.ppm
        self.cause = cause
        self.alive_at = world.alive
        self.reached = world.reached
        self.begin_turn()
        self.random = world.plan.random(f"board {world.counts['boots']}").randbytes
        self.store = Store(world.files, world.checker.writes, world.checker.written)
        self.pins = {n: Pins(outlet) for n, outlet in world.outlets.items()}
        self.meters = {n: Reading(outlet) for n, outlet in world.outlets.items()}
        self.buses = [
            Bus(world, reading, world.plan.random(f"bus {n} {world.counts['boots']}"))
            for n, reading in self.meters.items()
        ]
        self.rfid = Reader()
        self.link = Port(world.link)
        self.ended = False

    def begin_turn(self) -> None:
        """Look at the clock; a turn takes no time."""
        self._up_ms = (self._world.now - self._born) * self._scale // 1_000_000
        self._now = (self._ticks0 + self._up_ms) & _MASK

    def up_ms(self) -> int:
        return self._up_ms

    def ticks(self) -> int:
        return self._now

    def since(self, ticks: int) -> int:
        """As `time.ticks_diff` has it."""
        return ((self._now - ticks + _HALF) & _MASK) - _HALF

    def feed(self) -> None:
        pass

    def estop(self) -> bool:
        return self._world.estop

    def say(self, text: str) -> None:
        self._world.note("board: %s", text)

    def trouble(self, part: object, e: Exception) -> None:
        self._world.note("board: trouble in %s: %r", part, e)
        if not isinstance(e, LinkError | StorageError):
            where = "".join(traceback.format_exception(e)[-3:])
            self._world.broken("P8", f"exception in part {part}: {where}")

    def keep_time(self, unix_ms: int) -> None:
        self._world.rtc = (self._world.now, unix_ms)

    def recall_time(self) -> tuple[int, int] | None:
        kept = self._world.rtc
        if kept is None:
            return None
        passed = self._world.now - kept[0]
        now = (kept[1] + passed * (1_000_000 + self._world.rtc_ppm) // 1_000_000) // 1000 * 1000
        if now < kept[1]:
            return None
        return now, 2000 + (now - kept[1]) // 1000

    def alive(self, boot: int, up_ms: int, journal: str, seq: int) -> None:
        self._world.alive = (boot, up_ms)
        self._world.reached = (journal, seq)

    def health(self) -> dict[str, Any]:
        return {"net": "up"}

    def reset(self) -> None:
        raise Restart


class World:
    def __init__(self, seed: int) -> None:
        self.plan = plan = plans.make(seed)
        self.now = 0
        self.counts: Counter[str] = Counter()
        self.story: list[tuple[int, str, tuple[Any, ...]]] = []
        self.peace = False
        self.mains = True
        self.meters_up_at = 0
        self.estop = False
        self.board: Board | None = None
        self.agent: app.App | None = None
        self.rtc: tuple[int, int] | None = None
        self.alive: tuple[int, int] | None = None  # RTC memory: boot and uptime
        self.reached: tuple[str, int] | None = None  # ... journal and sequence
        self.tripwires: list[Callable[[str, Outlet, bool], bool]] = []
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._active_until = 0
        rng = plan.random("site")
        self.rng = rng
        self.rtc_ppm = rng.randint(-900, 900)
        usual = _JOURNAL if not plan.small_journal else (_JOURNAL[0], 40 * 1024, 16 * 1024)
        journal.SEGMENT, journal.LIMIT, journal.RESERVED = usual
        self.device = Device(plan.flash_blocks, plan.random("flash"))
        self.files = Files(self.device, fresh=True)
        self.checker = Checker(self)
        self.link = Link(self, plan.random("link"))
        self.gateway = Gateway(self, KEY, plans.STATION, plan.random("gateway"))
        self.outlets = {}
        for n in range(1, plan.evses + 1):
            resolution = rng.choice((1, 1, 1, 10, 100))
            meter = Meter(self, f"M{n}00", rng.choice((0, 7, 123_456, 9_876_543)), resolution)
            if rng.random() < 0.2:
                meter.delay_ms = (300, 1500)
            kind = plan.random(f"meter {n}")
            meter.two_way = kind.random() < 0.5
            if kind.random() < 0.4:  # it begins again at 0 within the story, if enough flows
                meter.span_wh = kind.choice((100_000, 10_000_000))
                meter.register_wms = (meter.span_wh - kind.randint(1, 4000)) * WMS_PER_WH
            outlet = Outlet(self, n, meter, plan.random(f"outlet {n}"))
            outlet.lock_kind = rng.choice(("bistable", "bistable", "spring", "none"))
            outlet.sees_contactor = rng.random() < 0.8
            outlet.sees_lock = rng.random() < 0.8
            outlet.standby_w = rng.choice((0, 0, 0, 3, 40))
            self.outlets[n] = outlet

    # -- time ----------------------------------------------------------------------------------

    @property
    def unix_ms(self) -> int:
        return UNIX0_MS + self.now

    def at(self, when: int, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (max(when, self.now), self._order, act))

    def after(self, delay_ms: int, act: Callable[[], None]) -> None:
        self.at(self.now + delay_ms, act)

    def play(self, script: Script, quiet: bool = False) -> None:
        """Run a script: a generator that yields how long it waits, in ms. Unless `quiet`, each of
        its steps is something that happens."""

        def step() -> None:
            delay = next(script, None)
            if not quiet:
                self.touch()
            if delay is not None:
                self.after(delay, step)

        self.after(0, step)

    def touch(self, ms: int = 5000) -> None:
        """Something happens: go on in small steps for a while."""
        self._active_until = max(self._active_until, self.now + ms)

    def note(self, text: str, *args: Any) -> None:
        self.story.append((self.now, text, args))

    def broken(self, promise: str, text: str) -> None:
        """A promise is broken: the story ends here."""
        self.note("BROKEN %s: %s", promise, text)
        raise Broken(promise, text)

    # -- power ---------------------------------------------------------------------------------

    def boot(self, cause: str) -> None:
        if self.board is not None:
            return
        self.counts["boots"] += 1
        self.note("power: boot %d (%s)", self.counts["boots"], cause)
        self.device.revive()
        self.touch(15_000)
        try:
            self.files = Files(self.device)
            self.board = Board(self, cause)
            self.link.port = self.board.link
            self.checker.booted(self.board)
            secrets = {"kid": 1, "key": KEY}
            self.agent = app.build(self.plan.config, secrets, self.board)
        except PowerLost:
            self._cut()
        except Exception as e:
            self._escaped(e)

    def _gone(self) -> None:
        """The board runs no more; what it held is let go."""
        if self.board is not None:
            self.board.ended = True
        self.board = self.agent = None
        self.link.port = None
        for outlet in self.outlets.values():
            outlet.release()

    def cut(self, off_ms: int, mains: bool, rtc_kept: bool = False) -> None:
        """Take the power away now, for `off_ms`; `mains`: from the cars and meters too."""
        if self.board is None:
            return
        self._gone()
        self.counts["power cuts"] += 1
        self.note("power: cut for %d ms%s", off_ms, ", mains too" if mains else "")
        if mains:
            for outlet in self.outlets.values():
                outlet.settle()
            self.mains = False
        if not rtc_kept:
            self.rtc = self.alive = self.reached = None
        self.after(off_ms, self._return)

    def _return(self) -> None:
        for outlet in self.outlets.values():
            outlet.settle()
        if not self.mains:
            self.mains = True
            self.meters_up_at = self.now + self.rng.randint(0, 3000)
        self.boot("power")

    def _cut(self) -> None:
        """The flash saw the power go."""
        self.counts["cuts torn" if self.device.torn else "cuts clean"] += 1
        if self.board is None:  # before there was a board
            self.after(500, lambda: self.boot("power"))
            return
        off_ms = self.rng.choice((300, 2000, 30_000, 200_000, 1_500_000))
        self.cut(off_ms, self.rng.random() < 0.5)

    def restart(self, cause: str) -> None:
        """A reset that keeps the power."""
        if self.board is None:
            return
        self._gone()
        self.counts["resets"] += 1
        self.note("power: reset (%s)", cause)
        self.after(300, lambda: self.boot(cause))

    def _escaped(self, e: Exception) -> None:
        self.note("board: escaped: %r", e)
        if not isinstance(e, OSError | StorageError) or self.device.failing is None:
            where = "".join(traceback.format_exception(e)[-4:])
            self.broken("P8", f"an exception escaped: {where}")
        self._gone()
        self.after(2000, lambda: self.boot("soft"))

    def trip(self, what: str, outlet: Outlet, value: bool) -> None:
        """A pin is driven; a tripwire may cut the power there."""
        for wire in self.tripwires:
            if wire(what, outlet, value):
                self.tripwires.remove(wire)
                raise PowerLost

    def fill_flash(self, left: int) -> int:
        """Fill the file system up to `left` free blocks; returns how many blocks it took. Without
        power nobody does: after a cut the file system is not to be used before its next mount."""
        blocks = 0
        if self.board is None:
            return 0
        try:
            with self.files.open("/filler", "wb") as f:
                while self.files.free_blocks() > left:
                    f.write(b"\xaa" * BLOCK_BYTES)
                    f.flush()
                    blocks += 1
        except OSError:
            pass  # no room, no power: as full as it gets
        return blocks

    def clear_flash(self) -> bool:
        """False: not now."""
        if self.board is None:
            return False
        try:
            if "filler" in self.files.listdir("/"):
                self.files.remove("/filler")
        except OSError:
            return False
        return True

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> None:
        """Live until the story is over and everything has settled. Raises Broken."""
        self.boot("power")
        streets = [
            Street(self, outlet, self.plan.random(f"street {n}"))
            for n, outlet in self.outlets.items()
        ]
        for street in streets:
            self.play(street.live())
        for fault in faults.choose(self, self.plan.random("faults")):
            self.play(fault.play(), quiet=True)
        while self.now < self.plan.length_ms:
            self._step(self.plan.length_ms)
        self.peace = True
        self.note("peace")
        for street in streets:
            self.play(street.go_home())
        deadline = self.now + _PEACE_MS
        while not self.checker.settled():
            if self.now >= deadline:
                self.broken("P2", f"not settled: {self.checker.unsettled()}")
            self._step(deadline)
        self.checker.finish()

    def _step(self, end: int) -> None:
        agent = self.agent
        if agent is not None:
            self.counts["turns"] += 1
            assert self.board is not None
            self.board.begin_turn()
            try:
                agent.turn()
            except PowerLost:
                self._cut()
            except Restart:
                self.restart("soft")
            except Exception as e:
                self._escaped(e)
        queue = self._queue
        until = end
        if agent is not None and self.now < self._active_until:
            until = self.now + self.plan.fine_ms
        elif queue:
            until = queue[0][0]
            if agent is not None:
                until = min(until, self.now + self.plan.coarse_ms)
        until = max(min(until, end), self.now + 1)
        while queue and queue[0][0] <= until:
            when, _, act = heapq.heappop(queue)
            self.now = max(self.now, when)
            act()
        self.now = until

    # -- the story -----------------------------------------------------------------------------

    def tell(self) -> str:
        """The story so far, one line an event."""
        lines = [f"seed {self.plan.seed}", f"{self.plan}"]
        for now, text, args in self.story:
            s, ms = divmod(now, 1000)
            clock = f"{s // 3600:3d}:{s // 60 % 60:02d}:{s % 60:02d}.{ms:03d}"
            lines.append(f"{clock}  {text % args if args else text}")
        return "\n".join(lines)
