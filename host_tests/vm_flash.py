"""Run in the MicroPython VM by test_hal_flash.py: the journal on real LittleFS, cut everywhere.

One run is recorded, every program and erase of it. Then the image after each of these operations,
and after each followed by half of the next, is mounted, and the journal read: every append that
had returned is there, at most one more is, and writing goes on.
"""

import os
import sys

import vfs  # pyright: ignore[reportMissingImports]
from hal.flash import Flash
from wattlock import journal, mac
from wattlock.errors import StorageError

BLOCK = 4096
CHAIN = mac.Mac(b"lfs")


class Ram:
    def __init__(self, blocks, image=None):
        self.image = image or bytearray(b"\xff" * (blocks * BLOCK))
        self.log = []

    def readblocks(self, block, buffer, offset=0):
        at = block * BLOCK + offset
        buffer[:] = memoryview(self.image)[at : at + len(buffer)]

    def writeblocks(self, block, buffer, offset=0):
        self.do(block * BLOCK + offset, bytes(buffer))

    def do(self, at, data):
        self.log.append((at, data))
        if data is None:
            self.image[at : at + BLOCK] = b"\xff" * BLOCK
        else:
            self.image[at : at + len(data)] = data

    def ioctl(self, op, arg):
        if op == 4:
            return len(self.image) // BLOCK
        if op == 5:
            return BLOCK
        if op == 6:
            self.do(arg * BLOCK, None)
        return 0


def mount(ram, fresh=False):
    if fresh:
        vfs.VfsLfs2.mkfs(ram)
    vfs.mount(vfs.VfsLfs2(ram), "/ram")
    return Flash("/ram/journal")


class Seen:
    def __init__(self):
        self.values = []

    def restore(self, state):
        self.values = list(state)

    def evolve(self, record):
        self.values.append(record["x"])

    def checkpoint(self):
        return self.values


def read(store):
    seen = Seen()
    j = journal.Journal(store, CHAIN)
    wrong = j.open(seen.restore, seen.evolve, lambda n: bytes(n))
    return j, seen, wrong


def add(j, seen, x, size):
    row = {"t": "event", "x": x, "pad": "." * size}
    j.append([journal.body(1, x, row)], seen.checkpoint)
    seen.evolve(row)


def basics():
    store = mount(Ram(32), True)
    assert store.names() == []
    store.create("a", b"12345")
    store.append("a", b"678")
    assert store.size("a") == 8 and store.read("a", 2, 3) == b"345"
    assert store.read("a", 6, 100) == b"78" and store.read("a", 99, 4) == b""
    store.create("a", b"new")
    assert store.read("a", 0, 10) == b"new" and store.names() == ["a"]
    store.append("b", b"made")
    store.remove("a")
    assert store.names() == ["b"]
    for act in (
        lambda: store.read("gone", 0, 1),
        lambda: store.size("gone"),
        lambda: store.remove("gone"),
        lambda: store.create("no/such", b""),
    ):
        try:
            act()
        except StorageError:
            continue
        raise AssertionError("no StorageError")
    for kept in (["b", "new"], ["b", "why"]):  # one generation of them
        store.set_aside("why")
        assert store.names() == ["why"]
        assert sorted(os.listdir("/ram/journal.aside")) == kept
        store.create("b", b"younger")
    with open("/ram/journal.aside/b") as f:
        assert f.read() == "younger"
    vfs.umount("/ram")


def full():
    """A full file system says so, at once, and what was there stays."""
    store = mount(Ram(24), True)
    store.create("keep", bytes(5000))
    kept = 0
    try:
        while True:
            store.append("log", bytes(700))
            kept += 700
    except StorageError:
        pass
    assert kept > 20000
    assert store.size("log") >= kept and store.read("keep", 4990, 20) == bytes(10)
    try:
        store.create("other", bytes(20000))
        raise AssertionError("no StorageError")
    except StorageError:
        pass
    store.remove("log")
    store.append("log", b"room again")
    assert store.read("log", 0, 20) == b"room again"
    vfs.umount("/ram")


def cuts(total):
    ram = Ram(28)
    store = mount(ram, True)
    begun = bytes(ram.image)
    ram.log = []
    j, seen, wrong = read(store)
    assert wrong[0]["what"] == "journal_new"
    done = []  # operations when the append of each record had returned
    for x in range(total):
        add(j, seen, x, (0, 90, 400, 900)[x % 4])
        done.append(len(ram.log))
        if x % 9 == 8:
            j.acknowledge(j.seq - 3)
    assert len(store.names()) >= 2  # it rotated
    vfs.umount("/ram")
    log = ram.log
    image = bytearray(begun)
    checked = 0
    for k in range(len(log) + 1):
        least = len([d for d in done if d <= k])
        check(bytearray(image), least)
        checked += 1
        if k == len(log):
            break
        at, data = log[k]
        torn = bytearray(image)
        if data is None:
            torn[at : at + BLOCK // 2] = b"\xff" * (BLOCK // 2)
            image[at : at + BLOCK] = b"\xff" * BLOCK
        else:
            half = len(data) // 2
            torn[at : at + half] = data[:half]
            image[at : at + len(data)] = data
        check(torn, least)
        checked += 1
    print("cuts", checked)


def check(image, least):
    store = mount(Ram(0, image))
    j, seen, wrong = read(store)
    assert least <= j.seq <= least + 1, (least, j.seq)
    assert seen.values == list(range(j.seq))
    for event in wrong:
        assert event["what"] == ("journal_new" if not j.seq else "torn_tail"), event
    add(j, seen, j.seq, 50)
    _, replayed, wrong = read(store)
    assert wrong == [] and replayed.values == seen.values
    vfs.umount("/ram")


if __name__ == "__main__":
    {"basics": basics, "full": full, "cuts": lambda: cuts(45)}[sys.argv[1]]()
    print("done")
