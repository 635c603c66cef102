"""Names that a package lends out without importing them before they are used (PEP 562)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], *, deprecated: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that finds names in its modules when they are first used.

    Args:
        package: its ``__name__``.
        homes: the module that defines each name, relative to the package: ``"case"`` is in it,
            ``".scores.table"`` beside it.
        deprecated: likewise, of names that have moved elsewhere; using one warns.
    """

    def getattr_of_package(name: str) -> Any:
        home = homes.get(name)
        is_deprecated = home is None and deprecated is not None and name in deprecated
        if deprecated is not None and is_deprecated:
            home = deprecated[name]
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f".{home}", package)
        if is_deprecated:
            warnings.warn(
                f"{package}.{name} has moved: import it from {module.__name__}",
                DeprecationWarning,
                stacklevel=2,
            )
        return getattr(module, name)

    return getattr_of_package
