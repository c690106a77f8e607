"""`esp32`: the numbers of IDF's heap are those of an idle ESP32 and do not move; NVS outlives the
power."""

from wires import keep, kept

HEAP_EXEC = 1
HEAP_DATA = 4


def idf_heap_info(capabilities):
    """[(total, free, largest free block, least ever free)] in bytes, one tuple a region."""
    return [(15072, 11000, 10752, 11000), (113840, 40000, 38912, 36000)]


class NVS:
    def __init__(self, place):
        self._name = "nvs." + place + "."

    def get_i32(self, key):
        return int(kept(self._name + key))

    def set_i32(self, key, value):
        keep(self._name + key, str(value).encode())

    def get_blob(self, key, buffer):
        data = kept(self._name + key)
        buffer[: len(data)] = data
        return len(data)

    def set_blob(self, key, data):
        keep(self._name + key, data)

    def erase_key(self, key):
        kept(self._name + key)
        keep(self._name + key, None)

    def commit(self):
        pass
