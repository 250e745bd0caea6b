"""Where a router was loaded from and goes to: a folder or the Hub, with all that travels with its weights."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from .atomic_save_ir3de import CONFIG, OUTCOMES_FOLDER, SECOND_FOLDER, STATISTICS_FOLDER, current, reading, staged
from .card_ir3de import CARD_NAME, FRONTIER_NAME, PLOT_NAME, read_card, update_card
from .configuration_ir3de import IR3DEConfig
from .loading_ir3de import loading, without_bars
from .names_ir3de import file_name
from .outcomes_ir3de import Ledger
from .portable_ir3de import check_portable, with_adapters
from .samples_ir3de import SAMPLES_NAME, Sample, checked_samples, read_samples, write_samples
from .second_opinion_ir3de import SecondOpinion
from .specs_ir3de import ExpertSpec
from .statistics_ir3de import (
    DomainStatistics,
    read_header,
)

_HUB_KEYS = ("cache_dir", "local_files_only", "token", "subfolder")
_PUSH_KEYS = (
    *("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr"),
    "allow_private",
)


class RouterRepository(PreTrainedModel):
    """
    A model whose repository holds statistics, a tokenizer, a card and maybe a second opinion and samples beside its
    weights.

    Config and weights are read when it is loaded; all else on first use, since a route needs none of it.

    Args:
        config ([`IR3DEConfig`]): of the router.
    """

    config: IR3DEConfig

    def __init__(self, config: IR3DEConfig) -> None:
        super().__init__(config)
        self._statistics: dict[str, DomainStatistics] | None = None
        self._outcomes: Ledger | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._second_opinion: SecondOpinion | None = None
        self._second_is_read = True
        self._samples: list[Sample] | None = None
        self._origin: dict[str, Any] | None = None
        self._saved: bytes | None = None  # config.json as it was read from a folder

    # What belongs to a router beside its weights.

    @property
    def statistics(self) -> dict[str, DomainStatistics]:
        """The statistics of each domain; those of a loaded router are read on first use."""
        if self._statistics is None:
            with self._held():
                self._statistics = {
                    name: DomainStatistics.load(self._fetch(f"{STATISTICS_FOLDER}/{file_name(name)}.safetensors"))
                    for name in self.config.domain_names
                }
        return self._statistics

    @property
    def outcomes(self) -> Ledger:
        """The outcomes of the experts; those of a loaded router are read on first use."""
        if self._outcomes is None:
            self._outcomes = Ledger()
            if self.config.judged:
                with self._held():
                    files = [
                        self._fetch(f"{OUTCOMES_FOLDER}/{file_name(name)}.safetensors") for name in self.config.judged
                    ]
                    self._outcomes = Ledger.load(files, self.config.judged)
        return self._outcomes

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the embeddings; that of a loaded router is read on first use."""
        if self._tokenizer is None:
            origin = dict(self._require_origin())
            path = origin.pop("path")
            with self._held():
                place = current(Path(path)) if os.path.isdir(path) else path
                self._tokenizer = AutoTokenizer.from_pretrained(
                    place,
                    config=self.config,  # which it would read again, and warn that it does not know its kind
                    trust_remote_code=False,
                    **origin,
                )
            if (
                "local_files_only" in self._tokenizer.init_kwargs
            ):  # of this machine's state, and saved with the tokenizer
                self._tokenizer.init_kwargs["local_files_only"] = False
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets what the router is saved with."""
        self._tokenizer = tokenizer

    @property
    def second_opinion(self) -> SecondOpinion | None:
        """The [`SecondOpinion`] that is saved with the router, or None; that of a loaded router is read on first use.

        Edits of the router are edits of it too, but an expert that joins is unknown to it until its own `add_expert` is
        called.
        """
        if not self._second_is_read and self._find(f"{SECOND_FOLDER}/{CONFIG}", "second opinion"):
            origin = dict(self._require_origin())
            path, subfolder = origin.pop("path"), origin.pop("subfolder", "")
            place = f"{subfolder}/{SECOND_FOLDER}" if subfolder else SECOND_FOLDER
            self._second_opinion = SecondOpinion.from_pretrained(path, place, **origin)
        self._second_is_read = True
        return self._second_opinion

    @second_opinion.setter
    def second_opinion(self, second_opinion: SecondOpinion | None) -> None:
        """Sets what the router is saved with."""
        self._second_opinion, self._second_is_read = second_opinion, True

    @property
    def samples(self) -> list[Sample]:
        """A few labelled prompts that are saved and published with the router, for an app to show as examples; those of
        a loaded router are read on first use.
        """
        if self._samples is None and self._origin is not None:
            with self._held():
                path = self._find(SAMPLES_NAME, "samples")
                self._samples = read_samples(path) if path else []
        return self._samples or []

    @samples.setter
    def samples(self, samples: Iterable[Sample | Mapping[str, str]]) -> None:
        """Sets what the router is saved with.

        Raises:
            ValueError: a sample is malformed, or there are too many. The router is as before.
        """
        self._samples = checked_samples(samples)

    def _find(self, filename: str, what: str) -> str | None:
        """The local path of a file that the repository which the router was loaded from may have, or None."""
        try:
            found = self._fetch(filename, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            warnings.warn(f"Taking it that the router has no {what}: {error}", stacklevel=3)
            return None
        return found if found is not None and os.path.isfile(found) else None

    # Files.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a router from a folder or the Hub; see [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: config and weights disagree, or weights or statistics are missing, truncated or not finite.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        origin = {key: kwargs[key] for key in _HUB_KEYS if kwargs.get(key) is not None}
        if not os.path.isdir(pretrained_model_name_or_path):
            model, info = cls._read(pretrained_model_name_or_path, *args, **kwargs)
            origin["revision"] = getattr(model.config, "_commit_hash", None) or kwargs.get("revision")
            model._origin = {"path": str(pretrained_model_name_or_path), **origin}
            return (model, info) if wants_info else model
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        with reading(folder) as place:
            if place != folder:
                pretrained_model_name_or_path = str(place)
                kwargs.pop("subfolder", None)
            model, info = cls._read(pretrained_model_name_or_path, *args, **_with_present_config(kwargs, place))
            model._origin = {"path": str(folder.absolute()), "revision": None, **origin}
            model._origin.pop("subfolder", None)
            model._saved = (place / CONFIG).read_bytes()
            for name in model.config.domain_names:
                read_header(model._fetch(f"{STATISTICS_FOLDER}/{file_name(name)}.safetensors"))
        return (model, info) if wants_info else model

    @classmethod
    def _read(cls, source: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """A router with what transformers says of its loading, once its weights have been checked."""
        model: Any
        info: Any
        try:
            with loading():
                model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"The weights of {source} are damaged, or do not fit its config.json (does it name as many experts as W"
                f" has columns?): fetch both again. Cause: {error}"
            ) from error
        _check_whole(str(source), info)
        for name, parameter in model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise ValueError(f"{name} of {source} holds NaN or infinity: fit the router again.")
        model._second_is_read = False
        return model, info

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes a complete repository: config, weights, statistics, tokenizer, code, card, and where there are some
        second opinion and samples.

        A save that is killed leaves a folder that loads as the old router or as the new one.

        Args:
            save_directory (`str` or `os.PathLike`): the folder; made if missing.
            push_to_hub (`bool`): push it afterwards, to `repo_id` (the folder's name by default).
            kwargs (*optional*): of [`~transformers.PreTrainedModel.save_pretrained`] and [`IR3DEModel.push_to_hub`].
        """
        # Imported here because the pipeline must travel with the model, not because the model needs it.
        from .pipeline_ir3de import CUSTOM_PIPELINES

        hub = {key: kwargs.pop(key) for key in _PUSH_KEYS if key in kwargs}
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"{folder} is a file: give a folder to save the router in.")
        # All are read before anything is written.
        statistics, tokenizer, second_opinion = self.statistics, self.tokenizer, self.second_opinion
        outcomes, samples = self.outcomes, self.samples
        self.config.custom_pipelines = CUSTOM_PIPELINES
        if card := _file_of(folder, CARD_NAME):
            read_card(card)  # raises before anything is written
        with staged(folder) as new:
            with without_bars():
                super().save_pretrained(new, *args, **kwargs)
            tokenizer.save_pretrained(new)
            (new / STATISTICS_FOLDER).mkdir()
            for name, domain in statistics.items():
                domain.save(new / STATISTICS_FOLDER / f"{file_name(name)}.safetensors")
            if outcomes:
                (new / OUTCOMES_FOLDER).mkdir()
                outcomes.save(new / OUTCOMES_FOLDER)
            if second_opinion is not None:
                _warn_of_unknown(second_opinion, self.config.domain_names)
                second_opinion.save_pretrained(new / SECOND_FOLDER)
            # What people wrote there stays: the card, and samples where this router says nothing of any.
            for path in (_file_of(folder, CARD_NAME), _file_of(folder, SAMPLES_NAME)):
                if path:
                    shutil.copy(path, new)
            if samples or (self._samples is not None and (new / SAMPLES_NAME).exists()):
                write_samples(new / SAMPLES_NAME, samples)
            encoder = second_opinion.encoder if second_opinion is not None else None
            update_card(new / CARD_NAME, self.config, statistics, outcomes=outcomes, samples=samples, encoder=encoder)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        parent_commit: str | None = None,
        allow_private: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Uploads the complete repository as one commit. Adapters that lie in folders here travel along.

        Args:
            repo_id (`str`): on the Hub; created if missing.
            commit_message (`str`, *optional*): title of the commit.
            commit_description (`str`, *optional*): its text.
            private (`bool`, *optional*): whether a new repository is private.
            token (`bool` or `str`, *optional*): as in huggingface_hub; by default the login.
            revision (`str`, *optional*): branch to push to.
            create_pr (`bool`): open a pull request instead.
            parent_commit (`str`, *optional*): commit that the router was loaded from; the Hub refuses (412) if the
                branch has moved on since.
            allow_private (`bool`): publish folders of this machine and addresses of private networks that experts name.
            kwargs (*optional*): of [`~transformers.PreTrainedModel.save_pretrained`].

        Returns:
            `huggingface_hub.CommitInfo`: with `commit_url`, `oid` and, for a pull request, `pr_url`.

        Raises:
            ValueError: an expert is of this machine alone, and `allow_private` does not say that it may be read.
                Nothing was sent.
            OSError: files of an adapter are missing, or the Hub refuses.
        """
        if not allow_private:
            second = self.second_opinion
            check_portable(self.config.specs, None if second is None else second.encoder)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            # What people wrote there stays; read at one commit, since the branch may move on meanwhile.
            head = parent_commit or api.model_info(repo_id, revision=revision).sha
            here = [name for name in (CARD_NAME, SAMPLES_NAME) if api.file_exists(repo_id, name, revision=head)]
            for name in here:
                api.hf_hub_download(repo_id, name, revision=head, local_dir=folder)
            if self.samples and SAMPLES_NAME not in here:
                warnings.warn(_told_of(self.samples, repo_id), stacklevel=2)
            self.save_pretrained(folder, **kwargs)
            config = copy.deepcopy(self.config)
            config.set_experts(with_adapters(config.specs, repo_id, Path(folder)))
            _write_experts(Path(folder, CONFIG), config.specs)
            message = commit_message or "Upload IR3DE router"
            second = self.second_opinion
            update_card(
                Path(folder, CARD_NAME),
                config,
                self.statistics,
                (repo_id, message),
                self.outcomes,
                self.samples,
                second.encoder if second is not None else None,
            )
            of_second = [f"{SECOND_FOLDER}/*"] if Path(folder, SECOND_FOLDER).is_dir() else []
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=[".cache/*"],
                delete_patterns=[
                    f"{STATISTICS_FOLDER}/*",
                    f"{OUTCOMES_FOLDER}/*",
                    PLOT_NAME,
                    FRONTIER_NAME,
                    *of_second,
                ],
                parent_commit=parent_commit,
            )

    def _require_origin(self) -> dict[str, Any]:
        if self._origin is None:
            raise ValueError(
                "This router was neither fitted nor loaded, so it has no statistics and no tokenizer. Make it with"
                " `IR3DEModel.from_statistics` or `from_pretrained`."
            )
        return self._origin

    def _fetch(self, filename: str, **options: Any) -> Any:
        """The local path of a file of the repository that the router was loaded from."""
        origin = dict(self._require_origin())
        path = origin.pop("path")
        if not os.path.isdir(path):
            return cached_file(path, filename, **origin, **options)
        place = current(Path(path))
        if self._saved is not None and (place / CONFIG).read_bytes() != self._saved:
            raise ValueError(
                f"{path} has been saved anew since this router was loaded, so {filename} there is not of this router:"
                " load it again."
            )
        return str(place / filename)

    def _held(self) -> AbstractContextManager[Any]:
        """Keeps the folder that the router was loaded from, if any, as it is while files are read."""
        path = self._require_origin()["path"]
        return reading(Path(path)) if os.path.isdir(path) else nullcontext()


# What W was solved with and what was then measured: who asks for another variant or minimum does not change these.
_FITTED = (
    *(
        "expert_names",
        "domain_names",
        "judged",
        "fingerprint",
        "evaluation",
        "measured_on",
        "joined",
        "balance",
        "bias",
        "normalize_columns",
        "features",
    ),
    *("regularization", "prompt_regularization", "token_noise", "discriminant"),
    *("lexical_weight", "lexical_smoothing", "familiarity"),
)


def _with_present_config(kwargs: dict[str, Any], place: Path) -> dict[str, Any]:
    """Options of loading, whose config, if any, may have been read before another process saved the folder anew."""
    config: Any = kwargs.get("config")
    if not hasattr(config, "expert_names"):
        return kwargs
    present = type(config).from_pretrained(place)
    same = all(getattr(config, field) == getattr(present, field) for field in _FITTED)
    return kwargs if same else {**kwargs, "config": present}


def _file_of(folder: Path, name: str) -> Path | None:
    """A file of the router in a folder, which the next one there takes on. A link may lead to anything."""
    try:
        path = current(folder) / name
    except ValueError:  # a folder that is not whole, which a save makes whole
        return None
    return path if path.is_file() and not path.is_symlink() else None


def _write_experts(path: Path, specs: list[ExpertSpec]) -> None:
    """Puts other specs into a config.json that transformers wrote, in its form."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**fields, "experts": specs}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_whole(source: str, info: Mapping[str, Any]) -> None:
    """Raises ValueError where weights and config are not of one router, so that it would be loaded in part.

    Args:
        source (`str`): where the router is.
        info (`Mapping[str, Any]`): what transformers says of its loading.
    """
    if info["missing_keys"]:
        raise ValueError(
            f"The weights of {source} lack {sorted(info['missing_keys'])}: fetch model.safetensors and config.json"
            " again, both of one revision."
        )
    if info["mismatched_keys"]:
        raise ValueError(
            f"The weights of {source} have other shapes than its config.json says: {sorted(info['mismatched_keys'])}."
            " Fetch both again, of one revision."
        )
    if info["unexpected_keys"]:
        raise ValueError(
            f"The weights of {source} hold {sorted(info['unexpected_keys'])}, which its config.json does not speak of,"
            " so the router would be loaded in part. Fetch both again, of one revision. Where you set `discriminant`,"
            " `lexical_weight`, `bias` or `familiarity`: load the router as it was saved, set it in its config and"
            " `fit()` it again."
        )


def _warn_of_unknown(second_opinion: SecondOpinion, names: list[str]) -> None:
    """Warns of domains that a second opinion will say nothing of."""
    unknown = [name for name in names if name not in second_opinion.statistics]
    if unknown:
        warnings.warn(
            f"The second opinion knows nothing of {unknown}, so it judges among the other domains alone. Add each with"
            " its `add_expert(name, texts=...)`.",
            stacklevel=3,
        )


def _told_of(samples: list[Sample], repo_id: str) -> str:
    """What a push says of text that was not there before."""
    return (
        f"{SAMPLES_NAME} goes to {repo_id} too, with the text of {len(samples):,} sample prompts: whoever may read that"
        " repository reads them. To publish none, set `model.samples = []` and push again."
    )
