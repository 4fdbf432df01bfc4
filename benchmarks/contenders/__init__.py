"""The measured contenders, one file each; each runs in a process of its own (`python -m benchmarks.contenders`)."""

from dataclasses import dataclass, field
from typing import Any

PFL = "pip install 'pfl>=0.6,<0.7', or this project's extra 'bench'"
BLAZEFL = (
    "pip install 'blazefl>=2,<3' tqdm (it asks for Python 3.12; version 2 also runs on 3.11, with "
    "pip install --ignore-requires-python --no-deps)"
)


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Args:
        module: Module of this package that holds the contender's `run`.
        variant: Further arguments of `run`, beside the job.
        package: Package that must be installed beyond fedssl's own dependencies.
        install: How to install the package.
        parallel: Whether the contender uses the given number of workers; else it uses one process.
        torchrun: Whether torchrun starts the contender, once per worker.
    """

    module: str
    variant: dict[str, Any] = field(default_factory=dict)
    package: str | None = None
    install: str = ""
    parallel: bool = False
    torchrun: bool = False


CONTENDERS = {
    "plain": Contender("plain"),
    "fedssl": Contender("ours", parallel=True),
    "fedssl-serial": Contender("ours", {"kind": "serial", "fuse": "off"}),
    "fedssl-ray": Contender("ours", {"kind": "ray", "fuse": "off"}, parallel=True),
    "fedssl-ray-fused": Contender("ours", {"kind": "ray", "fuse": "on"}, parallel=True),
    "flower": Contender("flower", parallel=True),
    "flower-fedssl": Contender("ours", {"kind": "flower"}, parallel=True),
    "pfl": Contender("pfl", package="pfl", install=PFL),
    "pfl-torchrun": Contender("pfl", package="pfl", install=PFL, parallel=True, torchrun=True),
    "blazefl-serial": Contender("blazefl", {"mode": "serial"}, "blazefl", BLAZEFL),
    "blazefl-threads": Contender("blazefl", {"mode": "threads"}, "blazefl", BLAZEFL, True),
    "blazefl-processes": Contender("blazefl", {"mode": "processes"}, "blazefl", BLAZEFL, True),
}
"""The contenders, by their name on the command line."""
