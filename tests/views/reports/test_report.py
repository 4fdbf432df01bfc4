"""The page report.html holds the recorded numbers, and a browser draws it."""

import csv
import dataclasses
import json
import logging
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import vl_convert
from PIL import Image, ImageColor
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from fedssl.app.simulation import Engine
from fedssl.experiment.sections import RecordSection
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import resume_command
from fedssl.views.closer_look import look_closely, read_evaluation
from fedssl.views.reports.charts import Band, quantity, slanted, thinned
from fedssl.views.reports.line_specs import curves, lines
from fedssl.views.reports.material import read_material
from fedssl.views.reports.page import Page, balanced_columns, write_page
from fedssl.views.reports.run_report import report_page, write_report
from fedssl.views.reports.writer import ReportWriter
from fedssl.views.run import Run
from tests.helpers import federation_of, fedssl, refused, small_experiment, small_toml
from tests.views.reports.browser import DARK, LIGHT, PHONE, is_as_wide_as_the_screen, marks, opened

EVERYTHING = {
    "rounds": None,
    "federation": {"labels": {"per_class": 8}},
    "system": {"speed": {"kind": "lognormal", "median": 100.0, "sigma": 1.0}, "dropout": 0.2},
    "phases": [
        {"rounds": 2, "method": {"kind": "supervised"}},
        {"rounds": 5, "method": {"kind": "fixmatch", "threshold": 0.0}},
    ],
}
"""A small run that has something to draw in every chart."""

CHARTS = {
    "accuracy", "pseudo-labels", "loss", "class-right", "class-used", "confusion", "by-class", "reliability", "clients",
    "drift", "partition", "participation", "bytes", "seconds", "virtual-time",
}  # fmt: skip


def run_into(path, experiment, *observers: Observer) -> Run:
    with Engine() as engine:
        engine.run(experiment, [RunDirectory(path), ReportWriter(path), *observers])
    return Run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_into(tmp_path_factory.mktemp("report") / "run", small_experiment(**EVERYTHING))


@pytest.fixture(scope="module")
def page(run) -> Page:
    return report_page(read_material(run, read_evaluation(run.path)))


def chart_of(page, name):
    return next(chart for chart in page.charts if chart.name == name)


def test_there_is_a_chart_of_everything(page):
    assert {chart.name for chart in page.charts} == CHARTS
    assert all(chart.rows and chart.note and chart.title for chart in page.charts)


def test_a_line_of_one_phase_has_the_axis_of_all_phases():
    """Otherwise, the bands of the other phases lie outside the axis, which shrinks to nothing."""
    rows = [{"round": round, "probe": 0.5 + round / 10} for round in (1, 2)]
    spec = lines(rows, "round", ["probe"], "%", [Band(1, 2, "1: moco"), Band(3, 9, "2: distill")])
    axes = [layer["encoding"]["x"] for layer in spec["layer"] if "x" in layer["encoding"]]
    assert {tuple(x["scale"]["domain"]) for x in axes if "scale" in x} == {(1, 9)}


SVG = "{http://www.w3.org/2000/svg}"


def written_below(spec, rows):
    """Return what stands at the horizontal axis of a chart, as Vega draws it."""
    drawn = vl_convert.vegalite_to_svg({"width": 500, "data": {"values": rows}, **spec})
    (axis,) = [
        group
        for group in ElementTree.fromstring(drawn).iter(f"{SVG}g")
        if group.get("aria-label", "").startswith("X-axis titled")
    ]
    labels = next(g for g in axis.iter(f"{SVG}g") if "role-axis-label" in g.get("class", ""))
    return [text.text for text in labels.iter(f"{SVG}text")]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 13, 40])
def test_only_whole_rounds_stand_at_an_axis(count):
    """Vega itself would write 1.5 between two rounds and between three, whatever the least step of its ticks."""
    rows = [
        {"round": i, "v": i / 2, "line": "v", "mean": i, "worst": i, "best": i + 1}
        for i in range(1, count + 1)
    ]
    for spec in (
        lines(rows, "round", ["v"], "s"),
        curves(rows, "round", ["v"], "s", bands=True),
    ):
        written = written_below(spec, rows)
        assert all(label.isdecimal() and 1 <= int(label) <= count for label in written)
        if count <= 7:
            assert written == [str(i) for i in range(1, count + 1)]


