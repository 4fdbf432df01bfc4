"""A run that cannot be resumed says what its clients keep, and which section of the experiment file is the reason."""

import pytest

from fedssl.server.client_memory import cannot_resume
from tests.helpers import federation_of, small_experiment


@pytest.mark.parametrize(
    ("sections", "slot", "section"),
    [
        ({"method": "temporal_ensembling"}, "ensemble", "method"),
        ({"augment": {"strong": {"kind": "ctaugment", "scope": "client"}}}, "augment.strong", "augment"),
        ({"train": {"keep_momentum": True}}, "optimizer.sgd", "train"),
        ({"strategy": "scaffold"}, "scaffold.own", "strategy"),
    ],
)  # fmt: skip
def test_it_names_the_section_that_declares_the_slot(sections, slot, section):
    experiment = small_experiment(**sections)
    error = cannot_resume(experiment, federation_of(experiment).data.spec)
    assert f"({f'the slot {slot!r} of [{section}]'})" in str(error)


def test_every_phase_is_looked_at_and_the_same_reason_is_given_once():
    phases = [{"rounds": 1}, {"rounds": 1, "strategy": "feddyn"}, {"rounds": 1, "strategy": "scaffold"}]  # fmt: skip
    experiment = small_experiment(rounds=None, phases=phases, train={"keep_momentum": True})
    said = str(cannot_resume(experiment, federation_of(experiment).data.spec))
    assert said.count("'optimizer.sgd' of [train]") == 1
    assert said.count("of [strategy]") == 2
