"""Experts on this machine: kinds, sharing, memory, failures, trust and streaming."""

import gc
import json
import logging
import math
import shutil
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as models_of_tokens
from torch.testing._internal.two_tensor import TwoTensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
    set_seed,
)

from ir3de import IR3DERoutingPipeline
from ir3de.experts_ir3de import ExpertError, ExpertPool
from ir3de.gateway.serving import served
from ir3de.local_experts_ir3de import LocalModel, _parts
from ir3de.options_ir3de import Options, check_options
from ir3de.specs_ir3de import in_bytes

from . import tiny

CODE, LAW, MATH = "debug the python function", "the court and a judge", "find the square root of this prime"
PROMPTS = {"code": CODE, "law": LAW, "math": MATH}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models, one for each domain."""
    return {
        name: tiny.expert(tmp_path_factory.mktemp(name), seed=seed, chat=seed == 0)
        for seed, name in enumerate(tiny.DOMAINS)
    }


@pytest.fixture(scope="module")
def adapters(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An adapter for each domain, all on the first model, with weights that change its answers."""
    return {
        name: adapter(models["code"], tmp_path_factory.mktemp(f"{name}-adapter"), seed)
        for seed, name in enumerate(tiny.DOMAINS)
    }


def adapter(base: str, folder: Path, seed: int) -> str:
    """Saves an adapter of a model, with random weights; returns its folder."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A chat model as wide as the blocks that bitsandbytes quantizes; on some processors it wants whole ones."""
    return tiny.expert(tmp_path_factory.mktemp("wide"), seed=7, chat=True, width=64)


def pipe(specs: dict[str, dict[str, Any]], **kwargs: Any) -> IR3DERoutingPipeline:
    """A pipeline of the tiny world whose experts have these specs."""
    return IR3DERoutingPipeline(tiny.router(specs), device="cpu", **kwargs)


def of_models(models: dict[str, str], **kwargs: Any) -> IR3DERoutingPipeline:
    """A pipeline with a model of its own for each expert."""
    return pipe({name: {"model": model} for name, model in models.items()}, **kwargs)


def answer(model: str, prompt: str, **options: Any) -> str:
    """What a model's own pipeline answers."""
    direct = pipeline("text-generation", model=model, device="cpu")
    inputs: Any = prompt if direct.tokenizer.chat_template is None else [{"role": "user", "content": prompt}]
    return str(direct(inputs, return_full_text=False, **{**GREEDY, **options})[0]["generated_text"])


# Adapters.


def test_an_adapters_answer_is_that_of_peft_and_the_base_beside_it_keeps_its_own(
    models: dict[str, str], adapters: dict[str, str]
) -> None:
    specs = {name: {"model": models["code"], "adapter": adapters[name]} for name in ("law", "math")}
    made = pipe({**specs, "code": {"model": models["code"]}})
    expected = {"code": answer(models["code"], CODE)}
    for name in specs:
        direct = pipeline("text-generation", model=models["code"], device="cpu")
        direct.model = PeftModel.from_pretrained(direct.model, adapters[name])
        chat = [{"role": "user", "content": PROMPTS[name]}]
        expected[name] = direct(chat, return_full_text=False, **GREEDY)[0]["generated_text"]
    assert answer(models["code"], LAW) != expected["law"], "the adapter changes the answer"
    for name in ("law", "code", "math", "law"):
        assert made(PROMPTS[name], **GREEDY)["generated_text"] == expected[name]
    [row] = made.loaded_experts
    assert row["experts"] == ["code", "law", "math"]
    assert row["model"] == models["code"]
    base = sum(p.numel() * 4 for p in AutoModelForCausalLM.from_pretrained(models["code"]).parameters())
    assert base < row["bytes"] < 1.5 * base


def test_another_adapter_under_the_same_name_is_another_adapter(
    models: dict[str, str], adapters: dict[str, str]
) -> None:
    spec = {"model": models["code"], "adapter": adapters["law"]}
    made = pipe({"law": spec})
    before = made(LAW, **GREEDY)["generated_text"]
    made.model.replace_expert("law", {"name": "law", **spec, "adapter": adapters["math"]})
    expected = pipe({"law": {**spec, "adapter": adapters["math"]}})(LAW, **GREEDY)["generated_text"]
    assert made(LAW, **GREEDY)["generated_text"] == expected != before


def test_an_adapter_alone_names_its_base(models: dict[str, str], adapters: dict[str, str]) -> None:
    made = pipe({"law": {"adapter": adapters["law"]}, "code": {"model": models["code"]}})
    made([LAW, CODE], **GREEDY)
    assert len(made.loaded_experts) == 1


