"""Phases that change the network: what a phase takes over from the last one, and what clients are told of it."""

import json

import numpy as np
import pytest
import torch

from fedssl.app.simulation import check_experiment
from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.core.trust import trust_only, trusting
from fedssl.engine.local_grid import Apps
from fedssl.engine.remote_grid import RemoteGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.experiment.client_settings import ClientSettings
from fedssl.methods.base import FORWARD
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from fedssl.server.carry_over import carry_over, last_network
from fedssl.server.model import ModelKeeper
from fedssl.strategies.base import Strategy
from fedssl.strategies.server_optimizer import OptimizingStrategy
from tests.helpers import CHAIN, federation_of, kept_states, small_experiment

SUPERVISED = {"rounds": 1, "method": {"kind": "supervised"}}


class Noted(Observer):
    """Keep the global model, the row and the server's numbers of every round."""

    def __init__(self):
        self.models, self.rows, self.numbers = [], [], []

    def round_ended(self, end):
        self.models.append(end.model)
        self.rows.append(end.row)
        self.numbers.append({n.name: n.value for n in end.numbers if n.client == -1})


def phased(*phases, **settings):
    return small_experiment(rounds=None, phases=list(phases), **settings)


def ran(experiment, grid=None):
    noted = Noted()
    serve(experiment, grid or SerialGrid(Apps(app), 6), [noted])
    return noted


def carried(*phases):
    """Return what the last of some phases takes over from the one before it."""
    experiment = phased(*phases)
    plan, spec = experiment.plans[-1], federation_of(experiment).data.spec
    return carry_over(plan, plan.build_network(spec), last_network(plan, spec))


# what a phase takes over


def test_a_chain_takes_over_what_it_says_and_records_how_much():
    """The fine-tuned network starts from trunk and layer; the larger student from nothing; 2 weights are the output."""
    noted = ran(phased(*CHAIN["phases"], federation={"sample": 6}))
    first, second, third = noted.numbers[0], noted.numbers[1], noted.numbers[3]
    assert "phase.weights_taken_over" not in first
    assert (second["phase.weights_taken_over"], second["phase.weights_begun_anew"]) == (
        len(noted.models[1].arrays) - 2, 2,
    )  # fmt: skip
    assert third["phase.weights_taken_over"] == 0
    assert third["phase.weights_begun_anew"] == len(noted.models[3].arrays)
    assert all("phase.weights_taken_over" not in noted.numbers[i] for i in (2, 4, 5))
    assert [row.phase for row in noted.rows] == [0, 1, 1, 2, 2, 2]
    assert not any(np.isnan(row.server_accuracy) for row in noted.rows)


def test_each_phases_last_round_is_evaluated_by_its_own_judge():
    experiment = phased(*CHAIN["phases"], server={"evaluate_every": 100})
    rows = ran(experiment).rows
    assert [not np.isnan(row.server_accuracy) for row in rows] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    kinds = [plan.server.evaluator.kind for plan in experiment.plans]
    assert kinds == ["linear_probe", "classifier", "classifier"]


def test_names_and_shapes_decide():
    same = carried(SUPERVISED, {"rounds": 1})
    assert all(name == source for name, source in same.sources.items())
    assert (same.begun, same.keeps_names) == ((), True)
    into_another = carried(SUPERVISED, {"rounds": 1, "method": {"kind": "simclr"}})
    assert into_another.sources["classifier.trunk.0.weight"] == "trunk.0.weight"
    assert all(name.startswith("projection.") for name in into_another.begun)
    assert into_another.keeps_names
    out_of_it = carried({"rounds": 1, "method": {"kind": "simclr"}}, SUPERVISED)
    assert out_of_it.sources["head.weight"] == "classifier.head.weight"
    wider = carried(SUPERVISED, {**SUPERVISED, "model": {"hidden": 32}})
    assert {"trunk.9.weight", "head.weight"} <= set(wider.begun)
    assert "trunk.0.weight" in wider.sources
    assert not wider.keeps_names
    resnet = carried(SUPERVISED, {**SUPERVISED, "model": {"kind": "resnet9"}})
    assert not {"trunk.0.weight"} & set(resnet.sources)


