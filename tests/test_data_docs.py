"""The examples of docs/data.md run, and give the same two rows."""

import re
from pathlib import Path
from typing import Any

import pytest

from ir3de.scripts.data.rows import Row

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 13
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in examples:
        exec(example, names)
        assert names["rows"] == [Row("Is it a contract?", "law"), Row("2 + 2", "math")], example
