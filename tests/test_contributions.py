"""What a contribution may at most do: one that would drown the others is refused, and what remains is shown."""

from pathlib import Path

import pytest
import torch

from ir3de import DomainStatistics, IR3DEModel
from ir3de.edits_ir3de import prompt_length
from ir3de.outcomes_ir3de import Ledger
from ir3de.scripts.data.rows import Row
from ir3de.scripts.publishing.review import Snapshot, compare
from ir3de.statistics_ir3de import KINDS

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
    made.merge(IR3DEModelOf({"copy": near_copy}, {"name": "copy", "endpoint": "https://evil.org/v1", "model": "x\n|`"}))
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
