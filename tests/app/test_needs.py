"""What methods and strategies need, computed from them, and how `fedssl list` shows it."""

from dataclasses import dataclass

import pytest
import torch

from fedssl.app.commands.listing import FAMILIES, members_of
from fedssl.app.commands.needs import (
    MODEL,
    SPEC,
    needs_of_method,
    needs_of_strategy,
    traffic,
    with_defaults,
)
from fedssl.clients.client_app import app
from fedssl.core.slots import Slot
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange.census import Cohorts
from fedssl.methods import METHODS, Method, Views
from fedssl.server.app import serve
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_sums import SumStrategy
from fedssl.training.correction import Correction
from tests.helpers import fedssl, small_experiment

MODEL_BYTES = 4 * (288 + 64 + 18432 + 128 + 32896 + 1290)
"""Two convolutions with their normalizations, the hidden layer and the last layer, in single precision."""


def needs(kind, **settings):
    return dict(needs_of_method(METHODS.build({"kind": kind} | settings)).by_heading)


class Unlabeled(Method):
    """Learns without labels."""

    def views(self):
        return Views((), ("weak", "strong"))

    def loss(self, network, batch, state, progress):
        raise NotImplementedError


@dataclass(frozen=True)
class Control(Correction):
    """Keeps a vector like the model at each client, and another at the server."""

    def slots(self):
        return (Slot("mean", "server"), Slot("own", "client"))

    def init_slot(self, name, parameters):
        return {key: parameter.detach().clone() for key, parameter in parameters.items()}


class Controlled(Strategy):
    def build(self, cohorts: Cohorts):
        return SumStrategy(cohorts)

    def correction(self):
        return Control()


class Stateless(Controlled):
    def correction(self):
        return Correction()


def test_the_model_has_as_many_bytes_as_its_layers():
    state = MODEL.build(SPEC.shape, SPEC.num_classes).state_dict().values()
    assert sum(tensor.nbytes for tensor in state) == MODEL_BYTES


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("supervised", {}, ("clients", "none", "1x")),
        ("fixmatch", {}, ("clients or server", "none", "1x")),
        ("fixmatch", {"unlabeled_weight": 0}, ("clients", "none", "1x")),
        ("fixmatch", {"labeler": "received"}, ("clients or server", "reset: received", "1x")),
        ("mean_teacher", {}, ("clients or server", "reset: teacher", "1x")),
        ("mean_teacher", {"teacher_scope": "server"}, ("clients or server", "server: teacher", "2x")),
        ("fl2", {}, ("clients or server", "reset: labels", "1x")),
        ("flexmatch", {}, ("clients or server", "client: confident; server: status", "1x")),
    ],
)  # fmt: skip
def test_needs_of_methods(kind, settings, expected):
    assert tuple(needs(kind, **settings).values()) == expected


def test_a_second_head_and_running_distributions_travel():
    """ReMixMatch: a head from 128 features to 4 rotations; labels, steps and 128 mean predictions of 10 classes."""
    extra = 4 * (128 * 4 + 4) + 4 * (10 + 1 + 128 * 10)
    assert traffic(METHODS.build("remixmatch")) == 1 + extra / MODEL_BYTES


def test_both_networks_of_dividemix_travel():
    """And with them the number of given labels of each of the 10 classes."""
    assert needs("dividemix")["traffic"] == "2x"
    assert traffic(METHODS.build("dividemix")) == 2 + 4 * 10 / MODEL_BYTES


def test_weights_that_stay_at_the_client_do_not_travel():
    """The plug-in has two classifiers and a private head, and sends 10 numbers to the server."""
    stateful = METHODS.build("tests.plugins.stateful")
    assert traffic(stateful) == 2 + 4 * 10 / MODEL_BYTES


def test_a_method_without_labeled_views_needs_no_labels():
    assert needs_of_method(Unlabeled()).by_heading["labels at"] == "none needed"


def test_traffic_is_what_a_run_measures():
    """Mean Teacher with its teacher at the server sends twice the bytes of supervised training, both ways."""
    measured = []
    for method in ({"kind": "supervised"}, {"kind": "mean_teacher", "teacher_scope": "server"}):
        experiment = small_experiment(method=method, rounds=1)
        (row,) = serve(experiment, SerialGrid(Apps(app), 6), []).rounds
        measured.append((row.bytes_down, row.bytes_up))
    (down, up), (more_down, more_up) = measured
    assert (more_down / down, more_up / up) == (2, 2)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("fedavg", ("sums", "none", "1x")),
        ("flwr:NAME", ("each reply", "none", "1x")),
        ("fedprox", ("sums", "no state", "1x")),
        ("scaffold", ("sums", "client: scaffold.own; server: scaffold.server", "2x")),
        (Controlled(), ("sums", "client: own; server: mean", "2x")),
        (Stateless(), ("sums", "no state", "1x")),
    ],
)
def test_needs_of_strategies(strategy, expected):
    if isinstance(strategy, str):
        strategy = with_defaults(members_of("strategies")[strategy])
    assert tuple(needs_of_strategy(strategy).by_heading.values()) == expected


@pytest.mark.parametrize("family", ["methods", "strategies"])
def test_every_built_in_member_names_its_group(family):
    assert all(member.group != "other" for member in members_of(family).values())


@pytest.mark.parametrize(
    ("family", "needs_of"), [("methods", needs_of_method), ("strategies", needs_of_strategy)]
)
@pytest.mark.parametrize("width", [80, 120])
def test_the_list_says_in_a_line_what_each_member_needs(family, needs_of, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    draws = torch.get_rng_state()
    output = fedssl("list", family).output
    assert max(map(len, output.splitlines())) <= width
    overview, legend, details = output.split("\n\n")
    for kind, member in members_of(family).items():
        (line,) = (line for line in overview.splitlines() if line.startswith(f"   {kind} "))
        shown = [cell.strip() for cell in line.split("│")[1:]]
        expected = needs_of(with_defaults(member)).by_heading.values()
        # A text that is too long for its column goes on in the next line.
        assert all(text.startswith(cell) for text, cell in zip(expected, shown, strict=True))
        assert all(shown)
        assert f"\n {kind} " in details
    assert "traffic" in legend
    assert torch.equal(draws, torch.get_rng_state())


def test_groups_are_in_order_and_hold_their_members():
    overview = fedssl("list", "methods").output.partition("\n\n")[0]
    cells = [line.partition("│")[0] for line in overview.splitlines()[2:]]
    groups = [cell.strip() for cell in cells if cell[1] != " "]
    assert groups == [
        "baseline",
        "consistency",
        "mixing",
        "noisy labels",
        "pseudo-labels",
        "self-supervised",
        "transfer",
    ]
    order = [cell.strip() for cell in cells if cell.strip()]
    assert order.index("vat") < order.index("mixing") < order.index("mixmatch")
    assert order[:2] == ["baseline", "supervised"]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"methods", "strategies"}))
def test_other_families_are_listed_as_one_table(family):
    output = fedssl("list", family).output
    assert "traffic" not in output
    assert all(f" {kind} " in output for kind in members_of(family))
