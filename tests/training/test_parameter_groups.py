"""Groups of parameters: rates by name, no decay of norms and biases, and nothing of them passes between clients."""

import pytest
import torch

from fedssl.app.simulation import check_experiment
from fedssl.augment.policy import Augment
from fedssl.core.errors import InputError
from fedssl.methods.base import Progress
from fedssl.methods.dividemix import DivideMix
from fedssl.methods.supervised import Supervised
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Descent, Rates, Train
from fedssl.training.parameter_groups import factor_of
from fedssl.training.recipe import Recipe
from tests.helpers import federation_of, small_experiment
from tests.training.test_loop import equal, train_client

PLAIN = {"momentum": 0.0, "nesterov": False}


@pytest.fixture(scope="module")
def shard():
    federation = federation_of(small_experiment())
    return federation.shard(int(federation.labeled_sizes.argmax()))


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Linear(2, 2)
        self.norm = torch.nn.GroupNorm(1, 2)
        self.head = torch.nn.Linear(2, 1)
        for weight in self.parameters():
            torch.nn.init.ones_(weight)


def moved(**settings):
    """Return how far each parameter moves in one step of rate 1 on the sum of all parameters, by its name."""
    network, train = Small(), Train(**{"lr": 1.0, **PLAIN, **settings})
    optimizers = Recipe(Supervised(), train, Augment()).optimizers(network)
    descend = Descent(optimizers, train, torch.device("cpu"))
    descend(sum(weight.sum() for weight in network.parameters()), "main")
    return {name: 1 - float(weight.detach().mean()) for name, weight in network.named_parameters()}


def test_parameters_of_one_dimension_decay_unless_they_are_spared():
    """Every gradient is 1, and the decay adds .25."""
    names = [name for name, _ in Small().named_parameters()]
    assert moved(weight_decay=0.25) == dict.fromkeys(names, 1.25)
    spared = moved(weight_decay=0.25, decay_norms_and_biases=False)
    matrices = {"trunk.weight", "head.weight"}
    assert spared == {name: 1.25 if name in matrices else 1.0 for name in names}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_first_pattern_that_matches_a_name_gives_its_factor(optimizer):
    rates = {"head.bias": 0.25, "head.*": 2.0, "trunk.*": 0.0}
    found = moved(rates=rates, weight_decay=0.0, optimizer=optimizer)
    wanted = {
        "trunk.weight": 0, "trunk.bias": 0, "norm.weight": 1, "norm.bias": 1, "head.weight": 2, "head.bias": 0.25,
    }  # fmt: skip
    assert found == pytest.approx(wanted, abs=1e-5)
    assert factor_of("head.bias", {"head.*": 2.0, "head.bias": 0.25}) == 2


def test_rates_and_decay_go_together_and_a_schedule_scales_them_all():
    train = Train(
        rates={"head.*": 0.5}, decay_norms_and_biases=False, weight_decay=0.1, lr=0.2,
        schedule="step", milestones=(0.5,), gamma=0.1,
    )  # fmt: skip
    network = Small()
    optimizers = Recipe(Supervised(), train, Augment()).optimizers(network)
    groups = optimizers["main"].param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (0.2, 0.1, 1), (0.2, 0.0, 3), (0.1, 0.1, 1), (0.1, 0.0, 1),
    ]  # fmt: skip
    descent = Descent(optimizers, train, torch.device("cpu"))
    for round in (1, 2):  # the rate does not shrink from round to round by itself
        descent.set_lr(Progress(round, 2, 0, 1))
    assert [g["lr"] for g in groups] == pytest.approx([0.02, 0.02, 0.01, 0.01])


def test_without_rates_there_is_one_group_as_ever():
    (group,) = Recipe(Supervised(), Train(), Augment()).optimizers(Small())["main"].param_groups
    assert len(group["params"]) == 6


