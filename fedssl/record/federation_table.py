"""The federation as a table: one line a client."""

import numpy as np
from rich.table import Table

from fedssl.data.federation import Federation

MOST_ROWS = 40


def federation_table(federation: Federation) -> Table:
    """Return images and labels of each client, and its count of every class.

    Beyond 40 clients, the 20 largest and the 20 smallest are listed, and the caption says so.
    """
    sizes, labeled = federation.sizes(), federation.labeled_sizes()
    counts = federation.class_counts(labeled=True) + federation.class_counts(labeled=False)
    shown = np.arange(federation.num_clients)
    caption = (
        f"skew {label_skew(federation):.2f} (mean total-variation distance of a client's classes "
        f"to the federation's: 0 is iid), {int((labeled == 0).sum())} clients without labels"
    )
    if len(shown) > MOST_ROWS:
        by_size = np.argsort(-sizes, kind="stable")
        half = MOST_ROWS // 2
        shown = np.concatenate([by_size[:half], by_size[-half:]])
        caption += f"; the {half} largest and {half} smallest of {federation.num_clients:,} clients"
    table = Table(caption=caption, caption_justify="left", show_edge=False)
    for name in ("client", "images", "labeled"):
        table.add_column(name, justify="right")
    for name in federation.data.class_names:
        table.add_column(name, justify="right", style="dim")
    for client in shown:
        cells = [client, sizes[client], labeled[client], *counts[client]]
        table.add_row(
            *(str(int(cell)) if cell else "·" if i > 2 else "0" for i, cell in enumerate(cells))
        )
    return table


def label_skew(federation: Federation) -> float:
    """Return the mean over clients of the total-variation distance to the global class mix, in [0, 1]."""
    counts = federation.class_counts(labeled=True) + federation.class_counts(labeled=False)
    mixes = counts / counts.sum(1, keepdims=True)
    overall = counts.sum(0) / counts.sum()
    return float(np.abs(mixes - overall).sum(1).mean() / 2)
