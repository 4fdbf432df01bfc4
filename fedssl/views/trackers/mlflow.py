"""The MLflow tracker: runs are kept in a folder or at an MLflow server."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from pydantic import Field

from fedssl.core.extras import require
from fedssl.core.toml import leaves
from fedssl.data.cache import cache_folder, make_private_folder
from fedssl.views.trackers.base import Facts, Status, TrackedRun, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_PARAMS = 100
"""An MLflow server accepts at most this many parameters in one request."""

STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
"""MLflow's name of each way in which a run can end."""


class MLflow(Tracker):
    """Track runs in MLflow's file store or at an MLflow server."""

    tracking_uri: str = Field(
        "mlruns",
        min_length=1,
        description="a folder, or the address of a server, such as http://127.0.0.1:5000",
    )
    experiment: str | None = Field(
        None,
        min_length=1,
        description="name of the MLflow experiment; unset: the name of this experiment",
    )

    def check(self) -> None:
        """Raise `InputError` if MLflow is not installed."""
        require("mlflow", "tracker.kind", f"{self.kind!r}", self.kind)

    def open(self, facts: Facts, id: str | None) -> TrackedRun:
        """Return an MLflow run whose parameters are the settings; see `Tracker.open`."""
        client = client_of(self.tracking_uri)
        if id is None:
            id = _begin_run(client, self.experiment or facts.name, facts)
        else:
            client.update_run(id, status="RUNNING")
        return _Run(id, client)


class _Run(TrackedRun):
    def __init__(self, id: str, client: "MlflowClient") -> None:
        super().__init__(id)
        self._client = client
        # Each metric has its own last round: a killed run may have logged only some metrics of its last round.
        self._last = {
            name: max(metric.step for metric in client.get_metric_history(id, name))
            for name in client.get_run(id).data.metrics
        }

    def log(self, round: int, values: Mapping[str, float]) -> None:
        new = {name: value for name, value in values.items() if round > self._last.get(name, 0)}
        if new:
            self._log(new, round)

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        try:
            self._log(summary, 0)
            for file in files:
                self._client.log_artifact(self.id, str(file))
        finally:
            self._client.set_terminated(self.id, STATUS[status])

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)


def client_of(uri: str) -> "MlflowClient":
    """Return an MLflow client of the folder or server at `uri`."""
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE

    # MLflow 3.17 opens a file store only if this variable is set; an experiment that names a folder has chosen it.
    MLFLOW_ALLOW_FILE_STORE.default = True
    return MlflowClient(tracking_uri=uri)


def _begin_run(client: "MlflowClient", experiment: str, facts: Facts) -> str:
    """Begin a run under an MLflow experiment, which is created if it does not exist; return the run's id."""
    from mlflow.entities import Param

    experiment_id = _find_or_create_experiment(client, experiment)
    tags = {**facts.tags, "run_directory": str(facts.directory)}
    run_id: str = client.create_run(experiment_id, run_name=facts.title, tags=tags).info.run_id
    params = [Param(key, _as_text(value)) for key, value in leaves(facts.settings)]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
    return run_id


def _find_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of an MLflow experiment, which is created if it does not exist.

    A lock guards the creation: the runs of a sweep begin together, and only the first may create the experiment.
    """
    folder = cache_folder()
    make_private_folder(folder)
    with filelock.FileLock(folder / "mlflow.lock"):
        found = client.get_experiment_by_name(name)
        experiment_id: str = (
            client.create_experiment(name) if found is None else found.experiment_id
        )
    return experiment_id


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
