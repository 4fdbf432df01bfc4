"""Draw the pictures of concepts.md from real federations and real runs: `make pictures`.

Runs are recorded and kept under runs/pictures/, and finished runs are not run again. All pictures take a quarter of an
hour on two cores. To draw some of them, name them: ``python docs/pictures.py skew labels``.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedssl.clients.local_data import simulated_federation
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.views.pictures.plots import COLORS, save_figure
from fedssl.views.run import Run

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"
RUNS = ROOT / "runs" / "pictures"
DIGITS = "experiments/digits"

BLUE, RED, GREEN, PINK, ORANGE, SKY = COLORS[:6]
GRAY = "#8A8A8A"
SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", BLUE])


def recorded(file: str, *settings: str, out: str) -> Run:
    """Return a recorded run of an experiment file; run it now if it is not finished.

    Args:
        file: The experiment file, relative to the repository's root.
        settings: Settings, written as after ``--set``.
        out: Name of the run's folder below runs/pictures/.
    """
    options = [word for setting in settings for word in ("--set", setting)]
    command = ["run", file, *options, "--resume", "--plain", "--out", str(RUNS / out)]
    subprocess.run([sys.executable, "-m", "fedssl", *command], cwd=ROOT, check=True)
    return Run(RUNS / out)


def seeds(file: str, *settings: str, name: str) -> list[Run]:
    """Return the recorded runs of an experiment file with seeds 0 and 1."""
    return [
        recorded(file, *settings, f"name={name}", f"seed={seed}", out=f"{name}-seed{seed}")
        for seed in (0, 1)
    ]


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, in the common style of all pictures."""
    figure = Figure(figsize=(9.6, height), layout="constrained", dpi=130)
    axes = figure.subplots(1, count, squeeze=False)[0].tolist()
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
    return figure, axes


def curve(
    axes: Axes, runs: Sequence[Run], column: str, color: str, label: str, style: str = "-"
) -> None:
    """Draw the mean of a share over seeds (percent, smoothed over five rounds), with the range as a band."""
    table = pd.concat([run.rounds.set_index("round")[column] for run in runs], axis=1) * 100
    smooth = table.rolling(5, min_periods=1).mean()
    axes.plot(smooth.index, smooth.mean(axis=1), style, color=color, label=label, linewidth=1.7)
    axes.fill_between(
        smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=color, alpha=0.15, linewidth=0
    )


def titled(axes: Axes, title: str, x: str, y: str) -> None:
    """Write the title of a panel and the labels of its axes."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def skew() -> Figure:
    """Draw the number of images of each class at each client, for four values of alpha."""
    figure, axes = panels(4, 2.9)
    for one, alpha in zip(axes, (100.0, 1.0, 0.5, 0.1), strict=True):
        partition = {"kind": "dirichlet", "alpha": alpha}
        counts = _federation(partition=partition).class_counts(labeled=False).T
        drawn = one.imshow(counts, cmap=SHADES, vmin=0, vmax=80, aspect="auto")
        titled(one, f"alpha = {alpha:g}", "client", "digit" if one is axes[0] else "")
        one.set_xticks(range(10))
        one.set_yticks(range(10))
    figure.colorbar(drawn, ax=axes, extend="max", pad=0.01).ax.tick_params(labelsize=8)
    figure.suptitle("images of each digit at each of ten clients", fontsize=11)
    return figure


def labels() -> Figure:
    """Draw which clients, or the server, hold forty labels, in four settings of ``federation.labels``."""
    figure, axes = panels(4, 2.7)
    settings = {
        "at_clients": {"kind": "at_clients", "per_class": 4},
        "at_server": {"kind": "at_server", "per_class": 4},
        "some_clients": {"kind": "some_clients", "labeled_clients": 4, "per_class": 4},
        "skewed": {"kind": "skewed", "alpha": 0.1, "per_class": 4},
    }
    for one, (name, section) in zip(axes, settings.items(), strict=True):
        federation = _federation(labels=section)
        held = [*federation.labeled_sizes, len(federation.server_rows)]
        bars = one.bar([*range(10), 11], held, color=[BLUE] * 10 + [RED])
        one.bar_label(bars, [str(n) if n else "" for n in held], fontsize=7)
        one.set_xticks([*range(10), 11], [*map(str, range(10)), "server"])
        one.set_ylim(0, 44)
        titled(one, name, "client", "labels" if one is axes[0] else "")
    figure.suptitle("who holds the forty labels", fontsize=11)
    return figure


def pseudo_labels() -> Figure:
    """Draw coverage and accuracy of FixMatch's pseudo-labels by round, and the test accuracy."""
    figure, (left, right) = panels(2, 3.3)
    fixmatch = seeds(f"{DIGITS}/fixmatch.toml", name="digits-fixmatch")
    supervised = seeds(f"{DIGITS}/supervised.toml", name="digits-supervised")
    curve(left, fixmatch, "pseudo_label_coverage", ORANGE, "used")
    curve(left, fixmatch, "pseudo_label_accuracy", GREEN, "right, of those used", "--")
    curve(right, fixmatch, "ema_accuracy", BLUE, "FixMatch")
    curve(right, supervised, "ema_accuracy", GRAY, "supervised on the same 40 labels", "--")
    titled(left, "pseudo-labels of FixMatch", "round", "%")
    titled(right, "test accuracy (EMA)", "round", "%")
    right.set_ylim(50, 100)
    _legends(left, right)
    return figure


