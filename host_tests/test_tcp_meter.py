"""A site whose meter answers Modbus TCP: the virtual board, pymodbus and a charge."""

import socket

import pytest

from tools.rig import METER, Rig
from tools.stage import Meter, Part


@pytest.fixture
def simulator(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    part = Part(
        tmp_path, "tools.meter", "simulate", "--meter", METER, "--tcp", f"127.0.0.1:{port}",
        "--control", "127.0.0.1:0", "--start-wh", "7654321",
    )  # fmt: skip
    meter = Meter(part.ready["control"])
    try:
        yield port, meter
    finally:
        meter.close()
        part.stop()


def test_a_charge_is_metered_over_tcp(micropython, simulator):
    port, meter = simulator
    evse = {"n": 1, "meter": METER, "bus": "lan", "unit": 1, "max_a": 32, "phases": 3}
    buses = {"lan": {"kind": "tcp", "host": "127.0.0.1", "port": port}}
    with Rig(heap="200k", buses=buses, evses=[evse]) as rig:
        rig.meter.close()
        rig.meter = meter
        rig.online()
        rig.plug("C")
        rig.show_card()
        rig.charging()
        rig.pass_time(600)
        rig.show_card()
        rig.stopped()
        records = rig.gateway.records
        (start,) = (r for r in records if r["t"] == "start")
        (stop,) = (r for r in records if r["t"] == "stop")
        assert start["register_wh"] == 7_654_321
        assert stop["total_wh"] == meter.wh() - 7_654_321 > 1000
        assert len([r for r in records if r["t"] == "meter"]) == 1, "first seen, then no trouble"
