"""Which answers to have judged, where not all can be: any.

Choosing those by which the choice of an expert is least settled was tried, and was not better on every set: see "What
to judge next" in docs/traffic.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir3de.scripts.judging.questions import Question
from ir3de.specs_ir3de import ExpertSpec

Job = tuple[ExpertSpec, Question]


def some_of(jobs: Sequence[Job], number: int, seed: int = 0) -> list[Job]:
    """So many jobs at random, in their order.

    Args:
        jobs (`Sequence`): experts and questions.
        number (`int`): how many.
        seed (`int`): of the choice.
    """
    kept = np.random.default_rng(seed).permutation(len(jobs))[:number]
    return [jobs[index] for index in sorted(kept.tolist())]
