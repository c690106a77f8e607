"""The flash of a board whose gateway acknowledged nothing for days: sessions, reservations, and
traces of uptime between them. Run by `tools.size` and the tests; prints one JSON object:

    {"files": {name in /journal: hex}, "records": [bodies], "unix_ms": the time at its end}

The agent itself lives this life, on the bench of `portable`, under the station and key that the
command line names. It ends in the middle of a session, as a power cut finds it. A thousand records
of charging alone are more than the 128 KB that a journal may have: most are short ones.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from portable import bench

SHORT = 0.75  # of the records
MINUTE = 60_000


class Deaf(bench.Gateway):
    """Tells the time and hands over commands, and never has a record durable."""

    def header(self, head: Any, commands: Any = ()) -> dict[str, Any]:
        return super().header(head, commands) | {"ack": 0}


def session(w: bench.World, number: int) -> None:
    """A reservation is used, a quarter of an hour is charged."""
    data = {"evse": 1, "reservation_id": f"R{number}", "token": bench.ANNA}
    w.ask("RESERVE_NOW", data | {"expiry_ms": w.unix_ms() + 60 * MINUTE})
    assert w.until(lambda: w.evse().reservation is not None, 5 * MINUTE)
    w.pins[1].car = "C"
    w.run(2000)
    w.app.card(bench.ANNA["uid"])
    assert w.until(w.pins[1].is_closed)
    w.run(20 * MINUTE, 1000)


def stopped(w: bench.World) -> None:
    w.app.card(bench.ANNA["uid"])
    assert w.until(lambda: w.evse().session is None)
    w.pins[1].car = "A"
    w.run(5000)


def life(count: int) -> bench.World:
    w = bench.World()
    w.gateway = Deaf(w)
    w.real[1].mwh = 1_200_000_000
    w.boot()
    assert w.until(lambda: w.app.now() is not None)
    w.run(3000)
    number = short = 0
    while w.app.journal.seq < count:
        if short < SHORT * w.app.journal.seq:
            while not w.app.commit([{"t": "event", "what": "alive"} for _ in range(4)]):
                w.run(1000)
            short += 4
        elif w.evse().session is not None:
            stopped(w)
        else:
            number += 1
            session(w, number)
    if w.evse().session is None:
        session(w, number + 1)
    return w


def main() -> None:
    bench.STATION, key, begin_ms, count = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
    bench.KEY, bench.UNIX_MS = bytes.fromhex(key), int(begin_ms)
    w = life(int(count))
    records = []
    for name in sorted(w.store.files):
        data = w.store.files[name]
        at = 0
        while at < len(data):
            n = int.from_bytes(data[at + 1 : at + 4], "little")
            if data[at : at + 1] == b"R":
                records += data[at + 16 : at + 4 + n].decode().split("\n")
            at += n + 8
    files = {name: data.hex() for name, data in w.store.files.items()}
    print(json.dumps({"files": files, "records": records, "unix_ms": w.unix_ms()}))


if __name__ == "__main__":
    main()
