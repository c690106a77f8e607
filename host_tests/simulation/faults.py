"""Faults: each says when it happens and what it does, as a script that yields its waits (ms).

A new fault is one small class here: give it `strike`, and the registry has it. A fault puts right
what it broke before it ends, and ends soon after peace has begun (`until_over`). One that blinds
the meter says so to the checker (`disturbed`), which then asks only what can still be true.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, ClassVar

from .drivers import MINUTE_MS, press_estop
from .plan import HOUR_MS
from .plant import WMS_PER_WH, Outlet

if TYPE_CHECKING:
    from .world import Script, World

FAULTS: list[type[Fault]] = []


class Fault:
    weight: ClassVar[int] = 2

    def __init_subclass__(cls) -> None:
        FAULTS.append(cls)

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng

    def strike(self) -> Script:
        """One occurrence."""
        raise NotImplementedError

    def play(self) -> Script:
        """Occur now and then until peace."""
        while True:
            yield self.rng.randint(0, self.rng.choice((20_000, HOUR_MS)))
            if self.world.peace:
                return
            self.world.counts[f"fault {type(self).__name__}"] += 1
            self.world.touch()
            yield from self.strike()
            self.world.touch()

    def until_over(self, length_ms: int) -> Script:
        """Wait, but not past the beginning of peace."""
        end = self.world.now + length_ms
        while self.world.now < end and not self.world.peace:
            yield min(60_000, end - self.world.now)

    def until_charging(self) -> Script:
        """Wait until some contactor is closed, or peace begins."""
        while not self.world.peace and not any(o.closed for o in self.world.outlets.values()):
            yield 30_000

    def outlet(self) -> Outlet:
        return self.rng.choice(list(self.world.outlets.values()))


# -- power -------------------------------------------------------------------------------------


class PowerCut(Fault):
    """At any moment, for a moment or for long."""

    weight = 4

    def strike(self) -> Script:
        off_ms = self.rng.choice((300, 3000, 40_000, 8 * MINUTE_MS, 40 * MINUTE_MS))
        self.world.cut(off_ms, mains=self.rng.random() < 0.6, rtc_kept=self.rng.random() < 0.2)
        yield off_ms + 1000


class FlashCut(Fault):
    """In the middle of a write: at one of the next programs or erases, clean or torn."""

    weight = 8

    def strike(self) -> Script:
        device = self.world.device
        for _ in range(self.rng.choice((1, 3, 8))):
            if self.world.peace:
                break
            device.torn = self.rng.choice((None, "half", "bits"))
            device.cut_in = self.rng.choice((self.rng.randint(0, 12), self.rng.randint(0, 150)))
            yield self.rng.randint(1000, 20 * MINUTE_MS)
        device.cut_in = None


class ContactorCut(Fault):
    """At the very moment at which a contactor is driven."""

    def strike(self) -> Script:
        closing = self.rng.random() < 0.7

        def wire(what: str, outlet: Outlet, close: bool) -> bool:
            return close == closing and close != outlet.coil

        self.world.tripwires.append(wire)
        yield from self.until_over(HOUR_MS)
        if wire in self.world.tripwires:
            self.world.tripwires.remove(wire)


class BootStorm(Fault):
    """Power that comes and goes, each time for less than a boot needs, or a little more."""

    def strike(self) -> Script:
        for _ in range(self.rng.randint(2, 10)):
            if self.world.peace:
                return
            self.world.cut(self.rng.randint(200, 3000), mains=True)
            yield 3000 + self.rng.randint(0, 8000)


class Reset(Fault):
    """Watchdog, panic, a soft reset: power and RTC stay."""

    weight = 3

    def strike(self) -> Script:
        self.world.restart(self.rng.choice(("watchdog", "soft", "hard")))
        yield 1000


# -- flash -------------------------------------------------------------------------------------


class FlashFails(Fault):
    """Programs, erases or reads give errors for a while."""

    def strike(self) -> Script:
        device = self.world.device
        how = self.rng.choice(("program", "erase", "read", "all"))
        within = self.rng.choice((0, 8, 40))
        self.world.checker.was_unreadable |= how in ("read", "all")
        device.fail_in = (self.rng.randint(0, within), how)
        self.world.note("flash: %s fails after %d operations", *reversed(device.fail_in))
        if not within:
            device.failing = how
        yield from self.until_over(self.rng.choice((2000, MINUTE_MS, 20 * MINUTE_MS)))
        device.failing = device.fail_in = None
        self.world.checker.flash_well_at = self.world.now
        self.world.note("flash: well again")


class FlashFull(Fault):
    """Somebody else's file takes all the room but a little."""

    weight = 1

    def strike(self) -> Script:
        world = self.world
        checker = world.checker
        checker.flash_full = True
        blocks = world.fill_flash(self.rng.randint(0, 6))
        world.note("flash: filled with %d blocks", blocks)
        yield from self.until_over(self.rng.choice((MINUTE_MS, HOUR_MS)))
        while not world.clear_flash():  # the board is in the middle of a cut
            yield 1000
        checker.flash_full = False
        checker.flash_well_at = world.now
        world.note("flash: room again")


