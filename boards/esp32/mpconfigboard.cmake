# make -C ports/esp32 BOARD_DIR=.../boards/esp32: see boards/esp32/README.md
include(boards/ESP32_GENERIC/mpconfigboard.cmake)
include(${MICROPY_BOARD_DIR}/../modules/image.cmake)