def test_an_adapter_of_another_base_is_refused_before_anything_is_loaded(
    adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", pytest.fail)
    made = pipe({"law": {"model": "org/other", "adapter": adapters["law"]}})
    with pytest.raises(ExpertError, match=r"was trained on .* not on 'org/other'"):
        made(LAW, on_error="raise")


@pytest.mark.parametrize(("size", "target"), [(32, "q_proj"), (16, "query")])
def test_an_adapter_that_does_not_fit_is_refused_before_the_base_is_loaded(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, target: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(models["code"])
    other = type(base)(type(base.config)(**{**base.config.to_dict(), "hidden_size": size}))
    get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": [target]}))
    made = pipe({"law": {"model": models["code"], "adapter": str(tmp_path)}, "code": {"model": models["code"]}})
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", pytest.fail)
        with pytest.raises(ExpertError, match=r"does not fit .*code.*: "):
            made(LAW, on_error="raise")
    assert made(CODE, **GREEDY)["generated_text"] == answer(models["code"], CODE)


def test_an_adapter_without_some_of_its_weights_is_refused(
    models: dict[str, str], adapters: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(adapters["law"], tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    del weights[missing := sorted(weights)[0]]
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    made = pipe({"law": {"model": models["code"], "adapter": str(tmp_path / "adapter")}})
    with pytest.raises(ExpertError, match=rf"{missing.removeprefix('base_model.model.')} is missing from its weights"):
        made(LAW, on_error="raise")


def test_several_adapters_on_one_base_are_no_reason_to_warn(
    models: dict[str, str], adapters: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    made = pipe({name: {"model": models["code"], "adapter": adapters[name]} for name in adapters})
    logger = logging.getLogger("transformers.integrations.peft")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made(list(PROMPTS.values()), on_error="raise", **GREEDY)
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.name == logger.name]


def test_an_adapter_without_safetensors_is_refused(
    models: dict[str, str], adapters: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_bytes((Path(adapters["law"]) / "adapter_config.json").read_bytes())
    torch.save({}, tmp_path / "adapter_model.bin")
    made = pipe({"law": {"model": models["code"], "adapter": str(tmp_path)}})
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors"):
        made(LAW, on_error="raise")


# Memory.


def test_the_least_recently_used_model_leaves_and_is_really_gone(models: dict[str, str]) -> None:
    made = of_models(models, max_loaded_experts=2)
    alive = {name: weakref.ref(made.experts.load(name).model) for name in ("code", "law")}
    made(CODE, **GREEDY)
    made(MATH, **GREEDY)
    gc.collect()
    assert [row["experts"] for row in made.loaded_experts] == [["code"], ["math"]]
    assert alive["law"]() is None
    assert alive["code"]() is not None
    made.experts.unload()
    gc.collect()
    assert made.loaded_experts == []
    assert alive["code"]() is None


def test_a_budget_of_memory_bounds_what_is_loaded(models: dict[str, str]) -> None:
    size = of_models(models).experts.load("law").size
    made = of_models(models, max_memory=int(2.5 * size))
    for prompt in PROMPTS.values():
        made(prompt, **GREEDY)
        assert sum(row["bytes"] for row in made.loaded_experts) <= 2.5 * size
    assert len(made.loaded_experts) == 2
    small = of_models(models, max_memory=size - 1)
    with pytest.raises(ExpertError, match=f"takes {size:,} bytes, and max_memory is {size - 1:,}"):
        small(LAW, on_error="raise")


def test_the_memory_of_a_device_is_returned_once_the_model_is_gone(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = of_models(models)
    model = weakref.ref(made.experts.load("law").model)
    alive = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(model()))
    made.experts.unload()
    assert alive == [None]


# Weights that are not all in memory.


def test_what_memory_does_not_hold_stays_on_disk_and_the_answer_is_the_same(models: dict[str, str]) -> None:
    whole = of_models(models).experts.load("law").size
    limited = {"device_map": "auto", "max_memory": {"cpu": int(0.6 * whole)}}
    made = pipe({"law": {"model": models["law"], **limited}}, max_memory=int(0.7 * whole))
    assert made(LAW, on_error="raise", **GREEDY)["generated_text"] == answer(models["law"], LAW)
    [row] = made.loaded_experts
    assert row["device"] == "cpu, disk"
    model = made.experts.load("law")
    assert row["bytes"] == sum(tensor.nbytes for tensor in model.model.parameters() if not tensor.is_meta) + sum(
        tensor.nbytes for tensor in model.model.buffers() if not tensor.is_meta
    )
    assert 0 < row["bytes"] < 0.6 * whole
    model.model.hf_device_map = dict.fromkeys(model.model.hf_device_map, "cpu")  # as where a GPU takes its turns
    assert model._measure() == whole
    nothing = pipe({"law": {"model": models["law"], "device_map": "auto", "max_memory": {"cpu": 9}}})
    with pytest.raises(ExpertError, match="`max_memory` has no room for any layer of"):
        nothing(LAW, on_error="raise")


def test_the_folder_of_offloaded_weights_goes_with_the_model(
    models: dict[str, str], adapters: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in Path(models["code"]).iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = AutoModelForCausalLM.from_pretrained(models["code"]).state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin")  # is written anew, while safetensors are read where they are
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    limit = sum(weight.nbytes for weight in weights.values()) // 2
    spec = {"model": str(tmp_path), "use_safetensors": False, "device_map": "auto", "max_memory": {"cpu": limit}}
    specs = {"code": spec, "law": {**spec, "adapter": adapters["law"]}}
    made = pipe(specs, expert_kwargs={"use_safetensors": False})
    assert made(CODE, on_error="raise", **GREEDY)["generated_text"] == answer(models["code"], CODE)
    assert [path for path in scratch.rglob("*") if path.is_file()]
    with pytest.raises(ExpertError, match=r"needs all of its base in memory, and a part of it is .* \(cpu, disk\)"):
        made(LAW, on_error="raise")
    made.experts.unload()
    assert not list(scratch.iterdir())


# Quantization.


def test_a_quantized_model_answers_and_is_counted_as_small_as_it_is(wide: str) -> None:
    whole = pipe({"law": {"model": wide}}).experts.load("law").size
    made = pipe({"law": {"model": wide, "quantization": NF4}}, max_memory=whole - 1)
    kwargs = {"quantization_config": BitsAndBytesConfig(**NF4)}
    direct = pipeline("text-generation", model=wide, model_kwargs=kwargs)
    chat = [{"role": "user", "content": LAW}]
    expected = direct(chat, return_full_text=False, **GREEDY)[0]["generated_text"]
    assert made(LAW, on_error="raise", **GREEDY)["generated_text"] == expected
    packed = [m.weight for m in direct.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 14
    scales = sum(weight.quant_state.absmax.nbytes for weight in packed)
    [row] = made.loaded_experts
    assert direct.model.get_memory_footprint() + scales <= row["bytes"] < 0.6 * whole
    refused = pipe({"law": {"model": wide, "quantization": NF4}}, max_memory=whole // 5)
    with pytest.raises(ExpertError, match=r"it takes [\d,]+ bytes, and max_memory is") as error:
        refused(LAW, on_error="raise")
    expected_size = int(str(error.value).split(" bytes")[0].split()[-1].replace(",", ""))
    assert 0.75 * row["bytes"] < expected_size <= row["bytes"]


def test_a_tensor_that_is_made_of_others_counts_as_these() -> None:
    a, b, c = (torch.ones(size) for size in (3, 3, 3))
    assert [id(part) for part in _parts(TwoTensor(TwoTensor(a, b), c))] == [id(a), id(b), id(c)]


def test_an_adapter_on_a_quantized_base_is_that_of_peft(wide: str, tmp_path: Path) -> None:
    weights = adapter(wide, tmp_path, seed=1)
    made = pipe({"law": {"model": wide, "adapter": weights, "quantization": NF4}})
    kwargs = {"quantization_config": BitsAndBytesConfig(**NF4)}
    direct = pipeline("text-generation", model=wide, model_kwargs=kwargs)
    direct.model = PeftModel.from_pretrained(direct.model, weights)
    chat = [{"role": "user", "content": LAW}]
    expected = direct(chat, return_full_text=False, **GREEDY)[0]["generated_text"]
    assert made(LAW, on_error="raise", **GREEDY)["generated_text"] == expected


def test_a_missing_package_of_quantization_is_named_before_weights_are_read(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(LlamaForCausalLM, "__init__", lambda *_: pytest.fail("made a model"))
    for budget in (None, "1GB"):
        made = pipe({"law": {"model": models["law"], "quantization": NF4}}, max_memory=budget)
        with pytest.raises(ExpertError, match=r"requires bitsandbytes: `pip install"):
            made(LAW, on_error="raise")


# Sizes.


@pytest.mark.parametrize(("text", "size"), [(5, 5), ("8GB", 8 * 10**9), ("512 MiB", 2**29), ("1.5k", 1500)])
def test_sizes_are_read(text: int | str, size: int) -> None:
    assert in_bytes("`max_memory`", text) == size


@pytest.mark.parametrize("text", ["", "8 apples", "-1", 0, "GB"])
def test_a_size_that_is_none_is_refused(text: int | str) -> None:
    with pytest.raises(ValueError, match="max_memory"):
        in_bytes("`max_memory`", text)


def test_no_model_leaves_while_it_generates(models: dict[str, str]) -> None:
    made = of_models(models, max_loaded_experts=1)
    model, order = made.experts.load("law"), []
    model.model.register_forward_hook(lambda *_: order.append("law") or time.sleep(0.01))
    threads = [threading.Thread(target=made, args=(LAW,), kwargs={**GREEDY, "min_new_tokens": 6})]
    threads[0].start()
    while not order:
        time.sleep(0.001)
    made(CODE, **GREEDY)
    order.append("code")
    threads[0].join()
    assert order == ["law"] * 6 + ["code"]
    assert [row["experts"] for row in made.loaded_experts] == [["code"]]


def test_many_threads_load_a_model_once_and_get_their_own_answers(
    models: dict[str, str], adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], LocalModel.__init__
    monkeypatch.setattr(LocalModel, "__init__", lambda self, source: (loads.append(source), load(self, source))[1])
    made = pipe({name: {"model": models["code"], "adapter": adapters[name]} for name in adapters})
    records: dict[int, Any] = {}
    prompts = [*PROMPTS.values()] * 4
    run: Callable[[int], None] = lambda i: records.update({i: made(prompts[i], **GREEDY)})  # noqa: E731
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert [records[i] for i in range(len(prompts))] == [made(prompt, **GREEDY) for prompt in prompts]


def test_a_stream_that_nobody_reads_does_not_hold_its_model(models: dict[str, str]) -> None:
    made = of_models(models, max_loaded_experts=1)
    events = made.stream(LAW, **GREEDY)
    assert [next(events)["event"], next(events)["event"]] == ["route", "text"]
    assert made(CODE, timeout=30, **GREEDY)["expert"] == "code"
    assert list(events)[-1]["event"] == "record"


def test_preloading_happens_beside_and_leaves_failures_for_their_first_use(models: dict[str, str]) -> None:
    made = pipe({"code": {"model": models["code"]}, "law": {"model": "/nowhere"}}, preload=True)
    made.experts.preload(["code", "law", "math"], background=False)
    assert [row["experts"] for row in made.loaded_experts] == [["code"]]


# Generation.


def test_seeds_are_those_of_text_generation(models: dict[str, str]) -> None:
    made = of_models(models)
    direct = pipeline("text-generation", model=models["law"], device="cpu")
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 2}
    set_seed(7)
    expected = [sequence["generated_text"] for sequence in direct(LAW, return_full_text=False, **options)]
    assert made(LAW, seed=7, **options)["generated_text"] == expected
    set_seed(7)
    assert made(LAW, **options)["generated_text"] == expected


def test_stop_strings_are_those_of_text_generation(tmp_path: Path) -> None:
    letters = {letter: i for i, letter in enumerate(["<eos>", "\u0120", *"abcdefghijklmnopqrstuvwxyz"])}
    torch.manual_seed(1)
    words = Tokenizer(models_of_tokens.BPE(letters, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    made = pipe({"law": {"model": str(tmp_path)}})
    whole = made(LAW, do_sample=False, max_new_tokens=30)["generated_text"]
    direct = pipeline("text-generation", model=str(tmp_path), device="cpu")
    expected = direct(LAW, return_full_text=False, do_sample=False, max_new_tokens=30, stop_sequence=whole[8:10])
    for stop in ({"stop_strings": [whole[8:10]]}, {"stop_sequence": whole[8:10]}):
        stopped = made(LAW, do_sample=False, max_new_tokens=30, **stop)["generated_text"]
        assert stopped == expected[0]["generated_text"] != whole


def test_a_prompt_beyond_the_window_is_refused_with_the_limit_and_cut_on_request(models: dict[str, str]) -> None:
    made = of_models(models)
    long = "judge " * 600 + "court"
    with pytest.raises(ExpertError, match=r"601 tokens and 6 new ones exceed the window of 512"):
        made(long, on_error="raise", **GREEDY)
    assert made.loaded_experts == []
    cut = made(long, truncation=True, on_error="raise", **GREEDY)["generated_text"]
    assert cut == answer(models["law"], "judge " * 505 + "court")


def test_a_prompt_beyond_the_window_is_refused_before_weights_are_read(
    models: dict[str, str], adapters: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf(tmp_path / "x.gguf", "llama", context=99)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", pytest.fail)
    adapted = {"model": models["code"], "adapter": adapters["law"]}
    of_gguf = {"model": str(tmp_path), "gguf_file": "x.gguf"}
    for spec, window in (({"model": models["law"]}, 512), (adapted, 512), (of_gguf, 99)):
        made = pipe({"law": spec})
        for answers in (made, lambda *a, **k: list(made.stream(*a, **k))):  # noqa: B023
            with pytest.raises(ExpertError, match=rf"exceed the window of {window} tokens"):
                answers("judge " * 600, on_error="raise")


def test_one_bad_prompt_does_not_lose_the_rest_of_a_batch(models: dict[str, str]) -> None:
    made = of_models(models)
    records = made([LAW, "judge " * 600, LAW + " jury"], **GREEDY)
    assert [record["generated_text"] is None for record in records] == [False, True, False]
    assert [failure["expert"] for failure in records[1]["failures"]] == [row["expert"] for row in records[1]["ranking"]]
    assert records[1]["expert"] == "law"
    assert records[0]["generated_text"] == answer(models["law"], LAW)


def test_a_batch_that_memory_does_not_hold_is_halved(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, sizes = of_models(models), []
    model = made.experts.load("law").model
    generate = model.generate

    def two_at_most(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", two_at_most)
    records = made([LAW] * 5, **GREEDY)
    assert [record["generated_text"] for record in records] == [answer(models["law"], LAW)] * 5
    assert sizes == [5, 2, 3, 1, 2]


def test_options_out_of_range_and_content_that_is_not_text_are_refused_before_anything_is_loaded(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = of_models(models)
    monkeypatch.setattr(ExpertPool, "_use", pytest.fail)
    image = [{"role": "user", "content": [{"type": "text", "text": LAW}, {"type": "image", "url": "x.png"}]}]
    with pytest.raises(ValueError, match="Prompt 1 has content of type 'image'"):
        made([LAW, image], on_error="raise")
    assert made(image, generate=False)["expert"] == "law"
    with pytest.raises(ValueError, match="role 'usr'; a role is one of"):
        made([{"role": "usr", "content": LAW}])
    with pytest.raises(ValueError, match="`max_new_tokens` must be a whole number"):
        made(LAW, max_new_tokens=0)
    numbers = {"temperature": math.inf, "timeout": math.nan, "top_p": 1.5, "min_p": -1, "presence_penalty": math.nan}
    for name, value in numbers.items():
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number .*, got {value}"):
            made([LAW], **{name: value})
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number"):
            list(made.stream(LAW, **{name: value}))
    with pytest.raises(ValueError, match="`on_error` must be 'next' or 'raise'"):
        made(LAW, on_error="ignore")
    misspelt = pipe({"law": {"model": models["law"], "generation": {"max_new_token": 3}}})
    with pytest.raises(ValueError, match=r"unknown option 'max_new_token'. Did you mean 'max_new_tokens'"):
        misspelt(LAW)
    wrong = pipe({"law": {"model": models["law"], "generation": {"repetition_penalty": 0}}})
    with pytest.raises(ValueError, match="`repetition_penalty` of expert 'law' must be a finite number above 0, got 0"):
        wrong(LAW)
    with pytest.raises(ValueError, match="`repetition_penalty` of expert 'law'"):
        served(wrong)
    random = pipe({"law": {"model": models["law"], "generation": {"seed": -1}}})
    for use in (lambda: random(LAW), lambda: served(random)):
        with pytest.raises(ValueError, match="`seed` of expert 'law' must be from 0 to 4294967295"):
            use()


SAMPLED: Options = {"do_sample": True, "max_new_tokens": 2}
BEAMS: Options = {"num_beams": 2}
REFUSED: dict[str, tuple[Options, list[Any]]] = {  # that transformers refuses, and with what beside it
    "max_new_tokens": ({}, [0, -1]),
    "num_beams": ({}, [0]),
    "min_new_tokens": ({}, [1.5]),
    "no_repeat_ngram_size": ({}, [1.5]),
    "top_k": ({}, [-2, 1.5]),
    "seed": ({}, [0.5, "1"]),
    "temperature": ({}, [-0.5, "0.5"]),
    "repetition_penalty": ({}, [0, -1, 0.0]),
    "top_p": ({}, [-0.1]),
    "min_p": ({}, [-0.1, 1.1]),
    "typical_p": ({}, [0, -1]),
    "top_h": ({}, [0, 1.1]),
    "early_stopping": (BEAMS, ["soon"]),
    "sequence_bias": ({}, [{}, [[5, 1.0]]]),
    "bad_words_ids": ({}, [[], [5]]),
    "cache_implementation": ({}, ["none such"]),
}
TAKEN: dict[str, tuple[Options, list[Any]]] = {
    "max_new_tokens": ({}, [1]),
    "num_return_sequences": ({}, [1, 2]),
    "num_beams": ({}, [1, 2]),
    "min_new_tokens": ({}, [0, 1]),
    "no_repeat_ngram_size": ({}, [0, 2]),
    "top_k": ({}, [-1, 0, 3]),
    "seed": ({}, [0, 2**32 - 1]),
    "temperature": ({}, [0, 5e-324, 0.5, 2]),
    "repetition_penalty": ({}, [1, 2, 0.5]),
    "top_p": ({}, [0, 1, 0.5]),
    "min_p": ({}, [0, 1, 0.5]),
    "typical_p": ({}, [1, 0.5]),
    "top_h": ({}, [0.5, 1]),
    "epsilon_cutoff": ({}, [0, 1, 0.5]),
    "eta_cutoff": ({}, [0, 1, 0.5]),
    "length_penalty": (BEAMS, [-1, 0, 2]),
    "early_stopping": (BEAMS, [True, "never"]),
    "sequence_bias": ({}, [[[[5], 1.0]]]),
    "bad_words_ids": ({}, [[[5]]]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_refuses_is_refused_before(name: str, models: dict[str, str]) -> None:
    direct = pipeline("text-generation", model=models["law"], device="cpu")
    beside, values = REFUSED[name]
    for value in values:
        with pytest.raises(ValueError, match=name):
            check_options({**SAMPLED, **beside, name: value})
        with pytest.raises(
            (ValueError, TypeError, RuntimeError, ZeroDivisionError)
        ):  # so that no more is refused than must be
            set_seed(value) if name == "seed" else direct("the court", **{**SAMPLED, **beside, name: value})


@pytest.mark.parametrize("name", TAKEN)
def test_options_at_the_ends_of_their_range_are_answered(name: str, models: dict[str, str]) -> None:
    made = of_models(models)
    beside, values = TAKEN[name]
    for value in values:
        found = made(LAW, on_error="raise", **{**SAMPLED, **beside, name: value})["generated_text"]
        assert isinstance(found, list if (name, value) == ("num_return_sequences", 2) else str)


def test_options_that_no_expert_on_this_machine_takes_are_refused_before_it_is_loaded(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = of_models(models)
    assert made(LAW, **GREEDY, frequency_penalty=0)["generated_text"] == made(LAW, **GREEDY)["generated_text"]
    monkeypatch.setattr(ExpertPool, "_use", pytest.fail)
    refused = {
        "is for experts behind servers": {"frequency_penalty": 0.5},
        "`seed` must be from 0 to 4294967295 for an expert on this machine, got -1": {"seed": -1},
        "this machine, got 4294967296": {"seed": 2**32},
        "there is one likeliest answer": {"do_sample": False, "num_return_sequences": 2},
        "without sampling there is one": {"temperature": 0, "num_beams": 2, "num_return_sequences": 3},
    }
    for message, options in refused.items():
        with pytest.raises(ExpertError, match=message):
            made(LAW, on_error="raise", **options)
        with pytest.raises(ExpertError, match=message):
            list(made.stream(LAW, on_error="raise", **options))


def test_a_temperature_of_none_is_the_likeliest_answer_from_every_expert(models: dict[str, str]) -> None:
    made = of_models(models)
    likeliest = made(LAW, **GREEDY)["generated_text"]
    assert made(LAW, max_new_tokens=GREEDY["max_new_tokens"], temperature=0)["generated_text"] == likeliest
    assert made(LAW, **{**GREEDY, "do_sample": True}, temperature=0)["generated_text"] == likeliest


# Failures.


def test_the_next_in_the_ranking_answers_and_the_record_says_why(models: dict[str, str]) -> None:
    made = pipe({"code": {"model": models["code"]}, "law": {"model": "/nowhere"}, "math": {"model": models["math"]}})
    records = made([CODE, LAW, MATH], **GREEDY)
    second = made(LAW, generate=False)["ranking"][1]
    assert [record["expert"] for record in records] == ["code", second["expert"], "math"]
    assert records[1]["score"] == second["score"]
    assert records[1]["generated_text"] == answer(models[second["expert"]], LAW)
    [failure] = records[1]["failures"]
    assert failure["expert"] == "law"
    assert "/nowhere" in failure["error"]
    assert "failures" not in records[0]
    assert json.loads(json.dumps(records)) == records
    with pytest.raises(ExpertError, match="Expert 'law' did not answer") as raised:
        made([CODE, LAW], on_error="raise", **GREEDY)
    assert raised.value.expert == "law"
    assert raised.value.__cause__ is raised.value.cause


def test_a_damaged_model_and_a_slow_one_fail_over(models: dict[str, str], tmp_path: Path) -> None:
    for file in Path(models["law"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    made = pipe({"law": {"model": str(tmp_path)}, "code": {"model": models["code"]}})
    record = made(LAW, **GREEDY)
    assert record["expert"] == "code"
    assert "SafetensorError" in record["failures"][0]["error"]
    slow = of_models(models)
    slow.experts.load("law").model.register_forward_hook(lambda *_: time.sleep(0.2))
    record = slow([LAW, LAW], timeout=1.5, max_new_tokens=20, min_new_tokens=20)[0]
    assert record["expert"] != "law"
    assert record["failures"] == [{"expert": "law", "error": "TimeoutError: no answer within 1.5 s"}]


def test_an_expert_that_only_routes_is_passed_over(models: dict[str, str]) -> None:
    made = pipe({"law": {"model": "/nowhere"}})
    record = made(LAW, **GREEDY)
    assert record["generated_text"] is None
    assert [failure["expert"] for failure in record["failures"]] == ["law"]


# Trust.


def test_remote_code_runs_only_if_spec_and_caller_say_so(models: dict[str, str], tmp_path: Path) -> None:
    for file in Path(models["law"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config["model_type"] = "evil"
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class Config(LlamaConfig):\n    model_type = 'evil'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    allowed = {"expert_kwargs": {"trust_remote_code": True}}
    plain, asking = {"law": {"model": str(tmp_path)}}, {"law": {"model": str(tmp_path), "trust_remote_code": True}}
    for specs, kwargs in ((plain, {}), (plain, allowed), (asking, {})):
        assert pipe(specs, **kwargs)(LAW, **GREEDY)["generated_text"] is None
        assert not ran.exists()
    with pytest.raises(ExpertError, match=r"If you trust it, allow it: .*'trust_remote_code': True"):
        pipe(asking)(LAW, on_error="raise")
    assert pipe(asking, **allowed)(LAW, **GREEDY)["generated_text"] == answer(models["law"], LAW)
    assert ran.exists()


def test_other_weights_than_safetensors_are_read_only_if_spec_and_caller_say_so(
    models: dict[str, str], tmp_path: Path
) -> None:
    for file in Path(models["law"]).iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(AutoModelForCausalLM.from_pretrained(models["law"]).state_dict(), tmp_path / "pytorch_model.bin")
    allowed = {"expert_kwargs": {"use_safetensors": False}}
    plain, asking = {"law": {"model": str(tmp_path)}}, {"law": {"model": str(tmp_path), "use_safetensors": False}}
    for specs, kwargs in ((plain, {}), (plain, allowed), (asking, {})):
        assert pipe(specs, **kwargs)(LAW, **GREEDY)["generated_text"] is None
    assert pipe(asking, **allowed)(LAW, **GREEDY)["generated_text"] == answer(models["law"], LAW)


# GGUF.


def gguf(path: Path, architecture: str, kind: str | None = None, context: int = 512) -> None:
    """Writes a small GGUF file."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_feed_forward_length(32)
    writer.add_tokenizer_model("gpt2")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_token_list([*letters, letters[0] + letters[1], "<eos>"])
    writer.add_token_types([1] * (len(letters) + 1) + [3])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_eos_token_id(len(letters) + 1)
    if kind is None:
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    else:
        writer.add_tensor("token_embd.weight", np.zeros((4, 66), np.uint8), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("architecture", "kind", "message"),
    [
        ("sphinx", None, "holds a model of type 'sphinx', which transformers cannot read"),
        ("llama", "Q4_0_4_4", "quantized as Q4_0_4_4"),
    ],
)
def test_a_gguf_file_that_cannot_be_read_is_refused_before_it_is(
    tmp_path: Path, architecture: str, kind: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGMLQuantizationType

    if kind is not None and kind not in GGMLQuantizationType.__members__:
        pytest.skip(f"gguf has no {kind}")
    gguf(tmp_path / "x.gguf", architecture, kind)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", pytest.fail)
    made = pipe({"law": {"model": str(tmp_path), "gguf_file": "x.gguf"}})
    with pytest.raises(ExpertError, match=message):
        made(LAW, on_error="raise")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no weights here" * 9)
    made = pipe({"law": {"model": str(tmp_path), "gguf_file": "x.gguf"}})
    with pytest.raises(ExpertError, match="not a GGUF file, or is damaged"):
        made(LAW, on_error="raise")


# Streaming.


def test_the_route_comes_before_anything_is_loaded(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = of_models(models)
    made(LAW, generate=False)
    monkeypatch.setattr(ExpertPool, "_use", pytest.fail)
    started = time.perf_counter()
    assert next(made.stream(LAW))["expert"] == "law"
    assert time.perf_counter() - started < 0.05


def test_a_stream_goes_on_with_the_next_expert(models: dict[str, str]) -> None:
    made = pipe({"law": {"model": "/nowhere"}, "code": {"model": models["code"]}, "math": {"model": "/nowhere"}})
    events = list(made.stream(LAW, **GREEDY))
    routes = [event for event in events if event["event"] == "route"]
    assert routes[0]["expert"] == "law"
    assert routes[-1]["expert"] == "code"
    assert "/nowhere" in routes[-1]["failures"][0]["error"]
    assert events[-1] == {"event": "record", **made(LAW, **GREEDY)}
    with pytest.raises(ExpertError, match="'law' did not answer"):
        list(made.stream(LAW, on_error="raise"))
    nobody = pipe({"law": {"model": "/nowhere"}})
    last = list(nobody.stream(LAW))[-1]
    assert (last["event"], last["expert"], last["generated_text"]) == ("record", "law", None)


# Specs.


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model": "org/law", "adaptor": "org/x"}, "unknown key 'adaptor'. Did you mean 'adapter'"),
        (
            {"endpoint": "https://host/v1", "provider": "auto", "model": "org/law"},
            "has two sources: endpoint and provider",
        ),
        ({"endpoint": "https://host/v1", "adapter": "org/x"}, "has two sources: endpoint and adapter"),
        (
            {"endpoint": "https://host/v1", "gguf_file": "x.gguf", "model": "m"},
            "has two sources: endpoint and gguf_file",
        ),
        ({"endpoint": "host:8000"}, "must be a URL such as https://host/v1"),
        ({"endpoint": "https://user:secret@host/v1"}, "without user, password or query"),
        ({"endpoint": "https://host/v1?token=secret"}, "never from the config"),
        ({"provider": "auto"}, "has `provider` but no `model`"),
        ({"timeout": 3}, "has no source"),
        ({"model": "m", "gguf_file": "weights.bin"}, "must name a .gguf file"),
        ({"model": "m", "gguf_file": "w.gguf", "quantization": {}}, "quantized already"),
        ({"model": "m", "adapter_revision": "v1"}, "has `adapter_revision` but no `adapter`"),
        ({"model": "m", "dtype": "float8"}, "`dtype` of expert 'law' must be one of auto"),
        ({"model": "m", "device_map": 3}, "must be a string or a mapping"),
        ({"model": "m", "trust_remote_code": "yes"}, "must be true or false"),
        ({"endpoint": "http://host", "task": "completion"}, "must be one of chat, text"),
        ({"model": "m", "timeout": -1}, "`timeout` of expert 'law' must be a number"),
        (
            {"model": "m", "quantization": {"load_in_2bit": True}},
            "unknown method None: expected what",
        ),
        ({"model": "m", "quantization": {"quant_method": "zip"}}, "unknown method 'zip'"),
        ({"model": "m", "quantization": "4bit"}, "must be a mapping"),
        ({"model": "m", "max_memory": {"cpu": "1GB"}}, "`max_memory` but no `device_map`"),
        ({"model": "m", "device_map": "auto", "max_memory": {"cpu": "much"}}, "or a size such as '8GB'; got 'much'"),
        ({"endpoint": "http://host", "max_memory": {"cpu": 1}}, "has two sources: endpoint and max_memory"),
        ({"dtype": "float16"}, "details of a model but no `model`"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        pipe({"law": spec})


def test_what_loads_an_expert_travels_with_the_router(tmp_path: Path) -> None:
    tiny.router().save_pretrained(tmp_path)
    for name in ("specs", "experts", "local_sources", "local_experts", "remote_experts", "options", "prompts"):
        assert (tmp_path / f"{name}_ir3de.py").is_file()


def test_models_are_loaded_one_at_a_time(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers changes its own classes while it loads, and two threads at once would leave them changed."""
    load, within, most = AutoModelForCausalLM.from_pretrained, 0, 0

    def slowly(*args: Any, **kwargs: Any) -> Any:
        nonlocal within, most
        within += 1
        most = max(most, within)
        time.sleep(0.2)
        try:
            return load(*args, **kwargs)
        finally:
            within -= 1

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slowly)
    pool = of_models(models).experts
    threads = [threading.Thread(target=pool.load, args=(name,)) for name in ("law", "code")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row["bytes"] > 0 for row in pool.loaded} == {True}
    assert len(pool.loaded) == 2
    assert most == 1
