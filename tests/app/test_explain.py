"""`fedssl explain` tells what stands at every place of the experiment file, and names what is near a place that is not there."""

import pytest

from fedssl.experiment.families import PLUGIN_SECTIONS
from tests.helpers import fedssl, refused


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", ("rounds", "federation", "All settings that define a run")),
        ("train", ("batch_size", "B, labeled examples per step", "32")),
        ("train.lr", ("learning rate; > 0", "0.05")),
        ("method", ("fixmatch", "Let the confident prediction", "explain method.KIND")),
        ("method.flexmatch", ("status_scope", "one of: client, server")),
        ("federation.partition.dirichlet.alpha", ("concentration", "0.5")),
        ("phases", ("rounds", "required")),
        ("privacy.clipping_norm", ("required", "largest L2 norm")),
        ("augment.mine.randaugment", ("num_ops", "≤ 8")),
    ],
)
def test_a_place_is_explained(place, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = fedssl("explain", *([place] if place else []))
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.output


def test_every_section_with_kinds_is_explained():
    for section, family in PLUGIN_SECTIONS.items():
        result = fedssl("explain", section)
        assert result.exit_code == 0, (section, result.output)
        assert family.names()[0] in result.output


def test_a_place_that_is_not_there():
    refused(fedssl("explain", "tra"), "there is no 'tra'", "did you mean 'train'?")
    refused(fedssl("explain", "method.fxmatch"), "did you mean 'fixmatch'?")
    refused(fedssl("explain", "method.fixmatch.treshold"), "did you mean 'threshold'?")
    refused(fedssl("explain", "train.lr.x"), "there is no 'train.lr.x'")
    refused(fedssl("explain", "train..lr"), "there is no 'train.'")
