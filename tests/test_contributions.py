"""What a contribution may at most do: one that would drown the others is refused, and what remains is shown."""

from pathlib import Path

import pytest
import torch

from ir3de import DomainStatistics, IR3DEModel
from ir3de.displacement_ir3de import Lost, Scorer, Separated, Solved, displaced
from ir3de.edits_ir3de import TakesPrompts, check_displaced, experts_of, prompt_length
from ir3de.outcomes_ir3de import Ledger
from ir3de.scripts.bench.contributions import Maker, honest, try_all
from ir3de.scripts.cli import main
from ir3de.scripts.data.rows import Row
from ir3de.scripts.publishing.review import Snapshot, accumulated, compare
from ir3de.statistics_ir3de import KINDS
from ir3de.token_router_ir3de import Problem, discriminant, ridge, sums

from . import tiny

LONG = [" ".join(tiny.sentences("law", 40, seed=seed)) for seed in range(12)]
ROWS = [Row(text, domain) for domain in ("code", "math") for text in tiny.sentences(domain, 10, seed=3)]


def router() -> IR3DEModel:
    made = tiny.router(variant="prompt")
    made.remove_expert("law")
    return made


def scaled(factor: float) -> DomainStatistics:
    """Honest sums with prompt rows made longer, as if texts were."""
    grams = {kind: tiny.statistics(tiny.sentences("law", 20)).gram(kind) for kind in KINDS}
    scale = torch.full((len(grams["prompts"]),), factor, dtype=torch.float64)
    scale[-1] = 1
    grams["prompts"] *= scale * scale.unsqueeze(1)
    return DomainStatistics.from_grams(grams, tiny.statistics(["court"]).fingerprint)


@pytest.mark.parametrize("part", [scaled(2.2), scaled(3.0)], ids=["five times", "nine times"])
def test_a_contribution_of_long_rows_is_refused_however_it_comes(part: DomainStatistics, tmp_path: Path) -> None:
    made = router()
    most = max(map(prompt_length, made.statistics.values()))
    assert prompt_length(part) > 3 * most
    part.save(tmp_path / "law.safetensors")
    before = {key: value.clone() for key, value in made.state_dict().items()}
    for edit in (
        lambda: made.merge(tmp_path / "law.safetensors"),
        lambda: made.merge({"code": part}),  # as more of a domain that is here
        lambda: made.add_expert("law", statistics=tmp_path / "law.safetensors"),
        lambda: made.add_domain("law", statistics=part),
        lambda: made.replace_expert("math", "law", statistics=part),
    ):
        with pytest.raises(ValueError, match="more than 3 times that of any domain here"):
            edit()
        assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_texts_of_ones_own_may_be_long() -> None:
    made = router()
    made.add_expert("law", texts=LONG)
    assert "law" in made.config.expert_names


def test_an_honest_contribution_is_taken() -> None:
    made = router()
    made.merge({"law": tiny.statistics(tiny.sentences("law", 20))})
    made.merge({"law": scaled(1.2)})
    assert len(made.statistics["law"].contributions) == 2


def test_sums_that_overflow_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = router()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    infinite = torch.full((made.config.hidden_size + 1, 3), torch.inf, dtype=torch.float64)
    monkeypatch.setattr("ir3de.modeling_ir3de._solve", lambda *_: (infinite, infinite))
    with pytest.raises(ValueError, match="together are too large to solve W from"):
        made.merge({"law": tiny.statistics(tiny.sentences("law", 20))})
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_the_comparison_marks_what_moves_much_and_says_who_will_answer() -> None:
    made = router()
    before = Snapshot.of(made, ROWS)
    near_copy = tiny.statistics(tiny.sentences("code", 30, seed=21))
    made.merge(
        IR3DEModelOf({"copy": near_copy}, {"name": "copy", "endpoint": "https://evil.org/v1", "model": "x\n|`"}),
        own=True,
    )
    shown = compare(before, Snapshot.of(made, ROWS))
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert "length" in shown.splitlines()[0]
    assert lines["code"].endswith("<-- moves by more than 5 points")
    assert "<--" not in lines["math"]
    assert 'who answers for copy: {"endpoint": "https://evil.org/v1", "model": "x\\n|`", "name": "copy"}' in shown
    assert "who answers for code" not in shown


class IR3DEModelOf:
    """Stands for another router."""

    def __init__(self, statistics: dict[str, DomainStatistics], *experts: dict[str, str]) -> None:
        self.statistics = statistics
        self.second_opinion, self.outcomes = None, Ledger()
        self.config = type("Config", (), {"experts": list(experts), "specs": list(experts), "domains": None})()


PROMPTS = {domain: tiny.sentences(domain, 60, seed=5) for domain in tiny.DOMAINS}


