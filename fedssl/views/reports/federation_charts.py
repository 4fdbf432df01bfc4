"""Charts of the federation: which client holds which images, and which clients took part in which rounds."""

from collections.abc import Iterator, Sequence

import numpy as np

from fedssl.record.rows import ClientRow
from fedssl.views.reports.charts import COLORS, Chart, Row, Spec, number, quantity, slanted
from fedssl.views.reports.material import Ints, Material

MOST_CLIENTS = 60
"""A chart has at most this many rows or columns of clients."""

MOST_CLASSES = 100
"""The chart of the partition shows at most this many classes."""

UNKNOWN_CLASS = "(unknown)"
"""Name of the row of images whose class nobody knows."""

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
    images = _count_images(material, clients, labeled=False)
    labels = _count_images(material, clients, labeled=True)
    shown = _choose_clients(images.sum(1))
    clients_named = material.client_names
    num_unknown = int(images[:, -1].sum())
    names = dict(enumerate(material.class_names[:MOST_CLASSES]))
    if num_unknown:
        names[len(material.class_names)] = UNKNOWN_CLASS
    rows: list[Row] = [
        {
            "client": clients_named[client],
            "class": name,
            "images": int(images[client, label]),
            "labels": int(labels[client, label]),
        }
        for client in shown
        for label, name in names.items()
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
        + (
            f" The class of {num_unknown:,} images is not known: their circles (last row) have a scale of their own."
            if num_unknown
            else ""
        )
    )
    named = [clients_named[client] for client in shown]
    spec = _partition_spec(shown, named, list(names.values()), images)
    return Chart("partition", "Who holds what", note, rows, spec, wide=True)


def participation_chart(material: Material) -> Chart:
    """Draw which clients took part in which rounds, and whether they trained, failed, were lost or were inactive."""
    clients, rounds = material.experiment.federation.clients, len(material.rounds)
    tall, broad = -(-clients // MOST_CLIENTS), -(-rounds // MOST_COLUMNS)
    names = material.client_names
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
                "to": stop - 1,
                "top": top,
                "bottom": bottom - 1,
                "clients": names[top] if bottom == top + 1 else _write_range(top, bottom),
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
        f"least and {times.max()} times at most. Clients that were never asked: {int((times == 0).sum()):,}.{coarse}"
    )
    spec = _participation_spec(clients, rounds, opacity=tall * broad > 1)
    return Chart("participation", "Who took part", note, rows, spec, wide=True)


def _count_images(material: Material, clients: int, *, labeled: bool) -> Ints:
    """Return how many images of each class, and in a last column of unknown class, each client holds, (K, C + 1)."""
    columns = len(material.class_names) + 1
    held = material.owner >= 0
    if labeled:
        held &= material.given >= 0
    column = np.where(material.label < 0, columns - 1, material.label)[held]
    cells = material.owner[held] * columns + column
    return np.bincount(cells, minlength=clients * columns).reshape(clients, columns)


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
    where: Spec = {
        "x": {
            "field": "client", "type": "ordinal", "sort": list(clients),
            "axis": {**slanted(clients, wide=True), "grid": False},
        },
        "y": {
            "field": "class", "type": "nominal", "sort": list(names),
            "axis": {"labelOverlap": True, "grid": False, "labelLimit": 110},
        },
        "tooltip": [{"field": name} for name in ("client", "class", "images", "labels")],
    }  # fmt: skip

    def circles(filter: str, field: str, largest: int, look: Spec, legend: Spec | None) -> Spec:
        scale = {"type": "linear", "domain": [0, max(1, largest)], "range": [0, 700]}
        size = {"field": field, "type": "quantitative", "title": "images", "scale": scale}
        return {
            "transform": [{"filter": filter}],
            "mark": {"type": "circle", **look},
            "encoding": where | {"size": {**size, "legend": legend}},
        }

    # The images of unknown class are many where labels are few: their row has a scale of its own.
    known, unknown = images[shown, :-1].max(initial=0), images[shown, -1].max(initial=0)
    is_unknown = f"datum.class === '{UNKNOWN_CLASS}'"
    pale, full = ({"color": COLORS[0], "opacity": 0.45}, {"color": COLORS[1], "opacity": 1})
    legend = {"orient": "top", "tickCount": 3}
    row = circles(is_unknown, "images", int(unknown), {**pale, "color": "var(--muted)"}, None)
    return {
        "height": max(160, min(30 * len(names), 700)),
        "resolve": {"scale": {"size": "independent"}},
        "layer": [
            circles(f"!({is_unknown})", "images", int(known), pale, legend),
            *([row] if unknown else []),
            circles("datum.labels > 0", "labels", int(known), full, None),
        ],
    }


def _participation_spec(clients: int, rounds: int, *, opacity: bool) -> Spec:
    order = ["trained", "failed", "lost", "inactive"]
    # A cell reaches half a round and half a client to either side, so that numbers stand at the middle of cells.
    along = quantity("left", "round", (0.5, rounds + 0.5), whole=True)
    down = quantity("above", "client", (-0.5, clients - 0.5), whole=True)
    down["scale"]["reverse"] = True
    encoding: Spec = {
        "x": along,
        "x2": {"field": "right"},
        "y": down,
        "y2": {"field": "below"},
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
    edges = {
        "left": "datum.from - 0.5", "right": "datum.to + 0.5", "above": "datum.top - 0.5", "below": "datum.bottom + 0.5",
    }  # fmt: skip
    return {
        "height": 240,
        "transform": [{"calculate": edge, "as": name} for name, edge in edges.items()],
        "mark": {"type": "rect", "stroke": "var(--paper)"},
        "encoding": encoding,
    }
