"""What an hour of charging costs on the wire: counted at the socket, MQTT and TLS included."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tools import bench, bench_message
from tools.emsp.models import Session
from tools.gateway import ocpi
from tools.gateway.messages import is_brief
from tools.relay import handshake
from tools.rig import Rig

BUDGET = 30_000  # bytes; DESIGN: 30 KB


@pytest.mark.usefixtures("micropython")
@pytest.mark.parametrize("session", [bench.card_session, bench.reserved_session])
def test_an_hour_of_charging_over_tls_costs_at_most_30_kb(session) -> None:
    with Rig(heap=bench.SECURE_HEAP, link=bench.SECURE, live_s=60) as rig:
        rig.online()
        begin = bench.counters(rig)
        sent = len(rig.gateway.headers)
        session(rig)
        cost = bench.counters(rig)["wire_bytes"] - begin["wire_bytes"]
        heads = rig.gateway.headers[sent:]
        assert rig.relay.connections == 1 and rig.board.boot() == 1
        # and it was an hour with live updates every 60 s
        shown = [h for h in heads if "wh" in h["live"].get("1", {})]
        ups = [h["up_ms"] for h in shown]
        assert ups[-1] - ups[0] >= 3_600_000
        assert max(b - a for a, b in pairwise(ups)) < 62_000
        assert len({h["live"]["1"]["wh"] for h in shown}) >= 59
        assert sum(map(is_brief, heads)) > 50
        # over TLS indeed: the certificate's handshake came first, in records
        assert handshake(rig.relay.first_up) > 200 and handshake(rig.relay.first_down) > 500
        assert cost <= BUDGET


@pytest.mark.parametrize("minute", [1, 15, 16, 60])
def test_whole_sessions_beside_it_are_sessions(minute: int) -> None:
    """As the eMSP of the tests, which is strict, reads them."""
    text = ocpi.dumps(bench.session_object(minute))
    session = Session.model_validate(ocpi.loads(text))
    energy = sum(p.dimensions[0].volume for p in session.charging_periods)
    assert abs(float(energy) - float(session.kwh)) < 0.005
    assert len(session.charging_periods) == (minute + 14) // 15


@pytest.mark.usefixtures("micropython")
def test_the_heap_of_a_message_is_bounded() -> None:
    found = bench_message.measure()
    assert all(one["needed"] <= bench_message.BOUND for one in found.values()), found
    assert found["brief"]["needed"] < found["whole"]["needed"]
    assert found["whole_with_records"]["size"] > 1200 and found["brief"]["size"] < 200
