"""Charts of the final models: which classes they confuse, how sure they are, and their accuracy by client."""

from collections.abc import Iterator

import numpy as np

from fedssl.metrics.balanced import MEASURES
from fedssl.metrics.calibration import mean_accuracy_of_worst_tenth
from fedssl.views.reports.cell_specs import heatmap
from fedssl.views.reports.charts import COLORS, HEIGHT, Chart, Spec, number, slanted
from fedssl.views.reports.material import Material

NAMES = {"ema": "moving average", "model": "global model"}
"""Names of the two models on the page, by their keys in a closer look."""

BY_CLASS = {"recall": "recall", "precision": "precision", "f1": "F1", "auroc": "AUROC"}
"""Measures of a class by their keys in a closer look, and their names in the chart's table."""

MOST_BARS = 200
"""A chart of clients or classes has at most this many bars."""

MOST_CLASSES = 20
"""With at most this many classes, every pair of classes has a cell, and every class a name on the axis."""

MOST_CELLS = 4000
"""A confusion matrix of more classes has at most this many cells, the most frequent pairs first."""


def confusion_chart(material: Material) -> Chart | None:
    """Draw which classes the moving average mistakes for which; None without a closer look."""
    if material.evaluation is None:
        return None
    counts = np.array(material.evaluation["models"]["ema"]["confusion"])
    names = material.class_names
    totals = counts.sum(1)
    places = [(true, guess) for true, guess in zip(*np.nonzero(counts), strict=True)]
    few = len(names) <= MOST_CLASSES
    if few:
        places = [(true, guess) for true in range(len(names)) for guess in range(len(names))]
    elif len(places) > MOST_CELLS:
        places = sorted(places, key=lambda place: -counts[place])[:MOST_CELLS]
    rows = [
        {
            "true class": names[true],
            "taken for": names[guess],
            "of the class, %": number(counts[true, guess] / totals[true] * 100, 1),
            "images": int(counts[true, guess]),
        }
        for true, guess in places
        if totals[true]
    ]
    spec = heatmap(
        "taken for",
        "true class",
        "of the class, %",
        ("true class", "taken for", "images", "of the class, %"),
        num_rows=len(names),
        y_order=list(names),
    )
    spec["encoding"]["x"]["sort"] = list(names)
    if few:
        del spec["encoding"]["x"]["axis"]["labelOverlap"]
        spec = _with_counts(spec)
    note = (
        f"The moving average after round {material.evaluation['round']} on the {material.data['evaluated_on']} images: "
        "each row is a true class and shows which classes its images are taken for."
        + ("" if few else f" Of {len(names)} classes, the {len(rows):,} most frequent pairs.")
    )
    return Chart("confusion", "Confusion matrix", note, rows, spec)


def _with_counts(cells: Spec) -> Spec:
    """Return a heat map whose cells also show their number of images, except cells without images."""
    where = {name: cells["encoding"][name] for name in ("x", "y")}
    bright = {"test": "datum['of the class, %'] > 55", "value": "black"}
    text: Spec = {
        "transform": [{"filter": "datum.images > 0"}],
        "mark": {"type": "text", "fontSize": 10},
        "encoding": {
            **where,
            "text": {"field": "images"},
            "color": {"condition": bright, "value": "white"},
        },
    }
    drawn = {"mark": cells["mark"], "encoding": cells["encoding"]}
    return {"height": cells["height"], "layer": [drawn, text]}


def reliability_chart(material: Material) -> Chart | None:
    """Draw how often the models are right at each level of confidence; None without a closer look."""
    if material.evaluation is None:
        return None
    rows = []
    errors = []
    for key, name in NAMES.items():
        found = material.evaluation["models"][key]["reliability"]
        bins = zip(found["count"], found["confidence"], found["accuracy"], strict=True)
        errors.append(f"{name} {found['ece'] * 100:.1f}" if found["ece"] is not None else "")
        for count, confidence, accuracy in bins:
            if count:
                rows.append(
                    {
                        "line": name,
                        "confidence, %": number(confidence * 100, 1),
                        "right, %": number(accuracy * 100, 1),
                        "images": count,
                    }
                )
    note = (
        "On the dashed line, a model is right as often as it is confident; below the line, the model is too confident. "
        f"Circles grow with the number of images. Expected calibration error, %: {', '.join(filter(None, errors))}."
    )
    return Chart("reliability", "Reliability", note, rows, _reliability_spec())


def class_chart(material: Material) -> Chart | None:
    """Draw the moving average's recall of each class, worst first; None without a closer look that has it."""
    if material.evaluation is None or "by_class" not in material.evaluation["models"]["ema"]:
        return None  # an older closer look
    found = material.evaluation["models"]["ema"]["by_class"]
    known = sorted(
        (recall, cls) for cls, recall in enumerate(found["recall"]) if recall is not None
    )
    if not known:
        return None
    places = np.unique(np.linspace(0, len(known) - 1, min(len(known), MOST_BARS)).astype(int))
    classes = [known[place][1] for place in places.tolist()]
    rows = [
        {
            "class": material.class_names[cls],
            "images": found["images"][cls],
            **{f"{title}, %": _percent(found[key][cls]) for key, title in BY_CLASS.items()},
        }
        for cls in classes
    ]
    note = (
        f"Recall (sensitivity) of the moving average: how many images of a class it names, worst class first; the table "
        f"also has precision, F1 and AUROC (the class against the rest). All classes: {_measures_of_all(material)}."
    )
    few = len(rows) <= MOST_CLASSES
    axis = {"labelAngle": 0 if few else -90, "labels": few, "ticks": False}
    spec: Spec = {
        "height": HEIGHT,
        "mark": {"type": "bar", "color": COLORS[0], "tooltip": True},
        "encoding": {
            "x": {"field": "class", "type": "nominal", "sort": None, "title": None, "axis": axis},
            "y": {
                "field": "recall, %", "type": "quantitative",
                "scale": {"domain": [0, 100]}, "axis": {"tickCount": 5},
            },
            "tooltip": [{"field": name} for name in rows[0]],
        },
    }  # fmt: skip
    return Chart("by-class", "Recall by class", note, rows, spec)


