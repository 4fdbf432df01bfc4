"""Several runs side by side: mean and spread over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from fedssl.config import Experiment
from fedssl.record.display import percent
from fedssl.record.rows import Outcome, RoundRow, summarize

CAPTION = (
    "% of the global model and of its moving average (EMA); gain of the EMA over the first row, "
    "seed by seed; right and used: share of pseudo-labels that match the hidden truth, and that "
    "are accepted; s: seconds a run"
)


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    experiment: Experiment
    outcome: Outcome


def comparison_table(runs: Sequence[Finished]) -> pd.DataFrame:
    """Return one line an experiment: mean and standard deviation over its seeds, shares in [0, 1].

    ``gain`` is the mean difference to the first experiment over the seeds that both ran.

    Args:
        runs: Finished runs; those of one name are the seeds of one experiment.
    """
    lines = pd.DataFrame([summarize(run.experiment, run.outcome) for run in runs])
    first = lines[lines.name == lines.name.iloc[0]].set_index("seed").ema_accuracy
    table = []
    for name, seeds in lines.groupby("name", sort=False):
        paired = seeds.set_index("seed").ema_accuracy - first
        line: dict[str, Any] = {"name": name, "seeds": len(seeds)}
        for column in ("server_accuracy", "ema_accuracy"):
            line[column] = seeds[column].mean()
            line[f"{column}_std"] = seeds[column].std(ddof=1) if len(seeds) > 1 else 0.0
        line["gain"] = paired.mean()
        for column in ("pseudo_label_accuracy", "pseudo_label_coverage", "seconds"):
            line[column] = seeds[column].mean()
        for column in ("clients_failed", "clients_lost"):
            line[column] = int(seeds[column].sum())
        line["virtual_seconds"] = seeds["virtual_seconds"].mean()
        line["megabytes"] = (seeds["bytes_up"] + seeds["bytes_down"]).mean() / 1e6
        table.append(line)
    return pd.DataFrame(table)


def curves(runs: Sequence[Finished]) -> dict[str, list[tuple[RoundRow, ...]]]:
    """Return the rounds of every seed by experiment name."""
    by_name: dict[str, list[tuple[RoundRow, ...]]] = {}
    for run in runs:
        by_name.setdefault(run.experiment.name, []).append(run.outcome.rounds)
    return by_name


def as_rich(table: pd.DataFrame, title: str) -> Table:
    """Lay a comparison out for the terminal, in percent and within 80 columns."""
    laid = Table(
        title=title,
        title_justify="left",
        caption=CAPTION,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
    )
    laid.add_column("experiment", overflow="fold")
    for name in ("seeds", "accuracy", "EMA", "gain", "right", "used", "s"):
        laid.add_column(name, justify="right", no_wrap=True)
    for number, line in enumerate(table.to_dict("records")):
        laid.add_row(
            str(line["name"]),
            str(line["seeds"]),
            spread(line["server_accuracy"], line["server_accuracy_std"], line["seeds"]),
            spread(line["ema_accuracy"], line["ema_accuracy_std"], line["seeds"]),
            f"{line['gain'] * 100:+.1f}" if number else "",
            percent(line["pseudo_label_accuracy"]).removesuffix(" %"),
            percent(line["pseudo_label_coverage"]).removesuffix(" %"),
            f"{line['seconds']:.1f}",
        )
    return laid


def costs_as_rich(table: pd.DataFrame) -> Table | None:
    """Lay out what the runs of a comparison cost in virtual time; None without it."""
    if table["virtual_seconds"].isna().all():
        return None
    laid = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    laid.add_column("experiment", overflow="fold")
    for name in ("virtual s a run", "MB a run, up and down", "clients lost, all seeds"):
        laid.add_column(name, justify="right")
    for line in table.to_dict("records"):
        costs = (line["virtual_seconds"], line["megabytes"], line["clients_lost"])
        laid.add_row(str(line["name"]), *(f"{cost:,.1f}" for cost in costs[:2]), f"{costs[2]:,}")
    return laid


def spread(mean: float, std: float, seeds: int) -> str:
    """Write a mean share and its standard deviation over seeds in percent, without the sign."""
    return f"{mean * 100:.1f}" if seeds == 1 else f"{mean * 100:.1f} ± {std * 100:.1f}"
