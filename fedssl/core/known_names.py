"""Which names may follow a kind and a colon, such as ``torchvision:resnet18``, told without importing the library that has them.

A message about an unknown kind asks: ``model = "resnet18"`` means ``torchvision:resnet18``. An import would take seconds, so the names are
read in the library's source. Where it is written otherwise, a message only lacks the hint.
"""

import ast
import importlib.util
import re
from pathlib import Path

REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
"""How torchvision defines a classifier."""

NOT_OURS = {
    "FedProx": "our clients do not add its proximal term",
    "FedXgbBagging": "it aggregates trees, not networks",
    "FedXgbCyclic": "it aggregates trees, not networks",
}
"""Flower's strategies that cannot run here, or would run without doing what they say, each with the reason."""

NO_STRATEGIES = ("Result", "Strategy")
"""What Flower's package of strategies has besides strategies."""


def knows_no_name(name: str) -> bool:
    """Return False for every name: such a kind has no names to know."""
    return False


def is_folder(name: str) -> bool:
    """Return whether there is a folder of this name."""
    return Path(name).is_dir()


def is_npz_file(name: str) -> bool:
    """Return whether there is a file of this name that ends as numpy's archives do."""
    return Path(name).suffix == ".npz" and Path(name).is_file()


def is_torchvision_model(name: str) -> bool:
    """Return whether torchvision has a classifier of this name."""
    return any(
        name in REGISTERED.findall(file.read_text(encoding="utf-8"))
        for folder in _folders_of("torchvision")
        for file in (folder / "models").glob("*.py")
    )


def is_flower_strategy(name: str) -> bool:
    """Return whether Flower has a strategy of this name that can be used here."""
    return name in _flower_exports() and name not in (*NOT_OURS, *NO_STRATEGIES)


def _flower_exports() -> list[str]:
    """Return the names that Flower's package of strategies exports."""
    for folder in _folders_of("flwr"):
        file = folder / "serverapp" / "strategy" / "__init__.py"
        for statement in ast.parse(file.read_text(encoding="utf-8")).body if file.exists() else ():
            match statement:
                case ast.Assign([ast.Name("__all__")], ast.List(names)):
                    return [str(one.value) for one in names if isinstance(one, ast.Constant)]
    return []


def _folders_of(package: str) -> list[Path]:
    """Return the folders of a top-level package; none if it is not installed."""
    found = importlib.util.find_spec(package)
    return [Path(each) for each in (found and found.submodule_search_locations) or ()]
