"""The federation as tables and figures: one line a client, how skewed it is, and on what devices it runs."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.table import Table

from fedssl.data.federation import Federation
from fedssl.data.partitions.base import Partition
from fedssl.data.partitions.natural import Natural
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.system.devices import Devices
from fedssl.experiment.system.section import num_asked

MOST_ROWS = 40
MOST_CLASSES = 20
"""Classes that have a column of their own."""

QUANTILES = {
    "least": 0.0,
    "10 %": 0.1,
    "33 %": 1 / 3,
    "median": 0.5,
    "67 %": 2 / 3,
    "90 %": 0.9,
    "most": 1.0,
}


def client_names(federation: Federation, partition: Partition) -> list[str]:
    """Return what to call each client: its number, and under a `natural` partition the values that are its own.

    Args:
        federation: As drawn.
        partition: What dealt its images.
    """
    numbers = [str(client) for client in range(federation.num_clients)]
    if not isinstance(partition, Natural):
        return numbers
    dealt = federation.owner >= 0
    pairs = np.stack(
        [federation.owner[dealt], federation.data.train.columns[partition.column][dealt]]
    )
    values: list[list[str]] = [[] for _ in numbers]
    for client, code in np.unique(pairs, axis=1).T.tolist():
        values[client].append(federation.data.column_values[partition.column][code])
    return [
        f"{number} ({own[0]}{f' +{len(own) - 1}' if len(own) > 1 else ''})"
        for number, own in zip(numbers, values, strict=True)
    ]


def federation_table(federation: Federation, names: Sequence[str]) -> Table:
    """Return images and labels of each client, and its count of every class.

    Beyond 40 clients, the 20 largest and the 20 smallest are listed; `describe_skew` says so. Beyond 20 classes, it
    says how many of them a client holds, and not how many images of each.

    Args:
        federation: As drawn.
        names: What to call each client.
    """
    sizes, labeled = federation.sizes, federation.labeled_sizes
    counts = known_counts(federation)
    unknown = sizes - counts.sum(1)
    shown = np.arange(federation.num_clients)
    if len(shown) > MOST_ROWS:
        by_size = np.argsort(-sizes, kind="stable")
        shown = np.concatenate([by_size[: MOST_ROWS // 2], by_size[-MOST_ROWS // 2 :]])
    table = Table(show_edge=False)
    table.add_column("client")
    for name in ("images", "labeled"):
        table.add_column(name, justify="right")
    class_names = federation.data.class_names
    many = len(class_names) > MOST_CLASSES
    for name in ("classes",) if many else class_names:
        table.add_column(name, justify="right", style="dim")
    if unknown.any():
        table.add_column("class unknown", justify="right", style="dim")
    for client in shown:
        cells = [(counts[client] > 0).sum()] if many else list(counts[client])
        cells += [unknown[client]] if unknown.any() else []
        table.add_row(
            names[int(client)],
            str(int(sizes[client])),
            str(int(labeled[client])),
            *(str(int(cell)) if cell else "·" for cell in cells),
        )
    return table


def describe_skew(federation: Federation) -> str:
    """Say in a few lines how far from iid the clients are, and which of them the table lists."""
    sizes, labeled = federation.sizes, federation.labeled_sizes
    lines = [
        f"skew {label_skew(federation):.2f} (mean total-variation distance of a client's classes to the federation's; "
        f"0 is iid), Gini of sizes {gini(sizes):.2f} (0: all equal; {sizes.min():,} to {sizes.max():,} images)",
        f"{int((labeled == 0).sum()):,} of {federation.num_clients:,} clients without labels; labels: {labeled.sum():,} at "
        f"clients, {len(federation.server_rows):,} at the server, {len(federation.held_back_rows):,} held back for validation",
    ]
    wrong = federation.num_wrong_labels
    if wrong:
        lines.append(f"{wrong:,} of the given labels are wrong")
    if federation.num_clients > MOST_ROWS:
        half = MOST_ROWS // 2
        lines.append(
            f"listed are the {half} largest and {half} smallest of {federation.num_clients:,}"
        )
    return "\n".join(lines)


def known_counts(federation: Federation) -> npt.NDArray[np.int64]:
    """Count training images by client and true class, (K, num_classes); known classes only."""
    return federation.class_counts(labeled=True) + federation.class_counts(labeled=False)


def label_skew(federation: Federation) -> float:
    """Return the mean over clients of the total-variation distance to the global class mix, in [0, 1].

    Clients without an image of known class are left out; NaN if all are.
    """
    counts = known_counts(federation)
    counts = counts[counts.sum(1) > 0]
    if len(counts) == 0:
        return float("nan")
    mixes = counts / counts.sum(1, keepdims=True)
    overall = counts.sum(0) / counts.sum()
    return float(np.abs(mixes - overall).sum(1).mean() / 2)


def gini(sizes: npt.NDArray[np.int64]) -> float:
    """Return the Gini coefficient of sizes: half their mean absolute difference over their mean, in [0, 1)."""
    ascending = np.sort(sizes).astype(np.float64)
    ranks = np.arange(1, len(ascending) + 1)
    weights = 2 * ranks - len(ascending) - 1
    return float((weights * ascending).sum() / (len(ascending) * ascending.sum()))


def describe_system(experiment: Experiment, seconds: npt.NDArray[np.float64]) -> str:
    """Say in a line who is asked in a round of virtual time, and how many could make it.

    Args:
        experiment: Has a ``[system]``.
        seconds: Virtual seconds of each client's round, (K,).
    """
    system, wanted = experiment.system, experiment.federation.sample
    assert system is not None
    asked = min(len(seconds), num_asked(wanted, system.over_selection))
    text = f"available: {system.availability.kind}; {asked} asked for {wanted} wanted"
    if system.deadline is None:
        return f"{text}; no deadline"
    in_time = int((seconds <= system.deadline).sum())
    return f"{text}; deadline {system.deadline:g} s: {in_time:,} of {len(seconds):,} clients can make it"


def device_table(devices: Devices, seconds: npt.NDArray[np.float64]) -> Table:
    """Return how devices differ: quantiles over clients of what they can and of what a round takes them.

    Args:
        devices: One a client.
        seconds: Virtual seconds of each client's round, (K,).
    """
    table = Table(show_edge=False, title="devices, over all clients", title_justify="left")
    table.add_column("")
    for name in QUANTILES:
        table.add_column(name, justify="right")
    rows = {
        "speed, images/s": devices.speed,
        "download, Mbit/s": devices.download,
        "upload, Mbit/s": devices.upload,
        "dropout, probability": devices.dropout,
        "a client's round, s": seconds,
    }
    for name, values in rows.items():
        cells = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
        table.add_row(name, *(f"{cell:.3g}" for cell in cells))
    return table
