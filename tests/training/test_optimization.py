"""Optimizers, schedules and precision: every setting of ``[train]`` has its documented effect."""

import math

import pytest
import torch
from pydantic import ValidationError

from fedssl.engine.local_grid import Apps
from fedssl.methods.base import Progress
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import snapshot
from fedssl.methods.supervised import Supervised
from fedssl.training.network import build_network
from fedssl.training.optimization import Descent, Train
from fedssl.training.optimizer_set import OptimizerSet
from tests.helpers import federation_of, kept_states, small_experiment
from tests.training.test_loop import equal, train_client


@pytest.fixture(scope="module")
def shard():
    federation = federation_of(small_experiment())
    return federation.shard(int(federation.labeled_sizes.argmax()))


def test_the_cosine_schedule_ends_at_seven_sixteenths():
    cosine = Train(schedule="cosine")
    assert cosine.lr_factor(Progress(1, 10, 0, 4)) == 1
    assert cosine.lr_factor(Progress(11, 10, 0, 4)) == pytest.approx(0.19509, abs=1e-5)
    assert Train().lr_factor(Progress(8, 10, 0, 4)) == 1


def test_the_schedule_reaches_the_optimizer(shard):
    slow, _ = train_client(
        Supervised(), shard, Train(local_steps=3, batch_size=8, schedule="cosine"), round=10
    )
    fast, _ = train_client(Supervised(), shard, round=10)
    start = snapshot(build_network(small_experiment().model, Supervised(), shard.spec, 0))

    def moved(weights):
        return sum(float((weights[k] - start[k]).norm()) for k in start)

    assert moved(slow) < 0.5 * moved(fast)


def test_clipping_bounds_the_first_step(shard):
    train = Train(local_steps=1, lr=1.0, momentum=0, nesterov=False, weight_decay=0, clip_norm=0.01)
    start = snapshot(build_network(small_experiment().model, Supervised(), shard.spec, 0))
    trained, _ = train_client(Supervised(), shard, train)
    step = torch.sqrt(sum(((trained[k] - start[k]) ** 2).sum() for k in start))
    assert float(step) == pytest.approx(0.01, rel=1e-3)


def test_bf16_follows_fp32(shard):
    """Same batches, rounded: after 20 steps the loss has fallen as far, to within a few percent."""
    exact = Train(local_steps=20, batch_size=8)
    rounded = exact.model_copy(update={"precision": "bf16"})
    _, full = train_client(Supervised(), shard, exact)
    trained, half = train_client(Supervised(), shard, rounded)
    assert all(v.dtype == torch.float32 and torch.isfinite(v).all() for v in trained.values())
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, rel=0.05)


