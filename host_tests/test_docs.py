"""What the documents say, against the code: commands, links, examples, numbers.

Limits: prose is not understood. Numbers are checked where they are written in a table or a
sentence that this file names; links outside the repository are not opened.
"""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from wattlock import app, config, evse, journal, session

from tools import bench, build, paths, size
from tools.gateway.config import Config as GatewayConfig

SCHEMAS = paths.ROOT / "tools" / "gateway" / "schemas"


@cache
def documents() -> list[Path]:
    """Every Markdown file of the repository, committed or about to be."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        names = done.stdout.split()
        return [paths.ROOT / name for name in names if (paths.ROOT / name).exists()]
    hidden = (".cache", "build", ".git")
    return [
        p for p in paths.ROOT.rglob("*.md") if p.relative_to(paths.ROOT).parts[0] not in hidden
    ]


def read(name: str) -> str:
    return (paths.ROOT / name).read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(paths.ROOT))


each_document = pytest.mark.parametrize("path", documents(), ids=name_of)


def code_of(text: str) -> list[str]:
    """Everything in a document that is typed: code spans and blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    return [*blocks, *re.findall(r"`([^`\n]+)`", rest)]


def test_the_documents_are_found():
    assert {"README.md", "firmware/README.md", "tools/gateway/UPLINK.md"} <= set(
        map(name_of, documents())
    )


# --- links and commands