@pytest.mark.parametrize(
    ("variant", "discriminant", "most"), [("prompt", False, 0.02), ("prompt", True, 0.06), ("avg", False, 0.02)]
)
def test_hostile_contributions_are_refused_or_take_little(variant: str, discriminant: bool, most: float) -> None:
    made = tiny.router(variant=variant, discriminant=discriminant, feature_map="unit")
    made.fit({name: tiny.statistics(tiny.sentences(name, 300), made.config.features) for name in tiny.DOMAINS})
    prompts = {domain: made.tokenize(texts) for domain, texts in PROMPTS.items()}
    results = try_all(made, Maker(made.statistics).make(80), prompts)
    taken = [result for result in results if not result.refused and result.times <= 3]
    assert len({result.kind for result in results}) == 8
    assert 10 < len(taken) < 70  # some of each fate
    assert max(result.macro for result in taken) <= most
    assert not any(result.refused for result in honest(made, prompts))


@pytest.mark.parametrize("discriminant", [False, True])
def test_a_near_copy_is_refused_unless_it_is_ones_own(discriminant: bool) -> None:
    made = tiny.router(variant="prompt", discriminant=discriminant)
    near_copy = tiny.statistics(tiny.sentences("code", 30, seed=21))
    before = {key: value.clone() for key, value in made.state_dict().items()}
    with pytest.raises(
        TakesPrompts, match=r"of the prompts of 'code', where .*Most of what 'code' loses would go to 'programming'"
    ):
        made.merge({"programming": near_copy})
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())
    made.merge({"code": near_copy})  # where it belongs
    made.remove_expert("code")
    made.merge({"programming": near_copy})  # and without the other
    made.add_expert("code", statistics=tiny.statistics(tiny.sentences("code", 20)), own=True)
    assert set(made.config.domain_names) == {"code", "law", "math", "programming"}


