"""LoRA adapters, one a domain on one base model: their text, training, and what each is worth on every domain."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

from ir3de.atomic_save_ir3de import writing_tensors
from ir3de.card_ir3de import markdown_table
from ir3de.names_ir3de import check_names, file_name
from ir3de.scripts.data.rows import RowSource, by_domain, read_rows

HELD_OUT_EVERY = 5
SETTINGS = "training.json"
PERPLEXITY = "perplexity.json"
_CHECKPOINTS = ".checkpoints"

Blocks = list[list[int]]


@dataclass(frozen=True)
class Base:
    """
    The model that is trained on.

    Args:
        model (`str`): Hub id or folder of a causal LM.
        revision (`str`, *optional*): of it.
        gguf_file (`str`, *optional*): name of the file, where its weights are GGUF.
        base_name (`str`, *optional*): what the adapters call it, by default `model`.
    """

    model: str
    revision: str | None
    gguf_file: str | None
    base_name: str | None

    @property
    def where(self) -> dict[str, str]:
        """What `from_pretrained` is told beside its name."""
        given = {"revision": self.revision, "gguf_file": self.gguf_file}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class TextOptions:
    """
    The text that is read.

    Args:
        train (`RowSource`): rows to train on.
        held_out (`RowSource`, *optional*): rows to measure on; by default every fifth of `train`.
        tokens (`int`): of training text a domain.
        held_out_tokens (`int`): of held-out text a domain.
        block (`int`): tokens of context.
        seed (`int`): of the order of the texts.
    """

    train: RowSource
    held_out: RowSource | None
    tokens: int
    held_out_tokens: int
    block: int
    seed: int


@dataclass(frozen=True)
class TrainingOptions:
    """
    How adapters are trained.

    Args:
        epochs (`int`): times that the training text is read.
        batch_size (`int`): blocks a step.
        rank (`int`): of LoRA.
        learning_rate (`float`): the highest.
        seed (`int`): of the new weights and of the order of the blocks.
    """

    epochs: int
    batch_size: int
    rank: int
    learning_rate: float
    seed: int


def train_experts(
    base: Base, text: TextOptions, training: TrainingOptions, output: Path
) -> dict[str, dict[str, float]]:
    """Trains the adapters that the folder does not have yet, and measures each on every domain.

    Args:
        base ([`Base`]): to train on.
        text ([`TextOptions`]): to read.
        training ([`TrainingOptions`]): how.
        output (`Path`): folder for the adapters, one subfolder each, and `perplexity.json`.

    Returns:
        `dict[str, dict[str, float]]`: see [`measure_perplexities`].
    """
    tokenizer = AutoTokenizer.from_pretrained(base.model, **base.where)
    train, held_out = read_blocks(text, tokenizer)
    llm: Any = AutoModelForCausalLM.from_pretrained(base.model, dtype=torch.float32, **base.where)
    llm.is_quantized = False  # GGUF weights were expanded, which the Trainer does not know
    model = add_adapters(llm, sorted(train), training)
    for domain, blocks in sorted(train.items()):
        if (output / file_name(domain) / "adapter_config.json").is_file():
            model.load_adapter(output / file_name(domain), adapter_name(domain))
            print(f"{domain}: trained before", flush=True)
        else:
            train_adapter(model, domain, blocks, training, output / _CHECKPOINTS / file_name(domain))
            save_adapter(model, domain, output / file_name(domain), base.base_name or base.model)
    shutil.rmtree(output / _CHECKPOINTS, ignore_errors=True)
    table = measure_perplexities(model, held_out)
    (output / PERPLEXITY).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return table


def open_output(output: Path, settings: Mapping[str, object]) -> None:
    """Makes the folder, or checks that it was begun with the same options.

    Args:
        output (`Path`): the folder.
        settings (`Mapping[str, object]`): the options by name; the folder keeps them.

    Raises:
        ValueError: it was begun with others.
    """
    file = output / SETTINGS
    if file.is_file():
        begun = json.loads(file.read_text(encoding="utf-8"))
        other = sorted(key for key in settings if begun.get(key) != settings[key])
        if begun != settings:
            raise ValueError(
                f"{output} holds adapters trained with other options ({', '.join(other)} differ). Repeat them to"
                " resume, or give another --output."
            )
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_blocks(options: TextOptions, tokenizer: Any) -> tuple[dict[str, Blocks], dict[str, Blocks]]:
    """Reads the training and the held-out text of each domain, in blocks of tokens.

    Raises:
        ValueError: a domain's training or held-out text does not fill a block.
    """
    train = by_domain(read_rows(options.train))
    if options.held_out:
        held_out = by_domain(read_rows(options.held_out))
    else:
        held_out = {domain: texts[::HELD_OUT_EVERY] for domain, texts in train.items()}
        for kept in train.values():
            del kept[::HELD_OUT_EVERY]
    domains = list(train)
    check_names(domains)
    parts = []
    for texts, most, name in ((train, options.tokens, "training"), (held_out, options.held_out_tokens, "held-out")):
        part = {}
        for domain in domains:
            part[domain] = pack(texts.get(domain, []), tokenizer, options.block, most, options.seed)
            if not part[domain]:
                raise ValueError(f"The {name} text of {domain!r} has fewer than {options.block} tokens (--block).")
        parts.append(part)
    return parts[0], parts[1]


def pack(texts: Sequence[str], tokenizer: Any, block: int, most: int, seed: int) -> Blocks:
    """Shuffles texts, joins them with the end-of-text token and cuts them into blocks.

    Args:
        texts (`Sequence[str]`): of one domain.
        tokenizer (`PreTrainedTokenizerBase`): of the base.
        block (`int`): tokens of a block; what does not fill the last one is left out.
        most (`int`): tokens of all blocks.
        seed (`int`): of the order.
    """
    ids: list[int] = []
    for text in random.Random(seed).sample(texts, len(texts)):
        if len(ids) >= most:
            break
        ids += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
    end = min(most, len(ids))
    return [ids[start : start + block] for start in range(0, end - block + 1, block)]


def add_adapters(base: Any, domains: Sequence[str], options: TrainingOptions) -> Any:
    """The base with a fresh adapter a domain."""
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise ImportError('Training adapters needs peft: `pip install "ir3de[adapters]"`.') from error

    def lora() -> LoraConfig:
        """The config of one adapter."""
        return LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )

    first, *others = map(adapter_name, domains)
    set_seed(options.seed)
    model = PeftModel(base, lora(), adapter_name=first)
    for other in others:
        model.add_adapter(other, lora())
    return model


def adapter_name(domain: str) -> str:
    """What PEFT calls a domain's adapter, as a module of torch and as a folder of checkpoints: neither may be called
    `a.b` or `keys`, and no such name may be a part of another.
    """
    return f"adapter_{hashlib.sha256(domain.encode()).hexdigest()[:16]}"


def train_adapter(model: Any, domain: str, blocks: Blocks, options: TrainingOptions, checkpoints: Path) -> None:
    """Trains one adapter; a run that was cut off goes on from its last checkpoint.

    Args:
        model (`PeftModel`): the base with its adapters.
        domain (`str`): whose adapter.
        blocks (`list[list[int]]`): token ids, all blocks of one length.
        options ([`TrainingOptions`]): how.
        checkpoints (`Path`): folder of this adapter's checkpoints.
    """
    model.set_adapter(adapter_name(domain))
    trainer = Trainer(
        model=model,
        train_dataset=[{"input_ids": block, "labels": block} for block in blocks],  # type: ignore[arg-type]
        args=TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            logging_steps=5,
            save_steps=10,
            save_total_limit=1,
            seed=options.seed,
            report_to="none",
            disable_tqdm=None,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
    )
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")))


def save_adapter(model: Any, domain: str, folder: Path, base: str) -> None:
    """Writes one adapter, weights in float16, its config last: a folder with one is complete."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name(domain), save_embedding_layers=False)
    weights = {key: value.to("cpu", torch.float16).contiguous() for key, value in state.items()}
    file = folder / "adapter_model.safetensors"
    with writing_tensors(file):
        save_file(weights, file, metadata={"format": "pt"})
    config = model.peft_config[adapter_name(domain)]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)


