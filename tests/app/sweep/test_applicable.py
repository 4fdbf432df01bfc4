"""Where a sweep varies kinds, a setting is set at the kinds that have it, and a mistake is a mistake."""

import pytest

from fedssl.app.sweep.applicable import leave_out_unknown
from fedssl.app.sweep.axes import parse_axes, spread
from fedssl.experiment.families import family_at
from tests.helpers import SMALL, fedssl, finished, refused, small_toml


def points_of(*settings, table=SMALL):
    """Return what is left of each point's settings, and what is said of the others."""
    assignments = spread(parse_axes(settings))
    return leave_out_unknown([table] * len(assignments), assignments, family_at)


RATIO = ("method.unlabeled_ratio", "2")


@pytest.mark.parametrize("key", ["method.kind", "method"])
def test_a_setting_is_left_out_where_the_kind_lacks_it(key):
    kept, said = points_of(f"{key}=supervised,fixmatch", "method.unlabeled_ratio=2")
    assert kept == [((key, "supervised"),), ((key, "fixmatch"), RATIO)]
    assert said == ["left out: method.unlabeled_ratio (supervised has no such setting)"]


def test_kinds_of_sections_in_sections_count_too():
    kept, said = points_of("federation.partition=iid,dirichlet:0.3", "federation.partition.alpha=1")
    assert [len(point) for point in kept] == [1, 2]
    assert said == ["left out: federation.partition.alpha (iid has no such setting)"]


def test_the_kind_may_be_the_files_or_the_default():
    tables = [{"method": "supervised"}, {"method": {"kind": "fixmatch"}}, {}]
    kept, _ = leave_out_unknown(tables, [(RATIO,)] * 3, family_at)
    assert kept == [(), (RATIO,), (RATIO,)]


@pytest.mark.parametrize(
    "settings",
    [
        ("method.kind=supervised,fixmatch", "method.unlabeled_ratoi=2"),
        ("method.kind=supervised", "method.unlabeled_ratio=2"),
        ("method.kind=supervised,fixmatch", "train.lr=0.1,0.2"),
        ("method.kind=nothing,fixmatch", "rouns=2"),
    ],
)
def test_what_every_point_or_none_can_have_stays(settings):
    assert points_of(*settings) == (spread(parse_axes(settings)), [])


def test_points_that_became_the_same_run_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = small_toml(tmp_path / "e.toml")
    asked = ("--set", "method.kind=supervised,fixmatch", "--set", "method.unlabeled_ratio=2,3")
    result = fedssl("sweep", file, *asked, "--dry-run")
    finished(result)
    assert "3 runs: 0 finished, 0 begun, 3 new" in result.output
    assert result.output.count("method.kind=supervised") == 1
    wrong = (*asked[:3], "method.unlabeled_ratoi=2")
    refused(fedssl("sweep", file, *wrong, "--dry-run"), "method.unlabeled_ratoi: unknown key")
