"""Asking experts and scoring what they say: every way, failures, nonsense, and going on after a stop."""

import json
import math
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ir3de import IR3DEModel
from ir3de.experts_ir3de import ExpertPool
from ir3de.outcome_rows_ir3de import read_outcomes
from ir3de.scripts import cli
from ir3de.scripts.judging.asking import answered, failures_of, judge
from ir3de.scripts.judging.choosing import some_of
from ir3de.scripts.judging.questions import Question, read_questions
from ir3de.scripts.judging.replies import Replied, reading
from ir3de.scripts.judging.scoring import Nonsense, asking, check_patterns, score_in, scorer_of
from ir3de.scripts.judging.tasks import _known
from ir3de.scripts.metrics.perplexity import negative_log_likelihoods

from . import tiny

SUM = Question("What is 40 + 2?", ("42", "forty-two"), "math")


@pytest.mark.parametrize(
    ("way", "expected", "answer", "score"),
    [
        ("exact", ("42",), " 42\n", 1),
        ("exact", ("Forty  Two",), "forty two", 1),
        ("exact", ("42",), "It is 42.", 0),
        ("contains", ("42",), "It is 42.", 1),
        ("contains", ("42",), "It is 24.", 0),
        ("regex", (r"\b4\s?2\b",), "It is 4 2.", 1),
        ("regex", ("^42$",), "It is 42.", 0),
        ("numbers", ("the sum is 1,042.0",), "1 + 1041 = 1042", 1),
        ("numbers", ("42",), "between 41 and 43", 0),
        ("numbers", ("42",), "no idea", 0),
        ("numbers", ("none",), "42", 0),
        ("numbers", ("-0.5",), "so x = -0.50", 1),
    ],
)
def test_answers_are_compared_to_what_is_expected(
    way: str, expected: tuple[str, ...], answer: str, score: float
) -> None:
    assert scorer_of(way)(Question("x", expected), answer) == score


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Well argued. Score: 0.75", 0.75),
        ("score: 7/10", 0.7),
        ("First I thought score: 1, but score: 0", 0),
        ('Reasons {"a": 1} and {"score": 0.25, "why": "x"}', 0.25),
        ('{"score": 1}', 1),
    ],
)
def test_a_judges_score_is_read(said: str, score: float) -> None:
    assert score_in(said) == pytest.approx(score)


@pytest.mark.parametrize("said", ["", "Good!", "score: 7", "score: 11/10", '{"score": "high"}', '{"score": true}'])
def test_a_judge_that_says_no_score_is_noticed(said: str) -> None:
    with pytest.raises(Nonsense):
        score_in(said)


def test_a_judge_is_told_prompt_answer_and_expectation() -> None:
    asked: list[str] = []
    score = asking(lambda text: asked.append(text) or "score: 1", "P {prompt} A {answer} E {expected}")  # type: ignore[func-returns-value]
    assert score(SUM, "{prompt} is 42") == 1
    assert asked == ["P What is 40 + 2? A {prompt} is 42 E 42 or forty-two"]
    with pytest.raises(ValueError, match="places"):
        asking(lambda text: "", "no place")
    with pytest.raises(ValueError, match="--by takes"):
        scorer_of("taste")
    with pytest.raises(ValueError, match="no regular expression"):
        check_patterns([Question("x", ("(",))])


