"""First code of the chip: every contactor open, whatever comes next. Never raises.

The connector lock is not touched: nobody knows yet whether it has to hold.
"""

try:
    import json

    from machine import Pin

    with open("/board.json") as f:
        for spec in json.load(f)["evses"].values():
            pin = spec["contactor"]
            Pin(pin["pin"], Pin.OUT, value=1 - pin.get("active", 1))
except Exception as e:
    print("wattlock: boot:", e)
