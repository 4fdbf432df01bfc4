"""The names that people give to splits, such as ``Training``, ``test_set``, ``dev`` and ``hold-out``."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

Role = Literal["train", "test", "validation", "unlabeled"]

NAMES: Mapping[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "validation": (
        "val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation", "holdout", "heldout",
    ),
    "unlabeled": ("unlabeled", "unlabelled", "unsupervised"),
}  # fmt: skip
"""The names of each split, the usual name first. Case does not matter, and a word of `ENDINGS` may follow a name."""

ENDINGS = ("set", "data", "images", "split")
"""Words that may end a split's name."""

ROLES: Mapping[str, Role] = {name: role for role, names in NAMES.items() for name in names}

UNDERSTOOD = "; ".join(f"{role}: {', '.join(names)}" for role, names in NAMES.items())
"""A text for messages that lists all known names of splits."""

ABBREVIATIONS = ("tr", "ts", "te")
"""Words that stand for a split only if they are a part of a name, as in ``imagesTr`` and ``imagesTs``."""

SPLIT_WORD = re.compile("training|train|testing|test|validation|valid|val")
"""Words for splits that count even inside of other words, as in ``mytrain``."""


def role_of(name: str) -> Role | None:
    """Return the split that the name of a folder or split stands for; None if it stands for no split."""
    key = _key(name)
    return ROLES.get(key)


def _key(name: str) -> str:
    """Return a name in lower case, without separators and without an ending of `ENDINGS`."""
    letters = re.sub(r"[\W_]+", "", _plain(name))
    for ending in ENDINGS:
        if letters.removesuffix(ending) in ROLES:
            return letters.removesuffix(ending)
    return letters


def _plain(name: str) -> str:
    """Return a name in lower case, with full-width and other variant letters replaced by the usual ones."""
    return unicodedata.normalize("NFKC", name).lower()


def says_unlabeled(name: str) -> bool:
    """Say whether a name begins or ends with a word for unlabeled images, as ``unlabeled_extra`` does."""
    words = re.split(r"[\W_\d]+", _plain(name).strip("_- "))
    return ROLES.get(words[0]) == "unlabeled" or ROLES.get(words[-1]) == "unlabeled"


def group_by_role(names: Iterable[str]) -> dict[Role, list[str]]:
    """Group names by the split that they stand for, the most usual name of each split first."""
    order = list(ROLES)
    found: dict[Role, list[str]] = {role: [] for role in NAMES}
    for name in sorted(names, key=lambda name: (_key(name) not in ROLES, name)):
        role = role_of(name)
        if role is not None:
            found[role].append(name)
    return {
        role: sorted(names, key=lambda n: order.index(_key(n))) for role, names in found.items()
    }


def find_twins(names: Iterable[str]) -> list[str]:
    """Return names of one split that differ only in case, separators or ending; empty if there are none."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if role_of(name) is not None:
            groups.setdefault(_key(name), []).append(name)
    return next((group for group in groups.values() if len(group) > 1), [])


def find_look_alikes(names: Collection[str]) -> Sequence[str]:
    """Return names that differ only in a word for a split, as ``seg_train`` and ``seg_test`` do; empty if none do.

    The word may be a part of a longer word, as in ``mytrain`` and ``mytest``; one name must then contain "train".
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        rest = [word for word in words if ROLES.get(word) in (None, "unlabeled")]
        short = [word for word in rest if word not in ABBREVIATIONS]
        if short and len(short) < len(rest):
            rest = short
        if len(rest) < len(words):
            groups.setdefault(" ".join(rest), []).append(name)
    parts: dict[str, list[str]] = {}
    for name in names:
        rest_of_it, count = SPLIT_WORD.subn("*", _plain(name))
        if re.search(r"\*e?r", rest_of_it):  # "trainer" and "tester" are people, not splits
            continue
        if count:
            parts.setdefault(rest_of_it, []).append(name)
    to_train = (group for group in parts.values() if any("train" in _plain(name) for name in group))
    return next((group for group in [*groups.values(), *to_train] if len(group) > 1), [])
