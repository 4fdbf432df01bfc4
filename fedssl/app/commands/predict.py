"""`fedssl predict`: predicts the classes of images with a run's model."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedssl.app.commands.arguments import (
    PluginsOption,
    RunFolder,
    Weights,
    WeightsOption,
    check_runs,
    load_run_with_model,
)
from fedssl.app.guard import guarded_reader
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.core.processes import quick_imports

if TYPE_CHECKING:
    from fedssl.data.target import Target
    from fedssl.views.predictions import Predictions, Tally
    from fedssl.views.run import Run

SHOWN = 20
"""The table lists at most this many predictions."""


@guarded_reader
def predict(
    run: RunFolder,
    images: Annotated[
        list[Path],
        typer.Argument(help="Image files, folders of any depth, .npz files.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="CSV file to write, one line per image.")] = None,
    model: WeightsOption = Weights.ema,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize", help="Scale and convert images whose size or colors differ from the run's."
        ),
    ] = False,
    plugins: PluginsOption = False,
) -> None:
    """Predict the class of images, and say how often that is right if folders or an .npz name the true classes.

    A folder names the class of its images if it has the name of a class: IMAGES itself, or a folder in it.

    Examples:
      fedssl predict runs/mine/20260101-120000-seed0 photos/ --out predictions.csv

      fedssl predict runs/mine/20260101-120000-seed0 one.jpg two.png --resize
    """
    check_runs([run])
    with quick_imports():
        from fedssl.data.flaws import Flaws
        from fedssl.data.unseen import FIELD, read_blocks
        from fedssl.record.judges import in_brackets, judge_in
        from fedssl.views.predictions import Predictions, predictions_of

    found, flaws = load_run_with_model(run, plugins=plugins), Flaws()
    names = tuple(found.data["class_names"])
    network = found.model(average=model.average)
    blocks = read_blocks(images, names, _choose_target(found, resize), flaws)
    with _open_for_writing(out) as file, _make_counter() as progress:
        predictions = Predictions(SHOWN, file)
        task = progress.add_task("", total=None)
        seen = TrainingImages(found)
        for one in predictions_of(network, blocks, found.spec, names, seen):
            predictions.add(one)
            progress.update(task, advance=1)
        if flaws.refused:
            remedy = (
                "name images only"
                if resize
                else "name images only; --resize scales and converts them"
            )
            raise InputError(FIELD, "; ".join(flaws.notes()), remedy)
    judge = in_brackets(judge_in(found.judges, found.experiment.phase_of(found.weights()[0])))
    said = [*flaws.remarks, *(f"left out: {note}" for note in flaws.notes()), *seen.notes]
    _show(predictions, out, said, judge)


class TrainingImages:
    """The fingerprints of a run's training images, read once somebody asks for them.

    Args:
        run: The run; if its images are not there, a note says that nobody knows what was trained on.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._found: frozenset[str] | None = None
        self.notes: list[str] = []

    def __call__(self) -> frozenset[str]:
        """Return the fingerprints; none if they are not known."""
        from fedssl.views.closer_look import training_fingerprints

        if self._found is None:
            try:
                self._found = training_fingerprints(self._run)
            except InputError as error:
                self._found = frozenset()
                self.notes.append(f"which of the images were training images is not known: {error}")
        return self._found


def _choose_target(run: "Run", resize: bool) -> "Target":
    """Return the size and channels that images must have.

    Other images are scaled and converted if the user asks for it, or if the run's own images were when they were read.
    Files of more than 8 bits or of several frames are read as the run's own files were.
    """
    from fedssl.data.sources.own_images import EncodedImages
    from fedssl.data.target import Reading, Target

    channels, height, width = run.spec.shape
    data = run.experiment.data
    own = data.geometry if isinstance(data, EncodedImages) else None
    scales = own is not None and own.size is not None
    converts = own is not None and own.channels is not None
    hint = "as the run's"
    reading = Reading() if own is None else own.reading
    size = height, width
    return Target(size, channels, resize or scales, resize or converts, hint, hint, reading)


@contextlib.contextmanager
def _open_for_writing(out: Path | None) -> Iterator[TextIO | None]:
    """Open a file that exists only once the block has ended without an error; yields None if no file is wanted."""
    from fedssl.core.files import PARTIAL
    from fedssl.record.run_path import check_output, unwritable_error

    if out is None:
        yield None
        return
    check_output(out, ".csv")
    partial = out.with_name(out.name + PARTIAL)
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        partial.replace(out)
    except OSError as error:
        raise unwritable_error(out, str(error.strerror)) from None
    finally:
        partial.unlink(missing_ok=True)


def _make_counter() -> Progress:
    """Return a counter of images for a terminal, removed at the end; the total is not known."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed:,} images"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(predictions: "Predictions", out: Path | None, said: Sequence[str], judge: str) -> None:
    table = Table(show_edge=False)
    for name in ("path", "class", "confidence"):
        table.add_column(name, overflow="fold", justify="right" if name == "confidence" else "left")
    for one in predictions.first:
        percent = f"{one.confidence * 100:.1f} %"
        table.add_row(one.path, one.class_name, percent)
    console = Console()
    console.print(table)
    more = predictions.count - len(predictions.first)
    if more:
        where = f"in {out}" if out else "--out FILE writes them all"
        console.tell(f"and {more:,} more: {where}")
    elif out:
        console.tell(f"written to {out}")
    for line in said:
        console.tell(line)
    if predictions.labeled.count:
        for line in _results(predictions, judge):
            console.tell(line)


def _results(predictions: "Predictions", judge: str) -> Iterator[str]:
    """Yield lines that say how often predictions are right, for all images of known class and without training images."""
    labeled, new = predictions.labeled, predictions.new
    unknown = predictions.count - labeled.count
    yield (
        f"accuracy{judge} {_percent(labeled.accuracy)}: {labeled.num_right:,} of "
        f"{labeled.count:,} images whose class is known{_balanced(labeled)}"
        + (
            f"; images whose class is not known or none of the run's: {unknown:,}"
            if unknown
            else ""
        )
    )
    seen = labeled.count - new.count
    if seen and not new.count:
        yield "all of these were training images of the run, so this says little of new images"
    elif seen:
        yield (
            f"{seen:,} of these were training images of the run; without them: accuracy{judge} "
            f"{_percent(new.accuracy)}: {new.num_right:,} of {new.count:,}{_balanced(new)}"
        )


def _balanced(tally: "Tally") -> str:
    """Return the measures that give every class the same weight; empty if the images have fewer than two classes."""
    from fedssl.metrics.balanced import MEASURES

    found = tally.measure_balanced()
    if found is None:
        return ""
    shown = (f"{MEASURES[name]} {_percent(value)}" for name, value in found.by_name.items())
    return f"; {', '.join(shown)}"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
