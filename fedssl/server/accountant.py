"""The accountant of ``[privacy]``: what the noise of a whole run promises, and the noise that keeps a promise.

Two data sets are neighbors if all data of one client is replaced by other data. That client's clipped update then moves by
2 C at most, and the noise has deviation z C: a Gaussian mechanism whose noise is z / 2 times its sensitivity. The rounds
are composed by Google's dp-accounting, which is imported only if an experiment has noise, and so is scipy.

- Noise at the client protects from the server too, and the server knows which clients it asks. So sampling hides nothing:
  the n rounds of the client that is asked most often count, as one Gaussian mechanism of sensitivity sqrt(n) (exact).
- Noise at the server protects from people who see the models. Each round draws a cohort without replacement. For people
  who do not know the cohorts, this makes the promise stronger (Renyi accountant). For people who know them, such as
  everybody who has the experiment's seed, the n rounds of a client count as above.

Reference:
    Balle & Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal
    Denoising", ICML 2018, arXiv:1805.06530, for Gaussian mechanisms. Wang, Balle & Kasiviswanathan, "Subsampled Renyi
    Differential Privacy and Analytical Moments Accountant", AISTATS 2019, arXiv:1808.00087, theorem 27, for samples that
    are drawn without replacement.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from fedssl.core.extras import is_installed, require
from fedssl.exchange.census import Census
from fedssl.experiment.experiment import Experiment, PhasePlan
from fedssl.experiment.privacy import EXTRA, Account
from fedssl.experiment.system.availability.always import Always
from fedssl.server.virtual_time import cohorts_of
from fedssl.strategies.base import SeededStrategy, strategy_of
from fedssl.strategies.flwr import Flwr

LIBRARY = "dp_accounting"

ORDERS = (*range(2, 17), 20, 24, 32, 48, 64, 96, 128)
"""Orders of Renyi divergence that are tried. More orders would sharpen epsilon below .1 and take longer."""

SENSITIVITY = 2.0
"""If a client's data is replaced, the sum of clipped updates moves by this many times C at most."""

FAR_BELOW = 0.1
"""Delta times the number of clients should be at most this: it may be the probability that some client is laid open."""

DIGITS = 4
"""A chosen noise multiplier is rounded up to this many digits, so that another version of the library chooses the same."""


@dataclass(frozen=True)
class Exposure:
    """How often a run asks its clients: all that the accountant must know of an experiment beside its noise.

    Args:
        most: Rounds in which the client is asked that is asked most often.
        rounds: Rounds of the run.
        cohorts: For each phase, (K clients, clients asked in a round, rounds), if noise is at the server and cohorts are
            drawn uniformly; empty: sampling hides nothing.
    """

    most: int
    rounds: int
    cohorts: tuple[tuple[int, int, int], ...] = ()


def account_for(experiment: Experiment) -> Account | None:
    """Return the account of a whole run; None if it has no noise. Without the library, epsilon is NaN.

    Raises:
        InputError: ``privacy.epsilon`` asks for noise, and the library is not installed.
    """
    privacy = with_chosen_noise(experiment).privacy
    if privacy is None or not privacy.noise_multiplier:
        return None
    exposure = _exposure_of(experiment)
    multiplier, delta = privacy.noise_multiplier, privacy.delta
    epsilon = known = math.nan
    if is_installed(LIBRARY):
        epsilon = epsilon_of(multiplier, delta, exposure)
        known = gaussian_epsilon(multiplier, delta, exposure.most)
    return Account(epsilon, known, delta, multiplier, _describe(experiment, exposure))


def with_chosen_noise(experiment: Experiment) -> Experiment:
    """Return an experiment that names its noise multiplier: the least that keeps ``privacy.epsilon``, if that is set.

    Raises:
        InputError: The library is not installed.
    """
    privacy = experiment.privacy
    if privacy is None or privacy.epsilon is None:
        return experiment
    require(LIBRARY, "privacy.epsilon", "the noise for an epsilon", EXTRA)
    chosen = choose_noise(privacy.epsilon, privacy.delta, _exposure_of(experiment))
    settings = {"epsilon": None, "noise_multiplier": chosen}
    return experiment.model_copy(update={"privacy": privacy.model_copy(update=settings)})


def gaussian_epsilon(multiplier: float, delta: float, rounds: int) -> float:
    """Return epsilon for a client that takes part in some rounds, for people who know in which.

    Args:
        multiplier: z, above 0.
        delta: The probability that the promise may fail, in (0, 1).
        rounds: Number of these rounds.
    """
    import dp_accounting

    return float(
        dp_accounting.get_epsilon_gaussian(multiplier / (SENSITIVITY * math.sqrt(rounds)), delta)
    )