def test_a_second_fine_tuning_keeps_the_layer_of_the_projection_head():
    """Simclr, a frozen probe, the whole network: trunk and layer go on, and only the 2 weights of the output begin anew."""
    simclr, frozen, whole = CHAIN["phases"][0], {"kind": "fine_tune", "frozen": True}, "fine_tune"
    chain = [simclr, {"rounds": 1, "method": frozen}, {"rounds": 1, "method": {"kind": whole}}]
    taken = carried(*chain)
    assert {name for name in taken.sources if name.startswith("head.")} == {
        "head.layer.0.weight", "head.layer.1.weight", "head.layer.1.bias",
        "head.layer.1.running_mean", "head.layer.1.running_var", "head.layer.1.num_batches_tracked",
    }  # fmt: skip
    assert all(name == source for name, source in taken.sources.items())
    assert set(taken.begun) == {"head.output.weight", "head.output.bias"}
    check_experiment(phased(*chain))
    from_features = {"kind": "fine_tune", "start": "backbone"}
    assert set(carried(*chain[:2], {"rounds": 1, "method": from_features}).begun) == {
        "head.weight", "head.bias",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["fixmatch", "simclr"])
def test_a_phase_after_fedmatch_goes_on_from_the_sum_of_its_halves(kind):
    """No name of the classifier is one of sigma or psi, and neither half alone is the classifier that was trained."""
    plans = phased(
        {"rounds": 1, "method": {"kind": "fedmatch"}, "strategy": {"kind": "fedmatch"}},
        {"rounds": 1, "method": {"kind": kind}, "strategy": {"kind": "fedmatch"}},
    ).plans
    spec, keeper = federation_of(small_experiment()).data.spec, ModelKeeper()
    keeper.begin_phase(plans[0], plans[0].build_network(spec), spec, None)
    halves = last_network(plans[1], spec, keeper.model.arrays)
    network = plans[1].build_network(spec)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    taken = keeper.begin_phase(plans[1], network, spec, halves)
    classifier = plans[1].method.classifier(network).eval()
    images = torch.rand(3, *spec.shape)
    torch.testing.assert_close(classifier(images), halves.classifier(images))
    assert all(np.array_equal(keeper.model.ema[n], keeper.model.arrays[n]) for n in taken.sources)
    assert not taken.keeps_names
    assert not any(name.startswith(("trunk.", "head.")) for name in taken.begun)


TUNED = {"rounds": 1, "method": {"kind": "fine_tune"}}
ON_FEATURES = {"rounds": 1, "method": {"kind": "fine_tune", "start": "backbone"}}


@pytest.mark.parametrize(
    "method", [{"kind": "fixmatch"}, {"kind": "noisy_student", "start": "teacher"}]
)
def test_no_method_loses_a_fine_tuned_head_in_silence(method):
    simclr, last = CHAIN["phases"][0], {"rounds": 1, "method": method}
    with pytest.raises(InputError, match=r"^phases\[2\]\.method\.kind.*lose.*'backbone'"):
        check_experiment(phased(simclr, TUNED, last))
    assert carried(simclr, ON_FEATURES, last).begun == ()


@pytest.mark.parametrize(
    "phase",
    [
        {"method": {"kind": "noisy_student"}},
        {"method": {"kind": "distill", "start": "teacher", "unlabeled_ratio": 1}},
        {"method": {"kind": "supervised"}, "model": {"widths": [8, 16], "hidden": 24}},
    ],
)
def test_a_phase_that_begins_anew_or_copies_may_follow_a_fine_tuned_head(phase):
    check_experiment(phased(CHAIN["phases"][0], TUNED, {"rounds": 1, **phase}))


def test_a_private_weight_begins_anew():
    private = {"rounds": 1, "method": {"kind": "tests.plugins.stateful"}}
    taken = carried(private, SUPERVISED)
    assert not any(name.startswith("head.") for name in taken.sources.values())


