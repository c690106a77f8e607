"""A meter's pulse output (S0, IEC 62053-31) as a meter: bus and reading interface in one.

Theory: a pulse is 1000 / imp_per_kwh Wh. Energy is the count of all pulses ever x 1000 //
imp_per_kwh, one division of the total, so nothing drifts. Power is the time between pulses, and
never more than the time since the last one allows.

Counting: `machine.Counter` (over the chip's PCNT, MicroPython 1.26 and newer, not on the C3)
counts while nothing else runs. Without one, interrupts of the pin do. They are soft: a queue of
QUEUE holds what comes while the firmware is held up in one C call, and what comes on top of that
is lost without a sign. So a connection that can make more than QUEUE pulses in STALL_MS is
refused. Two edges that S0 keeps at least SPACING_MS apart are not two pulses.

Plausible: what came faster than the connection can take at PERCENT of its rating is noise. All
that came since the last reading is dropped then, counted in `dropped`, and the reading fails.

Kept: in RTC memory at every reading, which survives all but a loss of power, and in a file
every SAVE_WH, `demand` (so at each start and stop) and after IDLE_MS without a pulse. The greater
of both is gone on with, or what the ledger has on record where that is more: `floor`; so no record
is ever taken back. What a reset loses is at most `lost_max_wh`: SAVE_WH, a pulse more, and
what the connection can take in BLIND_S while nobody counts. It is a bound: nobody is billed for
it, and it is not made up for. When the file cannot be written, readings fail.

Limits: a broken wire looks like no load. There is no serial number. The counter's filter ends at
12.8 us and the interrupt has none: contacts that bounce need an RC filter at the pin. Shown
with stubs only: the counter, its filter, the queue of interrupts, RTC memory on a chip.
"""

import machine
from wattlock.errors import ConfigError, StorageError

from . import rtc
from .flash import Flash

QUEUE = 8  # ESP32 port: soft interrupts that wait for their turn
STALL_MS = 1000
SPACING_MS = 50  # at least 30 ms on and 30 ms off, less what the clock may be off
PERCENT = 150
SAVE_WH = 50
IDLE_MS = 60_000
BLIND_S = 3
_OLD_MS = 86_400_000  # ticks wrap, and tell spans of some days only
PERIOD_MS = 1000
_MAGIC = b"WLp"


class Edges:
    """Pulses by interrupt."""

    def __init__(self, pin, trigger, ticks_ms, ticks_diff, ticks_add):
        self._ms = ticks_ms
        self._diff = ticks_diff
        self._add = ticks_add
        self._count = self.dropped = 0
        self._looked_at = ticks_ms()
        self._edge_at = ticks_add(self._looked_at, -SPACING_MS)
        pin.irq(self._edge, trigger)

    def _edge(self, pin):
        now = self._ms()
        if 0 <= self._diff(now, self._edge_at) < SPACING_MS:  # below 0: some days
            self.dropped += 1
            return
        self._count += 1
        late = self._diff(now, self._looked_at)
        if late > SPACING_MS:
            # held up: it may have come at any time since the last look, but after the one before
            now = self._add(self._edge_at, SPACING_MS)
            if not 0 <= self._diff(now, self._looked_at) <= late:
                now = self._looked_at
        self._edge_at = now

    def value(self):
        self._looked_at = self._ms()
        return self._count


