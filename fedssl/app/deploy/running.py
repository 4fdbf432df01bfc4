"""Run an experiment over a deployment: submit it, or go on with a run that was stopped, and follow it to its end."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from fedssl.app.deploy.admission import count_connected
from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.ending import wait_for_release
from fedssl.app.deploy.follow import GONE, SILENT, SILENT_SECONDS, Watch, follow
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.options import say
from fedssl.app.deploy.roster import Roster
from fedssl.app.deploy.submissions import Submissions
from fedssl.app.interrupts import interruptible
from fedssl.app.simulation import check_phases
from fedssl.clients.local_data import simulated_federation
from fedssl.core.errors import InputError, RunFailed
from fedssl.data.sites import Sites
from fedssl.exchange.census import NO_ROUND
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.paths import make_paths_absolute
from fedssl.record.located import read_located
from fedssl.record.resume import find_run
from fedssl.record.run_path import SUMMARY, has_begun
from fedssl.server.accountant import account_for, with_chosen_noise
from fedssl.views.trackers.base import refuse_tracker


def load_experiment(
    file: Path, settings: list[str], deployment: Deployment, *, resume: bool
) -> Experiment:
    """Return the experiment that a deployment is to run, as its processes get it: every path that exists is absolute.

    If the experiment has sites, say what of their settings its clients do not get.

    Args:
        file: An experiment file, or the directory of a run to go on with.
        settings: Overrides of settings.
        deployment: The deployment.
        resume: Whether a run may be gone on with.

    Raises:
        InputError: The experiment is wrong, or a run's directory is named without ``--resume``.
    """
    if file.is_dir() and not has_begun(file):
        raise InputError(str(file), "is a folder that holds no run", "name a TOML file")
    if file.is_dir() and not resume:
        raise InputError(str(file), "is the folder of a run", "to go on with it, add --resume")
    experiment = read_located(file, settings) if file.is_dir() else Experiment.load(file, settings)
    sites = experiment.federation.sites
    if sites is not None:
        experiment = experiment.deployed()
        say(
            "sites: each deployed client brings its own images in place of its site's (federation.private)"
        )
        for line in _lost_settings(sites, deployment):
            say(line)
    refuse_tracker(experiment)
    return make_paths_absolute(experiment)


def _lost_settings(sites: Sites, deployment: Deployment) -> Iterator[str]:
    """Yield a sentence for each site whose ``bad_images`` its client lacks, or may lack: only clients choose what they skip."""
    here = deployment.settings
    for number, (name, site) in enumerate(sites.items()):
        said = f"site {name}: the file says bad_images = {site.bad_images!r}, but"
        if number >= here.clients:
            if site.bad_images == "skip":
                yield f"{said} only client {number} itself can say so: fedssl deploy join ... --bad-images skip"
        elif site.bad_images != here.bad_images:
            also = " and in its command in docker-compose.yml" if here.containers else ""
            yield (
                f"{said} client {number} has {here.bad_images!r} (init --bad-images); to change that for all clients here, "
                f"set bad_images in {deployment.file}{also}, then end and start the deployment"
            )


def run_over(
    opened: Opened, experiment: Experiment, folder: Path | None, *, resume: bool, plain: bool
) -> None:
    """Run an experiment over a deployment's clients, and show it until it ends.

    Args:
        opened: The deployment.
        experiment: The experiment, as `load_experiment` returns it.
        folder: Directory of the run to go on with; None: with ``resume``, the newest of the experiment.
        resume: Go on with a run that did not end.
        plain: Show plain lines, no live screen.

    Raises:
        InputError: The experiment, the run to go on with or the clients are not as they must be.
        RunFailed: The run failed.
    """
    # Check the experiment here, before anything is submitted: its data, its phases, and the number of clients.
    federation = simulated_federation(experiment)
    check_phases(experiment, federation)
    if experiment.privacy is not None and experiment.privacy.epsilon is not None:
        # The noise is chosen here, because the server's host may lack the accountant's library.
        experiment = with_chosen_noise(experiment)
        account = account_for(experiment)
        assert account is not None
        say(f"privacy: {account.describe()}")
    runs = opened.deployment.runs
    directory = _find_directory(opened, experiment, folder) if resume else None
    if directory is not None and (directory / SUMMARY).exists():
        say(f"{experiment.name} seed {experiment.seed}: already done, in {directory}")
        return
    run_id = None if directory is None else _find_active(opened, directory.relative_to(runs))
    if directory is not None and run_id is not None:
        say(f"run {run_id} still goes on; it is followed from here")
        watch = Watch(directory)
    else:
        _refuse_too_few(opened, experiment)
        watch = Watch.of_next(directory or _new_directory(opened, experiment))
        run_id = _submit(opened, experiment, watch.directory, resume=directory is not None)
    # Show the run until it ends. If nobody can watch it any more, stop it.
    with interruptible():
        try:
            status = follow(
                experiment,
                federation,
                opened.operator,
                run_id,
                watch,
                opened.is_served,
                plain=plain,
            )
        except (KeyboardInterrupt, OSError) as error:  # OSError: the terminal is gone
            try:
                opened.operator.stop_run(run_id)
            except RunFailed as another:
                error.add_note(f"run {run_id} could not be stopped: {another}")
            error.add_note("to go on, run the same command again with --resume")
            raise
    if watch.directory.exists():
        say(f"  recorded in {watch.directory}")
    again = "the same command with --resume" if has_begun(watch.directory) else "the same command"
    if status == GONE:
        raise RunFailed(
            f"the deployment was ended while run {run_id} was in progress; "
            f"to go on: {opened.command('up')}, then {again}"
        )
    if status == SILENT:
        raise RunFailed(
            f"the deployment's server has not answered for {SILENT_SECONDS:g} s, so run {run_id} is not followed any "
            f"longer; {opened.describe_logs()}; to follow it again or go on: {again}"
        )
    if status:
        go_on = f"; to go on: {again}" if has_begun(watch.directory) else ""
        if NO_ROUND in status:
            go_on = "; change the experiment as the reason says, or ask these clients' owners: the same experiment is refused again"
        log = f"its server app's log: {opened.flwr_log_command(run_id)}"
        raise RunFailed(f"run {run_id} ended as {status}; {opened.describe_logs()}; {log}{go_on}")


def _find_directory(opened: Opened, experiment: Experiment, folder: Path | None) -> Path | None:
    """Return the directory of the run to go on with; None if there is none, and then say so.

    Raises:
        InputError: The directory is not one of this deployment, or its run has other settings.
    """
    runs = opened.deployment.runs
    if folder is not None and not folder.absolute().is_relative_to(runs):
        raise InputError(str(folder), f"is no run of this deployment, whose runs are in {runs}")
    # The record holds what the server app was sent, without the sections that have no effect there.
    sent = Experiment.from_json(experiment.to_json())
    found = find_run(sent, None if folder is None else folder.absolute(), runs)
    if found is None:
        say("there is no run to go on with; a new one begins")
    return found


def _find_active(opened: Opened, record: Path) -> str | None:
    """Return Flower's id of a run that still goes on in a run directory; None if no run does."""
    run_id = Submissions(opened.deployment.submissions).last_of(record)
    if run_id is None:
        return None
    status, _ = opened.operator.run_status(run_id)
    return None if status.startswith("finished") else run_id


