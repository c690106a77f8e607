"""`make setup`: everything the project needs, fetched into `.cache`, nothing installed.

Runs with the machine's own python3 (3.11 or newer) and the standard library. It makes

- `.cache/venv`: the Python packages pinned in pyproject.toml;
- `.cache/typings`: type stubs of MicroPython on ESP32, apart because they shadow real packages;
- `.cache/vm/micropython`: a 32-bit MicroPython, with the object sizes of an ESP32;
- `.cache/mosquitto/mosquitto`: an MQTT broker;
- `.cache/lib/umqtt/simple.py`: the MQTT client that the official board images freeze.

The VM and the broker come from Debian's suite trixie through the mirror this machine is already
configured for, with an apt state of our own: no root, no `apt-get update`, nothing of the system
changes. The packages are unpacked and started through their own loader, so their C library does
not have to be this machine's. A mirror in the middle of a synchronisation can hold package lists
that do not fit its signature; the next suite is taken then, whose MicroPython is newer. Where
there is no such mirror, programs on the PATH are taken and the difference is said.

`make bench` fetches two parts more when it first runs (`for_bench`): `.cache/valgrind`, of the
VM's architecture, and `.cache/umodbus`, the Modbus library that polls are compared with.

Each part has a stamp with a hash of its inputs: running again costs nothing. What cannot be had
is named with what to install and what stays untested; with CI=true that is a failure.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools import paths

SUITES = ("trixie", "forky")
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
UMQTT = ("micropython-umqtt.simple", "1.3.4")
UMQTT_SHA256 = "b6a2520239e3992c63a7de9370ee9b3d9d27819a90359c521f1c0f7ccab8d12f"
UMODBUS = ("micropython-modbus", "2.3.7")
UMODBUS_SHA256 = "b9351a66af0ff29dd585900e53827a989dedcb02ec63b1041358165089652271"

# Debian's architectures that a machine can run, those with an ESP32's word size first.
ARCHITECTURES = {"x86_64": ["i386", "amd64"], "aarch64": ["armhf", "arm64"]}


class Missing(Exception):
    """A part cannot be had here; the text says why and what to do."""


def say(text: str) -> None:
    print(text, flush=True)


def run(*command: str | Path, **options) -> None:
    """Run with the terminal attached, so that downloads show their progress."""
    subprocess.run([str(word) for word in command], check=True, **options)


def output(*command: str | Path, **options) -> str:
    done = subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True, **options
    )
    return done.stdout.strip()


@contextlib.contextmanager
def part(name: str, product: Path, inputs: str) -> Iterator[bool]:
    """Yield whether the part has to be made; stamp it when the body succeeded."""
    stamp = paths.CACHE / "stamps" / name
    digest = hashlib.sha256(inputs.encode()).hexdigest()
    fresh = stamp.exists() and stamp.read_text() == digest and product.exists()
    if not fresh:
        stamp.unlink(missing_ok=True)
        say(f"setup: {name} -> {product.relative_to(paths.ROOT)}")
    yield not fresh
    if not fresh:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest)


class Apt:
    """The machine's own Debian mirror for one architecture, read with a private state.

    One object holds one download of the package lists, made when first asked for.
    """

    def __init__(self, folder: Path, architecture: str) -> None:
        self.folder = folder
        self.architecture = architecture
        self._options: list[str] | None = None

    def _mirrors(self) -> list[str]:
        """Base addresses of the configured sources, Debian's main archive before others."""
        try:
            text = output("apt-get", "update", "--print-uris")
        except (OSError, subprocess.CalledProcessError) as error:
            raise Missing("this machine has no apt with a Debian mirror") from error
        found = dict.fromkeys(re.findall(r"^'(.+?)/?/dists/", text, re.MULTILINE))
        return sorted(
            (uri for uri in found if "security" not in uri), key=lambda uri: "debian" not in uri
        )

    def _start(self, mirror: str, suite: str) -> list[str]:
        state = self.folder / f"apt-{self.architecture}"
        shutil.rmtree(state, ignore_errors=True)
        for sub in ("lists/partial", "cache/archives/partial"):
            (state / sub).mkdir(parents=True)
        signed_by = f" signed-by={DEBIAN_KEYRING}" if DEBIAN_KEYRING.exists() else ""
        sources = state / "sources.list"
        sources.write_text(f"deb [arch={self.architecture}{signed_by}] {mirror} {suite} main\n")
        settings = {
            "Dir::State": state,
            "Dir::State::Lists": state / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": state / "cache",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Default-Release": "",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        options = [f"-o{key}={value}" for key, value in settings.items()]
        say(f"setup: package lists of Debian {suite} for {self.architecture} from {mirror}")
        run("apt-get", *options, "-q", "update", "--error-on=any")
        return options

    def options(self) -> list[str]:
        if self._options is None:
            mirrors = self._mirrors()
            for suite, mirror in itertools.product(SUITES, mirrors):
                with contextlib.suppress(subprocess.CalledProcessError):
                    self._options = self._start(mirror, suite)
                    break
            else:
                raise Missing(
                    f"no configured mirror serves Debian {' or '.join(SUITES)} for "
                    f"{self.architecture} (found: {', '.join(mirrors) or 'none'})"
                )
        return self._options

    def _with_libraries(self, packages: list[str]) -> list[str]:
        """The packages and, over all levels, the libraries they depend on."""
        wanted = dict.fromkeys(packages)
        level = packages
        while level:
            text = output("apt-cache", *self.options(), "show", "--no-all-versions", *level)
            following = []
            for stanza in text.split("\n\n"):
                field = dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))
                needs = f"{field.get('Depends', '')},{field.get('Pre-Depends', '')}"
                for name in re.findall(r"(?:^|,)\s*(lib[\w.+-]+)", needs):
                    following.append(name)
            level = [name for name in dict.fromkeys(following) if name not in wanted]
            wanted.update(dict.fromkeys(level))
        return list(wanted)

    def unpack(self, root: Path, *packages: str, libraries: bool = True) -> None:
        """Unpack packages with the libraries they need into `root`."""
        self.options()
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        names = self._with_libraries(list(packages)) if libraries else list(packages)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            run("apt-get", *self.options(), "-q", "download", *names, cwd=folder)
            for package in sorted(Path(folder).glob("*.deb")):
                run("dpkg", "-x", package, root)


