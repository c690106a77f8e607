"""A real MicroPython VM that behaves like a flashed ESP32 board. See `__main__` for the command."""
