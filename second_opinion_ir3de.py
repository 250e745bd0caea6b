"""A second opinion on prompts that the router is unsure of: the same closed form, on vectors of a sentence encoder.

It is slower by the price of the encoder, so that it is asked only where the router's score is below a bound. Its sums
add up like the router's own, a row a text, so experts come and go exactly here too.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils.hub import cached_file

from .atomic_save_ir3de import CONFIG, STATISTICS_FOLDER, reading, staged
from .familiarity_ir3de import LEVELS
from .loading_ir3de import loading
from .names_ir3de import alike, check_name, file_name
from .route_selector_ir3de import check_calibration, probabilities
from .specs_ir3de import is_number
from .statistics_ir3de import KINDS, DomainStatistics, FeatureSpace, one_thread, total
from .token_router_ir3de import FeatureMap, fourier, mean_diagonal, orthogonal_frequencies, ridge

FORMAT = "ir3de-second-opinion-2"
NUM_FEATURES = 1024  # of a vector
BELOW = 0.9  # the router's score, below which the second opinion is asked unless a call says otherwise
PROBE = "Prove that 3x + 5 = 20 has one root, and say who should answer this."
_DIGITS, _APART = 3, 0.01  # of the probe's vector: what is kept, and how far an encoder of other precision may be off
_TEXTS = 1024  # that are encoded at a time
_PLACES = 6  # of a familiarity that is told
_LEAST = 1e-300  # a probability, so that no product is 0 everywhere
_MOST_LAMBDA = 1e9  # over the mean of A's diagonal
_MAP = FeatureMap("rff")  # its length scale suits unit vectors, and its description tells draws apart
_MOST_BYTES, _MOST_COLUMNS = 1 << 22, 1 << 14  # of a config, of a vector

Encode = Callable[[list[str]], Any]


class SecondOpinion:
    """
    The closed form on a sentence encoder: W = (A + lambda I)^-1 B over a row a text, which is random Fourier features
    of its unit vector, so that the kernel is Gaussian, and a one.

    Args:
        encoder (`str`): Hub id or folder of a sentence-transformers model, loaded on first use.
        encoder_revision (`str`, *optional*): of the encoder.
        num_features (`int`, *optional*, defaults to 1024): F, the number of random features, even; 0 for the vectors
            themselves, without a kernel.
        regularization (`float`, *optional*, defaults to 0.1): lambda over the mean of A's diagonal, above 0.
        calibration (`dict[str, float]`, *optional*): `temperature` and `spread`, see
            [`~route_selector_ir3de.probabilities`].
        familiarity (`list[float]`, *optional*): quantiles, at 0, 1, ... and 100 % and ascending, of how close prompts
            of the domains were to the others; see [`SecondOpinion.closeness`].
        encode (`Callable[[list[str]], array]`, *optional*): N texts to `(N, dim)` vectors, instead of loading the
            encoder: one that is in memory already, on a device or with a cache of your choice.
        probe (`Sequence[float]`, *optional*): vector of a fixed text, by which another encoder is noticed; by default
            what the encoder makes of it.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        encoder: str,
        encoder_revision: str | None = None,
        *,
        num_features: int = NUM_FEATURES,
        regularization: float = 0.1,
        calibration: Mapping[str, float] | None = None,
        familiarity: Sequence[float] | None = None,
        encode: Encode | None = None,
        probe: Sequence[float] | None = None,
    ) -> None:
        self.encoder, self.encoder_revision = encoder, encoder_revision
        self.num_features, self.regularization = num_features, regularization
        self.calibration = dict(calibration or {})
        self.scale = None if familiarity is None else list(familiarity)
        self.statistics: dict[str, DomainStatistics] = {}
        self._encoder, self._is_checked = encode, False
        self._given = encode
        self._probe = None if probe is None else torch.tensor(probe, dtype=torch.float64)
        self._frequencies: torch.Tensor | None = None
        self._W = torch.empty(0, 0, dtype=torch.float64)
        self._factor: torch.Tensor | None = None  # of A + lambda I, by Cholesky, made on first use
        self._check()

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: an encoder that was loaded here is loaded again there."""
        return {**self.__dict__, "_encoder": self._given}

    def __copy__(self) -> SecondOpinion:
        """A second opinion that shares the encoder."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    # Fitting.

    def fit(self, statistics: Mapping[str, DomainStatistics]) -> None:
        """Solves W from the statistics of each domain, which become its own.

        Raises:
            ValueError: a name or the statistics are malformed, or of another encoder. All is as before.
        """
        owners: dict[str, str] = {}  # of contributions
        for name, domain in statistics.items():
            if self.statistics.get(name) is not domain:
                self._check_new(name, domain)
            for key in domain.contributions:
                if owners.setdefault(key, name) != name:
                    raise ValueError(
                        f"Contribution {key} to {name!r} is part of {owners[key]!r} too: it would count twice."
                    )
        self._W, self._factor = self._solve(statistics), None
        self.statistics = dict(statistics)

    def add_expert(
        self,
        name: str,
        texts: Iterable[str] | None = None,
        statistics: DomainStatistics | str | os.PathLike[str] | None = None,
    ) -> None:
        """Adds an expert; the others' text is not needed.

        Args:
            name (`str`): of the expert.
            texts (`Iterable[str]`, *optional*): text of its domain.
            statistics (`DomainStatistics` or path, *optional*): of its domain, instead of texts; of
                [`SecondOpinion.collect`].

        Raises:
            ValueError: the name is taken, or the statistics are malformed or of another encoder. All is as before.
        """
        if (texts is None) == (statistics is None):
            raise ValueError(f"Expert {name!r} needs either `texts` of its domain or `statistics` of it.")
        taken = [other for other in self.statistics if alike(other, name)]
        if taken:
            raise ValueError(f"There is an expert {taken[0]!r} already: remove it first, or give another name.")
        if texts is not None:
            domain = self.collect(texts)
        elif isinstance(statistics, (str, os.PathLike)):
            domain = DomainStatistics.load(statistics, self.space)
        else:
            domain = cast(DomainStatistics, statistics)
        self.fit({**self.statistics, name: domain})

    def remove_expert(self, name: str) -> None:
        """Removes an expert: what is left is, bit for bit, what had never had it.

        Raises:
            ValueError: there is no such expert.
        """
        if name not in self.statistics:
            raise ValueError(f"There is no expert {name!r} among {sorted(self.statistics)}.")
        self.fit({other: domain for other, domain in self.statistics.items() if other != name})

    def having(self, statistics: Mapping[str, DomainStatistics]) -> SecondOpinion:
        """One that differs from this in what it knows; this one stays as it is.

        Raises:
            ValueError: as in [`SecondOpinion.fit`].
        """
        if self.statistics == statistics:
            return self
        other = copy.copy(self)
        other.fit(statistics)
        return other

    def collect(self, texts: Iterable[str]) -> DomainStatistics:
        """The statistics of a domain's texts: one small file of sums where it is saved, without the text.

        To contribute to a second opinion that others have, load it and collect with it: it knows its fingerprint.

        Raises:
            ValueError: there are no texts.
        """
        rest = iter([texts] if isinstance(texts, str) else texts)
        parts = []
        while batch := list(islice(rest, _TEXTS)):
            parts.append(self.encode(batch))
        if not parts:
            raise ValueError("There are no texts: give text of the domain.")
        return self.summed(torch.cat(parts))

    def summed(self, vectors: torch.Tensor) -> DomainStatistics:
        """The statistics of texts whose vectors, `(N, dim)` of [`SecondOpinion.encode`], are known."""
        with one_thread():
            X = self.rows(vectors)
            A = X.T @ X
        A = A.triu() + A.triu(1).T
        grams = dict.fromkeys(KINDS, A)  # a text is a row of either kind
        return DomainStatistics.from_grams(grams, self.space.fingerprint)

    # Routing.

    def probabilities(self, texts: Sequence[str], names: Sequence[str]) -> torch.Tensor:
        """Calibrated probabilities of experts; only these compete.

        Args:
            texts (`Sequence[str]`): N prompts, maybe none.
            names (`Sequence[str]`): of the D experts.

        Returns:
            `torch.Tensor` of shape `(N, D)`, float64.

        Raises:
            ValueError: it does not know an expert, or the encoder is not the one that it was fitted on.
            ImportError: sentence-transformers is not installed.
        """
        return self.judge(texts, names)[0]

    def judge(self, texts: Sequence[str], names: Sequence[str]) -> tuple[torch.Tensor, list[float] | None]:
        """Calibrated probabilities of experts, and how familiar each text is, where this tells it.

        Args:
            texts (`Sequence[str]`): N prompts, maybe none.
            names (`Sequence[str]`): of the D experts.

        Returns:
            `(torch.Tensor, list[float])`: of shape `(N, D)`, float64; and the share of the prompts that it was fitted
            on that were less familiar, each left out.

        Raises:
            ValueError, ImportError: as in [`SecondOpinion.probabilities`].
        """
        self._check_known(names)
        if not len(texts):  # and no encoder is loaded
            return torch.empty(0, len(names), dtype=torch.float64), None
        vectors = self.encode(texts)
        told = None if self.scale is None else self._placed(self.closeness(vectors))
        return probabilities(self.logits(vectors, names), **self.calibration), told

    def closeness(self, vectors: torch.Tensor) -> torch.Tensor:
        """How close texts are to those that this was fitted on, of whatever domain: minus the logarithm of the leverage
        x (A + lambda I)^-1 x^T of their rows x, which is large where A knows little of the direction of x.

        Args:
            vectors (`torch.Tensor` of shape `(N, dim)`): of [`SecondOpinion.encode`].

        Returns:
            `torch.Tensor` of shape `(N,)`, float64.
        """
        if self._factor is None:
            with one_thread():
                A, _ = total((self.statistics[name] for name in sorted(self.statistics)), "prompts", balance=True)
                A.diagonal().add_(self.regularization * mean_diagonal(A))
                self._factor = torch.linalg.cholesky(A)
        X = self.rows(vectors)
        return -(X * torch.cholesky_solve(X.T, self._factor).T).sum(dim=1).log()

    def _placed(self, closeness: torch.Tensor) -> list[float]:
        """Where closenesses lie among those that the scale is of, 0 to 1."""
        levels = np.linspace(0, 1, LEVELS)
        return [float(value) for value in np.interp(closeness.numpy(), self.scale or (), levels).round(_PLACES)]

    def logits(self, vectors: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Scores of experts before calibration: `(N, dim)` to `(N, D)`."""
        self._check_known(names)
        order = sorted(self.statistics)
        return (self.rows(vectors) @ self._W)[:, [order.index(name) for name in names]]

    def rows(self, vectors: torch.Tensor) -> torch.Tensor:
        """What W is fitted on: unit vectors `(N, dim)` to features and a one, `(N, F + 1)`, float64."""
        if self.num_features:
            if self._frequencies is None:
                width, number = len(self.probe), self.num_features // 2
                with one_thread():  # so that they are the same in their last digits
                    self._frequencies = orthogonal_frequencies(width, number, _MAP.length_scale, _MAP.seed)
            vectors = fourier(vectors, self._frequencies)
        return F.pad(vectors, (0, 1), value=1.0)

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of texts, of shape `(N, dim)`, float64, on the CPU.

        Raises:
            ValueError: the encoder is not the one that this was fitted on, or gives no vectors.
            ImportError: sentence-transformers is not installed.
        """
        if not self._is_checked:
            self._check_encoder()
        return self._vectors(list(texts))

    @property
    def space(self) -> FeatureSpace:
        """What the statistics lie in, named after what the encoder makes of a fixed text."""
        features = _MAP._replace(size=self.num_features).description
        digest = hashlib.sha256(json.dumps([FORMAT, features, *self.probe.tolist()]).encode())
        return FeatureSpace(digest.hexdigest()[:16], (self.num_features or len(self.probe)) + 1)

    @property
    def probe(self) -> torch.Tensor:
        """The vector of a fixed text, `(dim,)`, by which another encoder is noticed."""
        if self._probe is None:
            found = self._vectors([PROBE])[0]
            self._probe = (10**_DIGITS * found).round() / 10**_DIGITS + 0.0  # no negative zeros
        return self._probe

    def _vectors(self, texts: list[str]) -> torch.Tensor:
        if self._encoder is None:
            self._encoder = _load_encoder(self.encoder, self.encoder_revision)
        vectors = torch.as_tensor(self._encoder(texts)).detach().cpu().double()
        if vectors.ndim != 2 or len(vectors) != len(texts) or not bool(vectors.isfinite().all()):
            raise ValueError(
                f"The encoder {self.encoder} gave values of shape {tuple(vectors.shape)} for {len(texts)} texts;"
                " expected a vector of finite numbers for each."
            )
        return F.normalize(vectors, dim=1)

    # What is expected.

    def _check(self) -> None:
        if not is_number(self.regularization) or not 0 < self.regularization <= _MOST_LAMBDA:
            raise ValueError(
                f"`regularization` of a second opinion must be a number above 0 and up to {_MOST_LAMBDA:g}, got"
                f" {self.regularization!r}."
            )
        check_calibration(self.calibration)
        if not _is_scale(self.scale):
            raise ValueError(f"`familiarity` of a second opinion must be {LEVELS} ascending numbers, or none.")
        if not _is_number_of_features(self.num_features):
            raise ValueError(
                f"`num_features` must be an even number below {_MOST_COLUMNS:,}, or 0 for none; got"
                f" {self.num_features!r}."
            )

    def _check_encoder(self) -> None:
        """Compares vectors, not hashes: their last digits differ between machines and precisions."""
        found = self._vectors([PROBE])[0]
        if found.shape != self.probe.shape or float((found - self.probe).abs().max()) > _APART:
            raise ValueError(
                f"The encoder {self.encoder} is not the one that this second opinion was fitted on: its vector of a"
                f" fixed text, of {len(found)} entries, is not the one taken down, of {len(self.probe)}. Give the"
                " encoder, at its revision, that `ir3de second` was run with, or run it again with this one."
            )
        self._is_checked = True

    def _check_known(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.statistics]
        if unknown:
            raise ValueError(
                f"The second opinion does not know {unknown}, only {sorted(self.statistics)}. Add each with its"
                " `add_expert(name, texts=...)`, or go without it with `second_below=0`."
            )

    def _check_new(self, name: str, domain: DomainStatistics) -> None:
        check_name(name)
        self.space.check(f"of {name!r}", domain.space)
        domain.check(name, dict.fromkeys(KINDS, 1.0))

    def _solve(self, statistics: Mapping[str, DomainStatistics]) -> torch.Tensor:
        """W of shape `(F + 1, D)`; domains in order of their names, so that the same set gives the same W."""
        if not statistics:
            return torch.empty(0, 0, dtype=torch.float64)
        with one_thread():
            A, B = total((statistics[name] for name in sorted(statistics)), "prompts", balance=True)
            return ridge(A, B, self.regularization * mean_diagonal(A))

    # Files.

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes config and statistics; a save that is killed leaves the old files or the new."""
        config = {
            "format": FORMAT,
            "encoder": self.encoder,
            "encoder_revision": self.encoder_revision,
            "num_features": self.num_features,
            "regularization": self.regularization,
            "calibration": self.calibration,
            "familiarity": self.scale,
            "experts": [{"name": name} for name in sorted(self.statistics)],
            "probe": self.probe.tolist(),
        }
        with staged(Path(folder)) as new:
            (new / STATISTICS_FOLDER).mkdir()
            for name, domain in self.statistics.items():
                domain.save(new / STATISTICS_FOLDER / f"{file_name(name)}.safetensors")
            (new / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        subfolder: str = "",
        *,
        encoder: str | None = None,
        encode: Encode | None = None,
        **hub: Any,
    ) -> SecondOpinion:
        """Loads what [`SecondOpinion.save_pretrained`] wrote, checked as a stranger's; the encoder is not loaded yet.

        Args:
            source (`str` or `os.PathLike`): folder or Hub id.
            subfolder (`str`, *optional*): of it; a router has its second opinion in `"second"`.
            encoder (`str`, *optional*): where the same encoder lies here, instead of where the config says.
            encode (`Callable`, *optional*): instead of loading the encoder.
            hub (*optional*): `revision`, `token`, `cache_dir` and `local_files_only`.

        Raises:
            OSError: there are no such files.
            ValueError: config or statistics are malformed.
        """

        if not os.path.isdir(source):
            return cls._read(lambda name: str(cached_file(source, name, subfolder=subfolder, **hub)), encoder, encode)
        with reading(Path(source)) as router:
            folder = router / subfolder
            with reading(folder) if folder.is_dir() else nullcontext(folder) as place:
                return cls._read(lambda name: str(place / name), encoder, encode)

    @classmethod
    def _read(cls, fetch: Callable[[str], str], encoder: str | None, encode: Encode | None) -> SecondOpinion:
        """Reads the files whose local paths `fetch` gives."""
        config = _read_config(fetch(CONFIG))
        names = [expert["name"] for expert in config.pop("experts")]
        if encoder is not None:
            config.update(encoder=encoder, encoder_revision=None)
        made = cls(**config, encode=encode)
        paths = {name: fetch(f"{STATISTICS_FOLDER}/{file_name(name)}.safetensors") for name in names}
        made.fit({name: DomainStatistics.load(path, made.space) for name, path in paths.items()})
        return made


def combined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Both routers' say of experts, as if they judged independently: the product of probabilities, `(N, D)`, made to
    sum to what the first gave to all of these, which is 1 unless there are more that the second does not know.
    """
    product = (first.log() + second.clamp_min(_LEAST).log()).softmax(dim=1)
    return first.sum(dim=1, keepdim=True) * product.nan_to_num()  # NaN where the first gave them nothing


def load_encoder(name: str, revision: str | None = None, device: str | None = None) -> Any:
    """A sentence-transformers model, without code or pickled weights of its repository.

    Args:
        name (`str`): Hub id or folder.
        revision (`str`, *optional*): of the Hub repository.
        device (`str`, *optional*): where it works; by default a GPU if there is one.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: there is no such model, or it has pickled weights only.
    """
    from sentence_transformers import SentenceTransformer

    with loading():
        return SentenceTransformer(
            name, revision=revision, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )


@lru_cache(maxsize=1)
def _load_encoder(name: str, revision: str | None) -> Encode:
    """A sentence-transformers model as a function."""
    try:
        model = load_encoder(name, revision)
    except ImportError as error:
        raise ImportError(
            'A second opinion needs the package sentence-transformers: `pip install "ir3de[second]"`, or go without it'
            " with `second_below=0`."
        ) from error
    except OSError as error:
        raise OSError(
            f"The encoder {name} of the second opinion cannot be loaded: `ir3de second --encoder` takes the"
            " Hub id or folder of another, `SecondOpinion.from_pretrained(..., encoder=FOLDER)` the folder where this"
            f" one lies here. Cause: {error}"
        ) from error
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def _read_config(path: str) -> dict[str, Any]:
    """The config of a second opinion, which may be a stranger's: the arguments of the class, and `experts`."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no second opinion here: {path} is missing. `ir3de second` makes one.")
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again.") from error
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
        raise ValueError(
            f"{path} is not of a second opinion in format {FORMAT!r}; a router has its own in `second`. Run"
            " `ir3de second` again, or delete the folder to go without it."
        )
    for key, is_right in _FIELDS.items():
        if not is_right(config.get(key)):
            raise ValueError(f"{path}: `{key}` is not what a second opinion has there: {str(config.get(key))[:60]!r}.")
    return {key: config.get(key) for key in _FIELDS}


def _are_experts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) and check_name(each.get("name")) for each in value)


def _is_scale(value: object) -> bool:
    """Whether these are ascending quantiles; there need be none."""
    if value is None:
        return True
    return isinstance(value, list) and len(value) == LEVELS and all(map(is_number, value)) and value == sorted(value)


def _is_number_of_features(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_COLUMNS and value % 2 == 0


def _is_vector(value: object) -> bool:
    return isinstance(value, list) and 1 <= len(value) < _MOST_COLUMNS and all(map(is_number, value))


_FIELDS: dict[str, Callable[[object], bool]] = {
    "encoder": lambda value: isinstance(value, str) and bool(value),
    "encoder_revision": lambda value: value is None or isinstance(value, str),
    "num_features": _is_number_of_features,
    "regularization": is_number,
    "calibration": lambda value: isinstance(value, dict),
    "familiarity": _is_scale,
    "experts": _are_experts,
    "probe": _is_vector,
}