def _refuse_too_few(opened: Opened, experiment: Experiment) -> None:
    connected = count_connected(opened.operator)
    if connected < experiment.federation.clients:
        raise InputError(
            "federation.clients",
            f"is {experiment.federation.clients}, but only {connected} clients are connected",
            f"start more, or see which are missing: {opened.command('status')}",
        )


def _new_directory(opened: Opened, experiment: Experiment) -> Path:
    """Return the directory of a new run. The server app makes it, because in containers it has another owner."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"
    taken = set(Submissions(opened.deployment.submissions).read().values())
    for number in itertools.count(1):
        record = Path(experiment.name, stamp if number == 1 else f"{stamp}-{number}")
        directory = opened.deployment.runs / record
        if record.as_posix() not in taken and not directory.exists():
            return directory
    raise AssertionError("there is always a next number")


def _submit(opened: Opened, experiment: Experiment, directory: Path, *, resume: bool) -> str:
    """Submit a run and return Flower's id of it. Its settings travel in a TOML file, which is Flower's run config."""
    deployment = opened.deployment
    wait_for_release([directory])
    record = directory.relative_to(deployment.runs)
    config = {
        "experiment-json": experiment.to_json(),
        "run-directory": f"runs/{record.as_posix()}",
        "resume": resume,
        "nodes": json.dumps(dict(Roster(deployment.roster).numbers())),
    }
    submitted = deployment.submitted / f"{experiment.name}-{directory.name}.toml"
    submitted.write_text(tomli_w.dumps(config))
    deployment.write_app()
    run_id = opened.operator.start_run(
        str(opened.at / "app"), str(opened.at / "submitted" / submitted.name)
    )
    Submissions(deployment.submissions).add(run_id, record)
    return run_id
