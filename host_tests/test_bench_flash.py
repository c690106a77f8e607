"""The budgets of the flash, counted at the block device, and the years in the README."""

import re
from pathlib import Path

from tools import bench_flash, paths


def test_a_life_keeps_its_budgets(micropython: Path) -> None:
    found = bench_flash.measure(wear_syncs=0)
    for name, budget in bench_flash.BUDGETS.items():
        row = found[name]
        assert 0 < row["erases"] <= budget, (name, row)
        assert row["syncs"] < 25 and row["longest_ms"] <= bench_flash.STALL_MS, (name, row)
        assert row["longest_without_sync_ms"] == 0, (name, row)
    session = found["a card session of one hour"]["erases"]
    assert found[bench_flash.NAIVE]["erases"] > 20 * session


def test_no_write_takes_longer_than_the_loop_may_stall(micropython: Path) -> None:
    """Thousands of them, of all lengths, through every fold and move of LittleFS's folder."""
    wear = bench_flash.measure(wear_syncs=2000)["wear"]
    none, one, two, three, more = wear["by_erases"]
    assert one > 2000 > 100 > two > three > none == more == 0, wear
    assert 90 < wear["longest_ms"] <= bench_flash.STALL_MS, wear


def test_the_years_in_the_readme_follow_from_its_numbers() -> None:
    text = (paths.ROOT / "README.md").read_text()
    said = re.search(
        r"are 8 x (\d+) \+ (\d+) = (\d+) erases a day.*?"
        r"x 365 / (\d+) x ([\d.]+) = (\d+) erases a year,\s*and 100,000 are reached after about "
        r"(\d+) years; after ([\d.]+) if",
        text,
        re.S,
    )
    assert said
    session, idle, day, blocks, uneven, year, years, bare = map(float, said.groups())
    assert bench_flash.SESSIONS * session + idle == day
    assert round(day * 365 / blocks * uneven) == year
    assert abs(100_000 / year - years) < 10 and round(100_000 / day / 365, 1) == bare
    assert abs(bench_flash.years(day, int(blocks), uneven) - years) < 10
