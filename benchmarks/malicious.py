"""Measure the harm of one malicious client of ten under strategies that should limit it; print a table of accuracies.

    python benchmarks/malicious.py [--rounds 12] [--seed 0]

Ten clients hold digits, and all train in every round. Client 0 lies. Each lie is as harmful as the server accepts:

    far      the received model plus a long step, in the same direction in all rounds
    against  the received model minus the client's own update, made longer
    still    the received model, so that nothing is learned from the client

`far` steps 10,000 times as far as an honest update, `against` ten times. If the experiment bounds updates, both steps
are as long as the bound, which is the longest honest update of a run without a liar. The server does not know the
clients, as in a deployment. So `server.max_update_ratio` applies too, with its default value unless the table says
otherwise.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.serverapp import Grid

from fedssl.clients.client_app import app
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import RunFailed
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.families import family_at
from fedssl.experiment.settings import merge
from fedssl.metrics.drift import update_norm
from fedssl.record.rows import Observer, RoundEnd
from fedssl.server.app import serve

CLIENTS = 10
LIAR = 0

EXPERIMENT: dict[str, Any] = {
    "name": "malicious",
    "data": {"source": "digits"},
    "federation": {
        "clients": CLIENTS,
        "sample": CLIENTS,
        "labels": {"kind": "at_clients", "per_class": 100},
    },
    "model": {"widths": [8, 16], "hidden": 32},
    "method": {"kind": "supervised"},
    "train": {"local_steps": 5, "batch_size": 16, "lr": 0.05, "schedule": "cosine"},
    "server": {"evaluate_every": 100},
    "engine": {"kind": "serial"},
}

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg, max_update_ratio = 1e9": {"server": {"max_update_ratio": 1e9}},
    "fedavg": {},
    "fedavg, weight = uniform": {"strategy": {"weight": "uniform"}},
    "fedavg, max_update_norm": {"server": {"max_update_norm": math.nan}},
    "flwr:FedTrimmedAvg, beta = 0.1": {
        "strategy": {"kind": "flwr:FedTrimmedAvg", "options": {"beta": 0.1}}
    },
    "flwr:FedMedian": {"strategy": "flwr:FedMedian"},
    "flwr:Krum": {"strategy": {"kind": "flwr:Krum", "options": {"num_malicious_nodes": 1}}},
    "flwr:MultiKrum, 5 of 10": {
        "strategy": {
            "kind": "flwr:MultiKrum",
            "options": {"num_malicious_nodes": 1, "num_nodes_to_select": 5},
        }
    },
    "flwr:Bulyan": {"strategy": {"kind": "flwr:Bulyan", "options": {"num_malicious_nodes": 1}}},
    "flwr:FedMedian, max_update_norm": {
        "strategy": "flwr:FedMedian",
        "server": {"max_update_norm": math.nan},
    },
}
"""Sections of the experiment, by the strategy's name in the table; NaN stands for the bound."""

Lie = Callable[[NamedArrays, NamedArrays, float], NamedArrays]
"""A function of the received arrays, the honest arrays and the bound (infinity: none) that returns the lie."""


def far(before: NamedArrays, honest: NamedArrays, bound: float) -> NamedArrays:
    """Return the received model plus a long step in a fixed direction."""
    draw = np.random.default_rng(0)
    step = {name: draw.standard_normal(array.shape) for name, array in before.items()}
    return _step(before, step, min(bound, 1e4 * update_norm(before, honest)))


def against(before: NamedArrays, honest: NamedArrays, bound: float) -> NamedArrays:
    """Return the received model plus the honest update with its sign changed, made longer."""
    step = {name: before[name].astype(np.float64) - array for name, array in honest.items()}
    return _step(before, step, min(bound, 10 * update_norm(before, honest)))


def still(before: NamedArrays, honest: NamedArrays, bound: float) -> NamedArrays:
    """Return the received model unchanged."""
    return before


LIES: dict[str, Lie | None] = {"nobody lies": None, "far": far, "against": against, "still": still}


def _step(before: NamedArrays, step: dict[str, Any], length: float) -> NamedArrays:
    """Return arrays at a distance `length` from others, in the direction of `step`."""
    scale = length / math.sqrt(math.fsum(float(np.square(own).sum()) for own in step.values()))
    return {
        name: (array + scale * step[name]).astype(array.dtype) for name, array in before.items()
    }


class Strangers(Grid):  # type: ignore[misc]
    """Clients that the server did not start, as in a deployment: it asks them for counts and compares replies."""

    def __init__(self, answer: Any, num_clients: int) -> None:
        self._inner = SerialGrid(Apps(answer), num_clients)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return self._inner.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, and return the replies."""
        return self._inner.send_and_receive(messages)

    set_run = run = create_message = push_messages = pull_messages = None


class Norms(Observer):
    """Keep the length of a run's longest update, and the number of refused replies."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.refused = 0

    def round_ended(self, end: RoundEnd) -> None:
        """Note the updates and the refusals of a round."""
        own = [row.update_norm for row in end.clients if row.status == "ok"]
        self.longest = max([self.longest, *own])
        self.refused += len(end.failures)


def run(sections: dict[str, Any], lie: Lie | None, bound: float) -> tuple[float, Norms]:
    """Run a federation; return its last accuracy (NaN if the run failed) and the norms of its updates."""
    said = []

    def answer(message: Message, context: Context) -> Message:
        reply: Message = app(message, context)
        is_liar = context.node_config[protocol.PARTITION_ID] == LIAR
        if lie is None or not is_liar or message.metadata.message_type != "train":
            return reply
        if reply.has_error():
            # The model is so damaged that the liar cannot train either, so it sends its last lie again.
            return Message(said[-1].content, reply_to=message) if said else reply
        before = protocol.from_record(message.content.array_records[protocol.ARRAYS])
        honest = protocol.from_record(reply.content.array_records[protocol.ARRAYS])
        reply.content[protocol.ARRAYS] = protocol.to_record(lie(before, honest, bound))
        said[:] = [reply]
        return reply

    seen = Norms()
    try:
        outcome = serve(Experiment.from_dict(sections), Strangers(answer, CLIENTS), [seen])
    except RunFailed:
        return math.nan, seen
    return outcome.rounds[-1].server_accuracy, seen


def main() -> None:
    """Run every strategy with every lie, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    base = merge(EXPERIMENT, {"rounds": own.rounds, "seed": own.seed}, family_at)
    _, honest = run(base, None, math.inf)
    print(f"longest honest update: {honest.longest:.3f}\n")
    print(f"| strategy | {' | '.join(LIES)} |\n|---{'|---' * len(LIES)}|")
    for name, sections in STRATEGIES.items():
        bounded = "max_update_norm" in sections.get("server", {})
        bound = honest.longest if bounded else math.inf
        limit = {"server": {"max_update_norm": bound}}
        laid = merge(sections, limit, family_at) if bounded else sections
        cells = []
        for lie in LIES.values():
            accuracy, seen = run(merge(base, laid, family_at), lie, bound)
            cells.append("the run ends" if math.isnan(accuracy) else f"{accuracy:.1%}")
            if seen.refused and not math.isnan(accuracy):
                cells[-1] += f" ({seen.refused} refused)"
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