@each_document
def test_links_lead_somewhere(path: Path):
    text = re.sub(r"^```\w*\n.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, _ = target.partition("#")
        assert not file or (path.parent / file).exists(), f"{name_of(path)}: {target}"


@each_document
def test_make_targets_exist(path: Path):
    makefile = read("Makefile")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    variables = set(re.findall(r"\$\((?:or )?\$?\(?([A-Z]+)\)", makefile))
    for code in code_of(path.read_text()):
        for line in code.splitlines():
            found = re.match(r"\s*make ([a-z]+)(.*)", line)
            if not found:
                continue
            assert found[1] in targets, f"{name_of(path)}: make {found[1]}"
            said = set(re.findall(r"\b([A-Z]{2,})=", found[2].split("#")[0]))
            assert said <= variables, f"{name_of(path)}: {line}"


@each_document
def test_modules_that_are_run_exist(path: Path):
    for module in re.findall(r"python -m ((?:tools|host_tests)\.[\w.]+)", path.read_text()):
        target = paths.ROOT.joinpath(*module.split("."))
        runs = target.with_suffix(".py").exists() or (target / "__main__.py").exists()
        assert runs, f"{name_of(path)}: python -m {module}"


def test_every_make_target_is_in_the_readme():
    listed = set(re.findall(r"`make ([a-z]+)", read("README.md").split("## Commands")[1]))
    explained = set(re.findall(r"^([a-z]+):.*##", read("Makefile"), re.M))
    assert listed == explained - {"help"}


def test_the_readme_names_only_subcommands_that_exist():
    table = read("README.md").split("## Commands")[1]
    for module, words in re.findall(r"`python -m (tools\.\w+) (\w+(?:`, `\w+)*)`", table):
        done = subprocess.run(
            [paths.PYTHON, "-m", module, "--help"],
            cwd=paths.ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for word in words.split("`, `"):
            assert word in done.stdout, f"{module} {word}"


# --- examples


def examples(path: Path) -> list[Any]:
    found = []
    for block in re.findall(r"^```json\n(.*?)^```", path.read_text(), re.M | re.S):
        try:
            found.append(json.loads(block))
        except ValueError as error:
            pytest.fail(f"{name_of(path)}: {error} in:\n{block}")
    return found


@each_document
def test_json_examples_parse(path: Path):
    for example in examples(path):
        assert isinstance(example, dict)


def schema(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def filled_in(example: dict[str, Any]) -> dict[str, Any]:
    """The example with hex digits for placeholders like <64 hex>."""
    text = re.sub(r"<(\d+) hex>", lambda m: "5f" * (int(m[1]) // 2), json.dumps(example))
    return json.loads(text.replace('"<echo>"', f'"{"5f" * 16}"').replace('"..."', '"S1"'))


def kind_of(example: dict[str, Any]) -> str | None:
    if "station_id" in example and "evses" in example:
        return "config"
    if "sid" in example:
        if "up_ms" not in example:
            return "down_header"
        return "up_header" if "journal" in example else "brief_header"
    return f"record_{example['t']}" if "t" in example else None


def known_examples() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (name_of(path), kind, filled_in(example))
        for path in documents()
        for example in examples(path)
        if (kind := kind_of(example))
    ]


def test_the_examples_are_valid_by_the_published_schemas():
    found = known_examples()
    assert {"config", "up_header", "brief_header", "down_header"} <= {kind for _, kind, _ in found}
    for where, kind, example in found:
        wrong = [error.message for error in schema(kind).iter_errors(example)]
        assert not wrong, f"{where}: {kind}: {wrong}"


def test_the_board_accepts_the_configurations_of_the_documents():
    for where, kind, example in known_examples():
        if kind == "config":
            board = build.load_board(example["board"])
            try:
                config.load(json.dumps(example), board, build.meters())
            except config.ConfigError as error:
                pytest.fail(f"{where}: {error}")


def test_the_gateway_accepts_its_readmes_configuration():
    path = paths.ROOT / "tools" / "gateway" / "README.md"
    (example,) = [e for e in examples(path) if "party" in e]
    GatewayConfig.model_validate(example)


# --- numbers and tables


def test_the_defaults_of_the_readme_are_the_codes():
    text = read("README.md").partition("| field | meaning | default |")[2].partition("\n\n")[0]
    said: dict[str, str] = {}
    for row in text.splitlines()[2:]:
        names, _, default = [cell.strip() for cell in row.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", names):
            said[name] = default
    minimal: dict[str, Any] = {
        "station_id": "A",
        "board": "virtual",
        "link": {"kind": "mqtt", "host": "h", "insecure": True},
        "buses": {"b": {"kind": "rtu", "uart": 1}},
        "evses": [{"n": 1, "meter": "eastron_sdm630_v2", "bus": "b", "max_a": 16}],
    }
    loaded = config.load(json.dumps(minimal), build.load_board("virtual"), build.meters())
    one = loaded["evses"][0]
    truth = {
        "link": f"port {loaded['link']['port']}",
        "unit": f"unit {one['unit']}",
        "phases": f"{one['phases']} phases",
        "require_meter": json.dumps(one["require_meter"]),
        "free_vend": json.dumps(one["free_vend"]),
        "plug_first": json.dumps(one["plug_first"]),
        "on_power_return": f"`{one['on_power_return']}`",
        "clock_lost": f"`{one['clock_lost']}`",
        "live_s": str(loaded["live_s"]),
        "bookings": json.dumps(loaded["bookings"]),
        "overstay": f"`{one['overstay']}`",
        "offline_cards": f"`{loaded['offline_cards']}`",
    }
    assert {name: said.get(name) for name in truth} == truth


FIRMWARE_NUMBERS = [
    ("96 KB are kept, 32 KB more", (journal.LIMIT, journal.RESERVED), (96 * 1024, 32 * 1024)),
    ("at most 1,024 bytes", journal.MAX_BODY, 1024),
    ("about 8 KB", journal.SEGMENT, 8188),
    ("an outage of at most 10 minutes", evse._OUTAGE_MS, 600_000),
    ("no sooner than 5 s after power is back", evse._OFF_MS, 5000),
    ("at most 3 times", session.MAX_RESUMES, 3),
    ("settled, or after 5 s", evse._SETTLE_MS, 5000),
    ("after 50 turns in a row", app._MAX_FAILURES, 50),
]


@pytest.mark.parametrize(("words", "code", "number"), FIRMWARE_NUMBERS)
def test_numbers_in_the_firmwares_readme(words: str, code: object, number: object):
    assert words in read("firmware/README.md")
    assert code == number


def test_numbers_in_the_readme():
    text = read("README.md")
    assert evse._UNKNOWN_TIME_MS == 120_000
    assert "`release` it after two minutes" in text
    assert f"| {size.BUDGET // 1024} KiB" in text
    card = bench.BUDGETS["a card session of one hour"]
    remote = bench.BUDGETS["a reserved remote session of one hour"]
    assert re.search(rf"erases, card session of one hour \| \d+ \| {card[0]}\b", text)
    assert re.search(rf"erases, reserved remote session of one hour \| \d+ \| {remote[0]}\b", text)
    assert re.search(rf"each 60 s \| \d+ KB \| {card[1] // 1000} KB", text)
    assert re.search(rf"reserved remote session \| \d+ KB \| {remote[1] // 1000} KB", text)


def test_the_boards_of_the_readme_are_the_boards():
    said = re.search(r"^boards/ .*: (.*)$", read("README.md"), re.M)
    assert said
    assert sorted(said[1].split(", ")) == build.boards()


def test_nothing_points_outside_the_repository():
    for path in documents():
        text = path.read_text()
        for word in ("/work/", "../shared", "/tmp/", "/home/"):
            assert word not in text, f"{name_of(path)}: {word}"


def test_every_word_for_a_link_that_is_not_there_is_explained() -> None:
    """Those that hal has, in the table of the firmware's README."""
    text = read("firmware/README.md")
    table = text[text.index("### Why a link is not there") : text.index("**Without a clock**")]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    explained = set(re.findall(r"`((?:tls|wifi|lan|dns)_\w+)`", first)) - {"wifi_N"}
    code = "".join(p.read_text() for p in (paths.ROOT / "firmware" / "hal").glob("*.py"))
    words = set(re.findall(r'"((?:tls|wifi|lan|dns)_[a-z_]+)"', code))
    assert explained == words | {"tls_ca", "tls_cert"}  # the last two are put together
