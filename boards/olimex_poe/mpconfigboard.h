#include "boards/OLIMEX_ESP32_POE/mpconfigboard.h"
