"""What of a router is of one machine alone: it is named before a push, and adapters in folders travel along."""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from .addresses_ir3de import is_loopback, is_public, server_of
from .names_ir3de import file_name
from .specs_ir3de import HUB_ID, ExpertSpec, is_remote

ADAPTERS_FOLDER = "adapters"
_INTERNAL = (".local", ".internal", ".lan", ".home", ".corp", ".intranet", ".home.arpa")


def is_folder(place: str) -> bool:
    """Whether a model, an adapter or an encoder is a folder of this machine rather than an id of the Hub."""
    return os.path.isdir(place) or not HUB_ID.fullmatch(place)


def is_internal(endpoint: str) -> bool:
    """Whether the URL of a server is of this machine or of a private network, as far as it can be told without DNS."""
    host = server_of(endpoint).host
    try:
        return not is_public(str(ipaddress.ip_address(host)))
    except ValueError:
        return is_loopback(host) or "." not in host or host.endswith(_INTERNAL)


def private_parts(specs: Iterable[ExpertSpec], encoder: str | None = None) -> list[str]:
    """What experts say that is of no use to others, and maybe not for them to know, in words.

    Args:
        specs (`Iterable[ExpertSpec]`): of the experts.
        encoder (`str`, *optional*): of the second opinion.
    """
    parts = []
    for spec in specs:
        name = spec["name"]
        if "endpoint" in spec and is_internal(spec["endpoint"]):
            parts.append(f"expert {name!r} answers at {spec['endpoint']}, an address of a private network")
        if is_remote(spec):
            continue  # its `model` is a name at the server
        if "model" in spec and is_folder(spec["model"]):
            parts.append(f"expert {name!r} has its model in {spec['model']}, which stays here")
        if "adapter" in spec and "model" not in spec and is_folder(spec["adapter"]):
            base = _base_of(spec)
            if is_folder(base):
                parts.append(f"the adapter of expert {name!r} has its base in {base}, which stays here")
    if encoder is not None and is_folder(encoder):
        parts.append(f"the second opinion has its encoder in {encoder}, which stays here")
    return parts


def _base_of(spec: ExpertSpec) -> str:
    """The base that an adapter names."""
    from .local_sources_ir3de import base_spec  # with what loads models, which a route has no use for

    return base_spec(spec)["model"]


def check_portable(specs: Iterable[ExpertSpec], encoder: str | None = None) -> None:
    """Raises ValueError where a router that is to be published names what is of this machine alone.

    Args:
        specs (`Iterable[ExpertSpec]`): of its experts.
        encoder (`str`, *optional*): of its second opinion.
    """
    if parts := private_parts(specs, encoder):
        raise ValueError(
            f"The router would publish what is of this machine alone: {'; '.join(parts)}. Others cannot use it, and"
            " would read it in config and card. Change it (`ir3de experts ROUTER --set NAME model=ORG/NAME`), or say"
            " that it may be read: `allow_private=True`, or --allow-private of the command."
        )


def with_adapters(specs: Sequence[ExpertSpec], repo_id: str, folder: Path) -> list[ExpertSpec]:
    """The specs with adapters in folders as those of a repository, into whose folder their files are copied.

    Args:
        specs (`Sequence[ExpertSpec]`): of the experts.
        repo_id (`str`): where they will be.
        folder (`Path`): what is uploaded.

    Raises:
        OSError: files of an adapter are missing.
    """
    from .local_sources_ir3de import ADAPTER_FILES, adapter_folder

    published = []
    for given in specs:
        spec = given.copy()
        if "adapter" in spec and is_folder(spec["adapter"]):
            place = f"{ADAPTERS_FOLDER}/{file_name(spec['name'])}"
            (folder / place).mkdir(parents=True)
            for file in ADAPTER_FILES:
                shutil.copy(adapter_folder(spec) / file, folder / place)
            spec["adapter"], spec["adapter_subfolder"] = repo_id, place
            spec.pop("adapter_revision", None)
        published.append(spec)
    return published
