"""The journal's files in memory, which fail where a test says so."""

from wattlock.errors import StorageError


class Store:
    """The journal's files. The operation that `fail_at` counts down to raises StorageError, after
    nothing, half or all of it was done; with `dead` every one raises from then on."""

    def __init__(self, files=None):
        self.files = dict(files or {})
        self.fail_at = None
        self.done = 0  # 0 nothing, 1 half, 2 all
        self.dead = False
        self.writes = 0
        self.aside = {}
        self.reserved = False

    def _fails(self):
        if self.dead:
            raise StorageError("bench: the store is dead")
        if self.fail_at is None:
            return False
        self.fail_at -= 1
        if self.fail_at:
            return False
        self.fail_at = None
        return True

    def names(self):
        return list(self.files)

    def size(self, name):
        return len(self.files[name])

    def read(self, name, offset, n):
        if name not in self.files:
            raise StorageError("bench: no " + name)
        return self.files[name][offset : offset + n]

    def append(self, name, *parts):
        data = b"".join(parts)
        fails = self._fails()
        if fails:
            data = data[: len(data) * self.done // 2]
        self.files[name] = self.files.get(name, b"") + data
        self.writes += 1
        if fails:
            raise StorageError("bench: append failed as told")

    def create(self, name, *parts):
        data = b"".join([p if isinstance(p, bytes) else b"".join(p) for p in parts])
        fails = self._fails()
        if not fails or self.done == 2:  # a rename is done or not
            self.files[name] = data
        self.writes += 1
        if fails:
            raise StorageError("bench: create failed as told")

    # a shelf's

    def begin(self):
        self.aside = b""

    def put(self, data):
        self.aside += data

    def finish(self, name):
        self.create(name, self.aside)

    def remove(self, name):
        fails = self._fails()
        if not fails or self.done == 2:
            del self.files[name]
        if fails:
            raise StorageError("bench: remove failed as told")

    def reserve(self):
        self.reserved = True

    def release(self):
        self.reserved = False

    def set_aside(self, why, *parts):
        self.aside = self.files
        self.files = {why: b"".join(parts)}
