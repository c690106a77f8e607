"""The board's end of the page of memory that the VM maps: `host_tests/stubs/vm/wires.py`.

The layout is written down once, there; `Wires` reads the constants from that source.
"""

import mmap
import re
from pathlib import Path

from tools import paths

_SOURCE = paths.STUBS / "vm" / "wires.py"
LAYOUT: dict[str, int] = {
    name.lower(): int(value)
    for name, value in re.findall(r"^_([A-Z_]+) = const\((\d+)\)", _SOURCE.read_text(), re.M)
}
PINS = 64
RTC_BYTES = 2048
TICKS_PERIOD = 1 << 30  # of time.ticks_ms on a 32-bit MicroPython


class Wires:
    """32-bit words by name (`wires["wdt_ms"]`), and byte areas (`inputs`, `outputs`, `modes`)."""

    def __init__(self, path: Path) -> None:
        size = LAYOUT["size"]
        if not path.exists() or path.stat().st_size != size:
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), size)
        view = memoryview(self._page)
        self._words = view[: 4 * LAYOUT["words"]].cast("i")
        self.inputs = self._area(view, "inputs", PINS)
        self.outputs = self._area(view, "outputs", PINS)
        self.modes = self._area(view, "modes", PINS)
        self.contactors = self._area(view, "contactor", PINS)
        self.unique_id = self._area(view, "uid", 6)

    @staticmethod
    def _area(view: memoryview, name: str, size: int) -> memoryview:
        start = LAYOUT[name]
        return view[start : start + size]

    def __getitem__(self, name: str) -> int:
        return self._words[LAYOUT[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[LAYOUT[name]] = value

    def add_pulses(self, pin: int, count: int) -> None:
        self._words[LAYOUT["pulses"] + pin] += count

    def lose_rtc_memory(self) -> None:
        self["rtc_len"] = 0
        start = LAYOUT["rtc"]
        self._page[start : start + RTC_BYTES] = bytes(RTC_BYTES)
