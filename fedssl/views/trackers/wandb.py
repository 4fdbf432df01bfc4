"""The Weights & Biases tracker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.views.trackers.base import Facts, Status, TrackedRun, Tracker

if TYPE_CHECKING:
    import wandb

UPLOAD_SECONDS = 60.0
"""The end of a run waits at most this long (seconds) for the upload; ``wandb sync`` uploads the rest later."""

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}
"""Exit code that tells the service how a run ended; the service shows a run with exit code 255 as killed."""


class WandB(Tracker):
    """Track runs at the Weights & Biases service, or in files for a later upload."""

    project: str = Field(
        "fedssl", min_length=1, description="project at Weights & Biases in which the run is shown"
    )
    mode: Literal["online", "offline"] = Field(
        "online",
        description="online: send to the service during the run; offline: write files into the run directory, under "
        "wandb, which `wandb sync` uploads",
    )

    def check(self) -> None:
        """Raise `InputError` if wandb is not installed, or if the mode is online and nobody is logged in."""
        require("wandb", "tracker.kind", f"{self.kind!r}", self.kind)
        if self.mode == "online":
            _check_login()

    def open(self, facts: Facts, id: str | None) -> TrackedRun:
        """Return a Weights & Biases run, grouped with the other seeds of its experiment; see `Tracker.open`."""
        import wandb

        run = wandb.init(
            project=self.project,
            mode=self.mode,
            id=id,
            # An offline run cannot be resumed: all its rounds are written again, under the same id.
            resume="must" if id is not None and self.mode == "online" else None,
            name=facts.title,
            group=facts.name,
            tags=[f"{key} {value}" for key, value in facts.tags.items()],
            config={**facts.settings, "run_directory": str(facts.directory)},
            allow_val_change=True,
            dir=str(facts.directory),
            reinit="create_new",
            settings=wandb.Settings(
                # The service gets what docs/trackers.md lists, and neither the screen's text nor the code.
                console="off",
                disable_git=True,
                disable_code=True,
                silent=True,
                finish_timeout=UPLOAD_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        return _Run(run)


class _Run(TrackedRun):
    def __init__(self, run: "wandb.Run") -> None:
        super().__init__(run.id)
        self._run = run

    def log(self, round: int, values: Mapping[str, float]) -> None:
        if round >= self._run.starting_step:  # the service has all earlier rounds
            self._run.log(dict(values), step=round)

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        import wandb

        self._run.summary.update(dict(summary))
        if files:
            artifact = wandb.Artifact(f"run-{self.id}", type="run")
            for file in files:
                artifact.add_file(str(file))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=EXIT_CODES[status])


def _check_login() -> None:
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "tracker.mode",
            "is 'online', and nobody is logged in to Weights & Biases here",
            "wandb login, or --set tracker.mode=offline",
        )
