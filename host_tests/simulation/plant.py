"""The plant: contactor, connector lock, plug, load and meter of one EVSE.

Energy is counted in W·ms (3,600,000 of them are a Wh) and flows only while the mains are there,
the contactor is physically closed, and a plugged car asks; a standby load behind the meter may
always draw. Contactor and lock take their time to move. What the agent believes is not known here.

Limits: power is constant between events; one phase angle, no harmonics, no pilot timing.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .world import World

WMS_PER_WH = 3_600_000


Sample = tuple[str, int | None, int | None, int]  # serial, import Wh, export Wh, W


class Meter:
    """Import and export registers that somebody may swap, mute, freeze or turn back. `span_wh`: at
    which number they begin again at 0; None: never. `two_way`: what flows back is shown too."""

    def __init__(self, world: World, serial: str, register_wh: int, resolution_wh: int) -> None:
        self.world = world
        self.serial = serial
        self.register_wms = register_wh * WMS_PER_WH
        self.export_wms = 0
        self.span_wh: int | None = None
        self.two_way = False
        self.resolution_wh = resolution_wh
        self.silent = False
        self.delay_ms = (20, 120)
        self.glitches: list[int | None] = []  # what the next polls show instead
        self.frozen: Sample | None = None  # what all polls show instead
        self.frozen_power = False  # also the power stands still
        self.frozen_wms = 0  # the register when it froze

    def _shown(self, wms: int) -> int:
        wh = wms // (self.resolution_wh * WMS_PER_WH) * self.resolution_wh
        return wh if self.span_wh is None else wh % self.span_wh

    def show_wh(self) -> int:
        return self._shown(self.register_wms)

    def hidden_wms(self) -> int:
        """What it has counted since it froze."""
        return 0 if self.frozen is None else max(0, self.register_wms - self.frozen_wms)

    def sample(self, power_w: int) -> Sample:
        """What a poll reads now, while `power_w` flows."""
        if self.frozen is not None:
            return self.frozen if self.frozen_power else (*self.frozen[:3], power_w)
        export_wh = self._shown(self.export_wms) if self.two_way else None
        return self.serial, self.show_wh(), export_wh, power_w


class Car:
    """What hangs on the cable. `uid`: the card of whoever brought it."""

    def __init__(self, uid: str, power_w: int) -> None:
        self.uid = uid
        self.power_w = power_w
        self.asking = True


class Outlet:
    """One EVSE's iron and copper."""

    def __init__(self, world: World, n: int, meter: Meter, rng: Random) -> None:
        self.world = world
        self.n = n
        self.meter = meter
        self.rng = rng
        self.coil = False
        self.closed = False
        self.welded = self.stuck_open = self.lock_stuck = self.pilot_fault = False
        self.lock_kind = "bistable"  # "none": a fixed cable; "spring": opens without power
        self.lock_wanted = self.locked = False
        self.sees_contactor = self.sees_lock = True
        self.car: Car | None = None
        self.standby_w = 0
        self.owner: str | None = None  # session id that the checker found at the closing
        self.open_session: str | None = None  # session that is open on record
        self.through_wms: dict[str | None, int] = defaultdict(int)  # contactor, by owner
        self.back_wms: dict[str | None, int] = defaultdict(int)  # what flowed back, by owner
        self.standby_wms: dict[str | None, int] = defaultdict(int)  # standby, by open session
        self._settled_at = 0
        self._free_at = 0

    # -- energy --------------------------------------------------------------------------------

    def power_w(self) -> int:
        if not self.world.mains:
            return 0
        return self.standby_w + self._car_w()

    def _car_w(self) -> int:
        car = self.car
        return car.power_w if self.closed and car is not None and car.asking else 0

    def settle(self) -> None:
        """Count what has flowed until now; called before anything changes."""
        passed = self.world.now - self._settled_at
        self._settled_at = self.world.now
        if passed and self.world.mains:
            through = self._car_w() * passed
            standby = self.standby_w * passed
            if through + standby < 0:  # the standby load lives on what the car gives
                self.back_wms[self.owner] -= through + standby
                self.meter.export_wms -= through + standby
                return
            self.through_wms[self.owner] += through
            self.standby_wms[self.open_session] += standby
            self.meter.register_wms += through + standby

    # -- contactor -----------------------------------------------------------------------------

    def drive_contactor(self, close: bool) -> None:
        self.world.trip("contactor", self, close)
        if close == self.coil:
            return
        self.coil = close
        self.world.note("contactor %d: told to %s", self.n, "close" if close else "open")
        if close and self.closed:  # welded: it never opened
            self.settle()
            self.world.checker.closed(self)
        self.world.after(self.rng.randint(15, 60), self._move_contactor)

    def _move_contactor(self) -> None:
        self.move_contactor(self.coil)

    def move_contactor(self, close: bool) -> None:
        if close == self.closed or (close and self.stuck_open) or (not close and self.welded):
            return
        self.settle()
        self.closed = close
        self.world.note("contactor %d: %s", self.n, "closed" if close else "open")
        self.world.touch()
        if close:
            self.world.checker.closed(self)
        else:
            self.world.checker.opened(self)

    # -- lock ----------------------------------------------------------------------------------

    def drive_lock(self, hold: bool) -> None:
        if self.lock_kind == "none":
            return
        self.lock_wanted = hold
        self.world.after(self.rng.randint(200, 600), self._move_lock)

    def _move_lock(self) -> None:
        if self.lock_wanted != self.locked and not self.lock_stuck:
            self.locked = self.lock_wanted
            self.world.note("lock %d: %s", self.n, "locked" if self.locked else "open")
            self.world.touch()
            self.world.checker.lock_moved(self)

    # -- plug ----------------------------------------------------------------------------------

    def plug(self, car: Car) -> bool:
        """False: it does not go in."""
        if self.car is not None or self.locked or self.world.now < self._free_at:
            return False
        self.settle()
        self.car = car
        self.world.note("plug %d: in, car of %s, %d W", self.n, car.uid, car.power_w)
        self.world.touch()
        return True

    def unplug(self) -> bool:
        """False: the lock holds it."""
        if self.car is None:
            return True
        if self.locked:
            return False
        self.settle()
        self.car = None
        self._free_at = self.world.now + 2000  # nobody swaps two plugs in no time
        self.world.note("plug %d: out", self.n)
        self.world.touch()
        self.world.checker.must_open(self, "unplugged")
        return True

    def ask(self, asking: bool) -> None:
        if self.car is not None and self.car.asking != asking:
            self.settle()
            self.car.asking = asking
            self.world.note("car %d: %s", self.n, "asks" if asking else "pauses")
            self.world.touch()

    def set_power(self, power_w: int) -> None:
        if self.car is not None:
            self.settle()
            self.car.power_w = power_w

    # -- power ---------------------------------------------------------------------------------

    def release(self) -> None:
        """The board holds nothing any more: coil off, a spring lock opens."""
        self.coil = False
        self.world.after(self.rng.randint(10, 40), self._move_contactor)
        if self.lock_kind == "spring":
            self.drive_lock(False)


