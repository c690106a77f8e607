"""Ticks, uptime, and a time that outlives a reset in the RTC.

The RTC runs on over every reset that keeps its power; RTC memory holds a breadcrumb (magic, unix
ms when it was kept, CRC-32) that tells whether the RTC was ever set from the gateway. The epoch is
1970 on some ports and 2000 on others: `time.gmtime(0)` tells.

Limits: the RTC shows seconds; between resets it is taken to drift by 0.1 %.
"""

import time
from binascii import crc32

from machine import RTC

_MAGIC = b"WLt1"


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


def keep(unix_ms):
    """Set the RTC and leave the breadcrumb."""
    t = time.gmtime((unix_ms - _epoch_ms()) // 1000)
    RTC().datetime((t[0], t[1], t[2], t[6], t[3], t[4], t[5], unix_ms % 1000 * 1000))
    crumb = _MAGIC + unix_ms.to_bytes(8, "little")
    RTC().memory(crumb + crc32(crumb).to_bytes(4, "little") + RTC().memory()[16:])


def recall():
    """(unix ms, error ms) that the RTC kept over the reset, or None."""
    crumb = RTC().memory()[:16]  # what follows is hal.pulse's
    if len(crumb) != 16 or crumb[:4] != _MAGIC:
        return None
    if crc32(crumb[:12]) != int.from_bytes(crumb[12:], "little"):
        return None
    kept = int.from_bytes(crumb[4:12], "little")
    now = time.time() * 1000 + _epoch_ms()
    if now < kept:
        return None
    return now, 2000 + (now - kept) // 1000
