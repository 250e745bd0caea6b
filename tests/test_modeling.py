"""The router as a model: training, the table's freshness, and what a folder must hold."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from ir3de import IR3DEConfig, IR3DEModel
from ir3de.configuration_ir3de import FEATURE_MAPS, VARIANTS
from ir3de.route_selector_ir3de import MEANS
from ir3de.statistics_ir3de import KINDS, DomainStatistics
from ir3de.token_router_ir3de import discriminant, log_odds, ridge, sums

from . import tiny

PROMPTS = {"code": "debug the python function", "law": "the court and a judge", "math": "square root of a prime"}


def batch(texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tiny.tokenizer()(texts, padding=True, return_tensors="pt", return_token_type_ids=False))


def labelled(number: int = 8) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    texts = [text for domain in tiny.DOMAINS for text in tiny.sentences(domain, number, seed=1)]
    return batch(texts), torch.arange(3).repeat_interleave(number)


def untrained(**config: Any) -> IR3DEModel:
    """A fitted router whose W was thrown away."""
    model = tiny.router(**config)
    with torch.no_grad():
        model.token_router.weight.zero_()
        model.token_router.bias.zero_()
        model.prompt_router.weight.zero_()
    return model


def saved(folder: Path) -> Path:
    tiny.router().save_pretrained(folder)
    return folder


def test_a_change_in_any_part_of_w_is_noticed() -> None:
    model = tiny.router()
    for index in (0, 7, -1):
        table = model.token_table()
        assert model.token_table() is table
        model.token_router.weight.data.view(-1)[index] += 1
        assert model.token_table() is not table


# Fitting.


@pytest.mark.parametrize("balance", [True, False])
def test_both_solves_are_those_of_the_domains_matrices(balance: bool) -> None:
    model = tiny.router(balance=balance, token_noise=0.5, prompt_regularization=0.01)
    tokens, prompts = ([model.statistics[name].gram(kind) for name in tiny.DOMAINS] for kind in KINDS)
    noise = 0.5 * sum(A_d / A_d[-1, -1] for A_d in tokens)
    W = ridge(*sums(tokens, balance), model.config.regularization).float()
    torch.testing.assert_close(torch.cat([model.token_router.weight.T, model.token_router.bias[None]]), W)
    A, B = sums(prompts)
    torch.testing.assert_close(model.prompt_router.weight.T, ridge(A + noise, B, 0.01, bias=False).float())


# Routing.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"balance": False},
        {"bias": False},
        {"normalize_columns": True},
        {"feature_map": "unit"},
        {"lexical_weight": 0.1},
        {"discriminant": True},
    ],
)
def test_a_fitted_router_knows_its_domains(variant: str, options: dict[str, Any]) -> None:
    logits = tiny.router(variant=variant, num_votes=2, **options)(**batch(list(PROMPTS.values()))).logits
    assert logits.argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prompt_without_tokens_is_refused(router: IR3DEModel, variant: str) -> None:
    with pytest.raises(ValueError, match="Prompt 1 of the batch has no tokens"):
        router(torch.tensor([[5, 6], [0, 0]]), torch.tensor([[1, 1], [0, 0]]), variant=variant)
    with pytest.raises(ValueError, match="Prompt 0 of the batch has no tokens"):
        router(torch.empty(1, 0, dtype=torch.long), variant=variant)


@pytest.mark.parametrize("bad", [-1, len(tiny.TOKENS)])
def test_a_token_id_without_an_embedding_is_refused(router: IR3DEModel, bad: int) -> None:
    with pytest.raises(ValueError, match=f"token id {bad}"):
        router(torch.tensor([[5, bad]]))


@pytest.mark.parametrize("choice", [{"variant": "some"}, {"num_votes": 0}])
def test_a_choice_of_a_call_out_of_range_is_refused(router: IR3DEModel, choice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(choice))}`"):
        router(torch.tensor([[5]]), **choice)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_is_the_literal_softmax_and_entropy(router: IR3DEModel, variant: str) -> None:
    table = router.token_table(variant)
    layer = router.prompt_router if variant == "prompt" else router.token_router
    E, W = router.embed_tokens.weight.tolist(), layer.weight.tolist()
    b = [0.0] * 3 if layer.bias is None else layer.bias.tolist()
    assert table.rows.shape == (len(tiny.TOKENS), 3)
    for v, e in enumerate(E):
        z = [sum(x * w for x, w in zip(e, W[d], strict=True)) + b[d] for d in range(3)]
        s = [math.exp(value) / sum(map(math.exp, z)) for value in z]
        assert table.rows[v].tolist() == pytest.approx(z if variant in MEANS else s, abs=1e-5)
        assert int(table.votes[v]) == max(range(3), key=z.__getitem__)
        assert float(table.entropies[v]) == pytest.approx(-sum(p * math.log(p) for p in s), abs=1e-5)


def test_discriminant_analysis_gives_each_domain_a_constant(tmp_path: Path) -> None:
    options = {"variant": "prompt", "token_noise": 0.5, "prompt_regularization": 0.01}
    model = tiny.router(**options, discriminant=True)
    noise, prompts = (sums([model.statistics[n].gram(kind) for n in tiny.DOMAINS]) for kind in KINDS)
    W = discriminant(prompts[0] + 0.5 * noise[0], prompts[1], 0.01).float()
    torch.testing.assert_close(torch.cat([model.prompt_router.weight.T, model.prompt_router.bias[None]]), W)
    plain, inputs = tiny.router(**options), batch(list(PROMPTS.values()))
    with torch.no_grad():
        plain.prompt_router.weight.copy_(model.prompt_router.weight)
    output, expected = model(**inputs, output_tokens=True), plain(**inputs).logits + model.prompt_router.bias
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.contributions.sum(dim=1), output.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(**inputs, labels=torch.arange(3)).logits, output.logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(IR3DEModel.from_pretrained(tmp_path)(**inputs).logits, output.logits)
    with pytest.raises(ValueError, match=r"prompt_router\.bias.*Where you set `discriminant`"):
        IR3DEModel.from_pretrained(tmp_path, discriminant=False)
    model.config.discriminant = False
    model.fit()
    assert torch.equal(model(**inputs).logits, tiny.router(**options)(**inputs).logits)


def test_naive_bayes_adds_to_what_tokens_say_of_a_prompt(tmp_path: Path) -> None:
    plain, model = tiny.router(), tiny.router(variant="prompt", lexical_weight=0.2)
    odds = log_odds([model.statistics[name].documents for name in tiny.DOMAINS])
    expected = plain.token_table("prompt").rows + 0.2 * odds.float()
    torch.testing.assert_close(model.token_table().rows, expected)
    assert torch.equal(model.token_table("top-k").rows, plain.token_table("top-k").rows)
    model.save_pretrained(tmp_path)
    assert torch.equal(IR3DEModel.from_pretrained(tmp_path).token_table().rows, model.token_table().rows)
    model.config.lexical_weight = 0.0
    model.fit()
    assert torch.equal(model.token_table().rows, plain.token_table("prompt").rows)


def test_naive_bayes_rests_while_a_domain_keeps_its_documents_back() -> None:
    model, plain = tiny.router(lexical_weight=0.2), tiny.router()
    law = model.statistics["law"]
    silent = DomainStatistics.from_grams({kind: law.gram(kind) for kind in KINDS}, law.fingerprint)
    with pytest.warns(UserWarning, match=r"statistics of \['law'\] do not tell how many prompts"):
        model.replace_expert("law", "law", statistics=silent)
    assert torch.equal(model.token_table("prompt").rows, plain.token_table("prompt").rows)


# Training.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lexical_weight", [0, 0.1])
def test_labels_give_a_loss_that_is_differentiable_in_w_alone(variant: str, lexical_weight: float) -> None:
    model = tiny.router(variant=variant, lexical_weight=lexical_weight)
    inputs, labels = labelled()
    output = model(**inputs, labels=labels)
    output.loss.backward()
    assert model.embed_tokens.weight.grad is None
    layer = model.prompt_router if variant == "prompt" else model.token_router
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in layer.parameters())
    torch.testing.assert_close(output.logits.detach(), model(**inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["top-k", "all", "avg"])
def test_the_loss_is_the_cross_entropy_of_tokens_or_of_mean_embeddings(variant: str) -> None:
    model = tiny.router(variant=variant)
    (inputs, labels), W, b = labelled(2), model.token_router.weight, model.token_router.bias
    rows, targets = [], []
    for ids, mask, label in zip(inputs["input_ids"], inputs["attention_mask"], labels, strict=True):
        embedded = model.embed_tokens(ids[mask.bool()])
        embedded = embedded.mean(dim=0, keepdim=True) if variant == "avg" else embedded
        rows.append(embedded @ W.T + b)
        targets += [label] * len(embedded)
    expected = F.cross_entropy(torch.cat(rows), torch.stack(targets))
    torch.testing.assert_close(model(**inputs, labels=labels).loss.float(), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_trainer_fits_it(variant: str, tmp_path: Path) -> None:
    model, (inputs, labels) = untrained(variant=variant), labelled()
    rows = [
        {"input_ids": ids[mask.bool()].tolist(), "labels": int(label)}
        for ids, mask, label in zip(*inputs.values(), labels, strict=True)
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=25,
        learning_rate=0.2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    collator = DataCollatorWithPadding(tiny.tokenizer())
    embeddings, before = model.embed_tokens.weight.clone(), model(**inputs, labels=labels).loss.item()
    model(**inputs)  # makes a token table, which training must not leave stale
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_list(rows), data_collator=collator)
    trainer.train()
    assert model(**inputs, labels=labels).loss.item() < 0.7 * before
    assert torch.equal(model.embed_tokens.weight, embeddings)
    assert float((model(**inputs).logits.argmax(dim=1) == labels).float().mean()) > 0.9
    trainer.save_model(str(tmp_path / "saved"))
    loaded = IR3DEModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_the_table_follows_w() -> None:
    model, ids = tiny.router(), torch.tensor([[5, 6, 7]])
    before, table = model(ids).logits, model.token_table()
    assert model.token_table() is table, "made once, as long as nothing changes"
    optimizer = torch.optim.SGD(model.token_router.parameters(), lr=100.0)
    model(ids, labels=torch.tensor([2])).loss.backward()
    optimizer.step()
    trained = model(ids).logits
    assert not torch.allclose(trained, before)
    model.fit()
    assert torch.equal(model(ids).logits, before), "the closed form replaces what training found"
    model.load_state_dict({**model.state_dict(), "token_router.bias": torch.tensor([0.0, 0.0, 99.0])})
    assert int(model(ids).logits.argmax()) == 2
    model.token_router.bias.data.copy_(torch.tensor([99.0, 0.0, 0.0]))
    assert int(model(ids).logits.argmax()) == 0


# Fitting.


def test_fit_refuses_other_domains_and_leaves_the_router_as_it_was(router: IR3DEModel) -> None:
    W = router.token_router.weight.clone()
    domains = tiny.domain_statistics()
    wrong = {**domains, "art": domains["law"]}
    del wrong["law"]
    with pytest.raises(ValueError, match=r"no statistics for\s+\['law'\], no expert for \['art'\]"):
        router.fit(wrong)
    domains["law"].fingerprint = "f" * 16
    with pytest.raises(ValueError, match="statistics of 'law' are of feature space ffffffffffffffff"):
        router.fit(domains)
    assert torch.equal(router.token_router.weight, W)
    assert "art" not in router.statistics


def test_a_tokenizer_larger_than_the_embeddings_is_refused() -> None:
    config = IR3DEConfig(experts=[{"name": name} for name in tiny.DOMAINS])
    with pytest.raises(ValueError, match="do not belong together"):
        IR3DEModel.from_statistics(config, tiny.embeddings()[:-1], tiny.domain_statistics(), tiny.tokenizer())


@pytest.mark.parametrize("missing", ["experts", "vocab_size", "hidden_size"])
def test_a_config_without_experts_or_embeddings_makes_no_router(missing: str) -> None:
    full = {"experts": [{"name": "law"}], "vocab_size": 4, "hidden_size": 2}
    del full[missing]
    with pytest.raises(ValueError, match="needs experts and embeddings"):
        IR3DEModel(IR3DEConfig(**full))


def test_a_router_that_was_neither_fitted_nor_loaded_cannot_be_saved(tmp_path: Path) -> None:
    model = IR3DEModel(IR3DEConfig(vocab_size=4, hidden_size=2, experts=[{"name": "law"}]))
    with pytest.raises(ValueError, match="neither fitted nor loaded"):
        model.save_pretrained(tmp_path / "router")
    assert not (tmp_path / "router").exists()


# Files.


def same_router(left: IR3DEModel, right: IR3DEModel) -> bool:
    inputs = batch(list(PROMPTS.values()))
    tensors = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in tensors) and all(
        torch.equal(left(**inputs, variant=name).logits, right(**inputs, variant=name).logits) for name in VARIANTS
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"lexical_weight": 0.1}, *({"feature_map": name} for name in FEATURE_MAPS[1:])]
)
def test_a_round_trip_is_identical_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.router(num_features=24, **options)
    model.save_pretrained(tmp_path / "a")
    loaded = IR3DEModel.from_pretrained(tmp_path / "a")
    assert same_router(loaded, model)
    loaded.fit()
    assert same_router(loaded, model), "the statistics give the same W again"
    loaded.save_pretrained(tmp_path / "b")
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first.keys() == second.keys()
    # transformers adds to a tokenizer that was loaded where it came from.
    assert {name for name in first if first[name] != second[name]} <= {"tokenizer_config.json"}


def test_a_router_can_be_saved_over_the_folder_it_was_loaded_from(tmp_path: Path) -> None:
    loaded = IR3DEModel.from_pretrained(saved(tmp_path))
    assert loaded.statistics.keys() == set(tiny.DOMAINS)
    loaded.save_pretrained(tmp_path)
    again = IR3DEModel.from_pretrained(tmp_path)
    again.fit()
    assert same_router(again, tiny.router())


def test_saving_removes_the_statistics_of_an_expert_that_left(tmp_path: Path) -> None:
    saved(tmp_path)
    shutil.copy(tmp_path / "statistics/law.safetensors", tmp_path / "statistics/art.safetensors")
    tiny.router().save_pretrained(tmp_path)
    assert {p.stem for p in (tmp_path / "statistics").iterdir()} == set(tiny.DOMAINS)


def test_a_file_is_no_folder_to_save_in(router: IR3DEModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        router.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **{key.replace("__", "."): value for key, value in changes.items()}}
    save_file({key: value for key, value in tensors.items() if value is not None}, path, metadata={"format": "pt"})


DAMAGES = {
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights truncated": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-9]
    ),
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "W missing": lambda folder: edit_weights(folder, token_router__weight=None),
    "embeddings missing": lambda folder: edit_weights(folder, embed_tokens__weight=None),
    "W of NaN": lambda folder: edit_weights(folder, token_router__bias=torch.full((3,), torch.nan)),
    "W of the prompts NaN": lambda folder: edit_weights(
        folder, prompt_router__weight=torch.full((3, tiny.HIDDEN), torch.nan)
    ),
    "embeddings of NaN": lambda folder: edit_weights(
        folder, embed_tokens__weight=torch.full((len(tiny.TOKENS), tiny.HIDDEN), torch.nan)
    ),
    "W of another shape": lambda folder: edit_weights(folder, token_router__weight=torch.zeros(2, tiny.HIDDEN)),
    "W of a router without bias": lambda folder: edit_config(folder, bias=False),
    "a lexicon that the config does not speak of": lambda folder: edit_weights(
        folder, lexicon__weight=torch.zeros(len(tiny.TOKENS), 3)
    ),
    "a lexicon that is absent": lambda folder: edit_config(folder, lexical_weight=0.1),
    "another model's weights beside": lambda folder: edit_weights(folder, classifier__weight=torch.zeros(3, 3)),
    "statistics missing": lambda folder: (folder / "statistics/law.safetensors").unlink(),
    "statistics truncated": lambda folder: (folder / "statistics/law.safetensors").write_bytes(
        (folder / "statistics/law.safetensors").read_bytes()[:-9]
    ),
    "config broken": lambda folder: (folder / "config.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused(damage, tmp_path: Path) -> None:
    damage(saved(tmp_path))
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        IR3DEModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("experts", [["code", "law"], ["art", "code", "law", "math"], ["art", "code", "law"]])
def test_a_config_that_disagrees_with_the_other_files_is_refused(experts: list[str], tmp_path: Path) -> None:
    path = saved(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "experts": [{"name": name} for name in experts]}))
    with pytest.raises((ValueError, OSError), match=r"experts|art\.safetensors is missing"):
        IR3DEModel.from_pretrained(tmp_path)


def test_weights_of_other_shapes_are_refused_also_where_transformers_would_draw_them(tmp_path: Path) -> None:
    edit_weights(saved(tmp_path), token_router__weight=torch.zeros(2, tiny.HIDDEN))
    with pytest.raises(ValueError, match="other shapes than its config"):
        IR3DEModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_loading_in_bfloat16_keeps_w_in_float32(tmp_path: Path) -> None:
    loaded = IR3DEModel.from_pretrained(saved(tmp_path), dtype=torch.bfloat16)
    assert loaded.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.token_router.weight, tiny.router().token_router.weight)
    assert loaded.token_router.weight.dtype == torch.float32
    assert loaded(**batch(list(PROMPTS.values()))).logits.argmax(dim=1).tolist() == [0, 1, 2]
