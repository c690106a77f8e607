"""Ticks, uptime, and a time that outlives a reset in the RTC.

The RTC runs on over every reset that keeps its power; a row in RTC memory (see `rtc`) tells
whether it shows the gateway's time, or another's that is good for certificates only. The epoch is
1970 on some ports and 2000 on others: `time.gmtime(0)` tells.

Limits: the RTC shows seconds; between resets it is taken to drift by 0.1 %.
"""

import time

from machine import RTC

from . import rtc

_KEPT = b"WLt1"


def _epoch_ms():
    return 946684800000 if time.gmtime(0)[0] == 2000 else 0


def since(ticks):
    """Ms since `ticks`, for spans under 6 days."""
    return time.ticks_diff(time.ticks_ms(), ticks)


class Uptime:
    """Ms since this object was made at boot; must be asked at least every 6 days."""

    def __init__(self):
        self._ms = 0
        self._ticks = time.ticks_ms()

    def ms(self):
        now = time.ticks_ms()
        self._ms += time.ticks_diff(now, self._ticks)
        self._ticks = now
        return self._ms


def shown_ms():
    """What the RTC shows, as unix ms."""
    return time.time() * 1000 + _epoch_ms()


def show(unix_ms, kept=0):
    """Set the RTC, for certificates: no later boot takes it for the time, unless it is `kept`."""
    rtc.write(_KEPT, 0)  # whatever happens in between: not believed
    t = time.gmtime((unix_ms - _epoch_ms()) // 1000)
    RTC().datetime((t[0], t[1], t[2], t[6], t[3], t[4], t[5], unix_ms % 1000 * 1000))
    rtc.write(_KEPT, kept)


def keep(unix_ms):
    """Set the RTC to the gateway's time, for the next boot as well."""
    show(unix_ms, unix_ms)


def recall():
    """(unix ms, error ms) that the RTC kept over the reset, or None."""
    kept = rtc.read(_KEPT)
    now = shown_ms()
    if not kept or now < kept:
        return None
    return now, 2000 + (now - kept) // 1000
