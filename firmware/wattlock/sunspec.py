"""SunSpec: find the model of the meter in a device's map. Loaded for meters that need it."""


class Walk:
    """Find a SunSpec model: a map starts with "SunS" at one of three addresses, then come models,
    each with its number and length, until number 0xFFFF.

    `address`: of the two registers to read next; `model`: where the meter's model starts, once
    found; `common`: where model 1 (the serial number) starts. Source: SunSpec Device Information
    Model Specification.
    """

    _BASES = (40000, 0, 50000)

    def __init__(self, wanted):
        self._wanted = wanted
        self._base = 0
        self.begin()

    def begin(self):
        self._tried = 0
        self._start()

    def _start(self):
        self.address = self._BASES[self._base]
        self.model = self.common = None
        self._models = -1  # seen so far; -1: not even the start

    def elsewhere(self):
        """It is not here. True while there is another place to look at."""
        self._base = (self._base + 1) % 3
        self._tried += 1
        self._start()
        return self._tried < 3

    def accept(self, high, low):
        """The two registers at `address`. Returns None, or modbus.PROTOCOL where this is no map
        with such a model."""
        if self._models < 0:
            if high != 0x5375 or low != 0x6E53:
                return None if self.elsewhere() else 9
            self.address += 2
        elif high in self._wanted:
            self.model = self.address
        elif high == 0xFFFF or self._models > 30:
            return 9
        else:
            if high == 1:
                self.common = self.address
            self.address += 2 + low
        self._models += 1
        return None

    def registers(self, rows):
        """The description's rows at the addresses where the map was found."""
        found = {}
        for name in rows:
            start = self.common if name == "serial" else self.model
            if start is not None:
                found[name] = row = [rows[name][0] + start] + rows[name][1:]
                if len(row) > 4:
                    row[4] += start
        return found