def debian(folder: Path) -> list[Apt]:
    """The architectures that this machine can run, its own last."""
    return [Apt(folder, arch) for arch in ARCHITECTURES.get(platform.machine(), [])]


def native(apts: list[Apt]) -> Apt:
    if not apts:
        raise Missing(f"no Debian packages for {platform.machine()}")
    return apts[-1]


def launcher(path: Path, root: Path, program: str) -> None:
    """A script that starts an unpacked program through the loader it was unpacked with."""
    found = sorted(root.glob("usr/lib/*-linux-gnu*/ld-linux*.so*"))
    if not found:
        raise Missing(f"the unpacked packages in {root} hold no loader")
    loader = found[0].relative_to(path.parent)
    lines = [
        "#!/bin/sh",
        "here=${0%/*}",
        f'exec "$here/{loader}" --library-path "$here/{loader.parent}" '
        f'"$here/{root.relative_to(path.parent)}/{program}" "$@"',
    ]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)


def from_path(path: Path, name: str) -> None:
    """A script that starts this machine's own program."""
    program = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        raise Missing(
            f"there is no {name} on the PATH either: install it with your package manager"
        )
    say(f"setup: taking {program}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
    path.chmod(0o755)


def vm_facts(vm: Path) -> tuple[tuple[int, ...], int]:
    """(version, word size in bits) of a MicroPython program; OSError when it does not start."""
    code = "import sys; print(sys.implementation[1][:2], 64 if sys.maxsize > 2**31 else 32)"
    try:
        text = output(vm, "-c", code, timeout=20)
    except (subprocess.SubprocessError, OSError) as error:
        raise OSError(f"{vm} does not start: {error}") from error
    numbers = [int(word) for word in re.findall(r"\d+", text)]
    return tuple(numbers[:-1]), numbers[-1]


def make_vm(apts: list[Apt]) -> None:
    path = paths.VM
    for apt in apts:
        root = path.parent / "root"
        try:
            apt.unpack(root, "micropython")
            launcher(path, root, "usr/bin/micropython")
            vm_facts(path)
            break
        except (Missing, subprocess.CalledProcessError, OSError) as error:
            say(f"setup: {error}")
    else:
        say(f"setup: no micropython of Debian's for {platform.machine()}; looking on the PATH")
        from_path(path, "micropython")
    try:
        version, bits = vm_facts(path)
    except OSError as error:
        path.unlink()
        raise Missing(str(error)) from error
    if version < (1, 25):
        path.unlink()
        found = ".".join(map(str, version))
        raise Missing(f"micropython is {found}, and 1.25 or newer is needed: install that")
    if bits != 32:
        say(
            f"setup: this MicroPython has {bits}-bit words, an ESP32 has 32: behaviour is the "
            "same, sizes of objects, small integers and heap numbers are not"
        )


def make_mosquitto(apts: list[Apt]) -> None:
    root = paths.MOSQUITTO.parent / "root"
    programs = {
        paths.MOSQUITTO: "usr/sbin/mosquitto",
        paths.MOSQUITTO_PASSWD: "usr/bin/mosquitto_passwd",
    }
    try:
        native(apts).unpack(root, "mosquitto")
        for path, program in programs.items():
            launcher(path, root, program)
    except (Missing, subprocess.CalledProcessError) as error:
        say(f"setup: {error}; looking for mosquitto on the PATH")
        for path in programs:
            from_path(path, path.name)
    # `mosquitto -h` prints its help and ends with 3.
    shown = subprocess.run([paths.MOSQUITTO, "-h"], capture_output=True, text=True)
    if "mosquitto version" not in shown.stdout:
        paths.MOSQUITTO.unlink()
        raise Missing(f"mosquitto does not start: {shown.stderr.strip() or shown.stdout.strip()}")


def requirements(*groups: str) -> list[str]:
    import tomllib  # new in 3.11: imported after the version check

    with (paths.ROOT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)["dependency-groups"]
    return [name for group in groups for name in table[group]]


def pip_install(*arguments: str | Path) -> None:
    """pip, of which only the downloads with their sizes are shown, and all when it fails."""
    command = [
        paths.PYTHON,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        *arguments,
    ]
    tail = collections.deque(maxlen=30)
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line)
            found = re.match(r"\s*(Downloading|Using cached) ([^-]+-[^-]+)-?.*(\(.+\))", line)
            if found or line.startswith("Installing"):
                say("  {} {} {}".format(*found.groups()) if found else "  Installing")
    if process.returncode:
        say("".join(tail))
        raise subprocess.CalledProcessError(process.returncode, "pip install")


