"""A network that is there without our doing (a test bench)."""


class Wired:
    up = True
    why = None

    def turn(self, ticks):
        pass

    def dns(self):
        return None
