# An image with the application frozen into it, and a file system that is made anew when it has
# to be: make -C ports/esp32 BOARD_DIR=.../boards/NAME
# The port's own modules but for its _boot.py, which stops where the file system is corrupt.
freeze("$(PORT_DIR)/modules", ("flashbdev.py", "inisetup.py"))
try:
    freeze("$(PORT_DIR)/modules", "machine.py")  # counts pulses by hardware
except Exception:
    pass  # a release that has none
freeze(".", ("_boot.py", "rebuild.py"))
include("$(MPY_DIR)/extmod/asyncio")
require("ssl")
require("umqtt.simple")
require("requests")
require("ntptime")
require("neopixel")
freeze("../../firmware", ("boot.py", "main.py", "start.py"), opt=3)
package("wattlock", base_path="../../firmware", opt=3)
package("hal", base_path="../../firmware", opt=3)
