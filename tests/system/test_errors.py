from __future__ import annotations

import pytest

from monai_xtiny.system.errors import innermost, plain_words, root_cause


def chained(*errors: BaseException) -> BaseException:
    """The first error, raised from the second, raised from the third."""
    for error, cause in zip(errors, errors[1:], strict=False):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("wrong\nand more"), "wrong"),
        (chained(RuntimeError("applying"), RuntimeError("loading"), ValueError("wrong")), "wrong"),
        (EOFError("cut off"), "cannot be read, EOFError: cut off"),
        (chained(RuntimeError("applying"), OSError()), "cannot be read, OSError: "),
        (ValueError(" "), "cannot be read, ValueError: "),
    ],
    ids=["first line", "wrapped", "another kind", "without words", "blank"],
)
def test_root_cause_is_the_innermost_errors_own_words(error, expected) -> None:
    assert root_cause(error) == expected


def test_innermost_unwraps_runtime_errors_and_nothing_else() -> None:
    cause, other = ValueError("wrong"), KeyError("missing")
    assert innermost(chained(RuntimeError("a"), RuntimeError("b"), cause)) is cause
    assert innermost(chained(other, cause)) is other
    alone = RuntimeError("alone")
    assert innermost(alone) is alone


@pytest.mark.parametrize("say", [plain_words, root_cause])
def test_errors_pass_no_advice_on_to_read_a_file_as_code(say) -> None:
    advice = "Weights only load failed. In PyTorch 2.6 ... re-running with `weights_only=False`"
    assert "weights_only" not in say(RuntimeError(advice))
    assert "more than tensors, which could be code" in say(RuntimeError(advice))
    assert say(ValueError("wrong")) == "wrong"