# -- link --------------------------------------------------------------------------------------


class LinkOutage(Fault):
    """No path for minutes or hours, noticed or not."""

    weight = 3

    def strike(self) -> Script:
        self.world.link.go_down(self.rng.random() < 0.6)
        yield from self.until_over(self.rng.choice((20_000, 5 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS)))
        self.world.link.come_up()


class LossyLink(Fault):
    """Loss, repetition, and delays that reorder."""

    weight = 4

    def strike(self) -> Script:
        link = self.world.link
        link.loss = self.rng.choice((0.0, 0.1, 0.5))
        link.duplicate = self.rng.choice((0.0, 0.3))
        link.delay_ms = self.rng.choice(((5, 80), (5, 2500), (1000, 15_000)))
        how = link.loss, link.duplicate, *link.delay_ms
        self.world.note("link: loss %s, repeats %s, %d to %d ms", *how)
        yield from self.until_over(self.rng.choice((5 * MINUTE_MS, HOUR_MS)))
        link.loss = link.duplicate = 0.0
        link.delay_ms = (5, 80)


class OneWay(Fault):
    """One direction is swallowed; the link looks well."""

    def strike(self) -> Script:
        link = self.world.link
        link.deaf_up = self.rng.random() < 0.5
        link.deaf_down = not link.deaf_up
        self.world.note("link: deaf %s", "up" if link.deaf_up else "down")
        yield from self.until_over(self.rng.choice((MINUTE_MS, 20 * MINUTE_MS)))
        link.deaf_up = link.deaf_down = False


class Attacker(Fault):
    """Repeats, reflects, forges, retains, and keeps what earlier boots were told."""

    weight = 4

    def strike(self) -> Script:
        link, rng = self.world.link, self.rng
        old = [m for way, m in link.tape if way == "down"]
        for _ in range(rng.randint(3, 15)):
            if self.world.peace:
                break
            old = (old + [m for way, m in link.tape if way == "down"])[-400:]
            if old:
                message = rng.choice(old)
                what = rng.randint(0, 5)
                if what == 0:
                    link.whisper(message)
                elif what == 1:
                    link.whisper(rng.choice([m for _, m in link.tape]))
                elif what == 2:
                    at = rng.randrange(len(message))
                    link.whisper(message[:at] + rng.randbytes(1) + message[at + 1 :])
                elif what == 3:
                    link.whisper(message, retained=True)
                elif what == 4:
                    link.whisper(self._invent(message))
                else:
                    link.retained = message
                self.world.counts["messages of the attacker"] += 1
            yield rng.choice((300, 5000, 3 * MINUTE_MS))
        link.retained = None


    def _invent(self, message: bytes) -> bytes:
        """A command of the attacker's own, right in everything but the key."""
        gateway = self.world.gateway
        head = json.loads(message[65:])
        head["sid"], head["n"] = gateway.sid, gateway.unix_ms + 10**6
        token = {"country_code": "XX", "party_id": "BAD", "type": "RFID", "uid": "BAD"}
        head["commands"] = [
            {
                "id": self.rng.randbytes(16).hex(),
                "type": "START_SESSION",
                "exp": gateway.unix_ms + 60_000,
                "data": {"evse": self.outlet().n, "token": token},
            }
        ]
        return self.rng.randbytes(32).hex().encode() + b"\n" + json.dumps(head).encode()


