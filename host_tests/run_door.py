"""Run by test_hal_door.py in a process of its own: boot.py and main.py of a board whose files are
in the folder argv[1], over the stubs. main.py takes apart what it has started with, so no test
may share its process.

Prints what the board prints, and at the end one JSON object: levels and directions of the pins,
the log of the wires, and how it ended. argv[2] is what happens in the 40th turn: a name of an
exception. argv[3] is when a further Ctrl-C comes, which the chip raises at the next branch, wait
or pin: `at once` or `in the wait` before the restart.
"""

import builtins
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "host_tests" / "stubs"), str(ROOT / "firmware")]

import wires  # noqa: E402  # pyright: ignore[reportMissingImports]

folder = sys.argv[1]
end = getattr(builtins, sys.argv[2])
further = sys.argv[3]
turns = 0
heard = True  # Ctrl-C is


def on_board(call):
    """The same function, with the board's absolute names."""

    def wrapped(*args, **more):
        name, *rest = args
        if isinstance(name, str) and name[:1] == "/":
            name = folder + name
            rest = [folder + a if call is rename else a for a in rest]
        return call(name, *rest, **more)

    return wrapped


def ctrl_c(when):
    global further
    if further == when:
        further = "came"
        raise KeyboardInterrupt


def sleep_ms(ms):
    global turns
    turns += 1
    if turns == 40:
        raise end("as told")
    if turns > 40:
        ctrl_c("at once")
    wires.sleep_ms(ms)


def sleep(seconds):
    assert heard
    ctrl_c("in the wait")
    wires.sleep_ms(1000 * int(seconds))


def drive(pin, level, drives=wires.drive):
    if turns == 40:
        ctrl_c("at once")
    drives(pin, level)


def kbd_intr(char):
    global heard
    heard = char == 3


for name, function in wires.time_functions().items():
    setattr(time, name, function)
time.sleep_ms = sleep_ms  # type: ignore[attr-defined]
time.sleep = sleep
wires.drive = drive
gc.threshold = lambda count: None  # type: ignore[attr-defined]
gc.mem_free = gc.mem_alloc = lambda: 0  # type: ignore[attr-defined]
sys.print_exception = traceback.print_exception  # type: ignore[attr-defined]
rename = os.rename
for name in ("mkdir", "listdir", "stat", "rename", "remove"):
    setattr(os, name, on_board(getattr(os, name)))
for n in (1, 2):
    wires.uarts[n] = wires.Script()
    wires.uarts[n].write = len  # a bus and a reader that nobody answers


class Simple:
    class MQTTException(Exception):
        pass

    class MQTTClient:
        def __init__(self, *args):
            pass

        def set_callback(self, f):
            pass

        def set_last_will(self, *args):
            pass


sys.modules["micropython"] = type(sys)("micropython")
sys.modules["micropython"].kbd_intr = kbd_intr  # type: ignore[attr-defined]
sys.modules["wattlock.native"] = None  # type: ignore[assignment]  # CPython has no viper
sys.modules["umqtt"] = type(sys)("umqtt")
sys.modules["umqtt"].simple = Simple  # type: ignore[attr-defined]

ended = "returned"
sources = {n: (ROOT / "firmware" / n).read_text() for n in ("boot.py", "main.py")}
builtins.open = on_board(open)  # type: ignore[assignment]
for name in sources:
    try:
        exec(compile(sources[name], name, "exec"), {"__name__": "__main__"})
    except wires.HardReset:
        ended = "reset"
    except KeyboardInterrupt:
        ended = "interrupted"
    if name == "boot.py":
        print(json.dumps({"after": "boot", "outputs": wires.outputs, "modes": wires.modes}))
for name in [name for name in sys.modules if name == "hal" or name.startswith("hal.")]:
    del sys.modules[name]  # what main.py forgot is of the next boot again
sys.path.insert(0, str(ROOT / "firmware"))
from hal import rtc  # noqa: E402

wires.state["cause"] = 2  # machine.HARD_RESET
report = {"outputs": wires.outputs, "modes": wires.modes, "log": wires.log, "ended": ended}
report["further"] = further
report["next_cause"] = rtc.cause()
print(json.dumps(report))
