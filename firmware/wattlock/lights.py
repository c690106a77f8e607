"""The indicator: what a driver should know, as a rhythm and a colour.

The first row that holds is shown. A lamp of one colour shows the rhythm alone, so no two rows
share one. On and off are in units of 25 ms; colours are sums of red 4, green 2, blue 1.

    row         | holds while                                        | colour  | on ms | off ms
    ------------+----------------------------------------------------+---------+-------+-------
    WRONG_CARD  | for two seconds after a card was refused           | red     | 125   | 375
    WAITING     | a card is asked for, or a right waits for its plug | white   | 50    | 200
    FAULT       | out of order                                       | red     | 125   | 125
    OUT         | out of service: set so by the operator             | red     | 25    | 6000
    CHARGING    | a session is open, or a plug is in                 | blue    | 1000  | 0
    RESERVED    | reserved or booked                                 | yellow  | 500   | 500
    OFFLINE     | free, and the gateway cannot be reached            | magenta | 50    | 1450
    AVAILABLE   | free                                               | green   | 50    | 3950
"""

WRONG_CARD = 0
WAITING = 1
FAULT = 2
OUT = 3
CHARGING = 4
RESERVED = 5
OFFLINE = 6
AVAILABLE = 7

UNIT_MS = 25
# colour, on, off
_ROWS = (
    b"\x04\x05\x0f"
    b"\x07\x02\x08"
    b"\x04\x05\x05"
    b"\x04\x01\xf0"
    b"\x01\x28\x00"
    b"\x06\x14\x14"
    b"\x05\x02\x3a"
    b"\x02\x02\x9e"
)


def colour(row, ticks):
    """What the indicator shows at this moment: 0 dark, else the sum of its colours."""
    at = row * 3
    on = _ROWS[at + 1]
    return _ROWS[at] if ticks // UNIT_MS % (on + _ROWS[at + 2]) < on else 0
