"""The federation as tables and numbers: one line per client, the skew between clients, and their devices."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.system.devices import Devices
from fedssl.experiment.system.section import num_asked
from fedssl.views.text_table import TextTable

MOST_ROWS = 40
"""The table lists at most this many clients."""

MOST_CLASSES = 20
"""With at most this many classes, every class has a column."""

QUANTILES = {
    "least": 0.0,
    "10 %": 0.1,
    "33 %": 1 / 3,
    "median": 0.5,
    "67 %": 2 / 3,
    "90 %": 0.9,
    "most": 1.0,
}


def federation_table(federation: Federation, names: Sequence[str]) -> TextTable:
    """Return a table with each client's number of images, of labeled images, and of images by class.

    Beyond 40 clients, the table lists the 20 largest and the 20 smallest; `describe_skew` says so. Beyond 20 classes,
    the table shows how many classes a client holds, and not how many images of each class.

    Args:
        federation: The drawn federation.
        names: Name of each client.
    """
    sizes, labeled = federation.sizes, federation.labeled_sizes
    counts = known_counts(federation)
    unknown = sizes - counts.sum(1)
    shown = np.arange(federation.num_clients)
    if len(shown) > MOST_ROWS:
        by_size = np.argsort(-sizes, kind="stable")
        shown = np.concatenate([by_size[: MOST_ROWS // 2], by_size[-MOST_ROWS // 2 :]])
    class_names = federation.data.class_names
    many = len(class_names) > MOST_CLASSES
    columns = ["client", "images", "labeled", *(("classes",) if many else class_names)]
    columns += ["class unknown"] if unknown.any() else []
    rows = []
    for client in shown:
        cells = [(counts[client] > 0).sum()] if many else list(counts[client])
        cells += [unknown[client]] if unknown.any() else []
        rows.append(
            [
                names[int(client)],
                str(int(sizes[client])),
                str(int(labeled[client])),
                *(str(int(cell)) if cell else "·" for cell in cells),
            ]
        )
    return TextTable("", columns, rows)


def describe_skew(federation: Federation) -> str:
    """Return a few lines on how far from iid the clients are, where labels are, and which clients the table lists."""
    sizes, labeled = federation.sizes, federation.labeled_sizes
    lines = [
        f"skew {label_skew(federation):.2f} (mean total-variation distance of a client's classes to the federation's; "
        f"0 is iid), Gini of sizes {gini(sizes):.2f} (0: all equal; {sizes.min():,} to {sizes.max():,} images)",
        f"{int((labeled == 0).sum()):,} of {federation.num_clients:,} clients without labels; "
        f"labels: {labeled.sum():,} at clients, {len(federation.server_rows):,} at the server, "
        f"{len(federation.held_back_rows):,} held back for validation",
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
    """Return the number of training images by client and true class, (K, C), without images of unknown class."""
    return federation.class_counts(labeled=True) + federation.class_counts(labeled=False)


def label_skew(federation: Federation) -> float:
    """Return the mean over clients of the total-variation distance to the global class mix, in [0, 1].

    Clients without an image of known class are left out. The result is NaN if no client is left.
    """
    counts = known_counts(federation)
    counts = counts[counts.sum(1) > 0]
    if len(counts) == 0:
        return float("nan")
    mixes = counts / counts.sum(1, keepdims=True)
    overall = counts.sum(0) / counts.sum()
    return float(np.abs(mixes - overall).sum(1).mean() / 2)


def gini(sizes: npt.NDArray[np.int64]) -> float:
    """Return the Gini coefficient of sizes, in [0, 1): half their mean absolute difference, divided by their mean."""
    ascending = np.sort(sizes).astype(np.float64)
    ranks = np.arange(1, len(ascending) + 1)
    weights = 2 * ranks - len(ascending) - 1
    return float((weights * ascending).sum() / (len(ascending) * ascending.sum()))


def describe_system(experiment: Experiment, seconds: npt.NDArray[np.float64]) -> str:
    """Return one line on how many clients a round of virtual time asks, and how many can meet its deadline.

    Args:
        experiment: An experiment with a section ``[system]``.
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


def device_table(devices: Devices, seconds: npt.NDArray[np.float64]) -> TextTable:
    """Return a table of quantiles over clients: of their devices' properties and of the seconds of a round.

    Args:
        devices: The devices of all clients.
        seconds: Virtual seconds of each client's round, (K,).
    """
    quantiles = list(QUANTILES.values())
    rows = {
        "speed, images/s": devices.speed,
        "download, Mbit/s": devices.download,
        "upload, Mbit/s": devices.upload,
        "dropout, probability": devices.dropout,
        "a client's round, s": seconds,
    }
    shown = [
        [name, *(f"{cell:.3g}" for cell in np.quantile(values, quantiles, method="inverted_cdf"))]
        for name, values in rows.items()
    ]
    return TextTable("devices, over all clients", ["property", *QUANTILES], shown)