def test_what_is_displaced_is_what_the_normal_law_says() -> None:
    """Rows of one column, of mean 1 and variance 4: the lead over the other is x, and below 0 in Phi(-1/2) of them.

    With a leverage of 0.2 leads of those left out have mean 1 and deviation 2 / 0.8.
    """
    grams = {kind: torch.tensor([[5.0, 1.0], [1.0, 1.0]], dtype=torch.float64) * 10 for kind in KINDS}
    statistics = {"a": DomainStatistics.from_grams(grams, "x")}
    solved = Solved(torch.tensor([[0.4]], dtype=torch.float64), [0.1, 0.1], [1.0, 1.0])
    alone = Scorer("prompts", ["a"], torch.tensor([[1.0]]), solved)
    both = Scorer("prompts", ["b", "a"], torch.tensor([[0.0, 1.0]]), solved)
    lost = displaced(statistics, alone, both)["a"]
    assert lost[:2] == pytest.approx((0.308538, 0.344578), abs=1e-6)
    assert lost.to == "b"
    assert displaced(statistics, both, alone)["a"][:2] == pytest.approx((-0.308538, -0.344578), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize_columns", [False, True])
def test_leads_of_rows_that_are_left_out_are_those_of_a_solve_without_them(kind: str, normalize_columns: bool) -> None:
    """Of rows that have the same leverage, where it is exact; each a prompt of one token."""
    rows = {"a": torch.tensor([[1, 0.5], [1, -0.5]]).double(), "b": torch.tensor([[-1, 0.5], [1, 0.5]]).double()}
    ones = torch.ones(2, 1, dtype=torch.float64)
    grams = {name: (X := torch.cat([part, ones], dim=1)).T @ X for name, part in rows.items()}
    statistics = {name: DomainStatistics.from_grams(dict.fromkeys(KINDS, A), "x") for name, A in grams.items()}
    problem = Problem(*sums(grams.values()), 0.3, bias=False, normalize_columns=normalize_columns)
    scorer = Scorer(kind, ["a", "b"], ridge(*problem), Solved.of(problem, [1 / 2, 1 / 2]))
    alone = scorer._replace(domains=["a"], W=scorer.W[:, :1])
    M, B = problem.equations
    norms = torch.linalg.solve(M, B).norm(dim=0) if normalize_columns else torch.ones(2)
    leads = []
    for x in rows["a"]:
        W = torch.linalg.solve(M - x.outer(x) / 2, B - torch.stack([x / 2, torch.zeros(2)], dim=1)) / norms
        leads.append(x @ (W[:, 0] - W[:, 1]))
    mean, deviation = torch.stack(leads).mean(), torch.stack(leads).std(correction=0)
    expected = torch.erfc(mean / deviation / 2**0.5) / 2
    assert displaced(statistics, alone, scorer)["a"].unseen == pytest.approx(float(expected), abs=1e-9)


def test_leads_of_rows_that_discriminant_analysis_left_out_are_those_of_a_solve_without_them() -> None:
    """Of two rows a domain, which have the same leverage, so that it is exact; the other rows keep their weight."""
    rows = {"a": torch.tensor([[1, 0.5], [1.2, -0.5]]).double(), "b": torch.tensor([[-1, 0.7], [1, 0.5]]).double()}
    ones = torch.ones(2, 1, dtype=torch.float64)
    grams = {name: (X := torch.cat([part, ones], dim=1)).T @ X for name, part in rows.items()}
    statistics = {name: DomainStatistics.from_grams(dict.fromkeys(KINDS, A), "x") for name, A in grams.items()}
    A, B = sums(grams.values())
    scorer = Scorer("prompts", ["a", "b"], discriminant(A, B, 0.3), Separated.of(Problem(A, B, 0.3)))
    alone = scorer._replace(domains=["a"], W=scorer.W[:, :1])
    leads = []
    mean_b, deviation_b = rows["b"].mean(dim=0), rows["b"] - rows["b"].mean(dim=0)
    metric = (deviation_b.T @ deviation_b / 2 + 0.3 * torch.eye(2, dtype=torch.float64)).inverse()  # a is one row then
    for x, left in (rows["a"], rows["a"].flip(0)):
        far, near = x - mean_b, x - left
        leads.append((far @ metric @ far - near @ metric @ near) / 2)
    mean, deviation = torch.stack(leads).mean(), torch.stack(leads).std(correction=0)
    expected = torch.erfc(mean / deviation / 2**0.5) / 2
    assert displaced(statistics, alone, scorer)["a"].unseen == pytest.approx(float(expected), abs=1e-9)


def test_less_of_one_domain_is_allowed_with_discriminant_analysis() -> None:
    made = tiny.router(variant="prompt", discriminant=True)
    assert made.scorer.way == "discriminant"
    assert tiny.router(variant="prompt").scorer.way == "prompts"
    assert tiny.router(variant="avg", discriminant=True).scorer.way == "tokens"
    lost = {"code": Lost(0.1, 0.25, "new"), **{str(index): Lost(0.0, 0.0, "new") for index in range(9)}}
    check_displaced(lost, "prompts")
    with pytest.raises(
        TakesPrompts, match=r"an estimated 25% of the prompts of 'code', where 18% are allowed; and .*5% are"
    ):
        check_displaced(lost, "discriminant")
    everywhere = dict.fromkeys(map(str, range(9)), Lost(0.0, 0.06, "new"))
    with pytest.raises(
        TakesPrompts, match=r"an estimated 6.0% of the prompts of all domains, where 5% are allowed; and 6%"
    ):
        check_displaced(everywhere, "discriminant")


def test_the_comparison_estimates_what_domains_lose_where_there_are_no_prompts() -> None:
    """Hostile files are marked where they take much, and honest ones are not."""
    made = tiny.router(variant="prompt", feature_map="unit")
    made.fit({name: tiny.statistics(tiny.sentences(name, 300), made.config.features) for name in tiny.DOMAINS})
    prompts = {domain: made.tokenize(texts) for domain, texts in PROMPTS.items()}
    before = Snapshot.of(made, [])
    marked = 0
    for part in Maker(made.statistics).make(24):
        (result,) = try_all(made, iter([part]), prompts)
        changed = made.copy()
        changed.merge({part.domain: part.statistics}, own=True)
        shown = {line.split()[0]: line for line in compare(before, Snapshot.of(changed, [])).splitlines()}
        for name, gone in result.gone.items():
            assert gone <= 0.05 or shown[name].endswith("<-- may lose more than 5 points"), shown[name]
            marked += gone > 0.05
    assert marked > 5
    for name in tiny.DOMAINS:
        rest = made.copy()
        rest.remove_expert(name)
        shown = compare(Snapshot.of(rest, []), before)
        assert "<--" not in shown
        assert "may lose: of prompts like a domain's own, estimated" in shown


def test_many_small_merges_show_together() -> None:
    """Each takes little of a domain; what they take of the router as it was measured is marked, before much is lost."""
    made = tiny.router(variant="prompt", feature_map="unit", calibration={"temperature": 0.1, "spread": 0.0})
    made.fit({name: tiny.statistics(tiny.sentences(name, 60), made.config.features) for name in tiny.DOMAINS})
    before = experts_of(made), made.config.to_dict()
    assert made.without_joined() is None
    keys = set()
    for step in range(10):  # code that is said to be math
        part = tiny.statistics(tiny.sentences("code", 20 + 4 * step, seed=70 + step), made.config.features)
        alone = Snapshot.of(made, [])
        made.merge({"math": part})
        keys |= part.contributions.keys()
        assert "<--" not in compare(alone, Snapshot.of(made, []))
    measured = made.without_joined()
    assert measured is not None
    assert set(made.config.joined or ()) == keys
    assert experts_of(measured).digest == before[0].digest
    together = accumulated(Snapshot.of(measured, []), Snapshot.of(made, []), 9)
    assert "together with 9 contributions" in together
    (code,) = [line for line in together.splitlines() if line.startswith("code ")]
    assert code.endswith("most of it to math  <-- may lose more than 5 points")
    made.replace_expert("math", "math", statistics=before[0].statistics["math"], own=True)
    assert made.config.to_dict() == before[1]


def test_a_list_of_what_joined_must_be_one() -> None:
    with pytest.raises(ValueError, match="`joined` must be a list of the ids of contributions"):
        tiny.router().config.__class__(vocab_size=1, hidden_size=1, experts=[{"name": "a"}], joined=[1])


@pytest.mark.parametrize("fields", [{}, {"lexical_weight": 1.0}], ids=["rows", "lexicon"])
def test_numbers_of_prompts_that_overflow_together_are_refused(fields: dict[str, float], tmp_path: Path) -> None:
    """Each of 1025 contributions has as many rows as may be, and a token in each: their sum is beyond 64 bits."""
    made = tiny.router(variant="prompt", **fields)
    honest_sums = tiny.statistics(tiny.sentences("law", 20))
    rows = {kind: honest_sums.gram(kind) / honest_sums.gram(kind)[-1, -1] for kind in KINDS}
    parts = DomainStatistics(honest_sums.size, honest_sums.fingerprint)
    for index in range(1025):
        documents = torch.zeros(len(tiny.TOKENS), dtype=torch.int64)
        documents[5] = 2**53 - index
        grams = {kind: A.clone() * 2.0**53 for kind, A in rows.items()}
        for A in grams.values():
            A[-1, -1] = 2.0**53
        parts |= DomainStatistics.from_grams(grams, honest_sums.fingerprint, documents)
    parts.save(tmp_path / "other.safetensors")
    before = {key: value.clone() for key, value in made.state_dict().items()}
    with pytest.raises(ValueError, match="more than can be counted"):
        made.merge(tmp_path / "other.safetensors")
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_the_commands_merge_says_whose_a_file_is_and_what_is_wrong_with_the_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router().save_pretrained(tmp_path / "router")
    file = tmp_path / "s2.safetensors"
    tiny.statistics(tiny.sentences("code", 30, seed=22)).save(file)
    merge, dry = ["merge", str(tmp_path / "router")], ["--dry-run", "--own"]
    assert main([*merge, str(file), *dry]) == 0
    assert "'s2' is a new domain. Where a file is of another than its name says: --name NAME" in capsys.readouterr().out
    assert main([*merge, str(file), "--name", "code", *dry]) == 0
    shown = capsys.readouterr().out
    assert "s2" not in shown
    assert "1 > 2" in next(line for line in shown.splitlines() if line.startswith("code"))
    for sources, message in (
        ([str(file), str(tmp_path / "router" / ".." / "s2.safetensors")], "is given twice"),
        ([str(tmp_path / "none.safetensors")], f"{tmp_path / 'none.safetensors'} is missing: check its path"),
        ([str(tmp_path / "router"), "--name", "code"], "leave it out for routers"),
    ):
        assert main([*merge, *sources, *dry]) == 2
        assert message in capsys.readouterr().err


def test_the_first_outcomes_name_another_expert_only_where_one_is() -> None:
    made = router()
    before = Snapshot.of(made, [])
    rows = [
        {"text": text, "domain": "code", "scores": {"code": 1.0, "math": 0.0}} for text in tiny.sentences("code", 9)
    ]
    rows += [
        {"text": text, "domain": "math", "scores": {"code": 1.0, "math": 0.0}} for text in tiny.sentences("math", 9)
    ]
    made.add_outcomes(rows)
    shown = compare(before, Snapshot.of(made, []))
    assert "best in code" not in shown
    assert "best in math: math > code  <-- another expert" in shown


def test_the_comparison_of_long_names_keeps_its_columns() -> None:
    name = "Reinigung, Wäsche und alles, was sonst noch sauber werden muss"
    made = tiny.router(variant="prompt", feature_map="unit")
    before = Snapshot.of(made, [])
    made.add_expert(name, texts=tiny.sentences("law", 5, seed=3), own=True)
    lines = compare(before, Snapshot.of(made, [])).splitlines()
    head, rows = lines[0], lines[1:5]
    end = head.index("contributions") + len("contributions")
    assert all(row[end - 1].isdigit() for row in rows)
    assert all(row[end : end + 2] == "  " for row in rows), "each number ends below its head"
    assert f"1 = {name}" in lines