@pytest.mark.parametrize(("largest", "wanted"), [(9.0, "8"), (9e6, "8,000,000"), (9e20, "8e+20")])
def test_a_large_number_at_an_axis_leaves_room_for_the_title(largest, wanted):
    """Vega moves a title no further than 200 pixels from the axis: over labels that are longer."""
    rows = [{"round": 1, "v": 0.0}, {"round": 2, "v": largest}]
    drawn = vl_convert.vegalite_to_svg(
        {"data": {"values": rows}, **lines(rows, "round", ["v"], "nats")}
    )
    texts = [text.text for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert wanted in texts


def axis_of(spec):
    return spec["layer"][0]["encoding"]["y"]["scale"]["domain"]


@pytest.mark.parametrize(
    ("unit", "value", "wanted"),
    [
        ("MB", 0.0, [0, 1]),
        ("MB", 3.0, [0, 6]),
        ("loss", -3.0, [-6, 0]),
        ("%", 0.0, [0, 100]),
        ("%", 91.7, [0, 100]),
        ("%", 100.0, [0, 100]),
    ],
)
def test_an_axis_of_equal_values_holds_none_that_there_cannot_be(unit, value, wanted):
    rows = [{"round": round, "v": value} for round in (1, 2)]
    assert axis_of(lines(rows, "round", ["v"], unit)) == wanted
    points = [{"round": 1, "line": "v", "mean": value, "worst": value, "best": value}]
    spec = curves(points, "round", ["v"], unit, bands=True)
    assert axis_of(spec) == wanted
    assert spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0.5, 1.5]


def test_a_legend_lists_the_columns_that_are_drawn():
    rows = [{"round": 1, "right": None, "used": 50.0}, {"round": 2, "used": 60.0}]
    line = lines(rows, "round", ["right", "used"], "%")["layer"][0]["encoding"]
    for look in ("color", "strokeDash"):
        assert line[look]["scale"]["domain"] == ["right", "used"]
        assert line[look]["legend"]["values"] == ["used"]


def test_pseudo_labels_are_judged_as_far_as_their_true_labels_are_known(run):
    """The digits' hidden labels are known; of some images, of all images or of no accepted one they may not be."""
    material = read_material(run, None)
    assert (
        "match the label the simulator hides. Used"
        in chart_of(report_page(material), "pseudo-labels").note
    )
    part = dataclasses.replace(material, label=np.where(material.label > 7, -1, material.label))
    hidden = int(((part.given < 0) & (part.owner >= 0) & (part.label >= 0)).sum())
    note = chart_of(report_page(part), "pseudo-labels").note
    assert f"This is known of {hidden:,} of the {part.num_unlabeled:,} unlabeled images" in note
    columns = {"pseudo_label_accuracy": np.nan, "pseudo_label_coverage": 0.5}
    unknown = [dataclasses.replace(row, **columns) for row in material.rounds]
    summary = {**material.summary, "pseudo_label_accuracy": None}
    page = report_page(dataclasses.replace(part, rounds=unknown, summary=summary))
    assert "How many pseudo-labels are right is not known" in chart_of(page, "pseudo-labels").note
    figure = next(figure for figure in page.figures if figure.name == "pseudo-labels right")
    assert figure.value == "unknown"
    columns["pseudo_label_coverage"] = 0.0
    unused = [dataclasses.replace(row, **columns) for row in material.rounds]
    note = chart_of(report_page(dataclasses.replace(part, rounds=unused)), "pseudo-labels").note
    assert note.startswith("No pseudo-label was accepted, so none is right and none is wrong.")


def test_clients_have_their_names_in_every_chart(run):
    """A record that does not name them, or not all of them, calls them by their numbers."""
    material, names = (
        read_material(run, read_evaluation(run.path)),
        [f"{i} (site {i})" for i in range(6)],
    )
    named = dataclasses.replace(material, data={**material.data, "client_names": names})
    page = report_page(named)
    assert {row["client"] for row in chart_of(page, "clients").rows} <= set(names)
    assert {row["client"] for row in chart_of(page, "partition").rows} == set(names)
    assert {row["clients"] for row in chart_of(page, "participation").rows} <= set(names)
    for known in ([], names[:3]):
        other = dataclasses.replace(material, data={**material.data, "client_names": known})
        rows = chart_of(report_page(other), "clients").rows
        assert {row["client"] for row in rows} <= set("012345")