def make_venv(apts: list[Apt]) -> None:
    venv = paths.VENV
    shutil.rmtree(venv, ignore_errors=True)
    try:
        output(sys.executable, "-m", "venv", venv)
    except subprocess.CalledProcessError:
        # Debian without python3-venv: no ensurepip. Its pip wheel is a package of its own.
        say("setup: this python3 makes no venv with pip; taking pip from Debian's package")
        shutil.rmtree(venv, ignore_errors=True)
        output(sys.executable, "-m", "venv", "--without-pip", venv)
        root = paths.CACHE / "pip"
        native(apts).unpack(root, "python3-pip-whl", libraries=False)
        (wheel,) = root.glob("usr/share/python-wheels/pip-*.whl")
        output(paths.PYTHON, wheel / "pip", "install", "--no-index", wheel)


@contextlib.contextmanager
def source_archive(release: tuple[str, str], sha256: str) -> Iterator[tarfile.TarFile]:
    """A package's source archive without setup.py: pip refuses it, unearth just downloads it."""
    name, version = release
    with tempfile.TemporaryDirectory(dir=paths.CACHE) as folder:
        unearth = paths.VENV / "bin" / "unearth"
        run(
            unearth,
            "--no-binary",
            "--download",
            folder,
            f"{name}=={version}",
            stdout=subprocess.DEVNULL,
        )
        (archive,) = Path(folder).glob("*.tar.gz")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != sha256:
            raise Missing(f"{name} {version} has sha256 {digest}, expected {sha256}")
        with tarfile.open(archive) as tar:
            yield tar


