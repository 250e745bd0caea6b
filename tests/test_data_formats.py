"""Data as people have them: every format gives the same rows, and what is wrong is named by file and line."""

import argparse
import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from ir3de import IR3DEModel
from ir3de.names_ir3de import file_name
from ir3de.pipeline_ir3de import _turns
from ir3de.scripts import cli
from ir3de.scripts.data import parts
from ir3de.scripts.data.records import split_name
from ir3de.scripts.data.rows import (
    Report,
    Row,
    RowSource,
    add_data_arguments,
    check_domain_names,
    read_rows,
    read_texts,
)

from . import tiny

ROWS = [("court, jury", "law"), ('a "cube" of\ntwo', "math"), ("plädieren 法律", "law")]
JSON_LINES = "".join(json.dumps({"text": text, "domain": domain}) + "\n" for text, domain in ROWS)
CSV = 'text,domain\n"court, jury",law\n"a ""cube"" of\ntwo",math\nplädieren 法律,law\n'


def read(*sources: Any, **options: Any) -> list[tuple[str, str]]:
    return [(row.text, row.domain) for row in read_rows(RowSource(sources, **options), Report())]


def with_labels(path: Path) -> None:
    """A Parquet file whose labels are numbers with names, as the Hub keeps them."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["law", "math"])})
    numbers = {"law": 0, "math": 1}
    Dataset.from_list([{"text": t, "label": numbers[d]} for t, d in ROWS], features).to_parquet(path)


FILES: dict[str, bytes | Callable[[Path], Any]] = {
    "a.jsonl": JSON_LINES.encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + JSON_LINES.encode(),
    "crlf.jsonl": JSON_LINES.replace("\n", "\r\n").encode(),
    "a.ndjson": JSON_LINES.encode(),
    "lines.json": JSON_LINES.encode(),
    "no-ending": JSON_LINES.encode(),
    "array.json": json.dumps([{"text": t, "domain": d} for t, d in ROWS], indent=1).encode(),
    "array-bom.json": b"\xef\xbb\xbf \n" + json.dumps([{"text": t, "domain": d} for t, d in ROWS]).encode(),
    "a.csv": CSV.encode(),
    "bom.csv": b"\xef\xbb\xbf" + CSV.encode(),
    "semicolon.csv": CSV.replace("text,domain", "text;domain").replace('",', '";').replace("律,", "律;").encode(),
    "a.tsv": CSV.replace("text,domain", "text\tdomain").replace('",', '"\t').replace("律,", "律\t").encode(),
    "a.jsonl.gz": gzip.compress(JSON_LINES.encode()),
    "a.csv.gz": gzip.compress(CSV.encode()),
    "a.csv.bz2": bz2.compress(CSV.encode()),
    "a.jsonl.xz": lzma.compress(JSON_LINES.encode()),
    "a.parquet": lambda path: pq.write_table(
        pa.table({"text": [t for t, _ in ROWS], "domain": [d for _, d in ROWS]}), path
    ),
    "labels.parquet": with_labels,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    content = FILES[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        content(tmp_path / name)
    assert read(str(tmp_path / name)) == ROWS


def test_crlf_inside_a_field_of_csv_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,domain\r\n"a\r\nb",law\r\n\r\nc,law\r\n')
    assert read(str(tmp_path / "a.csv")) == [("a\r\nb", "law"), ("c", "law")]


def test_tables_in_memory() -> None:
    mappings = [{"text": text, "domain": domain} for text, domain in ROWS]
    frame = pd.DataFrame(mappings, index=[5, 3, 3])
    for table in (mappings, frame, frame.astype({"domain": "category"}), Dataset.from_list(mappings)):
        assert read(table) == ROWS
    features = Features({"text": Value("string"), "intent": ClassLabel(names=["law", "math"])})
    assert read(Dataset.from_list([{"text": "cube", "intent": 1}], features)) == [("cube", "math")]
    assert read(Dataset.from_list(mappings).to_iterable_dataset()) == ROWS
    with pytest.raises(ValueError, match="row 2: expected text under 'text', but it is nan"):
        read(pd.DataFrame({"text": ["a", float("nan")], "domain": ["law", "law"]}))
    with pytest.raises(ValueError, match="split into train, test"):
        read({"train": [], "test": []})


def test_a_folder_gives_domains_by_its_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "law" / "deep").mkdir(parents=True)
    (tmp_path / "law" / "deep" / "a.txt").write_text("one prompt\nof two lines\n")
    (tmp_path / "law" / "b.jsonl").write_text('{"text": "court"}\n{"text": "cube", "domain": "math"}\n')
    (tmp_path / "civil law.txt.gz").write_bytes(gzip.compress(b"a prompt\n\nanother\n"))
    (tmp_path / "code.csv").write_text("question,id\nloop,1\n")
    (tmp_path / "README.md").write_text("not read")
    (tmp_path / "_SUCCESS.txt").write_text("not read")
    found = read(str(tmp_path))
    assert {text for text, domain in found if domain == "law"} == {"one prompt\nof two lines", "court"}
    assert {text for text, domain in found if domain == "civil law"} == {"a prompt", "another"}
    assert {("cube", "math"), ("loop", "code")} < set(found)
    assert len(found) == 6
    assert list(read_texts(RowSource((str(tmp_path),)), "code", Report())) == ["loop"]


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    Dataset.from_list([{"text": text, "domain": domain} for text, domain in ROWS]).save_to_disk(tmp_path / "saved")
    assert read(str(tmp_path / "saved")) == ROWS


def test_an_address_that_fsspec_knows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(JSON_LINES)
    assert read(f"file://{tmp_path}/a.jsonl") == read(f"file://{tmp_path}") == ROWS
    with pytest.raises(FileNotFoundError, match=r"no file file:///.*absent\.jsonl"):
        read(f"file://{tmp_path}/absent.jsonl")


CHATS: list[list[dict[str, Any]]] = [
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "first"}, {"role": "user", "content": "b"}],
    [{"role": "user", "content": [{"type": "text", "text": "parts"}, {"type": "text", "text": "two"}]}],
    [{"role": "assistant", "content": "nobody asked"}],
]


def test_chats_are_read_as_the_pipeline_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat, "category": "law"}) + "\n" for chat in CHATS))
    expected = [_turns(chat, "last")[-1] for chat in CHATS]
    assert [text for text, _ in read(str(path))] == expected == ["b", "parts\ntwo", "nobody asked"]
    table = pa.table({"messages": [chat[:1] for chat in (CHATS[0], CHATS[2])], "domain": ["law", "law"]})
    pq.write_table(table, tmp_path / "chats.parquet")
    assert read(str(tmp_path / "chats.parquet")) == [("be brief", "law"), ("nobody asked", "law")]


def test_columns_are_guessed_said_and_overridden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,Question,Label,area\n1,court?,civil,law\n")
    assert list(read_rows(RowSource((str(path),)))) == [Row("court?", "civil")]
    assert "Read prompts from 'Question' and domains from 'Label': --text-column" in capsys.readouterr().err
    assert list(read_rows(RowSource((str(path),), "id", "area"))) == [Row("1", "law")]
    assert not capsys.readouterr().err


def test_the_line_with_which_excel_names_its_separator_is_no_header(tmp_path: Path) -> None:
    for sign in ";|\t":
        path = tmp_path / "excel.csv"
        path.write_text(f"sep={sign}\ntext{sign}domain\ncourt, or jury?{sign}law\n", encoding="utf-8-sig")
        assert read(str(path)) == [("court, or jury?", "law")]


BAD = {
    "ragged.csv": (b"text,domain\na,law\nb,c,law\n", "line 3: expected 2 fields as in the header, got 3"),
    "quote.csv": (b'text,domain\na,law\n"b,law\n', "line 3: not CSV"),
    "mixed.csv": (b"text,domain\ncourt,law\n" + "é,law\n".encode("latin-1"), "line 3: not UTF-8"),
    "header.csv": (b"text,text\na,law\n", "line 1: expected a header of different names"),
    "mixed.jsonl": (JSON_LINES.encode() + b'{"text": "\xe9"}\n', "line 4: not JSON in UTF-8"),
    "list.jsonl": (b'{"text": "a", "domain": "b"}\n"text"\n', "line 2: expected an object"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: not JSON"),
    "array.json": (b'[{"text": "a", "domain": "b"},\n', "not JSON in UTF-8"),
    "utf16.csv": ("text,domain\na,law\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
    "sheet.xlsx": (b"PK\x03\x04\x14\0\x06\0", "is a workbook or another archive, and no text: save the sheet as CSV"),
    "letter.eml": (
        b"Dear all\n",
        r"line 1: not JSON in UTF-8 .*; what ends in none of .* is read as JSON Lines",
    ),
    "cp1252.csv": (b"text,domain\n\xe9t\xe9,law\n", "line 2: not UTF-8: save the file as UTF-8"),
    "excel.csv": (b"sep=;\r\ntext;domain\r\na;law\r\nb;c;law\r\n", "line 4: expected 2 fields as in the header, got 3"),
    "wrong-header.csv": (b"ask,topic\na,law\n", "under one of .*Name the column of the prompts with --text-column"),
    "no-domain.csv": (b"text,subject\na,law\n", "Name the column with --domain-column, or mend the row"),
    "empty.jsonl": (b"", r"There is no row in empty\.jsonl"),
    "header-only.csv": (b"text,domain\n", r"There is no row in header-only\.csv"),
    "half.jsonl": (b'{"text": "cut \\ud83d court", "domain": "law"}\n', "line 1: half a surrogate pair .* character 5"),
    "half-name.jsonl": (
        b'{"text": "court", "domain": "l\\udc00"}\n',
        "line 1: .* character 2 is half a surrogate",
    ),
    "near.jsonl": (b'{"tekst": "a", "domain": "b"}\n', r"line 1: expected text under .*Did you mean 'tekst'\?"),
    "cut.jsonl.gz": (gzip.compress(JSON_LINES.encode() * 99)[:-20], "truncated or not gzip"),
    "cut.csv.xz": (lzma.compress(CSV.encode() * 99)[:-20], "truncated or not xz"),
    "not.csv.gz": (CSV.encode(), "truncated or not gzip"),
    "not.parquet": (CSV.encode(), "truncated or not Parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read(str(tmp_path / name))
    assert name in str(raised.value)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt_text": ["a"], "tpic": ["law"], "id": [1]}), path)
    with pytest.raises(ValueError, match=r"the row has 'prompt_text', 'tpic', 'id'\. Did you mean 'prompt_text'\?"):
        read(path, text_column="promt_text")
    with pytest.raises(ValueError, match=r"under 'topic', but the row has .*Did you mean 'tpic'\?"):
        read(path, text_column="prompt_text", domain_column="topic")
    with pytest.raises(ValueError, match=r"no label|has no name|expected text under 'label'"):
        read([{"text": "a", "label": None}])
    with pytest.raises(ValueError, match=r"has a column 'splt', which --where names\. Did you mean 'split'\?"):
        read([{"text": "a", "domain": "law", "split": "test"}], where=("splt=test",))
    assert read([{"text": "a", "domain": "law", "split": "test"}], where=("split=train",)) == []
    features = Features({"text": Value("string"), "label": ClassLabel(names=["law"])})
    with pytest.raises(ValueError, match="row 1: label -1 under 'label' has no name; there are 1"):
        read(Dataset.from_list([{"text": "a", "label": -1}], features))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(JSON_LINES)
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*train\.jsonl\?"):
        read(str(tmp_path / "trian.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere either"):
        read(str(tmp_path / "nowhere" / "a.jsonl"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pictures has no file that ends with \.jsonl"):
        read(str(tmp_path / "pictures"))


def test_a_hub_data_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def absent(name: str, configuration: str | None, **options: Any) -> None:
        assert (name, configuration, options["split"]) == ("org/absent", "main", "test")
        raise DatasetNotFoundError(f"Dataset '{name}' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(FileNotFoundError, match=r"no Hub data set of this id that you may read .*gated"):
        read("org/absent:main", split="test")


def test_a_hub_data_set_is_read_shard_by_shard_with_the_names_of_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = Features({"text": Value("string"), "label": ClassLabel(names=["law", "math"])})
    whole = Dataset.from_list([{"text": str(i), "label": i % 2} for i in range(7)], features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: whole.to_iterable_dataset(num_shards=3))
    assert len(parts.parts_of("org/data", "train")) == 3
    assert read("org/data") == [(str(i), ("law", "math")[i % 2]) for i in range(7)]


def test_bad_rows_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,domain\na,law\nb,c,law\n\xe9,law\n,law\nd,\n"e\nf",math\n')
    source = RowSource((str(path),), skip_bad_rows=True)
    assert [tuple(row[:2]) for row in read_rows(source)] == [("a", "law"), ("e\nf", "math")]
    said = capsys.readouterr().err
    assert "4 bad rows were left out, such as:" in said
    assert f"{path}, line 3: expected 2 fields" in said
    path.write_text("text,domain\n,law\n")
    with pytest.raises(ValueError, match=r"No row of a\.csv can be used\. .*line 2"):
        list(read_rows(source))


MIXED = [{"text": f"{domain} {i}", "domain": domain} for domain in ("law", "math", "code") for i in range(3)]


def test_rows_of_another_domain_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(read_texts(RowSource((MIXED,)), "math")) == ["math 0", "math 1", "math 2"]
    assert (
        "6 rows of other domains were left out: 'code' 3, 'law' 3 (--any-domain takes them)." in capsys.readouterr().err
    )
    assert len(list(read_texts(RowSource((MIXED,), any_domain=True), "maths", Report()))) == 9
    assert len(list(read_texts(RowSource((MIXED,), where=("domain=math",)), "maths", Report()))) == 3
    with pytest.raises(ValueError, match="No row of list is of this domain; they are of 'code' 3, 'law' 3, 'math' 3"):
        list(read_texts(RowSource((MIXED,)), "maths"))
    labelled = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    assert list(read_texts(RowSource((labelled,)), "reviews", Report())) == ["good", "bad"], "a guess decides nothing"
    assert list(read_texts(RowSource((labelled,), domain_column="label"), "1", Report())) == ["good"]
    assert list(read_texts(RowSource(([{"text": "a"}],)), "law", Report())) == ["a"]


def test_names_are_tidied_renamed_and_checked_before_anything_else(tmp_path: Path) -> None:
    rows = [{"text": "a", "domain": name} for name in (" law ", "civil\u00a0 law", "Re\u0301sume\u0301", "Maths")]
    source = RowSource((rows,), rename=(("Maths", "math"),))
    assert [row.domain for row in read_rows(source, Report())] == ["law", "civil law", "Résumé", "math"]
    check_domain_names(source)
    assert list(read_texts(source, "math", Report())) == ["a"]
    with pytest.raises(ValueError, match=r"--rename names .* 'Mathz', which no row has\. Did you mean 'Maths'\?"):
        check_domain_names(RowSource((rows,), rename=(("Mathz", "math"),)))
    bad = [
        *rows,
        {"text": "a", "domain": "b\u200bc"},
        {"text": "a", "domain": "Law"},
        {"text": "a", "domain": "d" * 101},
    ]
    with pytest.raises(ValueError, match="invisible character") as raised:
        check_domain_names(RowSource((bad,)))
    assert "101 characters" in str(raised.value)
    assert "'Law' and 'law': their files differ by case alone" in str(raised.value)
    with pytest.raises(ValueError, match=r"row 5: 'b\\u200bc' cannot name a domain: .*Use --rename OLD=NEW"):
        list(read_rows(RowSource((bad,)), Report()))
    fixed = RowSource((bad,), rename=(("b\u200bc", "bc"), ("Law", "law"), ("d" * 101, "d")))
    check_domain_names(fixed)
    assert len(list(read_rows(fixed, Report()))) == 7
    with pytest.raises(ValueError, match="--rename takes OLD=NEW, got 'x'"):
        RowSource.of(**vars(_parsed("--data", "a", "--rename", "x")))


def _parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    return parser.parse_args(arguments)


def test_names_of_files() -> None:
    assert split_name("s3://bucket/civil law.jsonl.gz") == ("civil law", ".jsonl", "gzip")
    assert split_name("a/b.v2.csv") == ("b.v2", ".csv", None)
    assert split_name("a/.jsonl") == (".jsonl", "", None)


def test_what_others_are_told_of_the_data(tmp_path: Path) -> None:
    source = RowSource((str(tmp_path), "org/data:main", "s3://secret/corpus.jsonl", MIXED, "/no/where.jsonl"))
    assert source.names == [tmp_path.name, "org/data:main", "corpus.jsonl", "list", "where.jsonl"]
    assert source.hub_ids == ["org/data"]


def test_add_takes_the_rows_of_its_domain_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny.router()
    made.remove_expert("math")
    made.save_pretrained(tmp_path / "router")
    rows = [{"text": text, "domain": name} for name in tiny.DOMAINS for text in tiny.sentences(name, 20)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", str(tmp_path / "mixed.jsonl")]
    assert cli.main(["add", str(tmp_path / "router"), "math", *data]) == 0
    assert "40 rows of other domains were left out: 'code' 20, 'law' 20 (" in capsys.readouterr().err
    assert IR3DEModel.from_pretrained(tmp_path / "router").statistics["math"].rows("prompts") == 20
    assert cli.main(["add", str(tmp_path / "router"), "maths", *data]) == 2
    assert "of this domain; they are of 'code' 20, 'law' 20, 'math' 20." in capsys.readouterr().err


def test_fit_says_all_names_that_cannot_be_before_it_reads_the_embeddings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({"text": list("abcd"), "label": ["law", "Law", "Refund not showing up?", "x\u202ey"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    options = ["--embeddings", str(tmp_path / "nowhere"), "--output", str(tmp_path / "router")]
    assert cli.main(["fit", "--data", str(tmp_path / "a.csv"), *options]) == 2
    said = capsys.readouterr().err
    assert "'Law' and 'law'" in said
    assert "character 2 is an invisible character (U+202E)" in said
    assert "Refund" not in said


def test_a_router_of_names_as_people_write_them(source: str, tmp_path: Path) -> None:
    names = {"law": "Refund not showing up?", "math": "法律", "code": "con"}
    rows = [(text, names[name]) for name in names for text in tiny.sentences(name, 10)]
    pd.DataFrame(rows, columns=["text", "intent"]).to_parquet(tmp_path / "a.parquet")
    options = ["--embeddings", source, "--output", str(tmp_path / "router"), "--variant", "all"]
    assert cli.main(["fit", "--data", str(tmp_path / "a.parquet"), *options, "--rename", "con=computers & co"]) == 0
    model = IR3DEModel.from_pretrained(tmp_path / "router")
    assert model.config.expert_names == ["Refund not showing up?", "computers & co", "法律"]
    files = sorted(path.name for path in (tmp_path / "router" / "statistics").iterdir())
    assert files == sorted(f"{file_name(name)}.safetensors" for name in model.config.expert_names)
    card = (tmp_path / "router" / "README.md").read_text(encoding="utf-8")
    assert "| `computers & co` | nothing: routes only" in card
    assert cli.main(["remove", str(tmp_path / "router"), "法律"]) == 0
    left = sorted(path.name for path in (tmp_path / "router" / "statistics").iterdir())
    assert left == [name for name in files if not name.startswith("==e6")]


def test_fit_says_what_is_twice(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tiny.sentences("law", 8)
    rows = [*((text, "law") for text in texts), *((text, "math") for text in texts[:3] + tiny.sentences("math", 8))]
    frame = pd.DataFrame([*rows, rows[0]], columns=["prompt", "intent"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    options = ["--embeddings", source, "--output", str(tmp_path / "router"), "--num-features", "16"]
    assert cli.main(["fit", "--data", str(tmp_path / "a.csv"), *options, "--variant", "all"]) == 0
    said = capsys.readouterr().err
    assert "Read prompts from 'prompt' and domains from 'intent'" in said
    assert "1 of 20 rows repeat another row of their domain." in said
    assert "3 texts are in both 'law' and 'math', such as" in said