@pytest.mark.parametrize(("count", "angle"), [(4, 0), (40, -40)])
def test_names_are_slanted_where_they_do_not_fit(count, angle):
    assert slanted([f"{i} (site {i})" for i in range(count)], wide=True)["labelAngle"] == angle
    assert slanted(list(map(str, range(200))), wide=False)["labelAngle"] == 0


def test_participation_ends_with_the_last_client_and_round(run, page):
    chart = chart_of(page, "participation")
    recorded = {
        (int(row["client"]), int(row["round"]))
        for row in csv.DictReader((run.path / "clients.csv").open())
    }
    assert {(row["top"], row["from"]) for row in chart.rows} == recorded
    assert all((row["top"], row["from"]) == (row["bottom"], row["to"]) for row in chart.rows)
    axes = chart.spec["encoding"]
    assert axes["x"]["scale"]["domain"] == [0.5, 7.5]
    assert axes["y"]["scale"]["domain"] == [-0.5, 5.5]


def test_an_axis_of_two_clients_has_whole_numbers():
    axis = quantity("client", "client", (-0.5, 1.5), whole=True)["axis"]
    assert axis["values"] == [0, 1]


def test_images_of_unknown_class_are_held_too(run, page):
    material = read_material(run, None)
    before = chart_of(page, "partition").rows
    assert sum(row["images"] for row in before) == len(material.owner)
    hidden = dataclasses.replace(material, label=np.where(material.label > 7, -1, material.label))
    chart = chart_of(report_page(hidden), "partition")
    assert sum(row["images"] for row in chart.rows) == len(material.owner)
    unknown = [row for row in chart.rows if row["class"] == "(unknown)"]
    counted = np.bincount(material.owner[material.label > 7], minlength=6)
    assert {row["client"]: row["images"] for row in unknown} == {
        str(c): n for c, n in enumerate(counted) if n
    }
    assert f"The class of {counted.sum():,} images is not known" in chart.note
    nobody = dataclasses.replace(material, label=np.full_like(material.label, -1))
    assert {row["class"] for row in chart_of(report_page(nobody), "partition").rows} == {
        "(unknown)"
    }


@pytest.mark.parametrize("most", [4, 7])
@pytest.mark.parametrize("count", range(2, 13))
def test_no_tile_is_alone_in_a_row(count, most):
    columns = balanced_columns(count, most)
    assert columns <= most
    assert count % columns != 1


def test_tables_hold_what_was_recorded(run, page):
    rounds = list(csv.DictReader((run.path / "rounds.csv").open()))
    for chart, column, recorded, factor in (
        ("accuracy", "moving average", "ema_accuracy", 100),
        ("accuracy", "global model", "server_accuracy", 100),
        ("loss", "training", "loss", 1),
        ("pseudo-labels", "used", "pseudo_label_coverage", 100),
        ("virtual-time", "virtual clock", "virtual_seconds", 1),
    ):
        shown = [row[column] for row in chart_of(page, chart).rows]
        wanted = [float(row[recorded]) * factor if row[recorded] else None for row in rounds]
        assert shown == pytest.approx(wanted, abs=0.006)
    sent = np.cumsum([int(row["bytes_up"]) for row in rounds])[-1] / 1e6
    assert chart_of(page, "bytes").rows[-1]["clients to server"] == pytest.approx(sent, abs=0.001)
    clients = list(csv.DictReader((run.path / "clients.csv").open()))
    cells = chart_of(page, "participation").rows
    assert sum(row["trained"] for row in cells) == sum(row["status"] == "ok" for row in clients)
    assert sum(row["lost"] for row in cells) == sum(row["status"] != "ok" for row in clients) > 0


def test_classes_are_what_was_counted(run, page):
    counted = list(csv.DictReader((run.path / "classes.csv").open()))
    last = {row["label"]: row for row in counted if row["round"] == "7"}
    for row in chart_of(page, "class-right").rows:
        if row["round"] == 7:
            line = last[row["true class"]]
            share = float(line["right"]) / float(line["accepted"]) * 100
            assert row["right, %"] == pytest.approx(share, abs=0.006)


