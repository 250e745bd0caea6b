"""Configuration of an IR3DE router: its shape, its choices and the experts that it routes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from transformers import PreTrainedConfig

from .choices_ir3de import BUDGET_ENDS, BUDGET_PERIODS, FEATURE_MAPS, VARIANTS
from .familiarity_ir3de import FamiliarityScale
from .names_ir3de import check_names
from .route_selector_ir3de import check_calibration
from .specs_ir3de import ExpertSpec, check_expert, is_number, nearest_name
from .statistics_ir3de import FeatureSpace
from .token_router_ir3de import SMOOTHING, FeatureMap

_MOST_WHOLE = 2**63 - 1  # of torch
# Left out of config.json where unset.
_OPTIONAL = ("domains", "judged", "half_life", "explore_loss", "budget", "joined")
_HALF_LIVES = (1e-2, 1e6)  # days
# Above these float32 would make W or the features infinite, or the same for all domains.
_MOST = {
    "regularization": 1e30,
    "prompt_regularization": 1e30,
    "length_scale": 1e6,
    "token_noise": 1e30,
    "lexical_weight": 1e9,
    "lexical_smoothing": 1e9,
}


def check_choice(variant: object, num_votes: object) -> None:
    """Raises ValueError unless these say how a prompt is routed."""
    if variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    _check_positive("num_votes", num_votes)


def check_half_life(days: object) -> None:
    """Raises ValueError unless this is a number of days, or None."""
    least, most = _HALF_LIVES
    if days is not None and not (is_number(days) and least <= days <= most):
        raise ValueError(f"`half_life` must be a number of days from {least:g} to {most:g}, or None; got {days!r}.")


def check_budget(budget: object) -> None:
    """Raises ValueError unless this says what may be spent in a period, or is None."""
    if budget is None:
        return
    said = budget if isinstance(budget, Mapping) else {}
    cost, per, end = said.get("cost"), said.get("per"), said.get("end", BUDGET_ENDS[0])
    if not (
        is_number(cost)
        and cost > 0
        and per in BUDGET_PERIODS
        and end in BUDGET_ENDS
        and len(said) <= 2 + ("end" in said)
    ):
        raise ValueError(
            "`budget` must have a `cost` above 0 and as `per` one of"
            f" {', '.join(BUDGET_PERIODS)}, and may have as `end` one of {', '.join(BUDGET_ENDS)}, as in"
            f' {{"cost": 20, "per": "day"}}; or be None. Got {budget!r}.'
        )


def _check_joined(keys: object) -> None:
    """Raises ValueError where this is no list of contributions."""
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError(f"`joined` must be a list of the ids of contributions, got {str(keys)[:200]}.")


def _check_positive(field: str, value: object) -> None:
    if not _is_whole(value) or not 1 <= value <= _MOST_WHOLE:
        raise ValueError(f"`{field}` must be a whole number of at least 1 and below 2^63, got {value!r}.")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


class IR3DEConfig(PreTrainedConfig):
    """
    Configuration of an [`IR3DEModel`].

    Args:
        vocab_size (`int`): V, the number of rows of the token embeddings.
        hidden_size (`int`): h, the number of columns of the token embeddings.
        experts (`list[ExpertSpec]`): who answers; for the keys of a spec see [`ExpertSpec`]. Kept sorted by name, so
            that the same set of experts is the same router whatever the order of the edits that led to it.
        domains (`list[str]`, *optional*): what is recognised, the columns of W, sorted; by default the experts' names,
            since each domain has an expert of its own then.
        judged (`list[str]`, *optional*): the experts that have outcomes, each with a file of them.
        half_life (`float`, *optional*): days after which outcomes count half; by default they always count whole.
        variant (`str`): how the tokens of a prompt decide (section 3.2): `"top-k"` (the `num_votes` tokens of lowest
            entropy vote), `"all"` (every token votes) or `"avg"` (the mean embedding decides); or `"prompt"`, where W
            is fitted on a row a prompt instead of a row a token.
        num_votes (`int`): k, how many tokens vote in `"top-k"`.
        regularization (`float`): lambda of the ridge regression on token rows, in the units of the (balanced) sums.
        prompt_regularization (`float`, *optional*): lambda of the ridge regression on prompt rows, which are always
            balanced and have no bias; by default a thousandth of the mean diagonal of A.
        token_noise (`float`): rho, how much random loss of single tokens the prompt rows are fitted to withstand.
        discriminant (`bool`): fit the prompt rows by linear discriminant analysis instead of ridge regression, which
            gives each domain a constant; it serves where domains are many.
        lexical_weight (`float`): how much naive Bayes, from the numbers of prompts that tokens occur in, adds to the
            scores of `"prompt"`. It rests while a domain keeps these numbers back.
        lexical_smoothing (`float`): prompts of each domain that naive Bayes adds to those that a token occurs in.
        balance (`bool`): divide each domain's sums by its number of rows, so that no domain outweighs another.
        bias (`bool`): append a column of ones to the embeddings.
        normalize_columns (`bool`): divide each column of W by its norm, as the authors' code does.
        feature_map (`str`): what a token's features are: `"identity"`, its embedding; `"unit"`, the embedding less the
            vocabulary's mean, scaled to length one; `"rff"`, random Fourier features of the latter.
        num_features (`int`): F, the number of random features, even.
        length_scale (`float`): of the Gaussian kernel that the random features stand for.
        feature_seed (`int`): of the random features, which are rebuilt from it.
        max_length (`int`): tokens of a prompt that count, from its beginning.
        embedding_model (`str`, *optional*): where the embeddings came from.
        embedding_revision (`str`, *optional*): its revision.
        embedding_gguf_file (`str`, *optional*): its GGUF file, where the weights are GGUF.
        fingerprint (`str`, *optional*): of tokenizer and embeddings; statistics of another one are refused.
        calibration (`dict`, *optional*): `temperature` and `spread` that make scores probabilities.
        min_score (`float`): a probability; prompts whose best expert scores less go to the fallback.
        fallback_expert (`str`, *optional*): who answers those; by default nobody does.
        familiarity (`dict`, *optional*): the yardstick by which records tell how much a prompt is like what the router
            was fitted on, measured on held-out prompts: see [`FamiliarityScale`].
        min_familiarity (`float`): the share of held-out prompts that were less familiar, 0 to 1; prompts that are less
            familiar than that go to the fallback too.
        explore_loss (`float`, *optional*): what a choice may be expected to lose, in score, for learning of others than
            the best expert; by default nothing. See [`Policy`].
        budget (`dict`, *optional*): what a gateway that serves the router may spend, in the unit of the experts' costs:
            `cost`, a number above 0, and `per`, one of `"hour"`, `"day"` and `"month"`; and maybe `end`, who answers
            once it is spent: `"cheapest"` expert (the default) or nobody, `"refuse"`. Nothing else heeds it.
        evaluation (`dict`, *optional*): what was measured when the router was fitted.
        measured_on (`str`, *optional*): names the set of contributions that `evaluation` and `calibration` were
            measured with, where edits have changed it since.
        joined (`list[str]`, *optional*): the contributions of others that joined since the router was measured.
        datasets (`list[str]`, *optional*): ids of the Hub data sets that the router was fitted on.

    Example:

    ```python
    >>> from ir3de import IR3DEConfig
    >>> config = IR3DEConfig(vocab_size=49152, hidden_size=576, experts=[{"name": "math"}, {"name": "law"}])
    >>> config.id2label
    {0: 'law', 1: 'math'}

    ```
    """

    model_type = "ir3de"
    # transformers looks for aliases of a field and for layers that differ first, neither of which there are here: ten
    # fields that a route reads would take a tenth of it (`short_cuts` of scripts/bench/scale.py).
    __getattribute__ = object.__getattribute__

    vocab_size: int = 0
    hidden_size: int = 0
    experts: list[ExpertSpec] | None = None
    domains: list[str] | None = None
    judged: list[str] | None = None
    half_life: float | int | None = None
    variant: str = "top-k"
    num_votes: int = 10
    regularization: float | int = 1e-5
    prompt_regularization: float | int | None = None
    token_noise: float | int = 1
    discriminant: bool = False
    lexical_weight: float | int = 0
    lexical_smoothing: float | int = SMOOTHING
    balance: bool = True
    bias: bool = True
    normalize_columns: bool = False
    feature_map: str = "identity"
    num_features: int = 4096
    length_scale: float | int = 1.4142135623730951
    feature_seed: int = 0
    max_length: int = 1024
    embedding_model: str | None = None
    embedding_revision: str | None = None
    embedding_gguf_file: str | None = None
    fingerprint: str | None = None
    calibration: dict[str, float] | None = None
    min_score: float | int = 0
    fallback_expert: str | None = None
    familiarity: dict[str, Any] | None = None
    min_familiarity: float | int = 0
    explore_loss: float | int | None = None
    budget: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    measured_on: str | None = None
    joined: list[str] | None = None
    datasets: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.set_experts(self.experts or [])
        kwargs.update(id2label=self.id2label, label2id=self.label2id)
        self.check()
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as config.json has them: without those of domains and outcomes where there is nothing to say."""
        fields: dict[str, Any] = super().to_dict()
        return {key: value for key, value in fields.items() if value is not None or key not in _OPTIONAL}

    @property
    def specs(self) -> list[ExpertSpec]:
        """The experts' specs, sorted by name."""
        return self.experts or []

    @property
    def expert_names(self) -> list[str]:
        """The experts' names, sorted."""
        return [spec["name"] for spec in self.specs]

    @property
    def domain_names(self) -> list[str]:
        """The domains' names in the order of the columns of W."""
        return self.expert_names if self.domains is None else self.domains

    @property
    def features(self) -> FeatureMap:
        """The feature map that the fields describe."""
        return FeatureMap(self.feature_map, self.num_features, float(self.length_scale), self.feature_seed)

    @property
    def space(self) -> FeatureSpace:
        """What the statistics must lie in."""
        return FeatureSpace(str(self.fingerprint), self.features.width(self.hidden_size) + 1)

    def set_experts(
        self, experts: Sequence[ExpertSpec | Mapping[str, object]], domains: Sequence[str] | None = None
    ) -> None:
        """Sets the experts, and the domains with the labels that follow from them.

        Args:
            experts (`Sequence[ExpertSpec]`): their specs.
            domains (`Sequence[str]`, *optional*): instead of those that the config has.

        Raises:
            ValueError: a spec is malformed or serves a domain that there is not, or two names are not told apart by
                people or by file systems.
        """
        clean = sorted(map(check_expert, experts), key=lambda spec: spec["name"])
        names = [spec["name"] for spec in clean]
        check_names(names)
        given = self.domains if domains is None else domains
        check_names(given or (), "domains")
        self.domains = None if given is None or sorted(given) == names else sorted(given)
        self.experts = clean
        for spec in clean:
            for domain in spec.get("domains", ()):
                if domain not in self.domain_names:
                    raise ValueError(
                        f"`domains` of expert {spec['name']!r} names {domain!r}, which is no domain of this router:"
                        f" {self.domain_names}.{nearest_name(domain, self.domain_names)}"
                    )
        self.id2label = dict(enumerate(self.domain_names))
        self.label2id = {name: index for index, name in self.id2label.items()}

    def check(self) -> None:
        """Checks the fields; the model calls it again because overrides at load time bypass the constructor.

        Raises:
            ValueError: a field is out of range, so that routes would be the same for all prompts, reversed or not those
                that were measured; the message names the field, the value and what is expected.
        """
        check_choice(self.variant, self.num_votes)
        _check_positive("max_length", self.max_length)
        self._check_numbers()
        for field in ("balance", "bias", "normalize_columns", "discriminant"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"`{field}` must be true or false, got {getattr(self, field)!r}.")
        if self.calibration is not None:
            check_calibration(self.calibration)
        if not is_number(self.min_score) or not 0 <= self.min_score <= 1:
            raise ValueError(f"`min_score` is a probability, between 0 and 1; got {self.min_score!r}.")
        if not is_number(self.min_familiarity) or not 0 <= self.min_familiarity <= 1:
            raise ValueError(f"`min_familiarity` is a share, between 0 and 1; got {self.min_familiarity!r}.")
        if self.familiarity is not None:
            FamiliarityScale.read(self.familiarity)
        elif self.min_familiarity:
            raise ValueError(
                "`min_familiarity` needs a router that tells familiarity, and the config has no `familiarity`: `ir3de"
                " fit` measures it."
            )
        if self.fallback_expert is not None and self.fallback_expert not in self.expert_names:
            raise ValueError(f"`fallback_expert` {self.fallback_expert!r} is none of {self.expert_names}.")
        if unknown := sorted({*(self.judged or ())} - {*self.expert_names}):
            raise ValueError(f"`judged` names {unknown}, which are none of the experts {self.expert_names}.")
        _check_joined(self.joined)
        check_half_life(self.half_life)
        check_budget(self.budget)
        if self.feature_map not in FEATURE_MAPS:
            raise ValueError(f"`feature_map` must be one of {', '.join(FEATURE_MAPS)}; got {self.feature_map!r}.")
        if not _is_whole(self.num_features) or self.num_features < 2 or self.num_features % 2:
            raise ValueError(f"`num_features` must be an even number of at least 2, got {self.num_features!r}.")
        if not _is_whole(self.feature_seed) or not -_MOST_WHOLE <= self.feature_seed <= _MOST_WHOLE:
            raise ValueError(f"`feature_seed` must be a whole number of at most 63 bits, got {self.feature_seed!r}.")

    def _check_numbers(self) -> None:
        """Raises ValueError where a number is out of range."""
        if self.explore_loss is not None and (not is_number(self.explore_loss) or not 0 <= self.explore_loss <= 1):
            raise ValueError(f"`explore_loss` is a score, between 0 and 1; got {self.explore_loss!r}.")
        for field in ("regularization", "prompt_regularization", "length_scale", "lexical_smoothing"):
            value = getattr(self, field)
            if field == "prompt_regularization" and value is None:
                continue
            if not is_number(value) or not 0 < value <= _MOST[field]:
                raise ValueError(
                    f"`{field}` must be a number above 0 and up to {_MOST[field]:g}, got {value!r}: without a positive"
                    " lambda A + lambda I need not be invertible, without a positive scale there is no kernel, and"
                    " without smoothing a token that a domain never had excludes it."
                )
        for field in ("token_noise", "lexical_weight"):
            value = getattr(self, field)
            if not is_number(value) or not 0 <= value <= _MOST[field]:
                raise ValueError(f"`{field}` must be a number from 0 to {_MOST[field]:g}, got {value!r}.")
