"""The report of a run: one page that shows what ran, how it went and why."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fedssl.core.text import last_line
from fedssl.record.global_model import GlobalModel
from fedssl.record.judges import CLASSIFIER, in_brackets
from fedssl.record.rows import Outcome, summarize
from fedssl.record.run_directory import STOPS
from fedssl.record.run_path import REPORT, resume_command
from fedssl.views.closer_look import read_evaluation
from fedssl.views.reports.charts import Chart
from fedssl.views.reports.federation_charts import federation_charts
from fedssl.views.reports.material import Material, read_material
from fedssl.views.reports.model_charts import model_charts
from fedssl.views.reports.page import Figure, Page, write_page
from fedssl.views.reports.round_charts import (
    accuracy_chart,
    class_charts,
    cost_charts,
    drift_chart,
    loss_chart,
    number_charts,
    pseudo_label_chart,
)
from fedssl.views.run import Run
from fedssl.views.screen.display import percent
from fedssl.views.text_table import TextTable
from fedssl.views.unknown_truth import NO_TRUTH, is_right_unknown

MOST_EVENTS = 50
"""The table of events has at most this many rows, the most frequent events first."""

RELOAD = 10
"""A browser loads the page of a run that goes on again after this many seconds."""

OF_CLOSER_LOOK = "Confusion, recall by class, reliability and accuracy by client"
"""The charts that need a closer look at the models."""

MOST_NUMBERS = 5
"""The page names at most this many of the numbers out of range, and counts the others."""


def write_report(run: Run, evaluation: Mapping[str, Any] | None = None) -> Path:
    """Write the report of a run, finished or not, into its directory; return the file's path.

    Args:
        run: The recorded run.
        evaluation: A closer look at the run's models; None: the closer look in the run directory, if there is one.
    """
    if evaluation is None:
        evaluation = read_evaluation(run.path)
    path = run.path / REPORT
    write_page(report_page(read_material(run, evaluation)), path)
    return path


def report_page(material: Material, *, is_live: bool = False) -> Page:
    """Return the page of a run.

    Args:
        material: The record of the run.
        is_live: Whether the page is made anew whenever a browser asks for it.
    """
    experiment = material.experiment
    is_rewritten = is_live or bool(experiment.record.report_every)
    return Page(
        title=f"{experiment.name}, seed {experiment.seed}",
        subtitle=material.data["description"],
        state=_state(material, is_live=is_live),
        reload_seconds=RELOAD if material.is_running and is_rewritten else 0,
        figures=list(_figures(material)),
        remarks=list(_remarks(material)),
        tables=[] if (table := _table_of_events(material)) is None else [table],
        charts=list(_charts(material)) if material.rounds else [],
        texts={
            "experiment.toml, every default written out": experiment.to_toml(),
            "machine and versions": "\n".join(_flatten(material.environment)),
        },
    )


def _charts(material: Material) -> Iterator[Chart]:
    yield accuracy_chart(material)
    for chart in (pseudo_label_chart(material), loss_chart(material)):
        if chart is not None:
            yield chart
    yield from class_charts(material)
    yield from number_charts(material)
    yield from model_charts(material)
    drift = drift_chart(material)
    if drift is not None:
        yield drift
    yield from federation_charts(material)
    yield from cost_charts(material)


def _figures(material: Material) -> Iterator[Figure]:
    experiment, rounds = material.experiment, material.rounds
    summary = material.summary or summarize(
        experiment,
        Outcome(
            GlobalModel(), tuple(rounds), _sum_seconds(material), judges=tuple(material.judges)
        ),
    )
    known = {key: float("nan") if value is None else value for key, value in summary.items()}
    judge = in_brackets(str(known.get("judged_by", CLASSIFIER)))  # older records name no judge
    last = f"{known['evaluated_on']}, mean of the last {known['last_rounds']}{judge}"
    yield Figure("moving average", percent(known["ema_accuracy"]), last)
    yield Figure("global model", percent(known["server_accuracy"]), last)
    macro = known.get("ema_macro_f1", math.nan)  # older records have none
    if macro == macro:
        yield Figure("macro F1", percent(macro), "moving average at the end, all classes alike")
    right, used = known["pseudo_label_accuracy"], known["pseudo_label_coverage"]
    if used == used:
        if is_right_unknown(right, used):
            yield Figure("pseudo-labels right", "unknown", NO_TRUTH)
        else:
            yield Figure("pseudo-labels right", percent(right), "of those accepted")
        yield Figure("pseudo-labels used", percent(used), "of unlabeled images")
    of = "" if len(rounds) == experiment.num_rounds else f"of {experiment.num_rounds}"
    yield Figure("rounds", f"{len(rounds):,}", of)
    yield Figure("time", f"{known['seconds']:,.1f} s", _say_when_begun(material))
    traffic = (known["bytes_up"] + known["bytes_down"]) / 1e6
    yield Figure("traffic", f"{traffic:,.1f} MB", "up and down")
    if known["virtual_seconds"] == known["virtual_seconds"]:
        yield Figure(
            "virtual time", f"{known['virtual_seconds']:,.0f} s", "on the devices of [system]"
        )
    if known.get("noise_multiplier"):  # older records have none
        yield _figure_of_privacy(known)
    inactive = known.get("clients_inactive", 0)  # older records have no inactive clients
    asked = known["clients_ok"] + known["clients_failed"] + known["clients_lost"] + inactive
    yield Figure("client failures", f"{known['clients_failed']:,}", f"of {asked:,} requests")
    if known["clients_lost"]:
        yield Figure("lost to time", f"{known['clients_lost']:,}", "late, dropped out or surplus")
    if inactive:
        yield Figure("inactive", f"{inactive:,}", "had nothing to train on")


def _figure_of_privacy(known: Mapping[str, Any]) -> Figure:
    """Return the tile of what the noise of a finished run promises."""
    epsilon, others = known["epsilon"], known["epsilon_known"]
    said = f"of the whole run, delta {known['delta']:g}"
    if others == others and others != epsilon:
        said += f"; {others:.3g} if cohorts are known"
    shown = "unknown" if epsilon != epsilon else f"{epsilon:.3g}"
    return Figure("epsilon", shown, said)


def _state(material: Material, *, is_live: bool) -> str:
    """Return how far a run has come that goes on at this moment, and what its page will show later; empty for any other run."""
    if not material.is_running:
        return ""
    every = material.experiment.record.report_every
    again = (
        "this page reloads itself"
        if is_live
        else f"this page is written again every {every} rounds, and reloads itself"
        if every > 1
        else "this page is written again every round, and reloads itself"
        if every
        else "fedssl report writes this page again"
    )
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    later = ""
    if material.evaluation is None and material.rounds:
        then = "when the run ends" if material.experiment.record.report else "with fedssl report"
        later = f" {OF_CLOSER_LOOK} come {then}."
    return f"Running at {now}: {_rounds_done(material)}; {again}.{later}"


def _rounds_done(material: Material) -> str:
    return f"{len(material.rounds)} of {material.experiment.num_rounds} rounds are recorded"


def _remarks(material: Material) -> Iterator[str]:
    """Yield sentences on what is wrong with a run or missing from its page."""
    if material.summary is None and not material.is_running:
        failed = [event for event in material.events if event["event"] in STOPS]
        done = _rounds_done(material)
        reason = f" It stopped: {failed[-1]['reason']}" if failed else ""
        yield f"This run is not finished: {done}.{reason} To go on: {resume_command(material.path)}"
    if material.summary is not None and (stopped := material.summary.get("stopped")):
        yield stopped  # older records have none
    if material.summary is not None and (remark := material.summary.get("remark")):
        yield remark  # older records have none
    if said := material.data.get("weights_remark"):  # older records have none
        yield said
    if said := material.environment.get("changed_kinds"):  # older records do not say it
        yield f"Sections got another kind than the file's. {'; '.join(map(str, said))}."
    if material.out_of_range:
        count = len(material.out_of_range)
        first = "; ".join(material.out_of_range[:MOST_NUMBERS])
        more = f"; and {count - MOST_NUMBERS} more" if count > MOST_NUMBERS else ""
        yield f"Numbers of this record are out of range and are not shown: {first}{more}."
    if material.evaluation is None and material.rounds and not material.is_running:
        yield f"{OF_CLOSER_LOOK} are missing: no closer look was taken at the models."


def _table_of_events(material: Material) -> TextTable | None:
    """Return a table of failures and other events, each kind in one row; None if there are no events."""
    what: Counter[str] = Counter()
    first: dict[str, str] = {}
    for event in material.events:
        if event["event"] == "client_failed":
            text = f"client failed: {last_line(event['reason'])}"
            where = f"round {event['round']}, client {event['client']}"
        elif event["event"] == "incident":
            text, where = last_line(event["what"].partition("\n")[0]), f"round {event['round']}"
        elif event["event"] in STOPS:
            text, where = f"stopped: {last_line(event['reason'])}", ""
        elif event["event"] == "resumed":
            text, where = "went on", f"after round {event['after_round']}"
        else:
            continue
        what[text] += 1
        first.setdefault(text, where)
    if not what:
        return None
    rows = [(text, str(count), first[text]) for text, count in what.most_common(MOST_EVENTS)]
    note = (
        "Events that are not called failed or stopped were mended or are for information. "
        "Tracebacks are in events.jsonl."
    )
    return TextTable("On the way", ("what", "times", "first"), rows, note)


def _sum_seconds(material: Material) -> float:
    """Return the seconds of all rounds: the only time that is known of a run that is not finished."""
    return sum(row.seconds for row in material.rounds)


def _say_when_begun(material: Material) -> str:
    times = [event["time"] for event in material.events if "time" in event]
    if not times:
        return ""
    return f"began {datetime.fromisoformat(times[0]):%Y-%m-%d %H:%M} UTC"


def _flatten(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{line}" for line in _flatten(value))
        else:
            yield f"{key}: {' '.join(map(str, value)) if isinstance(value, list) else value}"
