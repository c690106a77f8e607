"""First code of an image of our own: mount the file system, or make it anew and come back.

MicroPython's own `_boot.py` stops for ever where a file system is neither blank nor mountable,
before any other code. This one, frozen into the image by `manifest.py`, goes on.
"""

import gc
import os

import vfs
from flashbdev import bdev

try:
    vfs.mount(bdev, "/")
except OSError:
    import rebuild

    rebuild.make(bdev)
if "slot" not in os.listdir("/"):
    import rebuild

    rebuild.fill()
gc.collect()