class Pulses:
    """The meter. `counter.value()` counts since the start. `kept`: `load()` gives the pulses from
    before and how many of them are in the file; `keep(count)` keeps them over resets,
    `save(count)` over cuts, or raises StorageError."""

    key = "pulse"
    serial = ""
    export_wh = None
    rolls_wh = ()

    def __init__(self, counter, imp_per_kwh, rating_w, kept, ticks_diff):
        self._counter = counter
        self._imp = imp_per_kwh
        self._kept = kept
        self._diff = ticks_diff
        self._pulse_wms = 3_600_000_000 // imp_per_kwh  # power x time of one pulse, in W ms
        self._least_ms = max(self._pulse_wms * 100 // (rating_w * PERCENT), 1)
        self.step_wh = -(-1000 // imp_per_kwh)
        self._step = max(SAVE_WH * imp_per_kwh // 1000, 1)
        self.lost_max_wh = (
            -(-(self._step + 1) * 1000 // imp_per_kwh) + -(-rating_w * BLIND_S // 3600)
        )
        self._total, self._saved = kept.load()
        self._seen = 0
        self._fresh = 0  # pulses since the last reading
        self._pulsed_at = self._begun_at = None
        self.energy_wh = self.power_w = None
        self.readings = self.at = self.failed = self.error = self.dropped = 0
        self.wanted = True

    def floor(self, register_wh):
        """At least so much was told already (the ledger's durable register), and it was counted:
        go on from there. Before the first turn."""
        if register_wh is not None:
            self._total = max(self._total, -(-register_wh * self._imp // 1000))

    def demand(self):
        """A fresh reading, kept in the file."""
        self.wanted = True

    def turn(self, now):
        """One step, never a wait but for the file."""
        count = self._counter.value()
        pulses = count - self._seen
        if pulses:
            self._seen = count
            self._fresh += pulses
            if self._pulsed_at is not None:
                took_ms = max(self._diff(now, self._pulsed_at), 1)
                self.power_w = self._pulse_wms // took_ms * pulses
            self._pulsed_at = now
        if self._begun_at is None:
            self._begun_at = now
        elif not self.wanted and self._diff(now, self.at) < PERIOD_MS:
            return
        self._read(now)

    def _read(self, now):
        took_ms = self._diff(now, self._begun_at)
        self._begun_at = self.at = now
        fresh, self._fresh = self._fresh, 0
        if fresh > took_ms // self._least_ms + 2:
            self.dropped += fresh
            self.power_w = None
            self.failed += 1
            return
        total = self._total + fresh
        idle_ms = took_ms if self._pulsed_at is None else self._diff(now, self._pulsed_at)
        if self._pulsed_at is not None and idle_ms:
            most_w = self._pulse_wms // idle_ms
            if self.power_w is not None and self.power_w > most_w:
                self.power_w = most_w
        try:
            if total != self._total:
                self._total = total
                self._kept.keep(total)
            unsaved = total - self._saved
            if unsaved and (self.wanted or unsaved >= self._step or idle_ms >= IDLE_MS):
                self._kept.save(total)
                self._saved = total
        except StorageError:
            self.failed += 1
            return
        if idle_ms > _OLD_MS:
            self._pulsed_at = None
            self.power_w = 0
        self.wanted = False
        imp = self._imp
        self.energy_wh = total // imp * 1000 + total % imp * 1000 // imp
        self.failed = 0
        self.readings += 1


class Kept:
    """A count in RTC memory and in a file, as a row of `rtc` each."""

    def __init__(self, pin, files):
        self._name = str(pin)
        self._magic = _MAGIC + bytes((pin,))
        self._files = files

    def load(self):
        saved = 0
        if self._name in self._files.names():
            saved = rtc.value(self._files.read(self._name, 0, 16), self._magic) or 0
        return max(rtc.read(self._magic) or 0, saved), saved

    def keep(self, count):
        rtc.write(self._magic, count)

    def save(self, count):
        self._files.create(self._name, rtc.row(self._magic, count))


def _counter(number, spec, most_hz_1000, at):
    import time

    Pin = machine.Pin
    pin = Pin(spec["pin"], Pin.IN)
    if "pull" in spec:
        pin.init(Pin.IN, Pin.PULL_UP if spec["pull"] == "up" else Pin.PULL_DOWN)
    active = spec.get("active", 1)
    if hasattr(machine, "Counter"):
        Counter = machine.Counter
        return Counter(
            number, pin, edge=Counter.RISING if active else Counter.FALLING, filter_ns=12_800
        )
    if most_hz_1000 * STALL_MS > QUEUE * 1000_000:
        raise ConfigError(
            "%s: %d.%d pulses a second at full load are too many for this chip, which counts %d "
            "at most; take a smaller imp_per_kwh, or a chip and MicroPython with machine.Counter"
            % (at, most_hz_1000 // 1000, most_hz_1000 % 1000 // 100, QUEUE * 1000 // STALL_MS)
        )
    trigger = Pin.IRQ_RISING if active else Pin.IRQ_FALLING
    return Edges(pin, trigger, time.ticks_ms, time.ticks_diff, time.ticks_add)


def open_pulse(config, spec, rating_w, number=0):
    """The meter on the pin that board.json describes by `spec` ("pin", "active", "pull"), with
    config's "imp_per_kwh"; `number`: of the counter on the chip."""
    from time import ticks_diff

    imp = config["imp_per_kwh"]
    most_hz_1000 = rating_w * imp // 3600
    counter = _counter(number, spec, most_hz_1000, "config.buses: imp_per_kwh %d" % imp)
    return Pulses(counter, imp, rating_w, Kept(spec["pin"], Flash("/pulses")), ticks_diff)
