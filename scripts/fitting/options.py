"""The options that decide how a router is fitted. Light: the command line reads them before it loads torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ir3de.choices_ir3de import FEATURE_MAPS, VARIANTS

if TYPE_CHECKING:
    from ir3de.configuration_ir3de import IR3DEConfig

AUTO = "auto"
FEW = 200  # held-out rows of a domain, below which a second opinion is worth a try
OFFER_MOST_ROWS, OFFER_MOST_CHARACTERS = (
    1000,
    200_000,
)  # that are encoded in seconds, to say what a second opinion gives
MOST_TEXTS = 500  # of a domain, that the encoder of a second opinion reads


@dataclass(frozen=True)
class FitOptions:
    """
    How a router is fitted. What is None or "auto" is chosen on held-out prompts.

    Args:
        variant (`str`): one of `VARIANTS`, or "auto".
        feature_map (`str`, *optional*): one of `FEATURE_MAPS`, or "auto" for each of them. By default those that suit
            the variants that are tried, or identity where a variant is given.
        num_features (`int`): F, of random features.
        num_votes (`int`, *optional*): k of top-k.
        regularization (`float`, *optional*): lambda.
        token_noise (`float`, *optional*): rho of prompt rows.
        lexical_weight (`float`, *optional*): of naive Bayes in prompt rows.
        discriminant (`bool`, *optional*): fit prompt rows by discriminant analysis, or not.
        standard_errors (`float`): of its distance to the best choice, that a simpler choice may be behind.
        balance (`bool`): divide each domain's sums by its number of rows.
        bias (`bool`): append a column of ones to the token rows.
        normalize_columns (`bool`): divide each column of W by its norm.
        max_length (`int`): tokens of a prompt that count.
        min_score (`float`, *optional*): of the router, below which the fallback answers, or nobody.
        min_familiarity (`float`, *optional*): likewise.
        fallback (`str`, *optional*): the expert that answers then.
    """

    variant: str = AUTO
    feature_map: str | None = None
    num_features: int = 4096
    num_votes: int | None = None
    regularization: float | None = None
    token_noise: float | None = None
    lexical_weight: float | None = None
    discriminant: bool | None = None
    standard_errors: float = 1.0
    balance: bool = True
    bias: bool = True
    normalize_columns: bool = False
    max_length: int = 1024
    min_score: float | None = None
    min_familiarity: float | None = None
    fallback: str | None = None

    def config_fields(self) -> dict[str, Any]:
        """The fields of the config that are set by hand; giving them to the config checks them before any work."""
        lambda_field = "prompt_regularization" if self.variant == "prompt" else "regularization"
        by_hand = {
            "variant": None if self.variant == AUTO else self.variant,
            "feature_map": None if self.feature_map == AUTO else self.feature_map,
            "num_votes": self.num_votes,
            lambda_field: self.regularization,
            "token_noise": self.token_noise,
            "lexical_weight": self.lexical_weight,
            "discriminant": self.discriminant,
        }
        return {
            "balance": self.balance,
            "bias": self.bias,
            "normalize_columns": self.normalize_columns,
            "num_features": self.num_features,
            "max_length": self.max_length,
            **{field: value for field, value in by_hand.items() if value is not None},
        }

    def check_minimums(self) -> None:
        """Raises ValueError where a minimum is out of range."""
        for option, value in (("--min-score", self.min_score), ("--min-familiarity", self.min_familiarity)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{option} must be between 0 and 1, got {value!r}.")

    def set_minimums(self, config: IR3DEConfig) -> None:
        """Writes minimum score and fallback into a config whose experts are known.

        Raises:
            ValueError: the fallback is none of them.
        """
        if self.min_score is not None:
            config.min_score = self.min_score
        self.check_fallback(config.expert_names)
        if self.fallback is not None:
            config.fallback_expert = self.fallback

    def check_fallback(self, experts: Sequence[str]) -> None:
        """Raises ValueError where the fallback is none of these experts."""
        if self.fallback is not None and self.fallback not in experts:
            raise ValueError(f"--fallback {self.fallback!r} is none of the experts {list(experts)}.")


def add_minimum_arguments(parser: argparse.ArgumentParser, default: str = "0: every prompt has an expert") -> None:
    """Adds the options that decide when no expert is sure enough."""
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="P",
        help=f"probability below which the fallback answers (default: {default})",
    )
    parser.add_argument(
        "--min-familiarity",
        type=float,
        metavar="SHARE",
        help="the fallback also answers what is less like the training data than this share of held-out prompts was",
    )
    parser.add_argument("--fallback", metavar="EXPERT", help="expert that answers then; without one nobody does")


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of [`FitOptions`]; what they leave open is chosen on held-out prompts."""
    parser.add_argument("--variant", choices=(AUTO, *VARIANTS), default=AUTO, help="default: on held-out prompts")
    parser.add_argument("--feature-map", choices=(AUTO, *FEATURE_MAPS), help="default: identity, or with auto: chosen")
    parser.add_argument("--num-features", type=int, default=4096, help="of rff (default: 4096)")
    parser.add_argument("--num-votes", type=int, help="k of top-k; default: chosen on held-out prompts")
    parser.add_argument("--regularization", type=float, help="lambda; default: chosen on held-out prompts")
    parser.add_argument("--token-noise", type=float, help="rho of prompt rows; default: chosen on held-out prompts")
    parser.add_argument("--lexical-weight", type=float, help="of naive Bayes in prompt rows; default: chosen likewise")
    parser.add_argument(
        "--discriminant",
        action=argparse.BooleanOptionalAction,
        help="fit prompt rows by linear discriminant analysis; default: chosen likewise with many domains, else no",
    )
    parser.add_argument(
        "--standard-errors",
        type=float,
        default=1.0,
        help="of its distance to the best choice, that a simpler choice may be behind; 0 suits prompts from the data's"
        " own sources (default: 1)",
    )
    parser.add_argument(
        "--no-balance", dest="balance", action="store_false", help="sum domains as they are: larger ones weigh more"
    )
    parser.add_argument("--no-bias", dest="bias", action="store_false", help="no column of ones in the token rows")
    parser.add_argument("--normalize-columns", action="store_true", help="divide the columns of W by their norms")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt that count (default: 1024)")
