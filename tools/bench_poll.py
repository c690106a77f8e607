"""A poll in instructions: the firmware's master beside micropython-modbus, in one run.

Both read the same ten registers over RTU in the same 32-bit VM, compiled alike to .mpy, from the
same UART in memory, which has another reply ready every time. callgrind counts the instructions
of the whole VM; the difference between a long run and a short one is what a poll costs, to the
instruction and in every run the same.

- "a read" is what both do: the request goes out, the reply comes in, its CRC is checked, the ten
  registers come out as ten integers. For micropython-modbus that is `read_input_registers`; here
  it is an exchange of the bus (`hal.rs485`) and `Meter.accept`. Nothing is kept from one to the
  next but the request's frame. This is what the budget is for.
- "a whole poll" is `Bus.turn` twice: with whose turn it is, when to retry, and the values as one
  complete reading that the agent sees. micropython-modbus has no such thing.
- "a whole poll over TCP" is the same from a connection in memory, in three turns.

The UART costs both sides some 5,000 instructions a read, which a board's UART does not. Bytes are
what a read allocates.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from typing import Any

from tools import build, paths, setup, shrink

BUDGET = 4  # times fewer instructions than the peer
SHORT, LONG = 20, 120
FOLDER = paths.BUILD / "bench"

MACHINE = """
from io import BytesIO

class Pin:
    OUT = 1

class UART:
    replies = ()

    def __init__(self, *args, **more):
        here = 0
        turn = -1
        replies = self.replies
        streams = [BytesIO(reply) for reply in replies]
        size = len(replies[0])

        def any():
            return here

        def write(frame):
            nonlocal here, turn
            here = size
            turn += 1

        def read():
            nonlocal here
            if here:
                here = 0
                return replies[turn & 3]

        def readinto(data):
            nonlocal here
            here = 0
            stream = streams[turn & 3]
            stream.seek(0)
            return stream.readinto(data)

        self.any, self.write, self.read, self.readinto = any, write, read, readinto

    def flush(self):
        pass
