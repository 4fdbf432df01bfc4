"""Compute what virtual time needs of an experiment: how clients are sampled, and how much work each client has."""

from collections.abc import Callable, Sequence

import numpy as np

from fedssl.core.arrays import unique_pairs
from fedssl.core.errors import InputError
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.initial_state import initial_state
from fedssl.experiment.experiment import PhasePlan, RunSettings
from fedssl.experiment.system.clock import Fate, VirtualClock
from fedssl.experiment.system.devices import Floats
from fedssl.server.carry_over import last_network, shared_weights
from fedssl.strategies.base import SeededStrategy, strategy_of
from fedssl.training.network import weights_sent_back

ROUNDS_DRAWN = 20
"""So many rounds are drawn to see how often a strategy asks a client within a round."""


def make_clock(experiment: RunSettings) -> VirtualClock | None:
    """Return the run's virtual clock; None if the experiment has no ``[system]``.

    Raises:
        InputError: A law or a file of the section is wrong.
    """
    if experiment.system is None:
        return None
    return VirtualClock(experiment.system, experiment.federation.clients, experiment.seed)


def cohorts_of(experiment: RunSettings, census: Census) -> Cohorts:
    """Return how an experiment's clients are sampled."""
    over = 1.0 if experiment.system is None else experiment.system.over_selection
    return Cohorts(census, experiment.federation.sample, experiment.seed, over)


def work_of(phase: PhasePlan, census: Census) -> Floats:
    """Return each client's work in a round of a phase, in images that one network trains on, (K,)."""
    return _of_each_client(phase.recipe.work, census)


def steps_of(phase: PhasePlan, census: Census) -> Floats:
    """Return the number of steps that each client takes in a round of a phase, (K,)."""
    return _of_each_client(phase.recipe.num_steps, census)


def first_work_of(phase: PhasePlan, census: Census) -> Floats:
    """Return the work that each client has beside this in its first round of the phase, in the same unit, (K,)."""
    return _of_each_client(phase.recipe.first_work, census)


def _of_each_client(count: Callable[[int, int], float], census: Census) -> Floats:
    """Return a function's value at each client's number of labeled and of all images, (K,)."""
    pairs, which = unique_pairs(census.num_labeled, census.num_examples)
    return np.array([count(*pair) for pair in pairs.tolist()], dtype=np.float64)[which]


def times_asked(phase: PhasePlan, census: Census) -> Floats:
    """Return how often each round asks each client, (R, K); R is 1 if the strategy asks no client several times."""
    strategy = strategy_of(phase)
    if not strategy.repeats_clients:
        return np.ones((1, len(census)))
    built = strategy.build(cohorts_of(phase, census))
    assert isinstance(built, SeededStrategy), "only strategies of ours ask a client several times"
    rounds = range(1, ROUNDS_DRAWN + 1)
    counts = [np.bincount(built.select(number), minlength=len(census)) for number in rounds]
    return np.array(counts, dtype=np.float64)


def fates_of(
    clock: VirtualClock,
    server_round: int,
    clients: Sequence[int],
    sizes: Sequence[int],
    reply_bytes: int,
    cohorts: Cohorts,
    work: Floats,
    once: Floats | float = 0.0,
) -> dict[int, Fate]:
    """Return the outcome of a round in virtual time for each client that is asked.

    A client that is asked several times answers its requests one after the other, and its last reply must come in time.

    Args:
        clock: The run's clock; the round's time passes on it.
        server_round: Round of the run, from 1.
        clients: The client of each request.
        sizes: Bytes of each request's arrays that travel.
        reply_bytes: Bytes of a reply's arrays.
        cohorts: How clients are sampled.
        work: Work of each client of the run for one request, in images that one network trains on, (K,).
        once: Work of each client in this round, however often it is asked, (K,), in the same unit.
    """
    times = np.bincount(clients, minlength=len(work)).astype(np.float64)
    down = np.bincount(clients, weights=sizes, minlength=len(work)).astype(np.float64)
    seconds = clock.devices.round_seconds(work * times + once, down, reply_bytes * times)
    distinct = list(dict.fromkeys(clients))
    return clock.close_round(server_round, distinct, cohorts.num_wanted(clients), seconds)


def round_seconds(
    phase: PhasePlan, census: Census, clock: VirtualClock, spec: ImageSpec, times: float | Floats
) -> Floats:
    """Return the virtual seconds that its first round of a phase takes each client, (K,), before anything runs.

    Args:
        phase: The phase.
        census: The clients.
        clock: The run's clock.
        spec: What all images have in common.
        times: How often the round asks a client, (K,), or one number for all clients.
    """
    network = phase.build_network(spec)
    last = last_network(phase, spec)
    previous = None if last is None else last.classifier
    recipe, shared = phase.recipe, shared_weights(network, phase.method)
    weights = {name: protocol.as_numpy(tensor) for name, tensor in shared.items()}
    state = initial_state(recipe, network, spec, "server", previous)
    back = {name: weights[name] for name in weights_sent_back(network, phase.method)}
    down = protocol.encoded_bytes({**weights, **state})
    up = protocol.encoded_bytes({**back, **state})
    once = protocol.encoded_bytes(initial_state(recipe, network, spec, "phase", previous))
    work = work_of(phase, census) * times + first_work_of(phase, census)
    return clock.devices.round_seconds(work, down * times + once, up * times)


def typical_seconds(
    phase: PhasePlan, census: Census, clock: VirtualClock, spec: ImageSpec
) -> Floats:
    """Return the virtual seconds of a round that asks each client as often as a round does on average, (K,)."""
    asked = times_asked(phase, census)
    return round_seconds(phase, census, clock, spec, asked.sum() / np.count_nonzero(asked))


def check_deadline(phase: PhasePlan, census: Census, clock: VirtualClock, spec: ImageSpec) -> None:
    """Refuse a deadline that no client can meet.

    Raises:
        InputError: No client can meet the deadline; says how long the fastest client needs.
    """
    deadline = None if phase.system is None else phase.system.deadline
    if deadline is None:
        return
    asked = times_asked(phase, census)
    # A client that a strategy asks several times on average may be asked less often in some round.
    fewest = np.where(asked > 0, asked, np.inf).min(0)
    fewest[~np.isfinite(fewest)] = 1
    seconds = round_seconds(phase, census, clock, spec, fewest)
    if seconds.min() > deadline:
        raise InputError(
            "system.deadline",
            f"is {deadline:g} s, but the fastest client needs {seconds.min():.3g} s for a round, "
            f"half of the clients need at most {np.quantile(seconds, 0.5, method='inverted_cdf'):.3g} s, "
            f"and the slowest needs {seconds.max():.3g} s",
            "raise system.deadline, or give clients less to do",
        )
