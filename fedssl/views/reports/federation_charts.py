"""Charts of the federation: which client holds which images, and which clients took part in which rounds."""

from collections.abc import Iterator, Sequence

import numpy as np

from fedssl.record.rows import ClientRow
from fedssl.views.reports.charts import COLORS, Chart, Row, Spec, number
from fedssl.views.reports.material import Ints, Material

MOST_CLIENTS = 60
"""A chart has at most this many rows or columns of clients."""

MOST_CLASSES = 100
"""The chart of the partition shows at most this many classes."""

MOST_COLUMNS = 200
"""The chart of participation has at most this many columns of rounds."""

STATUS = {
    "ok": "trained", "failed": "failed", "inactive": "inactive",
    "late": "lost", "dropped": "lost", "surplus": "lost",
}  # fmt: skip
"""A client's status in the record to its name in the chart of participation."""


def federation_charts(material: Material) -> Iterator[Chart]:
    """Yield the charts of which images clients hold, if that is known, and of which clients took part."""
    if (material.owner >= 0).any():
        yield partition_chart(material)
    if material.clients:
        yield participation_chart(material)


def partition_chart(material: Material) -> Chart:
    """Draw how many images of each class each client holds, and how many of the images carry a label."""
    clients = material.experiment.federation.clients
    names = material.class_names
    images = _count_images(material, clients, labeled=False)
    labels = _count_images(material, clients, labeled=True)
    shown = _choose_clients(images.sum(1))
    clients_named = material.client_names
    rows: list[Row] = [
        {
            "client": clients_named[client],
            "class": names[label],
            "images": int(images[client, label]),
            "labels": int(labels[client, label]),
        }
        for client in shown
        for label in range(min(len(names), MOST_CLASSES))
        if images[client, label]
    ]
    among = (
        ""
        if len(shown) == clients
        else f" {len(shown)} of {clients:,} clients, from the largest to the smallest."
    )
    unlabeled_only = int((labels.sum(1) == 0).sum())
    note = (
        "A circle stands for the images of a class at a client, and its filled part for the images with a label."
        f"{among} {unlabeled_only:,} of {clients:,} clients have no label at all."
    )
    return Chart(
        "partition",
        "Who holds what",
        note,
        rows,
        _partition_spec(shown, [clients_named[client] for client in shown], names, images),
        wide=True,
    )


