"""Publishing to a Hub while others do, and merging what strangers propose."""

import json
import multiprocessing
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants

from ir3de import IR3DEConfig, IR3DEModel
from ir3de.edits_ir3de import experts_of
from ir3de.names_ir3de import file_name
from ir3de.outcomes_ir3de import ONE, Ledger
from ir3de.scripts import cli
from ir3de.scripts.publishing import targets as edit
from ir3de.token_router_ir3de import FeatureMap

from . import tiny
from .hub_server import OTHER_TOKEN, READ_TOKEN, Hub
from .test_second_opinion import WordEncoder, second


@pytest.fixture
def law(tmp_path: Path) -> str:
    """Statistics of law."""
    tiny.statistics(tiny.sentences("law", 20)).save(tmp_path / "law.safetensors")
    return str(tmp_path / "law.safetensors")


def experts(repo: str, revision: str = "main") -> list[str]:
    model = IR3DEModel.from_pretrained(repo, revision=revision)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.fit()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), "W is of its statistics"
    return model.config.expert_names


def test_eight_processes_publish_at_once_and_nobody_is_lost(repo: str, hub: Hub, tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")  # a fork of this process may hang in its threads
    server.set_forkserver_preload(["ir3de.scripts.cli"])
    processes = []
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        tiny.statistics(tiny.sentences("law", 5, seed=number)).save(path)
        arguments = ["publish", str(path), "--router", repo, "--name", f"domain-{number}"]
        processes.append(server.Process(target=cli.main, args=(arguments,)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8
    commits = HfApi().list_repo_commits(repo)
    named = [experts(repo, commit.commit_id) for commit in commits if commit.title.startswith(("Contribute", "Upload"))]
    assert [len(names) for names in named] == list(range(10, 1, -1)), "one commit a change, and each loads"
    assert {f"domain-{number}" for number in range(8)} < set(named[0])


def test_the_order_of_publishing_does_not_matter(repo: str, law: str, tmp_path: Path) -> None:
    tiny.statistics(tiny.sentences("code", 5, seed=5)).save(tmp_path / "code.safetensors")
    for path in (law, str(tmp_path / "code.safetensors")):
        assert cli.main(["publish", path, "--router", repo]) == 0
    model = tiny.router()
    model.merge(tmp_path / "code.safetensors")
    assert experts_of(IR3DEModel.from_pretrained(repo)).digest == experts_of(model).digest


def test_add_remove_and_merge_work_on_the_hub(repo: str, law: str, tmp_path: Path) -> None:
    first = IR3DEModel.from_pretrained(repo).state_dict()
    assert cli.main(["add", repo, "law", "--statistics", law, "--model", "org/law", "--model-revision", "abc"]) == 0
    added = IR3DEModel.from_pretrained(repo)
    assert added.config.experts[1] == {"name": "law", "model": "org/law", "revision": "abc"}
    assert cli.main(["remove", repo, "law"]) == 0
    assert experts(repo) == ["code", "math"]
    assert all(
        torch.equal(*pair)
        for pair in zip(first.values(), IR3DEModel.from_pretrained(repo).state_dict().values(), strict=False)
    )
    assert cli.main(["merge", repo, law]) == 0
    assert experts(repo) == ["code", "law", "math"]
    assert [commit.title for commit in HfApi().list_repo_commits(repo)[:3]] == [
        "Merge law.safetensors",
        "Remove law",
        "Add law",
    ]
    card = Path(HfApi().hf_hub_download(repo, "README.md")).read_text(encoding="utf-8")
    changes = re.findall(r"\| (\w+ [^|]+) \| `(\w{12})` \|", card)
    assert [title for title, _ in changes[1:]] == ["Add law", "Remove law", "Merge law.safetensors"]
    assert changes[0][1] == changes[2][1] != changes[1][1], "added and removed again is the state it began with"


def test_commands_edit_a_folder_too(tmp_path: Path, law: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "router")
    tiny.router().save_pretrained(folder)
    rows = [json.dumps({"text": text}) for text in tiny.sentences("law", 30, seed=3)]
    (tmp_path / "art.jsonl").write_text("\n".join(rows))
    assert cli.main(["add", folder, "art", "--data", str(tmp_path / "art.jsonl"), "--output", folder + "2"]) == 0
    assert IR3DEModel.from_pretrained(folder).config.expert_names == ["code", "law", "math"]
    assert IR3DEModel.from_pretrained(folder + "2").config.expert_names == ["art", "code", "law", "math"]
    assert cli.main(["add", folder, "civil-law", "--replace", "law"]) == 0
    assert cli.main(["merge", folder, law]) == 2, "the same contribution under another name"
    assert "would count twice" in capsys.readouterr().err
    assert cli.main(["remove", folder, "code", "--create-pr"]) == 2
    assert "--create-pr" in capsys.readouterr().err
    assert IR3DEModel.from_pretrained(folder).config.expert_names == ["civil-law", "code", "math"]


def test_a_stranger_proposes_and_the_owner_merges(
    repo: str, law: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", OTHER_TOKEN)
        assert cli.main(["publish", law, "--router", repo, "--model", "org/law", "--create-pr"]) == 0
    assert cli.main(["publish", *_part(tmp_path, "math"), "--router", repo]) == 0  # main moves on meanwhile
    assert experts(repo) == ["code", "math"]
    lines = [json.dumps({"text": text, "domain": d}) for d in tiny.DOMAINS for text in tiny.sentences(d, 9, seed=7)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    capsys.readouterr()
    merge = ["merge", repo, "--pr", "1", "--data", str(tmp_path / "test.jsonl")]
    assert cli.main([*merge, "--dry-run"]) == 0
    assert experts(repo) == ["code", "math"]
    head = HfApi().model_info(repo, revision="refs/pr/1").sha
    assert cli.main([*merge, "--head", "0" * 40]) == 2
    assert experts(repo) == ["code", "math"]
    assert cli.main([*merge, "--head", head]) == 0
    shown = capsys.readouterr().out
    assert "- > 1" in shown
    assert f"--head {head}" in shown
    assert 'who answers for law: {"model": "org/law", "name": "law"}' in shown
    assert "before: macro accuracy" in shown
    assert "after: macro accuracy" in shown
    assert experts(repo) == ["code", "law", "math"]
    model = IR3DEModel.from_pretrained(repo)
    assert model.config.experts[1] == {"name": "law", "model": "org/law"}
    assert len(model.statistics["math"].contributions) == 2, "what came in between stays"
    assert HfApi().get_discussion_details(repo, 1).status == "closed"
    assert cli.main(["merge", repo, "--pr", "1"]) == 2
    assert "nothing to merge" in capsys.readouterr().err.lower()


def test_a_refused_merge_shows_what_it_would_take(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.statistics(tiny.sentences("code", 30, seed=21)).save(tmp_path / "programming.safetensors")
    lines = [json.dumps({"text": text, "domain": d}) for d in ("code", "math") for text in tiny.sentences(d, 9, seed=7)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", OTHER_TOKEN)
        copy = str(tmp_path / "programming.safetensors")
        assert cli.main(["publish", copy, "--router", repo, "--model", "org/x", "--create-pr"]) == 0
    capsys.readouterr()
    for more in (["--dry-run"], []):
        assert cli.main(["merge", repo, "--pr", "1", "--data", str(tmp_path / "test.jsonl"), *more]) == 2
        shown = capsys.readouterr()
        marked = [line.split()[0] for line in shown.out.splitlines() if line.endswith("more than 5 points")]
        assert "code" in marked
        assert 'who answers for programming: {"model": "org/x", "name": "programming"}' in shown.out
        assert "Most of what 'code' loses would go to 'programming'" in shown.err
        assert experts(repo) == ["code", "math"]
    model = IR3DEModel.from_pretrained(repo)
    model.samples = [{"text": text, "domain": "code"} for text in tiny.sentences("code", 4, seed=7)]
    model.push_to_hub(repo)
    assert cli.main(["merge", repo, "--pr", "1", "--dry-run"]) == 2
    shown = capsys.readouterr()
    marks = {line.split()[0]: line.rpartition("  ")[2] for line in shown.out.splitlines() if "<--" in line}
    assert "more than 5 points" in marks["code"], "by estimate, or by the router's own samples"
    assert "math" not in marks
    assert "recall: of the router's own 4 samples, which are few" in shown.out


def test_a_proposal_reaches_the_second_opinion_too(repo: str, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ir3de.second_opinion_ir3de._load_encoder", lambda name, revision: WordEncoder())
    model = IR3DEModel.from_pretrained(repo)
    model.second_opinion = second(model.config.expert_names)
    model.push_to_hub(repo)
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", OTHER_TOKEN)
        theirs = IR3DEModel.from_pretrained(repo)
        theirs.add_expert("law", statistics=law)
        theirs.second_opinion.add_expert("law", ["the court and a judge"])
        theirs.push_to_hub(repo, create_pr=True)
    assert cli.main(["merge", repo, "--pr", "1"]) == 0
    merged = IR3DEModel.from_pretrained(repo).second_opinion
    assert merged.statistics["law"].contributions.keys() == theirs.second_opinion.statistics["law"].contributions.keys()
    assert merged.statistics.keys() == theirs.second_opinion.statistics.keys()


def _judged(path: Path, scores: dict[str, float], n: int, domain: str = "math", seed: int = 0) -> str:
    """A file of outcomes in a domain."""
    texts = [f"{text} {index}" for index, text in enumerate(tiny.sentences(domain, n, seed=seed))]
    rows = [json.dumps({"text": text, "scores": scores, "domain": domain}) for text in texts]
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


def test_a_stranger_proposes_outcomes_and_the_owner_merges(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _judged(tmp_path / "first.jsonl", {"code": 0.5, "math": 0.75}, 8)
    assert cli.main(["publish", "--outcomes", first, "--router", repo]) == 0
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", OTHER_TOKEN)
        second = _judged(tmp_path / "second.jsonl", {"code": 1.0, "math": 0.0}, 40, seed=1)
        assert cli.main(["publish", "--outcomes", second, "--router", repo, "--create-pr"]) == 0
    third = _judged(tmp_path / "third.jsonl", {"math": 0.75}, 4, seed=2)
    assert cli.main(["publish", "--outcomes", third, "--router", repo]) == 0  # main moves on meanwhile
    capsys.readouterr()
    assert cli.main(["merge", repo, "--pr", "1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "outcomes of code: 8 > 48 judged, mean score 0.500 > 0.917  <-- moves by more than 5 points" in shown
    assert "outcomes of math: 12 > 52 judged, mean score 0.750 > 0.173  <-- moves" in shown
    assert "best in math: math > code  <-- another expert" in shown
    assert IR3DEModel.from_pretrained(repo).outcomes.sums(["math"], ["math"])[0, 0, 0] == 12 * ONE
    assert cli.main(["merge", repo, "--pr", "1"]) == 0
    merged = IR3DEModel.from_pretrained(repo).outcomes
    assert {name: len(parts) for name, parts in merged.contributions.items()} == {"code": 2, "math": 3}
    assert cli.main(["merge", repo, "--pr", "1"]) == 2
    assert "nothing to merge" in capsys.readouterr().err
    assert cli.main(["publish", "--outcomes", first, "--router", repo, "--model", "org/x"]) == 2
    assert "give its statistics too" in capsys.readouterr().err


def test_a_proposal_cannot_change_outcomes_that_are_there(repo: str, tmp_path: Path) -> None:
    owner = IR3DEModel.from_pretrained(repo)
    owner.add_outcomes(_judged(tmp_path / "first.jsonl", {"math": 0.75}, 8))
    owner.push_to_hub(repo)
    before = owner.outcomes.sums(["math"], ["math"])
    [(key, part)] = owner.outcomes.contributions["math"].items()
    forged = Ledger({"math": {key: part._replace(sums=part.sums * 9)}})
    forged.save(tmp_path)
    add = CommitOperationAdd("outcomes/math.safetensors", str(tmp_path / "math.safetensors"))
    HfApi().create_commit(repo, [add], commit_message="mine", create_pr=True, token=OTHER_TOKEN)
    assert cli.main(["merge", repo, "--pr", "1"]) == 2
    assert (IR3DEModel.from_pretrained(repo).outcomes.sums(["math"], ["math"]) == before).all()


def _part(tmp_path: Path, name: str) -> list[str]:
    tiny.statistics(tiny.sentences(name, 6, seed=9)).save(tmp_path / f"{name}.safetensors")
    return [str(tmp_path / f"{name}.safetensors")]


HOSTILE = {
    "broken outcomes": ({"outcomes/math.safetensors": b"\x00" * 99}, "not an outcomes file"),
    "outcomes of nobody": ({"outcomes/maths.safetensors": b"x"}, "Did you mean 'math'?"),
    "not about statistics": ({"notes.txt": b"hello"}, "proposes no statistics or outcomes"),
    "a pickle": ({"statistics/law.safetensors": b"\x80\x04\x95" + b"x" * 99}, "not a statistics file"),
    "a name that no expert may have": ({"statistics/.hidden.safetensors": b"x"}, "is not named after a domain"),
    "no config": ({"statistics/law.safetensors": None, "config.json": b"[]"}, "no readable experts"),
    "a broken config": ({"statistics/law.safetensors": None, "config.json": b"[" * 9999}, "no readable experts"),
    "an unknown key": (
        {"statistics/law.safetensors": None, "config.json": b'{"experts": [{"name": "law", "run": "x"}]}'},
        "unknown key",
    ),
}


@pytest.mark.parametrize(("files", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pull_request_is_refused(
    hub: Hub,
    files: dict[str, bytes | None],
    message: str,
    law: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"user/{request.node.callspec.id.replace(' ', '-')}"
    made = tiny.router()
    made.remove_expert("law")
    made.push_to_hub(name)
    adds = [CommitOperationAdd(path, Path(law).read_bytes() if data is None else data) for path, data in files.items()]
    HfApi().create_commit(name, adds, commit_message="mine", create_pr=True, token=OTHER_TOKEN)
    before = hub.files(name)
    assert cli.main(["merge", name, "--pr", "1"]) == 2
    assert message in capsys.readouterr().err
    assert hub.files(name) == before


def test_without_the_right_to_write_local_work_is_kept(
    repo: str, law: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, mine = hub.files(repo), Path(law).read_bytes()
    for token in (READ_TOKEN, OTHER_TOKEN, "hf_nobody"):
        monkeypatch.setenv("HF_TOKEN", token)
        assert cli.main(["publish", law, "--router", repo]) == 2
        said = capsys.readouterr().err
        assert "may not write" in said or "401" in said, said
    assert hub.files(repo) == before
    assert Path(law).read_bytes() == mine


def test_missing_things_are_named(
    repo: str, law: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hub.files(repo)
    tiny.statistics(tiny.sentences("law", 5), FeatureMap("unit")).save(tmp_path / "unit.safetensors")
    for arguments, message in [
        (["merge", repo, "--pr", "99"], "refs/pr/99|99"),
        (["publish", law, "--router", "user/absent"], "user/absent"),
        (["publish", str(tmp_path / "no.safetensors"), "--router", repo], "missing"),
        (["publish", str(tmp_path / "unit.safetensors"), "--router", repo], "feature space"),
        (["publish", law, "--router", repo, "--name", "code", "--model", "org/x"], "has an expert 'code' already"),
        (["remove", repo, "art"], "no expert 'art'"),
        (["merge", repo], "either sources"),
    ]:
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert any(part in said for part in message.split("|")), said
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(["publish", law, "--router", repo]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert hub.files(repo) == before


def test_it_gives_up_after_bounded_attempts(repo: str, law: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "_PAUSE", 0)

    def race(model: IR3DEModel) -> None:
        HfApi().upload_file(path_or_fileobj=model.config.to_json_string().encode() + b" " * len(seen), **upload)
        seen.append(model)
        model.add_expert("law", statistics=law)

    seen: list[IR3DEModel] = []
    upload = {"path_in_repo": "race.json", "repo_id": repo}
    with pytest.raises(RuntimeError, match="each of 3 attempts"):
        edit.publish(repo, race, "Add law", attempts=3)
    assert len(seen) == 3
    assert experts(repo) == ["code", "math"]


NAMES = ["Refund not showing up?", "法律", "Straße & Co.", "straße & co.", "../law", "nul", "é", "è", "長い" * 50]


def test_names_as_people_write_them_are_published_loaded_merged_and_removed(
    repo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(NAMES):
        path = tmp_path / f"{file_name(name)}.safetensors"
        tiny.statistics(tiny.sentences("law", 5, seed=number)).save(path)
        assert cli.main(["publish", str(path), "--router", repo, "--name", name]) == 0
    assert experts(repo) == sorted([*NAMES, "code", "math"])
    again = tmp_path / f"{file_name(NAMES[0])}.safetensors"
    tiny.statistics(tiny.sentences("law", 5, seed=99)).save(again)
    assert cli.main(["merge", repo, str(again), "--own"]) == 0, "the file tells the name"
    tiny.statistics(tiny.sentences("law", 5, seed=98)).save(again)
    assert cli.main(["publish", str(again), "--router", repo, "--create-pr"]) == 0
    number = next(HfApi().get_repo_discussions(repo)).num
    assert cli.main(["merge", repo, "--pr", str(number), "--own"]) == 0
    model = IR3DEModel.from_pretrained(repo)
    assert len(model.statistics[NAMES[0]].contributions) == 3
    long = tmp_path / f"{file_name(NAMES[-1])}.safetensors"
    tiny.statistics(tiny.sentences("law", 5, seed=97)).save(long)
    assert cli.main(["publish", str(long), "--router", repo]) == 2
    assert "a name too long to be told from it" in capsys.readouterr().err
    assert cli.main(["publish", str(long), "--router", repo, "--name", NAMES[-1], "--create-pr"]) == 0
    number = max(discussion.num for discussion in HfApi().get_repo_discussions(repo))
    assert cli.main(["merge", repo, "--pr", str(number), "--own"]) == 0, "the pull request's config tells the name"
    assert len(IR3DEModel.from_pretrained(repo).statistics[NAMES[-1]].contributions) == 2
    for name in NAMES:
        assert cli.main(["remove", repo, name]) == 0
    assert experts(repo) == ["code", "math"]
    left = [path for path in HfApi().list_repo_files(repo) if path.startswith("statistics/")]
    assert sorted(left) == ["statistics/code.safetensors", "statistics/math.safetensors"]


def test_two_hundred_names_that_differ_by_case_or_accents_or_are_reserved(repo: str, tmp_path: Path) -> None:
    """None takes the file of another: on the Hub, in a folder on disk, and when one is merged or removed."""
    letters = ["e", "é", "è", "ê", "E", "É", "È", "Ê", "ë", "Ë", "ē", "Ē", "ę", "Ę", "ė"]
    names = [f"Caf{one} n{other}" for one in letters for other in letters][:193]
    names += ["CON", "nul", "aux.txt", "Com1", "lpt9.x", "prn.", "COM¹"]
    config = IR3DEConfig(experts=[{"name": name} for name in names])
    statistics = {name: tiny.statistics(tiny.sentences("law", 2, seed=i)) for i, name in enumerate(names)}
    made = IR3DEModel.from_statistics(config, tiny.embeddings(), statistics, tiny.tokenizer())
    made.push_to_hub(repo)
    assert experts(repo) == sorted(names)
    loaded = IR3DEModel.from_pretrained(repo)
    assert all(torch.equal(loaded.statistics[name].gram("tokens"), statistics[name].gram("tokens")) for name in names)
    stems = {path.removeprefix("statistics/") for path in HfApi().list_repo_files(repo) if "statistics/" in path}
    assert len({stem.lower() for stem in stems}) == 200
    more = tmp_path / f"{file_name(names[1])}.safetensors"
    tiny.statistics(tiny.sentences("law", 2, seed=999)).save(more)
    assert cli.main(["merge", repo, str(more), "--own"]) == 0
    for name in (names[16], "nul"):
        assert cli.main(["remove", repo, name]) == 0
    left = IR3DEModel.from_pretrained(repo)
    assert left.config.expert_names == sorted({*names} - {names[16], "nul"})
    assert {name: len(of.contributions) for name, of in left.statistics.items() if len(of.contributions) > 1} == {
        names[1]: 2
    }
    left.save_pretrained(tmp_path / "disk")
    assert len({path.name.lower() for path in (tmp_path / "disk" / "statistics").iterdir()}) == 198
