"""The local loop: reproducible bits, isolated streams, schedules, and the arguments of a method's hooks."""

import dataclasses

import pytest
import torch

from fedssl.augment.base import AUGMENTATIONS
from fedssl.augment.ctaugment import CTAugment
from fedssl.augment.policy import Augment
from fedssl.core import rng
from fedssl.engine.local_grid import Apps
from fedssl.methods.base import FORWARD, METHODS, Batch, Fresh, SemiSupervised, Views
from fedssl.methods.dividemix import DivideMix
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import snapshot
from fedssl.methods.mean_teacher import MeanTeacher
from fedssl.methods.self_supervised import SelfSupervised
from fedssl.methods.supervised import Supervised
from fedssl.training.batches import BatchLoader, default_pools, shuffled_passes
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from tests.helpers import federation_of, kept_states, small_experiment
from tests.methods.examples import FIRST_METHODS

TRAIN = Train(local_steps=3, batch_size=8)
AUGMENT = Augment()

UNSURE = {"semifl": {"threshold": 0.1}, "cbafed": {"base": 0.0}}
"""Settings with which methods that choose confident images choose some of them by an untrained network."""


def train_client(
    method, shard, train=TRAIN, model=None, client=0, round=1, state=None, seed=0, augment=AUGMENT
):
    model = model or small_experiment().model
    network = build_network(model, method, shard.spec, 0)
    recipe = Recipe(method, train, augment)
    if state is None:
        fresh = Fresh(network, shard.spec, shard)
        state = {s.name: recipe.init_slot(s.name, fresh) for s in recipe.slots()}
    report = fit(
        network, shard, recipe, state,
        seed=seed, server_round=round, client=client, phase_round=round, phase_rounds=10,
    )  # fmt: skip
    return snapshot(network), report


def classifier_weights(weights):
    """Return the weights of the classifier alone, by their names in it, whatever a method put beside it."""
    return {
        name.removeprefix("classifier."): weight
        for name, weight in weights.items()
        if not name.startswith(("projection.", "proxy_projection."))
    }


def equal(first, second):
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def shard():
    federation = federation_of(small_experiment())
    labeled = federation.labeled_sizes
    return federation.shard(int(labeled.argmax()))


@pytest.fixture(scope="module")
def unlabeled_shard(shard):
    return dataclasses.replace(shard, labels=torch.full_like(shard.labels, -1))


@pytest.mark.parametrize("name", FIRST_METHODS)
def test_training_depends_on_the_named_streams_alone(shard, name):
    method = METHODS.build(name)
    torch.manual_seed(1)
    first, _ = train_client(method, shard)
    torch.manual_seed(2)
    second, _ = train_client(method, shard)
    assert equal(first, second)
    for other in ({"client": 1}, {"round": 2}, {"seed": 1}):
        assert not equal(first, train_client(method, shard, **other)[0])


@pytest.mark.parametrize("name", FIRST_METHODS)
def test_training_does_not_depend_on_the_truth(shard, name):
    """Neither weights nor losses change when every true class is another one."""
    method = METHODS.build({"kind": name, **UNSURE.get(name, {})})
    lied_to = dataclasses.replace(shard, truth=(shard.truth + 1) % 10)
    # Of ten rounds, the fifth is beyond every warm-up.
    first, told = train_client(method, shard, round=5)
    second, lied = train_client(method, lied_to, round=5)
    assert equal(first, second)
    assert (told.loss, told.accepted) == (lied.loss, lied.accepted)
    assert (told.considered > 0) == (name not in {"supervised", *SELF_SUPERVISED})


