"""Deploy and provision onto the virtual board, through its console, with unmodified mpremote.

The tests of a class share one board and build on each other, as the days of a real board do.
"""

import hmac
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import build as builder
from tools import deploy, journal, paths, provision
from tools.deploy import Board

CONFIG = {
    "station_id": "DEPLOY-1",
    "board": "virtual",
    "link": {"kind": "mqtt", "host": "127.0.0.1", "port": 9, "insecure": True},
    "buses": {"rs485": {"kind": "rtu", "uart": 1}},
    "evses": [
        {"n": 1, "meter": "eastron_sdm630_v2", "bus": "rs485", "unit": 1, "max_a": 32, "phases": 3}
    ],
}


class Bench:
    """A running virtual board with its console, and the files that a person has at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = str(folder / "board.tty")
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(CONFIG))

    def deploy(self, *extra: str, **named: object) -> int:
        options = {"port": self.port, "board": "virtual", "config": self.config} | named
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return deploy.main([*words, *extra])

    def provision(self, *extra: str) -> int:
        return provision.main(["--port", self.port, "--station", "DEPLOY-1", *extra])

    def mpremote(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mpremote", "connect", self.port, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def files(self) -> dict[str, tuple[str, int]]:
        """Digest and size of every file on the board but the agent's own records."""
        found = Board(self.port).digests("/")
        return {p: v for p, v in found.items() if not p.startswith(("/journal", "/anchor"))}

    def causes(self) -> list[str]:
        """Why the agent started, boot by boot."""
        records = [record.fields for record in journal.read_board(self.port).records]
        return [record["cause"] for record in records if record["t"] == "boot"]

    def slot(self) -> str:
        return Board(self.port).state().slot


