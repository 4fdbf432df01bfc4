"""The evidence of ``fedssl advise``, made from the files of results alone."""

import shlex

import pandas as pd

from benchmarks.study.plan import BOUND, DATA, HERE, RESULTS, Unit
from fedssl.app.advice.evidence import COLUMNS
from fedssl.experiment.experiment import Experiment

FILE = HERE.parents[1] / "fedssl" / "app" / "advice" / "evidence.csv"


def make_evidence() -> pd.DataFrame:
    """Return the rows of all data sets that have tables, from the files of results alone."""
    parts = []
    for data in DATA:
        if not (RESULTS / f"{data}_lines.csv").exists():
            continue
        lines, runs, cells = (_read(data, name) for name in ("lines", "runs", "cells"))
        where = ["protocol", "skew"]
        sent = runs.groupby([*where, "line"])["megabytes"].mean()
        traffic = (sent / sent.xs(BOUND, level="line")).rename("traffic")
        rows = lines.merge(cells, on=where).merge(traffic, on=[*where, "line"])
        each = [Unit(data, *names, 0) for names in rows[[*where, "line"]].itertuples(index=False)]
        parts.append(
            rows.assign(
                data=data,
                title=[unit.title for unit in each],
                settings=[shlex.join(_of_its_phase(unit)) for unit in each],
                baseline=[
                    Unit(data, *names, 0).title
                    for names in rows[[*where, "baseline"]].itertuples(index=False)
                ],
                accuracy=rows["ema_accuracy"],
                gain_low=rows["gain_ci95_low"],
                gain_high=rows["gain_ci95_high"],
                work=[_work(unit) for unit in each],
            )
        )
    return pd.concat(parts)[list(COLUMNS)].round(4)


def _read(data: str, name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{data}_{name}.csv", dtype={"skew": str})


def _of_its_phase(unit: Unit) -> list[str]:
    """Return the settings of the phase that learns from unlabeled images; those of a phase before it are the study's alone."""
    return [setting for setting in unit.own_settings if not setting.startswith("phases.")]


def _work(unit: Unit) -> float:
    """Return the work of a step of a client with labels, or without them where only the server has some, over that of supervised training in one view."""
    plan = Experiment.load(unit.file, unit.settings).plans[-1]
    batch, views = plan.train.batch_size, plan.method.views()
    labeled = 0 if plan.federation.labels.at_server else batch
    return (
        plan.method.images_per_step(labeled, batch * views.ratio if views.unlabeled else 0) / batch
    )
