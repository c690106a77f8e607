"""`select` whose waits end when the board's own time says so, also when that time skips ahead."""

from uselect import POLLERR, POLLHUP, POLLIN, POLLOUT  # noqa: F401
from wires import select as _native
from wires import ticks_add, ticks_diff, ticks_ms, turn

_SLICE_MS = 20


class poll:
    def __init__(self):
        native = self._native = _native.poll()
        self.register = native.register
        self.unregister = native.unregister
        self.modify = native.modify
        self._first = None

    def ipoll(self, timeout=-1, flags=0):
        end = ticks_add(ticks_ms(), timeout) if timeout > 0 else 0
        while True:
            turn()
            ms = timeout
            if ms > 0:
                ms = ticks_diff(end, ticks_ms())
                if ms < 0:
                    ms = 0
            last = ms == 0
            if ms < 0 or ms > _SLICE_MS:
                ms = _SLICE_MS
            for event in self._native.ipoll(ms, flags):
                self._first = event
                return self
            if last:
                self._first = None
                return self

    def __iter__(self):
        return self

    def __next__(self):
        first = self._first
        if first is not None:
            self._first = None
            return first
        for event in self._native:
            return event
        raise StopIteration

    def poll(self, timeout=-1, flags=0):
        return [tuple(event) for event in self.ipoll(timeout, flags)]