def participation_chart(material: Material) -> Chart:
    """Draw which clients took part in which rounds, and whether they trained, failed, were lost or were inactive."""
    clients, rounds = material.experiment.federation.clients, len(material.rounds)
    tall, broad = -(-clients // MOST_CLIENTS), -(-rounds // MOST_COLUMNS)
    cells: dict[tuple[int, int], list[ClientRow]] = {}
    for row in material.clients:
        cells.setdefault((row.client // tall, (row.round - 1) // broad), []).append(row)
    rows: list[Row] = []
    for (down, along), own in sorted(cells.items()):
        counted = [STATUS[row.status] for row in own]
        top, bottom = down * tall, min((down + 1) * tall, clients)
        start, stop = along * broad + 1, min((along + 1) * broad, rounds) + 1
        rows.append(
            {
                "from": start,
                "to": stop,
                "top": top,
                "bottom": bottom,
                "clients": _write_range(top, bottom),
                "rounds": _write_range(start, stop),
                "status": max(set(counted), key=counted.count),
                "trained": counted.count("trained"),
                "failed": counted.count("failed"),
                "lost": counted.count("lost"),
                "inactive": counted.count("inactive"),
                "taken part, %": number(len(own) / ((bottom - top) * (stop - start)) * 100, 1),
            }
        )
    times = np.bincount([row.client for row in material.clients], minlength=clients)
    coarse = f" A cell stands for {tall} × {broad} (clients × rounds)." if tall * broad > 1 else ""
    note = (
        f"Clients (rows) by round. A client was asked {times.mean():.1f} times on average, {times.min()} times at "
        f"least and {times.max()} times at most; {int((times == 0).sum()):,} clients were never asked.{coarse}"
    )
    spec = _participation_spec(opacity=tall * broad > 1)
    return Chart("participation", "Who took part", note, rows, spec, wide=True)


def _count_images(material: Material, clients: int, *, labeled: bool) -> Ints:
    """Return how many images of known class each client holds, (K, C)."""
    classes = len(material.class_names)
    known = (material.owner >= 0) & (material.label >= 0)
    if labeled:
        known &= material.given >= 0
    cells = material.owner[known] * classes + material.label[known]
    return np.bincount(cells, minlength=clients * classes).reshape(clients, classes)


def _choose_clients(sizes: Ints) -> list[int]:
    """Return all clients in order of their number; of too many, return some, evenly spaced from largest to smallest."""
    if len(sizes) <= MOST_CLIENTS:
        return list(range(len(sizes)))
    order = np.argsort(-sizes, kind="stable")
    places = np.linspace(0, len(sizes) - 1, MOST_CLIENTS).astype(int)
    return [int(client) for client in order[places]]


def _write_range(start: int, stop: int) -> str:
    return str(start) if stop == start + 1 else f"{start} to {stop - 1}"


def _partition_spec(
    shown: list[int], clients: Sequence[str], names: Sequence[str], images: Ints
) -> Spec:
    largest = int(images[shown].max()) if shown else 1
    where: Spec = {
        "x": {
            "field": "client", "type": "ordinal", "sort": list(clients),
            "axis": {"labelAngle": 0, "labelOverlap": True, "grid": False},
        },
        "y": {
            "field": "class", "type": "nominal", "sort": list(names[:MOST_CLASSES]),
            "axis": {"labelOverlap": True, "grid": False, "labelLimit": 110},
        },
    }  # fmt: skip
    size = {
        "type": "quantitative",
        "title": "images",
        "scale": {"type": "linear", "domain": [0, largest], "range": [0, 700]},
        "legend": {"orient": "top", "tickCount": 3},
    }
    tooltip = [{"field": name} for name in ("client", "class", "images", "labels")]
    return {
        "height": max(160, min(30 * len(names), 700)),
        "layer": [
            {
                "mark": {"type": "circle", "color": COLORS[0], "opacity": 0.45},
                "encoding": where
                | {
                    "size": {"field": "images", **size},
                    "tooltip": tooltip,
                },
            },
            {
                "transform": [{"filter": "datum.labels > 0"}],
                "mark": {"type": "circle", "color": COLORS[1], "opacity": 1},
                "encoding": where
                | {
                    "size": {"field": "labels", **size},
                    "tooltip": tooltip,
                },
            },
        ],
    }  # fmt: skip


def _participation_spec(*, opacity: bool) -> Spec:
    order = ["trained", "failed", "lost", "inactive"]
    encoding: Spec = {
        "x": {"field": "from", "type": "quantitative", "title": "round", "axis": {"grid": False},
              "scale": {"nice": False, "zero": False}},
        "x2": {"field": "to"},
        "y": {"field": "top", "type": "quantitative", "title": "client",
              "scale": {"reverse": True, "nice": False}, "axis": {"grid": False}},
        "y2": {"field": "bottom"},
        "color": {
            "field": "status", "type": "nominal",
            "scale": {"domain": order, "range": [COLORS[0], COLORS[1], COLORS[4], COLORS[3]]},
            "legend": {"orient": "top", "title": None},
        },
        "tooltip": [
            {"field": name} for name in ("clients", "rounds", *order, "taken part, %")
        ],
    }  # fmt: skip
    if opacity:
        encoding["opacity"] = {
            "field": "taken part, %",
            "type": "quantitative",
            "scale": {"range": [0.15, 1]},
            "legend": None,
        }
    return {"height": 240, "mark": {"type": "rect", "stroke": "var(--paper)"}, "encoding": encoding}
