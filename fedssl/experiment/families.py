"""Every family of plug-ins, by the section of the experiment file that names one of its members."""

from fedssl.augment.policy import CONTRAST, STRONG, WEAK, family_of_view
from fedssl.core.registry import Family, Plugin
from fedssl.data.features.base import FEATURE_SKEWS
from fedssl.data.federation import UNLABELED_PARTITIONS
from fedssl.data.label_noise.base import LABEL_NOISES
from fedssl.data.labels.base import LABEL_SPLITS
from fedssl.data.partitions.base import PARTITIONS
from fedssl.data.sources.base import SOURCES
from fedssl.experiment.sections import SERVER_METHODS, SERVER_OPTIMIZERS, SERVER_SCHEDULES
from fedssl.experiment.settings import view_at
from fedssl.experiment.system.section import SYSTEM_FAMILIES
from fedssl.methods.base import METHODS
from fedssl.metrics.evaluators.base import EVALUATORS
from fedssl.models.base import MODELS
from fedssl.training.correction import WithClientHalf
from fedssl.training.optimizers.base import OPTIMIZERS
from fedssl.training.schedules.base import SCHEDULES

STRATEGIES = Family("strategy", "fedssl.strategies", WithClientHalf, "strategy", default="fedavg")
TRACKERS = Family("tracker", "fedssl.views.trackers", Plugin, "tracker", default=None)

PLUGIN_SECTIONS = {
    family.section: family
    for family in (
        *(SOURCES, PARTITIONS, UNLABELED_PARTITIONS, LABEL_SPLITS, LABEL_NOISES, FEATURE_SKEWS),
        *(MODELS, METHODS, SERVER_METHODS, EVALUATORS, STRATEGIES, TRACKERS),
        *(WEAK, STRONG, CONTRAST),
        *(OPTIMIZERS, SCHEDULES, SERVER_OPTIMIZERS, SERVER_SCHEDULES, *SYSTEM_FAMILIES),
    )
}
"""The family of each section that every experiment has and that names a plug-in, by the section's dotted name."""


def family_at(section: str) -> Family | None:
    """Return the family of a section by its dotted name; None if the section names no plug-in."""
    view = view_at(section)
    return family_of_view(view) if view else PLUGIN_SECTIONS.get(section)