class Experts:
    """Experts that answer slowly, of whom one fails."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.now, self.most, self.lock = 0, 0, threading.Lock()

    def ask(self, name: str, question: Question) -> Replied:
        with self.lock:
            self.asked.append((name, question.text))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005)
        with self.lock:
            self.now -= 1
        if name == "broken":
            raise RuntimeError("no route to host")
        text = "It is 42." if name == "good" else "41"
        return Replied(len(question.text.split()), len(text.split()), text)


SPECS: Any = [
    {"name": "good", "price": {"input": 1.0, "output": 10.0}},
    {"name": "bad", "cost": 0.5},
    {"name": "broken"},
]


def run(experts: Experts, output: Path, questions: list[Question], at_once: int = 3) -> Any:
    """Judges by containment."""
    return judge(questions, SPECS, experts.ask, scorer_of("contains"), output, at_once)


def test_answers_are_scored_measured_and_asked_once(tmp_path: Path) -> None:
    output, experts = tmp_path / "judged.jsonl", Experts()
    questions = [Question(f"{i} + 2?", ("42",), "math") for i in range(10)]
    first = run(experts, output, questions[:4])
    assert (first.answers, first.known, first.failed["broken"]) == (8, 0, 4)
    second = run(experts, output, questions)
    assert (second.answers, second.known, second.failed["broken"]) == (12, 8, 10)
    assert experts.most <= 3
    assert len([1 for name, _ in experts.asked if name != "broken"]) == 20  # no answer was asked for twice
    rows = [outcome for outcomes in read_outcomes(output) for outcome in outcomes]
    assert {(row.expert, row.score) for row in rows} == {("good", 1), ("bad", 0)}
    assert {row.domain for row in rows} == {"math"}
    assert [row.cost for row in rows if row.expert == "good"] == [pytest.approx((3 * 1.0 + 3 * 10.0) / 1e6)] * 10
    assert {row.cost for row in rows if row.expert == "bad"} == {0.5}
    assert all(row.seconds is not None and row.seconds >= 0.005 for row in rows)
    assert {row.tokens for row in rows} == {6, 4}
    failed = [json.loads(line) for line in failures_of(output).read_text(encoding="utf-8").splitlines()]
    assert {row["error"] for row in failed} == {"RuntimeError: no route to host"}
    assert "broken failed 10 times" in second.describe()


def test_nonsense_of_a_judge_is_kept_apart_and_asked_again(tmp_path: Path) -> None:
    output, said = tmp_path / "judged.jsonl", iter(["What a question!", "score: 1"])
    score = asking(lambda text: next(said), "{prompt} {answer}")
    results = [judge([SUM], SPECS[:1], Experts().ask, score, output, 1) for _ in range(2)]
    assert [result.nonsense for result in results] == [1, 0]
    assert [result.answers for result in results] == [0, 1]
    assert "the judge said none" in results[0].describe()
    assert not failures_of(output).exists()


def test_a_row_that_was_cut_is_asked_again(tmp_path: Path) -> None:
    output, experts = tmp_path / "judged.jsonl", Experts()
    run(experts, output, [SUM])
    whole = output.read_text(encoding="utf-8")
    output.write_text(whole + whole.splitlines()[0][:30], encoding="utf-8")
    assert answered(output) == {("good", SUM.text), ("bad", SUM.text)}
    assert output.read_text(encoding="utf-8") == whole
    output.write_text("not JSON\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"judged\.jsonl, line 1"):
        run(experts, output, [SUM])


def test_a_run_goes_on_over_text_with_unusual_ends_of_lines(tmp_path: Path) -> None:
    output, question = tmp_path / "judged.jsonl", Question("one\u2028two\u2029three\x85four", ("42",), "math")
    row = {"text": question.text, "expert": "good", "score": 1.0, "task": "sums", "item": 7}
    output.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert answered(output) == {("good", question.text)}
    assert _known(output) == {("good", "sums", 7)}


def test_questions_are_read_and_malformed_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"text": "a", "answer": 7, "domain": "law"}\n{"text": "b", "expected": ["x", "y"]}\n' * 2)
    assert read_questions(path, True) == [Question("a", ("7",), "law"), Question("b", ("x", "y"))]
    for row in ('{"text": ""}', '{"text": "a"}', '{"text": "a", "expected": {"b": 1}}', "[1]"):
        path.write_text('{"text": "ok", "expected": "x"}\n' + row + "\n")
        with pytest.raises(ValueError, match="line 2"):
            read_questions(path, True)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_questions(tmp_path / "none.jsonl", True)


def test_a_routers_own_experts_are_judged_and_the_outcomes_added(
    expert_specs: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.router(expert_specs).save_pretrained(tmp_path / "router")
    data, output = tmp_path / "questions.jsonl", tmp_path / "judged.jsonl"
    data.write_text('{"text": "prove the prime", "expected": ["", "x"], "domain": "math"}\n', encoding="utf-8")
    options = ["judge", str(tmp_path / "router"), "--data", str(data), "--output", str(output), "--max-new-tokens", "3"]
    assert cli.main([*options, "--by", "contains", "--experts", "law,math"]) == 0
    assert "2 answers were scored" in capsys.readouterr().out
    assert cli.main([*options, "--by", "contains"]) == 0
    assert "1 answer was scored; 2 were known already" in capsys.readouterr().out
    assert cli.main(["outcomes", str(tmp_path / "router"), str(output)]) == 0
    assert set(IR3DEModel.from_pretrained(tmp_path / "router").config.judged or ()) == {"code", "law", "math"}
    assert cli.main([*options, "--by", "judge"]) == 2
    assert "--judge-endpoint" in capsys.readouterr().err


def test_the_score_of_reading_is_one_over_the_perplexity(tmp_path: Path) -> None:
    expert = tiny.expert(tmp_path / "math", 0, chat=False)
    pool = ExpertPool(tiny.router({"math": {"model": expert}}).config)
    local = pool.load("math")
    tokenizer: Any = local.pipe.tokenizer
    text, answer = "prove the prime", "is a proof"
    whole = tokenizer(f"{text} {answer}")["input_ids"]
    given = tokenizer(text)["input_ids"]
    nats = [negative_log_likelihoods(local.model, [ids])[0] for ids in (whole, given)]
    ask = reading(pool, lambda text: len(text.split()))
    replied = ask("math", Question(text, (answer, "another")))
    assert replied.score == pytest.approx(math.exp(-(nats[0] - nats[1]) / 3), rel=1e-5)
    assert (replied.read, replied.written, replied.text) == (len(whole), 0, None)
    alone = ask("math", Question(text))
    assert alone.score == pytest.approx(math.exp(-nats[1] / 2), rel=1e-5)
    with pytest.raises(ValueError, match="no token"):
        ask("math", Question("prove"))


def test_experts_are_judged_by_perplexity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = {
        name: {"model": tiny.expert(tmp_path / name, seed, chat=True)} for seed, name in enumerate(["law", "math"])
    }
    experts["code"] = {"endpoint": "http://127.0.0.1:9/v1", "model": "m"}
    tiny.router(experts).save_pretrained(tmp_path / "router")
    data, output = tmp_path / "questions.jsonl", tmp_path / "judged.jsonl"
    data.write_text('{"text": "prove the prime", "domain": "math"}\n', encoding="utf-8")
    options = ["judge", str(tmp_path / "router"), "--output", str(output), "--by", "perplexity"]
    assert cli.main([*options, "--data", str(data)]) == 2
    assert "its likelihoods cannot be read" in capsys.readouterr().err
    assert cli.main([*options, "--data", str(data), "--experts", "law,math"]) == 0
    rows = [outcome for outcomes in read_outcomes(output) for outcome in outcomes]
    assert {(row.expert, row.tokens, row.domain) for row in rows} == {("law", 3, "math"), ("math", 3, "math")}
    assert all(0 < row.score < 1 for row in rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--by", "exact"], "needs --data"),
        (["--by", "gsm8k", "--data", "x"], "brings its own"),
        (["--by", "perplexity", "--data", "DATA", "--experts", "maths"], "Did you mean 'math'?"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.router().save_pretrained(tmp_path / "router")
    data = tmp_path / "questions.jsonl"
    data.write_text('{"text": "prove the prime"}\n', encoding="utf-8")
    given = [str(data) if each == "DATA" else each for each in more]
    assert cli.main(["judge", str(tmp_path / "router"), "--output", str(tmp_path / "o"), *given]) == 2
    assert message in capsys.readouterr().err


def test_a_budget_is_that_many_answers_of_any_expert_and_a_later_run_goes_on(tmp_path: Path) -> None:
    output, experts = tmp_path / "judged.jsonl", Experts()
    questions = [Question(f"{i} + 2?", ("42",), "math") for i in range(20)]
    choose = partial(some_of, number=15)
    for known in (0, 15):
        result = judge(questions, SPECS[:2], experts.ask, scorer_of("contains"), output, 3, choose)
        assert (result.answers, result.known) == (15, known)
        assert len(set(experts.asked)) == len(experts.asked) == known + 15
    assert {name for name, _ in experts.asked} == {"good", "bad"}
    assert judge(questions, SPECS[:2], experts.ask, scorer_of("contains"), output, 3, choose).answers == 10


def test_a_budget_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["router", "--data", "x", "--by", "exact", "--output", str(tmp_path / "o"), "--budget", "0"]
    assert cli.main(["judge", *options]) == 2
    assert "--budget is a number of answers" in capsys.readouterr().err