"""
START = """
import gc, sys
import machine
machine.UART.replies = {replies!r}
"""
COUNT = """
run(3)
gc.collect()
gc.disable()
used = gc.mem_alloc()
run(4)
print((gc.mem_alloc() - used) // 4, list(newest()))
run({times})
"""
PEER = """
from umodbus.serial import Serial
host = Serial(uart_id=1, pins=(1, 2), baudrate=115200)
read = None
def run(times):
    global read
    while times:
        times -= 1
        read = host.read_input_registers(1, 0, 10, signed=False)
def newest():
    return read
"""
OURS = """
from time import ticks_diff
from hal.rs485 import Rs485
from wattlock import modbus, registers
names = ["energy_import_wh", "energy_export_wh", "power_w", "power_import_w", "power_export_w",
         "current_l1_ma", "current_l2_ma", "current_l3_ma", "current_dc_ma", "frequency_mhz"]
rows = {name: [names.index(name), "u16"] for name in names}
meter = registers.Meter({"meter": "bench", "function": 4, "registers": rows}, names)
bus = Rs485(machine.UART(), None, modbus, ticks_diff)
bus.add(meter, 1, 1000)
now = 0
"""
POLL = """
bus.turn(0)  # the line rests at the start
def run(times):
    global now
    while times:
        times -= 1
        now += 1000
        bus.turn(now)
        bus.turn(now + 10)
def newest():
    return meter.values[:10]
run(2)
"""
TCP = """
from io import BytesIO
from hal.tcp import Tcp
class Connection:
    def __init__(self):
        turn = -1
        streams = [BytesIO(bytes((0, 0, 0, 0, 0, 23)) + reply[:-2])
                   for reply in machine.UART.replies]

        def write(frame):
            nonlocal turn
            turn += 1
            stream = streams[turn & 3]
            stream.seek(0)
            stream.write(frame, 2)  # its transaction
            stream.seek(0)

        def readinto(data):
            return streams[turn & 3].readinto(data)

        self.write, self.readinto = write, readinto

    def connected(self):
        return True

bus = Tcp(Connection, modbus, ticks_diff)
bus.add(meter, 1, 1000)
def run(times):
    global now
    while times:
        times -= 1
        now += 1000
        bus.turn(now)
        bus.turn(now + 10)
        bus.turn(now + 20)
def newest():
    return meter.values[:10]
run(2)
"""
READ = """
bus._poll = bus._polls[0]
meter.begin(False)
exchanges = bus._exchanges()
next(exchanges)
exchange = exchanges.send
block = meter.block
def run(times):
    while times:
        times -= 1
        exchange(0)
        if exchange(10) == 0:
            meter.accept(bus._data, bus._at)
        meter.block = block
        meter._next = 0
def newest():
    return meter._new[:10]
"""
PROGRAMS = {
    "micropython-modbus 2.3.7": PEER,
    "a read": OURS + READ,
    "a whole poll": OURS + POLL,
    "a whole poll over TCP": OURS + TCP,
}


class BenchError(Exception):
    """The measurement could not be made; the text says why."""


def registers(turn: int) -> list[int]:
    """The ten values of a reply; four replies take turns."""
    return [(6553 * i + 12_345 * turn + 7) & 0xFFFF for i in range(10)]


def reply(turn: int) -> bytes:
    """Slave 1 answers function 4, framed by a CRC that is computed here."""
    frame = bytes((1, 4, 20)) + struct.pack(">10H", *registers(turn))
    crc = 0xFFFF
    for byte in frame:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return frame + crc.to_bytes(2, "little")


def prepare(peer: bool) -> None:
    """Everything as in a slot, in FOLDER; the peer's code compiled as it is."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    config: dict[str, Any] = {"evses": []}
    for name, data in build.build("virtual", config).slot.items():
        target = FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if peer:
        (FOLDER / "umodbus").mkdir()
        for source in paths.UMODBUS.glob("*.py"):
            name = f"umodbus/{source.stem}.mpy"
            (FOLDER / name).write_bytes(build.compile_text(source.read_text(), name, source))
    (FOLDER / "machine.py").write_text(MACHINE)


def command(program: str, times: int) -> list[str]:
    text = START.format(replies=[reply(turn) for turn in range(4)]) + program
    text += COUNT.format(times=times)
    if program is not PEER:  # it reaches into compiled modules
        text = shrink.rename(text)
    return ["-X", "heapsize=1m", "-c", text]


def allocated(program: str) -> tuple[int, list[int]]:
    """Bytes that one read allocates, and what the last one gave."""
    done = subprocess.run(
        [paths.VM, *command(program, 1)],
        env={"MICROPYPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise BenchError(done.stdout + done.stderr)
    size, values = done.stdout.split(" ", 1)
    return int(size), [int(word) for word in re.findall(r"\d+", values)]


def counted(arguments: list[str]) -> int:
    """Instructions of the VM, started with these arguments."""
    loader, vm, _ = setup.vm_program()
    done = subprocess.run(
        [
            *(str(paths.VALGRIND), "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(str(loader), "--library-path", str(loader.parent), str(vm)),
            *arguments,
        ],
        env=os.environ
        | {
            "MICROPYPATH": str(FOLDER),
            "VALGRIND_LIB": str(paths.VALGRIND.parent / "root/usr/libexec/valgrind"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise BenchError(f"callgrind: {done.stdout}{done.stderr}")
    return int(found[1])


def instructions(program: str, times: int) -> int:
    return counted(command(program, times))


def measure() -> dict[str, dict[str, Any]]:
    """Instructions and bytes of each program. Raises BenchError."""
    try:
        setup.for_bench()
    except (setup.Missing, subprocess.CalledProcessError, OSError) as error:
        raise BenchError(f"valgrind or micropython-modbus cannot be had: {error}") from error
    prepare(peer=True)
    found = {}
    for name, program in PROGRAMS.items():
        size, values = allocated(program)
        if values not in [registers(turn) for turn in range(4)]:
            raise BenchError(f"{name}: {values} are not the registers of any reply")
        count = instructions(program, LONG) - instructions(program, SHORT)
        found[name] = {"instructions": count // (LONG - SHORT), "bytes": size}
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """The report for people."""
    peer = next(iter(found.values()))["instructions"]
    text = f"{'ten registers over RTU':40} {'instructions':>13} {'of the peer':>12} {'bytes':>6}\n"
    for name, numbers in found.items():
        share = numbers["instructions"] / peer
        over = " OVER a quarter" if name == "a read" and share > 1 / BUDGET else ""
        text += f"{name:40} {numbers['instructions']:>13,} {share:>12.3f}"
        text += f" {numbers['bytes']:>6}{over}\n"
    return text


def main() -> None:
    print(table(measure()), end="")


if __name__ == "__main__":
    main()
