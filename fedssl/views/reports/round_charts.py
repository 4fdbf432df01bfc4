"""Charts of a run by round: accuracy, loss, pseudo-labels, drift, time and traffic."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from fedssl.core.rng import SERVER
from fedssl.record.judges import CLASSIFIER, judge_in
from fedssl.record.rows import NAN, PHASE, NumberRow, RoundRow, nan_mean
from fedssl.views.reports.cell_specs import heatmap
from fedssl.views.reports.charts import Band, Chart, number, significant, thinned
from fedssl.views.reports.line_specs import lines
from fedssl.views.reports.material import Material
from fedssl.views.unknown_truth import NOT_KNOWN, is_right_unknown

MOST_COLUMNS = 80
"""A heat map by round has at most this many columns."""

NUMBER_LINES = ("server", "lowest client", "highest client")
"""Lines of the chart of a recorded number."""

MOST_CELLS = 4000
"""A heat map has at most this many cells; with more classes than this, it has one column."""


def phase_bands(rounds: Sequence[RoundRow]) -> list[Band]:
    """Return the range of rounds of each phase, named by the phase's number and method."""
    bands = []
    for phase, rows in groupby(rounds, key=lambda row: row.phase):
        own = list(rows)
        bands.append(Band(own[0].round, own[-1].round, f"{phase + 1}: {own[0].method}"))
    return bands


def accuracy_chart(material: Material) -> Chart:
    """Draw the accuracy of the global model and of its moving average."""
    names = ("moving average", "global model")
    rows = [
        {
            "round": row.round,
            names[0]: _percent(row.ema_accuracy),
            names[1]: _percent(row.server_accuracy),
        }
        for row in material.rounds
        if row.evaluated
    ]
    on = material.data["evaluated_on"]
    note = f"% of the {on} images that the global model and its moving average over rounds classify correctly."
    note += _say_who_judged(material)
    spec = lines(rows, "round", names, "%", phase_bands(material.rounds))
    return Chart("accuracy", "Accuracy", note, thinned(rows), spec, wide=True)


def _say_who_judged(material: Material) -> str:
    """Return a sentence that names the judge of each phase, unless every judge is a classifier."""
    phases = {row.phase: judge_in(material.judges, row.phase) for row in material.rounds}
    if all(judge == CLASSIFIER for judge in phases.values()):
        return ""
    said = [f"{judge} (phase {phase + 1})" for phase, judge in phases.items()]
    return f" Judged by: {', '.join(said)}. Accuracies of different judges do not measure the same."


def loss_chart(material: Material) -> Chart:
    """Draw the losses on held-out images and in training."""
    names = ("moving average", "global model", "training")
    rows = [
        {
            "round": row.round,
            names[0]: number(row.ema_loss, 4),
            names[1]: number(row.server_loss, 4),
            names[2]: number(row.loss, 4),
        }
        for row in material.rounds
    ]
    note = (
        f"Cross-entropy (nats) on the {material.data['evaluated_on']} images, and the clients' mean training loss, "
        "which is the whole loss of the method, its unlabeled part included."
    )
    spec = lines(rows, "round", names, "nats", phase_bands(material.rounds))
    return Chart("loss", "Loss", note, thinned(rows), spec)


def pseudo_label_chart(material: Material) -> Chart | None:
    """Draw how many pseudo-labels are right and how many are used; None for a run without pseudo-labels."""
    names = ("right", "used")
    rows = [
        {
            "round": row.round,
            names[0]: _percent(row.pseudo_label_accuracy),
            names[1]: _percent(row.pseudo_label_coverage),
        }
        for row in material.rounds
    ]
    if all(row[names[1]] is None for row in rows):
        return None
    note = f"{_say_right(material)} Used: share of the unlabeled images whose pseudo-label was accepted."
    spec = lines(rows, "round", names, "%", phase_bands(material.rounds))
    return Chart("pseudo-labels", "Pseudo-labels", note, thinned(rows), spec)


def _say_right(material: Material) -> str:
    """Return a sentence that says which pseudo-labels are right, as far as their true labels are known."""
    shares = [(row.pseudo_label_accuracy, row.pseudo_label_coverage) for row in material.rounds]
    if all(right != right for right, _ in shares):
        if any(is_right_unknown(right, used) for right, used in shares):
            return NOT_KNOWN
        return "No pseudo-label was accepted, so none is right and none is wrong."
    hidden, unlabeled = material.num_hidden, material.num_unlabeled
    among = (
        f" This is known of {hidden:,} of the {unlabeled:,} unlabeled images; the others have no true label."
        if hidden < unlabeled
        else ""
    )
    return f"Right: share of the accepted pseudo-labels that match the label the simulator hides.{among}"


