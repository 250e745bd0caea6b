"""What a report says of the machine and of the packages that its figures come from."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def describe_machine() -> str:
    """Its processor's architecture and the version of Python."""
    return f"{platform.machine()}, Python {platform.python_version()}"


def versions(*packages: str) -> dict[str, str]:
    """The versions of packages that are installed, and of the others that they are not."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
