"""`fedssl advise`: the nearest measured federation, the lines that are best in it, and what is said of them."""

import dataclasses
import math
import shlex

import pandas as pd
import pytest

from fedssl.app.advice.advice import advise
from fedssl.app.advice.evidence import (
    ALL_LABELS,
    COLUMNS,
    best_lines,
    load_evidence,
    nearest_cells,
)
from fedssl.app.advice.situation import Situation, situation_of
from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from tests.helpers import (
    federation_of,
    fedssl,
    finished,
    refused,
    small_experiment,
    small_toml,
)

LABELS_ONLY = "labels only, strong views"
HERE = Situation("all clients", 0.5, 40, 10, 10)


def rows_of(data="photos", place="all clients", skew=0.5, labels=40, **accuracies):
    """Return rows of a cell; a line's value is its accuracy and its letters."""
    titles = {"labels_only": LABELS_ONLY, "all_labels": ALL_LABELS}
    row = dict.fromkeys(COLUMNS, math.nan)
    row |= {
        "data": data,
        "place": place,
        "label_skew": skew,
        "labels": labels,
        "classes": 10,
        "clients": 10,
    }
    row |= {
        "seeds": 3,
        "gain": 0.01,
        "gap_closed": 0.5,
        "baseline": LABELS_ONLY,
        "traffic": 1.0,
        "work": 2.0,
    }
    return pd.DataFrame(
        [
            row
            | {
                "title": titles.get(line, line),
                "settings": f"method.kind={line}",
                "accuracy": accuracy,
                "letters": letters,
            }
            for line, (accuracy, letters) in accuracies.items()
        ]
    )


USUAL = {
    "labels_only": (0.80, "c"),
    "all_labels": (0.90, ""),
    "fixmatch": (0.83, "b"),
    "flexmatch": (0.85, "a"),
}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"kind": "at_server", "per_class": 2}, ("server", 20)),
        ({"kind": "at_clients", "per_class": 10}, ("all clients", 100)),
        ({"kind": "some_clients", "labeled_clients": 2, "per_class": 3}, ("some clients", 30)),
    ],
)
def test_a_situation_is_that_of_the_drawn_federation(labels, expected):
    partition = {"kind": "iid"}
    federation = federation_of(
        small_experiment(federation={"labels": labels, "partition": partition, "clients": 4})
    )
    found = situation_of(federation)
    assert (found.place, found.labels) == expected
    assert (found.classes, found.clients) == (10, 4)
    assert found.label_skew < 0.15


def test_the_nearest_cell_has_the_place_then_the_skew_and_its_data_the_labels():
    evidence = pd.concat(
        [
            rows_of("many", skew=0.1, labels=4000, **USUAL),
            rows_of("many", skew=0.6, labels=4000, **USUAL),
            rows_of("few", skew=0.9, labels=50, **USUAL),
            rows_of("server", place="server", skew=0.5, labels=40, **USUAL),
        ]
    )
    cells = nearest_cells(evidence, HERE)
    assert [(rows["data"].iloc[0], rows["label_skew"].iloc[0]) for rows in cells] == [
        ("few", 0.9),
        ("many", 0.6),
    ]
    unknown = Situation("all clients", math.nan, 4000, 10, 10)
    assert [rows["data"].iloc[0] for rows in nearest_cells(evidence, unknown)] == ["many", "few"]


def test_what_shares_a_letter_with_the_best_line_is_best_too():
    rows = rows_of(a=(0.9, "a"), b=(0.8, "ab"), c=(0.85, "c"), d=(0.7, math.nan))
    assert list(best_lines(rows)["title"]) == ["a", "b"]
    one_seed = rows_of(a=(0.9, math.nan), b=(0.8, math.nan))
    assert list(best_lines(one_seed)["title"]) == ["a"]


def test_the_advice_is_the_best_line_that_learns_from_unlabeled_images():
    advice = advise(rows_of(**USUAL), HERE)
    assert advice.settings == ["method.kind=flexmatch"]
    (said,) = advice.sentences()
    assert "Best there: flexmatch, 85.0 %" in said
    (table,) = advice.tables()
    assert [row[0] for row in table.rows] == [ALL_LABELS, "flexmatch", "fixmatch", LABELS_ONLY]
    assert [row[-1] for row in table.rows] == ["", "yes", "", ""]


