"""The bench of replay measures what it says: the session's records are read, all of them.

Instructions need valgrind, which `make bench` fetches.
"""

from tools import bench_poll, bench_replay


def test_the_records_come_out(micropython, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_poll, "FOLDER", tmp_path / "bench")
    found = bench_replay.prepare(tmp_path)
    few, many = (bench_replay.allocated(found[n]) for n in (bench_replay.FEW, bench_replay.MANY))
    # by hand: 11 kW for a quarter of an hour are 2,750 Wh, in each record but boot and start
    assert few[1:] == (bench_replay.FEW, 2750 * (bench_replay.FEW - 2))
    assert many[1:] == (bench_replay.MANY, 2750 * (bench_replay.MANY - 2))
    assert many[0] > few[0]
    for n in (bench_replay.FEW, bench_replay.MANY):
        assert len(list(found[n].iterdir())) == 1, "the replay begins at the first record"
    live = bench_replay.allocated(found[bench_replay.LIVE])
    assert live[1] == bench_replay.LIVE
    assert live[2] == 2750 * len([n for n in range(2, bench_replay.LIVE) if n % 8 == 0])
    assert len(list(found[bench_replay.LIVE].iterdir())) > 8