def measure_perplexities(model: Any, held_out: dict[str, Blocks]) -> dict[str, dict[str, float]]:
    """Perplexity of the base and of each adapter (outer keys) on the held-out text of each domain (inner keys)."""
    model.eval()

    def measure() -> dict[str, float]:
        """Perplexity of the model as it is set, by domain."""
        return {domain: _perplexity(model, blocks) for domain, blocks in held_out.items()}

    with model.disable_adapter():
        table = {"base": measure()}
    for domain in tqdm(sorted(held_out), desc="Measuring", unit=" models", disable=None):
        model.set_adapter(adapter_name(domain))
        table[domain] = measure()
    return table


@torch.inference_mode()
def _perplexity(model: Any, blocks: Blocks) -> float:
    losses: list[float] = []
    for start in range(0, len(blocks), 4):
        input_ids = torch.tensor(blocks[start : start + 4], device=model.device)
        loss = float(model(input_ids=input_ids, labels=input_ids).loss)  # of the batch; blocks are of one length
        losses += [loss] * len(input_ids)
    return math.exp(sum(losses) / len(losses))


def describe(table: dict[str, dict[str, float]]) -> str:
    """The perplexities as a table in Markdown, and for each domain how far its own adapter is below the base."""
    rows = []
    for domain in sorted(table["base"]):
        below = 1 - table[domain][domain] / table["base"][domain]
        rows.append([domain, *(f"{row[domain]:.2f}" for row in table.values()), f"{below:.1%}"])
    return markdown_table(["held-out text of", *table, "own below base"], rows, numbers=len(table) + 1)
