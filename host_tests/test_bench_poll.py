"""The bench of polls measures what it says: fresh replies, all registers, nothing allocated.

The comparison itself needs valgrind and the other library, which `make bench` fetches.
"""

import pytest

from tools import bench_poll


@pytest.mark.parametrize("name", ["a read", "a whole poll", "a whole poll over TCP"])
def test_the_registers_of_the_newest_reply_come_out(micropython, tmp_path, monkeypatch, name):
    monkeypatch.setattr(bench_poll, "FOLDER", tmp_path / "bench")
    bench_poll.prepare(peer=False)
    size, values = bench_poll.allocated(bench_poll.PROGRAMS[name])
    assert size == 0
    # a read runs seven times, a whole poll nine; the first reply is number 0
    assert values == bench_poll.registers((6 if name == "a read" else 8) & 3)


def test_a_share_over_the_budget_is_said():
    found = {
        "peer": {"instructions": 1000, "bytes": 10},
        "a read": {"instructions": 251, "bytes": 0},
        "a whole poll": {"instructions": 400, "bytes": 0},
    }
    assert bench_poll.table(found).count("OVER") == 1
    found["a read"]["instructions"] = 250
    assert "OVER" not in bench_poll.table(found)
