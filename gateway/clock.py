"""A limit of time for a block of code, on every version of Python."""

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout  # type: ignore[import-not-found,unused-ignore]

__all__ = ["timeout"]