def test_milestones_and_rounds():
    step = Train(schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    factors = [step.lr_factor(Progress(r, 8, 0, 5)) for r in range(1, 9)]
    assert factors == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)
    local = Train(schedule="cosine", schedule_over="round")
    first, last = (local.lr_factor(Progress(7, 8, s, 4)) for s in (0, 3))
    assert first == 1
    assert last == pytest.approx(math.cos(7 * math.pi / 16 * 0.75))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"milestones": (0.5, 1.5), "schedule": "step"}, "milestones"),
        ({"milestones": (0.75, 0.5), "schedule": "step"}, "rising"),
        ({"milestones": (0.5,), "schedule": "cosine"}, "milestones is for schedule = 'step'"),
        ({"gamma": 0.5}, "gamma is for schedule = 'step', not 'constant'"),
        ({"momentum": 0.0}, "nesterov"),
        ({"local_steps": 1, "local_epochs": 1}, "exclude"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValidationError, match=message):
        Train(**setting)
    assert Train(
        optimizer="adam", momentum=0.0
    ).nesterov  # nesterov is SGD's, and no concern of Adam


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_each_optimizer_takes_its_own_first_step(optimizer):
    """On loss = sum(w * g): SGD with Nesterov moves by lr (1 + beta) (g + decay w), Adam by lr times the sign."""
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    gradient = torch.tensor([0.5, -0.25])
    train = Train(optimizer=optimizer, lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizers = {"main": train.make_optimizer(iter([weight]))}
    before = weight.detach().clone()
    Descent(optimizers, train, torch.device("cpu"))((weight * gradient).sum(), "main")
    decayed = gradient + 0.1 * before
    expected = {
        "sgd": 0.1 * 1.9 * decayed,
        "adam": 0.1 * decayed.sign(),
        "adamw": 0.1 * gradient.sign() + 0.1 * 0.1 * before,
    }[optimizer]
    assert torch.allclose(before - weight.detach(), expected, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_fp16_scales_the_loss_and_unscales_the_gradient(shard, clip):
    """The trained weights follow those of full precision, clipped or not: no scale is left in a gradient."""
    exact = Train(local_steps=5, batch_size=8, clip_norm=clip)
    rounded = exact.model_copy(update={"precision": "fp16"})
    start = snapshot(build_network(small_experiment().model, Supervised(), shard.spec, 0))
    full, _ = train_client(Supervised(), shard, exact)
    half, report = train_client(Supervised(), shard, rounded)
    moved = math.sqrt(sum(float((full[k] - start[k]).square().sum()) for k in start))
    apart = math.sqrt(sum(float((full[k] - half[k]).square().sum()) for k in start))
    assert 0 < apart < 0.1 * moved
    assert math.isfinite(report.loss)


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    weight = torch.nn.Parameter(torch.ones(1))
    train = Train(precision="fp16", lr=0.1)
    optimizers = {"main": train.make_optimizer(iter([weight]))}
    descend = Descent(optimizers, train, torch.device("cpu"))
    descend((weight * float("inf")).sum(), "main")
    assert weight == 1
    descend(weight.sum(), "main")
    assert 0 < float(weight.detach()) < 1


def test_a_local_average_is_what_is_sent(shard):
    """While the warm-up lasts, it is the plain mean of the weights after each step."""
    iterates = []

    class Noted(Supervised):
        def after_step(self, learner, batch, loss):
            iterates.append(snapshot(learner.network))

    train = Train(local_steps=3, batch_size=8, ema_decay=0.9)
    averaged, _ = train_client(Noted(), shard, train)
    assert len(iterates) == 3
    for name, tensor in averaged.items():
        mean = torch.stack([weights[name] for weights in iterates]).mean(0)
        assert torch.allclose(tensor, mean, atol=1e-6), name


def test_momentum_is_reset_unless_kept(shard):
    """Two rounds that keep it go on where the first left; without, the second starts afresh."""
    train = Train(local_steps=2, batch_size=8, keep_momentum=True)
    slot = train.slots()[0].name
    assert (slot, train.slots()[0].scope) == ("optimizer.sgd", "client")
    state = {slot: {}}
    train_client(Supervised(), shard, train, state=state)
    buffers = {k: v for k, v in state[slot].items() if k.endswith("momentum_buffer")}
    assert len(buffers) == len(list(small_network(shard).parameters()))
    fresh = {slot: {}}
    kept, _ = train_client(Supervised(), shard, train, state=state, round=2)
    anew, _ = train_client(Supervised(), shard, train, state=fresh, round=2)
    never, _ = train_client(Supervised(), shard, Train(local_steps=2, batch_size=8), round=2)
    assert equal(anew, never)
    assert not equal(kept, anew)


def small_network(shard):
    return build_network(small_experiment().model, Supervised(), shard.spec, 0)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_optimizer_restored_goes_on_as_if_it_had_not_stopped(kind):
    train = Train(optimizer=kind, lr=0.1)

    def steps(count, optimizers, weight):
        descend = Descent(optimizers, train, torch.device("cpu"))
        for _ in range(count):
            descend(weight.square().sum(), "main")

    whole = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizers = {"main": train.make_optimizer(iter([whole]))}
    steps(5, optimizers, whole)
    half = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    first = OptimizerSet({"main": train.make_optimizer(iter([half]))})
    steps(3, first, half)
    second = OptimizerSet({"main": train.make_optimizer(iter([half]))})
    second.restore(first.tensors())
    steps(2, second, half)
    assert torch.equal(whole, half)


def test_momentum_stays_with_its_client_in_a_federation():
    from fedssl.clients.client_app import app
    from fedssl.engine.serial_grid import SerialGrid
    from fedssl.server.app import serve

    experiment = small_experiment(
        train={"keep_momentum": True}, federation={"sample": 6}, rounds=2, method="supervised"
    )
    grid = SerialGrid(Apps(app), 6)
    outcome = serve(experiment, grid, [])
    assert not any(key.startswith("optimizer") for key in outcome.model.arrays)
    kept = [
        state.array_records.get("phase-0.optimizer.sgd") for state in kept_states(grid).values()
    ]
    stepped = [record for record in kept if record]
    assert stepped
    forgotten = serve(
        small_experiment(federation={"sample": 6}, rounds=2, method="supervised"),
        SerialGrid(Apps(app), 6),
        [],
    )
    assert any(
        (outcome.model.arrays[k] != forgotten.model.arrays[k]).any() for k in outcome.model.arrays
    )


def test_a_method_with_memory_and_fp16_trains_too(shard):
    _, report = train_client(
        FixMatch(threshold=0.1), shard, Train(local_steps=2, batch_size=4, precision="fp16")
    )
    assert math.isfinite(report.loss)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_our_optimizers_are_torchs_to_the_bit(shard, name, theirs):
    """Weights and state after some steps, and after going on from saved state, are those of torch's own class."""
    train = Train(optimizer=name, lr=0.1, weight_decay=0.01)
    images = shard.images.flatten(1)[:16] / 255

    def learn(make):
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, images.shape[1])) for _ in range(2)]
        optimizer = make(iter(weights))
        for step in range(6):
            if step == 3:
                state = optimizer.state_dict()
                optimizer = make(iter(weights))
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            ((images @ (weights[0] - weights[1])) ** 2).mean().backward()
            optimizer.step()
        return optimizer, [*weights, *OptimizerSet({"main": optimizer}).tensors().values()]

    def same_settings(parameters):
        group = train.make_optimizer(iter([torch.nn.Parameter(torch.zeros(1))])).param_groups[0]
        names = ("lr", "weight_decay", "foreach", "momentum", "nesterov", "betas")
        return theirs(parameters, **{key: group[key] for key in names if key in group})

    ours, found = learn(train.make_optimizer)
    _, wanted = learn(same_settings)
    assert isinstance(ours, theirs)
    assert len(found) == len(wanted) > 2
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class Counting(torch.optim.Optimizer):
    """Keeps its steps and a slow average in its parameter groups, as Prodigy and schedule-free optimizers do."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr, "steps": 0, "slow": torch.zeros(1), "warm": True})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] += 1
            group["slow"] += 0.5
            group["warm"] = False
            for weight in group["params"]:
                self.state[weight].setdefault("seen", 0)
                self.state[weight]["seen"] += 1
                weight -= group["lr"] * weight.grad / (group["steps"] + group["slow"])


def test_nothing_that_an_optimizer_keeps_passes_from_client_to_client():
    """The second client of a resident network takes the very steps of the first one."""
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizers = OptimizerSet({"main": Counting([weight])})

    def steps(count):
        for _ in range(count):
            optimizers["main"].zero_grad()
            weight.square().sum().backward()
            optimizers["main"].step()
        return weight.detach().clone()

    first = steps(3)
    with torch.no_grad():
        weight.fill_(3.0)
    optimizers.forget()
    (group,) = optimizers["main"].param_groups
    assert (group["steps"], float(group["slow"]), group["warm"]) == (0, 0.0, True)
    assert not optimizers["main"].state
    assert torch.equal(steps(3), first)


def test_what_an_optimizer_keeps_in_its_groups_goes_on_with_its_client():
    def after(interrupted):
        weight = torch.nn.Parameter(torch.tensor([3.0]))
        optimizers = OptimizerSet({"main": Counting([weight])})
        for step in range(4):
            if interrupted and step == 2:
                kept = {name: tensor.clone() for name, tensor in optimizers.tensors().items()}
                optimizers.forget()
                optimizers["main"].param_groups[0]["steps"] = 77  # as another client would
                optimizers.forget()
                optimizers.restore(kept)
            weight.grad = 2 * weight.detach()
            optimizers["main"].step()
        group = optimizers["main"].param_groups[0]
        return float(weight.detach()), group["steps"], type(group["steps"]), group["warm"]

    assert after(True) == after(False) == (pytest.approx(after(False)[0]), 4, int, False)


def test_what_cannot_be_kept_is_one_error():
    optimizers = OptimizerSet({"main": Counting([torch.nn.Parameter(torch.zeros(1))])})
    optimizers["main"].param_groups[0]["names"] = ["a"]
    with pytest.raises(TypeError, match="main/group0/names is a list"):
        optimizers.tensors()
