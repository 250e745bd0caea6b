"""A look at data before a long run."""

import json
import sys
from pathlib import Path

import pytest

from ir3de.scripts import cli
from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.inspection import Domain, NearDuplicates, script_of, shortened
from ir3de.scripts.fitting.estimate import Estimate, estimate, operations_a_second

ROWS = [
    *({"text": f"Is clause {i} of the contract void?", "domain": "law", "split": "train"} for i in range(8)),
    {"text": "Is clause 1 of the contract void?", "domain": "math", "split": "train"},
    {"text": "Is clause 7 of the contract void?", "domain": "law", "split": "test"},
    {"text": "求方程的根是多少", "domain": "math", "split": "train"},
    {"text": "one " * 40, "domain": "rare", "split": "train"},
    {"text": "", "domain": "law", "split": "train"},
]


def test_what_is_said_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "no json\n", encoding="utf-8")
    assert cli.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for line in (
        "12 rows of 3 domains, ",
        "Splits: 'train' 11, 'test' 1.",
        "Is clause 0 of the contract void?",
        "latin 50 %",
        "cjk 50 %",
        "2 bad rows were left out, such as: ",
        f"{path}, line 13: expected text under 'text'",
        f"{path}, line 14: not JSON",
        "1 text is in both 'law' and 'math', such as 'Is clause 1 of the contract void?'",
        "1 text of 'test' is in 'train' too",
        "Domains with a single row cannot be fitted: 'rare' 1.",
        "A fit takes about ",
    ):
        assert line in said


def test_all_but_near_duplicates_is_said_without_the_package_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:-1]), encoding="utf-8")
    assert cli.main(["inspect", str(path)]) == 0
    whole = capsys.readouterr().out.splitlines()
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert cli.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    note = 'Near-duplicates were not looked for: that needs datasketch, `pip install "ir3de[data]"`.'
    assert said.count(note) == 1
    said.remove(note)
    assert said[:-1] == [line for line in whole if "nearly equal" not in line][:-1], "but for the seconds of a fit"


def test_nothing_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect"]) == 2
    assert "Name the data" in capsys.readouterr().err
    (tmp_path / "a.csv").write_text("text,domain\n,law\n")
    assert cli.main(["inspect", str(tmp_path / "a.csv")]) == 2
    assert "No row of a.csv can be used." in capsys.readouterr().err


def test_near_duplicates_of_other_domains_and_splits() -> None:
    # So long that one more word changes little: what is barely alike the hashes may miss, in one version or another.
    long = (
        "the court finds that the plaintiff has shown no harm that follows from the clause as it is written here, and"
        " that the defendant was free to end the contract once the term that both had agreed on was over, without a"
        " notice of its own and without a reason, since neither had asked for one when the contract was signed"
    )
    found = NearDuplicates()
    for row in (
        Row(long, "law"),
        Row(long.upper(), "math"),  # equal but for case: no matter of this
        Row(f"{long} now", "math"),
        Row(f"{long} today", "law"),
        Row("a wholly different text about the roots of a cubic equation and how they are found", "math"),
        Row("", "law"),
    ):
        found.add(row)
    assert dict(found.across) == {("law", "math"): 2}
    assert "2 texts of 'law' and 'math' are nearly equal, such as 'the court finds" in found.notes()[0]
    assert NearDuplicates(most=0).notes() == []


def test_lengths_and_scripts() -> None:
    domain = Domain()
    for length in range(1, 11):
        domain.add("я" * length)
    assert [domain.length(share) for share in (0.5, 0.9, 1.0)] == [5, 9, 10]
    assert domain.scripts == {"cyrillic": 10}
    texts = {"Ωmega and": "latin", "かな": "hiragana", "1 + 2": "none", "مرحبا": "arabic"}
    assert {text: script_of(text) for text in texts} == texts
    assert shortened("a\x1b[31m\nb" + "c" * 99) == "a [31m b" + "c" * 51 + "…"


def test_an_estimate_grows_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operations_a_second() > 1e7
    monkeypatch.setattr("ir3de.scripts.fitting.estimate.operations_a_second", lambda: 1e10)
    small = estimate({"law": 100, "math": 100}, 10_000)
    large = estimate({"law": 100_000, "math": 100_000}, 100_000_000)
    assert 0 < small.total < large.total
    assert small.tokenizing * 9_999 < large.tokenizing
    assert "about 3 minutes" in Estimate(20.0, 130.0, 20.0).describe()
