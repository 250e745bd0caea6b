"""Collecting on a node: any number of shards, processes and kills give the same file."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ir3de import DomainStatistics, IR3DEModel
from ir3de.batch_ir3de import Prompts
from ir3de.scripts import cli, collect
from ir3de.statistics_ir3de import StatisticsCollector

from . import tiny

KILLS = int(os.environ.get("IR3DE_KILLS", "1"))  # the full proof: `make prove`
TEXTS = tiny.sentences("law", 70)


@pytest.fixture
def router(tmp_path: Path) -> str:
    made = tiny.router(feature_map="rff", num_features=24)
    made.remove_expert("law")
    made.save_pretrained(tmp_path / "router")
    return str(tmp_path / "router")


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The texts in three files, one of them compressed, with rows that do not count."""
    lines = [json.dumps({"text": text, "kept": "yes"}) for text in TEXTS]
    lines.insert(30, json.dumps({"text": "not this", "kept": "no"}))
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl"]
    for path, part in zip(paths, (lines[:20], lines[20:50], lines[50:]), strict=True):
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt", encoding="utf-8") as file:
            file.write("\n".join(part) + "\n\n")
    return [*(f"--data={path}" for path in paths), "--where", "kept=yes"]


def run(router: str, data: list[str], output: Path, *options: str) -> DomainStatistics:
    arguments = ["collect", "--router", router, "--name", "law", *data, "--output", str(output), *options]
    assert cli.main(arguments) == 0
    return DomainStatistics.load(output)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def distance(left: DomainStatistics, right: DomainStatistics) -> float:
    return float((left.gram("prompts") - right.gram("prompts")).norm() / right.gram("prompts").norm())


def test_any_shards_give_the_same_token_rows(router: str, data: list[str], tmp_path: Path) -> None:
    whole = run(router, data, tmp_path / "1.safetensors")
    assert (whole.rows("prompts"), whole.rows("tokens")) == (70, sum(len(text.split()) for text in TEXTS))
    for rows in (35, 10, 3):
        sharded = run(router, data, tmp_path / f"{rows}.safetensors", f"--shard-rows={rows}")
        assert torch.equal(sharded.gram("tokens"), whole.gram("tokens"))
        assert distance(sharded, whole) < 1e-10
    again = run(router, list(reversed(data[:3])) + data[3:], tmp_path / "again.safetensors", "--shard-rows=10")
    assert torch.equal(again.gram("tokens"), whole.gram("tokens"))


def test_it_is_what_adding_the_texts_gives(router: str, data: list[str], tmp_path: Path) -> None:
    collected = run(router, data, tmp_path / "law.safetensors")
    model = IR3DEModel.from_pretrained(router)
    model.add_expert("law", texts=TEXTS)
    assert torch.equal(model.statistics["law"].gram("tokens"), collected.gram("tokens"))
    assert distance(model.statistics["law"], collected) < 1e-10


def test_a_killed_collection_resumes_to_the_identical_file(
    router: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(router, data, tmp_path / "whole.safetensors", "--shard-rows=10")
    made = []
    make = collect.Job._make

    def dies(job: collect.Job, path: Path, texts) -> None:
        if len(made) == 3:
            path.with_suffix(".9.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        made.append(path)
        make(job, path, texts)

    with monkeypatch.context() as patch:
        patch.setattr(collect.Job, "_make", dies)
        arguments = ["--router", router, "--name", "law", *data, "--output", str(tmp_path / "law.safetensors")]
        with pytest.raises(KeyboardInterrupt):
            collect.main([*arguments, "--shard-rows=10"])
    assert not (tmp_path / "law.safetensors").exists()
    times = [path.stat().st_mtime_ns for path in made]
    run(router, data, tmp_path / "law.safetensors", "--shard-rows=10")
    assert times == [path.stat().st_mtime_ns for path in made], "what was done is not done again"
    assert (tmp_path / "law.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_collections_killed_at_random_instants_resume_to_the_identical_file(
    router: str, data: list[str], tmp_path: Path
) -> None:
    run(router, data, tmp_path / "whole.safetensors", "--shard-rows=2")
    shards = len(list((tmp_path / "whole.safetensors.shards").iterdir()))
    draw, output, halfway = random.Random(0), tmp_path / "law.safetensors", 0

    options = ["--router", router, "--name", "law", *data, "--output", str(output), "--shard-rows=2"]
    command = [sys.executable, "-m", "ir3de.scripts.collect", *options]

    def made() -> int:
        return len(list(tmp_path.glob("law.safetensors.shards/*-??????.safetensors")))

    for _ in range(KILLS):
        shutil.rmtree(f"{output}.shards", ignore_errors=True)
        output.unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = draw.randrange(1, shards // 2)
        while made() < after and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        halfway += 0 < made() < shards
        run(router, data, output, "--shard-rows=2")
        assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert halfway > 0
    print(f"{halfway} of {KILLS} kills came halfway")


def test_the_jobs_of_a_queue_share_the_shards(router: str, data: list[str], tmp_path: Path) -> None:
    run(router, data, tmp_path / "whole.safetensors", "--shard-rows=10")
    common = ["collect", "--router", router, "--name", "law", *data, "--shard-rows=10"]
    common += ["--output", str(tmp_path / "law.safetensors"), "--shards", str(tmp_path / "shards")]
    for part in ("3/3", "1/3", "2/3"):
        assert cli.main([*common, "--part", part]) == 0
    assert not (tmp_path / "law.safetensors").exists()
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 7
    assert cli.main(common) == 0
    assert (tmp_path / "law.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_two_processes_give_the_same_token_rows(router: str, data: list[str], tmp_path: Path) -> None:
    whole = run(router, data, tmp_path / "whole.safetensors")
    script = "import sys; from ir3de.scripts import collect; sys.exit(collect.main(sys.argv[1:]))"
    (tmp_path / "run.py").write_text(script)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(tmp_path / "run.py")]
    options = ["--router", router, "--name", "law", *data, "--output", str(tmp_path / "two.safetensors")]
    done = subprocess.run(
        [sys.executable, *launch, *options, "--shard-rows=10"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = DomainStatistics.load(tmp_path / "two.safetensors")
    assert torch.equal(two.gram("tokens"), whole.gram("tokens"))
    assert distance(two, whole) < 1e-10


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
    grams = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        collector = StatisticsCollector(features, "f")
        collector.add(Prompts(ids, torch.full((200,), 100)))
        grams.append(collector.statistics.gram("tokens"))
        assert torch.get_num_threads() == threads
    assert torch.equal(grams[0], grams[1])
    assert torch.equal(grams[0], grams[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "0/3"], "--part takes I/N"),
        (["--part", "4/3"], "--part takes I/N"),
        (["--part", "x"], "--part takes I/N"),
        (["--shard-rows", "0"], "at least 1"),
        (["--where", "kept=never"], "have no tokens"),
        (["--text-column", "prompt"], r"expected text under 'prompt'"),
        (["--name", "../law"], "cannot name an expert"),
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


def test_shards_of_other_data_are_never_added(
    router: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(router, data, tmp_path / "law.safetensors", "--shard-rows=10")
    for other in (["--shard-rows=20"], ["--shard-rows=10", "--epsilon=1"], ["--shard-rows=10", "--where=kept!=x"]):
        arguments = ["collect", "--router", router, "--name", "law", *data, *other]
        assert cli.main([*arguments, "--output", str(tmp_path / "law.safetensors")]) == 2
        assert "shards of other data" in capsys.readouterr().err
