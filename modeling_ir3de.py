"""The router as a transformers model: embeddings, W, the token table, and the statistics behind W."""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.initialization import no_init_weights
from transformers.utils.generic import ModelOutput

from .batch_ir3de import Prompts, batches
from .configuration_ir3de import IR3DEConfig, check_choice, check_half_life
from .displacement_ir3de import Scorer, Separated, Solved, displaced
from .edits_ir3de import (
    Experts,
    check_days,
    check_displaced,
    check_new,
    count_outcomes,
    edited,
    experts_of,
    feedback_of,
    read_experts,
    read_statistics,
    statistics_of,
)
from .familiarity_ir3de import Familiarity, FamiliarityScale, TokenFamiliarity, familiarity_table
from .images_ir3de import Picture  # noqa: F401 (travels with the model, which must name each file)
from .loading_ir3de import loading  # noqa: F401 (likewise)
from .names_ir3de import file_name  # noqa: F401 (likewise)
from .outcome_rows_ir3de import read_outcomes  # noqa: F401 (likewise)
from .outcomes_ir3de import Ledger
from .outlook_ir3de import Outlook  # noqa: F401 (likewise)
from .policy_ir3de import Panel
from .portable_ir3de import private_parts  # noqa: F401 (likewise)
from .prompts_ir3de import token_ids_of
from .repository_ir3de import RouterRepository
from .route_selector_ir3de import MEANS, TokenTable, contributions, decisive, probabilities, select
from .samples_ir3de import Sample  # noqa: F401 (travels with the model, which must name each file)
from .specs_ir3de import ExpertSpec, served
from .statistics_ir3de import (
    DOCUMENTS,
    DomainStatistics,
    FeatureSpace,
    StatisticsCollector,
    check_token_ids,
    fingerprint,
    one_thread,
    threads_of_this_process,
    total,
)
from .token_router_ir3de import FeatureMap, Problem, discriminant, log_odds, mean_diagonal, ridge

PROBE = "Prove that 3x + 5 = 20 has one root;\n\tdef f(x): return x ** 2  # 'L'été' 東京"
_P = ParamSpec("_P")
_EDITING = threading.RLock()  # held during an edit; these two are one for all routers, since a router can be pickled
_CHANGING = threading.Lock()  # held for the moment in which an edit takes effect
_REMEMBERED = 10_000  # scores of answers that may be changed
_CHUNK = 8192  # rows of the vocabulary that are scored at a time
T = TypeVar("T")


