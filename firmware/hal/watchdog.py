"""The watchdog: once started it cannot be stopped, but making it anew widens it.

Fed by the loop's supervisor only. `widen` gives a person at the REPL, or a deploy, two minutes;
the reset that follows is theirs.
"""

from machine import WDT

from . import rtc


class Watchdog:
    def __init__(self, timeout_ms):
        self._wdt = WDT(timeout=timeout_ms)
        self.feed = self._wdt.feed


def widen():
    WDT(timeout=120000)
    rtc.leave(b"hard")
