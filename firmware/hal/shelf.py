"""A shelf: one folder of files, beside the journal's, that can also be written in slices.

The port that `wattlock.whitelist` is given: what `Flash` has, and `begin`, `put`..., `finish`: a
file written aside over many turns and renamed at the end. A power cut before that leaves the old
one. Nothing of it is durable before `finish`; a full file system is told there at the latest.
"""

import os

from wattlock.errors import StorageError

from .flash import Flash


class Shelf(Flash):
    def begin(self):
        """Start a file aside. One that was begun and not finished is given up."""
        self._file = self._try(open, self._path + "new", "wb")
        self._written = 0

    def put(self, data):
        try:
            self._file.write(data)
        except OSError as e:
            raise self._error("write", "new", e)
        self._written += len(data)

    def finish(self, name):
        """The file that was begun takes the place of `name`, durably and at once."""
        aside = self._path + "new"
        try:
            self._file.close()
        except OSError as e:
            raise self._error("write", aside, e)
        if self._try(os.stat, aside)[6] != self._written:
            raise StorageError("%s: some bytes did not get there" % aside)
        self._try(os.rename, aside, self._path + name)
