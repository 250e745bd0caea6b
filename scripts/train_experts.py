"""`ir3de train-experts`: a LoRA adapter a domain on one base model, from the same labelled text as `fit`."""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

from ir3de.card_ir3de import markdown_table
from ir3de.scripts.command import command
from ir3de.scripts.data.rows import Row, RowSource, add_data_arguments, read_rows
from ir3de.specs_ir3de import check_expert_name

HELD_OUT_EVERY = 5
SETTINGS = "training.json"
PERPLEXITY = "perplexity.json"
_CHECKPOINTS = ".checkpoints"

Blocks = list[list[int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de train-experts`."""
    add_data_arguments(parser)
    parser.add_argument("--model", required=True, metavar="BASE", help="Hub id or folder of the base, a causal LM")
    parser.add_argument("--revision", help="revision of BASE")
    parser.add_argument("--gguf-file", help="name of the GGUF file, where the weights of BASE are GGUF")
    parser.add_argument("--base-name", help="what the adapters call their base (default: BASE)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the adapters, one subfolder each")
    parser.add_argument(
        "--held-out-where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="rows to measure perplexity on, as in --where; repeatable (default: every fifth row of --where)",
    )
    parser.add_argument("--tokens", type=int, default=25_000, help="tokens of training text a domain")
    parser.add_argument("--held-out-tokens", type=int, default=5_000, help="tokens of held-out text a domain")
    parser.add_argument("--epochs", type=int, default=1, help="times that the training text is read")
    parser.add_argument("--block", type=int, default=256, help="tokens of context in training and measuring")
    parser.add_argument("--batch-size", type=int, default=4, help="blocks a step")
    parser.add_argument("--rank", type=int, default=4, help="rank of LoRA, on every linear layer but the last")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Trains the adapters that the folder does not have yet, and measures each on every domain."""
    where = {key: value for key in ("revision", "gguf_file") if (value := getattr(args, key)) is not None}
    output = _open_output(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model, **where)
    train, held_out = _blocks(args, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, **where)
    base.is_quantized = False  # GGUF weights were expanded, which the Trainer does not know
    model = _with_adapters(base, sorted(train), args)
    for domain, blocks in sorted(train.items()):
        if (output / domain / "adapter_config.json").is_file():
            model.load_adapter(output / domain, domain)
            print(f"{domain}: trained before", flush=True)
        else:
            train_adapter(model, domain, blocks, args)
            save_adapter(model, domain, output / domain, args.base_name or args.model)
    shutil.rmtree(output / _CHECKPOINTS, ignore_errors=True)
    table = perplexities(model, held_out)
    (output / PERPLEXITY).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(describe(table))
    return 0


def _open_output(args: argparse.Namespace) -> Path:
    """Makes the folder, or checks that it was begun with the same options.

    Raises:
        ValueError: it was begun with others.
    """
    output = Path(args.output)
    settings = {key: value for key, value in vars(args).items() if key not in ("command", "output")}
    file = output / SETTINGS
    if file.is_file() and (begun := json.loads(file.read_text(encoding="utf-8"))) != settings:
        other = sorted(key for key in settings if begun.get(key) != settings[key])
        raise ValueError(
            f"{output} holds adapters trained with other options ({', '.join(other)} differ). Repeat them to resume, or"
            " give another --output."
        )
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return output


def _blocks(args: argparse.Namespace, tokenizer: Any) -> tuple[dict[str, Blocks], dict[str, Blocks]]:
    """The training and the held-out text of each domain, in blocks of tokens.

    Raises:
        ValueError: a domain's training or held-out text does not fill a block.
    """
    source = RowSource.from_args(args)
    rows = _by_domain(read_rows(source))
    if args.held_out_where:
        held_out = _by_domain(read_rows(replace(source, where=tuple(args.held_out_where))))
    else:
        held_out = {domain: texts[::HELD_OUT_EVERY] for domain, texts in rows.items()}
        rows = {d: [t for i, t in enumerate(texts) if i % HELD_OUT_EVERY] for d, texts in rows.items()}
    parts = []
    for texts, most, name in ((rows, args.tokens, "training"), (held_out, args.held_out_tokens, "held-out")):
        part = {check_expert_name(domain): pack(texts.get(domain, []), tokenizer, args, most) for domain in rows}
        for domain, blocks in part.items():
            if not blocks:
                raise ValueError(f"The {name} text of {domain!r} has fewer than {args.block} tokens (--block).")
        parts.append(part)
    return parts[0], parts[1]


def _by_domain(rows: Iterable[Row]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[row.domain].append(row.text)
    return texts


def pack(texts: list[str], tokenizer: Any, args: argparse.Namespace, most: int) -> Blocks:
    """Shuffles texts, joins them with the end-of-text token and cuts `most` tokens into blocks, all of one length."""
    texts = random.Random(args.seed).sample(texts, len(texts))
    ids: list[int] = []
    for text in texts:
        if len(ids) >= most:
            break
        ids += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
    return [ids[i : i + args.block] for i in range(0, min(most, len(ids)) - args.block + 1, args.block)]


def _with_adapters(model: Any, domains: list[str], args: argparse.Namespace) -> Any:
    """The base with a fresh adapter a domain."""
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise ImportError("Training adapters needs peft: `pip install ir3de[adapters]`.") from error
    set_seed(args.seed)
    kwargs = {"r": args.rank, "lora_alpha": 2 * args.rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = PeftModel(model, LoraConfig(**kwargs), adapter_name=domains[0])
    for domain in domains[1:]:
        model.add_adapter(domain, LoraConfig(**kwargs))
    return model


def train_adapter(model: Any, domain: str, blocks: Blocks, args: argparse.Namespace) -> None:
    """Trains one adapter; a run that was cut off goes on from its last checkpoint."""
    model.set_adapter(domain)
    checkpoints = Path(args.output) / _CHECKPOINTS / domain
    trainer = Trainer(
        model=model,
        train_dataset=[{"input_ids": block, "labels": block} for block in blocks],  # type: ignore[arg-type]
        args=TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            logging_steps=5,
            save_steps=10,
            save_total_limit=1,
            seed=args.seed,
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
    state = get_peft_model_state_dict(model, adapter_name=domain, save_embedding_layers=False)
    weights = {key: value.to("cpu", torch.float16).contiguous() for key, value in state.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[domain]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)


def perplexities(model: Any, held_out: dict[str, Blocks]) -> dict[str, dict[str, float]]:
    """Perplexity of the base and of each adapter (outer keys) on the held-out text of each domain (inner keys)."""
    model.eval()
    table: dict[str, dict[str, float]] = {}
    for name in tqdm(["base", *sorted(held_out)], desc="Measuring", unit=" models", disable=None):
        if name == "base":
            with model.disable_adapter():
                table[name] = {domain: _perplexity(model, blocks) for domain, blocks in held_out.items()}
        else:
            model.set_adapter(name)
            table[name] = {domain: _perplexity(model, blocks) for domain, blocks in held_out.items()}
    return table


@torch.inference_mode()
def _perplexity(model: Any, blocks: Blocks) -> float:
    losses = []
    for start in range(0, len(blocks), 4):
        input_ids = torch.tensor(blocks[start : start + 4], device=model.device)
        losses += [float(model(input_ids=input_ids, labels=input_ids).loss)] * len(input_ids)
    return math.exp(sum(losses) / len(losses))


def describe(table: dict[str, dict[str, float]]) -> str:
    """The perplexities as a table in Markdown, and for each domain how far its own adapter is below the base."""
    rows = []
    for domain in sorted(table["base"]):
        below = 1 - table[domain][domain] / table["base"][domain]
        rows.append([domain, *(f"{row[domain]:.2f}" for row in table.values()), f"{below:.1%}"])
    return markdown_table(["held-out text of", *table, "own below base"], rows, numbers=len(table) + 1)


main = command("train-experts", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
