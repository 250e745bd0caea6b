"""Experts that see: what their processor reads is what the model is given, and nothing is read that was not sent."""

import base64
import json
import logging
import shutil
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from ir3de import IR3DERoutingPipeline
from ir3de.experts_ir3de import ExpertPool
from ir3de.images_ir3de import BadImage, Picture, check_pictures, picture_of, pictures_in, with_pictures
from ir3de.local_sources_ir3de import LocalSource, TooLong
from ir3de.prompts_ir3de import Message, Prompt, Unanswerable, as_chat, with_system_folded, with_turns_merged

from . import tiny
from .pictures import FIRST, SECOND, base64_of, chat, file_of, part_of, picture, url_of

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
CODE = "debug my python loop"
LAW = "the court and a judge"


@pytest.fixture(scope="module")
def alone(seeing: str) -> IR3DERoutingPipeline:
    """A pipeline whose experts are all one model that sees."""
    return IR3DERoutingPipeline(tiny.router({name: {"model": seeing} for name in tiny.DOMAINS}), device="cpu")


@pytest.fixture(scope="module")
def mixed(expert_specs: dict[str, dict[str, Any]], seeing: str) -> IR3DERoutingPipeline:
    """A pipeline of which the expert for math sees."""
    return IR3DERoutingPipeline(tiny.router({**expert_specs, "math": {"model": seeing}}), device="cpu")


@pytest.fixture(scope="module")
def straight(seeing: str) -> Any:
    """What the model generates when it is asked without us."""
    model = AutoModelForImageTextToText.from_pretrained(seeing)
    processor = AutoProcessor.from_pretrained(seeing)

    def answer(given: list[Message]) -> str:
        how: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(given, tokenize=True, **how)
        made = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        return str(processor.tokenizer.decode(made, skip_special_tokens=True))

    return answer


def source_of(made: IR3DERoutingPipeline, name: str = "code") -> LocalSource:
    return made.experts.source(name)


# What is answered.


def test_an_answer_is_what_the_model_generates_of_the_image(alone: IR3DERoutingPipeline, straight: Any) -> None:
    answers = []
    for image in (FIRST, SECOND):
        answers.append(alone(chat(CODE, part_of(image)), **GREEDY)["generated_text"])
        assert answers[-1] == straight(chat(CODE, {"type": "image", "image": image}))
    assert answers[0] != answers[1]
    both = chat(CODE, part_of(FIRST), part_of(SECOND))
    seen = straight(chat(CODE, *({"type": "image", "image": image} for image in (FIRST, SECOND))))
    assert alone(both, **GREEDY)["generated_text"] == seen
    assert alone(chat(CODE, part_of(SECOND), part_of(FIRST)), **GREEDY)["generated_text"] != seen


def test_text_alone_is_answered_as_by_the_model(alone: IR3DERoutingPipeline, straight: Any) -> None:
    expected = [straight(chat(text)) for text in (CODE, LAW)]
    assert [alone(text, **GREEDY)["generated_text"] for text in (CODE, LAW)] == expected
    assert [record["generated_text"] for record in alone([CODE, LAW], **GREEDY)] == expected
    talk = [*chat(CODE), {"role": "assistant", "content": "how"}, {"role": "user", "content": "why"}]
    in_parts = [*chat(CODE), {"role": "assistant", "content": [{"type": "text", "text": "how"}]}, *chat("why")]
    assert alone(talk, **GREEDY)["generated_text"] == straight(in_parts)


def test_several_prompts_with_and_without_images_are_each_answered_as_alone(alone: IR3DERoutingPipeline) -> None:
    prompts = [
        CODE,
        chat(CODE, part_of(FIRST)),
        LAW,
        chat(CODE, part_of(SECOND), part_of(FIRST)),
        chat(CODE, part_of(SECOND)),
    ]
    assert alone(prompts, **GREEDY) == [alone(prompt, **GREEDY) for prompt in prompts]


def test_a_stream_gives_the_same_answer(alone: IR3DERoutingPipeline) -> None:
    prompt = chat(CODE, part_of(FIRST))
    events = list(alone.stream(prompt, **GREEDY))
    pieces = [event["text"] for event in events if event["event"] == "text"]
    assert len(pieces) > 1
    assert "".join(pieces) == events[-1]["generated_text"] == alone(prompt, **GREEDY)["generated_text"]


def test_several_answers_and_the_prompt_beside_them(alone: IR3DERoutingPipeline) -> None:
    prompt = chat(CODE, part_of(FIRST))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.5, "seed": 1}
    texts = alone(prompt, **options, num_return_sequences=2)["generated_text"]
    assert len(set(texts)) == 2
    full = alone(prompt, **GREEDY, return_full_text=True)["generated_text"]
    assert full == [*prompt, {"role": "assistant", "content": alone(prompt, **GREEDY)["generated_text"]}]


