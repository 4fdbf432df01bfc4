"""A description of a run in one line: its methods, clients, labels and images."""

import numpy as np

from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment

MOST = 0.5
"""Clients without labels that have more than this share of the weight in a mean decide it."""


def describe(experiment: Experiment, federation: Federation) -> str:
    """Return a line that describes a run: its methods, clients, labels and images."""
    section = experiment.federation
    if section.private or federation.sites:
        return _describe_own_images(experiment, federation)
    labeled = f"{int(federation.labeled.sum()):,} labels"
    if section.labels.kind != "at_clients":
        labeled += f" ({section.labels.kind})"
    methods = [plan.method.kind for plan in experiment.plans]
    laws = section.partition.kind
    if section.unlabeled_partition is not None:
        laws += f", unlabeled {section.unlabeled_partition.kind}"
    if section.features is not None:
        laws += f", {section.features.kind} by client"
    if section.label_noise is not None:
        labeled += f", {section.label_noise.rate:.0%} of them wrong ({section.label_noise.kind})"
    return (
        f"{' then '.join(dict.fromkeys(methods))} on {experiment.data.kind}: "
        f"{section.clients:,} clients ({laws}), {section.sample} a round, "
        f"{labeled} on {len(federation.owner):,} images, {experiment.num_rounds} rounds, "
        f"seed {experiment.seed}"
    )


def _describe_own_images(experiment: Experiment, federation: Federation) -> str:
    """Return the line of a run whose clients bring their images, or whose sites do in a simulation."""
    section, at_server = experiment.federation, len(federation.server_rows)
    methods = [plan.method.kind for plan in experiment.plans]
    labels = f", {at_server:,} labels at the server" if at_server else ""
    clients = f"{section.clients:,} clients with private data"
    if federation.sites:
        sizes, labeled = federation.sizes, federation.labeled_sizes
        clients = (
            f"{section.clients:,} sites with {sizes.sum():,} images and {labeled.sum():,} labels"
        )
    return (
        f"{' then '.join(dict.fromkeys(methods))}: {clients}, {section.sample} a "
        f"round{labels}, evaluated on {len(federation.held_out):,} images of {experiment.data.kind}, "
        f"{experiment.num_rounds} rounds, seed {experiment.seed}"
    )


def remarks_on_systems(experiment: Experiment) -> list[str]:
    """Return a sentence for each method or strategy that runs without the other half of its system."""
    remarks = []
    for plan in experiment.plans:
        method, strategy = plan.method, plan.strategy
        pairs = (("method", method, "strategy", strategy), ("strategy", strategy, "method", method))
        remarks += [
            f"{name}.kind = {half.kind!r} is half a system: its other half is {other}.kind = {half.partner!r}, and here it "
            f"is {found.kind!r}."
            for name, half, other, found in pairs
            if half.partner not in ("", found.kind)
        ]
    return list(dict.fromkeys(remarks))


def remarks_on_means(experiment: Experiment, federation: Federation) -> list[str]:
    """Return a sentence if clients without labels have most of the weight in the mean of the models, though other clients hold labels."""
    sizes, labeled = federation.sizes, federation.labeled_sizes
    if not labeled.any():
        return []
    remarks = []
    for strategy in (plan.strategy for plan in experiment.plans):
        weight = getattr(strategy, "weight", "")
        if weight not in ("all", "uniform"):
            continue
        weights = sizes if weight == "all" else np.ones_like(sizes)
        share = weights[labeled == 0].sum() / weights.sum()
        if share > MOST:
            remarks.append(
                f"{(labeled == 0).sum()} of {len(sizes)} clients hold no label and have {share:.0%} of the weight in the mean of the "
                f"models (strategy.weight is {weight!r}); with 'labeled' only labels count."
            )
    return list(dict.fromkeys(remarks))


def remarks_on_data(federation: Federation) -> list[str]:
    """Return sentences about the data, one a line: how it was read, and which images were left out."""
    data = federation.data
    return [*data.remarks, *(f"left out: {note}" for note in data.notes)]
