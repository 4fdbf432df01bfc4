"""The federation as a table: one line a client."""

import numpy as np
from rich.table import Table

from fedssl.data.federation import Federation

MOST_ROWS = 40


def federation_table(federation: Federation) -> Table:
    """Return images and labels of each client, and its count of every class.

    Beyond 40 clients, the 20 largest and the 20 smallest are listed; `describe_skew` says so.
    """
    sizes, labeled = federation.sizes(), federation.labeled_sizes()
    counts = federation.class_counts(labeled=True) + federation.class_counts(labeled=False)
    shown = np.arange(federation.num_clients)
    if len(shown) > MOST_ROWS:
        by_size = np.argsort(-sizes, kind="stable")
        shown = np.concatenate([by_size[: MOST_ROWS // 2], by_size[-MOST_ROWS // 2 :]])
    table = Table(show_edge=False)
    for name in ("client", "images", "labeled"):
        table.add_column(name, justify="right")
    for name in federation.data.class_names:
        table.add_column(name, justify="right", style="dim")
    for client in shown:
        table.add_row(
            *(str(int(cell)) for cell in (client, sizes[client], labeled[client])),
            *(str(int(count)) if count else "·" for count in counts[client]),
        )
    return table


def describe_skew(federation: Federation) -> str:
    """Say in a line how far from iid the clients are, and which of them the table lists."""
    without = int((federation.labeled_sizes() == 0).sum())
    text = (
        f"skew {label_skew(federation):.2f} (mean total-variation distance of a client's classes to "
        f"the federation's; 0 is iid), {without} clients without labels"
    )
    if federation.num_clients > MOST_ROWS:
        half = MOST_ROWS // 2
        text += f"; listed are the {half} largest and {half} smallest of {federation.num_clients:,}"
    return text


def label_skew(federation: Federation) -> float:
    """Return the mean over clients of the total-variation distance to the global class mix, in [0, 1]."""
    counts = federation.class_counts(labeled=True) + federation.class_counts(labeled=False)
    mixes = counts / counts.sum(1, keepdims=True)
    overall = counts.sum(0) / counts.sum()
    return float(np.abs(mixes - overall).sum(1).mean() / 2)
