"""An encoder fine-tuned to classify prompts, with the interface of a scikit-learn classifier."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from ir3de.scripts.metrics.measures import Array, Integers

_BATCH = 32


class SequenceClassifier:
    """
    A sequence classifier of transformers.

    Args:
        name (`str`): Hub id or folder of the encoder.
        seed (`int`): of the new layer's weights and of the order of the prompts.
        epochs (`int`): passes over the training prompts.
        learning_rate (`float`): of AdamW, after a linear warm-up.
        max_tokens (`int`): of a text that are read, the encoder's own tokens.

    Raises:
        OSError: the encoder cannot be found.
    """

    def __init__(
        self, name: str, seed: int = 0, epochs: int = 3, learning_rate: float = 5e-5, max_tokens: int = 256
    ) -> None:
        self.name, self.seed, self.epochs, self.learning_rate = name, seed, epochs, learning_rate
        self.max_tokens = max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def fit(self, X: NDArray[Any], labels: Integers) -> SequenceClassifier:
        """Fine-tunes on texts and their labels, which count from 0."""
        torch.manual_seed(self.seed)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            self.name, num_labels=int(labels.max()) + 1, ignore_mismatched_sizes=True
        )
        rows = [{**self._encode(text), "label": int(label)} for text, label in zip(X, labels, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(
                folder,
                num_train_epochs=self.epochs,
                learning_rate=self.learning_rate,
                warmup_steps=0.1,
                per_device_train_batch_size=_BATCH,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                dataloader_pin_memory=False,
                disable_tqdm=not sys.stderr.isatty(),
                seed=self.seed,
            )
            collator = DataCollatorWithPadding(self.tokenizer)
            trainer = Trainer(self.model, options, train_dataset=rows, data_collator=collator)  # type: ignore[arg-type]
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        self.model.eval()
        return self

    def predict_proba(self, X: NDArray[Any]) -> Array:
        """Probabilities of shape `(texts, labels)`."""
        order = np.argsort([len(text) for text in X])
        p = np.empty((len(X), self.model.config.num_labels))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                batch = order[start : start + _BATCH]
                inputs = self.tokenizer.pad([self._encode(X[i]) for i in batch], return_tensors="pt")
                p[batch] = self.model(**inputs.to(self.model.device)).logits.double().softmax(dim=1).cpu()
        return p

    def _encode(self, text: str) -> dict[str, list[int]]:
        return dict(self.tokenizer(text, truncation=True, max_length=self.max_tokens))
