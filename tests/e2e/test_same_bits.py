"""The same file and seed give the same bits: serial, Ray with any number of workers, Flower's own runtime, twice."""

import pytest

from fedssl.experiment.families import STRATEGIES
from tests.helpers import CHAIN, fedssl, finished, in_a_process, sha256, small_toml
from tests.resuming import bits

MOST_SECONDS = 900
"""Time (seconds) of one command with all cases on a machine that is busy with other tests."""

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
    "fedema": "weights of its own, kept at clients",
    "comatch": "a bank, which the workers fill",
    "semifl": "clients that sit out",
    "proxyfl": "state that every client counts alike in",
    "noisy_student": "the network of the phase before",
}
"""Methods that together use every part of the interface between a method and an engine, and the part that each adds.

`tests/contract/test_methods.py` compares the bits of every method on the serial grid and on Ray's.
"""

METHODS_AND_STRATEGIES = {
    "rounds": None,
    "phases": [
        *(
            {"rounds": 2, "strategy": {"kind": name}}
            for name in STRATEGIES.names()
            if name != "flwr"
        ),
        *({"rounds": 2, "method": {"kind": name}} for name in METHODS_BY_DOOR),
    ],
    "augment": {"strong": "ctaugment"},
}
"""Two rounds of each strategy of ours and of each method, one after the other: a bit that differs anywhere differs at the end."""

SUB_COHORTS = {
    "federation": {"sample": 3, "labels": {"kind": "some_clients", "labeled_clients": 1}},
    "method": {"kind": "mean_teacher", "teacher_scope": "client", "temperature": 0.5},
    "train": {"keep_momentum": True},
    "strategy": {"kind": "rscfed", "distance_weight": 100.0, "labeled_distance_weight": 1.0},
}
"""Three sub-cohorts of three of six clients: in each round, some client trains several times from its own state."""

LABELS_AT_SERVER = {
    "rounds": None,
    "federation": {
        "labels": {"kind": "at_server", "per_class": 4},
        "features": {"kind": "noise", "max_std": 0.3},
    },
    "phases": [
        {
            "rounds": 3,
            "method": {
                "kind": "fedmatch",
                "labels": "server",
                "threshold": 0.1,
                "unlabeled_ratio": 2,
            },
            "train": {"lr": 0.005},
            "strategy": {"kind": "fedmatch", "delta_threshold": 1e-4},
        },
        {"rounds": 2},
    ],
}
"""Another federation, whose server trains. First each client is sent its own model and helpers, a part of the weights does not come back,
and messages are sparse."""

CASES = {
    "methods_and_strategies": METHODS_AND_STRATEGIES,
    "labels_at_server": LABELS_AT_SERVER,
    "networks_by_phase": CHAIN,
    "sub_cohorts": SUB_COHORTS,
}
"""What is run on every engine; all but the last sample five clients, so that they share the workers of a command."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the experiment file of each case."""
    folder = tmp_path_factory.mktemp("files")
    written = []
    for name, case in CASES.items():
        federation = {"sample": 5, **case.get("federation", {})}
        case = {**case, "name": name, "federation": federation}
        written.append(small_toml(folder / f"{name}.toml", **case))
    return written


@pytest.fixture(scope="module")
def serial(files, tmp_path_factory):
    """Return the folder of the runs of the serial engine, in this process."""
    out = tmp_path_factory.mktemp("serial")
    finished(fedssl("run", *files, "--out", out, *SERIAL))
    return out


@pytest.fixture(scope="module", params=IN_PROCESSES)
def other(request, files, tmp_path_factory):
    """Return the folder of the runs of one command in a process of its own."""
    out = tmp_path_factory.mktemp("other")
    in_a_process("run", *files, "--out", out, *IN_PROCESSES[request.param], timeout=MOST_SECONDS)
    return out


@pytest.mark.timeout(2 * MOST_SECONDS)
@pytest.mark.parametrize("case", CASES)
def test_the_installed_command_gives_the_same_bits_on_every_engine(serial, other, case):
    first, second = (bits(out / f"{case}-seed0") for out in (serial, other))
    assert {"model.safetensors", "ema.safetensors", "classes.csv"} < first.keys()
    assert second == first


def test_another_seed_is_another_model(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    for seed in (0, 1):
        out = tmp_path / str(seed)
        assert fedssl("run", file, "--set", f"seed={seed}", "--out", out).exit_code == 0
    assert sha256(tmp_path / "0" / "model.safetensors") != sha256(
        tmp_path / "1" / "model.safetensors"
    )
