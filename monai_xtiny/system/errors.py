"""What an error says, without what wraps it."""

from __future__ import annotations


def root_cause(error: BaseException) -> str:
    """The innermost error's own words; MONAI wraps them in those of its transforms."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, ValueError) and first_line:
        return first_line
    return f"cannot be read, {type(error).__name__}: {first_line}"


def innermost(error: BaseException) -> BaseException:
    """The error that MONAI's config parser wraps in RuntimeErrors of its own."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error
