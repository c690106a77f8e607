"""`esp32`: the numbers of IDF's heap are those of an idle ESP32 and do not move."""

HEAP_EXEC = 1
HEAP_DATA = 4


def idf_heap_info(capabilities):
    """[(total, free, largest free block, least ever free)] in bytes, one tuple a region."""
    return [(15072, 11000, 10752, 11000), (113840, 40000, 38912, 36000)]
