# make -C ports/esp32 BOARD_DIR=.../boards/olimex_poe: see boards/esp32/README.md
include(boards/OLIMEX_ESP32_POE/mpconfigboard.cmake)
include(${MICROPY_BOARD_DIR}/../modules/image.cmake)
