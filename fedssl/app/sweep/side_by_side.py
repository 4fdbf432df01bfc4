"""Run several experiments at a time, each in one of a few processes, with one display for all."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fedssl.app.sweep.display import Display
from fedssl.app.sweep.messages import Ended, Failed, Task
from fedssl.app.sweep.packing import Packing
from fedssl.app.sweep.points import Point
from fedssl.app.sweep.pool import Pool


def run_side_by_side(
    points: Sequence[Point],
    folders: Sequence[Path],
    packing: Packing,
    display: Display,
    *,
    ended: Callable[[int], None] = lambda number: None,
    failed: Callable[[int, str], None],
) -> None:
    """Run the points that are left to run; a run that was begun in its folder goes on.

    Args:
        points: The runs.
        folders: The run directory of each point.
        packing: How the runs share the machine.
        display: Shows how the runs go.
        ended: Is called with the number of a point, from 0, whose run is finished.
        failed: Is called with the number of a point whose run failed, and with the reason.
    """
    tasks = [
        Task(packing.as_run(point.experiment).to_dict(), folder, point.label)
        for point, folder in zip(points, folders, strict=True)
    ]
    with display, Pool(packing.gpus) as pool:
        for number, message in pool.run(tasks):
            display.show(points[number], message)
            match message:
                case Ended():
                    ended(number)
                case Failed(reason):
                    failed(number, reason)
