"""What a message costs the heap, made and put out, or taken in.

The firmware's own uplink, journal, inbox and outbox, compiled to .mpy, in the 32-bit VM, with a
journal in memory. "Needed" is the least free heap, in one piece and to `STEP` bytes, in which it
goes: from the moment a message is due until its bytes are in the link's buffer, from the moment
one stands in that until it is understood. `BOUND` holds for each, however much waits: a message
takes as many records as 1,100 bytes hold, or one longer. "Allocated" is what somebody collects
afterwards.

The link's own buffers are not in it: 2,048 bytes out and 512 in are made at the start and grow to
the message's size, at most 4,400 bytes, where one is longer.
"""

from __future__ import annotations

import subprocess

from tools import bench_poll, paths, shrink
from tools.bench_poll import BenchError

BOUND = 9 * 1024
STEP = 64
PROGRAM = """
import gc, json
from binascii import hexlify
from hal.link import Outbox
from wattlock import clock, mac
from wattlock.commands import Inbox
from wattlock.journal import Journal, body
from wattlock.uplink import Uplink
class Store:
    def __init__(self):
        self.files = {}
    def reserve(self):
        pass
    def names(self):
        return list(self.files)
    def size(self, name):
        return len(self.files[name])
    def read(self, name, offset, n):
        return bytes(self.files[name][offset:offset + n])
    def append(self, name, *parts):
        self.files[name] += b''.join(parts)
    def create(self, name, *parts):
        self.files[name] = bytearray(b''.join([b''.join(p) for p in parts]))
    def remove(self, name):
        del self.files[name]
key = bytes(32)
journal = Journal(Store(), mac.purpose(key, 'chain', 'BENCH'))
journal.open(lambda state: None, lambda record: None, bytes)
now = clock.Clock()
clock.evolve(now, {'t': 'time', 'up_ms': 0, 'unix_ms': 1790000000000, 'err_ms': 40}, 0)
up = Uplink(journal, mac.purpose(key, 'up', 'BENCH'), 1, 'f' * 32, 60000)
inbox = Inbox(mac.purpose(key, 'down', 'BENCH'), 1, 'f' * 32)
seal = mac.purpose(key, 'down', 'BENCH')
outbox = Outbox()
picture = {'status': 'CHARGING', 'plugged': True, 'session': '5' * 32, 'wh': 12345, 'w': 11000}
n = 0
ballast = [None] * 2000
def leave(room):
    hold = bytearray(room)
    i = 0
    for size in (65536, 4096, 256, 32, 0):
        try:
            while True:
                ballast[i] = bytearray(size)
                i += 1
        except MemoryError:
            pass
    hold = None
    gc.collect()
def used(name, step, *args):
    gc.collect()
    if name == WANTED:
        leave(ROOM)
        step(*args)
        raise SystemExit
    gc.disable()
    before = gc.mem_alloc()
    step(*args)
    print(name, gc.mem_alloc() - before)
    gc.enable()
def send():
    live = {'1': {k: picture[k] for k in (('wh', 'w') if up.brief() else picture)}}
    outbox.waiting = 0
    for part in up.message(17, 3600000 + n, 0, now, live, {}, 0):
        outbox.write(part)
def take(message):
    head, why = inbox.open(message)
    assert head is not None, why
    up.answer(head, 3600000 + n)
def answer(ack, pad=0):
    global n
    n += 1
    head = {'v': 1, 'kid': 1, 'sid': 'f' * 32, 'n': n, 're': up.sent_up, 'unix_ms': 1790000001004,
            'journal': journal.id, 'ack': ack, 'brief_s': 960}
    if pad:
        head['commands'] = [{'id': 'c' * 32, 'type': 'X', 'exp': 1790000001004, 'data': {'x': ''}}]
        head['commands'][0]['data']['x'] = 'x' * (pad - 65 - len(json.dumps(head)))
    text = json.dumps(head).encode()
    return memoryview(bytearray(hexlify(seal(text)) + b'\\n' + text))
send()
take(answer(0))
for i in range(5):
    journal.append([body(17, i, {'t': 'period', 'session_id': '5' * 32, 'kind': '.' * 120})],
                   lambda: 0)
used('whole_with_records', send)
print('whole_with_records_size', outbox.waiting)
used('answer', take, answer(5))
up.hurry = True
used('whole', send)
print('whole_size', outbox.waiting)
take(answer(5))
used('brief', send)
print('brief_size', outbox.waiting)
used('full_size_down', take, answer(5, 4096))
"""
TITLES = {
    "brief": "a brief picture",
    "whole": "a whole message without records",
    "whole_with_records": "a whole message full of records",
    "answer": "an answer",
    "full_size_down": "a message of 4,096 bytes down",
}


def run(wanted: str = "", room: int = 0) -> subprocess.CompletedProcess[str]:
    text = f"WANTED, ROOM = {wanted!r}, {room}\n" + PROGRAM
    return subprocess.run(
        [paths.VM, "-X", "heapsize=512k", "-c", shrink.rename(text)],
        env={"MICROPYPATH": str(bench_poll.FOLDER)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def needed(name: str) -> int:
    """The least room in which this goes, to STEP bytes."""
    low, high = 0, 32 * 1024
    while high - low > STEP:
        middle = (low + high) // 2
        low, high = (low, middle) if run(name, middle).returncode == 0 else (middle, high)
    return high


def measure() -> dict[str, dict[str, int]]:
    """Bytes of each. Raises BenchError."""
    bench_poll.prepare(peer=False)
    done = run()
    if done.returncode:
        raise BenchError(done.stdout + done.stderr)
    said = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    return {
        name: {
            "needed": needed(name),
            "allocated": said[name],
            "size": said.get(f"{name}_size", 0),
        }
        for name in TITLES
    }


def table(found: dict[str, dict[str, int]]) -> str:
    text = f"\n{'heap of a message':40} {'needed':>13} {'allocated':>12} {'on the wire':>12}\n"
    for name, title in TITLES.items():
        one = found[name]
        text += f"{title:40} {one['needed']:>13,} {one['allocated']:>12,} {one['size'] or '':>12}"
        text += " OVER\n" if one["needed"] > BOUND else "\n"
    return text + f"{'bound':40} {BOUND:>13,}\n"


def main() -> None:
    print(table(measure()), end="")


if __name__ == "__main__":
    main()
