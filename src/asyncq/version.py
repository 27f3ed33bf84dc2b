"""The version of asyncq that is installed here."""

from __future__ import annotations

from importlib import metadata

__all__ = ["asyncq_version"]


def asyncq_version() -> str:
    """Return the version of asyncq itself."""
    return metadata.version("asyncq")
