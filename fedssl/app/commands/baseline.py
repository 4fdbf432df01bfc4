"""`fedssl baseline`: measures classical classifiers on the labels of an experiment, all images in one place."""

from pathlib import Path
from typing import Annotated

import typer

from fedssl.app.commands.arguments import File, Settings, check_files, load_seeds
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.core.processes import quick_imports


@guarded
def baseline(
    file: File,
    settings: Settings = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds, from the file's seed on.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write, one line per classifier and seed.")
    ] = None,
) -> None:
    """Measure scikit-learn's classifiers on the labels of an experiment: what its federation should beat.

    Each seed's federation is drawn as a run draws it. The classifiers then have all images in one place: logistic regression
    and the nearest neighbor learn from the labeled ones, label spreading from the unlabeled ones too.

    Examples:
      fedssl baseline mine.toml --seeds 3

      fedssl baseline mine.toml --set federation.labels.per_class=10
    """
    require("sklearn", "baseline", "the classifiers")
    require("pandas", "baseline", "the table")
    check_files([file], settings)
    with quick_imports():
        from fedssl.app.simulation import check_experiment
        from fedssl.clients.local_data import simulated_federation
        from fedssl.record.description import describe
        from fedssl.record.run_path import check_output, unwritable_error
        from fedssl.views.comparison.yardstick_table import measure, yardstick_table
        from fedssl.views.text_table import OnScreen

    experiments = load_seeds(file, settings or [], seeds)
    if experiments[0].federation.private:
        raise InputError("baseline", "the images of private clients are not in one place")
    if out is not None:
        check_output(out, ".csv")
    for experiment in experiments:
        check_experiment(experiment)
    first, console = simulated_federation(experiments[0]), Console()
    console.tell(describe(experiments[0], first))
    measured = measure((one.seed, simulated_federation(one)) for one in experiments)
    console.print(OnScreen(yardstick_table(measured, first.held_out_name)))
    if out is not None:
        try:
            measured.to_csv(out, index=False)
        except OSError as error:
            raise unwritable_error(out, str(error.strerror)) from None
        console.tell(f"written to {out}")