def teacher_scope() -> Figure:
    """Draw Mean Teacher with each of the three scopes of its teacher."""
    figure, (left, right) = panels(2, 3.3)
    scopes = {"reset": (BLUE, "-"), "client": (RED, "--"), "server": (GREEN, ":")}
    for scope, (color, style) in scopes.items():
        setting = f"method.teacher_scope={scope}"
        runs = seeds(f"{DIGITS}/mean_teacher.toml", setting, name=f"teacher-{scope}")
        curve(left, runs, "ema_accuracy", color, scope, style)
        curve(right, runs, "pseudo_label_coverage", color, scope, style)
    titled(left, "test accuracy (EMA)", "round", "%")
    titled(right, "images of which the teacher is confident", "round", "%")
    left.set_ylim(50, 100)
    _legends(left, right)
    return figure


def virtual_time() -> Figure:
    """Draw the fate of each asked client in each round, and the length of each round."""
    figure, (left, right) = panels(2, 3.6)
    run = recorded("experiments/virtual_time.toml", out="virtual-time-seed0")
    meaning = {
        "ok": (GREEN, "in time"),
        "late": (ORANGE, "late"),
        "surplus": (SKY, "beyond those wanted"),
    }
    meaning["dropped"] = (RED, "dropped out")
    asked = run.clients
    for status, (color, label) in meaning.items():
        rows = asked[asked["status"] == status]
        left.scatter(rows["round"], rows["client"], s=9, marker="s", color=color, label=label)
    titled(left, "who was asked, and what became of it", "round", "client")
    system = run.experiment.system
    assert system is not None
    assert system.deadline is not None
    deadline = system.deadline
    ends = run.rounds["virtual_seconds"]
    lengths = ends.diff().fillna(ends.iloc[0])
    right.bar(
        run.rounds["round"],
        lengths,
        color=[ORANGE if s >= deadline - 0.01 else GREEN for s in lengths],
    )
    right.axhline(deadline, color=GRAY, linestyle="--", linewidth=1)
    titled(right, "how long each round took", "round", "virtual seconds")
    ended = [
        Patch(color=GREEN, label="enough answered"),
        Patch(color=ORANGE, label="ended by the deadline"),
    ]
    left.legend(
        frameon=False,
        fontsize=8,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        columnspacing=0.8,
    )
    right.legend(
        handles=ended,
        frameon=False,
        fontsize=8,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
    )
    return figure


def determinism() -> Figure:
    """Draw the accuracy of one seed on three engines, and of three seeds on one engine."""
    figure, (left, right) = panels(2, 3.3)
    settings = ("rounds=30", "name=bits")
    engines = {
        "serial": ("serial", (), 6.0, SKY),
        "one Ray worker": ("one-worker", ("engine.kind=ray", "engine.workers=1"), 3.2, BLUE),
        "two Ray workers": ("two-workers", ("engine.kind=ray", "engine.workers=2"), 1.0, "black"),
    }
    for label, (out, engine, width, color) in engines.items():
        chosen = engine or ("engine.kind=serial",)
        run = recorded(f"{DIGITS}/fixmatch.toml", *settings, *chosen, out=f"bits-{out}")
        accuracy = run.rounds["server_accuracy"] * 100
        left.plot(run.rounds["round"], accuracy, color=color, linewidth=width, label=label)
        if out == "serial":
            right.plot(run.rounds["round"], accuracy, color=SKY, linewidth=2.5, label="seed 0")
    for seed, (color, style) in {1: (RED, "--"), 2: (GREEN, ":")}.items():
        chosen = (*settings, "engine.kind=serial", f"seed={seed}")
        run = recorded(f"{DIGITS}/fixmatch.toml", *chosen, out=f"bits-seed{seed}")
        right.plot(
            run.rounds["round"],
            run.rounds["server_accuracy"] * 100,
            style,
            color=color,
            label=f"seed {seed}",
        )
    titled(left, "seed 0 on three engines: one curve", "round", "test accuracy, %")
    titled(right, "three seeds on one engine", "round", "")
    for one in (left, right):
        one.set_ylim(0, 90)
    _legends(left, right)
    return figure


def _federation(**sections: object) -> Federation:
    federation = {
        "clients": 10,
        "sample": 5,
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        **sections,
    }
    table = {"name": "picture", "data": {"source": "digits"}, "federation": federation}
    return simulated_federation(Experiment.from_dict(table))


def _legends(*axes: Axes) -> None:
    for one in axes:
        one.grid(alpha=0.25)
        one.legend(frameon=False, fontsize=8, loc="lower right")


PICTURES = {
    f.__name__: f for f in (skew, labels, pseudo_labels, teacher_scope, virtual_time, determinism)
}


def main(names: Sequence[str]) -> None:
    """Draw the named pictures, or all pictures if none is named."""
    for name in names or PICTURES:
        save_figure(PICTURES[name](), IMAGES / f"concept_{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
