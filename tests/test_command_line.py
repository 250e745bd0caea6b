"""The `ir3de` command itself: what it imports to say what, and how it says how far it is."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from ir3de.scripts import cli
from ir3de.scripts.fitting.second import ready
from ir3de.scripts.reports import progress
from ir3de.scripts.routers.base import Options
from ir3de.scripts.routers.baselines import BASELINES

from . import tiny

HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "sklearn", "lm_eval", "datatrove", "ir3de.modeling_ir3de")


def run(*commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs commands in a process of their own, as installed, and says after each which heavy modules are imported."""
    program = (
        "import sys, json; sys.argv = ['ir3de']\n"
        "from ir3de.scripts.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['ir3de', *arguments]\n"
        "    try:\n        code = main()\n    except SystemExit as end:\n        code = end.code\n"
        f"    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
        "    assert code == 0, code\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


def test_help_loads_nothing_heavy() -> None:
    done = run(["--help"])
    assert done.returncode == 0, done.stderr
    assert "usage: ir3de" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_help_of_no_command_loads_anything_heavy() -> None:
    program = (
        "import contextlib, io, json, sys; sys.argv = ['ir3de']\n"
        "from ir3de.scripts import cli\n"
        "heavy = {}\n"
        "for name in cli.COMMANDS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as help, contextlib.suppress(SystemExit):\n"
        "        cli.main([name, '--help'])\n"
        "    assert 'usage: ir3de ' + name in help.getvalue()\n"
        f"    heavy[name] = [module for module in {HEAVY!r} if module in sys.modules]\n"
        "print(json.dumps(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == {name: [] for name in cli.COMMANDS}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_is_listed_with_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = " ".join(capsys.readouterr().out.split())
    assert f"{name} {cli._summary(name)}" in listed
    assert cli._import(name).__doc__.startswith(f"`ir3de {name}`: {cli._summary(name)}")


def test_a_command_that_is_unknown_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["fitt"])
    assert caught.value.code == 2
    assert "'fitt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("merge R --dry-run a.safetensors b.safetensors", {"source": ["a.safetensors", "b.safetensors"]}),
        ("outcomes R --remove a.jsonl b.jsonl", {"files": ["a.jsonl", "b.jsonl"], "remove": True}),
        ("outcomes --remove R a.jsonl --split test b.jsonl", {"files": ["a.jsonl", "b.jsonl"], "split": "test"}),
        ("route R court --num-votes 2 ship -- --dashed", {"prompt": ["court", "ship", "--dashed"], "num_votes": 2}),
        ("add R --output made law --statistics law.safetensors", {"name": "law", "output": "made"}),
        ("inspect a.jsonl --skip-bad-rows b.jsonl", {"sources": ["a.jsonl", "b.jsonl"], "skip_bad_rows": True}),
    ],
)
def test_options_may_stand_between_names(command: str, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name, *options = command.split()
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(cli._import(name), "run", lambda args: given.append(vars(args)) or 0)
    assert cli.main([name, *options]) == 0
    assert given[0] == {**given[0], **found}


def test_importing_the_package_registers_the_task_and_no_bars_of_weights_are_drawn(
    expert_specs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    # In a process whose bars are not switched off, as a terminal's are not.
    program = (
        "import ir3de; from transformers import AutoConfig; from transformers.pipelines import *\n"
        "print(PIPELINE_REGISTRY.check_task('ir3de-routing')[0], ir3de.IR3DEModel, AutoConfig.for_model('ir3de'))\n"
        f"from tests import tiny; tiny.router({expert_specs!r}).save_pretrained({str(tmp_path)!r})\n"
        f"router = ir3de.IR3DERoutingPipeline(ir3de.IR3DEModel.from_pretrained({str(tmp_path)!r}), device='cpu')\n"
        "print(router('the court and a judge', max_new_tokens=2)['generated_text'] is not None)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True, cwd=root
    )
    assert "ir3de-routing" in done.stdout
    assert "IR3DEConfig" in done.stdout
    assert done.stdout.endswith("True\n"), "an expert was loaded, and answered"
    assert "Writing model shards" not in done.stderr
    assert "Loading weights" not in done.stderr
    assert "%|" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["add", "absent", "law", "--statistics", "law.safetensors"],
        ["remove", "absent", "law"],
        ["outcomes", "absent", "judged.jsonl"],
        ["merge", "absent", "other"],
        ["experts", "absent", "--set", "law", "cost=1"],
    ],
)
def test_a_router_that_is_no_folder_is_named_where_the_hub_is_not_reached(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert cli.main(command) == 2
    assert "There is no folder absent, and the Hub cannot be reached" in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, now = io.StringIO(), [0.0]
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.Steps, "said", 0.0)
    for part in range(4):  # each too short for a line of its own
        for _ in progress.progress(range(1000, 1003), "Summing", "domains"):
            now[0] += 1
        assert shown.getvalue().count("\n") == (part + 1) * 3 // 10
    assert shown.getvalue() == "Summing: 1 of 3 domains\n"


