"""The accuracy of classical classifiers beside a comparison or an experiment: measured seed by seed, and as a table."""

from collections.abc import Iterable

import pandas as pd

from fedssl.data.federation import Federation
from fedssl.metrics.yardsticks import yardsticks
from fedssl.views.text_table import TextTable

NOTE = (
    "accuracy, % of the held-out images, ± deviation over seeds, of scikit-learn's classifiers with default settings, "
    "which have the raw pixels of all images in one place; label spreading learns from unlabeled images too; worst, best: "
    "seeds"
)


def measure(federations: Iterable[tuple[int, Federation]]) -> pd.DataFrame:
    """Return one row a classifier and seed: ``classifier``, ``seed`` and ``accuracy``, a share in [0, 1].

    Args:
        federations: Seeds and their federations.

    Raises:
        InputError: The classifiers cannot learn; see `fedssl.metrics.yardsticks.yardsticks`.
    """
    return pd.DataFrame(
        [
            {"classifier": one.name, "seed": seed, "accuracy": one.accuracy}
            for seed, federation in federations
            for one in yardsticks(federation)
        ]
    )


def yardstick_table(measured: pd.DataFrame, held_out_name: str) -> TextTable:
    """Return what `measure` measured as a table, a row a classifier; of several data, each row names its own.

    Args:
        measured: As `measure` returns it; with the column ``data``, the settings that decide the images and labels and that differ,
            if it was measured beside the lines of a comparison.
        held_out_name: ``"test"`` or ``"validation"``.
    """
    rows = []
    several = "data" in measured and measured["data"].nunique() > 1
    keys = ["data", "classifier"] if several else ["classifier"]
    for named, seeds in measured.groupby(keys, sort=False)["accuracy"]:
        name = ": ".join(map(str, named))
        values = seeds * 100
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        shown = [f"{values.mean():.1f}{spread}", f"{values.min():.1f}", f"{values.max():.1f}"]
        unknown = values.isna().any()
        rows.append([name, str(len(values)), *(["-"] * len(shown) if unknown else shown)])
    columns = ("classifier", "seeds", "accuracy", "worst", "best")
    return TextTable(f"classical yardsticks, {held_out_name} images", columns, rows, NOTE)