def test_the_closer_look_agrees_with_the_rounds(run):
    federation = federation_of(run.experiment)
    found = read_evaluation(run.path)
    last = run.rounds.iloc[-1]
    for key, column in (("ema", "ema_accuracy"), ("model", "server_accuracy")):
        confusion = np.array(found["models"][key]["confusion"])
        assert confusion.sum() == len(federation.held_out)
        assert np.trace(confusion) / confusion.sum() == pytest.approx(last[column], abs=1e-9)
        accuracy = np.array(found["models"][key]["client_accuracy"], dtype=float)
        images = np.array(found["client_images"])
        assert np.nansum(accuracy * images) == pytest.approx(np.trace(confusion), abs=1e-3)
        assert sum(found["models"][key]["reliability"]["count"]) == len(federation.held_out)


def test_measures_that_give_classes_the_same_weight_are_scikit_learns_everywhere(run, page):
    """In summary.json, evaluation.json and on the page, for both models."""
    held_out, found = run.federation.held_out, read_evaluation(run.path)["models"]
    for key, name in (("ema", "ema"), ("model", "server")):
        probs = run.predict(held_out.images, average=key == "ema")
        truth, guess = held_out.labels, probs.argmax(1)
        expected = {
            "macro_f1": f1_score(truth, guess, average="macro"),
            "balanced_accuracy": balanced_accuracy_score(truth, guess),
            "auroc": np.mean([roc_auc_score(truth == c, probs[:, c]) for c in range(10)]),
        }
        for measure, value in expected.items():
            assert run.summary[f"{name}_{measure}"] == pytest.approx(value, abs=1e-9)
            assert found[key][measure] == pytest.approx(value, abs=1e-6)
        recall = recall_score(truth, guess, average=None)
        assert found[key]["by_class"]["recall"] == pytest.approx(recall, abs=1e-6)
    chart = chart_of(page, "by-class")
    assert len(chart.rows) == 10
    shown = [row["recall, %"] for row in chart.rows]
    assert shown == sorted(shown)
    by_name = {row["class"]: row for row in chart.rows}
    ours = found["ema"]["by_class"]
    for cls in range(10):
        row = by_name[str(cls)]
        assert row["images"] == (held_out.labels == cls).sum()
        assert row["recall, %"] == pytest.approx(ours["recall"][cls] * 100, abs=0.051)
        assert row["F1, %"] == pytest.approx(ours["f1"][cls] * 100, abs=0.051)
    shown = f"{run.summary['ema_macro_f1'] * 100:.1f} %"
    assert f"moving average: macro F1 {shown}" in chart.note
    assert next(f for f in page.figures if f.name == "macro F1").value == shown


def test_a_record_of_an_older_version_has_no_measures_by_class_and_a_page(run, tmp_path):
    found, measures = read_evaluation(run.path), ("macro_f1", "balanced_accuracy", "auroc")
    for model in found["models"].values():
        for name in ("by_class", *measures):
            del model[name]
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    summary = json.loads((copy / "summary.json").read_text())
    kept = {key: value for key, value in summary.items() if not key.endswith(measures)}
    (copy / "summary.json").write_text(json.dumps(kept))
    page = report_page(read_material(Run(copy), found))
    assert {chart.name for chart in page.charts} == CHARTS - {"by-class"}
    assert "macro F1" not in [figure.name for figure in page.figures]


def test_clients_that_see_differently_are_judged_by_what_they_see():
    experiment = small_experiment(federation={"features": {"kind": "rotation", "max_degrees": 180}})
    federation = federation_of(experiment)
    assert federation.features is not None
    with Engine() as engine:
        outcome = engine.run(experiment)
    found = look_closely(experiment, federation, {"ema": outcome.model.ema}, 2)["models"]["ema"]
    confusion = np.array(found["confusion"])
    images = np.bincount(federation.held_out_owner, minlength=6)
    seen = np.nansum(np.array(found["client_accuracy"], dtype=float) * images)
    assert seen != pytest.approx(np.trace(confusion), abs=0.5)


def test_every_chart_is_one_that_vega_draws(page):
    for chart in page.charts:
        spec = {"width": 500, "data": {"values": chart.rows}, **chart.spec}
        drawn = vl_convert.vegalite_to_svg(spec)
        marks = re.findall(r'class="mark-(?!group)[a-z]+ role-mark.*?</g>', drawn, re.S)
        assert sum(group.count("<path") + group.count("<line") for group in marks) > 0, chart.name


