"""`fedssl validate` takes one step of one client: errors of one's own code are told with file and line."""

import sys
import uuid

import pytest

from fedssl.app.trial_step import MOST_IMAGES, try_one_step
from fedssl.core.errors import InputError
from fedssl.methods.base import METHODS
from tests.helpers import (
    CHAIN,
    federation_of,
    fedssl,
    finished,
    refused,
    small_experiment,
    small_toml,
)

NEED_A_LAST_PHASE = {"distill", "fine_tune", "noisy_student"}
AT_SERVER = {"labels": {"kind": "at_server", "per_class": 4}}

METHOD = """
from fedssl.methods.fixmatch import FixMatch
class Mine(FixMatch):
    def loss(self, network, batch, state, progress):
        return network(batch.unlabelled)
"""

MODEL = """
from fedssl.models.cnn import CNN
class Mine(CNN):
    def build(self, spec, generator):
        return super().build(spec, generator).nothing
"""

OTHER_ARGUMENTS = """
from fedssl.models.cnn import CNN
class Mine(CNN):

    def build(self):
        return None
"""

LOSS = """
import torch
from fedssl.methods import Loss, SemiSupervised
from fedssl.methods.functional import supervised_loss
class Mine(SemiSupervised):
    def loss(self, network, batch, state, progress):
        total = supervised_loss(network, batch.labeled[0], batch.labels)
        {body}
"""

OWN_STEP = (
    LOSS.format(body="return Loss(total)")
    + """
    def step(self, learner, batch):
        return self.loss(learner.network, batch, learner.state, learner.progress)
"""
)

FROZEN_AT_FIRST = """
from fedssl.methods.supervised import Supervised
from fedssl.training.schedules.constant import Constant
class Mine(Supervised):
    def optimizers(self, network, make):
        return {"main": make(network.head.parameters())}
class WarmUp(Constant):
    def lr_factor(self, step, num_steps, train):
        return step / num_steps
"""