class HeldBack(Fault):
    """Somebody stops all that comes down and lets the first of it through when it is stale."""

    weight = 2

    def strike(self) -> Script:
        link = self.world.link
        link.deaf_down = True
        link.held_back.clear()
        self.world.note("link: what comes down is held back")
        yield from self.until_over(self.rng.choice((40_000, 5 * MINUTE_MS, HOUR_MS)))
        for message in list(link.held_back):
            link.whisper(message)
            yield 400
        link.deaf_down = False


class GatewayDown(Fault):
    def strike(self) -> Script:
        self.world.gateway.running = False
        self.world.note("gateway: down")
        yield from self.until_over(self.rng.choice((MINUTE_MS, HOUR_MS)))
        self.world.gateway.running = True
        self.world.note("gateway: back")


class OldDatabase(Fault):
    """The operator restores a backup."""

    weight = 1

    def strike(self) -> Script:
        db = self.world.gateway.backup()
        yield from self.until_over(self.rng.choice((MINUTE_MS, HOUR_MS)))
        self.world.gateway.restore(db)


# -- meter -------------------------------------------------------------------------------------


class MeterFault(Fault):
    """Base of the faults of meters: says to the checker from when to when. Often in a charge."""

    weight = 0

    def strike(self) -> Script:
        if self.rng.random() < 0.6:
            yield from self.until_charging()
        outlet = self.outlet()
        outlet.settle()
        begun = self.world.now
        self.world.checker.disturbed(outlet.n, begun, None)
        self.world.note("meter %d: %s", outlet.n, type(self).__name__)
        self.world.touch()
        yield from self.disturb(outlet)
        self.world.note("meter %d: %s over", outlet.n, type(self).__name__)
        self.world.checker.disturbed(outlet.n, begun, self.world.now)

    def disturb(self, outlet: Outlet) -> Script:
        raise NotImplementedError


class MeterSilence(MeterFault):
    weight = 2

    def disturb(self, outlet: Outlet) -> Script:
        outlet.meter.silent = True
        yield from self.until_over(self.rng.choice((3000, 50_000, 3 * MINUTE_MS, HOUR_MS)))
        outlet.meter.silent = False


class MeterSlow(MeterFault):
    weight = 1

    def disturb(self, outlet: Outlet) -> Script:
        usual = outlet.meter.delay_ms
        outlet.meter.delay_ms = (2000, 7000)
        yield from self.until_over(10 * MINUTE_MS)
        outlet.meter.delay_ms = usual