def test_a_browser_draws_it_and_asks_for_nothing(run, page):
    path = run.path / "report.html"
    assert path.stat().st_size < 6e6
    with opened(path, LIGHT) as shown:
        counts = marks(shown)
        assert set(counts) == CHARTS
        cells = chart_of(page, "confusion").rows
        written = sum(row["images"] > 0 for row in cells)
        assert counts["confusion"] == 100 + written == len(cells) + written
        assert counts["participation"] == len(chart_of(page, "participation").rows)
        assert counts["clients"] == len(chart_of(page, "clients").rows) + 2  # and two levels
        assert counts["class-right"] == len(chart_of(page, "class-right").rows)
        for name, lines in {"accuracy": 2, "loss": 3, "drift": 3, "bytes": 2, "seconds": 1}.items():
            points = sum(len(row) - 1 for row in chart_of(page, name).rows)
            assert counts[name] > lines + points - 7, (
                name
            )  # each line, and its points, for rounds are few
        light = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        plot = shown.locator("#accuracy .plot svg").bounding_box()
        shown.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] / 2)
        tooltip = shown.locator("#vg-tooltip-element.visible")
        tooltip.wait_for(timeout=5000)
        said = " ".join(tooltip.inner_text().split())
        place = int(said.split()[1]) - 1
        row = chart_of(page, "accuracy").rows[place]
        assert all(f"{name} {value:.4g}" in said for name, value in row.items()), said
        shown.locator("#accuracy summary").click()
        table = shown.locator("#accuracy table tbody tr")
        table.first.wait_for(timeout=5000)  # the page fills the table once it hears of the click
        assert table.count() == len(chart_of(page, "accuracy").rows)
    with opened(path, DARK) as shown:
        assert marks(shown) == counts
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") != light
    with opened(path, PHONE) as shown:
        assert marks(shown).keys() == CHARTS
        assert is_as_wide_as_the_screen(shown)


def labels_of(shown, name, title):
    """Return what stands at the axis with a title in a chart of an open page."""
    axis = shown.locator(f"#{name} g.role-axis", has=shown.locator(f"text={title}")).last
    return axis.locator(".role-axis-label text").all_text_contents()


def test_axes_name_rounds_and_clients(run, page):
    with opened(run.path / "report.html", LIGHT) as shown:
        for name in ("accuracy", "loss", "drift", "participation", "bytes", "seconds"):
            assert labels_of(shown, name, "round") == ["1", "2", "3", "4", "5", "6", "7"], name
        assert labels_of(shown, "participation", "client") == ["0", "1", "2", "3", "4", "5"]
        worst_first = [str(row["client"]) for row in chart_of(page, "clients").rows]
        assert labels_of(shown, "clients", "client, worst first") == worst_first


def test_a_chart_is_saved_as_it_is_seen(run, tmp_path):
    """The file is whole by itself: it knows no colors of the page, so it must have their values."""
    for settings, paper in ((LIGHT, "#ffffff"), (DARK, "#14171a")):
        with opened(run.path / "report.html", settings) as shown:
            for kind in ("svg", "png"):
                with shown.expect_download() as saving:
                    shown.locator("#accuracy .save").get_by_text(kind.upper()).click()
                assert saving.value.suggested_filename == f"small-seed-0-accuracy.{kind}"
                saving.value.save_as(tmp_path / f"saved.{kind}")
        svg = (tmp_path / "saved.svg").read_text()
        assert "var(" not in svg
        assert f'fill="{paper}"' in svg
        assert "moving average" in svg
        ElementTree.fromstring(svg)
        with Image.open(tmp_path / "saved.png") as image:
            assert image.size[0] > 1000
            assert image.convert("RGB").getpixel((0, 0)) == ImageColor.getrgb(paper)
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10


EVIL = "</script><script>document.title = 'taken'</script><b>&\"'\\ a.b[c] {{x}}\u2028\u2029"


