"""The pins of one EVSE: contactor, connector lock, indicator, and what is seen of them.

Pins and their active levels come from board.json. Only `contactor` and `plugged` are required; an
input that a board does not have reads None where that is allowed, False otherwise. The lock's pin
is left alone until the first `lock()`: after a reset nobody knows yet whether it must hold.
"""

from machine import Pin


class Line:
    """One pin with its active level."""

    def __init__(self, spec, first=None):
        """An input, or with `first` (bool) an output that begins so."""
        self._active = active = spec.get("active", 1)
        if first is None:
            self._pin = Pin(spec["pin"], Pin.IN)
            if "pull" in spec:
                self._pin.init(Pin.IN, Pin.PULL_UP if spec["pull"] == "up" else Pin.PULL_DOWN)
        else:
            self._pin = Pin(spec["pin"], Pin.OUT, value=active if first else 1 - active)

    def get(self):
        return self._pin.value() == self._active

    def set(self, on):
        self._pin.value(self._active if on else 1 - self._active)


class Outputs:
    def __init__(self, spec):
        self._lock_spec = spec.get("lock")
        self.has_lock = "lock" in spec
        self._contactor = Line(spec["contactor"], False)
        self._shown = 0
        self._led = None
        if "led" in spec:
            self._led = Line(spec["led"], False)
        elif "rgb" in spec or "neopixel" in spec:
            from .indicator import open_indicator

            self._led = open_indicator(spec)
        self._lock = None
        self._inputs = {}
        for name in ("plugged", "ready", "fault", "contactor_feedback", "lock_feedback"):
            if name in spec:
                self._inputs[name] = Line(spec[name])

    def _seen(self, name, missing):
        line = self._inputs.get(name)
        return missing if line is None else line.get()

    def contactor(self, close):
        self._contactor.set(close)

    def lock(self, hold):
        if self._lock is not None:
            self._lock.set(hold)
        elif self.has_lock:
            self._lock = Line(self._lock_spec, hold)

    def led(self, colour):
        """0 dark, else a sum of red 4, green 2, blue 1; a lamp of one colour is lit by any."""
        if colour != self._shown and self._led is not None:
            self._shown = colour
            self._led.set(colour)

    def plugged(self):
        """Is a vehicle plugged in (control pilot in state B, C or D)?"""
        return self._seen("plugged", True)

    def ready(self):
        """Does the vehicle ask for energy (state C or D)? Without the input: whenever plugged."""
        return self._seen("ready", True)

    def fault(self):
        """Does the safety controller report a fault (state E or F)?"""
        return self._seen("fault", False)

    def closed(self):
        """Is the contactor seen closed? None without feedback."""
        return self._seen("contactor_feedback", None)

    def locked(self):
        """Is the connector seen locked? None without feedback."""
        return self._seen("lock_feedback", None)

    def safe(self):
        """Open the contactor, whatever else is wrong. The lock stays as it is."""
        self._contactor.set(False)