def make_umqtt() -> None:
    target = paths.LIB / "umqtt" / "simple.py"
    target.parent.mkdir(parents=True, exist_ok=True)
    with source_archive(UMQTT, UMQTT_SHA256) as tar:
        (member,) = [m for m in tar.getmembers() if m.name.endswith("umqtt/simple.py")]
        source = tar.extractfile(member)
        assert source is not None
        target.write_bytes(source.read())


def make_umodbus() -> None:
    shutil.rmtree(paths.UMODBUS, ignore_errors=True)
    paths.UMODBUS.mkdir()
    with source_archive(UMODBUS, UMODBUS_SHA256) as tar:
        for member in tar.getmembers():
            source = tar.extractfile(member)
            if source is not None and re.search(r"/umodbus/\w+\.py$", member.name):
                (paths.UMODBUS / Path(member.name).name).write_bytes(source.read())


def vm_program() -> tuple[Path, Path, str]:
    """(loader, program, Debian's architecture) of the unpacked VM."""
    root = paths.VM.parent / "root"
    for loader in root.glob("usr/lib/*-linux-gnu*/ld-linux*.so*"):
        for arch in (arch for some in ARCHITECTURES.values() for arch in some):
            multiarch = {"amd64": "x86_64", "armhf": "arm", "arm64": "aarch64"}.get(arch, arch)
            if loader.parent.name.startswith(multiarch + "-"):
                return loader, root / "usr/bin/micropython", arch
    raise Missing("the MicroPython VM here is not Debian's, which valgrind is fetched for")


def make_valgrind(apt: Apt) -> None:
    root = paths.VALGRIND.parent / "root"
    apt.unpack(root, "valgrind")
    launcher(paths.VALGRIND, root, "usr/bin/valgrind.bin")


def for_bench() -> None:
    """What only `make bench` needs. Raises Missing."""
    with locked():
        with part("umodbus", paths.UMODBUS, UMODBUS_SHA256) as wanted:
            if wanted:
                make_umodbus()
        arch = vm_program()[2]
        with (
            part("valgrind", paths.VALGRIND, f"{SUITES} {arch} 1") as wanted,
            tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="apt-") as folder,
        ):
            if wanted:
                make_valgrind(Apt(Path(folder), arch))


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Two at once: the second waits, and finds everything done."""
    paths.CACHE.mkdir(exist_ok=True)
    with (paths.CACHE / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - that is what it is for
        say(
            f"setup: python3 is {platform.python_version()}, and 3.11 or newer is needed. "
            "Name another one: make PYTHON=python3.12 setup"
        )
        return 1
    with locked():
        return set_up()


def set_up() -> int:
    machine = platform.machine()
    packages = requirements("tools", "test")
    stubs = requirements("stubs")
    missing = {}
    with tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="apt-") as folder:
        apts = debian(Path(folder))
        python = f"{sys.version} {sys.prefix}"
        with part("venv", paths.PYTHON, python) as wanted:
            if wanted:
                make_venv(apts)
        with part("packages", paths.VENV / "bin" / "pytest", f"{python} {packages}") as wanted:
            if wanted:
                pip_install(*packages)
        with part("typings", paths.TYPINGS, f"{stubs}") as wanted:
            if wanted:
                pip_install("--upgrade", "--target", paths.TYPINGS, *stubs)
        with part("umqtt", paths.LIB / "umqtt" / "simple.py", UMQTT_SHA256) as wanted:
            if wanted:
                make_umqtt()
        for name, product, make, untested in (
            ("vm", paths.VM, make_vm, "the virtual board, the demo and every test in the VM"),
            ("mosquitto", paths.MOSQUITTO, make_mosquitto, "the MQTT link against a real broker"),
        ):
            try:
                with part(name, product, f"{SUITES} {machine} 1") as wanted:
                    if wanted:
                        make(apts)
            except Missing as error:
                missing[name] = f"{error}. Not tested without it: {untested}"
    for name, text in missing.items():
        say(f"setup: no {name}: {text}.")
    paths.SETUP_STAMP.unlink(missing_ok=True)
    if not missing:
        paths.SETUP_STAMP.touch()
    return 1 if missing and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (subprocess.CalledProcessError, Missing) as error:
        say(f"setup: failed: {error}. Once its cause is gone, run it again: what is done is kept.")
        sys.exit(1)
