# What turns a board of MicroPython's ESP32 port into ours: `aside` in its partition table, and the
# application frozen in. Included by boards/*/mpconfigboard.cmake, after the port's own board.
set(TABLE ${CMAKE_CURRENT_LIST_DIR}/partitions.csv)
file(WRITE ${CMAKE_BINARY_DIR}/sdkconfig.wattlock
    "\nCONFIG_PARTITION_TABLE_CUSTOM=y\nCONFIG_PARTITION_TABLE_CUSTOM_FILENAME=\"${TABLE}\"\n")
list(APPEND SDKCONFIG_DEFAULTS ${CMAKE_BINARY_DIR}/sdkconfig.wattlock)
set(MICROPY_FROZEN_MANIFEST ${CMAKE_CURRENT_LIST_DIR}/manifest.py)
