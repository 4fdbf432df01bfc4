"""A run as a notebook shows it: what ran, how far the run came, its results, and where it is recorded."""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from fedssl.record.judges import CLASSIFIER, in_brackets, judge_in
from fedssl.record.rows import RoundRow
from fedssl.views.screen.display import percent, right_and_used

if TYPE_CHECKING:
    from fedssl.views.run import Run


def card(run: "Run") -> str:
    """Return a small HTML table that describes a run."""
    rounds = () if run.is_finished else run.round_rows
    state = "finished" if run.is_finished else f"not finished ({len(rounds)} rounds)"
    lines = {
        "run": f"{run.experiment.name} seed {run.experiment.seed}, {state}",
        "what": run.data["description"],
        **(_results_of_finished(run) if run.is_finished else _results_so_far(rounds, run.judges)),
        "recorded in": str(run.path),
    }
    rows = "".join(
        f'<tr><th style="text-align: left">{escape(name)}</th>'
        f'<td style="text-align: left">{escape(text)}</td></tr>'
        for name, text in lines.items()
    )
    return f"<table>{rows}</table>"


def _results_of_finished(run: "Run") -> dict[str, str]:
    facts = {
        name: math.nan if value is None else value for name, value in run.summary.items()
    }  # JSON has no NaN
    accuracy, average = percent(facts["server_accuracy"]), percent(facts["ema_accuracy"])
    labels = right_and_used(facts["pseudo_label_accuracy"], facts["pseudo_label_coverage"])
    return {
        f"accuracy{in_brackets(str(facts.get('judged_by', CLASSIFIER)))}": f"{accuracy}, EMA {average} ({facts['evaluated_on']} images, mean of the last "
        f"{facts['last_rounds']} evaluations)",
        **({"pseudo-labels": labels} if labels else {}),
        "took": f"{facts['rounds']} rounds, {facts['seconds']:.1f} s, "
        f"{facts['clients_failed']} client failures",
        **({"stopped": str(facts["stopped"])} if facts.get("stopped") else {}),
        **({"note": str(facts["remark"])} if facts.get("remark") else {}),
    }


def _results_so_far(rounds: Sequence[RoundRow], judges: Sequence[str]) -> dict[str, str]:
    evaluated = [row for row in rounds if row.evaluated]
    if not evaluated:
        return {}
    last = evaluated[-1]
    accuracy, average = percent(last.server_accuracy), percent(last.ema_accuracy)
    judge = in_brackets(judge_in(judges, last.phase))
    return {f"accuracy{judge}": f"{accuracy}, EMA {average} after round {last.round}"}