def test_a_batch_has_no_way_to_the_truth(shard):
    """No field carries it, and no tensor of a batch changes when every true class is another one."""

    def stream(purpose):
        return rng.make_generator(0, purpose)

    def batches(own):
        views = Views(("weak",), ("weak", "strong"))
        return list(BatchLoader(own, default_pools(own), views, Augment(), {}, 8, 2, stream))

    assert not {field.name for field in dataclasses.fields(Batch)} & {"truth", "shard"}
    lied_to = dataclasses.replace(shard, truth=(shard.truth + 1) % 10)
    for first, second in zip(batches(shard), batches(lied_to), strict=True):
        for name in ("labels", "labeled_ids", "unlabeled_ids"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
        for one, other in zip(
            first.labeled + first.unlabeled, second.labeled + second.unlabeled, strict=True
        ):
            assert torch.equal(one, other)


MIXING = {
    *("dividemix", "fedmatch", "fl2", "meta_pseudo_labels", "mixmatch", "remixmatch"),
    *("semifl", "ups"),
}
"""Methods that are never supervised training: most mix labeled images with unlabeled ones, the student of Meta Pseudo Labels
learns from its teacher alone, UPS has dropout of its own, (FL)^2 has no loss of labeled images alone, and FedMatch adds a
second half to every weight."""

SELF_SUPERVISED = [n for n in FIRST_METHODS if issubclass(METHODS.get(n), SelfSupervised)]
"""Methods that use no labels and give no pseudo-labels."""

WITHOUT = {
    name: {"kind": name, "unlabeled_weight": 0}
    | {
        "fixmatch": {"threshold": 0},
        "uda": {"annealing": "none"},
        "comatch": {"threshold": 0, "contrast_weight": 0},
        "cbafed": {"base": 0, "warm_up": 0},
        "proxyfl": {"threshold": 0, "contrast_weight": 0},
        "vat": {"entropy_weight": 0},
    }.get(name, {})
    for name in FIRST_METHODS
    if name not in MIXING | {"supervised", *SELF_SUPERVISED}
}
"""Every other semi-supervised method, with nothing that tells it from supervised training but the work it does."""


def test_every_method_that_does_not_mix_has_a_weight_to_switch_off():
    assert all(issubclass(METHODS.get(name), SemiSupervised) for name in WITHOUT)


@pytest.mark.parametrize("kind", WITHOUT)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("batch_size", "steps", "ratio"), [(8, 3, 2), (32, 4, 7), (64, 5, 1)])
def test_no_unlabeled_weight_is_supervised_bit_for_bit(
    shard, kind, dropout, batch_size, steps, ratio
):
    method = METHODS.build(WITHOUT[kind])
    train = Train(local_steps=steps, batch_size=batch_size)
    method = method.model_copy(update={"unlabeled_ratio": ratio})
    model = small_experiment(model={"dropout": dropout}).model
    plain, _ = train_client(Supervised(), shard, train, model=model)
    without, report = train_client(method, shard, train, model=model)
    assert equal(plain, classifier_weights(without))
    assert report.considered > 0  # the unlabeled branch did run
    weighted = METHODS.build(WITHOUT[kind] | {"unlabeled_weight": 1.0})
    moved, _ = train_client(weighted, shard, train, model=model, round=8)
    assert not equal(plain, classifier_weights(moved))


@pytest.mark.parametrize(
    "method", [Supervised(), FixMatch(unlabeled_weight=0), MeanTeacher(unlabeled_weight=0)]
)
def test_a_client_with_nothing_to_learn_from_takes_no_step(unlabeled_shard, method):
    """Not even weight decay moves it."""
    network = build_network(small_experiment().model, Supervised(), unlabeled_shard.spec, 0)
    trained, report = train_client(method, unlabeled_shard)
    assert report.num_steps == 0
    assert equal(trained, snapshot(network))


@pytest.mark.parametrize("method", [FixMatch(threshold=0), MeanTeacher(ramp_up=0)])
def test_clients_without_labels_learn_from_unlabeled_images(unlabeled_shard, method):
    network = build_network(small_experiment().model, method, unlabeled_shard.spec, 0)
    trained, report = train_client(method, unlabeled_shard)
    assert report.num_steps == 3
    assert all(torch.isfinite(v).all() for v in trained.values())
    assert not equal(trained, snapshot(network))


def test_pseudo_labels_are_measured_against_the_hidden_truth(shard):
    """Counts equal a naive recount; labeled images in the unlabeled pool are not counted."""
    _, report = train_client(FixMatch(threshold=0, unlabeled_ratio=2), shard)
    stream = rng.make_generator(0, "order/unlabeled", round=1, client=0)
    shown = shuffled_passes(len(shard), 3 * 16, stream)
    hidden = int((shard.labels[shown] < 0).sum())
    assert report.considered == hidden < 48
    assert report.accepted == report.judged == hidden
    assert 0 <= report.right <= hidden
    considered = torch.tensor(report.by_class).view(4, -1)[0]
    shown_hidden = shard.truth[shown][shard.labels[shown] < 0]
    assert torch.equal(considered, torch.bincount(shown_hidden, minlength=10).to(considered))
    none = train_client(FixMatch(threshold=1.0), shard)[1]
    assert none.accepted == 0