def class_charts(material: Material) -> Iterator[Chart]:
    """Draw how many pseudo-labels are right and how many are used, by round and true class."""
    if not material.classes:
        return
    names = material.class_names
    last = material.classes[-1].round
    width = -(-last // max(1, min(MOST_COLUMNS, MOST_CELLS // len(names))))
    counts = np.zeros((-(-last // width), len(names), 4))
    for row in material.classes:
        cell = counts[(row.round - 1) // width, row.label]
        cell += (row.considered, row.accepted, row.predicted, row.right)
    rows = []
    for place, by_class in enumerate(counts):
        first = place * width + 1
        for name, (considered, accepted, predicted, right) in zip(names, by_class, strict=True):
            rows.append(
                {
                    "round": first,
                    "rounds": str(first) if width == 1 else f"{first} to {first + width - 1}",
                    "true class": name,
                    "right, %": _share(right, accepted),
                    "used, %": _share(accepted, considered),
                    "images shown": number(considered, 0),
                    "given this class": number(predicted, 1),
                }
            )
    shown = ("rounds", "true class", "right, %", "used, %", "images shown", "given this class")
    written = [place * width + 1 for place in range(0, len(counts), max(1, len(counts) // 10))]
    right_note = (
        "Share of the pseudo-labels accepted for images of a class that name this class. A dark row is a class "
        "that is mistaken for other classes."
    )
    used_note = (
        "Share of the unlabeled images of a class, of those shown, whose pseudo-label was accepted."
    )
    for key, title, value, note in (
        ("class-right", "Right, by true class", "right, %", right_note),
        ("class-used", "Used, by true class", "used, %", used_note),
    ):
        known = [row for row in rows if row[value] is not None]
        spec = heatmap(
            "round",
            "true class",
            value,
            shown,
            num_rows=len(names),
            x_values=written,
            y_order=names,
        )
        yield Chart(key, f"Pseudo-labels: {title.lower()}", note, known, spec)


def drift_chart(material: Material) -> Chart | None:
    """Draw how far clients and the global model move in a round; None if the record has no such norms."""
    names = ("mean client", "farthest client", "global model")
    steps: dict[int, list[float]] = {}
    for client in material.clients:
        if client.status == "ok":
            steps.setdefault(client.round, []).append(client.update_norm)
    rows = []
    for row in material.rounds:
        own = steps.get(row.round, [])
        mean = nan_mean(own)
        most = max((norm for norm in own if norm == norm), default=NAN)
        rows.append(
            {
                "round": row.round,
                names[0]: number(mean, 5),
                names[1]: number(most, 5),
                names[2]: number(row.update_norm, 5),
                "step, % of the mean": _share(row.update_norm, mean),
            }
        )
    if all(row[names[0]] is None for row in rows):
        return None
    note = (
        "Length (L2) of the clients' changes to the weights they were sent, statistics of normalizations included, "
        "and of the global model's step. The further the step falls behind the mean client, the more the clients pull "
        "apart: that is client drift. Averaging m updates at right angles leaves 1/√m of their length; a strategy "
        "with its own learning rate takes a step of another length."
    )
    spec = lines(rows, "round", names, "L2 norm", phase_bands(material.rounds), zero=True)
    return Chart("drift", "Client drift", note, thinned(rows), spec)


def number_charts(material: Material) -> Iterator[Chart]:
    """Draw each number that the method, the strategy or the server's training recorded, over the rounds."""
    found: dict[str, dict[int, list[NumberRow]]] = {}
    for row in material.numbers:
        if row.name.startswith(f"{PHASE}."):
            continue
        found.setdefault(row.name, {}).setdefault(row.round, []).append(row)
    for name, by_round in sorted(found.items()):
        rows = []
        for round, recorded in sorted(by_round.items()):
            at_clients = [row.value for row in recorded if row.client != SERVER]
            server = next((row.value for row in recorded if row.client == SERVER), NAN)
            line = {"round": round, NUMBER_LINES[0]: significant(server)}
            if at_clients:
                line |= {
                    NUMBER_LINES[1]: significant(min(at_clients)),
                    NUMBER_LINES[2]: significant(max(at_clients)),
                }
            rows.append(line)
        names = [line for line in NUMBER_LINES if any(line in row for row in rows)]
        note = (
            "A number that the method recorded: its mean over the round's clients, weighted by their steps, and the lowest and the "
            "highest client."
            if len(names) > 1
            else "A number that the server recorded."
        )
        spec = lines(rows, "round", names, name, phase_bands(material.rounds))
        yield Chart(f"number-{name}", f"Recorded: {name}", note, thinned(rows), spec)


def cost_charts(material: Material) -> Iterator[Chart]:
    """Draw traffic, the time of rounds, and the virtual time if there is any."""
    rounds = material.rounds
    up = np.cumsum([row.bytes_up for row in rounds]) / 1e6
    down = np.cumsum([row.bytes_down for row in rounds]) / 1e6
    names = ("server to clients", "clients to server")
    rows = [
        {"round": row.round, names[0]: number(d, 3), names[1]: number(u, 3)}
        for row, u, d in zip(rounds, up, down, strict=True)
    ]
    note = "MB sent since the first round, all clients together: weights and state, without the overhead of a network."
    spec = lines(rows, "round", names, "MB", zero=True)
    yield Chart("bytes", "Traffic", note, thinned(rows), spec)
    rows = [{"round": row.round, "seconds": number(row.seconds, 4)} for row in rounds]
    median = float(np.median([row.seconds for row in rounds]))
    note = (
        f"Seconds of a round with its evaluation, during which the next round may begin; the median is {median:.3g}. "
        "The first round waits for the workers."
    )
    spec = lines(rows, "round", ("seconds",), "s", log=True)
    yield Chart("seconds", "Time of a round", note, thinned(rows), spec)
    if any(row.virtual_seconds == row.virtual_seconds for row in rounds):
        rows = [
            {"round": row.round, "virtual clock": number(row.virtual_seconds)} for row in rounds
        ]
        note = "The virtual clock at the end of each round: what the run would take on the devices of [system]."
        spec = lines(rows, "round", ("virtual clock",), "virtual s", zero=True)
        yield Chart("virtual-time", "Virtual time", note, thinned(rows), spec)


def _percent(share: float) -> float | None:
    return number(share * 100)


def _share(part: float, whole: float) -> float | None:
    return number(part / whole * 100) if whole else None
