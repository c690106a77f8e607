"""Run in the MicroPython VM by tools/bench_flash.py: what a life costs the flash, counted at it.

The agent on the bench of vm_cuts.py, over LittleFS with an ESP32's geometry. Prints one JSON
object a scenario: erases, programs, bytes programmed, syncs, the seconds they take together, and
the longest stall of one turn of the loop, by what a NOR flash takes (45 ms an erase, 0.8 ms for
256 bytes). `naive` is what a firmware without a journal does: its state as a JSON file, written
anew at each sample. `wear` appends to a journal for as long as the blocks go round many times, and
counts the erases of each.
"""

import json
import sys

import vm_cuts
from portable import bench
from wattlock import journal, mac

MINUTE = 60000
ERASE_MS = 45
PAGE_US = 800  # 256 bytes


class Meter(vm_cuts.Chip):
    """A chip that counts."""

    def __init__(self, image):
        vm_cuts.Chip.__init__(self, image)
        self.erases = self.programs = self.bytes = self.syncs = 0

    def writeblocks(self, block, buffer, offset=0):
        self.programs += 1
        self.bytes += len(buffer)
        return vm_cuts.Chip.writeblocks(self, block, buffer, offset)

    def ioctl(self, op, arg):
        if op == 6:
            self.erases += 1
        elif op == 3:
            self.syncs += 1
        return vm_cuts.Chip.ioctl(self, op, arg)

    def counts(self):
        return self.erases, self.programs, self.bytes, self.syncs


def took_ms(before, after):
    """What these operations take on a NOR flash."""
    return (after[0] - before[0]) * ERASE_MS + (after[2] - before[2]) * PAGE_US // 256000


def tell(name, before, after, longest=None):
    row = {"name": name, "erases": after[0] - before[0], "programs": after[1] - before[1]}
    row["program_bytes"] = after[2] - before[2]
    row["syncs"] = after[3] - before[3]
    row["busy_ms"] = took_ms(before, after)
    if longest is not None:
        row["longest_ms"], row["longest_without_sync_ms"] = longest
    print(json.dumps(row))


def installed(host):
    image = vm_cuts.memory()
    chip = Meter(image)
    vm_cuts.erase(image)
    vm_cuts.install(chip, host)
    return chip


def scenario(name, play, host):
    chip = installed(host)
    site = vm_cuts.Site(chip)
    vm_cuts.age(site)
    site.run(2 * MINUTE, 1000)
    longest = [0, 0]
    turn = site.app.turn

    def timed():
        before = chip.counts()
        turn()
        after = chip.counts()
        i = 0 if after[3] != before[3] else 1
        longest[i] = max(longest[i], took_ms(before, after))

    site.app.turn = timed
    before = chip.counts()
    play(site)
    vm_cuts.told(site)
    tell(name, before, chip.counts(), longest)


def card_session(site):
    site.pins[1].car = "C"
    site.run(2000)
    site.show(bench.ANNA)
    site.run(500)
    data = {"evse": 1, "uid": bench.ANNA["uid"], "allowed": "ALLOWED", "token": bench.ANNA}
    site.ask("AUTHORIZE", data)
    assert site.until(site.pins[1].is_closed)
    site.run(60 * MINUTE, 1000)
    vm_cuts.stop(site)


def reserved_session(site):
    vm_cuts.reserve(site, bench.ANNA, "R1", 120)
    site.pins[1].car = "C"
    site.run(2000)
    site.ask("START_SESSION", {"evse": 1, "token": bench.ANNA})
    assert site.until(site.pins[1].is_closed)
    site.run(60 * MINUTE, 1000)
    site.ask("STOP_SESSION", {"session_id": site.evse().session.id})
    assert site.until(lambda: site.evse().session is None)
    site.pins[1].car = "A"
    site.run(2000)


def idle_day(site):
    site.run(24 * 60 * MINUTE, 5000)


def segment(host):
    """Record after record until a segment is full, another begun and the oldest gone."""
    chip = installed(host)
    site = vm_cuts.Site(chip)
    vm_cuts.age(site)
    worst = None
    first = site.app.journal.first
    while site.app.journal.first == first:
        before = chip.counts()
        vm_cuts.in_a_turn(site, [{"t": "event", "what": "alive"}])
        after = chip.counts()
        if worst is None or took_ms(before, after) > took_ms(*worst):
            worst = before, after
        vm_cuts.told(site)
    tell("the longest write of a segment's life", *worst)


def naive(host, every_s):
    """An hour of samples, the state written anew at each: beside it and renamed, to be safe."""
    chip = installed(host)
    site = vm_cuts.Site(chip)
    site.boot()
    card = site.app.station
    vm_cuts.told(site)
    before = chip.counts()
    for at in range(0, 3600, every_s):
        state = card.checkpoint()
        state["sample"] = [at, 5000 + at * 3, 11000]
        with open("/state.tmp", "w") as f:
            f.write(json.dumps(state))
        vm_cuts.os.rename("/state.tmp", "/state.json")
    tell("naive, a sample every %d s" % every_s, before, chip.counts())


def wear(host, blocks, syncs):
    """Erases by block, and by write, over so many appends of all lengths; the files of the
    installation and `blocks` of a file that never changes stay where they are. The state is that
    of four EVSEs that charge."""
    chip = installed(host)
    vm_cuts.write("/static", bytes(blocks * vm_cuts.BLOCK))
    store = vm_cuts.Flash()
    j = journal.Journal(store, mac.Mac(b"wear"))
    j.open(None, None, lambda n: bytes(n))
    state = {"results": "." * 900, "evses": {}}
    for n in range(4):
        state["evses"][n] = {"ledger": "." * 200, "session": "." * 300}
    chip.wear = [0] * vm_cuts.BLOCKS
    by_erases = [0] * 5
    longest = 0
    draw = 1
    for _ in range(syncs):
        draw = (draw * 1103515245 + 12345) % 2**31
        bodies = [b'{"pad":"%s"}' % (b"." * (60 + draw // 256 % 800))]
        if draw // 2**24 % 4 == 0:
            bodies.append(b'{"pad":"%s"}' % (b"." * 200))
        done = None
        while done is None:  # as many turns
            before = chip.counts()
            done = j.append(bodies, lambda: state, False, True)
            after = chip.counts()
            by_erases[after[0] - before[0]] += 1
            longest = max(longest, took_ms(before, after))
        j.acknowledge(j.seq)
    used = sorted(chip.wear)
    moving = [n for n in used if n]
    row = {"syncs": syncs, "erases": sum(used), "most": used[-1], "blocks": len(moving)}
    row["by_erases"] = by_erases
    row["longest_ms"] = longest
    row["never"] = vm_cuts.BLOCKS - len(moving)
    row["name"] = "wear"
    print(json.dumps(row))


def main():
    host = json.loads(sys.stdin.read())
    vm_cuts.open_door(host["door"])
    scenario("an idle day", idle_day, host)
    scenario("a card session of one hour", card_session, host)
    scenario("a reserved remote session of one hour", reserved_session, host)
    segment(host)
    naive(host, 60)
    naive(host, 10)
    if host["syncs"]:
        wear(host, host["static_blocks"], host["syncs"])


if __name__ == "__main__":
    main()
