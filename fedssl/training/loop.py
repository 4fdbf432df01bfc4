"""The local loop: a client trains the weights that the server sent, for one round."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from fedssl.core import rng
from fedssl.core.slots import State, Tensors
from fedssl.data.shard import Shard
from fedssl.methods.base import Batch, Learner, Pools, Progress
from fedssl.methods.functional import ema_update, predict, snapshot, warm_decay
from fedssl.metrics.means import StepMeans
from fedssl.metrics.pseudo_labels import PseudoLabelTally, pseudo_label_coverage
from fedssl.models.modes import evaluation_mode, modules_of
from fedssl.models.static_norm import measure_statistics
from fedssl.training.batches import plain_batches
from fedssl.training.judged import Judged
from fedssl.training.learner_functions import LearnerFunctions
from fedssl.training.optimization import BoundCorrection, Descent
from fedssl.training.optimizer_set import OptimizerSet
from fedssl.training.recipe import Recipe, shared_parameters
from fedssl.training.team import current_team, sharing_rows


@dataclass(frozen=True)
class FitReport:
    """The measurements of a client's round.

    Args:
        num_steps: Number of steps that the client took.
        loss: Mean of the total loss over the steps; NaN if there were no steps.
        considered: Number of examples whose pseudo-labels are measured (see `fedssl.training.judged.Judged`) that the
            steps showed, repetitions included. If the method left some of them out of its pools, all of them count as
            often as if the steps had drawn from all examples of the client, also if the client sat the round out.
        accepted: Summed weight of the accepted pseudo-labels of these examples; 0 for an example that was left out.
        judged: Summed weight of the accepted pseudo-labels whose true class the simulator knows.
        right: Summed weight of the judged pseudo-labels that match the true class.
        seconds: Duration of the round's training in seconds.
        by_class: Considered, accepted, predicted and right pseudo-labels of every class, 4 C numbers; see
            `fedssl.metrics.pseudo_labels.count_by_class`.
        numbers: Means of `Loss.numbers` over the steps, by name.
        is_inactive: Whether the client sat the round out, because its method found nothing to train on.
    """

    num_steps: int
    loss: float
    considered: float
    accepted: float
    judged: float
    right: float
    seconds: float
    by_class: Sequence[float]
    numbers: Mapping[str, float] = field(default_factory=dict)
    is_inactive: bool = False

    def num_confident(self, num_labeled: int, num_examples: int) -> float:
        """Return the number of labeled examples plus the estimated number of examples with an accepted pseudo-label."""
        if not self.considered:
            return float(num_labeled)
        coverage = pseudo_label_coverage(self.considered, self.accepted)
        return num_labeled + coverage * (num_examples - num_labeled)


def fit(
    network: nn.Module,
    shard: Shard,
    recipe: Recipe,
    state: State,
    *,
    seed: int,
    server_round: int,
    client: int,
    phase_round: int,
    phase_rounds: int,
    optimizers: OptimizerSet | None = None,
    extra: Mapping[str, Tensors] | None = None,
    previous: nn.Module | None = None,
) -> FitReport:
    """Train a network on one client's shard, in place.

    Args:
        network: Holds the weights that the server sent; afterwards it holds the trained weights.
        shard: The client's examples, on the network's device.
        recipe: The method, the optimization and the augmentations.
        state: Contents of every slot of the recipe; training changes them in place.
        seed, server_round, client: Name the client's random streams of this round.
        phase_round, phase_rounds: The round's number in its phase and the phase's length, for schedules and ramps.
        optimizers: The method's optimizers over this network; the last client may have used them. None: make new ones.
        extra: What the strategy sent to this client alone; see `Learner.extra`.
        previous: The classifier of the last phase's network; see `Learner.previous`.
    """
    # Find the views that the method asks for, and the number of steps for this shard.
    began = time.perf_counter()
    method, train, correction = recipe.method, recipe.train, recipe.correction
    device = shard.images.device
    views = method.views()
    num_steps = recipe.num_steps(len(shard.labeled), len(shard))
    num_draws = num_steps * train.batch_size * views.ratio if views.unlabeled else 0

    def stream(purpose: str) -> torch.Generator:
        return rng.make_generator(seed, purpose, round=server_round, client=client, device=device)

    # Put the optimizers back to their first state, so that nothing of the last client remains; then load kept momentum.
    if optimizers is None:
        optimizers = recipe.optimizers(network)
    optimizers.forget()
    for slot in train.slots():
        optimizers.restore(state[slot.name])
    # Bind everything that the hooks of the method and of the correction may use. No hook sees the truth.
    seen = shard.without_truth()
    descent = Descent(optimizers, train, device)
    functions = LearnerFunctions(network, seen, recipe, state, descent, stream)
    learner = Learner(
        network=network,
        optimizers=dict(optimizers),
        state=state,
        shard=seen,
        progress=Progress(phase_round, phase_rounds, 0, num_steps),
        stream=stream,
        descend=descent,
        gradients=functions.gradients,
        show=functions.show,
        batches=functions.batches,
        extra=extra or {},
        previous=previous,
    )
    functions.learner = learner
    if correction is not None:
        shared = shared_parameters(method, network)
        descent.correct_with(BoundCorrection(correction, learner, shared))
    # Start the moving average of the weights and the sums of what is measured.
    average = None if train.ema_decay is None else snapshot(network)
    tally = PseudoLabelTally(1, shard.spec.num_classes)
    total = torch.zeros((), dtype=torch.float64, device=device)
    numbers = StepMeans()
    # Take the steps: labeled views (B, C, H, W), unlabeled views (mu B, C, H, W). Without steps, no hook runs.
    noise = rng.derive_seed(seed, "dropout", round=server_round, client=client)
    pools: Pools | None = None
    # Setting the mode writes to every module, so it is done only if an evaluation went before.
    if not all(module.training for module in modules_of(network)):
        network.train()
    team, networks = current_team(), [network] if previous is None else [network, previous]
    with (
        rng.seeded_torch(noise, device),
        train.autocast(device),
        sharing_rows(team, networks),
    ):
        if num_steps:
            if correction is not None:
                correction.begin(learner)
            method.begin(learner)
            pools = method.pools(learner)
        judged = Judged(shard, pools)
        if pools is not None:
            if not len(pools):
                judged.count_left_out(tally, num_draws)
                return sit_out(tally, time.perf_counter() - began)
            passed = 0 if pools.replacement == "labeled" else len(pools.labeled)
            num_steps = train.num_steps(passed, len(pools.unlabeled), views)
            learner.progress = Progress(phase_round, phase_rounds, 0, num_steps)
        for step, batch in enumerate(functions.main_batches(pools, num_steps)):
            # Each step has its own dropout stream, and the labeled pass draws first. So unlabeled passes cannot shift
            # the draws of the next step.
            rng.reseed(noise + step, device)
            learner.progress = Progress(phase_round, phase_rounds, step, num_steps)
            _learn_augmentation(recipe, learner, batch)
            descent.set_lr(learner.progress)
            loss = method.step(learner, batch)
            method.after_step(learner, batch, loss)
            if average is not None and train.ema_decay is not None:
                ema_update(average, network, warm_decay(train.ema_decay, step))
            total += loss.total.detach()
            numbers.add(loss.numbers)
            judged.count(tally, loss, batch)
        if num_steps:
            method.end(learner)
    # The client sends its moving average if there is one. Static batch normalization measures with the sent weights; a
    # method that keeps the network in evaluation mode keeps its statistics.
    if average is not None:
        network.load_state_dict(average)
    if num_steps and network.training:
        measure_statistics(network, plain_batches(shard))
    if num_steps and correction is not None:
        correction.end(learner)
    if team.size > 1:
        kept = (tensor for tensors in state.values() for tensor in tensors.values())
        team.refuse_difference([*network.state_dict().values(), *kept])
    # Keep the optimizers' state for the client's next round, and report.
    for slot in train.slots():
        state[slot.name] = optimizers.tensors()
    judged.count_left_out(tally, num_draws)
    (counts,), (by_class,) = tally.counts(), tally.by_class()
    mean_loss = float(total) / num_steps if num_steps else float("nan")
    seconds = time.perf_counter() - began
    means = {name: float(mean) for name, mean in numbers.means().items()}
    return FitReport(num_steps, mean_loss, *counts, seconds, by_class, means)


def sit_out(tally: PseudoLabelTally, seconds: float) -> FitReport:
    """Return the report of a client that took no step, because its method found nothing to train on.

    Args:
        tally: Counts of the examples that the method left out, which are all.
        seconds: Duration of the client's look at its examples (seconds).
    """
    (counts,), (by_class,) = tally.counts(), tally.by_class()
    return FitReport(0, float("nan"), *counts, seconds, by_class, is_inactive=True)


def _learn_augmentation(recipe: Recipe, learner: Learner, batch: Batch) -> None:
    """Let augmentations learn from how well the network, in evaluation mode, recognizes their probes of labeled images.

    Reference: Berthelot et al. (ReMixMatch), ICLR 2020, section 3.2.2.
    """
    for slot, probe in batch.probes.items():
        classifier = recipe.method.classifier(learner.network)
        with evaluation_mode(learner.network):
            probs = predict(classifier, learner.shard.spec.normalize(probe.views))
        # The paper's match 1 - |p - y|_1 / 2 equals p_y, because p sums to 1.
        classes = batch.labels if batch.labels.dim() == 1 else batch.labels.argmax(1)
        match = probs.gather(1, classes.unsqueeze(1)).squeeze(1)
        learner.state[slot] = recipe.augment.learned[slot].learn(learner.state[slot], probe, match)