def test_a_method_with_two_optimizers_has_groups_in_both(shard):
    """DivideMix's networks have names of their own, and its optimizers hold a network each."""
    train = Train(rates={"*head.*": 3.0}, lr=0.1)
    network = build_network(small_experiment().model, DivideMix(), shard.spec, 0)
    optimizers = Recipe(DivideMix(), train, Augment()).optimizers(network)
    assert len(optimizers) == 2
    for optimizer in optimizers.values():
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lars"])
@pytest.mark.parametrize("schedule", ["constant", {"kind": "cosine", "warm_up": 0.5}])
def test_the_next_client_of_a_network_takes_the_steps_of_a_new_process(shard, optimizer, schedule):
    """A client of other rounds trains in between; what it left in the state and in the groups is gone."""
    train = Train(
        local_steps=2, batch_size=8, lr=0.02, optimizer=optimizer, schedule=schedule,
        rates={"head.*": 5.0}, decay_norms_and_biases=False,
    )  # fmt: skip
    alone, _ = train_client(Supervised(), shard, train, client=1)
    network = build_network(small_experiment().model, Supervised(), shard.spec, 0)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    recipe = Recipe(Supervised(), train, Augment())
    optimizers = recipe.optimizers(network)
    groups = [
        {k: v for k, v in g.items() if k != "params"} for g in optimizers["main"].param_groups
    ]
    when = {"seed": 0, "phase_rounds": 10, "optimizers": optimizers}
    fit(network, shard, recipe, {}, server_round=9, client=0, phase_round=9, **when)
    optimizers["main"].param_groups[0]["weight_decay"] = 7.0
    network.load_state_dict(start)
    fit(network, shard, recipe, {}, server_round=1, client=1, phase_round=1, **when)
    assert equal(network.state_dict(), alone)
    optimizers.forget()
    left = [{k: v for k, v in g.items() if k != "params"} for g in optimizers["main"].param_groups]
    assert left == groups
    assert not optimizers["main"].state


def test_momentum_is_kept_by_parameter_whatever_the_groups_are(shard):
    train = Train(
        local_steps=2, batch_size=8, keep_momentum=True, optimizer="lars",
        rates={"head.*": 5.0}, decay_norms_and_biases=False,
    )  # fmt: skip
    assert train.slots()[0].name == "optimizer.lars"
    state = {"optimizer.lars": {}}
    train_client(Supervised(), shard, train, state=state)
    network = build_network(small_experiment().model, Supervised(), shard.spec, 0)
    weights = dict(network.named_parameters())
    optimizers = Recipe(Supervised(), train, Augment()).optimizers(network)
    optimizers.restore(state["optimizer.lars"])
    kept = optimizers["main"].state
    assert all(kept[weight]["momentum_buffer"].shape == weight.shape for weight in weights.values())
    assert not any("group" in path for path in state["optimizer.lars"])
    first, _ = train_client(Supervised(), shard, train, state={"optimizer.lars": {}}, round=2)
    second, _ = train_client(Supervised(), shard, train, state=state, round=2)
    assert not equal(first, second)


@pytest.mark.parametrize("section", ["train", "server.train"])
def test_a_pattern_that_matches_nothing_is_an_error_with_the_names(section):
    table = {"rates": {"head.*": 1.0, "heads.*": 2.0}}
    sections = {"train": table} if section == "train" else {"server": {"train": table}}
    with pytest.raises(InputError, match=rf"^{section}.rates: .*'heads.\*' .*head.weight") as found:
        check_experiment(small_experiment(**sections))
    assert "'head.*'" not in str(found.value)


@pytest.mark.parametrize("factor", [-1.0, True, "2", float("inf")])
def test_a_factor_is_a_number_that_is_not_negative(factor):
    with pytest.raises(InputError, match=r"^train.rates.head"):
        small_experiment(train={"rates": {"head.*": factor}})


def test_rates_travel_and_their_order_counts():
    experiment = small_experiment(train={"rates": {"b.*": 1.0, "a.*": 2.0}})
    text = experiment.to_client_json()
    assert list(type(experiment).from_dict(experiment.to_dict()).train.rates) == ["b.*", "a.*"]
    assert text.index("b.*") < text.index("a.*")
    assert Rates({"a": 1.0, "b": 2.0}) != Rates({"b": 2.0, "a": 1.0})
    assert hash(experiment.train) == hash(
        small_experiment(train=experiment.to_dict()["train"]).train
    )