@pytest.fixture(scope="class")
def bench(micropython: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("deploy"))
    command = [sys.executable, "-m", "tools.virtual_board", "--state", str(bench.folder / "board")]
    process = subprocess.Popen(
        [*command, "--pty", bench.port], stdout=subprocess.PIPE, text=True, cwd=paths.ROOT
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line and json.loads(line)["ready"], "the virtual board did not start"
        yield bench
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


@pytest.fixture(autouse=True)
def evidence(bench: Bench) -> Iterator[None]:
    """What the board said during a test: pytest shows it if the test fails."""
    log = bench.folder / "board" / "console.log"
    before = log.stat().st_size
    yield
    said = log.read_bytes()[before:].decode(errors="backslashreplace")
    print("--- console.log", said[-8000:], sep="\n")


class TestNewBoard:
    def test_mpremote_works_as_on_a_real_board(self, bench: Bench) -> None:
        assert bench.mpremote("exec", "print(6 * 7)").strip() == "42"
        local = bench.folder / "note.txt"
        local.write_text("a note\n")
        bench.mpremote("fs", "cp", str(local), ":/note.txt")
        assert "note.txt" in bench.mpremote("fs", "ls", ":/")
        assert bench.mpremote("fs", "cat", ":/note.txt") == "a note\n"
        bench.mpremote("exec", "x = 1", "+", "soft-reset")
        assert bench.mpremote("resume", "exec", "print('x' in globals())").strip() == "False"
        bench.mpremote("fs", "rm", ":/note.txt")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"port": "/dev/nothing-here"}, "PORT: /dev/nothing-here is not there"),
            ({"port": ""}, "PORT: is missing"),
            ({"board": "toaster"}, "BOARD: 'toaster' is unknown; use one of"),
            ({"config": "/no/such/file"}, "CONFIG: '/no/such/file': No such file"),
            ({"secrets": "/no/such/file"}, "SECRETS: '/no/such/file': No such file"),
        ],
    )
    def test_a_wrong_argument_is_named_and_the_board_not_touched(
        self, bench: Bench, change: dict, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = bench.files()
        assert bench.deploy(**change) == 1
        assert message in capsys.readouterr().err
        assert bench.files() == before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"evses": [CONFIG["evses"][0] | {"meter": "abacus"}]}, "'abacus' is unknown"),
            ({"live_s": "sixty"}, "live_s: 'sixty' must be a whole number"),
            ({"board": "other"}, "config.board: 'other' is not this board"),
        ],
    )
    def test_a_bad_config_is_named_and_the_board_not_touched(
        self, bench: Bench, change: dict, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = bench.files()
        bad = bench.folder / "bad.json"
        bad.write_text(json.dumps(CONFIG | change))
        assert bench.deploy(config=bad) == 1
        assert message in capsys.readouterr().err
        assert bench.files() == before

    def test_a_missing_key_is_named(
        self, bench: Bench, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = bench.folder / "bad.json"
        bad.write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "station_id"}))
        assert bench.deploy(config=bad) == 1
        assert "config.station_id: is missing; add it" in capsys.readouterr().err

    def test_an_unsuitable_micropython_is_refused(
        self,
        bench: Bench,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """A board description that asks for more stands in for a board that has less."""
        description = builder.load_board("virtual") | {"micropython": [99, 0]}
        (tmp_path / "virtual").mkdir()
        (tmp_path / "virtual" / "board.json").write_text(json.dumps(description))
        monkeypatch.setattr(paths, "BOARDS", tmp_path)
        before = bench.files()
        assert bench.deploy() == 1
        error = capsys.readouterr().err
        assert "MicroPython 99.0 or newer is needed: make flash PORT=" in error
        assert bench.files() == before

    def test_a_board_without_identity_is_refused(
        self, bench: Bench, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = bench.files()
        assert bench.deploy() == 1
        assert "has no /secrets.json: make provision PORT=" in capsys.readouterr().err
        assert bench.files() == before


class TestLifeOfABoard:
    """Each test goes on where the one before it left the board."""

    def test_provision_writes_the_identity_to_both_places(self, bench: Bench) -> None:
        out = bench.folder / "entry.json"
        password = bench.folder / "password"
        password.write_text("correct horse\n")
        mqtt = ("--mqtt-user", "DEPLOY-1", "--mqtt-password-file", str(password))
        assert bench.provision("--out", str(out), *mqtt) == 0
        assert stat.S_IMODE(os.stat(out).st_mode) == 0o600
        entry = json.loads(out.read_text())["stations"]["DEPLOY-1"]
        there = json.loads(Board(bench.port).read("/secrets.json"))
        assert there == entry | {"mqtt": {"user": "DEPLOY-1", "password": "correct horse"}}
        assert entry["kid"] == 1
        assert len(bytes.fromhex(entry["key"])) == 32

    def test_an_identity_is_not_overwritten_by_accident(
        self, bench: Bench, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = bench.files()
        assert bench.provision("--out", str(bench.folder / "second.json")) == 1
        assert "has an identity (key id 1); with --replace" in capsys.readouterr().err
        assert bench.provision("--replace", "--out", str(bench.folder / "entry.json")) == 1
        assert "entry.json is there already" in capsys.readouterr().err
        assert bench.files() == before
        assert not (bench.folder / "second.json").exists()

    def test_replace_draws_a_new_key_with_the_next_id(self, bench: Bench) -> None:
        out = bench.folder / "third.json"
        assert bench.provision("--replace", "--out", str(out)) == 0
        old = json.loads((bench.folder / "entry.json").read_text())["stations"]["DEPLOY-1"]
        new = json.loads(out.read_text())["stations"]["DEPLOY-1"]
        assert new["kid"] == 2
        assert new["key"] != old["key"]
        assert "chain" not in new  # there is no journal yet

    def test_the_agent_comes_up(self, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench.deploy() == 0
        version = builder.version()
        assert f"wattlock {version} DEPLOY-1 boot 1 slot a ready" in capsys.readouterr().out
        files = bench.files()
        wanted = builder.build("virtual", CONFIG).files("a")
        assert {p: builder.digest(d) for p, d in wanted.items()}.items() <= {
            path: value[0] for path, value in files.items()
        }.items()
        assert not [path for path in files if path.endswith(".tmp")]

    def test_the_same_again_copies_nothing(
        self, bench: Bench, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = bench.files()
        assert bench.deploy() == 0
        out = capsys.readouterr().out
        assert "nothing to copy" in out
        assert "copied" not in out
        assert "replaced" not in out
        assert bench.files() == before

    def test_a_new_configuration_replaces_one_file(
        self, bench: Bench, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bench.config.write_text(json.dumps(CONFIG | {"live_s": 30}))
        before = bench.files()
        trial = "open('/trial.json', 'w').write('{}')"  # something from afar that is to be tried
        bench.mpremote("exec", trial)
        assert bench.deploy() == 0
        assert "replaced /config.json\n" in capsys.readouterr().out
        after = bench.files()
        assert {path for path in after if after[path] != before.get(path)} == {"/config.json"}
        assert bench.causes()[-1] == "hard", "a person at the console, and no other firmware"

    def test_a_changed_module_goes_alone_into_the_other_slot(
        self,
        bench: Bench,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        changed = altered(bench, "wattlock/ocpi.mpy", "EXTRA = []\n", append=True)
        monkeypatch.setattr(builder, "build", lambda *_: changed)
        assert bench.deploy() == 0
        out = capsys.readouterr().out
        kept = len(changed.slot) - 2  # the module and the manifest come over the wire
        assert f"slot b: 2 copied, {kept} taken from the other slot" in out
        assert "slot b ready" in out
        assert bench.slot() == "b"
        before = bench.causes()
        assert before[-1] == "update"
        assert bench.causes() == [*before, "hard"], "the reset after the reading"

    def test_an_agent_that_fails_is_taken_back(
        self,
        bench: Bench,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # The test before left slot b in force, and the board as it is here has to come back.
        bench.config.write_text(json.dumps(CONFIG | {"live_s": 45}))
        before = {p: v for p, v in bench.files().items() if not p.startswith("/a/")}
        broken = altered(bench, "wattlock/app.mpy", "raise RuntimeError('broken on purpose')\n")
        monkeypatch.setattr(builder, "build", lambda *_: broken)
        assert bench.deploy() == 1
        error = capsys.readouterr().err
        assert "RuntimeError: broken on purpose" in error
        assert "slot b is in force again" in error
        assert bench.causes()[-1] == "update", "so is going back"
        assert {p: v for p, v in bench.files().items() if not p.startswith("/a/")} == before

    def test_the_next_deploy_repairs_it(
        self, bench: Bench, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench.deploy() == 0
        assert "slot a ready" in capsys.readouterr().out

    def test_a_new_key_does_not_break_the_chain_of_the_journal(self, bench: Bench) -> None:
        """Twice: the chain's key is that of the first, by RFC 2104."""
        secrets = json.loads(bench.mpremote("fs", "cat", ":/secrets.json"))
        chain = hmac.digest(bytes.fromhex(secrets["key"]), b"wattlock/1/chain/DEPLOY-1", "sha256")
        for name in ("fourth", "fifth"):
            out = bench.folder / f"{name}.json"
            assert bench.provision("--replace", "--out", str(out)) == 0
            new = json.loads(out.read_text())["stations"]["DEPLOY-1"]
            assert new["chain"] == chain.hex() and new["key"] != secrets["key"]
            there = json.loads(bench.mpremote("fs", "cat", ":/secrets.json"))
            assert {k: there[k] for k in new} == new


def altered(bench: Bench, name: str, source: str, append: bool = False) -> builder.Build:
    """A build in which one module has another source."""
    build = builder.build("virtual", CONFIG)
    path = bench.folder / "altered.py"
    original = paths.FIRMWARE / name.replace(".mpy", ".py")
    path.write_text((original.read_text() if append else "") + source)
    slot = build.slot | {name: builder.compile_mpy(path, name)}
    manifest = json.loads(slot.pop("manifest.json"))
    manifest["files"][name] = builder.digest(slot[name])
    slot["manifest.json"] = json.dumps(manifest, separators=(",", ":")).encode()
    return builder.Build(build.version, build.bytecode, build.root, slot)
