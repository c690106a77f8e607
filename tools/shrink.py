"""What the build does to the sources so that they take less heap on a board.

Every name that the board's ROM does not hold takes 8 bytes and its letters for good, and the table
of names doubles when it is full, by up to 9 KB at a board's size. A constant that is a name in a
module takes 12 bytes more, and every use of it by another module three bytes of code. So

- constants (`WELL = 0`, `lock.WELL`) are put where they are used, as far as they are integers
  or short strings, and are gone where nothing else needs them;
- our own names become names that the ROM holds anyway (`rom_names.txt`): those that several
  modules use have one of their own, those of one family of modules begin anew in each.

What stays: whatever is quoted (records and files are told by these words, and start.py forgets
by them), what main.py and machine code use, modules, the hardware's names, and the exceptions
of errors.py, which people read. `explain` gives a console's text back with the names of the
sources.

Limits: an attribute is known by its name only, so one name is the same in every class. What is
quoted must be the whole name, or dotted.
"""

from __future__ import annotations

import ast
import collections
import functools
import itertools
import re
import string
from pathlib import Path

from tools import paths

PACKAGES = ("wattlock", "hal")
AS_SOURCE = ("wattlock/native.py",)  # machine code fits one kind of chip only
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
_PATH = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+")
_INNER = ("wires.py", "_board.py", "_names.py")  # of the stubs: no module of a board
_SHORT = 10  # letters: a longer string is no name, and each module would have a copy


def sources() -> dict[str, Path]:
    """Every module that is built, by its name in a slot."""
    return {"start.py": paths.FIRMWARE / "start.py"} | {
        f"{package}/{path.name}": path
        for package in PACKAGES
        for path in sorted((paths.FIRMWARE / package).glob("*.py"))
    }


# --- constants


def _value(node: ast.expr, known: dict[str, int | str]) -> int | str | None:
    """The constant that an expression is, as far as it can be put where it is used."""
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, str):
            return value if len(value) <= _SHORT else None
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, known)
        return -value if isinstance(value, int) else None
    if isinstance(node, ast.BinOp):
        sides = [_value(side, known) for side in (node.left, node.right)]
        if all(isinstance(side, int) for side in sides) and not isinstance(node.op, ast.Div):
            left, right = (ast.Constant(side) for side in sides)
            whole = ast.Expression(ast.BinOp(left, node.op, right))
            return eval(compile(ast.fix_missing_locations(whole), "", "eval"))
    return None


def constants(tree: ast.Module) -> dict[str, int | str]:
    """The constants of a module: names in capitals that are given a value once."""
    nodes = list(ast.walk(tree))
    stored = collections.Counter(
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    stored.update(node.arg for node in nodes if isinstance(node, ast.arg))
    found: dict[str, int | str] = {}
    for line in tree.body:
        if isinstance(line, ast.Assign) and isinstance(target := line.targets[0], ast.Name):
            value = _value(line.value, found)
            if _CONSTANT.fullmatch(target.id) and stored[target.id] == 1 and value is not None:
                found[target.id] = value
    return found


def _module(name: str, line: ast.ImportFrom) -> str:
    """The module or package, as in a slot, that `from X import ...` in `name` names."""
    package = name.partition("/")[0] if line.level else ""
    return "/".join(filter(None, [package, *(line.module or "").split(".")]))


class _Inline(ast.NodeTransformer):
    """Puts constants where they are used; takes away their definitions but for `needed`."""

    def __init__(self, name: str, tree: ast.Module, needed: set[str] | None) -> None:
        self.name = name
        self.values = constants(tree)
        self.own = set(self.values)
        self.modules: dict[str, dict[str, int | str]] = {}
        self.needed = needed
        for line in ast.walk(tree):
            if isinstance(line, ast.ImportFrom):
                for alias in line.names:
                    self._imported(_module(name, line), alias)

    def _imported(self, module: str, alias: ast.alias) -> None:
        here = alias.asname or alias.name
        if (value := _constants_of(f"{module}.py").get(alias.name)) is not None:
            self.values[here] = value
        elif f"{module}/{alias.name}.py" in sources():
            self.modules[here] = _constants_of(f"{module}/{alias.name}.py")

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load) and node.id in self.values:
            return ast.Constant(self.values[node.id])
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load):
            value = self.modules.get(node.value.id, {}).get(node.attr)
            if value is not None:
                return ast.Constant(value)
        self.generic_visit(node)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        node.names = [a for a in node.names if (a.asname or a.name) not in self.values]
        return node if node.names else None

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        if self.needed is not None:
            gone = {name for name in self.own if name[0] == "_" or name not in self.needed}
            node.body = [line for line in node.body if _assigned(line) not in gone]
        return node


def _assigned(line: ast.stmt) -> str | None:
    if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
        return line.targets[0].id
    return None


@functools.cache
def _constants_of(name: str) -> dict[str, int | str]:
    path = sources().get(name)
    return constants(ast.parse(path.read_text())) if path else {}


