"""The direction of imports: a command imports from rooms, a room from rooms and the root, the root from the root.

And the parsed options stay in `run(args)`, which makes typed values of them.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ir3de
from ir3de.scripts import cli

ROOT = Path(ir3de.__file__).parent
SCRIPTS = ROOT / "scripts"
PLUMBING = {"__init__", "cli", "command"}  # what commands share of the command line itself
COMMANDS = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem not in PLUMBING)
ROOMS = sorted(path.name for path in SCRIPTS.iterdir() if (path / "__init__.py").is_file())
TRAVELLERS = sorted(ROOT.glob("*_ir3de.py"))
OURS = {"gateway", "scripts", "space", "traffic", "app.py", "__init__.py"} | {path.name for path in TRAVELLERS}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, and every name that it may have imported as a module."""
    package = ("ir3de", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def commands_of(path: Path) -> set[str]:
    """The commands that a file imports."""
    names = (name.removeprefix("ir3de.scripts.").split(".")[0] for name in imported(path) if "ir3de.scripts." in name)
    return set(names) & set(COMMANDS)


def test_the_files_are_found() -> None:
    assert {"fit", "route", "serve"} <= set(COMMANDS)
    assert {"data", "fitting", "publishing", "routers"} <= set(ROOMS)
    assert not set(COMMANDS) & set(ROOMS), "a name is a command or a room"
    assert len(TRAVELLERS) > 10
    assert {cli.file_of(name) for name in cli.COMMANDS} <= set(COMMANDS)


def test_no_command_imports_another() -> None:
    found = {f"{name} imports {other}" for name in COMMANDS for other in commands_of(SCRIPTS / f"{name}.py") - {name}}
    assert found == set()


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_a_command(room: str) -> None:
    files = [*SCRIPTS.joinpath(room).rglob("*.py")]
    assert {path.name: commands_of(path) for path in files if commands_of(path)} == {}


@pytest.mark.parametrize("path", TRAVELLERS, ids=lambda path: path.stem)
def test_what_travels_imports_what_travels(path: Path) -> None:
    outside = {name for name in imported(path) if name.split(".")[0] == "ir3de"} - {"ir3de"}
    siblings = {f"ir3de.{other.stem}" for other in TRAVELLERS}
    assert {name for name in outside if not any(f"{name}.".startswith(f"{s}.") for s in siblings)} == set()


def takers_of_options(source: str) -> set[str]:
    """The functions that take an `argparse.Namespace`, whatever they do with it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [ast.unparse(each.annotation) for each in parameters if each.annotation]
            if any(re.search(r"\bNamespace\b", name) and not name.startswith("Callable") for name in named):
                found.add(node.name)
    return found


def test_only_run_takes_the_parsed_options() -> None:
    files = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in OURS]
    assert len(files) > 150
    takers = {path: takers_of_options(path.read_text(encoding="utf-8")) for path in files}
    assert {str(path.relative_to(ROOT)) for path, names in takers.items() if names - {"run"}} == set()
    assert sum(names == {"run"} for names in takers.values()) == len(COMMANDS) - 1, "all but the demo, which has none"


def test_the_scan_sees_who_takes_options() -> None:
    for kind in ("argparse.Namespace", "Namespace", "'argparse.Namespace'", "Namespace | None"):
        assert takers_of_options(f"class A:\n    def of(cls, args: {kind}): ...") == {"of"}, kind
    assert takers_of_options("def f(run: Callable[[argparse.Namespace], int]): ...") == set()


@pytest.mark.parametrize("path", sorted(ROOT.joinpath("traffic").glob("*.py")), ids=lambda path: path.stem)
def test_the_store_knows_nothing_of_who_serves(path: Path) -> None:
    ours = {name for name in imported(path) if name.startswith("ir3de.")}
    allowed = ("ir3de.traffic", *(f"ir3de.{other.stem}" for other in TRAVELLERS))
    assert {name for name in ours if not name.startswith(allowed)} == set()


def test_the_scan_sees_each_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    kinds = ["import ir3de.scripts.fit", "from ir3de.scripts.fit import run", "from ir3de.scripts import fit"]
    kinds += ["from . import fit", "from .fit import run", "def f():\n    from ir3de.scripts import fit"]
    for kind in kinds:
        path = tmp_path / "scripts" / "other.py"
        path.write_text(kind)
        assert commands_of(path) == {"fit"}, kind
    path.write_text("from ir3de.scripts.fitting.fit import fit_router\nfrom ir3de.scripts.data.fit import x")
    assert commands_of(path) == set()
