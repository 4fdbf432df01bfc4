"""The same file and seed give the same bits: serial, Ray with any number of workers, Flower's own runtime, twice."""

import pytest

from fedssl.experiment.families import STRATEGIES
from tests.helpers import CHAIN, fedssl, in_a_process, sha256, small_toml
from tests.methods.examples import FIRST_METHODS, NEEDS_EARLIER_PHASE
from tests.resuming import bits

SERIAL = ["--engine", "serial"]
THREE_WORKERS = ["--engine", "ray", "--workers", "3"]

EVERY_METHOD = {
    "rounds": None,
    "phases": [
        {"rounds": 2, "method": {"kind": name}}
        for name in [*FIRST_METHODS, *sorted(NEEDS_EARLIER_PHASE)]
    ],
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
        "sample": 5,
        "labels": {"kind": "at_server", "per_class": 4},
        "features": {"kind": "noise", "max_std": 0.3},
    }
}

SUB_COHORTS = {
    "federation": {"labels": {"kind": "some_clients", "labeled_clients": 1}},
    "method": {"kind": "mean_teacher", "teacher_scope": "client", "temperature": 0.5},
    "train": {"keep_momentum": True},
    "strategy": {"kind": "rscfed", "distance_weight": 100.0, "labeled_distance_weight": 1.0},
}
"""Three sub-cohorts of three of six clients: in each round, some client trains several times from its own state."""

CASES = {
    "every method": (
        {"federation": {"sample": 5}, **EVERY_METHOD},
        [SERIAL, THREE_WORKERS, ["--engine", "flower", "--workers", "2"]],
    ),
    "every strategy": (
        {"federation": {"sample": 4}, **EVERY_STRATEGY},
        [SERIAL, ["--engine", "ray", "--workers", "1"], THREE_WORKERS, ["--engine", "flower"]],
    ),
    "labels at the server, noise by client": (
        OTHER_FEDERATION,
        [SERIAL, ["--engine", "ray", "--workers", "1"], THREE_WORKERS, [*THREE_WORKERS, "--plain"]],
    ),
    "phases that change the network": (
        {"federation": {"sample": 5}, **CHAIN},
        [SERIAL, THREE_WORKERS, ["--engine", "flower", "--workers", "2"]],
    ),
    "sub-cohorts": (
        SUB_COHORTS,
        [
            SERIAL,
            ["--engine", "ray", "--workers", "1"],
            THREE_WORKERS,
            ["--engine", "flower", "--workers", "2"],
        ],
    ),
}
"""What is run, and in which ways; a way that is there twice is run twice."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("changes", "variants"), CASES.values(), ids=CASES)
def test_the_installed_command_gives_the_same_bits_on_every_engine(tmp_path, changes, variants):
    file = small_toml(tmp_path / "e.toml", **changes)
    sums = {}
    for i, variant in enumerate(variants):
        out = tmp_path / str(i)
        in_a_process("run", file, "--out", out, *variant)
        sums[" ".join(variant)] = bits(out)
    (first, *others) = sums.values()
    assert {"model.safetensors", "ema.safetensors", "classes.csv"} < first.keys()
    assert all(left == first for left in others), sums


def test_another_seed_is_another_model(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    for seed in (0, 1):
        out = tmp_path / str(seed)
        assert fedssl("run", file, "--set", f"seed={seed}", "--out", out).exit_code == 0
    assert sha256(tmp_path / "0" / "model.safetensors") != sha256(
        tmp_path / "1" / "model.safetensors"
    )
