"""The same file and seed give the same bits: serial, Ray with any number of workers, Flower's own runtime, twice."""

import pytest

from fedssl.experiment.families import STRATEGIES
from tests.helpers import CHAIN, fedssl, in_a_process, sha256, small_toml
from tests.resuming import bits

SERIAL = ["--engine", "serial"]

IN_PROCESSES = {
    "ray, two workers": ["--engine", "ray", "--workers", "2"],
    "ray, one worker": ["--engine", "ray", "--workers", "1", "--plain"],
    "flower": ["--engine", "flower", "--workers", "2"],
}
"""Ways to run the same files, each by one command in a process of its own; all have another display or engine."""

METHODS_BY_DOOR = {
    "supervised": "no state",
    "remixmatch": "state at the server, a network of its own, views that it names",
    "temporal_ensembling": "state by image, kept at clients",
    "vat": "gradients of its own",
    "meta_pseudo_labels": "two networks, steps of its own",
    "dividemix": "batches and splits of its own",
    "moco": "a queue, no classifier",
    "comatch": "a bank, which the workers fill",
    "semifl": "clients that sit out",
    "noisy_student": "the network of the phase before",
}
"""Methods that together use every part of the interface between a method and an engine, and the part that each adds.

`tests/contract/test_methods.py` compares the bits of every method on the serial grid and on Ray's.
"""

MANY_METHODS = {
    "rounds": None,
    "phases": [{"rounds": 2, "method": {"kind": name}} for name in METHODS_BY_DOOR],
    "augment": {"strong": "ctaugment"},
}
"""Two rounds of each method, one after the other: a bit that differs anywhere differs at the end."""


EVERY_STRATEGY = {
    "rounds": None,
    "phases": [
        {"rounds": 2, "strategy": {"kind": name}} for name in STRATEGIES.names() if name != "flwr"
    ],
}
"""Two rounds of each strategy of ours, one after the other."""

OTHER_FEDERATION = {
    "federation": {
        "labels": {"kind": "at_server", "per_class": 4},
        "features": {"kind": "noise", "max_std": 0.3},
    }
}

SUB_COHORTS = {
    "federation": {"sample": 3, "labels": {"kind": "some_clients", "labeled_clients": 1}},
    "method": {"kind": "mean_teacher", "teacher_scope": "client", "temperature": 0.5},
    "train": {"keep_momentum": True},
    "strategy": {"kind": "rscfed", "distance_weight": 100.0, "labeled_distance_weight": 1.0},
}
"""Three sub-cohorts of three of six clients: in each round, some client trains several times from its own state."""

CASES = {
    "methods": MANY_METHODS,
    "strategies": EVERY_STRATEGY,
    "labels_at_server": OTHER_FEDERATION,
    "networks_by_phase": CHAIN,
    "sub_cohorts": SUB_COHORTS,
}
"""What is run on every engine; all but the last sample five clients, so that they share the workers of a command."""


@pytest.fixture(scope="module")
def outs(tmp_path_factory):
    """Return the folder of each way to run all cases: in this process by the serial engine, and by each command."""
    folder = tmp_path_factory.mktemp("same-bits")
    files = []
    for name, case in CASES.items():
        federation = {"sample": 5, **case.get("federation", {})}
        case = {**case, "name": name, "federation": federation}
        files.append(small_toml(folder / f"{name}.toml", **case))
    result = fedssl("run", *files, "--out", folder / "serial", *SERIAL)
    assert result.exit_code == 0, result.output
    for name, options in IN_PROCESSES.items():
        in_a_process("run", *files, "--out", folder / name, *options)
    return {name: folder / name for name in ("serial", *IN_PROCESSES)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES)
def test_the_installed_command_gives_the_same_bits_on_every_engine(outs, case):
    sums = {name: bits(out / f"{case}-seed0") for name, out in outs.items()}
    first = sums["serial"]
    assert {"model.safetensors", "ema.safetensors", "classes.csv"} < first.keys()
    assert all(left == first for left in sums.values()), sums


def test_another_seed_is_another_model(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    for seed in (0, 1):
        out = tmp_path / str(seed)
        assert fedssl("run", file, "--set", f"seed={seed}", "--out", out).exit_code == 0
    assert sha256(tmp_path / "0" / "model.safetensors") != sha256(
        tmp_path / "1" / "model.safetensors"
    )
