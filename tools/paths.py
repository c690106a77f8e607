"""Where things are: the one place that names the folders of this project.

Everything that is fetched lives in `.cache`, everything that is made in `build`; both may be
deleted at any time (`make clean` deletes the second).
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRMWARE = ROOT / "firmware"
METERS = FIRMWARE / "meters"
BOARDS = ROOT / "boards"
STUBS = ROOT / "host_tests" / "stubs"
BUILD = ROOT / "build"

CACHE = ROOT / ".cache"
VENV = CACHE / "venv"
PYTHON = VENV / "bin" / "python"
TYPINGS = CACHE / "typings"
VM = CACHE / "vm" / "micropython"
MOSQUITTO = CACHE / "mosquitto" / "mosquitto"
MOSQUITTO_PASSWD = CACHE / "mosquitto" / "mosquitto_passwd"
VALGRIND = CACHE / "valgrind" / "valgrind"  # for `make bench` only, as is the next
UMODBUS = CACHE / "umodbus"
LIB = CACHE / "lib"  # MicroPython libraries that the boards' image freezes and the VM lacks
SETUP_STAMP = CACHE / "setup.stamp"
