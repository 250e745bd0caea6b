"""Collecting on datatrove: any number of tasks, workers and kills give the same file."""

import contextlib
import gzip
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from fsspec.implementations.local import LocalFileOpener

from ir3de import DomainStatistics, IR3DEModel
from ir3de.batch_ir3de import Prompts
from ir3de.scripts import cli
from ir3de.scripts.collecting import engines, steps
from ir3de.scripts.collecting.collect import next_commands
from ir3de.scripts.data import parts
from ir3de.statistics_ir3de import StatisticsCollector

from . import tiny

KILLS = int(os.environ.get("IR3DE_KILLS", "1"))  # the full proof: `make prove`
TEXTS = tiny.sentences("law", 70)
FILES = 7


@pytest.fixture
def router(tmp_path: Path) -> str:
    made = tiny.router(feature_map="rff", num_features=24)
    made.remove_expert("law")
    made.save_pretrained(tmp_path / "router")
    return str(tmp_path / "router")


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The texts in seven files, some of them compressed, with rows that do not count."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(FILES):
        rows = [{"text": text, "domain": "law", "kept": "yes"} for text in TEXTS[number::FILES]]
        rows.insert(3, {"text": "not this", "domain": "law", "kept": "no"})
        rows += [{"text": text, "domain": "math", "kept": "yes"} for text in tiny.sentences("math", 5, seed=number)]
        lines = "".join(json.dumps(row) + "\n\n" for row in rows)
        if number % 2:
            (folder / f"{number}.jsonl").write_text(lines, encoding="utf-8")
        else:
            (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return [*(f"--data={path}" for path in sorted(folder.iterdir())), "--where", "kept=yes"]


def run(router: str, data: list[str], output: Path, *options: str) -> DomainStatistics:
    arguments = ["collect", "--router", router, "--name", "law", *data, "--output", str(output), *options]
    assert cli.main(arguments) == 0
    return DomainStatistics.load(output)


def distance(left: DomainStatistics, right: DomainStatistics) -> float:
    return float((left.gram("prompts") - right.gram("prompts")).norm() / right.gram("prompts").norm())


def test_any_number_of_tasks_gives_the_same_token_rows(
    router: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(router, data, tmp_path / "1.safetensors", "--tasks=1")
    assert "35 rows of other domains were left out: 'math' 35" in capsys.readouterr().err
    assert (whole.rows("prompts"), whole.rows("tokens")) == (70, sum(len(text.split()) for text in TEXTS))
    for tasks in (2, 3, 7, 99):
        shared = run(router, data, tmp_path / f"{tasks}.safetensors", f"--tasks={tasks}")
        assert torch.equal(shared.gram("tokens"), whole.gram("tokens"))
        assert torch.equal(shared.documents, whole.documents)
        assert distance(shared, whole) < 1e-10
    run(router, list(reversed(data[:FILES])) + data[FILES:], tmp_path / "again.safetensors", "--tasks=3")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


def test_it_is_what_adding_the_texts_gives(router: str, data: list[str], tmp_path: Path) -> None:
    collected = run(router, data, tmp_path / "law.safetensors")
    model = IR3DEModel.from_pretrained(router)
    model.add_expert("law", texts=TEXTS)
    assert torch.equal(model.statistics["law"].gram("tokens"), collected.gram("tokens"))
    assert distance(model.statistics["law"], collected) < 1e-10


def test_one_pass_over_all_domains_gives_the_files_of_each(router: str, data: list[str], tmp_path: Path) -> None:
    arguments = ["collect", "--router", router, *data, "--output", str(tmp_path / "all")]
    assert cli.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["law.safetensors", "math.safetensors"]
    run(router, data, tmp_path / "law.safetensors")
    assert (tmp_path / "all" / "law.safetensors").read_bytes() == (tmp_path / "law.safetensors").read_bytes()


def test_the_command_that_is_told_brings_a_file_to_the_domain_that_it_is_of(
    router: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a & b"
    shutil.copytree(router, place)
    name = "size / fit?"
    output = tmp_path / "my file.safetensors"
    asked = ["--name", name, "--any-domain", "--output", str(output)]
    assert cli.main(["collect", "--router", str(place), *asked, *data]) == 0
    [told] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Merge it: ")]
    words = shlex.split(told.removeprefix("Merge it: "))
    assert words == ["ir3de", "merge", str(place), str(output), "--name", name]
    before = IR3DEModel.from_pretrained(place).config.domain_names
    assert cli.main([*words[1:], "--own"]) == 0
    assert {*IR3DEModel.from_pretrained(place).config.domain_names} == {*before, name}


def test_the_commands_that_are_told_are_of_several_files_and_of_the_hub() -> None:
    told = next_commands("org/router", {f"law {n}": Path(f"out/law {n}.safetensors") for n in range(5)})
    assert told[0] == "Publish it: ir3de publish 'out/law 0.safetensors' --router org/router --name 'law 0'"
    assert (len(told), told[-1]) == (4, "And likewise the other 2.")


def test_each_file_is_read_once_by_one_task(
    router: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    records = parts.FilePart.records

    def counted(part: parts.FilePart, wanted: parts.Wanted) -> object:
        read[part.name] += 1
        return records(part, wanted)

    monkeypatch.setattr(parts.FilePart, "records", counted)
    run(router, data, tmp_path / "law.safetensors", "--tasks=7")
    assert list(read.values()) == [1] * FILES
    told = [json.loads(path.read_text()) for path in (tmp_path / "law.safetensors.tasks" / "stats").iterdir()]
    assert [task[0]["stats"]["input_files"] for task in told] == [1] * 7


def test_each_byte_is_read_once(router: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    original = LocalFileOpener.read

    def counted(file: LocalFileOpener, *size: int) -> bytes:
        found: bytes = original(file, *size)
        read[Path(file.path).name] += len(found)
        return found

    monkeypatch.setattr(LocalFileOpener, "read", counted)
    run(router, data, tmp_path / "law.safetensors", "--tasks=7")
    assert read == {path.name: path.stat().st_size for path in (tmp_path / "data").iterdir()}


def test_two_workers_give_the_identical_file(router: str, data: list[str], tmp_path: Path) -> None:
    run(router, data, tmp_path / "one.safetensors")
    run(router, data, tmp_path / "two.safetensors", "--workers=2")
    assert (tmp_path / "two.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_a_killed_collection_resumes_to_the_identical_file(
    router: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(router, data, tmp_path / "whole.safetensors")
    made = []
    save = steps.save_sums

    def dies(path: Path, *values) -> None:
        if len(made) == 3:
            path.with_suffix(".9.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        save(path, *values)
        made.append(path)

    output = tmp_path / "law.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(steps, "save_sums", dies)
        assert cli.main(["collect", "--router", router, "--name", "law", *data, "--output", str(output)]) == 130
    assert not output.exists()
    times = [path.stat().st_mtime_ns for path in made]
    run(router, data, output)
    assert times == [path.stat().st_mtime_ns for path in made], "what was done is not done again"
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


WAITING = """
import sys, time
from pathlib import Path
from datatrove.pipeline.base import PipelineStep
from ir3de.scripts.collecting.engines import Engine

class Wait(PipelineStep):
    name, type = "wait", "wait"

    def run(self, data=None, rank=0, world_size=1):
        print("begun", flush=True)
        time.sleep(60)
        yield from ()

if __name__ == "__main__":
    Engine("local", 1, 1, Path(sys.argv[1])).run([Wait()], Wait())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_a_collection_started_ends_with_it_however_it_ends(tmp_path: Path) -> None:
    program = tmp_path / "waiting.py"
    program.write_text(WAITING)
    command = [sys.executable, str(program), str(tmp_path / "tasks")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert len(in_session(process.pid)) > 1
        process.kill()
    end = time.monotonic() + 10
    while left := in_session(process.pid):
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"{len(left)} processes outlive the collection")
        time.sleep(0.1)


def in_session(leader: int) -> list[int]:
    """The processes of a session, without those that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if int(session) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def test_collections_killed_at_random_instants_resume_to_the_identical_file(
    router: str, data: list[str], tmp_path: Path
) -> None:
    run(router, data, tmp_path / "whole.safetensors")
    draw, output, halfway = random.Random(0), tmp_path / "law.safetensors", 0
    arguments = ["--router", router, "--name", "law", *data, "--output", str(output), "--workers=1"]
    command = [sys.executable, "-m", "ir3de.scripts.collect", *arguments]

    def made() -> int:
        return len([*tmp_path.glob("law.safetensors.tasks/sums/*")])

    for _ in range(KILLS):
        shutil.rmtree(f"{output}.tasks", ignore_errors=True)
        output.unlink(missing_ok=True)
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        after = draw.randrange(1, FILES - 1)
        while made() < after and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(draw.random() * 0.01)
        os.killpg(process.pid, signal.SIGKILL)  # with what it started, which would outlive it
        process.wait()
        halfway += 0 < made() < FILES
        run(router, data, output)
        assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert halfway > 0
    print(f"{halfway} of {KILLS} kills came halfway")


@pytest.mark.skipif("IR3DE_KILLS" not in os.environ, reason="a cluster of Ray takes long: part of `make prove`")
def test_a_ray_cluster_of_two_workers_gives_the_identical_file(router: str, data: list[str], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs the package ray")
    run(router, data, tmp_path / "here.safetensors")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        options = ["--engine=ray", "--workers=2", "--engine-option", "mem_per_cpu_gb=0.5"]
        run(router, data, tmp_path / "ray.safetensors", *options)
    finally:
        ray.shutdown()
    assert (tmp_path / "ray.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()


SBATCH = """#!/bin/sh
for last; do :; done
{ echo "$@"; cat "$last"; } > "$FOLDER/job-$(ls "$FOLDER" | wc -l)"
echo Submitted batch job 17
"""


def test_a_slurm_job_is_handed_in(
    router: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm is played by a script that keeps what it is given; the jobs are not run."""
    jobs, programs = tmp_path / "jobs", tmp_path / "bin"
    jobs.mkdir()
    programs.mkdir()
    arguments = ["collect", "--router", router, "--name", "law", *data, "--output", str(tmp_path / "law.safetensors")]
    arguments += ["--engine=slurm"]
    assert cli.main(arguments) == 2
    assert "--engine-option partition=... and --engine-option time=..." in capsys.readouterr().err
    arguments += ["--workers=3", "--engine-option", "partition=cpu", "--engine-option", "time=02:00:00"]
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    assert shutil.which("sbatch") or cli.main(arguments) == 2
    assert "no sbatch here" in capsys.readouterr().err
    (programs / "sbatch").write_text(SBATCH)
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("FOLDER", str(jobs))
    assert cli.main(arguments) == 0
    assert "Handed in: 7 tasks and a last one" in capsys.readouterr().out
    first, stats, last, _ = (path.read_text() for path in sorted(jobs.iterdir()))
    assert "#SBATCH --array=0-6%3" in first
    assert "#SBATCH --partition=cpu" in first
    assert "#SBATCH --time=02:00:00" in first
    assert f"launch_pickled_pipeline {tmp_path}/law.safetensors.tasks/executor.pik" in first
    assert "merge_stats" in stats
    assert "--dependency=afterok:17" in last
    assert "law.safetensors.tasks/unite/executor.pik" in last


def test_a_pipeline_of_ones_own(router: str, data: list[str], tmp_path: Path) -> None:
    """The example of docs/collecting.md."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader

    sums, kept = str(tmp_path / "sums"), LambdaFilter(lambda document: document.metadata["kept"] == "yes")
    pipeline = [JsonlReader(str(tmp_path / "data")), kept, steps.SumDomains(router, sums)]
    LocalPipelineExecutor(pipeline, tasks=2, workers=1, logging_dir=str(tmp_path / "logs")).run()
    last = [steps.UniteSums(router, sums, str(tmp_path / "own"), tasks=2)]
    LocalPipelineExecutor(last, logging_dir=str(tmp_path / "unite")).run()
    own = DomainStatistics.load(tmp_path / "own" / "law.safetensors")
    collected = run(router, data, tmp_path / "law.safetensors")
    assert torch.equal(own.gram("tokens"), collected.gram("tokens"))
    assert distance(own, collected) < 1e-10


def test_the_steps_say_what_is_missing(router: str, tmp_path: Path) -> None:
    from datatrove.data import Document

    step = steps.SumDomains(router, str(tmp_path / "sums"))
    with pytest.raises(ValueError, match="Document 7 says no domain under 'domain' in its metadata, which has 'lang'"):
        list(step.run([Document("court", "7", metadata={"lang": "en"})]))
    with pytest.raises(ValueError, match=r"2 of 2 tasks are not done, such as .*00000\.safetensors"):
        list(steps.UniteSums(router, str(tmp_path / "sums"), str(tmp_path / "all"), tasks=2).run())


def test_a_private_collection_leaves_no_sums_without_noise(router: str, data: list[str], tmp_path: Path) -> None:
    before = {*tmp_path.rglob("*")}
    run(router, data, tmp_path / "law.safetensors", "--epsilon=1", "--tasks=3")
    assert {*tmp_path.rglob("*")} - before == {tmp_path / "law.safetensors"}


def test_a_failed_private_collection_is_for_its_owner_alone(
    router: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "6.jsonl.gz").write_bytes(b"no gzip")
    arguments = ["collect", "--router", router, "--name", "law", *data, "--output", str(tmp_path / "law.safetensors")]
    assert cli.main([*arguments, "--epsilon=1"]) == 2
    assert "6.jsonl.gz is truncated or not gzip" in capsys.readouterr().err
    assert (tmp_path / "law.safetensors.tasks").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sums_what_the_cpu_sums(router: str, data: list[str], tmp_path: Path) -> None:
    here = run(router, data, tmp_path / "cpu.safetensors")
    there = run(router, data, tmp_path / "gpu.safetensors", "--device=cuda")
    assert torch.equal(there.gram("tokens"), here.gram("tokens"))
    assert torch.equal(there.documents, here.documents)
    assert distance(there, here) < 1e-5, "the rows are float32"


def test_token_rows_do_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 200, generator=generator)
    ids = torch.randint(3000, (20000,), generator=generator)
    grams, before = [], torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        collector = StatisticsCollector(features, "f")
        collector.add(Prompts(ids, torch.full((200,), 100)))
        grams.append(collector.statistics.gram("tokens"))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(grams[0], grams[1])
    assert torch.equal(grams[0], grams[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "0"], "--tasks must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--engine-option", "x"], "--engine-option takes KEY=VALUE"),
        (["--where", "kept=never"], "have no tokens"),
        (["--text-column", "prompt"], r"expected text under 'prompt'"),
        (["--name", "law\x07"], "cannot name an expert"),
        (["--name", "history"], "'law' 70, 'math' 35"),
        (["--data", "absent.jsonl"], "no file absent.jsonl"),
        (["--epsilon", "0"], "epsilon above 0"),
        (["--device", "meta"], "--device meta cannot sum in float64 here"),
    ],
)
def test_bad_options_are_one_line(
    router: str,
    data: list[str],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "law.safetensors"
    arguments = ["collect", "--router", router, "--name", "law", *data, "--output", str(output), *options]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_bad_row_is_named_or_counted(
    router: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data" / "1.jsonl"
    path.write_text('{"text": "\\ud83d", "domain": "law", "kept": "yes"}\n' + path.read_text())
    arguments = ["collect", "--router", router, "--name", "law", *data, "--output", str(tmp_path / "law.safetensors")]
    assert cli.main(arguments) == 2
    assert f"{path}, line 1: half a surrogate pair" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "law.safetensors.tasks")
    assert cli.main([*arguments, "--skip-bad-rows"]) == 0
    assert f"1 bad row was left out, such as: {path}, line 1" in capsys.readouterr().err
    assert DomainStatistics.load(tmp_path / "law.safetensors").rows("prompts") == 70


def test_tasks_of_other_data_are_never_added(
    router: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(router, data, tmp_path / "law.safetensors")
    for other in (["--tasks=2"], ["--epsilon=1"], ["--where=kept!=x"], ["--any-domain"], ["--skip-bad-rows"]):
        arguments = ["collect", "--router", router, "--name", "law", *data, *other]
        assert cli.main([*arguments, "--output", str(tmp_path / "law.safetensors")]) == 2
        assert "tasks of other data" in capsys.readouterr().err


def test_cores_are_shared_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    with engines.cores_for(3):
        assert os.environ["RAYON_NUM_THREADS"] == "2"
    assert "RAYON_NUM_THREADS" not in os.environ
