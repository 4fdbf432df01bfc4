"""Evaluators: what they compute, by hand and against scikit-learn, and which labels they may learn from."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fedssl.core.errors import InputError
from fedssl.metrics.accuracy import evaluate_batches
from fedssl.metrics.evaluators.base import EVALUATORS, Subject
from fedssl.metrics.evaluators.classifier import OwnClassifier
from fedssl.metrics.evaluators.knn import KNN, LEAST
from fedssl.metrics.evaluators.linear_probe import FLOOR, LinearProbe, standardization
from fedssl.training.judging import Judge, learn_judge
from fedssl.training.network import build_network
from tests.helpers import federation_of, small_experiment


def clusters(num_classes=3, each=20, width=6, spread=1.0, seed=0):
    """Return features around one center a class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(each)
    centers = 2 * torch.randn(num_classes, width, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(len(labels), width, generator=generator)
    return centers[labels] + spread * noise, labels


def test_neighbors_vote_with_the_exponential_of_their_similarity():
    """Cosines to (1, 0): 1, .6 and 0. With k = 2 and temperature .5, the votes are e^2 and e^1.2."""
    judge = KNN(num_neighbors=2, temperature=0.5)
    bank = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    learned = judge.learn_layer(bank, torch.tensor([0, 1, 2]), 3)
    scores = judge.score_layer(learned, torch.tensor([[5.0, 0.0]]))[0].exp()
    whole = math.exp(2) + math.exp(1.2)
    assert scores.tolist() == pytest.approx([math.exp(2) / whole, math.exp(1.2) / whole, LEAST])


def test_votes_of_a_class_add_up_and_win_over_the_nearest():
    """Cosines .8 (class 0), .6 and .6 (class 1): at temperature 1, 2 e^.6 = 3.64 is more than e^.8 = 2.23."""
    bank, labels = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    for temperature, winner in ((1.0, 1), (0.1, 0)):
        judge = KNN(temperature=temperature)
        assert judge.score_layer(judge.learn_layer(bank, labels, 2), query).argmax() == winner


def test_a_low_temperature_and_empty_features_give_finite_scores():
    judge = KNN(temperature=1e-4)
    learned = judge.learn_layer(*clusters(), 3)
    assert judge.score_layer(learned, torch.zeros(2, 6)).isfinite().all()


def test_the_probe_is_scikit_learns_logistic_regression_on_standardized_features():
    features, labels = clusters(spread=2.5)
    held_out, _ = clusters(spread=2.5, seed=7)
    for penalty in (0.3, 1.0, 10.0):
        learned = LinearProbe(penalty=penalty).learn_layer(features.double(), labels, 3)
        scaler = StandardScaler().fit(features.double().numpy())
        theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000)
        theirs.fit(scaler.transform(features.double().numpy()), labels.numpy())
        own = learned["weight"] * torch.tensor(scaler.scale_)
        np.testing.assert_allclose(own, theirs.coef_, atol=1e-5)
        scores = LinearProbe().score_layer(learned, held_out.double())
        wanted = theirs.predict_proba(scaler.transform(held_out.double().numpy()))
        np.testing.assert_allclose(scores.softmax(1), wanted, atol=1e-5)


def test_the_probe_separates_separable_features_and_gives_the_same_bits_twice():
    features, labels = clusters(spread=0.3)
    learned = [LinearProbe().learn_layer(features, labels, 3) for _ in range(2)]
    assert (LinearProbe().score_layer(learned[0], features).argmax(1) == labels).all()
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])


def test_a_nearly_constant_feature_does_not_explode():
    """Two features of deviation 1 and one of 1e-6. The floor is .1 sqrt(2 / 3) = .0816, not 1e-6."""
    features = torch.tensor([[1.0, 1.0, 1e-6], [-1.0, 1.0, -1e-6], [1.0, -1.0, 1e-6], [-1.0, -1.0, -1e-6]])  # fmt: skip
    mean, deviation = standardization(features.double())
    assert mean.tolist() == pytest.approx([0, 0, 0])
    assert deviation.tolist() == pytest.approx([1, 1, FLOOR * math.sqrt(2 / 3)])
    learned = LinearProbe().learn_layer(features, torch.tensor([0, 1, 0, 1]), 2)
    usual = LinearProbe().score_layer(learned, torch.tensor([[1.0, 0.0, 0.0]]))
    moved = LinearProbe().score_layer(learned, torch.tensor([[1.0, 0.0, 0.01]]))
    assert (usual - moved).abs().max() < 0.01  # without the floor, 0.01 is ten thousand deviations


def test_constant_features_give_finite_scores():
    constant = LinearProbe().learn_layer(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), 3)
    assert LinearProbe().score_layer(constant, torch.ones(1, 3)).isfinite().all()