def test_a_page_holds_whatever_text_it_is_given(run, tmp_path):
    """In its own texts, and in the data of its charts: classes may be called anything."""
    material = read_material(run, read_evaluation(run.path))
    names = [f"{name} {EVIL}" for name in material.data["class_names"]]
    material = dataclasses.replace(material, data={**material.data, "class_names": names})
    page = dataclasses.replace(
        report_page(material), title=EVIL, subtitle=EVIL, remarks=[EVIL], texts={EVIL: EVIL}
    )
    write_page(page, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>document.title" not in text
    with opened(tmp_path / "page.html", LIGHT) as shown:
        assert shown.title().split() == EVIL.split()
        assert shown.locator("h1").text_content() == EVIL
        assert marks(shown)["confusion"] > 100
        shown.locator("#confusion summary").click()
        assert "</script>" in shown.locator("#confusion table td").first.inner_text()


def test_of_one_round_points_are_drawn(tmp_path):
    run = run_into(tmp_path / "run", small_experiment(rounds=1))
    with opened(run.path / "report.html", LIGHT) as shown:
        counts = marks(shown)
        assert counts["accuracy"] >= 2 * 2  # a point of each model, beside its empty line
        assert counts["seconds"] >= 2


def test_it_is_written_as_the_run_goes(tmp_path):
    class Watch(Observer):
        def __init__(self):
            self.seen = []

        def round_ended(self, end):
            page = tmp_path / "run" / "report.html"
            text = page.read_text() if page.exists() else ""
            self.seen += re.findall(r"(\d) of 5 rounds are recorded", text) or ["none"]
            if text:  # it is no failure that a run goes on
                assert "Running at" in text
                assert '<meta http-equiv="refresh" content="10">' in text
                assert "not finished" not in text

    watch = Watch()
    experiment = small_experiment(rounds=5, record={"report_every": 2})
    run = run_into(tmp_path / "run", experiment, watch)
    assert watch.seen == ["none", "2", "2", "4", "4"]
    assert read_evaluation(run.path)["round"] == 5
    text = (run.path / "report.html").read_text()
    assert "not finished" not in text
    assert "Running at" not in text
    assert 'http-equiv="refresh"' not in text


def test_it_is_left_out_on_request(tmp_path):
    without = {"report": False, "report_every": 1}
    run = run_into(tmp_path / "run", small_experiment(rounds=2, record=without))
    assert not (run.path / "report.html").exists()
    assert not (run.path / "evaluation.json").exists()


def test_a_closer_look_that_is_old_is_taken_again(tmp_path):
    """As after a kill between the summary and the last report."""
    run = run_into(tmp_path / "run", small_experiment(rounds=2))
    found = read_evaluation(run.path)
    (run.path / "evaluation.json").write_text(json.dumps({**found, "round": 1}))
    assert fedssl("report", run.path).exit_code == 0
    assert read_evaluation(run.path) == found


def test_a_report_that_cannot_be_written_hurts_no_run(tmp_path, caplog):
    (tmp_path / "run").mkdir()

    class InTheWay(Observer):
        def round_ended(self, end):
            (tmp_path / "run" / "report.html" / "x").mkdir(parents=True, exist_ok=True)

    with caplog.at_level(logging.WARNING):
        run = run_into(tmp_path / "run", small_experiment(rounds=1), InTheWay())
    assert run.is_finished
    assert "report.html was not written after round 1" in caplog.text


def test_of_a_run_that_was_stopped(tmp_path):
    """It says so and why; after its first checkpoint there is a closer look too."""

    class Stop(Observer):
        def round_ended(self, end):
            if end.row.round == 3:
                raise RuntimeError("a cable was pulled")

    experiment = small_experiment(rounds=6, server={"checkpoint_every": 2})
    with pytest.raises(RuntimeError, match="cable"):
        run_into(tmp_path / "run", experiment, Stop())
    result = fedssl("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "run" / "report.html").read_text()
    assert "This run is not finished: 3 of 6 rounds" in text
    assert f"fedssl run {tmp_path / 'run'} --resume" in text
    assert "Running at" not in text
    assert "a cable was pulled" in text
    assert read_evaluation(tmp_path / "run")["round"] == 3


def test_the_reason_of_an_incident_is_whole(run):
    """It has colons of its own, and a traceback follows its first line."""
    reason = "census: client 1 is left out: InputError: --data: there is nothing at /x; look there"
    event = {"event": "incident", "round": 1, "what": f"{reason}\nTraceback"}
    material = dataclasses.replace(read_material(run, None), events=[event])
    (table,) = report_page(material).tables
    assert table.rows == [(reason, "1", "round 1")]


def test_a_deployments_run_goes_on_by_another_command(tmp_path):
    path = tmp_path / "my deployment" / "runs" / "name" / "stamp"
    assert resume_command(path) == f"fedssl run '{path}' --resume"
    path.mkdir(parents=True)
    (tmp_path / "my deployment" / "deployment.toml").touch()
    where = f"--folder '{tmp_path / 'my deployment'}'"
    assert resume_command(path) == f"fedssl deploy run '{path}' --resume {where}"


@pytest.mark.parametrize(
    ("report", "then"), [(True, "come when the run ends."), (False, "come with fedssl report.")]
)
def test_what_a_running_run_will_show_later_is_no_warning(run, report, then):
    """A red bar said that a closer look was missing, which is taken at the end."""
    experiment = run.experiment.model_copy(update={"record": RecordSection(report=report)})
    material = dataclasses.replace(
        read_material(run, None), experiment=experiment, summary=None, is_running=True
    )
    page = report_page(material, is_live=True)
    assert list(page.remarks) == []
    assert page.state.endswith(f"accuracy by client {then}")
    over = report_page(dataclasses.replace(material, is_running=False))
    assert over.state == ""
    assert "no closer look was taken" in over.remarks[-1]
    begun = report_page(dataclasses.replace(material, rounds=[]), is_live=True)
    assert begun.state.endswith("this page reloads itself.")


def test_without_the_images_the_rest_is_shown(run, tmp_path):
    """On another machine: what was looked at closely is in the directory, and where it is not that is said."""
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    text = (copy / "experiment.toml").read_text()
    (copy / "experiment.toml").write_text(
        text.replace('source = "digits"', f'source = "npz:{tmp_path / "gone.npz"}"').replace(
            "train_size = 400\n", ""
        )
    )
    result = fedssl("report", copy)
    assert result.exit_code == 0, result.output
    assert "no closer look" not in result.output
    (copy / "evaluation.json").unlink()
    result = fedssl("report", copy)
    assert result.exit_code == 0, result.output
    assert "no closer look at the models" in result.output
    assert "no closer look was taken" in (copy / "report.html").read_text()


def test_of_no_run(tmp_path):
    refused(fedssl("report", tmp_path), "holds no run")
    refused(fedssl("report", tmp_path / "nowhere"), "holds no run")


def test_large_federations_stay_small(tmp_path):
    """Seven hundred clients, sixty a round, two thousand rounds, two hundred classes."""
    experiment = small_experiment(
        name="large",
        data={"train_size": 1437},
        federation={"clients": 700, "sample": 60, "partition": "iid", "labels": {"per_class": 8}},
        rounds=4,
        train={"local_steps": 1, "batch_size": 2},
    )
    run = run_into(tmp_path / "run", experiment)
    material = read_material(run, read_evaluation(run.path))
    longer = {
        name: [
            dataclasses.replace(row, round=row.round + 4 * turn)
            for turn in range(500)
            for row in getattr(material, name)
        ]
        for name in ("rounds", "clients", "classes")
    }
    classes = [
        dataclasses.replace(row, label=row.label + 10 * copy)
        for row in longer["classes"]
        for copy in range(20)
    ]
    names = [f"class number {number}" for number in range(200)]
    confusion = np.random.default_rng(0).integers(0, 9, (200, 200)).tolist()
    models = material.evaluation["models"]
    models["ema"]["confusion"] = confusion
    data = {**material.data, "class_names": names}
    page = report_page(
        dataclasses.replace(material, **{**longer, "classes": classes, "data": data})
    )
    path = tmp_path / "large.html"
    write_page(page, path)
    assert path.stat().st_size < 6e6
    assert len(chart_of(page, "participation").rows) <= 60 * 200
    assert {row["taken part, %"] for row in chart_of(page, "participation").rows} <= set(
        np.round(np.arange(1, 121) / 120 * 100, 1)
    )


def test_thinned_rows_keep_the_last():
    rows = [{"round": number} for number in range(1, 2501)]
    kept = thinned(rows, 1000)
    assert len(kept) <= 1000
    assert kept[-1] == rows[-1]
    assert [row["round"] for row in kept] == sorted({row["round"] for row in kept})
    assert thinned([], 10) == []


def test_the_report_command_says_where(run):
    result = fedssl("report", run.path)
    assert f"report: {run.path / 'report.html'}" in result.output.replace("\n", "")
    assert json.loads((run.path / "evaluation.json").read_text())["round"] == 7
    assert write_report(run) == run.path / "report.html"


def test_a_file_of_runs_is_written_by_the_command_line(tmp_path):
    result = fedssl("run", small_toml(tmp_path / "e.toml"), "--plain", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "report.html").exists()
    assert "report.html" in result.output.replace("\n", "")


def spoilt_copy(run: Run, tmp_path: Path, name: str, column: str, value: str) -> Path:
    """Return a copy of a run's record in whose first row of a table one cell is another."""
    path = tmp_path / "run"
    shutil.copytree(run.path, path)
    with (path / name).open(newline="") as file:
        rows = list(csv.reader(file))
    rows[1][rows[0].index(column)] = value
    with (path / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_inactive_clients_are_drawn_and_counted(run, tmp_path, page):
    """They are no failures and not lost; a record of an older version has none and is shown as well."""
    path = spoilt_copy(run, tmp_path, "clients.csv", "status", "inactive")
    summary = json.loads((path / "summary.json").read_text())
    before = {figure.name: figure for figure in page.figures}
    assert "inactive" not in before
    del summary["clients_inactive"]
    (path / "summary.json").write_text(json.dumps(summary))
    older = {figure.name: figure for figure in report_page(read_material(Run(path), None)).figures}
    assert older == before
    moved = summary | {"clients_ok": summary["clients_ok"] - 5, "clients_inactive": 5}
    (path / "summary.json").write_text(json.dumps(moved))
    after = report_page(read_material(Run(path), None))
    figures = {figure.name: figure for figure in after.figures}
    assert figures["inactive"].value == "5"
    assert figures["client failures"] == before["client failures"]
    cells = chart_of(after, "participation").rows
    assert sum(row["inactive"] for row in cells) == 1
    assert [row["status"] for row in cells].count("inactive") == 1


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("rounds.csv", "loss", "inf"),
        ("rounds.csv", "server_accuracy", "1e308"),
        ("rounds.csv", "bytes_up", "9" * 400),
        ("clients.csv", "update_norm", "-inf"),
        ("clients.csv", "num_steps", "9" * 400),
        ("classes.csv", "accepted", "1e308"),
    ],
)
def test_numbers_out_of_range_are_named_and_not_drawn(run, tmp_path, name, column, value):
    path = spoilt_copy(run, tmp_path, name, column, value)
    material = read_material(Run(path), None)
    (said,) = material.out_of_range
    assert said.startswith(f"{name}, round ")
    assert f": {column} is {value[:1]}" in said
    assert any(said in remark for remark in report_page(material).remarks)
    write_report(Run(path))


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("clients.csv", "status", "well"),
        ("clients.csv", "client", "77"),
        ("classes.csv", "label", "-1"),
    ],
)
def test_tables_that_name_what_there_is_not_are_refused(run, tmp_path, name, column, value):
    path = spoilt_copy(run, tmp_path, name, column, value)
    refused(fedssl("report", path), name, "cannot be read", value)


@pytest.mark.parametrize("value", [float("inf"), 1e308, "x", [1]])
@pytest.mark.parametrize("key", ["seconds", "ema_accuracy", "rounds"])
def test_a_summary_of_wrong_numbers_is_shown_as_such_or_refused(run, tmp_path, key, value):
    path = tmp_path / "run"
    shutil.copytree(run.path, path)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {key: value}))
    if key == "rounds" or not isinstance(value, float):
        refused(fedssl("report", path), "summary.json", f"its {key} is")
        return
    (said,) = read_material(Run(path), None).out_of_range
    assert said == f"summary.json: {key} is {value:g}"


def test_an_older_closer_look_serves_where_the_images_are_gone(tmp_path):
    """It names no images, which a report does not need."""
    run = run_into(tmp_path / "run", small_experiment(rounds=2))
    older = read_evaluation(run.path)
    del older["images"]
    (run.path / "evaluation.json").write_text(json.dumps(older))
    (run.path / "partition.csv").write_text((run.path / "partition.csv").read_text() + "\n")
    result = fedssl("report", run.path)
    assert result.exit_code == 0, result.output
    assert "no closer look" not in result.output
    assert read_evaluation(run.path) == older