def test_a_student_from_scratch_starts_from_the_seeds_weights_and_a_copy_from_its_teachers():
    starts = {}
    for start in ("scratch", "teacher"):
        student = {"rounds": 1, "method": {"kind": "distill", "start": start, "unlabeled_ratio": 1}}
        noted = ran(phased({**SUPERVISED, "rounds": 2}, {**student, "train": {"lr": 1e-9}}))
        starts[start] = noted.models[2].arrays, noted.models[1].arrays
    after, before = starts["teacher"]
    assert all(np.allclose(after[name], before[name], atol=1e-6) for name in before)
    after, before = starts["scratch"]
    fresh = phased(SUPERVISED).plans[0].build_network(federation_of(phased(SUPERVISED)).data.spec)
    initial = {name: tensor.numpy() for name, tensor in fresh.state_dict().items()}
    assert all(np.allclose(after[name], initial[name], atol=1e-6) for name in initial)
    assert not np.allclose(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize(("start", "goes_on"), [("scratch", False), ("teacher", True)])
def test_a_strategy_forgets_weights_that_begin_anew(start, goes_on, monkeypatch):
    """The student has the names of the last network; from scratch, FedAdam's moments belong to other weights."""
    seen = []

    def noting(self, server_round, arrays, aggregate, after=OptimizingStrategy.after):
        seen.append(bool(self.states))
        return after(self, server_round, arrays, aggregate)

    monkeypatch.setattr(OptimizingStrategy, "after", noting)
    student = {"rounds": 1, "method": {"kind": "distill", "start": start, "unlabeled_ratio": 1}}
    ran(phased(SUPERVISED, student, strategy="fedadam"))
    assert seen == [False, goes_on]


# the teacher


def test_the_teacher_is_the_last_model_and_travels_once():
    student = {"rounds": 3, "method": {"kind": "distill", "unlabeled_ratio": 1}}
    noted = ran(phased({**SUPERVISED, "rounds": 2}, student, federation={"sample": 6}))
    model = protocol.encoded_bytes(noted.models[1].arrays)
    teacher = protocol.encoded_bytes({f"teacher/{n}": a for n, a in noted.models[1].arrays.items()})
    assert [row.bytes_down for row in noted.rows] == [
        6 * model, 6 * model, 6 * (model + teacher), 6 * model, 6 * model,
    ]  # fmt: skip


def test_clients_that_are_not_simulated_keep_the_teacher_themselves():
    student = {"rounds": 2, "method": {"kind": "distill", "unlabeled_ratio": 1}}
    inner = SerialGrid(Apps(app), 6)
    experiment = phased(SUPERVISED, student, federation={"sample": 6})
    noted = ran(experiment, RemoteGrid(inner))
    held = kept_states(inner)[0].array_records["phase-1.teacher"]
    assert {n: a.numpy().tobytes() for n, a in held.items()} == {
        n: a.tobytes() for n, a in noted.models[0].arrays.items()
    }
    simulated = ran(experiment).models[-1].arrays
    assert all(a.tobytes() == simulated[n].tobytes() for n, a in noted.models[-1].arrays.items())


def test_labeling_once_a_phase_takes_virtual_time_once():
    """All six clients label in the first round of their phase: a pass without gradients over the unlabeled images."""
    student = {
        "rounds": 3,
        "method": {"kind": "noisy_student", "threshold": 0, "unlabeled_ratio": 1},
    }
    speed = {"speed": 10.0, "upload": 1e9, "download": 1e9}
    experiment = phased(SUPERVISED, student, federation={"sample": 6}, system=speed)
    times = [row.virtual_seconds for row in ran(experiment).rows]
    federation = federation_of(experiment)
    unlabeled = np.array(federation.sizes) - np.array(federation.labeled_sizes)
    steps = 2 * 8 * (1 + (np.array(federation.labeled_sizes) > 0))
    first, second, third = np.diff(times)
    assert first == pytest.approx((steps + FORWARD * unlabeled).max() / 10, rel=1e-5)
    assert second == third == pytest.approx(steps.max() / 10, rel=1e-5)


# what clients are told


def test_clients_are_told_what_the_last_network_was_made_of_if_they_need_it():
    plans = phased(*CHAIN["phases"], {"rounds": 1, "method": {"kind": "supervised"}}).plans
    texts = [plan.to_client_json() for plan in plans]
    tables = [json.loads(text) for text in texts]
    assert ["previous" in table for table in tables] == [False, True, True, False]
    assert tables[1]["previous"]["method"]["kind"] == "simclr"
    assert "previous" not in tables[1]["previous"]
    teacher = tables[2]["previous"]
    assert (teacher["method"]["kind"], teacher["model"]["hidden"]) == ("fine_tune", 16)
    assert (
        teacher["previous"]["method"]["kind"] == "simclr"
    )  # a layer of its head is in the teacher
    for plan, text in zip(plans, texts, strict=True):
        told = ClientSettings.from_json(text)
        assert told.to_client_json() == text
        if told.needs_previous:
            assert told.previous == plan.previous
    spec = federation_of(phased(*CHAIN["phases"])).data.spec
    here, there = (s.build_network(spec) for s in (plans[1], ClientSettings.from_json(texts[1])))
    assert here.state_dict().keys() == there.state_dict().keys()


def test_a_chain_of_students_does_not_grow_the_text():
    student = {"rounds": 1, "method": {"kind": "distill", "unlabeled_ratio": 1}}
    plans = phased(SUPERVISED, *[student] * 4).plans
    sizes = [len(plan.to_client_json()) for plan in plans[2:]]
    assert len(set(sizes)) == 1


def test_the_files_own_settings_have_no_previous_phase():
    with pytest.raises(InputError, match="previous"):
        small_experiment(previous={"model": {"kind": "cnn"}, "method": {"kind": "supervised"}})


def test_a_client_refuses_a_module_that_it_does_not_allow_in_the_last_phase_too():
    student = {"rounds": 1, "method": {"kind": "distill"}}
    stateful = {"rounds": 1, "method": {"kind": "tests.plugins.stateful"}}
    text = phased(stateful, student).plans[1].to_client_json()
    with trusting(trust_only("")), pytest.raises(InputError, match=r"tests\.plugins"):
        ClientSettings.from_json(text)
    with pytest.raises(InputError, match="no_such_method"):
        ClientSettings.from_json(text.replace("tests.plugins.stateful", "no_such_method"))


# mistakes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": {"kind": "fine_tune"}}, r"^method\.kind.*first phase"),
        ({"method": {"kind": "distill"}}, r"^method\.kind.*first phase"),
        (
            {"rounds": None, "phases": [{"rounds": 1, "method": {"kind": "fine_tune"}}]},
            r"^phases\[0\]\.method\.kind.*first phase",
        ),
        (
            {
                "rounds": None,
                "phases": [
                    SUPERVISED,
                    {"rounds": 1, "method": {"kind": "fine_tune"}, "model": {"hidden": 32}},
                ],
            },
            r"^phases\[1\]\.method\.kind.*'trunk\.9\.weight'.*\[model\]",
        ),
        (
            {
                "rounds": None,
                "phases": [SUPERVISED, {"rounds": 1, "method": {"kind": "fine_tune", "start": "projection"}}],
            },
            r"^phases\[1\]\.method\.start.*no projection head",
        ),
        (
            {
                "rounds": None,
                "federation": {"labels": {"kind": "at_server", "per_class": 4}},
                "phases": [SUPERVISED, {"rounds": 1, "server": {"method": {"kind": "distill"}}}],
            },
            r"server\.method\.kind.*earlier phase",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_runs(settings, says):
    with pytest.raises(InputError, match=says):
        check_experiment(small_experiment(**settings))


def test_a_chain_is_valid():
    check_experiment(phased(*CHAIN["phases"]))
    assert isinstance(phased(*CHAIN["phases"]).plans[0].strategy, Strategy)
