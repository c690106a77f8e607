"""Run in the MicroPython VM by test_hal_shelf.py: what 2,000 cards cost a real LittleFS."""

import json
from binascii import b2a_base64, hexlify

import vfs  # pyright: ignore[reportMissingImports]
from hal.shelf import Shelf
from wattlock.mac import Mac
from wattlock.whitelist import Whitelist

BLOCK = 4096


class Ram:
    def __init__(self, blocks):
        self.image = bytearray(b"\xff" * (blocks * BLOCK))
        self.erases = self.of_turn = 0

    def readblocks(self, block, buffer, offset=0):
        at = block * BLOCK + offset
        buffer[:] = memoryview(self.image)[at : at + len(buffer)]

    def writeblocks(self, block, buffer, offset=0):
        at = block * BLOCK + offset
        self.image[at : at + len(buffer)] = buffer

    def ioctl(self, op, arg):
        if op == 4:
            return len(self.image) // BLOCK
        if op == 5:
            return BLOCK
        if op == 6:
            self.image[arg * BLOCK : (arg + 1) * BLOCK] = b"\xff" * BLOCK
            self.erases += 1
            self.of_turn += 1
        return 0


ram = Ram(256)
vfs.VfsLfs2.mkfs(ram)
vfs.mount(vfs.VfsLfs2(ram), "/ram")
mac = Mac(b"key")
cards = Whitelist(Shelf("/ram/tokens"), mac)


def uid(i):
    return hexlify(i.to_bytes(4, "big")).decode().upper()


def row(i, kind):
    return mac(uid(i).encode())[:8] + b"NLEMS" + kind + bytes(8)


def sync(rows, since, to):
    rows = sorted(rows)
    after = ""
    before = ram.erases
    worst = 0
    for i in range(0, len(rows), 47):
        some = rows[i : i + 47]
        text = b2a_base64(b"".join(some)).decode().strip()
        data = {"from": since, "to": to, "after": after, "rows": text}
        data["last"] = i + 47 >= len(rows)
        ram.of_turn = 0
        cards.take(data)
        worst = max(worst, ram.of_turn)
        after = hexlify(some[-1][:13]).decode()
    while cards.work is not None:
        ram.of_turn = 0
        cards.turn()
        worst = max(worst, ram.of_turn)
    told = {"erases": ram.erases - before, "worst": worst, "rows": cards.count}
    print(json.dumps(told))


sync([row(i, b"A") for i in range(2000)], 0, 5)
sync([row(3, b"-")], 5, 6)
sync([row(i, b"O") for i in range(100, 300)], 6, 7)
again = Whitelist(Shelf("/ram/tokens"), mac)  # the next boot
for i in (0, 2, 1999):
    assert again.find(uid(i), False)
assert again.find(uid(3), True) is None
assert again.find(uid(100), False) is None and again.find(uid(100), True)
print("done")
