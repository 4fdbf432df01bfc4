"""Weights & Biases."""

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
"""That the end of a run waits for its upload; ``wandb sync`` uploads what is left."""

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}
"""What the service calls killed is 255."""


class WandB(Tracker):
    """Weights & Biases, the service or files for it."""

    project: str = Field("fedssl", min_length=1, description="of the service")
    mode: Literal["online", "offline"] = Field(
        "online",
        description="offline: files in the run directory, under wandb, which `wandb sync` uploads",
    )

    def check(self) -> None:
        """Raise `InputError` if wandb is not installed, or nobody is logged in."""
        require("wandb", "tracker.kind", f"{self.kind!r}", self.kind)
        if self.mode == "online":
            _check_login()

    def open(self, facts: Facts, id: str | None) -> TrackedRun:
        """Return a run of the service's, in a group of its seeds; see `Tracker.open`."""
        import wandb

        run = wandb.init(
            project=self.project,
            mode=self.mode,
            id=id,
            # Offline there is nothing to go on with: all rounds are written again, under the same id.
            resume="must" if id is not None and self.mode == "online" else None,
            name=facts.title,
            group=facts.name,
            tags=[f"{key} {value}" for key, value in facts.tags.items()],
            config={**facts.settings, "run_directory": str(facts.directory)},
            allow_val_change=True,
            dir=str(facts.directory),
            reinit="create_new",
            settings=wandb.Settings(
                # It is told what docs/trackers.md says, and neither the screen nor the code.
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
        if round >= self._run.starting_step:  # below are those that the service has
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
