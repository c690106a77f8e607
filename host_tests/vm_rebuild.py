"""Run in the MicroPython VM by test_broken_flash.py: an image of our own on a corrupt file system.

`boards/modules/_boot.py` over a chip of vm_cuts.py whose file system was damaged so that it cannot
be mounted, with NVS and a partition `aside` in memory. After it main.py builds the agent, as the
same station.
"""

import json
import sys

import vfs  # pyright: ignore[reportMissingImports]
import vm_broken
import vm_cuts
from portable import bench

NVS = {}
ASIDE = []


class _Esp32:
    class NVS:
        def __init__(self, place):
            pass

        def get_i32(self, key):
            if key not in NVS:
                raise OSError(-4354)
            return NVS[key]

        def set_i32(self, key, value):
            NVS[key] = value

        def get_blob(self, key, buffer):
            if key not in NVS or len(buffer) < len(NVS[key]):
                raise OSError(-4354)
            buffer[: len(NVS[key])] = NVS[key]

        def set_blob(self, key, data):
            NVS[key] = bytes(data)

        def commit(self):
            pass

    class Partition:
        TYPE_DATA = 1

        def find(type, label):
            assert type == 1 and label == "aside"
            return ASIDE


class _Bdev:
    bdev = None


def start(chip):
    """What the image does before main.py."""
    vfs.umount("/")
    _Bdev.bdev = chip
    for name in ("rebuild", "hal.keepsake"):
        sys.modules.pop(name, None)
    exec(vm_broken.HOST["boot"], {})


def same_station(s, why, keeps_rtc=False):
    """The agent that main.py builds now is the same station, and tells what happened: which
    journal is gone and how far it had come, where RTC memory is there to know."""
    lost = {"class": why}
    if keeps_rtc:
        lost["journal"], lost["last"] = s.reached
        assert s.reached == (s.gateway.journal, s.gateway.acked)
    s.cut(1000, keeps_rtc=keeps_rtc)
    assert s.until(lambda: s.app.booted, 5000)
    vm_cuts.told(s)
    (event,) = [r for r in s.records("event") if r["what"] == "journal_new"]
    assert event["why"] == why, event
    (told,) = s.records("lost")
    assert {k: told[k] for k in told if k not in ("t", "boot", "up_ms")} == lost, told
    assert s.board.slot == "a" and s.app.config["station_id"] == bench.STATION
    vm_broken.charging(s)  # its messages are authentic: the key is the same
    vm_broken.stopped_by_card(s)
    assert s.until(lambda: s.evse().session is None)
    s.pins[1].car = "A"
    vm_cuts.told(s)


def prepared():
    """A station that has kept its second copy, and told the gateway all."""
    s = vm_broken.site()
    assert NVS
    vm_cuts.told(s)
    s.gateway.records.clear()
    return s


def superblock():
    s = prepared()
    chip = s.chip
    for damage, keeps_rtc in ((b"\x00", False), (b"\xa5", True)):
        chip.image[: 2 * vm_cuts.BLOCK] = damage * (2 * vm_cuts.BLOCK)
        old = bytes(chip.image[: 64 * vm_cuts.BLOCK])
        copy = vm_cuts.Chip(vm_cuts.memory())
        ASIDE[:] = [copy]
        start(chip)
        assert bytes(copy.image[: len(old)]) == old, "what was there is not set aside"
        same_station(s, "rebuilt", keeps_rtc)
        s.gateway.records.clear()
        start(chip)  # and from then on it is an ordinary one
        s.cut(1000)
        vm_cuts.told(s)
        assert not [r for r in s.records("event") if r["what"] == "journal_new"]
        s.gateway.records.clear()


def without_aside():
    s = prepared()
    ASIDE.clear()
    s.chip.image[: 2 * vm_cuts.BLOCK] = bytes(2 * vm_cuts.BLOCK)
    start(s.chip)
    same_station(s, "rebuilt")


def blank():
    """A new board: formatted without a word, and waits for its deployment."""
    NVS.clear()
    chip = vm_cuts.Chip(vm_cuts.memory())
    vm_cuts.erase(chip.image)
    start(chip)
    assert vm_cuts.os.listdir("/") in ([], ["_host"]), vm_cuts.os.listdir("/")


def well():
    """Nothing is touched where all is well."""
    s = prepared()
    image = bytes(s.chip.image[: 200 * vm_cuts.BLOCK])
    ops = s.chip.ops
    start(s.chip)
    assert s.chip.ops == ops and s.chip.image[: len(image)] == image


def cut_while_it_is_rebuilt():
    """At every program and erase of it: the next start brings the station back."""
    s = prepared()
    ASIDE.clear()
    chip = s.chip
    chip.image[: 2 * vm_cuts.BLOCK] = bytes(2 * vm_cuts.BLOCK)
    before = vm_cuts.memory()
    vm_cuts.copy(before, chip.image)
    chip.log = []
    chip.now = lambda: None
    start(chip)
    log = chip.log
    assert len(log) > 20, len(log)
    work = vm_cuts.memory()
    vm_cuts.copy(work, before)
    for op in log:
        for torn in (None, "half"):
            again = vm_cuts.Chip(vm_cuts.memory())
            vm_cuts.copy(again.image, work)
            if torn:
                vm_cuts.change(again.image, op, torn)
            start(again)
            for path in ("/slot", "/config.json", "/secrets.json", "/board.json"):
                assert vm_cuts.DOOR["read"](path) == json.loads(NVS["files"])[path], path
            vm_cuts.DOOR["_site"]("a")
        vm_cuts.change(work, op)


def lost_file():
    """On any image: a file that cannot be read comes back when main.py wants it."""
    for name in ("config", "secrets", "board"):
        s = prepared()
        path = "/%s.json" % name
        text = vm_cuts.DOOR["read"](path)
        vm_cuts.os.remove(path)
        s.cut(1000)
        vm_cuts.told(s)
        assert vm_cuts.DOOR["read"](path) == text
        (event,) = [r for r in s.records("event") if r["what"] == "restored"]
        assert event["file"] == path
        vm_cuts.DOOR["restored"].clear()  # it is another start


def main():
    vm_broken.HOST.update(json.loads(sys.stdin.read()))
    sys.modules["esp32"] = _Esp32
    sys.modules["flashbdev"] = _Bdev
    vm_cuts.open_door(vm_broken.HOST["door"])
    globals()[vm_broken.HOST["test"]]()
    print("done")


if __name__ == "__main__":
    main()