def test_each_form_of_an_image_is_read_alike(alone: IR3DERoutingPipeline) -> None:
    expected = alone(chat(CODE, part_of(FIRST)), **GREEDY)
    data = base64.encodebytes(file_of(FIRST)).decode()  # in lines
    forms: list[Message] = [
        {"type": "image", "image": FIRST},
        {"type": "image", "url": url_of(FIRST)},
        {"type": "image_url", "image_url": url_of(FIRST)},
        {"type": "image_url", "image_url": {"url": url_of(FIRST, "WEBP", lossless=True), "detail": "low"}},
        {"type": "image_url", "image_url": {"url": f"data:;base64,{data}"}},
        {"type": "input_image", "image_url": url_of(FIRST), "detail": "auto"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
    ]
    for form in forms:
        assert alone(chat(CODE, form), **GREEDY) == expected, form


def test_formats_and_modes_come_out_as_pillow_reads_them() -> None:
    few = FIRST.quantize(16)
    for image, kind in ((FIRST, "PNG"), (FIRST, "JPEG"), (few, "GIF"), (FIRST, "WEBP"), (FIRST.convert("L"), "PNG")):
        data = file_of(image, kind)
        opened = Picture(data, "here").opened()
        assert opened.mode == "RGB"
        assert opened.tobytes() == Image.open(BytesIO(data)).convert("RGB").tobytes(), kind
    clear = picture(3, mode="RGBA")
    assert Picture(file_of(clear), "here").opened().tobytes() == clear.convert("RGB").tobytes()
    moving = file_of(FIRST, "GIF", save_all=True, append_images=[SECOND])
    assert Picture(moving, "here").opened().tobytes() == Image.open(BytesIO(moving)).convert("RGB").tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by a quarter
    seen = Picture(file_of(FIRST, exif=turned), "here").opened()
    assert seen.tobytes() == FIRST.transpose(Image.Transpose.ROTATE_270).tobytes()


# Where a prompt with an image goes.


def test_an_image_goes_to_an_expert_that_sees_and_text_to_whoever(mixed: IR3DERoutingPipeline) -> None:
    record = mixed(chat(CODE, part_of(FIRST)), **GREEDY)
    assert record["ranking"][0]["expert"] == "code"
    assert record["expert"] == "math"
    assert "failures" not in record
    assert record["generated_text"] == mixed(chat(CODE, part_of(FIRST)), experts=["math"], **GREEDY)["generated_text"]
    assert mixed(chat(CODE), **GREEDY)["expert"] == mixed(CODE, **GREEDY)["expert"] == "code"
    assert mixed(chat(CODE, part_of(FIRST)), generate=False)["expert"] == "code", "the route itself reads text alone"
    route, *_, last = mixed.stream(chat(CODE, part_of(FIRST)), **GREEDY)
    assert route["expert"] == last["expert"] == "math"


def test_without_an_expert_that_sees_an_image_is_refused(mixed: IR3DERoutingPipeline) -> None:
    with pytest.raises(ValueError, match="content of type 'image_url', and the experts read text only"):
        mixed(chat(CODE, part_of(FIRST)), experts=["code", "law"])
    pool = mixed.experts
    [answer] = pool.generate("code", [chat(CODE, part_of(FIRST))], 1)
    assert "reads text only" in str(answer), "and never answered as if it were not there"


def test_a_model_of_text_is_loaded_as_ever(mixed: IR3DERoutingPipeline) -> None:
    source = source_of(mixed)
    assert (source.sees, source.auto_class.__name__) == (False, "AutoModelForCausalLM")
    assert type(mixed.experts.load("code").pipe).__name__ == "TextGenerationPipeline"


def both_kinds(folder: Path) -> str:
    """Saves a model with random weights that can be loaded as one that sees and as a causal LM; returns its folder."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    torch.manual_seed(5)
    words = tiny.tokenizer()
    words.bos_token = "<eos>"
    words.add_tokens(["<|image|>", "<|python_tag|>"], special_tokens=True)
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "initializer_range": 0.5}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    length = {"max_position_embeddings": 512}
    text = MllamaTextConfig(vocab_size=len(words), cross_attention_layers=[1], **length, **sizes, **heads, **ends)
    tiles: dict[str, Any] = {"max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]], "image_size": 16, "patch_size": 8}
    layers = {"num_hidden_layers": 2, "num_global_layers": 1, "intermediate_layers_indices": [0]}
    vision = MllamaVisionConfig(vision_output_dim=32, num_attention_heads=2, **tiles, **layers, **sizes)
    image = words.convert_tokens_to_ids("<|image|>")
    model = MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=image)
    )
    for name, parameter in model.named_parameters():
        if "gate" in name:  # zeros, which would hide what it sees
            parameter.data.fill_(1)
    model.save_pretrained(folder)
    eyes = MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=1)
    template = tiny.TEMPLATE_OF_PARTS.replace("<image>", "<|image|>")
    MllamaProcessor(eyes, words, chat_template=template).save_pretrained(folder)
    return str(folder)


def test_of_a_model_with_both_kinds_the_type_of_its_config_and_the_spec_decide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = both_kinds(tmp_path / "whole")
    specs = {"code": {"model": whole}, "law": {"model": whole, "images": False}}
    made = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    answers = {made(chat(CODE, part_of(image)), **GREEDY)["generated_text"] for image in (FIRST, SECOND)}
    assert len(answers) == 2
    assert (made.experts.sees("code"), made.experts.sees("law")) == (True, False)
    assert made(LAW, **GREEDY)["expert"] == "law"
    classes = {name: type(made.experts.load(name).model).__name__ for name in specs}
    assert classes == {"code": "MllamaForConditionalGeneration", "law": "MllamaForCausalLM"}
    assert {tuple(entry["experts"]) for entry in made.loaded_experts} == {("code",), ("law",)}

    source = made.experts.source("code")
    for folder, config in (("text", source.config.text_config), ("bare", source.config)):
        config.save_pretrained(tmp_path / folder)
        tiny.tokenizer(chat=True).save_pretrained(tmp_path / folder)
    allow = {"trust_remote_code": False, "unsafe_weights": False}
    with caplog.at_level(logging.WARNING):
        text, bare = (LocalSource({"model": str(tmp_path / name)}, None, allow) for name in ("text", "bare"))
    assert (text.sees, bare.sees) == (False, False)
    assert text.auto_class.__name__ == bare.auto_class.__name__ == "AutoModelForCausalLM"
    assert "bare reads text alone: its processor cannot be read" in caplog.text


@pytest.mark.parametrize(("kind", "loaded"), [("both", 2), ("sees", 1)])
def test_an_expert_with_an_adapter_reads_text_alone(kind: str, loaded: int, seeing: str, tmp_path: Path) -> None:
    """On the causal LM that adapters are of, where there is one; a model that only sees is there once for all."""
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    base = both_kinds(tmp_path / "base") if kind == "both" else seeing
    auto = AutoModelForCausalLM if kind == "both" else AutoModelForImageTextToText
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*v_proj|model\.layers.*v_proj", init_lora_weights=False
    )
    adapted = peft.get_peft_model(auto.from_pretrained(base), config)
    adapted.save_pretrained(tmp_path / "adapter")
    specs = {"code": {"model": base}, "law": {"model": base, "adapter": str(tmp_path / "adapter")}}
    made = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    assert (made.experts.sees("code"), made.experts.sees("law")) == (True, False)
    assert made(chat(LAW, part_of(FIRST)), **GREEDY)["expert"] == "code"
    bare = made(LAW, experts=["code"], **GREEDY)["generated_text"]
    words = AutoProcessor.from_pretrained(base)
    how: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = words.apply_chat_template(chat(LAW), **how)
    ids = adapted.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    answer = made(LAW, **GREEDY)["generated_text"]
    assert answer == words.tokenizer.decode(ids, skip_special_tokens=True) != bare
    assert len(made.loaded_experts) == loaded


def test_of_a_model_that_has_no_class_of_text_there_is_one_copy(seeing: str) -> None:
    specs = {"code": {"model": seeing, "images": False}, "law": {"model": seeing}}
    made = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    assert (made.experts.sees("code"), made.experts.sees("law")) == (False, True)
    assert made(CODE, **GREEDY)["generated_text"]
    assert made(chat(CODE, part_of(FIRST)), **GREEDY)["expert"] == "law"
    assert [entry["experts"] for entry in made.loaded_experts] == [["code", "law"]]


def test_no_code_of_a_repository_runs_without_trust(seeing: str, tmp_path: Path) -> None:
    folder = tmp_path / "own-code"
    shutil.copytree(seeing, folder)
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    for name, kinds in (("config", ["AutoModelForImageTextToText"]), ("processor_config", ["AutoProcessor"])):
        path = folder / f"{name}.json"
        said = json.loads(path.read_text())
        path.write_text(json.dumps({**said, "auto_map": dict.fromkeys(kinds, "own.Own")}))
    spec = {"model": str(folder), "trust_remote_code": True}
    made = IR3DERoutingPipeline(tiny.router({"code": {"model": str(folder)}, "law": spec}), device="cpu")
    assert made(chat(CODE, part_of(FIRST)), **GREEDY)["expert"] == "code"
    [refused] = made.experts.generate("law", [chat(LAW, part_of(FIRST))], 1)
    assert isinstance(refused, PermissionError)
    assert not mark.exists()


# Words and images.


def test_the_tokens_of_images_count_and_words_stand_for_none(alone: IR3DERoutingPipeline) -> None:
    source, spec = source_of(alone), alone.experts.spec("code")

    def length(*parts: Any) -> int:
        return source.length(spec, chat(*parts))

    alone_ = length(CODE)
    assert length(CODE, part_of(FIRST)) == alone_ + tiny.IMAGE_TOKENS
    assert length(CODE, part_of(FIRST), part_of(SECOND)) == alone_ + 2 * tiny.IMAGE_TOKENS
    assert length(f"{CODE} <image>") == alone_ + 1, "what a person wrote is a word"
    assert length(f"{CODE} <image>", part_of(FIRST)) == alone_ + 1 + tiny.IMAGE_TOKENS
    assert alone(chat(f"{CODE} <image>", part_of(FIRST)), **GREEDY)["generated_text"]


def test_a_window_too_small_for_the_images_is_refused_and_nothing_is_cut(alone: IR3DERoutingPipeline) -> None:
    prompt = chat(CODE, *[part_of(FIRST)] * 126)
    length = source_of(alone).length(alone.experts.spec("code"), prompt)
    assert length == 512
    for more in ({}, {"truncation": True}):
        [answer] = alone.experts.generate("code", [prompt], 1, max_new_tokens=1, **more)
        assert isinstance(answer, TooLong)
        assert "truncation" not in str(answer)


def test_what_a_template_needs_done_to_a_chat_keeps_its_images() -> None:
    image = part_of(FIRST)
    given: Prompt = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": ["look", image]},
        {"role": "user", "content": "why"},
    ]
    between = {"type": "text", "text": "\n\n"}
    look, brief, why = ({"type": "text", "text": text} for text in ("look", "be brief", "why"))
    folded = with_system_folded(as_chat(given))
    assert folded[0] == {"role": "user", "content": [brief, between, look, image]}
    [merged] = with_turns_merged(folded)
    assert merged["content"] == [brief, between, look, image, between, why]
    plain: Prompt = [{**message, "content": "a"} for message in given]
    assert with_turns_merged(with_system_folded(as_chat(plain))) == [{"role": "user", "content": "a\n\na\n\na"}]


# Memory.


def test_a_model_that_sees_is_counted_and_makes_room(seeing: str, expert_specs: dict[str, dict[str, Any]]) -> None:
    router = tiny.router({"code": {"model": seeing}, "law": expert_specs["law"]})
    made = IR3DERoutingPipeline(router, device="cpu", max_loaded_experts=1)
    expected = source_of(made).expected_size()
    assert made(chat(CODE, part_of(FIRST)), **GREEDY)["expert"] == "code"
    [held] = made.loaded_experts
    assert (held["model"], held["experts"], held["bytes"]) == (seeing, ["code"], expected)
    assert made(LAW, **GREEDY)["expert"] == "law"
    assert [entry["experts"] for entry in made.loaded_experts] == [["law"]]


# What is not read.


def test_nothing_is_fetched_and_no_file_is_opened(
    alone: IR3DERoutingPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.image_utils
    import transformers.processing_utils

    path = tmp_path / "secret.png"
    path.write_bytes(file_of(FIRST))
    monkeypatch.setattr("httpx2.get", pytest.fail)
    monkeypatch.setattr(transformers.image_utils, "load_image", pytest.fail)
    monkeypatch.setattr(ExpertPool, "_use", pytest.fail)
    for address in ("http://127.0.0.1/a.png", "https://example.org/a.png", path.as_uri(), "HTTP://127.0.0.1/"):
        for part in (
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "input_image", "image_url": address},
            {"type": "image", "source": {"type": "url", "url": address}},
            {"type": "image", "url": address},
        ):
            with pytest.raises(
                Unanswerable, match=r"prompt 0, messages\[0\].content\[1\] is an address, and none is fetched here"
            ):
                alone(chat(CODE, part))
    for part in (
        {"type": "image", "path": str(path)},
        {"type": "image", "base64": "AAAA"},
        {"type": "image", "image": str(path)},
        {"type": "image_url"},
        {"type": "input_image", "file_id": "f1"},
        {"type": "image", "source": {"type": "file", "file_id": "f1"}},
    ):
        with pytest.raises(Unanswerable, match=r"content\[1\] is missing; an image goes as a `data:` URL"):
            alone(chat(CODE, part))


def test_a_part_holds_nothing_else_that_a_processor_would_read(alone: IR3DERoutingPipeline) -> None:
    """The image beside it is fine, and neither key nor kind of another part has an address fetched."""
    address = "http://127.0.0.1:1/a.png"
    image = {"type": "image", "image": FIRST, "url": address, "path": "/etc/passwd"}
    video = {"type": "video", "text": "why", "url": address}
    source = source_of(alone)
    [message] = source.render(alone.experts.spec("code"), chat(CODE, image, video))  # type: ignore[misc]
    text = {"type": "text", "text": CODE}
    assert [sorted(part) for part in message["content"]] == [["text", "type"], ["image", "type"], ["text", "type"]]
    assert message["content"][::2] == [text, {"type": "text", "text": "why"}]
    assert alone(chat(CODE, image, video), **GREEDY) == alone(chat(CODE, part_of(FIRST), "why"), **GREEDY)


PNG = file_of(FIRST)
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "text": b"an image",
    "a vector drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "another format": file_of(FIRST, "TIFF"),
    "a head alone": PNG[:40],
    "half of it": PNG[: len(PNG) // 2],
    "a flipped byte": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    "half a photo": file_of(picture(3, (400, 300)), "JPEG")[:5000],
    "half a sticker": file_of(FIRST, "WEBP")[:-40],
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_refused_by_its_place_before_anything_is_loaded(
    alone: IR3DERoutingPipeline, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExpertPool, "_use", pytest.fail)
    url = f"data:image/png;base64,{base64_of(data)}"
    prompt = chat(part_of(SECOND), CODE, {"type": "image_url", "image_url": {"url": url}})
    with pytest.raises(Unanswerable, match=r"prompt 0, messages\[0\].content\[2\]"):
        alone(prompt)
    monkeypatch.setattr(ExpertPool, "generate", lambda self, name, prompts, *_, **__: ["said"] * len(prompts))
    [record, other] = alone([prompt, CODE])
    assert "content[2]" in record["reason"]
    assert other["generated_text"] == "said"


def test_what_is_no_base64_is_refused() -> None:
    for text in ("%%%", "AAA", "é" * 8):
        with pytest.raises(BadImage, match="is not in base64"):
            picture_of({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}, "here")
    with pytest.raises(BadImage, match="is not in base64"):
        picture_of({"type": "image", "source": {"type": "base64", "data": 5}}, "here")


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a file is small: it is as large as a page of text, and takes gigabytes when it is decoded."""
    bomb = file_of(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        small, large = Picture(PNG, "a"), Picture(file_of(Image.new("1", (9_000, 9_990))), "b")
    monkeypatch.setattr(Picture, "opened", pytest.fail)
    with pytest.raises(BadImage, match="has more pixels than are decoded"):
        check_pictures([Picture(bomb, "here")])
    with pytest.raises(BadImage, match=r"at b has 89,910,000 pixels, too many to decode"):
        check_pictures([small, large])
    with pytest.raises(BadImage, match=r"at b makes it 480 pixels in all; at most 479 go"):
        check_pictures([small, Picture(PNG, "b")], pixels=479)
    with pytest.raises(BadImage, match=r"at b is one too many: at most 1 go"):
        check_pictures([small, Picture(PNG, "b")], most=1)


def test_without_pillow_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Picture(PNG, "here")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for look in (seen.opened, lambda: check_pictures([seen])):
        with pytest.raises(BadImage, match=r'needs the package Pillow here: `pip install "ir3de\[images\]"`'):
            look()


def test_a_picture_is_read_once(alone: IR3DERoutingPipeline) -> None:
    read = with_pictures(chat(CODE, part_of(FIRST)))
    assert with_pictures(read) == read
    [seen] = pictures_in(read)
    assert json.dumps(read, default=lambda value: value.place) == json.dumps(
        chat(CODE, {"type": "image", "image": "messages[0].content[1]"})
    )
    assert seen.pixels == 240
    source, spec = source_of(alone), alone.experts.spec("code")
    first = source.encode(source.render(spec, read))  # type: ignore[arg-type]
    assert source.encode(source.render(spec, read)) is first  # type: ignore[arg-type]
    more: Any = [*read, {"role": "assistant", "content": "how"}]
    assert source.encode(source.render(spec, more)) is not first  # type: ignore[arg-type]
    del read, more, seen, first
    assert not source._encoded, "what was made of it goes with it"