@pytest.mark.parametrize("judge", [LinearProbe(), LinearProbe(num_steps=1), KNN()])
def test_a_class_without_labels_is_never_predicted_and_its_loss_is_finite(judge):
    """Class 1 of 4 has no labeled image: the others are as if it did not exist, and it has 1e-6 of the probability."""
    features, labels = clusters()
    shifted = torch.tensor([0, 2, 3])[labels]
    anywhere = 30 * torch.randn(5000, 6, generator=torch.Generator().manual_seed(3))
    scores = judge.score_layer(judge.learn_layer(features, shifted, 4), anywhere)
    without = judge.score_layer(judge.learn_layer(features, labels, 3), anywhere)
    assert (scores.argmax(1) != 1).all()
    torch.testing.assert_close(scores[:, [0, 2, 3]], without)
    loss = F.cross_entropy(scores, torch.ones(5000, dtype=torch.long), reduction="none")
    assert loss.isfinite().all()
    assert (loss >= -math.log(LEAST) - 1e-4).all()


def test_weights_and_biases_of_the_probe_sum_to_zero():
    """Softmax does not see their sum, so this makes the solution unique."""
    features, labels = clusters(spread=2.5)
    learned = LinearProbe().learn_layer(features.double(), labels, 3)
    for name in ("weight", "bias"):
        assert learned[name].sum(0).abs().max() < 1e-9, name


@pytest.mark.parametrize("judge", [LinearProbe(), KNN()])
def test_labels_of_one_class_predict_this_class(judge):
    features, labels = clusters()
    learned = judge.learn_layer(features[labels == 2], labels[labels == 2], 3)
    scores = judge.score_layer(learned, features)
    assert scores.isfinite().all()
    assert (scores.argmax(1) == 2).all()


BUDGETS = {
    "at clients": {"labels": {"kind": "at_clients", "per_class": 4}},
    "at the server": {"labels": {"kind": "at_server", "per_class": 3}},
    "wrong labels": {"label_noise": {"kind": "symmetric", "rate": 0.5}},
    "as clients see them": {"features": {"kind": "noise", "max_std": 0.3}},
    "validation": {"labels": {"kind": "at_clients", "per_class": 8, "validation": 0.25}},
}


@pytest.mark.parametrize("case", BUDGETS)
def test_the_budget_is_exactly_what_clients_and_server_have_labels_for(case):
    federation = federation_of(small_experiment(federation=BUDGETS[case]))
    examples = LinearProbe().examples(federation)
    shards = [federation.shard(c) for c in range(federation.num_clients)]
    shards.append(federation.server_shard())

    def pairs(images, labels):
        return sorted(
            (image.numpy().tobytes(), int(label))
            for image, label in zip(images, labels, strict=True)
        )

    held = [pairs(shard.images[shard.labeled], shard.labels[shard.labeled]) for shard in shards]
    assert pairs(examples.images, examples.labels) == sorted(itertools.chain(*held))
    assert LinearProbe().describe(federation) == f"linear probe, {len(examples.labels)} labels"


def test_judges_with_other_settings_have_other_words():
    """Settings that do not change the accuracy stay unsaid: further layers, and a seed that draws nothing."""
    federation = federation_of(small_experiment())
    said = {
        "kNN, 40 labels": (KNN(), KNN(seed=3), KNN(num_neighbors=200)),
        "kNN, 40 labels, num_neighbors = 5, temperature = 0.1": (
            KNN(num_neighbors=5, temperature=0.1),
        ),
        "kNN, 40 labels, per_class = 4": (KNN(per_class=4),),
        "kNN, 40 labels, per_class = 4, seed = 3": (KNN(per_class=4, seed=3),),
        "linear probe on projection, 40 labels, penalty = 10.0": (
            LinearProbe(penalty=10, layers=["projection", "backbone"]),
            LinearProbe(penalty=10.0, layers=["projection"]),
        ),
        "classifier": (OwnClassifier(),),
    }
    for words, judges in said.items():
        assert {judge.describe(federation) for judge in judges} == {words}


@pytest.mark.parametrize("amount", [{"per_class": 3}, {"fraction": 0.1}])
def test_own_labels_are_true_stratified_and_as_the_judges_seed_says(amount):
    """The digits' test images are drawn by the experiment's seed; all other images are chosen alike under every seed."""
    federations = [
        federation_of(small_experiment(seed=seed, data={"train_size": None})) for seed in (0, 5)
    ]
    chosen = []
    for federation in federations:
        judge, train = KNN(**amount), federation.data.train
        rows = judge.rows(federation)
        sizes = np.bincount(train.labels)
        counts = [3] * 10 if "per_class" in amount else np.maximum(1, np.round(0.1 * sizes))
        assert np.bincount(train.labels[rows]).tolist() == list(counts)
        assert (judge.examples(federation).labels.numpy() == train.labels[rows]).all()
        assert not np.array_equal(rows, KNN(**amount, seed=1).rows(federation))
        chosen.append(train.rows[rows])
    everywhere = np.intersect1d(*(federation.data.train.rows for federation in federations))
    first, second = (set(rows) & set(everywhere) for rows in chosen)
    moved = len(first ^ second) / len(first | second)
    assert moved < 0.5  # two independent draws of a tenth would have .95