def _measures_of_all(material: Material) -> str:
    """Return the measures that give every class the same weight, of both models, as one text."""
    assert material.evaluation is not None
    models = material.evaluation["models"]
    return "; ".join(
        f"{NAMES[key]}: "
        + ", ".join(
            f"{title} {'-' if (value := _percent(models[key][name])) is None else f'{value} %'}"
            for name, title in MEASURES.items()
        )
        for key in NAMES
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else number(share * 100, 1)


def client_accuracy_chart(material: Material) -> Chart | None:
    """Draw the accuracy on each client's own held-out images, worst first; None if no client has such images."""
    if material.evaluation is None:
        return None
    found = material.evaluation["models"]["ema"]["client_accuracy"]
    images = material.evaluation["client_images"]
    known = sorted((value, client) for client, value in enumerate(found) if value is not None)
    if not known:
        return None
    values = np.array([value for value, _ in known])
    places = np.unique(np.linspace(0, len(known) - 1, min(len(known), MOST_BARS)).astype(int))
    rows = [
        {
            "place": place + 1,
            "client": material.client_names[known[place][1]],
            "accuracy, %": number(known[place][0] * 100, 1),
            "held-out images": images[known[place][1]],
        }
        for place in places.tolist()
    ]
    worst = mean_accuracy_of_worst_tenth(values)
    note = (
        f"The moving average on each client's held-out images, which are dealt like its training images; worst client "
        f"first. Mean {values.mean() * 100:.1f} % (upper line), worst tenth {worst * 100:.1f} % (lower line), "
        f"deviation over clients {values.std() * 100:.1f} points, "
        f"{np.mean([images[client] for _, client in known]):.0f} images per client."
    )
    spec: Spec = {
        "height": HEIGHT,
        "layer": [
            {
                "mark": {"type": "bar", "color": COLORS[0], "tooltip": True},
                "encoding": {
                    "x": {
                        "field": "client", "type": "ordinal", "sort": [row["client"] for row in rows],
                        "title": "client, worst first",
                        "axis": {**slanted([row["client"] for row in rows], wide=False), "ticks": False},
                    },
                    "y": {
                        "field": "accuracy, %", "type": "quantitative",
                        "scale": {"domain": [0, 100]}, "axis": {"tickCount": 5},
                    },
                    "tooltip": [{"field": name} for name in rows[0]],
                },
            },
            _level(values.mean() * 100, "mean", COLORS[1]),
            _level(worst * 100, "worst tenth", COLORS[3]),
        ],
    }  # fmt: skip
    return Chart("clients", "Accuracy by client", note, rows, spec)


def model_charts(material: Material) -> Iterator[Chart]:
    """Yield the charts of a closer look at the models."""
    for chart in (
        confusion_chart(material),
        class_chart(material),
        reliability_chart(material),
        client_accuracy_chart(material),
    ):
        if chart is not None:
            yield chart


def _level(value: float, name: str, color: str) -> Spec:
    """Return a horizontal line; a tooltip holds its name, which would be unreadable on bars."""
    return {
        "data": {"values": [{"accuracy, %": number(value, 1), "which": name}]},
        "mark": {"type": "rule", "color": color, "strokeWidth": 3},
        "encoding": {
            "y": {"field": "accuracy, %", "type": "quantitative"},
            "tooltip": [{"field": "which"}, {"field": "accuracy, %"}],
        },
    }


def _reliability_spec() -> Spec:
    axis = {"tickCount": 5}
    scale = {"domain": [0, 100]}
    x = {"field": "confidence, %", "type": "quantitative", "scale": scale, "axis": axis}
    y = {"field": "right, %", "type": "quantitative", "scale": scale, "axis": axis}
    order = list(NAMES.values())
    color = {
        "field": "line",
        "type": "nominal",
        "scale": {"domain": order, "range": list(COLORS[:2])},
        "legend": {"orient": "top", "title": None},
    }
    diagonal = {"values": [{"at": 0}, {"at": 100}]}
    return {
        "height": HEIGHT,
        "layer": [
            {
                "data": diagonal,
                "mark": {"type": "line", "color": "var(--muted)", "strokeDash": [4, 4]},
                "encoding": {
                    "x": {"field": "at", "type": "quantitative", "title": "confidence, %"},
                    "y": {"field": "at", "type": "quantitative", "title": "right, %"},
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 2, "opacity": 0.6},
                "encoding": {"x": x, "y": y, "color": color},
            },
            {
                "mark": {"type": "point", "filled": True, "opacity": 0.75},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": color,
                    "size": {
                        "field": "images",
                        "type": "quantitative",
                        "scale": {"range": [20, 500]},
                        "legend": None,
                    },
                    "tooltip": [
                        {"field": name} for name in ("line", "confidence, %", "right, %", "images")
                    ],
                },
            },
        ],
    }