def test_a_line_of_progress_says_what_it_counts(
    json_lines: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", -1.0)
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--output", str(tmp_path / "router")]
    assert cli.main([*fit, "--variant", "prompt", "--feature-map", "rff", "--num-features", "24"]) == 0
    counts: dict[tuple[str, str], list[int]] = {}
    for line in capsys.readouterr().err.splitlines():
        if found := re.fullmatch(r"(.+): (\d+) of \d+ (.+)", line):
            counts.setdefault((found[1], found[3]), []).append(int(found[2]))
    assert len(counts) > 2
    for what, numbers in counts.items():
        assert numbers == list(range(1, len(numbers) + 1)), what


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_who_leaves_ends_a_command_quietly(
    lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("ir3de.scripts.outcomes.run", lambda _: print("a line\n" * lines) or 0)
        assert cli.main(["outcomes", "router"]) == 141
    assert capsys.readouterr().err == ""


def test_a_broken_pipe_of_something_else_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("ir3de.scripts.outcomes.run", fail)
    assert cli.main(["outcomes", "router"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_without_a_terminal_no_bar_is_drawn(json_lines: Path, source: str, tmp_path: Path) -> None:
    router = str(tmp_path / "router")
    fit = ["fit", "--data", str(json_lines), "--embeddings", source, "--output", router]
    done = run([*fit, "--variant", "all", "--regularization", "0.01"], ["route", router, "court"])
    assert done.returncode == 0, done.stderr
    assert "Saved a router of 3 experts" in done.stdout
    assert "ir3de.modeling_ir3de" in json.loads(done.stdout.splitlines()[-1]), "which registers the task"
    for text in (done.stderr, done.stdout):
        assert "\r" not in text
        assert "%|" not in text


def test_a_router_that_is_not_there_is_an_error_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["route", str(tmp_path / "absent"), "a prompt"]) == 2
    assert "ir3de route: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("sklearn", ["fit", "--outcomes", "no.jsonl", "--discover", "auto", "--embeddings", "no"], "benchmark"),
        ("peft", ["train-experts", "--data", "no.jsonl", "--model", "no"], "adapters"),
        ("lm_eval", ["tasks", "no-router", "--task", "math=gsm8k"], "evaluation"),
        ("lm_eval", ["judge", "no-router", "--by", "gsm8k"], "evaluation"),
        ("sklearn", ["benchmark", "--outcomes", "no.jsonl", "--embeddings", "no"], "benchmark"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_read(
    package: str,
    command: list[str],
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main([*command, "--output", str(tmp_path / "made")]) == 2
    assert f'`pip install "ir3de[{extra}]"`' in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_package_that_a_later_file_needs_is_told_before_any_is_read(
    json_lines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("ir3de.scripts.data.parts.read_records", lambda *_: pytest.fail("read"))
    late = tmp_path / "late.parquet"
    late.touch()
    assert cli.main(["inspect", str(json_lines), str(late)]) == 2
    assert 'late.parquet needs pyarrow: `pip install "ir3de[data]"`' in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tfidf", "bow-mlp", "encoder-lr"])
def test_a_router_that_needs_a_missing_package_is_refused_as_it_is_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"need scikit-learn.*ir3de\[benchmark\]"):
        BASELINES[name](Options(encoder="no"))


WRITERS = {
    "fit": ["fit", "--data", "{data}", "--embeddings", "{absent}", "--output", "{place}"],
    "evaluate": ["evaluate", "{absent}", "--data", "{data}", "--output", "{place}"],
    "tasks": ["tasks", "{absent}", "--task", "a=b", "--output", "{place}"],
    "add": ["add", "{absent}", "art", "--data", "{data}", "--output", "{place}"],
    "remove": ["remove", "{absent}", "art", "--output", "{place}"],
    "experts": ["experts", "{absent}", "--set", "art", "cost=1", "--output", "{place}"],
    "merge": ["merge", "{absent}", "{data}", "--output", "{place}"],
    "outcomes": ["outcomes", "{absent}", "{data}", "--output", "{place}"],
    "collect": ["collect", "--router", "{absent}", "--data", "{data}", "--output", "{place}"],
    "second": ["second", "{absent}", "--data", "{data}", "--output", "{place}"],
    "quickstart": ["quickstart", "--output", "{place}"],
    "train-experts": ["train-experts", "--model", "{absent}", "--data", "{data}", "--output", "{place}"],
    "benchmark": ["benchmark", "--data", "{data}", "--output", "{place}"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    name: str, tmp_path: Path, json_lines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(place: Path) -> str:
        names = {"data": json_lines, "absent": tmp_path / "absent", "place": place}
        assert cli.main([part.format(**names) for part in WRITERS[name]]) == 2
        return capsys.readouterr().err

    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for place in (file, file / "router"):
        error = said(place)
        assert f"{file} is a file, and a folder is needed for {place}: name another with --output." in error
    monkeypatch.setattr("ir3de.scripts.command.os.access", lambda *_: False)  # as on a disk that is read alone
    new = tmp_path / "new" / "router"
    error = said(new)
    assert error.startswith(f"ir3de {name}: {tmp_path} may not be written to, so nothing can go to {new}: name another")
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({file.name, json_lines.name})


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["judge", "absent", "--by", "exact"], ["collect", "--router", "a", "--name", "b"]):
        assert cli.main([*command, "--data", "absent", "--output", str(tmp_path)]) == 2
        assert f"{tmp_path} is a folder, and a file is to be written: name another" in capsys.readouterr().err


def test_a_router_in_a_folder_that_cannot_be_written_may_go_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "router"
    tiny.router().save_pretrained(place)
    monkeypatch.setattr("ir3de.scripts.command.os.access", lambda path, _: Path(path) != place)
    command = ["experts", str(place), "--set", "law", "cost=2"]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "may not be written to" in said
    assert "name a folder for the result with --output" in said
    assert cli.main([*command, "--output", str(tmp_path / "other")]) == 0


@pytest.mark.skipif(os.name == "nt", reason="no such limit there")
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_is_one_line_and_leaves_what_was(there: bool, tmp_path: Path) -> None:
    router, place = tmp_path / "router", tmp_path / "made" / "copy"
    tiny.router().save_pretrained(router)
    if there:
        shutil.copytree(router, place)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # A limit of files' size is the nearest to a full disk that a test may bring about: writes fail the same way.
    program = (
        "import resource, signal, sys; sys.argv[0] = 'ir3de'\n"
        "from ir3de.scripts.cli import main\n"
        "import ir3de.scripts.publishing.targets\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = int(sys.argv.pop())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        f"sys.exit(main(['experts', {str(router)!r}, '--set', 'law', 'cost=2', '--output', {str(place)!r}]))\n"
    )
    for limit in (300, 2000):  # less than the config; less than the weights
        command = [sys.executable, "-c", program, str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert str(place) in done.stderr
        assert "othing was saved" in done.stderr
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert (tmp_path / "made").exists() == there


@pytest.mark.parametrize("where", ["_import", "_summary", "_run"])
def test_ctrl_c_is_silent_while_packages_are_imported_too(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, where, interrupted)
    assert cli.main(["experts", "--keys"]) == 130
    assert capsys.readouterr() == ("", "")


def test_route_reads_a_prompt_a_line_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    monkeypatch.setattr("sys.stdin", io.StringIO("the court\n\n  \ninteger loop"))
    assert cli.main(["route", str(tmp_path / "router"), "prime proof", "-", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == ["prime proof", "the court", "integer loop"]
    assert [record["expert"] for record in records] == ["math", "law", "code"]
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert cli.main(["route", str(tmp_path / "router"), "-"]) == 2
    assert "Standard input holds no prompt" in capsys.readouterr().err


def test_without_a_network_it_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("it was tried again"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["route", "absent", "a prompt"]) == 2
    assert "absent is not on this machine, and huggingface.co cannot be found" in capsys.readouterr().err
    with pytest.raises(OSError, match=r"org/encoder is not on this machine, and huggingface\.co cannot be found"):
        ready("org/encoder")
    tiny.router().save_pretrained(tmp_path / "router")
    assert cli.main(["route", "router", "court"]) == 0, "a folder needs no network"


@pytest.mark.parametrize("name", ["absent", "*arken*.safetensors"])
def test_a_file_to_publish_that_is_not_there_is_told_as_such(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", name, "--router", "org/router"]) == 2
    assert f"There is no file or folder {name}: give statistics" in capsys.readouterr().err