def _unused_modules(tree: ast.Module) -> ast.Module:
    """Without the imports of our modules of which only constants were used."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

    class Unused(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
            if node.level and not node.module:
                node.names = [a for a in node.names if (a.asname or a.name) in used]
            return node if node.names else None

    return Unused().visit(tree)


@functools.cache
def _needed() -> set[str]:
    """Constants that stay: somebody gets them from a module that he was handed as an object."""
    found = set().union(*(names_in(ast.parse(path.read_text())) for path in _left_alone()))
    for name, path in sources().items():
        tree = ast.parse(path.read_text())
        tree = _Inline(name, tree, None).visit(tree)
        found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found


def inlined(source: str, name: str) -> ast.Module:
    tree = ast.parse(source)
    return _unused_modules(_Inline(name, tree, _needed()).visit(tree))


# --- names


def _left_alone() -> list[Path]:
    """Files that go to the board as they are, or stand for what it has in ROM."""
    stubs = [path for path in paths.STUBS.rglob("*.py") if path.name not in _INNER]
    return [paths.FIRMWARE / "boot.py", paths.FIRMWARE / "main.py", *sorted(stubs)]


@functools.cache
def rom_names() -> list[str]:
    lines = (Path(__file__).with_name("rom_names.txt")).read_text().splitlines()
    return " ".join(line for line in lines if not line.startswith("#")).split()


def _outer(body: list[ast.stmt]) -> list[ast.AST]:
    """The nodes of a module or a class without those of its functions and classes."""
    lines = [line for line in body if not isinstance(line, (ast.FunctionDef, ast.ClassDef))]
    return [node for line in lines for node in ast.walk(line)]


def names_in(tree: ast.Module, compiled: bool = True) -> set[str]:
    """The names that are in a module; mere local variables have none once it is compiled."""
    found: set[str] = set()
    if not compiled:
        found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= {node.name, node.asname or node.name}
        if isinstance(node, (ast.Module, ast.ClassDef)):
            outer = [inner for inner in _outer(node.body) if isinstance(inner, ast.Name)]
            found |= {inner.id for inner in outer if isinstance(inner.ctx, ast.Store)}
    return {name for name in found if not name.startswith("__")}


def _said(name: str, tree: ast.Module) -> set[str]:
    """What a module quotes, what it imports that is not ours, and what it asks of that."""
    nodes = list(ast.walk(tree))
    found = {node.value for node in nodes if isinstance(node, ast.Constant)}
    stay = {text for text in found if isinstance(text, str) and not _PATH.fullmatch(text)}
    foreign: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import) or (
            isinstance(node, ast.ImportFrom) and _module(name, node).split("/")[0] not in PACKAGES
        ):
            foreign |= {alias.asname or alias.name for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in foreign:
            stay.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).partition(".")[0] in foreign:
            stay |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return stay | foreign


def families() -> list[set[str]]:
    """The modules by name, each alone or together with those whose classes its own inherit from:
    there the names of several modules meet in one object."""
    found = {name: {name} for name in sources()}
    for name, path in sources().items():
        tree = list(ast.walk(ast.parse(path.read_text())))
        bases = [base for node in tree if isinstance(node, ast.ClassDef) for base in node.bases]
        heads = {ast.unparse(base).partition(".")[0] for base in bases}
        for node in (node for node in tree if isinstance(node, ast.ImportFrom) and node.level):
            for alias in node.names:
                above = f"{name.partition('/')[0]}/{node.module or alias.name}.py"
                if (alias.asname or alias.name) in heads and above in found:
                    family = found[name] | found[above]
                    found |= dict.fromkeys(family, family)
    return list({id(family): family for family in found.values()}.values())


@functools.cache
def short_names() -> dict[str, str]:
    """What a board calls the names of the sources."""
    stay = {"self", *rom_names()}
    for path in _left_alone():
        stay |= {n for n in names_in(ast.parse(path.read_text())) if n[0] != "_"}
    said: set[str] = set()
    own: dict[str, set[str]] = {}
    for name, path in sources().items():
        tree = inlined(path.read_text(), name)
        own[name] = names_in(tree, name not in AS_SOURCE)
        said |= set(re.findall(r"\w+", path.read_text()))
        stay |= _said(name, tree) | set(name.removesuffix(".py").split("/"))
        stay |= own[name] if name.endswith("/errors.py") else set()
    pairs = itertools.product(("", *string.ascii_letters), string.ascii_letters)
    free = [word for word in rom_names() if word not in said] + ["_" + a + b for a, b in pairs]
    uses = collections.Counter(n for names in own.values() for n in names - stay)
    found = dict(zip(sorted(n for n in uses if uses[n] > 1), free, strict=False))
    free = free[len(found) :]
    for family in families():
        names = set().union(*(own[name] for name in family)) - stay
        found |= dict(zip(sorted(n for n in names if uses[n] == 1), free, strict=False))
    return found


class _Rename(ast.NodeTransformer):
    def __init__(self, tree: ast.Module, compiled: bool) -> None:
        short = short_names()
        self.short = {name: short[name] for name in names_in(tree, compiled) if name in short}

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and _PATH.fullmatch(node.value):
            node.value = dotted(node.value)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                setattr(node, field, self.short.get(name, name))
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            node.names = [self.short.get(name, name) for name in node.names]
        return super().generic_visit(node)


def dotted(path: str) -> str:
    """What a board calls "package.module.Class.function"."""
    return ".".join(short_names().get(part, part) for part in path.split("."))


def rename(source: str) -> str:
    """A source with the names that compiled modules have: for code that reaches into them."""
    tree = ast.parse(source)
    return ast.unparse(_Rename(tree, compiled=False).visit(tree))


def shrink(source: str, name: str) -> str:
    """The source of the module `name`, as in a slot, as it is compiled. Raises SyntaxError."""
    tree = inlined(source, name)
    return ast.unparse(_Rename(tree, name not in AS_SOURCE).visit(tree))


def explain(console: str) -> str:
    """A board's tracebacks with the functions' names as the sources have them."""
    short = short_names()
    long = {}
    for name, path in sources().items():
        own = names_in(ast.parse(path.read_text()))
        long[Path(name).stem] = {short[n]: n for n in own if n in short}

    def named(match: re.Match[str]) -> str:
        return match[1] + long.get(match[2], {}).get(match[3], match[3])

    return re.sub(r'(File "([\w/.]+)".*?, in )(\w+)', named, console)
