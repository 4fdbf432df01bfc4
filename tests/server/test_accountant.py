"""What the noise of a whole run promises: closed forms, a published example, and neighbors that nobody may tell apart better."""

import json
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from fedssl.app.simulation import Engine, check_experiment
from fedssl.clients.client_app import app
from fedssl.core import extras
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.record.run_directory import RunDirectory
from fedssl.server import accountant
from fedssl.server.accountant import (
    Exposure,
    account_for,
    choose_noise,
    epsilon_of,
    gaussian_epsilon,
    with_chosen_noise,
)
from fedssl.server.app import serve
from fedssl.server.virtual_time import cohorts_of
from tests.helpers import fedssl, refused, small_experiment, small_toml

UNIFORM = {"kind": "fedavg", "weight": "uniform"}


def private(privacy, **sections):
    return small_experiment(
        privacy={"clipping_norm": 1.0, **privacy}, **{"strategy": UNIFORM, **sections}
    )


def gaussian_delta(epsilon, shift):
    """Return the least delta of N(0, 1) against N(shift, 1), Balle & Wang 2018, theorem 8."""
    tail = norm.cdf(-shift / 2 - epsilon / shift)
    return norm.cdf(shift / 2 - epsilon / shift) - math.exp(epsilon) * tail


@pytest.mark.parametrize("z", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 50])
def test_one_and_many_rounds_have_the_closed_form_of_the_gaussian_mechanism(z, rounds):
    """The replaced client moves the sum by 2 C, n rounds move it by sqrt(n) 2 C, and the deviation is z C."""
    delta = 1e-5
    epsilon = epsilon_of(z, delta, Exposure(rounds, 100))
    assert gaussian_delta(epsilon, 2 * math.sqrt(rounds) / z) == pytest.approx(delta, rel=1e-6)


def test_the_librarys_own_example():
    """Three Gaussian mechanisms of noise sqrt(3) are (1, 0.126936)-private: dp-accounting's test of its accountant."""
    z = 2 * math.sqrt(3)
    assert gaussian_epsilon(z, 0.126936, rounds=3) == pytest.approx(1, abs=1e-3)


def test_another_accountant_of_the_library_agrees():
    """It counts privacy losses numerically, and takes the deviation over C for neighbors that replace one."""
    import dp_accounting
    from dp_accounting import pld

    counted = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    counted.compose(dp_accounting.GaussianDpEvent(8.0), 20)
    assert epsilon_of(8.0, 1e-5, Exposure(20, 40)) == pytest.approx(
        counted.get_epsilon(1e-5), rel=1e-3
    )


def exact_delta(epsilon, z, share):
    """Return the delta of two neighbors that differ most: the other clients send nothing, one sends C or -C."""

    def densities(x):
        rest = (1 - share) * norm.pdf(x, 0, z)
        return rest + share * norm.pdf(x, 1, z), rest + share * norm.pdf(x, -1, z)

    def excess(x):
        one, other = densities(x)
        return max(0.0, one - math.exp(epsilon) * other)

    return quad(excess, -10 * z, 10 * z + 2, limit=500)[0]


@pytest.mark.parametrize(("clients", "asked", "z"), [(10, 5, 2.0), (100, 10, 1.0), (20, 2, 4.0)])
def test_sampling_in_secret_promises_no_more_than_is_true_and_more_than_without(clients, asked, z):
    """In one round the exact loss of a pair of neighbors is known: the bound may not be below it."""
    epsilon = epsilon_of(z, 1e-3, Exposure(1, 1, ((clients, asked, 1),)))
    assert exact_delta(epsilon, z, asked / clients) <= 1e-3
    assert epsilon <= gaussian_epsilon(z, 1e-3, rounds=1)


def test_a_sample_of_all_hides_nothing_and_a_smaller_sample_hides_more():
    def at(asked):
        return epsilon_of(4.0, 1e-5, Exposure(40, 40, ((100, asked, 40),)))

    assert at(100) == gaussian_epsilon(4.0, 1e-5, 40)
    assert at(100) >= at(20) > at(5) > at(1) > 0


def test_two_phases_are_composed():
    both = epsilon_of(6.0, 1e-5, Exposure(30, 30, ((50, 5, 10), (50, 5, 20))))
    assert both == pytest.approx(epsilon_of(6.0, 1e-5, Exposure(30, 30, ((50, 5, 30),))))


@pytest.mark.parametrize("epsilon", [0.3, 2.0, 30.0])
@pytest.mark.parametrize("cohorts", [(), ((100, 10, 40),), ((8, 8, 40),)])
def test_the_chosen_noise_is_the_least_that_keeps_the_promise(epsilon, cohorts):
    exposure = Exposure(40, 40, cohorts)
    z = choose_noise(epsilon, 1e-5, exposure)
    assert epsilon_of(z, 1e-5, exposure) <= epsilon
    assert epsilon_of(z * (1 - 1e-3), 1e-5, exposure) > epsilon
    assert float(f"{z:.4g}") == z


def test_noise_at_the_client_counts_the_rounds_of_the_client_that_is_asked_most_often():
    experiment = private({"noise_multiplier": 3.0}, rounds=30)
    cohorts = cohorts_of(experiment, Census.unknown(6))
    most = max(np.bincount(np.concatenate([cohorts.draw(r) for r in range(1, 31)])))
    account = account_for(experiment)
    assert account.epsilon == account.epsilon_known == gaussian_epsilon(3.0, 1e-5, int(most))
    assert f"asked in {most} of 30 rounds" in account.describe()


