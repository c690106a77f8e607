"""`machine` of an ESP32, as much of it as Wattlock uses, over `wires`.

One source for pytest and the VM: `wires` is what differs. Names, values and errors are the ESP32
port's; what is missing here raises AttributeError rather than pretending.
"""

import io

import wires

PWRON_RESET = 1
HARD_RESET = 2
WDT_RESET = 3
DEEPSLEEP_RESET = 4
SOFT_RESET = 5


def reset():
    wires.hard_reset()


def soft_reset():
    raise SystemExit


def reset_cause():
    return wires.cause()


def unique_id():
    return wires.unique_id()


def freq(*hz):
    return 240000000


class Pin:
    IN = 1
    OUT = 3
    OPEN_DRAIN = 7
    PULL_DOWN = 1
    PULL_UP = 2
    IRQ_RISING = 1
    IRQ_FALLING = 2

    def __init__(self, id, mode=None, pull=None, value=None, drive=None, hold=None):
        if isinstance(id, Pin):
            id = id.id
        if not 0 <= id <= 48:
            raise ValueError("invalid pin")
        self.id = id
        self.init(mode, pull, value)

    def init(self, mode=None, pull=None, value=None, drive=None, hold=None):
        if mode is not None and mode != self.IN and 34 <= self.id <= 39:
            raise ValueError("pin can only be input")
        if value is not None:
            wires.drive(self.id, 1 if value else 0)  # before the direction, as the port does
        if mode is not None:
            wires.direct(self.id, mode)

    def value(self, *level):
        if not level:
            return wires.level(self.id)
        wires.drive(self.id, 1 if level[0] else 0)

    __call__ = value

    def on(self):
        wires.drive(self.id, 1)

    def off(self):
        wires.drive(self.id, 0)

    def toggle(self):
        wires.drive(self.id, 1 - wires.level(self.id))

    def irq(self, handler=None, trigger=IRQ_RISING | IRQ_FALLING):
        self._handler = handler
        self._trigger = trigger
        self._level = wires.level(self.id)
        self._pulses = wires.pulses(self.id)
        wires.watch(self)

    def look(self):
        """Run the interrupt handler for what happened since; at most 8 calls, the port's queue."""
        handler = self._handler
        if not handler:
            return
        level = wires.level(self.id)
        if level != self._level:
            self._level = level
            if self._trigger & (self.IRQ_RISING if level else self.IRQ_FALLING):
                handler(self)
        count = wires.pulses(self.id)
        edges = (self._trigger & 1) + (self._trigger >> 1 & 1)
        for _ in range(min(8, (count - self._pulses) * edges)):
            handler(self)
        self._pulses = count


class Counter:
    """A pulse counter in hardware (MicroPython 1.26 and newer; not on the C3)."""

    RISING = 1
    FALLING = 2

    def __init__(self, id, src=None, edge=RISING, direction=None, filter_ns=0):
        self._pin = src.id
        self.value(0)

    def value(self, *count):
        now = wires.pulses(self._pin)
        before = now - self._base if not count else 0
        if count:
            self._base = now - count[0]
        return before


class UART(io.IOBase):
    def __init__(self, id, baudrate=115200, bits=8, parity=None, stop=1, **more):
        self.id = id
        self._port = None
        self.init(baudrate, bits, parity, stop, **more)

    def init(
        self, baudrate=115200, bits=8, parity=None, stop=1, tx=None, rx=None, txbuf=256, rxbuf=256,
        timeout=0, timeout_char=0, rts=None, cts=None, invert=0, flow=0,
    ):
        self._timeout_ms = timeout // 10 * 10  # the port counts in ticks of 10 ms
        if self._port:
            self._port.close()
        self._port = wires.port(self.id, (baudrate, bits, parity, stop))
        self.any = self._port.any
        self.ioctl = self._port.ioctl

    def deinit(self):
        self._port.close()

    def _wait(self):
        n = self.any()
        if n or not self._timeout_ms:
            return n
        end = wires.ticks_add(wires.ticks_ms(), self._timeout_ms)
        while not n and wires.ticks_diff(end, wires.ticks_ms()) > 0:
            wires.sleep_ms(1)
            n = self.any()
        return n

    def read(self, n=-1):
        k = self._wait()
        if not k:
            return None
        return self._port.read(k if n < 0 or n > k else n)

    def readinto(self, buf, n=-1):
        if not self._wait():
            return None
        return self._port.readinto(buf if n < 0 or n >= len(buf) else memoryview(buf)[:n])

    def readline(self):
        line = b""
        while self._wait() and line[-1:] != b"\n":
            line += self._port.read(1)
        return line or None

    def write(self, buf):
        return self._port.write(buf)

    def flush(self):
        pass

    def txdone(self):
        return True


class WDT:
    def __init__(self, id=0, timeout=5000):
        wires.watchdog(timeout)

    def feed(self):
        wires.feed()


class RTC:
    def memory(self, *data):
        if not data:
            return wires.memory()
        if len(data[0]) > 2048:
            raise ValueError("buffer too long")
        wires.set_memory(data[0])

    def datetime(self, *date):
        """(year, month, day, weekday, hour, minute, second, microsecond); weekday is computed."""
        if not date:
            ms = wires.unix_ms()
            days, s = divmod(ms // 1000, 86400)
            year, month, day = _civil(days)
            return (
                year, month, day, (days + 3) % 7, s // 3600, s // 60 % 60, s % 60, ms % 1000 * 1000
            )
        year, month, day, _, hour, minute, second, us = date[0]
        s = ((_days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second
        wires.set_unix_ms(s * 1000 + us // 1000)

    def init(self, date):
        self.datetime(date)


def _days(year, month, day):
    """Days from 1970-01-01 (proleptic Gregorian; the year begins in March)."""
    if month < 3:
        year -= 1
        month += 12
    leap_days = year // 4 - year // 100 + year // 400
    return 365 * year + leap_days + (153 * month - 457) // 5 + day - 719469


def _civil(days):
    year = 1970 + days // 366
    while _days(year + 1, 1, 1) <= days:
        year += 1
    month = 12
    while _days(year, month, 1) > days:
        month -= 1
    return year, month, days - _days(year, month, 1) + 1
