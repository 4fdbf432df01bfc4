"""The errors that a user can meet; the command line turns each into one message and an exit code."""

from collections.abc import Iterable
from difflib import get_close_matches


class FedsslError(Exception):
    """Base of every error that fedssl raises on purpose."""


class InputError(FedsslError):
    """The user's input is wrong (exit 2).

    Args:
        field: Dotted name of the wrong setting, e.g. ``method.threshold``, or a path.
        problem: What is wrong with the field, with the value that was given.
        remedy: What to do instead; empty when the problem already says it.

    Example:
        >>> print(InputError("rounds", "is 0", "set it to 1 or more"))
        rounds: is 0; set it to 1 or more
    """

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{field}: {problem}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        """Let pickle rebuild the error from its three parts, so that it can travel between processes."""
        return type(self), (self.field, self.problem, self.remedy)

    def within(self, prefix: str) -> "InputError":
        """Return the same error with a prefix before its field, as the enclosing section names that field."""
        return InputError(f"{prefix}{self.field}", self.problem, self.remedy)


class RefusedByFloor(InputError):
    """A client refuses an experiment that is below the client's own privacy floor, or a floor that makes no sense."""


class RunFailed(FedsslError):
    """The run could not go on (exit 1). Everything recorded so far is kept."""


class TrainingDiverged(FloatingPointError):
    """The weights or the state of a client are not finite after its training. No code is at fault, but the settings are."""


class NothingLearned(ValueError):
    """A loss from which a network cannot learn. The message says what the author of the loss has to change."""


def suggest_nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" for the closest known word, else the list of known words.

    Where a word holds a comma, all words stand in quotes, so that a reader sees where each one ends.

    Example:
        >>> suggest_nearest("x", ["alpha 0.1, fixmatch", "alpha 5, fixmatch"])
        "one of: 'alpha 0.1, fixmatch', 'alpha 5, fixmatch'"
    """
    known = sorted(known)
    match = get_close_matches(word, known, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    shown = map(repr, known) if any("," in each for each in known) else known
    return f"one of: {', '.join(shown)}" if known else "nothing is known here"
