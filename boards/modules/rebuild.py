"""A file system that cannot be mounted: set aside, made anew, identity and site put back.

What is lost is the journal: what the gateway has not acknowledged, and what the board knew of a
session or a reservation. The agent finds `/journal/rebuilt` and says so (`journal_new`), under a
new journal id, so that the gateway sees where the old one ended. What comes back is the second
copy that `hal/keepsake.py` keeps in NVS; the application itself is frozen into the same image.

The old contents are copied, block by block, to a data partition labelled `aside` as far as it
reaches; without one they are overwritten. A cut in between begins again at the next start, then
with what is there.
"""

import os
import time

import vfs

_TRIES = 3


def make(bdev):
    """Mount `bdev` after all, or format it. Blank flash is a new board and nothing is lost."""
    for _ in range(_TRIES):
        try:
            vfs.mount(bdev, "/")
            return
        except OSError:
            time.sleep_ms(100)
    head = bytearray(bdev.ioctl(5, 0))
    bdev.readblocks(0, head)
    blank = head == b"\xff" * len(head)
    if not blank:
        print("wattlock: the file system cannot be mounted; it is made anew")
        _set_aside(bdev, head)
    vfs.VfsLfs2.mkfs(bdev)
    vfs.mount(vfs.VfsLfs2(bdev), "/")
    if not blank:
        os.mkdir("/journal")
        with open("/journal/rebuilt", "w"):
            pass


def _set_aside(bdev, block):
    try:
        from esp32 import Partition

        (aside,) = Partition.find(Partition.TYPE_DATA, label="aside")
    except (ImportError, ValueError):
        return
    for n in range(min(bdev.ioctl(4, 0), aside.ioctl(4, 0))):
        bdev.readblocks(n, block)
        aside.writeblocks(n, block)


def fill():
    """Put back what NVS keeps; the slot, without which this is done again, at the end."""
    from hal import keepsake

    files = keepsake.recall()
    for path in sorted(files, key=lambda path: path == "/slot"):
        folders = path.split("/")[1:-1]
        for i in range(len(folders)):
            try:
                os.mkdir("/" + "/".join(folders[: i + 1]))
            except OSError:
                pass  # it is there
        with open("/new", "w") as f:
            f.write(files[path])
        os.rename("/new", path)  # an open file is there before it has its contents
