"""Decide whether a run can be resumed: a checkpoint must hold all that clients keep, so this process must know it."""

from collections.abc import Iterator

from fedssl.core.errors import InputError
from fedssl.data.shard import ImageSpec
from fedssl.engine.client_grid import ClientGrid
from fedssl.experiment.experiment import Experiment


def can_resume(experiment: Experiment, grid: ClientGrid, spec: ImageSpec) -> bool:
    """Say whether a checkpoint of a run over a grid holds all that resuming needs."""
    return grid.is_simulation or not any(_kept_at_clients(experiment, spec))


def cannot_resume(experiment: Experiment, spec: ImageSpec) -> InputError:
    """Return the error that a run over a grid of Flower's own cannot be resumed."""
    kept = ", ".join(dict.fromkeys(_kept_at_clients(experiment, spec)))
    return InputError(
        "--resume",
        f"clients keep something between rounds ({kept}), and under Flower's own runtime it is lost with the process",
        "set engine.kind = 'ray' or 'serial', which give the same bits",
    )


def _kept_at_clients(experiment: Experiment, spec: ImageSpec) -> Iterator[str]:
    """Yield what clients keep between rounds in any phase, and the section of the experiment file that is the reason."""
    for phase in experiment.plans:
        for section, slots in phase.recipe.slots_by_section.items():
            for slot in slots:
                if slot.scope == "client":
                    yield f"the slot {slot.name!r} of [{section}]"
        network = phase.build_network(spec)
        if not all(phase.method.is_shared(name) for name in network.state_dict()):
            yield f"weights of their own, by [method] kind = {phase.method.kind!r}"
