"""Text of users on its way into configs, where it must not become code."""

from __future__ import annotations

import os


def check_config_text(text: str, what: str) -> str:
    """Refuse text that MONAI would not read as text in a bundle's configuration.

    MONAI evaluates strings that start with ``$``, resolves those with ``@`` and reads the file of
    those with ``%``; any ``#`` or ``::`` separates keys. There is no escape.

    Args:
        text: a name or path on its way into a configuration.
        what: what it is, for the message.

    Returns:
        The text.

    Raises:
        ValueError: the text starts with one of ``$ @ %`` or holds ``#``, ``::`` or a control
            character.

    >>> check_config_text("$import os", "label name")
    Traceback (most recent call last):
    ...
    ValueError: label name '$import os' starts with '$', which MONAI's configs evaluate: rename it
    """
    if text[:1] in ("$", "@", "%"):
        raise ValueError(
            f"{what} {text!r} starts with {text[0]!r}, which MONAI's configs evaluate: rename it"
        )
    for mark in ("#", "::"):
        if mark in text:
            raise ValueError(
                f"{what} {text!r} holds {mark!r}, which MONAI's configs split at: rename it"
            )
    if not text.isprintable():
        raise ValueError(f"{what} {text!r} holds a control character: rename it")
    return text


def path_text(path: str | os.PathLike[str], what: str) -> str:
    """A path that may come from ``monai.bundle run``, which makes numbers of digits.

    Args:
        path: as the config has it.
        what: what it is, for the message.

    Raises:
        ValueError: it is a number, or MONAI has read the ``#`` in it as ``::``.

    >>> path_text(7, "images")
    Traceback (most recent call last):
    ...
    ValueError: images is 7, which is no path: write ./NAME for a name of digits
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"{what} is {path!r}, which is no path: write ./NAME for a name of digits")
    text = os.fspath(path)
    if isinstance(path, str) and "::" in text and not os.path.exists(text):
        raise ValueError(
            f"{what} {text!r} is not there, and MONAI reads '#' as '::': rename it, or give it to "
            "python -m monai_xtiny, which reads paths as they are"
        )
    return text


class PlainPath(os.PathLike[str]):
    """A path as it was typed, opaque to MONAI's config parser, which evaluates strings only.

    Args:
        text: the path.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __fspath__(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text
