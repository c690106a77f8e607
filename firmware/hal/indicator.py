"""Indicators of three colours: three pins, or one NeoPixel (WS2812). Loaded where there is one.

`set(colour)` takes 0 for dark, else a sum of red 4, green 2, blue 1. A NeoPixel's bits are sent
with interrupts off (30 us), so it is written to when it changes only.
"""

from .outputs import Line

_NAMES = ("red", "green", "blue")
_BRIGHT = 64  # of 255


class Rgb:
    def __init__(self, spec):
        """`spec`: {"red": {"pin": 1, "active": 1}, "green": ..., "blue": ...}."""
        self._lines = [Line(spec[name], False) for name in _NAMES]

    def set(self, colour):
        for i in range(3):
            self._lines[i].set(colour >> 2 - i & 1)


class Pixel:
    def __init__(self, strip):
        self._strip = strip
        self.set(0)

    def set(self, colour):
        self._strip[0] = tuple([_BRIGHT * (colour >> 2 - i & 1) for i in range(3)])
        self._strip.write()


def open_indicator(spec):
    """The indicator of an EVSE of board.json: `rgb`, or `neopixel` with its `pin`."""
    if "rgb" in spec:
        return Rgb(spec["rgb"])
    from machine import Pin
    from neopixel import NeoPixel

    return Pixel(NeoPixel(Pin(spec["neopixel"]["pin"]), 1))