class MeterGlitch(MeterFault):
    """One absurd reading, or none: far up, zero, far down, not available."""

    weight = 2

    def disturb(self, outlet: Outlet) -> Script:
        for _ in range(self.rng.randint(1, 4)):
            shown = outlet.meter.show_wh()
            outlet.meter.glitches.append(
                self.rng.choice((None, 0, shown + 5_000_000, shown // 2, 0xFFFFFFFF))
            )
            yield 20_000
            outlet.meter.glitches.clear()


class MeterFrozen(MeterFault):
    """Its registers stand still, and mostly all else that it shows, too."""

    weight = 2

    def disturb(self, outlet: Outlet) -> Script:
        meter = outlet.meter
        meter.frozen, meter.frozen_wms = meter.sample(outlet.power_w()), meter.register_wms
        meter.frozen_power = self.rng.random() < 0.7
        yield from self.until_over(self.rng.choice((3000, 30_000, 10 * MINUTE_MS, HOUR_MS)))
        outlet.settle()
        self.world.note("meter %d: shows %s, thaws", outlet.n, meter.frozen)
        meter.frozen = None
        yield 20_000


class MeterRollback(MeterFault):
    """The meter forgot what it had not saved yet."""

    weight = 1

    def disturb(self, outlet: Outlet) -> Script:
        back = self.rng.choice((1, 30, 900)) * WMS_PER_WH
        outlet.meter.register_wms = max(outlet.meter.register_wms - back, 0)
        yield 20_000


class MeterSwap(MeterFault):
    """An electrician puts in another one."""

    weight = 1

    def disturb(self, outlet: Outlet) -> Script:
        meter = outlet.meter
        meter.serial = f"M{outlet.n}{self.rng.randint(1, 99):02d}"
        meter.register_wms = self.rng.choice((0, 55_555, 77_000_000)) * WMS_PER_WH
        yield 20_000


class FeedsBack(Fault):
    """A car gives instead of taking, for some minutes; nothing is wrong with that."""

    weight = 3

    def strike(self) -> Script:
        yield from self.until_charging()
        outlet = self.outlet()
        car = outlet.car
        if car is None or car.power_w < 0:
            return
        took_w = car.power_w
        outlet.set_power(-self.rng.randint(500, took_w))
        self.world.note("car %d: gives %d W", outlet.n, -car.power_w)
        yield from self.until_over(self.rng.choice((20_000, 5 * MINUTE_MS, 20 * MINUTE_MS)))
        if outlet.car is car and car.power_w < 0:
            outlet.set_power(took_w)


# -- iron --------------------------------------------------------------------------------------


class Welded(Fault):
    weight = 1

    def strike(self) -> Script:
        outlet = self.outlet()
        outlet.welded = True
        self.world.checker.was_welded.add(outlet.n)
        self.world.note("contactor %d: welds at its next closing", outlet.n)
        yield from self.until_over(HOUR_MS)
        outlet.welded = False
        outlet.move_contactor(outlet.coil)


class StuckOpen(Fault):
    weight = 1

    def strike(self) -> Script:
        outlet = self.outlet()
        outlet.stuck_open = True
        self.world.note("contactor %d: does not close", outlet.n)
        yield from self.until_over(20 * MINUTE_MS)
        outlet.stuck_open = False
        outlet.move_contactor(outlet.coil)


class LockStuck(Fault):
    weight = 1

    def strike(self) -> Script:
        outlet = self.outlet()
        outlet.lock_stuck = True
        self.world.checker.was_lock_stuck.add(outlet.n)
        self.world.note("lock %d: stuck", outlet.n)
        yield from self.until_over(20 * MINUTE_MS)
        outlet.lock_stuck = False
        outlet.drive_lock(outlet.lock_wanted)


class PilotFault(Fault):
    def strike(self) -> Script:
        outlet = self.outlet()
        outlet.pilot_fault = True
        self.world.note("pilot %d: fault", outlet.n)
        self.world.touch()
        self.world.checker.must_open(outlet, "pilot fault")
        yield from self.until_over(self.rng.choice((2000, 5 * MINUTE_MS)))
        outlet.pilot_fault = False


class EmergencyStop(Fault):
    weight = 1

    def strike(self) -> Script:
        yield from press_estop(self.world, self.rng.randint(500, 20_000))


def choose(world: World, rng: Random) -> list[Fault]:
    """The faults of this story."""
    kinds = [kind for kind in FAULTS if kind.weight]
    chosen = rng.choices(kinds, [kind.weight for kind in kinds], k=world.plan.faults)
    return [kind(world, world.plan.random(f"fault {i}")) for i, kind in enumerate(chosen)]
