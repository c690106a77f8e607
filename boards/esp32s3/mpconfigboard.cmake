# make -C ports/esp32 BOARD_DIR=.../boards/esp32s3: see boards/esp32/README.md
include(boards/ESP32_GENERIC_S3/mpconfigboard.cmake)
include(${MICROPY_BOARD_DIR}/../modules/image.cmake)
