"""A tiny world for the tests: three domains of a few words each, and everything that is made of them.

A word's embedding points the way of its domain, so that it is known beforehand where a sentence belongs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ir3de import DomainStatistics, IR3DEConfig, IR3DEModel
from ir3de.batch_ir3de import Prompts
from ir3de.modeling_ir3de import feature_space
from ir3de.statistics_ir3de import StatisticsCollector
from ir3de.token_router_ir3de import FeatureMap

DOMAINS = {
    "code": [
        "array",
        "bug",
        "class",
        "compile",
        "debug",
        "function",
        "integer",
        "loop",
        "pointer",
        "python",
        "return",
        "script",
        "string",
        "variable",
    ],
    "law": [
        "appeal",
        "attorney",
        "clause",
        "contract",
        "court",
        "crime",
        "judge",
        "jury",
        "lawsuit",
        "liable",
        "plaintiff",
        "statute",
        "trial",
    ],
    "math": [
        "algebra",
        "angle",
        "circle",
        "cosine",
        "cube",
        "derivative",
        "equation",
        "integral",
        "matrix",
        "prime",
        "proof",
        "root",
        "square",
        "sum",
    ],
}
SHARED = [
    "a",
    "and",
    "does",
    "find",
    "how",
    "in",
    "is",
    "it",
    "me",
    "my",
    "of",
    "show",
    "tell",
    "that",
    "the",
    "this",
    "to",
    "what",
    "why",
    "with",
]
TOKENS = ["<pad>", "<unk>", "<eos>", *chain(*DOMAINS.values()), *SHARED]
HIDDEN = 16
TEMPLATE = (
    "{% for message in messages %}<eos> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }} {% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<eos> this {% endif %}"
)
IMAGE_TOKENS = 4  # of one image, whatever its size
TEMPLATE_OF_PARTS = (
    "{% for message in messages %}<eos> {{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'text' %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<eos> this {% endif %}"
)


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    words = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins with spaces
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", model_max_length=512
    )
    made.chat_template = TEMPLATE if chat else None
    return made


def embeddings() -> torch.Tensor:
    """Token embeddings: noise, and for a word of domain d a one in column d."""
    E = 0.1 * torch.randn(len(TOKENS), HIDDEN, generator=torch.Generator().manual_seed(1))
    for column, words in enumerate(DOMAINS.values()):
        E[[TOKENS.index(word) for word in words], column] += 1
    return E


def sentences(domain: str, number: int, seed: int = 0) -> list[str]:
    """Sentences of a domain, mostly of its own words."""
    draw = random.Random(f"{domain} {seed}")
    words = [*DOMAINS[domain] * 2, *SHARED]
    return [" ".join(draw.choices(words, k=draw.randint(4, 12))) for _ in range(number)]


def token_ids(text: str) -> list[int]:
    """A text's token ids."""
    return [TOKENS.index(word) if word in TOKENS else 1 for word in text.split()]


def statistics(texts: Iterable[str], features: FeatureMap | None = None) -> DomainStatistics:
    """The statistics of a domain's texts."""
    features = features or FeatureMap()
    E = embeddings()
    collector = StatisticsCollector(features.prepare(E)(E), feature_space(tokenizer(), E, features))
    collector.add(Prompts.of([token_ids(text) for text in texts]))
    return collector.statistics


def domain_statistics(features: FeatureMap | None = None) -> dict[str, DomainStatistics]:
    """The statistics of every domain."""
    return {domain: statistics(sentences(domain, 20), features) for domain in DOMAINS}


def router(experts: dict[str, dict[str, Any]] | None = None, **config: Any) -> IR3DEModel:
    """A fitted router; `experts` adds to the specs of some."""
    specs = [{"name": name, **(experts or {}).get(name, {})} for name in DOMAINS]
    made = IR3DEConfig(experts=specs, **config)
    return IR3DEModel.from_statistics(made, embeddings(), domain_statistics(made.features), tokenizer())


def expert(folder: Path, seed: int, chat: bool, width: int = HIDDEN) -> str:
    """Saves a language model with random weights and the embeddings of this world; returns its folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.data[:, :HIDDEN] = embeddings()
    model.save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return str(folder)


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, which can write whatever there is to write."""
    names = ["<pad>", "<unk>", "<eos>", *sorted(ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, [], unk_token="<unk>"))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", model_max_length=512
    )


def seeing_expert(folder: Path, seed: int, words: PreTrainedTokenizerFast | None = None) -> str:
    """Saves a model that sees, with random weights, and its processor; returns its folder. Its chat template takes
    contents as lists of parts alone, as that of most such models.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    words = words or tokenizer()
    words.add_tokens(["<image>"], special_tokens=True)
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "initializer_range": 0.5}
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    text = LlamaConfig(vocab_size=len(words), max_position_embeddings=512, **ends, **sizes)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=HIDDEN, **sizes)
    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=image, image_seq_length=IMAGE_TOKENS)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**ends)
    model.save_pretrained(folder)
    side = {"height": 16, "width": 16}
    eyes = CLIPImageProcessorPil(size=side, crop_size=side)
    patches: dict[str, Any] = {"patch_size": 8, "num_additional_image_tokens": 1}
    patches["vision_feature_select_strategy"] = "default"
    LlavaProcessor(eyes, words, chat_template=TEMPLATE_OF_PARTS, **patches).save_pretrained(folder)
    return str(folder)
