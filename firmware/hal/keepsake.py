"""A second copy of what makes this board this station, outside of its file system.

Config, secrets, board and meters are kept in the chip's NVS partition, written anew when they have
changed, and come back when the file system lost one of them or was made anew. Used at the start
only; it is forgotten afterwards.

Limits: NVS is plain flash: whoever holds the board can read it there as well. It may be erased by
the chip in some error cases, so that it is never the only home. A board without NVS keeps none.
Before a board is given away, the copy has to go as well: boards/esp32/README.md.
"""

import json

_PLACE = "wattlock"
_KEY = "files"


def _nvs():
    from esp32 import NVS

    return NVS(_PLACE)


def recall():
    """{path: text} of the copy; empty where there is none."""
    try:
        nvs = _nvs()
        text = bytearray(nvs.get_i32("size"))
        nvs.get_blob(_KEY, text)
        return json.loads(bytes(text))
    except (ImportError, AttributeError, OSError, ValueError):
        return {}


def keep(paths):
    """Make the copy equal to these files; True where something was written."""
    try:
        nvs = _nvs()
        files = {}
        for path in paths:
            with open(path) as f:
                files[path] = f.read()
        if files == recall():
            return False
        text = json.dumps(files).encode()
        nvs.set_i32("size", len(text))
        nvs.set_blob(_KEY, text)
        nvs.commit()
        return True
    except (ImportError, AttributeError, OSError, MemoryError):
        return False  # as well as it can


def restore(path):
    """The text of a file that cannot be read, put back into its place; None: there is no copy."""
    text = recall().get(path)
    if text is None:
        return None
    try:
        with open(path + ".tmp", "w") as f:
            f.write(text)
        import os

        os.rename(path + ".tmp", path)
    except OSError:
        pass  # the next start comes here again
    return text
