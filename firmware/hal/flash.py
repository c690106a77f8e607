"""Files of the journal on LittleFS.

The port that `wattlock.journal` is given: names, size, read, append, create, remove, and what is
for bad days: reserve, release, set_aside. What `append` and `create` return from is durable;
everything else raises StorageError.

LittleFS commits a file at `flush` and `close`; a write that was not flushed is lost whole, and a
full file system may drop it without a word. So every write is flushed and its size looked at
afterwards. `create` writes aside and renames, which is atomic.
"""

import os

from wattlock.errors import StorageError

_RESERVED = 32768  # bytes


class Flash:
    def __init__(self, path="/journal"):
        self._path = path + "/"
        self._make()

    def _make(self):
        try:
            os.mkdir(self._path[:-1])
        except OSError:
            pass  # it is there, or the first write will say what is wrong

    def reserve(self):
        """See that there is a file that keeps room free for `release`. Best effort."""
        name = "reserve"
        try:
            if self.size(name) == _RESERVED:
                return
        except StorageError:
            pass  # there is none yet
        try:
            self._write(name, "wb", (bytes(256) for _ in range(_RESERVED // 256)))
        except StorageError:
            self.release()  # so little room is left: it is not to be taken by this

    def release(self):
        """Give up the reserved room, for records that must be written on a full file system."""
        try:
            os.remove(self._path + "reserve")
        except OSError:
            pass  # it is gone already

    def set_aside(self, why, *parts):
        """Begin with an empty folder, but for a file of the name `why` with these bytes; the files
        that are there stay for people, in a folder of the same name and `.aside`, one generation
        of them."""
        path = self._path[:-1]
        aside = path + ".aside"
        try:
            for name in os.listdir(aside):
                os.remove(aside + "/" + name)
            os.rmdir(aside)
        except OSError:
            pass  # there is none
        self.release()
        self._try(os.rename, path, aside)
        self._make()
        self.create(why, *parts)

    def names(self):
        """Names of the files that are there."""
        return self._try(os.listdir, self._path[:-1])

    def size(self, name):
        """Bytes in the file `name`."""
        return self._try(os.stat, self._path + name)[6]

    def read(self, name, offset, n):
        """Up to `n` bytes from `offset`; fewer where the file ends."""
        try:
            with open(self._path + name, "rb") as f:
                f.seek(offset)
                return f.read(n)
        except OSError as e:
            raise self._error("read", name, e)

    def append(self, name, *parts):
        """Add the bytes of `parts` to the end of the file `name`, durably."""
        self._write(name, "ab", parts)

    def create(self, name, *parts):
        """Make or replace the file `name` with the bytes of `parts`, durably and at once. A part
        may be an iterator of parts, which are made as they are written."""
        self._write("new", "wb", parts)
        self._try(os.rename, self._path + "new", self._path + name)

    def remove(self, name):
        self._try(os.remove, self._path + name)

    def _write(self, name, mode, parts):
        path = self._path + name
        try:
            with open(path, mode) as f:
                size = 0 if mode == "wb" else f.seek(0, 2)
                for part in parts:
                    for data in (part,) if isinstance(part, bytes) else part:
                        f.write(data)
                        size += len(data)
                f.flush()
            if os.stat(path)[6] != size:
                raise StorageError("%s: some bytes did not get there" % path)
        except OSError as e:
            raise self._error("write", name, e)

    def _try(self, what, *args):
        try:
            return what(*args)
        except OSError as e:
            raise self._error("use", args[0], e)

    def _error(self, verb, name, e):
        return StorageError("cannot %s %s: %s" % (verb, name, e))