def test_steps_and_epochs(shard):
    both = Views(("weak",), ("weak",), ratio=1)
    n, labeled = len(shard), len(shard.labeled)
    assert Train().num_steps(labeled, n, both) == 10
    assert Train(local_steps=4).num_steps(labeled, n, both) == 4
    assert Train(local_epochs=1, batch_size=8).num_steps(labeled, n, both) == -(-n // 8)
    assert Train(local_epochs=2, batch_size=8).num_steps(labeled, n, Views()) == max(
        1, -(-2 * labeled // 8)
    )


def test_the_work_of_a_round_is_that_of_its_steps(shard):
    """10 steps of 4 labeled images and 2 x 4 unlabeled ones: a strong view, and a weak view without gradients."""
    train = Train(local_steps=10, batch_size=4)
    recipe = Recipe(FixMatch(unlabeled_ratio=2), train, Augment())
    assert recipe.work(5, 50) == pytest.approx(10 * (4 + 2 * 4 * (1 + FORWARD)))
    assert recipe.work(0, 50) == pytest.approx(10 * 2 * 4 * (1 + FORWARD))
    assert Recipe(Supervised(), train, Augment()).work(5, 50) == 10 * 4
    assert Recipe(Supervised(), train, Augment()).work(0, 50) == 0


@pytest.mark.parametrize("name", FIRST_METHODS)
def test_the_work_of_a_method_is_that_of_its_passes(shard, name, monkeypatch):
    """Count the images at the first layer of every network: 1 with gradients, a third without."""
    counted = []
    real = torch.nn.Conv2d.forward

    def counting(self, images):
        if self.in_channels == shard.spec.shape[0]:
            counted.append(len(images) * (1 if torch.is_grad_enabled() else FORWARD))
        return real(self, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counting)
    settings = {**UNSURE, "fedmatch": {"num_helpers": 0}}.get(name, {})
    method = METHODS.build({"kind": name, **settings})
    build_network(small_experiment().model, method, shard.spec, 0)
    by_building = sum(counted)
    counted.clear()
    _, report = train_client(method, shard, round=5)
    counted.append(-by_building)
    assert report.num_steps == 3
    work = Recipe(method, TRAIN, AUGMENT).work(len(shard.labeled), len(shard))
    if name == "ups":  # it learns from the images that it chose, and these may be few
        assert work / 2 < sum(counted) <= work
    else:
        again = (
            (1 - FORWARD) * report.num_steps * TRAIN.batch_size
        )  # fl2 goes back twice from its first pass
        assert work == pytest.approx(sum(counted) + again * (name == "fl2"))


def test_a_step_of_dividemix_is_the_work_of_twelve_supervised_steps():
    """Two networks train on 4 batches each, and guess on 6 batches each, which counts a third."""
    assert DivideMix().images_per_step(8, 8) == pytest.approx(12 * 8)
    assert DivideMix().images_before_steps(30, 100) == pytest.approx(2 * 30 / 3)
    train = Train(local_steps=10, batch_size=8)
    assert Recipe(DivideMix(), train, AUGMENT).work(30, 100) == pytest.approx(10 * 96 + 20)
    assert Recipe(DivideMix(), train, AUGMENT).work(0, 0) == 0


def test_shuffled_passes_show_everyone_before_anyone_twice():
    drawn = shuffled_passes(7, 20, torch.Generator().manual_seed(0))
    assert sorted(drawn[:7].tolist()) == list(range(7))
    assert sorted(drawn[7:14].tolist()) == list(range(7))
    assert len(drawn) == 20
    assert len(shuffled_passes(0, 5, torch.Generator())) == 0


def test_fewer_views_do_not_shift_the_labeled_batches(shard):
    def batches(views):
        def stream(purpose):
            return rng.make_generator(0, purpose)

        return list(BatchLoader(shard, default_pools(shard), views, Augment(), {}, 4, 5, stream))

    few, many = batches(Views()), batches(Views(("weak",), ("weak", "strong", "weak"), ratio=3))
    huge = batches(
        Views(("weak",), ("weak",), ratio=200)
    )  # its unlabeled views are made step by step
    assert all(torch.equal(a.labeled[0], c.labeled[0]) for a, c in zip(few, huge, strict=True))
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a.labeled[0], b.labeled[0])
        assert torch.equal(a.labels, b.labels)
        assert a.unlabeled == ()
        assert [len(v) for v in b.unlabeled] == [12, 12, 12]
        assert torch.equal(shard.labels[a.labeled_ids], a.labels)


def test_training_leaves_the_network_in_training_mode_and_evaluation_puts_the_mode_back(shard):
    from fedssl.metrics.accuracy import evaluate

    network = build_network(small_experiment().model, Supervised(), shard.spec, 0).train()
    result = evaluate(network, shard.images, shard.truth, shard.spec)
    assert network.training
    assert result.num_examples == len(shard)
    assert 0 <= result.accuracy <= 1
    network.eval()
    evaluate(network, shard.images, shard.truth, shard.spec)
    assert not network.training


LEARNED = Augment(strong=CTAugment())


def test_an_augmentation_learns_from_labeled_probes_during_the_round(shard):
    """A bin that was probed moves from 1 towards p_y, one that was not stays."""
    state = {"augment.strong": CTAugment().initial()}
    train_client(FixMatch(), shard, state=state, augment=LEARNED)
    weights = state["augment.strong"]["weights"]
    moved = weights != 1
    # 3 steps, 8 labeled images, 2 operations with at most 2 parameters each.
    assert 0 < int(moved.sum()) <= 3 * 8 * 2 * 2
    assert (weights[moved] < 1).all()
    assert (weights[moved] > 0.9).all()


def test_what_it_learned_decides_the_next_views(shard):
    def views(weights):
        def stream(purpose):
            return rng.make_generator(0, purpose)

        state = {"augment.strong": {"weights": weights}}
        wanted = Views(("weak",), ("weak", "strong"), ratio=2)
        return list(BatchLoader(shard, default_pools(shard), wanted, LEARNED, state, 8, 2, stream))

    fresh = CTAugment().initial()["weights"]
    gentle = fresh.clone()
    gentle[..., 1:] = 0
    first, second = views(fresh), views(gentle)
    assert all(
        torch.equal(a.unlabeled[0], b.unlabeled[0]) for a, b in zip(first, second, strict=True)
    )
    assert not torch.equal(first[0].unlabeled[1], second[0].unlabeled[1])


def test_probing_shifts_no_other_stream(shard):
    """With a zero weight, an augmentation that learns is supervised training all the same."""
    model = small_experiment(model={"dropout": 0.5}).model
    plain, _ = train_client(Supervised(), shard, model=model)
    probed, _ = train_client(Supervised(), shard, model=model, augment=LEARNED)
    weightless, _ = train_client(FixMatch(unlabeled_weight=0), shard, model=model, augment=LEARNED)
    assert equal(plain, probed)
    assert equal(plain, weightless)


def test_an_augmentation_that_nobody_asks_for_learns_nothing(shard):
    state = {"augment.strong": CTAugment().initial()}
    train_client(Supervised(), shard, state=state, augment=LEARNED)
    assert (state["augment.strong"]["weights"] == 1).all()


def test_a_client_without_labels_learns_no_augmentation(unlabeled_shard):
    state = {"augment.strong": CTAugment().initial()}
    _, report = train_client(FixMatch(threshold=0), unlabeled_shard, state=state, augment=LEARNED)
    assert report.num_steps == 3
    assert (state["augment.strong"]["weights"] == 1).all()


@pytest.mark.parametrize("scope", ["reset", "client", "server"])
def test_what_an_augmentation_learned_lives_where_it_says(scope):
    from fedssl.clients.client_app import app
    from fedssl.engine.serial_grid import SerialGrid
    from fedssl.server.app import serve

    strong = {"kind": "ctaugment", "scope": scope}
    experiment = small_experiment(augment={"strong": strong}, federation={"sample": 6}, rounds=2)
    grid = SerialGrid(Apps(app), 6)
    outcome = serve(experiment, grid, [])
    assert ("augment.strong/weights" in outcome.model.state) == (scope == "server")
    kept = {c for c, s in kept_states(grid).items() if "phase-0.augment.strong" in s.array_records}
    assert kept == (set(range(6)) if scope == "client" else set())
    if scope == "server":
        assert (outcome.model.state["augment.strong/weights"] < 1).any()


def test_static_normalization_is_measured_on_the_trained_weights(shard):
    """The buffers are those of one plain pass over the shard with the weights that are sent."""
    from fedssl.models.static_norm import measure_statistics
    from fedssl.training.batches import plain_batches

    model = small_experiment(model={"norm": "static"}).model
    trained, _ = train_client(Supervised(), shard, model=model)
    network = build_network(model, Supervised(), shard.spec, 0)
    network.load_state_dict(trained)
    measure_statistics(network, plain_batches(shard))
    assert equal(trained, snapshot(network))
    assert any(name.endswith("mean_square") for name in trained)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.names()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_networks_and_not_for_views(shard, name, dtype):
    """Under autocast, an operation of CTAugment would return half precision, and the images could not take it."""
    augment = Augment(strong={"kind": name})
    slots = {slot: learned.initial() for slot, learned in augment.learned.items()}
    views = Views(("weak", "strong"), ("strong", "plain"))

    def batches():
        def stream(purpose):
            return rng.make_generator(0, purpose)

        return list(BatchLoader(shard, default_pools(shard), views, augment, slots, 4, 3, stream))

    full = batches()
    with torch.autocast("cpu", dtype):
        half = batches()
    for one, other in zip(full, half, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.labeled, other.labeled, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one.unlabeled, other.unlabeled, strict=True))
        for slot, probe in one.probes.items():
            assert torch.equal(probe.views, other.probes[slot].views)