def test_it_says_that_one_seed_tells_little():
    rows = rows_of(**USUAL)
    assert "one seed" not in " ".join(advise(rows, HERE).sentences())
    assert "That is one seed, which tells little." in advise(rows.assign(seeds=1), HERE).sentences()


def test_it_says_that_unlabeled_images_gained_nothing_sure():
    lines = USUAL | {"labels_only": (0.84, "a"), "fixmatch": (0.83, "a")}
    said = " ".join(advise(rows_of(**lines), HERE).sentences())
    assert f"3 seeds cannot tell these from it: {LABELS_ONLY}; fixmatch" in said
    assert f"Least work: {LABELS_ONLY}." in said or "Least work: flexmatch." in said
    assert "unlabeled images gained nothing there that is sure" in said


def test_labels_only_may_be_the_best_line():
    advice = advise(rows_of(**USUAL | {"labels_only": (0.88, "z")}), HERE)
    assert advice.settings == ["method.kind=labels_only"]
    said = " ".join(advice.sentences())
    assert said.startswith(f"Best there: {LABELS_ONLY}, 88.0 %. So unlabeled images gained nothing")


def test_it_says_how_far_the_cell_is_and_where_data_disagree():
    evidence = pd.concat(
        [
            rows_of("near", labels=400, skew=0.1, **USUAL),
            rows_of("far", labels=40000, **USUAL | {"fixmatch": (0.88, "z")}),
        ]
    )
    said = " ".join(advise(evidence, HERE).sentences())
    assert "10 times fewer labels a class" in said
    assert "Its skew is 0.50, that of the cell 0.10" in said
    assert "On far, others are best: fixmatch" in said


def test_a_limit_of_traffic_leaves_lines_out():
    rows = rows_of(**USUAL)
    rows.loc[rows["title"] == "flexmatch", "traffic"] = 2.0
    assert advise(rows, HERE, 1.5).settings == ["method.kind=fixmatch"]
    rows.loc[rows["title"] == "fixmatch", "traffic"] = 1.04
    assert advise(rows, HERE, 1).settings == ["method.kind=fixmatch"], "it is shown as 1.0"
    with pytest.raises(InputError, match="the least is 1"):
        advise(rows, HERE, 0.5)
    rows.loc[rows["title"] == ALL_LABELS, "traffic"] = 0.5
    with pytest.raises(InputError, match="the least is 1"):
        advise(rows, HERE, 0.5)  # all labels is no choice
    with pytest.raises(InputError, match="nothing was measured with labels at some clients"):
        advise(rows, dataclasses.replace(HERE, place="some clients"))


def test_the_evidence_of_the_package_is_whole(tmp_path):
    evidence = load_evidence()
    assert list(evidence.columns) == COLUMNS
    assert {"server", "all clients", "some clients"} <= set(evidence["place"])
    file = small_toml(tmp_path / "e.toml", method={"kind": "supervised"})
    for settings in evidence["settings"].unique():
        Experiment.load(file, shlex.split(settings))


def test_the_command_names_a_run_that_can_be_run(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    told = fedssl("advise", file)
    finished(told)
    assert "your federation: " in told.output
    words = shlex.split(told.output.splitlines()[-1])
    assert words[:2] == ["fedssl", "run"]
    finished(fedssl("validate", *words[2:]))


def test_an_experiment_with_phases_gets_settings_for_one_of_them(tmp_path):
    phases = [{"rounds": 1, "method": {"kind": "supervised"}}, {"rounds": 1}]
    told = fedssl("advise", small_toml(tmp_path / "e.toml", rounds=None, phases=phases))
    finished(told)
    assert "give these settings to the phase" in told.output
    assert "fedssl run" not in told.output


def test_nothing_to_advise_is_one_message(tmp_path):
    labels = {"kind": "every_client", "per_class": "all"}
    file = small_toml(
        tmp_path / "e.toml", federation={"labels": labels}, method={"kind": "supervised"}
    )
    refused(fedssl("advise", file), "every image has a label", "supervised")


def test_advice_says_if_clients_without_labels_have_most_of_the_weight(tmp_path):
    few = {"clients": 4, "sample": 2, "labels": {"kind": "some_clients", "labeled_clients": 1}}
    file = small_toml(tmp_path / "e.toml", federation=few)
    words = "with 'labeled' only labels count."
    for settings, is_said in ((), True), (("--set", "strategy.weight=labeled"), False):
        done = fedssl("advise", file, *settings)
        finished(done)
        assert (words in " ".join(done.output.split())) == is_said
