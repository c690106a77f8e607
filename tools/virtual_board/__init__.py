"""A real MicroPython VM that behaves like a flashed ESP32 board: `__main__` has the command."""