def test_own_labels_do_not_depend_on_how_a_seed_deals_the_images():
    """With the same training images, the draw is the same whatever the seed deals."""
    first = federation_of(small_experiment(seed=0))
    second = dataclasses.replace(
        federation_of(small_experiment(seed=5)), data=first.data, held_out=first.held_out
    )
    assert np.array_equal(KNN(per_class=3).rows(first), KNN(per_class=3).rows(second))


def test_images_held_back_for_validation_are_never_learned_from():
    labels = {"kind": "at_clients", "fraction": 0.5, "validation": 0.5}
    federation = federation_of(small_experiment(federation={"labels": labels}))
    assert len(federation.held_back_rows) > 50
    for judge in (KNN(), KNN(per_class=5), KNN(fraction=1.0)):
        assert not set(judge.rows(federation)) & set(federation.held_back_rows)


def test_labels_that_are_not_there_are_refused():
    federation = federation_of(small_experiment())
    with pytest.raises(InputError, match=r"server\.evaluator\.per_class: is 9999, but '0' has"):
        KNN(per_class=9999).check(("backbone",), federation)
    nobody = dataclasses.replace(federation, given=np.full_like(federation.given, -1))
    with pytest.raises(InputError, match=r"knows of no label.*set per_class or fraction"):
        KNN().check(("backbone",), nobody)
    with pytest.raises(InputError, match="exclude each other"):
        EVALUATORS.build({"kind": "knn", "per_class": 1, "fraction": 0.1})
    with pytest.raises(InputError, match="names a layer twice"):
        KNN(layers=["backbone", "backbone"]).check(("backbone",), federation)


def test_settings_of_a_judge_without_its_kind_say_which_kind_has_them():
    for settings, kinds in (
        ({"penalty": 2.0}, "linear_probe"),
        ({"layers": ["backbone"]}, "knn, linear_probe"),
    ):
        words = f"unknown key; without a kind, it is 'classifier'; the key belongs to: {kinds}$"
        with pytest.raises(InputError, match=words):
            EVALUATORS.build(settings)
    with pytest.raises(InputError, match="unknown key; nothing is known here"):
        EVALUATORS.build({"pennalty": 2.0})


def models_of(method, norm="batch"):
    experiment = small_experiment(method=method, model={"norm": norm})
    federation = federation_of(experiment)
    network = build_network(experiment.model, experiment.method, federation.data.spec, 0)
    return experiment.method, network, federation


@pytest.mark.parametrize("judge", [KNN(), LinearProbe(layers=["projection", "backbone"])])
def test_a_judge_leaves_the_network_in_its_mode_and_moves_no_statistics(judge):
    method, network, federation = models_of({"kind": "tests.plugins.contrasting"})
    network.train()
    network.projection.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    learned = learn_judge(judge, method, network, federation)
    assert [module.training for module in network.modules()] == modes
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(tensor.requires_grad for tensor in learned.values())


@pytest.mark.parametrize("judge", [KNN(per_class=5), LinearProbe()])
def test_held_out_labels_do_not_leak(judge):
    """With permuted labels of the held-out images, predictions are the same and only the accuracy falls."""
    method, network, federation = models_of({"kind": "supervised"}, norm="group")
    network.eval()
    turned = federation.held_out.labels[::-1].copy()
    permuted = dataclasses.replace(
        federation, held_out=dataclasses.replace(federation.held_out, labels=turned)
    )
    images = torch.from_numpy(federation.held_out.images)
    found = []
    for given in (federation, permuted):
        learned = learn_judge(judge, method, network, given)
        whole = Judge(judge, method, network, given.data.spec, learned)
        labels = torch.from_numpy(given.held_out.labels)
        results = evaluate_batches(whole.scores, images, labels, given.data.spec)
        found.append((learned, sum(result.num_correct for result in results)))
    (first, right), (second, chance) = found
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert right > 1.5 * chance


def test_the_classifier_learns_nothing_and_scores_with_its_logits():
    method, network, federation = models_of({"kind": "supervised"}, norm="group")
    judge = OwnClassifier()
    assert learn_judge(judge, method, network, federation) == {}
    images = torch.rand(3, 1, 8, 8)
    subject = Subject(network, {}, federation.data.spec)
    scores = judge.scores(subject, {}, images)
    assert torch.equal(scores["classifier"], network(images))
    assert torch.equal(
        Judge(judge, method, network, federation.data.spec, {})(images), network(images)
    )
