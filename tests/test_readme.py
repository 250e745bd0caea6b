"""The examples of the README and of the docstrings run, and say what they are said to."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import ir3de

ROOT = Path(ir3de.__file__).parent
MODULES = sorted(path.stem for path in ROOT.glob("*_ir3de.py"))
BLOCK = re.compile(r"(?P<skip><!-- not run -->\s*)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str]]:
    """The Python blocks of a document that are to be run, each with the number of the line that it starts on."""
    found = [match for match in BLOCK.finditer(text) if not match["skip"]]
    return [(text.count("\n", 0, match.start("code")) + 1, match["code"]) for match in found]


def test_blocks_are_found_unless_marked() -> None:
    text = "# A\n```python\na\n```\n```bash\nb\n```\n<!-- not run -->\n```python\nc\n```\n\n```python\nd\n\ne\n```\n"
    assert blocks(text) == [(3, "a\n"), (14, "d\n\ne\n")]


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert examples, "the README shows how to use the package"
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for line, code in examples:
        exec(compile("\n" * (line - 1) + code, "README.md", "exec"), namespace)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"ir3de.{name}")).failed == 0


def test_the_config_has_an_example() -> None:
    assert doctest.testmod(importlib.import_module("ir3de.configuration_ir3de")).attempted > 0