class Pins:
    """An outlet as `hal/outputs.py` shows it. One boot's; a board that is gone drives nothing."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self.has_lock = outlet.lock_kind != "none"

    def contactor(self, close: bool) -> None:
        self._outlet.drive_contactor(bool(close))

    def lock(self, hold: bool) -> None:
        self._outlet.drive_lock(bool(hold))

    def led(self, on: int) -> None:
        pass

    def plugged(self) -> bool:
        return self._outlet.car is not None

    def ready(self) -> bool:
        return self._outlet.car is not None and self._outlet.car.asking

    def fault(self) -> bool:
        return self._outlet.pilot_fault

    def closed(self) -> bool | None:
        return self._outlet.closed if self._outlet.sees_contactor else None

    def locked(self) -> bool | None:
        outlet = self._outlet
        return outlet.locked if outlet.sees_lock and outlet.lock_kind != "none" else None


class Reading:
    """The reading interface of a meter, as `wattlock.registers.Meter` offers it."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.serial: str | None = None
        self.energy_wh: int | None = None
        self.export_wh: int | None = None
        self.current_ma: int | None = None
        self.step_wh = outlet.meter.resolution_wh
        self.rolls_wh = () if outlet.meter.span_wh is None else (outlet.meter.span_wh,)
        self.power_w: int | None = None
        self.readings = 0
        self.failed = 0
        self.at = 0
        self.wanted = False

    def demand(self) -> None:
        self.wanted = True


class Bus:
    """Polls a meter about once a second, by the rules of `hal/bus.py`: late answers come late,
    silence is given up after three tries, and a dead meter is asked ever more seldom."""

    _TIMEOUT_MS = 900
    _OLDEST_MS = 1500  # a slow meter looks at its register when it answers, not when asked
    _BACK_OFF_MS = 30_000

    def __init__(self, world: World, reading: Reading, rng: Random) -> None:
        self._world = world
        self._reading = reading
        self._rng = rng
        self._begun_at = -100_000
        self._wait_ms = 0
        self._due: int | None = None  # when the answer is there
        self._looked = False
        self._sample: Sample | None = None

    def turn(self, ticks: int) -> None:
        now = self._world.now
        reading = self._reading
        if self._due is None:
            passed = now - self._begun_at
            if not reading.wanted and passed < self._wait_ms:
                return
            reading.wanted = False
            delay = self._rng.randint(*reading.outlet.meter.delay_ms)
            self._begun_at = now
            self._looked = False
            # in long idle steps the answer would have come long ago
            self._due = now if passed - self._wait_ms > delay else now + delay
        if not self._looked and now >= self._due - self._OLDEST_MS:
            self._looked = True
            self._sample = self._look()
            if self._sample is None:
                self._due = max(self._due, self._begun_at + self._TIMEOUT_MS)
        if now < self._due:
            return
        if now > self._due + self._OLDEST_MS:  # a long step: polls would have gone on
            self._sample = self._look()
        self._due = None
        if self._sample is None:
            reading.failed += 1
            self._wait_ms = min(1000 << min(reading.failed, 5), self._BACK_OFF_MS)
            return
        reading.serial, reading.energy_wh, reading.export_wh, reading.power_w = self._sample
        reading.readings += 1
        reading.failed = 0
        reading.at = ticks
        self._wait_ms = 1000

    def _look(self) -> Sample | None:
        outlet = self._reading.outlet
        meter = outlet.meter
        if meter.silent or not self._world.mains or self._world.now < self._world.meters_up_at:
            return None
        outlet.settle()
        sample = meter.sample(outlet.power_w())
        if meter.glitches:
            return (sample[0], meter.glitches.pop(0), *sample[2:])
        return sample
