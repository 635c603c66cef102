"""What an error says, without what wraps it."""

from __future__ import annotations


def root_cause(error: BaseException) -> str:
    """The innermost error's own words; MONAI wraps them in those of its transforms."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = plain_words(error).strip()
    first_line = words.splitlines()[0] if words else ""
    if isinstance(error, ValueError) and first_line:
        return first_line
    return f"cannot be read, {type(error).__name__}: {first_line}"


def innermost(error: BaseException) -> BaseException:
    """The error that MONAI's config parser wraps in RuntimeErrors of its own."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_bad_input(error: BaseException) -> bool:
    """Whether an error says what is wrong with what was given, not that the program failed."""
    kinds = (ValueError, TypeError, OSError, ImportError, MemoryError)
    return isinstance(innermost(error), kinds)


def plain_words(error: BaseException) -> str:
    """An error's own words, without PyTorch's advice to read a file as code."""
    text = str(error)
    return "a file of more than tensors, which could be code" if "weights_only" in text else text