@dataclass
class IR3DEOutput(ModelOutput):
    """
    What the router says of a batch of prompts.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): cross-entropy, where `labels` were given.
        logits (`torch.Tensor` of shape `(batch, domains)`): scores of the domains, float64; the arg max is the route
            and the softmax a distribution over the experts.
        entropies (`torch.Tensor` of shape `(batch, tokens)`, *optional*): in nats, +inf for padding.
        votes (`torch.Tensor` of shape `(batch, tokens)`, *optional*): each token's arg max, -1 for padding.
        counted (`torch.Tensor` of shape `(batch, tokens)`, *optional*): true for the tokens that decided.
        contributions (`torch.Tensor` of shape `(batch, tokens, domains)`, *optional*): what each token adds to each
            domain. Over the tokens they sum to the logits where a mean decides, and to their softmax where tokens vote.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    votes: torch.Tensor | None = None
    counted: torch.Tensor | None = None
    contributions: torch.Tensor | None = None


def _one_at_a_time(edit: Callable[_P, T]) -> Callable[_P, T]:
    """An edit that begins when the one before it is done, so that none is lost."""

    @functools.wraps(edit)
    def done(*args: _P.args, **kwargs: _P.kwargs) -> T:
        """The edit, once no other is under way."""
        with _EDITING:
            return edit(*args, **kwargs)

    return done


class IR3DEModel(RouterRepository):
    """
    A linear token router over frozen token embeddings (arXiv 2606.06098).

    W is solved from the statistics of each domain. It may instead be trained with `labels`, as any transformers
    model; the next [`IR3DEModel.fit`] replaces what training found by the closed form.

    Args:
        config ([`IR3DEConfig`]): with at least one expert.

    Raises:
        ValueError: the config has no experts, no embeddings, or a field out of range.
    """

    config_class = IR3DEConfig
    config: IR3DEConfig
    base_model_prefix = "ir3de"
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = [  # type: ignore[misc]
        "token_router",
        "prompt_router",
        "lexicon",
        "familiarity_table",
        "outside",
    ]

    def __init__(self, config: IR3DEConfig) -> None:
        config.check()
        experts, domains = config.expert_names, config.domain_names
        if not experts or not domains or config.vocab_size < 1 or config.hidden_size < 1:
            raise ValueError(
                f"A router needs experts and embeddings, but the config has {len(experts)} experts, vocab_size"
                f" {config.vocab_size} and hidden_size {config.hidden_size}. Fit one with `ir3de fit`."
            )
        super().__init__(config)
        width = config.features.width(config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_tokens.requires_grad_(False)
        self.token_router = nn.Linear(width, len(domains), bias=config.bias)
        self.prompt_router = nn.Linear(width, len(domains), bias=config.discriminant)
        self.lexicon = nn.Embedding(config.vocab_size, len(domains)) if config.lexical_weight else None
        self.familiarity_table = self.outside = None
        if config.familiarity:
            scale = FamiliarityScale.read(config.familiarity)
            self.familiarity_table = nn.Embedding(config.vocab_size, len(domains) + scale.columns)
            if scale.outside is not None:
                # In how many prompts of no domain each token occurs: none, until it is told.
                self.outside = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, 1))
        self._panel: tuple[object, Panel] | None = None
        self._given: dict[tuple[str, str], Ledger] = {}  # by record and expert; never changed in place
        self._derived: dict[str, tuple[object, list[torch.Tensor], Any, tuple[torch.Tensor, ...]]] = {}
        self.post_init()

    # Routing: section 3.2.

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        variant: str | None = None,
        num_votes: int | None = None,
        output_tokens: bool = False,
    ) -> IR3DEOutput:
        """Routes a batch of prompts.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`): token ids, padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 0 for padding, which never counts.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*): index of each prompt's domain. Gives a `loss`
                that is differentiable in W: over tokens where tokens vote, over prompts where their mean decides.
            variant (`str`, *optional*): instead of the config's.
            num_votes (`int`, *optional*): instead of the config's.
            output_tokens (`bool`): also return `entropies`, `votes`, `counted` and `contributions`.

        Raises:
            ValueError: a prompt has no tokens, a token id has no embedding, or an option is out of range.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        prompts = Prompts(input_ids[mask], mask.sum(dim=1))
        variant, num_votes = self._checked(prompts, variant, num_votes)
        if labels is None:
            table = self.token_table(variant)
        else:  # a table of this batch's tokens alone, through which gradients flow to W
            distinct, places = prompts.token_ids.unique(return_inverse=True)
            logits = self._token_logits(distinct, variant)
            table = TokenTable.of(logits, variant, self._constants(variant))
            prompts = Prompts(places, prompts.lengths)
        scores = select(table, prompts, variant, num_votes)
        output = IR3DEOutput(logits=scores)
        if labels is not None and variant in MEANS:
            output.loss = F.cross_entropy(scores, labels)
        elif labels is not None:
            output.loss = F.cross_entropy(logits[prompts.token_ids], labels.repeat_interleave(prompts.lengths))
        if output_tokens:
            counted = decisive(table, prompts, variant, num_votes)
            added = contributions(table, prompts, variant, counted)
            output.entropies = _padded(table.entropies[prompts.token_ids], mask, torch.inf)
            output.votes = _padded(table.votes[prompts.token_ids].long(), mask, -1)
            output.counted = _padded(counted, mask, False)
            output.contributions = _padded(added, mask, 0)
        return output

    def route(
        self, token_ids: torch.Tensor, lengths: torch.Tensor, variant: str | None = None, num_votes: int | None = None
    ) -> torch.Tensor:
        """The `logits` of [`IR3DEModel.forward`] for prompts of any lengths, without padding.

        Args:
            token_ids (`torch.Tensor` of shape `(sum of lengths,)`): the prompts' token ids one after another.
            lengths (`torch.Tensor` of shape `(batch,)`): tokens of each prompt.
            variant (`str`, *optional*): instead of the config's.
            num_votes (`int`, *optional*): instead of the config's.

        Raises:
            ValueError: a prompt has no tokens, a token id has no embedding, or an option is out of range.
        """
        prompts = Prompts(token_ids, lengths)
        variant, num_votes = self._checked(prompts, variant, num_votes)
        table = self.token_table(variant)
        logits = [select(table, part, variant, num_votes) for part in batches(prompts)]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def familiarity(self, prompts: Prompts, logits: torch.Tensor | None = None) -> list[float] | None:
        """How much prompts are like what the router was fitted on.

        Args:
            prompts ([`Prompts`]): each of at least one token.
            logits (`torch.Tensor` of shape `(batch, domains)`, *optional*): of [`IR3DEModel.route`] by the config's own
                variant, where they are at hand.

        Returns:
            `list[float]`: for each prompt the share of held-out prompts that were less familiar; None where the router
            does not tell.
        """
        tells = self._familiarity_teller()
        if tells is None:
            return None
        return tells.of(prompts, self.route(*prompts) if logits is None else logits)

    def token_familiarity(self, token_ids: torch.Tensor) -> list[TokenFamiliarity] | None:
        """What each token of a prompt has to do with the prompt's familiarity; None where the router does not tell.

        Args:
            token_ids (`torch.Tensor` of shape `(tokens,)`): of one prompt, at least one.
        """
        tells = self._familiarity_teller()
        return None if tells is None else tells.of_tokens(token_ids)

    def _familiarity_teller(self) -> Familiarity | None:
        """Who tells familiarity, if the router does."""
        if self.config.familiarity is None:
            return None
        module: Any = self._modules["familiarity_table"]
        table: torch.Tensor = module._parameters["weight"]
        # Kept beside what `_derive` makes; its look at E would take longer than all of this.
        kept = self._derived.get("familiarity")
        if kept is None or kept[3][0] is not table or kept[0] != table._version:
            made = Familiarity(table, FamiliarityScale.read(self.config.familiarity))
            self._derived["familiarity"] = kept = table._version, [], made, (table,)
        tells: Familiarity = kept[2]
        return None if tells.rests else tells

    @_one_at_a_time
    def set_familiarity(self, scale: FamiliarityScale, outside: torch.Tensor | None = None) -> None:
        """Sets another yardstick of familiarity, and what is known of prompts of no domain.

        Args:
            scale ([`FamiliarityScale`]): measured on held-out prompts.
            outside (`torch.Tensor` of shape `(V,)`, *optional*): in how many of the prompts from outside, which are
                `scale.outside.prompts`, each token occurs; it is saved with the router, and edits keep to it.

        Raises:
            ValueError: one of scale and `outside` speaks of prompts from outside, and the other does not.
        """
        if (scale.outside is None) != (outside is None):
            raise ValueError("The scale and `outside` must both speak of prompts from outside, or neither.")
        config = copy.copy(self.config)
        config.familiarity = scale.as_config()
        device = self.embed_tokens.weight.device
        known = None if outside is None else nn.Embedding.from_pretrained(outside.float().unsqueeze(1).to(device))
        table = _familiarity(config, [self.statistics[name] for name in config.domain_names], device, known)
        with _CHANGING:
            self.config.familiarity = config.familiarity
            self.familiarity_table, self.outside = table, known

    def _checked(self, prompts: Prompts, variant: str | None, num_votes: int | None) -> tuple[str, int]:
        """How a batch is routed, once that and the batch have been checked."""
        threads_of_this_process()
        config = self.config
        variant = config.variant if variant is None else variant
        num_votes = config.num_votes if num_votes is None else num_votes
        check_choice(variant, num_votes)
        check_not_empty(prompts.lengths)
        check_token_ids(prompts.token_ids, config.vocab_size)
        return variant, num_votes

    def token_table(self, variant: str | None = None) -> TokenTable:
        """What every token of the vocabulary says, made on first use and again whenever E or W has changed.

        Args:
            variant (`str`, *optional*): the prompt rows' W speaks in `"prompt"`, the token rows' in all others.
        """
        variant = variant or self.config.variant
        router = self.prompt_router if variant == "prompt" else self.token_router

        def make() -> TokenTable:
            """Scores the vocabulary, part by part."""
            # Without the lower precision that a caller may ask for, since the table outlives the call.
            with torch.no_grad(), torch.autocast(router.weight.device.type, enabled=False):
                starts = range(0, self.config.vocab_size, _CHUNK)
                logits = (self._token_logits(slice(start, start + _CHUNK), variant) for start in starts)
                rows, votes, entropies, _ = zip(*(TokenTable.of(part, variant) for part in logits), strict=True)
                bias = self._constants(variant)
                constants = None if bias is None else bias.clone()
            return TokenTable(torch.cat(rows), torch.cat(votes), torch.cat(entropies), constants)

        weights = [router.weight] if router.bias is None else [router.weight, router.bias]
        lexicon = [] if variant != "prompt" or self.lexicon is None else [self.lexicon.weight]
        return self._derive(variant if variant in MEANS else "votes", make, weights, *lexicon)

    def _token_logits(self, token_ids: torch.Tensor | slice, variant: str) -> torch.Tensor:
        """What tokens say of each domain, of shape `(tokens, domains)`.

        Of copies, since on some processors it depends on where factors lie in memory how a product is rounded, and
        weights that are mapped from a file lie elsewhere than those that were fitted.
        """
        router = self.prompt_router if variant == "prompt" else self.token_router
        features = self._features(self.embed_tokens.weight[token_ids].clone())
        # In float32 where the router was loaded in float64, which transformers lets all weights be.
        bias = None if router.bias is None or variant == "prompt" else router.bias.float()
        logits = F.linear(features, router.weight.clone().float(), bias)
        if variant != "prompt":
            return logits
        return logits if self.lexicon is None else logits + self.lexicon.weight[token_ids].float()  # type: ignore[no-any-return]

    def _constants(self, variant: str) -> torch.Tensor | None:
        """What a prompt's scores gain whatever its tokens, `(domains,)`: something by discriminant analysis alone."""
        bias = self.prompt_router.bias if variant == "prompt" else None
        return None if bias is None else bias.float()

    @property
    def _features(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The feature map of this vocabulary."""
        return self._derive("features", lambda: self.config.features.prepare(self.embed_tokens.weight.detach()))

    def _derive(
        self, name: str, make: Callable[[], T], weights: Sequence[torch.Tensor] = (), *tables: torch.Tensor
    ) -> T:
        """Something computed from E, other tables as large, and small weights, kept until one of them changes.

        Weights may change by whatever means; of tables, which are too large to compare, torch must know.
        """
        state = [(table.data_ptr(), table._version, table.device) for table in (self.embed_tokens.weight, *tables)]
        kept = self._derived.get(name)
        if kept is None or kept[0] != state or not all(map(_equal, kept[1], weights)):
            # The tables are kept too, so that no other one can come to lie where they did.
            self._derived[name] = kept = state, [weight.detach().clone() for weight in weights], make(), tables
        return kept[2]  # type: ignore[no-any-return]

    def copy(self) -> IR3DEModel:
        """A copy to edit apart from this router. They share what edits never change in place: embeddings, tokenizer,
        statistics, and tables until W differs.
        """
        shared = [self.embed_tokens, self.tokenizer, *self.statistics.values(), self.outcomes, self._given]
        second = self.second_opinion
        now = self.as_it_is_now()
        made = copy.deepcopy(now, {id(second): copy.copy(second), **{id(each): each for each in shared}})
        made._derived = dict(now._derived)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: all but the tables, which are made again there."""
        return {**self.__dict__, "_derived": {}}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> IR3DEModel:
        """Moves or casts as `.to()`, `.half()` and the like ask; W and the lexicon move, but stay in their precision,
        as they do where a router is loaded in another one.
        """

        def move(tensor: torch.Tensor) -> torch.Tensor:
            """To where it shall be."""
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        for name, module in self.named_children():
            module._apply(move if name in self._keep_in_fp32_modules_strict else fn, recurse)
        return self

    def as_it_is_now(self) -> IR3DEModel:
        """This router at one moment: edits by other threads do not reach it. It shares everything, and costs nothing.

        An edit puts new layers, specs and statistics in the place of the old, which stay as they are; so it is enough
        to hold on to those of the moment.
        """
        now: IR3DEModel = object.__new__(type(self))
        config = object.__new__(type(self.config))
        with _CHANGING:
            now.__dict__.update(self.__dict__)
            now.__dict__["_modules"] = dict(self._modules)
            config.__dict__.update(self.config.__dict__)
        now.__dict__["config"] = config
        return now

    def forget_tables(self) -> None:
        """Frees the tables of the vocabulary, which the next route makes again: of a router that is kept, but rests."""
        self._derived = {name: kept for name, kept in self._derived.items() if name in ("features", "space")}

    # Fitting: section 3.1.

    @classmethod
    def from_statistics(
        cls,
        config: IR3DEConfig,
        embeddings: torch.Tensor,
        statistics: Mapping[str, DomainStatistics],
        tokenizer: PreTrainedTokenizerBase,
    ) -> IR3DEModel:
        """Makes a router from the statistics of its domains.

        Args:
            config ([`IR3DEConfig`]): its experts are the domains.
            embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings that the statistics were collected with.
            statistics (`Mapping[str, DomainStatistics]`): of each domain.
            tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings; saved with the router.

        Raises:
            ValueError: domains and experts differ, or statistics, tokenizer and embeddings do not belong together.
        """
        model = cls.from_embeddings(config, embeddings, tokenizer)
        model.fit(statistics)
        return model

    @classmethod
    def from_embeddings(
        cls, config: IR3DEConfig, embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> IR3DEModel:
        """Makes a router that is yet to be fitted, for [`IR3DEModel.collector`] and then [`IR3DEModel.fit`].

        Args:
            config ([`IR3DEConfig`]): with the experts.
            embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
            tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings; saved with the router.

        Raises:
            ValueError: tokenizer and embeddings do not belong together.
        """
        config.vocab_size, config.hidden_size = embeddings.shape
        with no_init_weights():  # E is given, and W is solved
            model = cls(config)
        model.embed_tokens.weight = nn.Parameter(embeddings.detach().clone(), requires_grad=False)
        model._tokenizer = tokenizer
        config.fingerprint = model._feature_space
        model.eval()
        return model

    def fit(self, statistics: Mapping[str, DomainStatistics] | None = None) -> None:
        """Solves W from the statistics, its own or those given, which then become its own.

        Args:
            statistics (`Mapping[str, DomainStatistics]`, *optional*): of each expert's domain.

        Raises:
            ValueError: domains and experts differ, or a domain's statistics are of another feature space. The router
                is as before.
        """
        self._become(self.config, dict(self.statistics if statistics is None else statistics), self.outcomes)

    def _become(
        self,
        config: IR3DEConfig,
        statistics: dict[str, DomainStatistics],
        outcomes: Ledger,
        *second_opinion: Any,
        accept: Callable[[Scorer], None] | None = None,
    ) -> None:
        """Solves W for the domains of a config; only if that succeeds, and `accept` does not object, the router takes
        on its domains and experts, all at once.
        """
        names = config.domain_names
        if set(statistics) != set(names):
            raise ValueError(
                f"Statistics and {'experts' if config.domains is None else 'config'} must name the same domains: no"
                f" statistics for {sorted(set(names) - set(statistics))}, no"
                f" {'expert' if config.domains is None else 'domain'} for {sorted(set(statistics) - set(names))}."
            )
        for name in names:
            check_feature_space(name, statistics[name], config)
        with one_thread():
            domains = [statistics[name] for name in names]
            W_tokens, W_prompts = _solve(config, domains)
            if not bool(W_tokens.isfinite().all() and W_prompts.isfinite().all()):
                raise ValueError(
                    f"The sums of {', '.join(names)} together are too large to solve W from: leave out what was added"
                    " last. The router is as before."
                )
            lexicon = _lexicon(config, domains, self.embed_tokens.weight.device)
            familiarity = _familiarity(config, domains, self.embed_tokens.weight.device, self.outside)
        token_router, prompt_router = _filled(self.token_router, W_tokens), _filled(self.prompt_router, W_prompts)
        if accept is not None:
            accept(_scorer(config, domains, token_router, prompt_router, lexicon))
        with _CHANGING:
            self.token_router = token_router
            self.prompt_router = prompt_router
            self.lexicon, self.familiarity_table = lexicon, familiarity
            self._take_on(config, outcomes)
            self._statistics = statistics
            for second in second_opinion:  # none where it is to stay
                self.second_opinion = second

    def _take_on(self, config: IR3DEConfig, outcomes: Ledger) -> None:
        """Takes on the domains and experts of a config, and their outcomes."""
        self.config.set_experts(config.specs, config.domain_names)
        self.config.measured_on, self.config.judged = config.measured_on, config.judged
        self.config.joined = config.joined
        self._outcomes = outcomes

    @property
    def panel(self) -> Panel:
        """What the router knows of its experts when it chooses: made anew when specs or outcomes are others."""
        state = (self.config.specs, self.config.domain_names, self.outcomes, self.config.half_life)
        if self._panel is None or self._panel[0] != state:
            self._panel = (*copy.deepcopy(state[:2]), *state[2:]), Panel.of(*state)
        return self._panel[1]

    def recognise(self, texts: list[str]) -> torch.Tensor:
        """Calibrated probabilities of the domains, `(texts, D)`, float64.

        Raises:
            ValueError: a text has no tokens.
        """
        prompts = Prompts.of(token_ids_of(self.tokenizer, texts, self.config.max_length)).to(self.device)
        with torch.inference_mode():
            logits = self.route(*prompts).cpu()
        return probabilities(logits, **(self.config.calibration or {}))

    def collector(self, device: str | torch.device = "cpu") -> StatisticsCollector:
        """A collector of statistics in this router's feature space.

        Args:
            device (`str` or `torch.device`): where the bulk of the summing is done; one that knows float64.

        Raises:
            ValueError: the embeddings are not those the router was fitted on, as when loaded in another dtype.
        """
        E = self.embed_tokens.weight.detach()
        if self._feature_space != self.config.fingerprint:
            raise ValueError(
                f"The embeddings, here in {E.dtype}, are not those that the router was fitted on: load it without"
                " `dtype` to collect statistics."
            )
        with one_thread():
            phi = self.config.features.table(E)
        return StatisticsCollector(phi, self._feature_space, device)

    @property
    def space(self) -> FeatureSpace:
        """What the router's statistics lie in."""
        return self.config.space

    def tokenize(self, texts: list[str]) -> Prompts:
        """Texts as the router reads them; those without a token are left out."""
        return Prompts.of([ids for ids in token_ids_of(self.tokenizer, texts, self.config.max_length) if ids])

    @property
    def _feature_space(self) -> str:
        """The fingerprint of the tokenizer with the embeddings as they are now."""
        E, features = self.embed_tokens.weight.detach(), self.config.features

        def make() -> str:
            """Hashes tokenizer and embeddings."""
            with one_thread():
                return feature_space(self.tokenizer, E, features)

        return self._derive("space", make)

    # Edits: each checks everything, solves W anew, and only then changes the router. Its second opinion, if any,
    # follows: it forgets whom the router forgets, and learns what a merged router's knows. Of an expert that joins with
    # texts or statistics it knows nothing until its own `add_expert` is called.

    @_one_at_a_time
    def add_expert(
        self, spec: str | ExpertSpec, texts: Iterable[str] | None = None, statistics: Any = None, own: bool = False
    ) -> None:
        """Adds an expert, with the domain of its name or without.

        Args:
            spec (`str` or [`ExpertSpec`]): its name, or its spec; see [`ExpertSpec`].
            texts (`Iterable[str]`, *optional*): text of its domain, which joins too. The others' text is not needed,
                and how much there was does not matter.
            statistics (`DomainStatistics`, path, or a list of these, *optional*): of its domain, instead of texts.
                Neither is needed where the spec has `domains`: those that it serves, maybe none.
            own (`bool`): whether the statistics are of text that you know, and may take prompts of other domains. Texts
                always may.

        Raises:
            ValueError: spec or statistics are malformed, the name is taken, or a contribution is here already. The
                router is as before.
        """
        name = spec if isinstance(spec, str) else str(spec.get("name"))
        alone = texts is None and statistics is None and not isinstance(spec, str)
        if alone and ("domains" in spec or name in self.config.domain_names):
            self._edit(experts_of(self).with_expert(spec))
        elif alone:
            raise ValueError(
                f"Expert {name!r} needs `texts` of its domain, or `statistics` of it, or in its spec `domains` that are"
                f" here already, of {self.config.domain_names}. On the command line: `ir3de add` takes --data or"
                " --statistics; `ir3de experts --add` takes domains=[...]."
            )
        else:
            new = self._new(name, texts, statistics)
            self._edit(experts_of(self).with_expert(spec, new), own=own or texts is not None)

    @_one_at_a_time
    def set_expert(self, spec: ExpertSpec) -> None:
        """Gives an expert another spec; its domain and its outcomes stay.

        Args:
            spec ([`ExpertSpec`]): whole, under the name of the expert.

        Raises:
            ValueError: the spec is malformed, or there is no such expert. The router is as before.
        """
        self._edit(experts_of(self).with_spec(spec))

    @_one_at_a_time
    def add_domain(
        self, name: str, texts: Iterable[str] | None = None, statistics: Any = None, own: bool = False
    ) -> None:
        """Adds a domain that is recognised; an expert is not needed.

        Args:
            name (`str`): of the domain.
            texts (`Iterable[str]`, *optional*): text of it.
            statistics (`DomainStatistics`, path, or a list of these, *optional*): of it, instead of texts.
            own (`bool`): as in [`IR3DEModel.add_expert`].

        Raises:
            ValueError: name or statistics are malformed, the name is taken, or a contribution is here already. The
                router is as before.
        """
        new = self._new(name, texts, statistics)
        self._edit(experts_of(self).with_domain(name, new), own=own or texts is not None)

    @_one_at_a_time
    def remove_domain(self, name: str) -> None:
        """Removes a domain; who served it serves the others that it did. Outcomes in it rest until it is there again.

        Raises:
            ValueError: there is no such domain, or it is the last. The router is as before.
        """
        rest = experts_of(self).without_domain(name)
        if not rest.statistics:
            raise ValueError(f"{name!r} is the last domain, and a router needs one. Add another before removing it.")
        self._edit(rest)

    @_one_at_a_time
    def add_outcomes(self, source: Any, where: Mapping[str, str] | None = None) -> Ledger:
        """Adds what experts did on prompts: their scores, and costs, seconds and tokens where they are known.

        Args:
            source (`Any`): JSON Lines, plain or `.gz`; rows in memory; or a [`Ledger`]. See [`read_outcomes`]. Rows are
                read in a stream; prompts whose domain they do not say count in each by the router's probabilities.
            where (`Mapping[str, str]`, *optional*): only rows with these values, such as `{"split": "train"}`.

        Returns:
            [`Ledger`]: what was added, to remove it again.

        Raises:
            ValueError: a row is malformed, names an unknown expert or domain, or the outcomes are here already. The
                router is as before.
        """
        new = self._counted(source, where)
        self._set_outcomes(self.outcomes.with_new(new))
        return new

    @_one_at_a_time
    def remove_outcomes(self, source: Any, where: Mapping[str, str] | None = None) -> None:
        """Removes outcomes that were added together: the router is then, bit for bit, the one that never had them.

        Args:
            source, where: of [`IR3DEModel.add_outcomes`], or what it returned.

        Raises:
            ValueError: they were not added as they are now. The router is as before.
        """
        self._set_outcomes(self.outcomes.without(self._counted(source, where)))

    @_one_at_a_time
    def replace_outcomes(self, old: Ledger, new: Ledger) -> None:
        """Removes outcomes and adds others, in one step.

        Args:
            old ([`Ledger`]): what leaves.
            new ([`Ledger`]): what joins.

        Raises:
            ValueError: outcomes that are to leave are not here, or some that are to join are. The router is as before.
        """
        self._set_outcomes(self.outcomes.without(self._counted(old)).with_new(self._counted(new)))

    @_one_at_a_time
    def set_half_life(self, days: float | None) -> None:
        """Sets after how many days outcomes count half.

        Args:
            days (`float`, *optional*): None for never.

        Raises:
            ValueError: this is no number of days. The router is as before.
        """
        check_half_life(days)
        Panel.of(self.config.specs, self.config.domain_names, self.outcomes, days)  # sums that are too large show here
        self.config.half_life = days

    @_one_at_a_time
    def add_feedback(
        self, record: Mapping[str, Any], score: float, cost: float | None = None, seconds: float | None = None
    ) -> Ledger:
        """Adds what the answer of a record was worth; see [`IR3DERoutingPipeline.feedback`]."""
        new = self._counted(feedback_of(record, score, cost, seconds))
        answer = (record["id"], record["expert"])
        earlier, rest = self._given.get(answer, new), self.outcomes
        if earlier != new:
            with suppress(ValueError):  # it was removed meanwhile
                rest = rest.without(earlier)
        self._set_outcomes(rest.with_new(new))
        others = [(key, given) for key, given in self._given.items() if key != answer]
        self._given = dict([*others[1 - _REMEMBERED :], (answer, new)])
        return new

    def _set_outcomes(self, outcomes: Ledger) -> None:
        """Takes on other outcomes, once they are checked. W has no part in it, so that statistics are not read."""
        check_days(self.outcomes, outcomes)
        # Sums that are too large show here.
        Panel.of(self.config.specs, self.config.domain_names, outcomes, self.config.half_life)
        with _CHANGING:
            self._outcomes = outcomes
            self.config.judged = sorted(outcomes.contributions) or None

    def _counted(self, source: Any, where: Mapping[str, str] | None = None) -> Ledger:
        """The ledger of a source."""
        if isinstance(source, Ledger):
            unknown = sorted(source.contributions.keys() - {*self.config.expert_names})
            if unknown:
                raise ValueError(f"There are no experts {unknown}; this router's are {self.config.expert_names}.")
            return source
        return count_outcomes(source, where, self.config.expert_names, self.config.domain_names, self.recognise)

    @_one_at_a_time
    def remove_expert(self, name: str) -> None:
        """Removes an expert and its outcomes: the router is then, bit for bit, the one that never had it.

        The domain of its name leaves with it, unless another expert serves it or was judged in it.

        Raises:
            ValueError: there is no such expert, it is the last, or it is the fallback. The router is as before.
        """
        rest = experts_of(self).without(name)
        if not rest.specs or not rest.statistics:
            raise ValueError(f"{name!r} is the last expert, and a router needs one. Add another before removing it.")
        self._edit(rest)

    @_one_at_a_time
    def replace_expert(
        self,
        name: str,
        spec: str | ExpertSpec,
        texts: Iterable[str] | None = None,
        statistics: Any = None,
        own: bool = False,
    ) -> None:
        """Puts an expert in another's place.

        Args:
            name (`str`): of the expert that leaves.
            spec (`str` or [`ExpertSpec`]): of the one that comes, under the same name or a new one.
            texts (`Iterable[str]`, *optional*): text of its domain. Without texts and statistics it takes over those of
                the expert that leaves.
            statistics (`DomainStatistics`, path, or a list of these, *optional*): of its domain.
            own (`bool`): as in [`IR3DEModel.add_expert`].

        Raises:
            ValueError: as in [`IR3DEModel.add_expert`] and [`IR3DEModel.remove_expert`]. The router is as before.
        """
        here = experts_of(self)
        rest, second = here.without(name), None
        new = name if isinstance(spec, str) else str(spec.get("name"))
        if texts is None and statistics is None:
            if name in rest.statistics or name not in here.statistics:  # its domain, if any, concerns others: it stays
                inherited: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
                self._edit(rest.with_expert({"domains": served(here.specs[name]), **inherited}))
                return
            statistics, second = here.statistics[name], here.second.get(name)
        own = own or texts is not None
        self._edit(rest.with_expert(spec, self._new(new, texts, statistics), second), own)

    @_one_at_a_time
    def merge(self, *sources: Any, own: bool = False) -> None:
        """Merges other routers or statistics: domains, experts and outcomes that are new join, known domains gain
        contributions. A domain that comes as statistics alone gets an expert that only routes.

        Args:
            sources (`Any`): each a router, the folder or Hub id of one, a statistics file that is named after its
                domain, or a mapping of domains to statistics.
            own (`bool`): as in [`IR3DEModel.add_expert`].

        Raises:
            ValueError: a source is malformed, of another feature space, brings nothing new, or would take other
                domains' prompts. The router is as before.
        """
        second = None if self.second_opinion is None else self.second_opinion.space
        merged = experts_of(self)
        for source in sources:
            merged = merged.union(read_experts(source, self.space, type(self).from_pretrained, second))
        self._edit(merged, own)

    def without_joined(self) -> IR3DEModel | None:
        """A copy without the contributions of others that joined since the router was measured, to show what these add
        up to.

        Returns:
            [`IR3DEModel`], *optional*: None where none joined, or nothing would be left.
        """
        joined = {*(self.config.joined or ())}
        rest = {name: domain.only(domain.contributions.keys() - joined) for name, domain in self.statistics.items()}
        kept = {name: domain for name, domain in rest.items() if domain.contributions}
        if not joined or not kept:
            return None
        made = self.copy()
        for name in rest.keys() - kept.keys():
            made.remove_domain(name)
        made.fit(kept)
        return made

    def _new(self, name: str, texts: Iterable[str] | None, statistics: Any) -> DomainStatistics:
        """The statistics of a domain that is to join, from either source."""
        if (texts is None) == (statistics is None):
            raise ValueError(f"Expert {name!r} needs either `texts` of its domain or `statistics` of it.")
        if texts is None:
            return read_statistics(statistics, name, self.space)
        return statistics_of(name, texts, self.collector(), self.tokenize)

    def _edit(self, experts: Experts, own: bool = False) -> None:
        """Takes on other experts, once everything that is new has been checked: less where it was collected here."""
        before = experts_of(self)
        new = check_new(before, experts, self.config, self.embed_tokens.weight.detach(), own)
        config = edited(self.config, before, experts, own)
        check_days(before.outcomes, experts.outcomes)
        # Sums that are too large show here.
        Panel.of(config.specs, config.domain_names, experts.outcomes, config.half_life)
        second = self.second_opinion and self.second_opinion.having(experts.second)
        if experts.statistics == before.statistics:  # W stays
            with _CHANGING:
                self._take_on(config, experts.outcomes)
                self.second_opinion = second
        else:
            accept = None
            if new and not own:
                scorer = self.scorer

                def accept(changed: Scorer) -> None:
                    """Raises where too many prompts would go elsewhere."""
                    check_displaced(displaced(before.statistics, scorer, changed), changed.way)

            self._become(config, experts.statistics, experts.outcomes, second, accept=accept)

    @property
    def scorer(self) -> Scorer:
        """What prompts are scored with, to compare it with what they were or will be scored with."""
        domains = [self.statistics[name] for name in self.config.domain_names]
        return _scorer(self.config, domains, self.token_router, self.prompt_router, self.lexicon)


def _scorer(
    config: IR3DEConfig,
    domains: list[DomainStatistics],
    token_router: nn.Linear,
    prompt_router: nn.Linear,
    lexicon: nn.Embedding | None,
) -> Scorer:
    """What the config's variant scores prompts with, and what that was solved with from the statistics of domains."""
    by_prompts = config.variant == "prompt"
    router = prompt_router if by_prompts else token_router
    W = router.weight.T if router.bias is None else torch.cat([router.weight.T, router.bias.unsqueeze(0)])
    words = lexicon.weight if by_prompts and lexicon is not None else None
    kind = "prompts" if by_prompts else "tokens"
    even = by_prompts or config.balance
    solved: Solved | Separated
    with one_thread():
        of_tokens, of_prompts = _problems(config, domains)
        problem = of_prompts if by_prompts else of_tokens
        if by_prompts and config.discriminant:
            solved = Separated.of(problem)
        else:
            solved = Solved.of(problem, [1 / domain.rows(kind) if even else 1.0 for domain in domains])
    return Scorer(kind, list(config.domain_names), W, solved, words)


def _solve(config: IR3DEConfig, domains: list[DomainStatistics]) -> tuple[torch.Tensor, torch.Tensor]:
    """W of the token rows and W of the prompt rows, which has no bias but the constants of discriminant analysis."""
    of_tokens, of_prompts = _problems(config, domains)
    if config.discriminant:
        return ridge(*of_tokens), discriminant(*of_prompts[:3])
    return ridge(*of_tokens), ridge(*of_prompts)


def _problems(config: IR3DEConfig, domains: list[DomainStatistics]) -> tuple[Problem, Problem]:
    """What W of the token rows and W of the prompt rows solve.

    The prompt rows' A is given token noise: rho times the balanced A over the token rows. That is what A gains in
    expectation when prompts lose and gain single tokens at random, since a prompt's row is a sum over its tokens, and
    if each is dropped or doubled independently the expected A grows by its own outer product. This regularizer in
    closed form (Wager, Wang and Liang 2013 for dropout) keeps W from leaning on few tokens, which unseen sources
    reward.
    """
    A, B = total(domains, "tokens", config.balance)
    of_tokens = Problem(A, B, config.regularization, config.bias, config.normalize_columns)
    noise = A if config.balance else total(domains, "tokens", balance=True)[0]
    A, B = total(domains, "prompts", balance=True)
    value = config.prompt_regularization
    if value is None:
        value = 1e-3 * mean_diagonal(A)
    return of_tokens, Problem(A.add_(noise, alpha=config.token_noise), B, value, bias=False)


def _lexicon(config: IR3DEConfig, domains: list[DomainStatistics], device: torch.device) -> nn.Embedding | None:
    """What naive Bayes adds to each token's scores: nothing where the config does not ask for it."""
    if not config.lexical_weight:
        return None
    documents = _documents(config, domains, "its lexical part")
    if documents is None:
        table = torch.zeros(config.vocab_size, len(domains))
    else:
        table = (config.lexical_weight * log_odds(documents, config.lexical_smoothing)).float()
    return nn.Embedding.from_pretrained(table.to(device))  # type: ignore[no-any-return]


def _familiarity(
    config: IR3DEConfig, domains: list[DomainStatistics], device: torch.device, outside: nn.Embedding | None
) -> nn.Embedding | None:
    """What each token says of familiarity: nothing where the config has no yardstick for it."""
    if not config.familiarity:
        return None
    scale = FamiliarityScale.read(config.familiarity)
    share = scale.outside
    if share is not None and outside is None:
        raise ValueError("`familiarity` speaks of prompts from outside, of which this router knows none.")
    told = None if share is None or outside is None else (outside.weight[:, 0].cpu(), share.prompts)
    documents = _documents(config, domains, "telling how familiar prompts are")
    if documents is None:
        table = torch.zeros(config.vocab_size, len(domains) + scale.columns)
    else:
        table = familiarity_table(documents, sum(domain.rows("prompts") for domain in domains), told)
    return nn.Embedding.from_pretrained(table.to(device))  # type: ignore[no-any-return]


def _documents(config: IR3DEConfig, domains: list[DomainStatistics], without: str) -> list[torch.Tensor] | None:
    """In how many prompts of each domain tokens occur; None, with a warning of what the router goes without, where a
    domain keeps that back.
    """
    told, silent = [], []
    for name, domain in zip(config.domain_names, domains, strict=True):
        if domain.documents is None:
            silent.append(name)
        else:
            told.append(domain.documents)
    if not silent:
        return told
    warnings.warn(
        f"The statistics of {silent} do not tell how many prompts tokens occur in, so the router goes without"
        f" {without}. Contributions of `ir3de collect` tell it, but for those of its private mode.",
        stacklevel=3,
    )
    return None


def _filled(router: nn.Linear, W: torch.Tensor) -> nn.Linear:
    """A new layer like this one with W, whose last row is the bias if it has one; threads may still use the old one."""
    at, mode, bias = router.weight, router.training, len(W) > router.in_features
    router = nn.utils.skip_init(
        nn.Linear, router.in_features, W.shape[1], bias, device=at.device, dtype=at.dtype
    ).train(mode)
    with torch.no_grad():
        router.weight.copy_(W[: router.in_features].T)
        if router.bias is not None:
            router.bias.copy_(W[-1])
    return router


def _equal(weight: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal. On the CPU NumPy compares them, since torch takes longer for it than for a route,
    and wakes other threads, which experts may keep busy.
    """
    if weight.device.type != "cpu":
        return torch.equal(weight, other)
    mine, others = weight.detach().float().numpy(), other.detach().float().numpy()
    return mine.shape == others.shape and bool((mine == others).all())  # what `np.array_equal` does after conversions


def check_not_empty(lengths: torch.Tensor) -> None:
    """Raises ValueError where one of the prompts of these lengths has no tokens."""
    if lengths.numel() and not int(lengths.min()):
        empty = lengths.tolist().index(0)
        raise ValueError(f"Prompt {empty} of the batch has no tokens, only padding: nothing to route on.")


def _padded(values: torch.Tensor, mask: torch.Tensor, fill: float) -> torch.Tensor:
    """Values of each token, one prompt after another, where the mask is true; elsewhere `fill`."""
    full = values.new_full((*mask.shape, *values.shape[1:]), fill)
    full[mask] = values
    return full


def feature_space(tokenizer: PreTrainedTokenizerBase, embeddings: torch.Tensor, features: FeatureMap) -> str:
    """The fingerprint of a tokenizer with its embeddings and the feature map on them.

    Raises:
        ValueError: the tokenizer has more tokens than the embeddings have rows.
    """
    if len(tokenizer) > len(embeddings):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the embeddings {len(embeddings)} rows: they do not belong"
            " together. Take both from the same model."
        )
    probe = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return fingerprint(tokenizer.get_vocab(), probe, embeddings, features.description)


def check_feature_space(name: str, statistics: DomainStatistics, config: IR3DEConfig) -> None:
    """Raises ValueError where a domain's statistics are not of the router's feature space."""
    config.space.check(f"of {name!r}", statistics.space)
    for key, kinds in statistics.contributions.items():
        if len(kinds.get(DOCUMENTS, range(config.vocab_size))) != config.vocab_size:
            raise ValueError(
                f"Contribution {key} to {name!r} counts {len(kinds[DOCUMENTS])} tokens, but this router's vocabulary"
                f" has {config.vocab_size}. Have it collected again."
            )


IR3DEConfig.register_for_auto_class()
IR3DEModel.register_for_auto_class("AutoModel")