def test_rounds_are_those_of_all_phases_and_a_phase_may_sample_another_number():
    phases = [{"rounds": 4}, {"rounds": 6, "federation": {"sample": 6}}]
    experiment = private(
        {"noise_multiplier": 3.0, "noise_at": "server"}, rounds=None, phases=phases
    )
    account = account_for(experiment)
    expected = epsilon_of(3.0, 1e-5, Exposure(10, 10, ((6, 3, 4), (6, 6, 6))))
    assert account.epsilon == expected
    assert "3 or 6 of 6 clients drawn in each of 10 rounds" in account.basis
    assert account.epsilon_known < gaussian_epsilon(3.0, 1e-5, 10)


@pytest.mark.parametrize(
    ("sections", "at"),
    [
        ({"system": {"availability": {"kind": "random", "probability": 0.5}}}, "server"),
        ({"strategy": {"kind": "tests.plugins.listed", "clients": [1, 2]}}, "client"),
    ],
)
def test_a_client_counts_in_every_round_where_nobody_knows_which_are_asked(sections, at):
    account = account_for(private({"noise_multiplier": 3.0, "noise_at": at}, rounds=9, **sections))
    assert account.epsilon == account.epsilon_known == gaussian_epsilon(3.0, 1e-5, 9)


def test_over_selection_asks_more_clients():
    noise = {"noise_multiplier": 3.0, "noise_at": "server"}
    account = account_for(private(noise, system={"over_selection": 1.5}))
    assert "5 of 6 clients" in account.basis


def test_a_delta_that_lets_one_of_the_clients_be_laid_open_is_said():
    said = [account_for(private({"noise_multiplier": 3.0, "delta": d})).basis for d in (0.1, 1e-3)]
    assert ["delta is not far below 1 / clients" in basis for basis in said] == [True, False]


def test_without_noise_there_is_no_account():
    assert account_for(small_experiment()) is None
    assert account_for(private({})) is None


class Tapped(SerialGrid):
    """A grid that keeps the privacy section of every request."""

    def __init__(self):
        super().__init__(Apps(self._ask), 6)
        self.sections = []

    def _ask(self, message, context):
        request = protocol.read_request(message)
        self.sections.append(json.loads(request.experiment)["privacy"])
        return app(message, context)


def test_clients_are_sent_the_chosen_noise_and_the_record_keeps_the_promise(tmp_path):
    experiment = private({"epsilon": 50.0})
    check_experiment(experiment)
    grid = Tapped()
    serve(experiment, grid, [RunDirectory(tmp_path / "run")])
    chosen = with_chosen_noise(experiment).privacy.noise_multiplier
    assert chosen > 0
    for section in grid.sections:
        assert section["noise_multiplier"] == chosen
        assert "epsilon" not in section
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["noise_multiplier"] == chosen
    assert 49.9 < summary["epsilon"] <= 50
    assert summary["delta"] == 1e-5
    assert "epsilon = 50" in (tmp_path / "run" / "experiment.toml").read_text()
    explicit = private({"noise_multiplier": chosen})
    with Engine() as engine:
        same = engine.run(explicit).model.arrays
    other = serve(experiment, SerialGrid(Apps(app), 6), []).model.arrays
    assert all(same[name].tobytes() == array.tobytes() for name, array in other.items())


def test_validate_and_the_report_say_epsilon(tmp_path):
    file = small_toml(
        tmp_path / "e.toml",
        strategy=UNIFORM,
        privacy={"clipping_norm": 1.0, "noise_multiplier": 3.0, "noise_at": "server"},
    )
    said = fedssl("validate", file)
    assert said.exit_code == 0, said.output
    account = account_for(small_experiment(**json_sections(file)))
    assert f"privacy: epsilon {account.epsilon:.3g} (" in said.output
    assert "for people who know the cohorts), delta 1e-05" in said.output
    assert fedssl("run", file, "--out", tmp_path / "run").exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{account.epsilon:.3g}" in page
    assert "delta 1e-05" in page
    plain = small_toml(tmp_path / "plain.toml")
    assert "epsilon" not in fedssl("validate", plain).output


def json_sections(file):
    import tomllib

    return tomllib.loads(file.read_text())


def test_without_the_library_a_promise_is_refused_and_a_run_with_noise_goes_on(
    tmp_path, monkeypatch
):
    def is_installed(module):
        return module != "dp_accounting"

    monkeypatch.setattr(extras, "is_installed", is_installed)
    monkeypatch.setattr(accountant, "is_installed", is_installed)
    file = small_toml(tmp_path / "e.toml", privacy={"clipping_norm": 1.0, "epsilon": 3.0})
    for command in ("validate", "run"):
        refused(
            fedssl(command, file),
            "privacy.epsilon: the noise for an epsilon needs dp_accounting",
            "pip install 'fedssl[privacy]'",
        )
    noisy = private({"noise_multiplier": 3.0})
    account = account_for(noisy)
    assert math.isnan(account.epsilon)
    assert "epsilon is unknown, because dp-accounting is not installed" in account.describe()
    path = tmp_path / "run"
    serve(noisy, SerialGrid(Apps(app), 6), [RunDirectory(path)])
    assert json.loads((path / "summary.json").read_text())["epsilon"] is None
    assert fedssl("report", path).exit_code == 0
    with pytest.raises(InputError, match="needs dp_accounting"):
        serve(private({"epsilon": 3.0}), SerialGrid(Apps(app), 6), [])