@functools.lru_cache(maxsize=64)
def epsilon_of(multiplier: float, delta: float, exposure: Exposure) -> float:
    """Return epsilon of a whole run, for people who do not know the cohorts if these are drawn uniformly.

    Args:
        multiplier, delta: As in `gaussian_epsilon`.
        exposure: How often the run asks its clients.
    """
    if not exposure.cohorts:
        return gaussian_epsilon(multiplier, delta, exposure.most)
    import dp_accounting
    from dp_accounting import rdp

    # Whatever the cohorts are, a client takes part in every round at most; the Renyi bound is not always below this.
    epsilon = gaussian_epsilon(multiplier, delta, exposure.rounds)
    if all(asked == clients for clients, asked, _ in exposure.cohorts):
        return epsilon
    accountant = rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.REPLACE_ONE)
    for clients, asked, rounds in exposure.cohorts:
        noise = dp_accounting.GaussianDpEvent(multiplier / SENSITIVITY)
        sampled = dp_accounting.SampledWithoutReplacementDpEvent(clients, asked, noise)
        accountant.compose(sampled, rounds)
    return min(epsilon, float(accountant.get_epsilon(delta)))


@functools.lru_cache(maxsize=64)
def choose_noise(epsilon: float, delta: float, exposure: Exposure) -> float:
    """Return the least noise multiplier with at most this epsilon, rounded up to `DIGITS` digits.

    Args:
        epsilon: The promise, above 0.
        delta, exposure: As in `epsilon_of`.
    """
    import dp_accounting
    from scipy.optimize import brentq

    # Without the gain from sampling, the noise is known in closed form.
    rounds = exposure.rounds if exposure.cohorts else exposure.most
    ratio = float(dp_accounting.get_sigma_gaussian(epsilon, delta))
    enough = SENSITIVITY * ratio * math.sqrt(rounds)

    # With it, less noise may do: find where epsilon is met.
    def excess(multiplier: float) -> float:
        return epsilon_of(multiplier, delta, exposure) - epsilon

    if exposure.cohorts:
        too_little = enough / 2
        while excess(too_little) <= 0:
            enough, too_little = too_little, too_little / 2
        if excess(enough) < 0:
            enough = brentq(excess, too_little, enough, rtol=10.0**-DIGITS)
    step = 10.0 ** (math.floor(math.log10(enough)) - DIGITS + 1)
    steps = math.ceil(enough / step)
    while excess(steps * step) > 0:
        steps += 1
    return float(f"{steps * step:.{DIGITS}g}")


@functools.lru_cache(maxsize=8)
def _exposure_of(experiment: Experiment) -> Exposure:
    """Return how often a run asks its clients.

    The cohorts derive from the seed, so the rounds of each client can be counted before the run. They are not counted
    where clients may be away or a strategy of somebody's own chooses them: a client may then be asked in every round.
    """
    privacy, system, clients = experiment.privacy, experiment.system, experiment.federation.clients
    assert privacy is not None
    always = system is None or isinstance(system.availability, Always)
    cohorts = cohorts_of(experiment, Census.unknown(clients))
    counts = np.zeros(clients, dtype=np.int64)
    done, phases = 0, []
    for plan in experiment.plans:
        cohorts.sample = plan.federation.sample
        drawn = [cohorts.draw(done + i) for i in range(1, plan.num_rounds + 1)]
        known = always and _draws_plainly(plan)
        for cohort in drawn:
            counts[cohort if known else slice(None)] += 1
        phases.append((clients, len(drawn[0]), plan.num_rounds))
        done += plan.num_rounds
    drawn_uniformly = always and privacy.noise_at == "server"
    return Exposure(int(counts.max()), done, tuple(phases) if drawn_uniformly else ())


def _draws_plainly(plan: PhasePlan) -> bool:
    """Say whether a phase's strategy asks the cohort that `Cohorts.draw` draws."""
    strategy = strategy_of(plan)
    if isinstance(strategy, Flwr):
        return True
    built = strategy.build(cohorts_of(plan, Census.unknown(plan.federation.clients)))
    return isinstance(built, SeededStrategy) and type(built).select is SeededStrategy.select


def _describe(experiment: Experiment, exposure: Exposure) -> str:
    """Return what an account rests on, as a phrase."""
    privacy = experiment.privacy
    assert privacy is not None
    clients = experiment.federation.clients
    weak = "; delta is not far below 1 / clients" if privacy.delta * clients > FAR_BELOW else ""
    if not exposure.cohorts:
        most = f"the client that is asked most often is asked in {exposure.most} of {exposure.rounds} rounds"
        return f"noise at the {privacy.noise_at}; {most}{weak}"
    asked = " or ".join(str(number) for number in sorted({each[1] for each in exposure.cohorts}))
    drawn = f"{asked} of {clients} clients drawn in each of {exposure.rounds} rounds"
    return f"noise at the server; {drawn}{weak}"
