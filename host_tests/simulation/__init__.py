"""Simulation: the real agent in a small physical world, under one virtual clock and one seed.

The nouns and the shell are the very objects that run on a board (`wattlock.app.build`), writing to
a real LittleFS through the real `hal/flash.py`. Around them, small and honest models: a contactor
and a lock that take their time, cars, cards, a meter that counts in milliwatt-seconds, a gateway
written from UPLINK.md alone, a lossy link and somebody on it who means ill.

    world.py     clock, event queue, power, the loop that drives the agent
    flash.py     NOR flash that counts, cuts and fails; LittleFS; hal/flash.py on it
    plant.py     contactor, lock, plug, load, meter
    link.py      the way to the gateway and back, and the attacker on it
    gateway.py   uplink v1, as the contract says it
    drivers.py   people: what they plan, show, plug and pull
    faults.py    one registry of faults; a new fault is one small class
    checker.py   promises P1 to P8, by arithmetic of its own
    plan.py      what a seed stands for
    runner.py    many seeds, side by side

A seed is a whole story: it can be run again (`python -m host_tests.simulation --seed S`), and one
that breaks a promise prints what happened.
"""

import sys

from tools import paths

if str(paths.FIRMWARE) not in sys.path:
    sys.path.insert(0, str(paths.FIRMWARE))
