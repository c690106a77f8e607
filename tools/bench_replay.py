"""A boot's replay in instructions and bytes: what one live record costs, and the most it needs.

The records are those of a charging session, written on this machine by the firmware's own journal
and read by it, compiled to .mpy, in the 32-bit VM. callgrind counts the
instructions of the whole VM; the difference between many records and few is what one costs, to
the instruction and in every run the same. Bytes are what a record allocates until somebody
collects. `peak` is the least heap in which 1,000 live records open, less the least for a journal
that is empty: the segment's largest groups, not the number of records, decide it.

The files are this machine's: what LittleFS costs is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import bench_poll, paths, shrink
from tools.bench_poll import BenchError

FEW, MANY, LIVE = 5, 25, 1000  # MANY still fit into one segment, which is what a boot replays
WATTS, QUARTER_MS = 11_000, 900_000
STEP = 256  # bytes: how exact the peak is
READ = """
import gc, json
from wattlock import mac
from wattlock.journal import Journal
from wattlock.station import Station
class Store:
    def reserve(self):
        pass
    def names(self):
        return list(SIZES)
    def size(self, name):
        return SIZES[name]
    def read(self, name, offset, n):
        with open(FOLDER + '/' + name, 'rb') as f:
            f.seek(offset)
            return f.read(n)
station = Station([1])
journal = Journal(Store(), mac.purpose(bytes(32), 'chain', 'BENCH'))
gc.collect()
"""
COUNT = """
gc.disable()
used = gc.mem_alloc()
wrong = journal.open(station.restore, station.evolve, bytes)
print(gc.mem_alloc() - used, journal.seq, len(wrong), station.evses[1].session.total_wh)
"""
OPEN = """
wrong = journal.open(station.restore, station.evolve, bytes)
print(0, journal.seq, len(wrong), 0)
"""


def write(folder: Path, count: int) -> int:
    """A journal of `count` records in `folder`: a session that is cut at each quarter. Returns
    the Wh of its periods."""
    firmware = str(paths.FIRMWARE)
    if firmware not in sys.path:
        sys.path.insert(0, firmware)
    from wattlock import mac, session
    from wattlock.journal import Journal, body
    from wattlock.station import Station

    class Store:
        def reserve(self) -> None:
            pass

        def names(self) -> list[str]:
            return [path.name for path in folder.iterdir()]

        def size(self, name: str) -> int:
            return (folder / name).stat().st_size

        def append(self, name: str, *parts: bytes) -> None:
            with (folder / name).open("ab") as file:
                file.write(b"".join(parts))

        def create(self, name: str, *parts: Any) -> None:
            whole = [p if isinstance(p, bytes) else b"".join(p) for p in parts]
            (folder / name).write_bytes(b"".join(whole))

        def remove(self, name: str) -> None:
            (folder / name).unlink()

    folder.mkdir(parents=True, exist_ok=True)
    station = Station([1])
    journal = Journal(Store(), mac.purpose(bytes(32), "chain", "BENCH"))
    if count:
        journal.open(station.restore, station.evolve, bytes)
    token = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1B2C3D4E580"}
    up_ms = 1000
    for n in range(count):
        up_ms += QUARTER_MS
        state = station.evses[1]
        wh = WATTS * QUARTER_MS // 3_600_000
        record: dict[str, Any]
        if n == 0:
            record = {"t": "boot", "fw": "0", "cause": "power", "slot": "a", "board": "b"}
            record["evses"] = []
        elif n == 1:
            record = {"t": "start", "evse": 1, "session_id": "5" * 32, "token": token,
                      "auth_method": "WHITELIST", "source": "card", "register_wh": 10**7,
                      "serial": "20221234", "epoch": 0, "outside_wh": 0}  # fmt: skip
        elif n % 8 == 0 and count > MANY:  # 1,000 of the longer ones are more than there is room
            record = session.period(
                state.session, 1, [1, up_ms], "charging", 10**7 + wh * n, wh, 11_050
            )
        elif count > MANY:
            record = {"t": "event", "what": "alive"}
        else:
            record = session.period(
                state.session, 1, [1, up_ms], "charging", 10**7 + wh * n, wh, 11_050
            )
        line = body(1, up_ms, record)
        journal.append([line], station.checkpoint)
        station.evolve(json.loads(line))
    return station.evses[1].session.total_wh if count else 0


def arguments(program: str, folder: Path, heap: str) -> list[str]:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    text = f"SIZES = {sizes!r}\nFOLDER = {str(folder)!r}\n" + program
    return ["-X", f"heapsize={heap}", "-c", shrink.rename(text)]


def run(program: str, folder: Path, heap: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [paths.VM, *arguments(program, folder, heap)],
        env={"MICROPYPATH": str(bench_poll.FOLDER)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def allocated(folder: Path) -> tuple[int, int, int]:
    """(bytes that opening allocates, last sequence, Wh of the session's periods)."""
    done = run(READ + COUNT, folder, "1m")
    if done.returncode:
        raise BenchError(done.stdout + done.stderr)
    used, seq, wrong, wh = map(int, done.stdout.split())
    if wrong:
        raise BenchError("the journal is not read as it was written")
    return used, seq, wh


def least_heap(folder: Path) -> int:
    """Bytes of the smallest heap in which the journal opens."""
    low, high = 8 * 1024, 512 * 1024
    while high - low > STEP:
        middle = (low + high) // 2
        done = run(READ + OPEN, folder, str(middle))
        low, high = (low, middle) if done.returncode == 0 else (middle, high)
    return high


def instructions(folder: Path) -> int:
    return bench_poll.counted(arguments(READ + COUNT, folder, "1m"))


def prepare(folder: Path) -> dict[int, Path]:
    """The firmware compiled, and a journal of each length."""
    bench_poll.prepare(peer=False)
    found = {}
    for count in (0, FEW, MANY, LIVE):
        found[count] = folder / f"journal{count}"
        write(found[count], count)
    return found


def measure() -> dict[str, int]:
    """What a record costs. Raises BenchError; valgrind must be there (`bench_poll.measure`)."""
    found = prepare(bench_poll.FOLDER)
    few, many = allocated(found[FEW])[0], allocated(found[MANY])[0]
    counts = instructions(found[MANY]) - instructions(found[FEW])
    return {
        "instructions": counts // (MANY - FEW),
        "bytes": (many - few) // (MANY - FEW),
        "peak": least_heap(found[LIVE]) - least_heap(found[0]),
        "live_bytes": sum(path.stat().st_size for path in found[LIVE].iterdir()),
    }


def table(found: dict[str, int]) -> str:
    return (
        f"\n{'replay at boot, one record':40} {found['instructions']:>13,} instructions"
        f" {found['bytes']:>8,} bytes until collected\n"
        f"{'1,000 live records open, at the peak':40} {found['peak']:>13,} bytes of heap"
        f" for {found['live_bytes']:,} on flash\n"
    )


def main() -> None:
    print(table(measure()), end="")


if __name__ == "__main__":
    main()
