"""What clients keep between rounds, and whether a run can be resumed: what they keep must outlive the run's process."""

from collections.abc import Collection, Iterator

from fedssl.core.errors import InputError
from fedssl.data.shard import ImageSpec
from fedssl.engine.client_grid import ClientGrid
from fedssl.experiment.experiment import Experiment
from fedssl.record.snapshot import Snapshot

COUNTED_ROUNDS = "counted-rounds"
"""Name, in a snapshot, of what the server of a deployment knows of the rounds that its clients keep."""


def can_resume(experiment: Experiment, grid: ClientGrid, spec: ImageSpec) -> bool:
    """Say whether all that resuming a run over a grid needs outlives the run's process."""
    return grid.states.outlive_run or not any(_kept_at_clients(experiment, spec, ("client",)))


def refuse_other_origin(
    experiment: Experiment, grid: ClientGrid, spec: ImageSpec, snapshot: Snapshot
) -> None:
    """Refuse to go on in a simulation with a deployment's run, or the other way round, if clients keep something.

    Raises:
        InputError: What clients keep is elsewhere: at the clients of a deployment, or in the checkpoint of a simulation.
    """
    if not any(_kept_at_clients(experiment, spec, ("client",))):
        return
    if grid.is_simulation and snapshot.clients is None:
        raise InputError(
            "--resume",
            "this run is a deployment's, and its clients keep something between rounds in folders of their own",
            "go on with it there: fedssl deploy run ... --resume",
        )
    if not grid.is_simulation and COUNTED_ROUNDS not in snapshot.kept:
        raise InputError(
            "--resume",
            "this run is a simulation's, whose checkpoint holds what its clients keep between rounds",
            "go on with it there: fedssl run ... --resume",
        )


def clients_keep(experiment: Experiment, spec: ImageSpec) -> bool:
    """Say whether clients keep anything between rounds, be it only what the server sends once a phase."""
    return any(_kept_at_clients(experiment, spec, ("client", "phase")))


def cannot_resume(experiment: Experiment, spec: ImageSpec) -> InputError:
    """Return the error that a run over a grid of Flower's own cannot be resumed."""
    kept = ", ".join(dict.fromkeys(_kept_at_clients(experiment, spec, ("client",))))
    return InputError(
        "--resume",
        f"clients keep something between rounds ({kept}), and under Flower's own runtime it is lost with the process",
        "set engine.kind = 'ray' or 'serial', which give the same bits",
    )


def _kept_at_clients(
    experiment: Experiment, spec: ImageSpec, scopes: Collection[str]
) -> Iterator[str]:
    """Yield what clients keep between rounds in any phase, and the section of the experiment file that is the reason.

    Args:
        experiment: The experiment.
        spec: What all images have in common.
        scopes: The scopes of slots that count.
    """
    for phase in experiment.plans:
        for section, slots in phase.recipe.slots_by_section.items():
            for slot in slots:
                if slot.scope in scopes:
                    yield f"the slot {slot.name!r} of [{section}]"
        network = phase.build_network(spec)
        if not all(phase.method.is_shared(name) for name in network.state_dict()):
            yield f"weights of their own, by [method] kind = {phase.method.kind!r}"