STRATEGY = """
from fedssl.strategies.base import Strategy
class Mine(Strategy):
    def build(self, cohorts):
        return cohorts.nothing
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a file of one's own beside the experiment, and return its kind."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    name = f"own_{uuid.uuid4().hex}"

    def write(code):
        (tmp_path / f"{name}.py").write_text(code)
        return f"{name}.py"

    yield write
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("section", "code", "line", "said"),
    [
        ("method", METHOD, 5, "AttributeError"),
        ("model", MODEL, 5, "AttributeError"),
        ("model", OTHER_ARGUMENTS, 5, "Mine.build() takes 1 positional argument"),
        ("strategy", STRATEGY, 5, "AttributeError"),
    ],
)
def test_an_error_of_ones_own_code_is_one_message_with_its_line(
    tmp_path, own, section, code, line, said
):
    kind = own(code)
    file = small_toml(tmp_path / "e.toml")
    result = fedssl("validate", file, "--set", f"{section}.kind={kind}")
    refused(result, f"{tmp_path / kind}, line {line}, in ", said)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (LOSS.format(body="return Loss(total.detach())"), "Loss.total has no gradient"),
        (LOSS.format(body="return Loss(torch.ones(()))"), "Loss.total has no gradient"),
        (LOSS.format(body="return Loss(torch.ones((), requires_grad=True) * 2)"), "depends on none of the weights"),
        (OWN_STEP, "changed no weight and no state; call learner.descend"),
    ],
    ids=["detached", "constant", "other weights", "no step"],
)  # fmt: skip
def test_a_method_that_trains_nothing_is_refused(tmp_path, own, code, said):
    file = small_toml(tmp_path / "e.toml", federation={"labels": {"per_class": 1}})
    result = fedssl("validate", file, "--set", f"method.kind={own(code)}")
    refused(result, "a trial step of client", said, "--no-step leaves this trial out")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return Loss(total * float('nan'))", "the loss of the method '{kind}' is nan;"),
        ("return Loss(total / 0)", "the loss of the method '{kind}' is inf;"),
        # A root whose slope at 0 is infinite, times a slope of 0.
        ("return Loss(total + (0 * total).sqrt())", "not finite"),
    ],
)
def test_a_loss_that_is_not_finite_is_refused(tmp_path, own, body, said):
    kind = own(LOSS.format(body=body))
    file = small_toml(tmp_path / "e.toml")
    result = fedssl("validate", file, "--set", f"method.kind={kind}")
    refused(result, "a trial step of client", said.format(kind=kind), "--no-step")
    finished(fedssl("validate", file, "--set", f"method.kind={kind}", "--no-step"))


def test_a_server_whose_loss_is_not_finite_is_refused(own):
    kind = own(LOSS.format(body="return Loss(total * float('nan'))"))
    experiment = small_experiment(federation=AT_SERVER, server={"method": {"kind": kind}})
    with pytest.raises(InputError, match=r"a trial step of the server: the loss .* is nan"):
        try_one_step(experiment, federation_of(experiment))


def test_a_server_whose_method_trains_nothing_is_refused(tmp_path, own):
    kind = own(LOSS.format(body="return Loss(total.detach())"))
    experiment = small_experiment(federation=AT_SERVER, server={"method": {"kind": kind}})
    with pytest.raises(InputError, match=r"a trial step of the server: .* has no gradient"):
        try_one_step(experiment, federation_of(experiment))


def test_a_learning_rate_of_0_and_frozen_parts_are_lawful(own):
    kind = own(FROZEN_AT_FIRST)
    train = {"schedule": {"kind": f"{kind}:WarmUp"}}
    experiment = small_experiment(method={"kind": f"{kind}:Mine"}, train=train)
    assert try_one_step(experiment, federation_of(experiment)) == []


def test_a_client_without_labels_may_have_nothing_to_train(tmp_path, own):
    kind = own(LOSS.format(body="return Loss(total.detach())"))
    file = small_toml(tmp_path / "e.toml", federation=AT_SERVER)
    result = fedssl("validate", file, "--set", f"method.kind={kind}")
    assert result.exit_code == 0, result.output
    assert "changed no weight: it had no labels" in result.output


def test_a_hook_of_the_servers_method_is_tried(tmp_path, own):
    kind = own(METHOD)
    file = small_toml(tmp_path / "e.toml", federation=AT_SERVER)
    result = fedssl("validate", file, "--set", f"server.method.kind={kind}")
    refused(result, "line 5, in loss", "a trial step of the server")
    assert (
        fedssl("validate", file, "--set", f"server.method.kind={kind}", "--no-step").exit_code == 0
    )


def test_a_phase_is_named():
    wrong = {
        **CHAIN,
        "phases": [*CHAIN["phases"], {"rounds": 1, "method": "tests.plugins.raising"}],
    }
    experiment = small_experiment(**wrong)
    with pytest.raises(InputError, match=r"raising.py, line .*during phases\[3\]: a trial step"):
        try_one_step(experiment, federation_of(experiment))


@pytest.mark.parametrize("kind", sorted(set(METHODS.names()) - NEED_A_LAST_PHASE))
def test_every_built_in_method_takes_the_step(kind):
    experiment = small_experiment(method=kind, train={"batch_size": 4 * MOST_IMAGES})
    try_one_step(experiment, federation_of(experiment))


def test_phases_that_build_on_each_other_take_the_step():
    phases = [
        *CHAIN["phases"],
        {"rounds": 1, "method": {"kind": "noisy_student", "unlabeled_ratio": 2}},
    ]
    experiment = small_experiment(**{**CHAIN, "phases": phases})
    try_one_step(experiment, federation_of(experiment))


def test_the_step_writes_nothing_and_changes_no_random_stream(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    file = small_toml(tmp_path / "e.toml")
    before = torch.get_rng_state()
    assert fedssl("validate", file).exit_code == 0
    assert torch.equal(before, torch.get_rng_state())
    assert [path.name for path in tmp_path.rglob("*")] == ["e.toml"]


def test_a_weight_that_the_method_does_not_record_is_told(tmp_path):
    """Else the first round would tell it."""
    method = {"kind": "fl2"}
    for weight, words in (
        (
            "number:uncertainly",
            ("records no number 'uncertainly'", "confident, selected, uncertainty"),
        ),
        ("number:uncertainty", ()),
    ):
        file = small_toml(
            tmp_path / "e.toml", method=method, strategy={"kind": "fedavg", "weight": weight}
        )
        done = fedssl("validate", file)
        if words:
            refused(done, "strategy.weight: is 'number:uncertainly'", *words)
        else:
            finished(done)
    fixmatch = small_toml(tmp_path / "f.toml", strategy={"kind": "fedavg", "weight": "number:a"})
    refused(fedssl("validate", fixmatch), "records no number 'a'; it records none")
