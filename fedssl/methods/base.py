"""The interface of every semi-supervised method.

A method is a frozen section of hyper-parameters and, in the plain case, one pure function: `Method.loss`, which maps
views of labeled and unlabeled images to a scalar. `fedssl.training.loop.fit` does the rest. For each further need, a
method overrides one hook:

======================================================= ==========================================================
a method needs                                          it overrides
======================================================= ==========================================================
a loss over weak and strong views                       `views`, `loss`
a teacher (an average of the student)                   `slots` and `init_slot` to keep it, `after_step` to move it;
                                                        the slot's scope says whether it is reset each round, stays
                                                        with the client or travels through the server
the model as a function, gradients of the input         nothing: `loss` is given the network
mixed inputs, more views, labels in the unlabeled loss  `views` (any number), `loss` (it is given the whole batch)
a view of its own                                       `views`: ``"contrast"``, or the name of any ``[augment.NAME]`` of
                                                        the experiment file
pseudo-labels by its own or by the received model       nothing: `PseudoLabeling` has `guess`
predictions of its own and of the received model        nothing: `BothLabelers` holds the received weights, and
                                                        `predict_received` predicts with them
memory by example, kept between a client's rounds       a ``client`` slot of shape (n, ...); `Batch.unlabeled_ids` are
                                                        rows of it; `Loss.updates` writes it
memory by example for one round, such as its labels     a ``reset`` slot of shape (n, ...), written by `begin`
choice of the round's examples and of their labels      `pools`; empty pools mean that the client sits the round out
a number of its own in the record                       `loss`: `Loss.numbers`
running statistics, merged at the server                a ``server`` slot, written by `Loss.updates`: it comes back as
                                                        the slot's `Merge` says, by default as the cohort's weighted
                                                        mean (a ratio of sums is a ratio of two such means)
randomness in the loss (mixing, adversarial directions) nothing: `Batch.generator`
a second network, an extra head                         `network` (a module that holds them all), `classifier`
weights that never leave the client                     `is_shared` (those keys stay in the client's own slot)
weights that go to clients and do not come back         `is_sent_back` (the server's own values of them stay)
a part of the classifier that the server's labels move  `labeled_part` (the server trains only this part)
several optimizers, a step of its own                   `optimizers`, `step`
a queue or a bank of features                           a ``reset`` or ``client`` slot
a pass over the whole shard before the steps            `begin` (`Learner.show` shows it in order)
batches of its own beside the main ones                 `Learner.batches`
the weights as they were received                       `Learner.received`
gradients that move no weight                           `Learner.gradients`
something between its hooks, for this round only        `Learner.scratch`
something after the steps (statistics of BatchNorm)     `end`
more passes in a step, or before it, than its views     `images_per_step`, `images_before_steps`,
                                                        `images_before_first_round`, so that virtual time is right
no labels at all, or only the last layer                `views` with no labeled view; `optimizers` over some weights
given labels, but no labeled batches                    `learns_from_labels`
features only, and a head for a later phase             `trains_classifier`
the model of the last phase as a frozen teacher         a ``phase`` slot with the content `earlier.teacher_weights`, which
                                                        travels once; `earlier.teacher_logits` during the steps
a network made from the last phase's network            `builds_on_previous`, `network_after`
other weights of the last phase to start from           `comes_from`; `check_carried` says what must be among them
a classifier made of several weights, for a later phase `handed_on`
======================================================= ==========================================================
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.augment.base import Probe
from fedssl.augment.policy import PLAIN
from fedssl.core.errors import NothingLearned
from fedssl.core.numbers import check_names
from fedssl.core.registry import Family, Plugin
from fedssl.core.slots import Slot, State, Tensors
from fedssl.data.shard import ImageSpec, Shard
from fedssl.methods.functional import snapshot
from fedssl.models.base import Classifier, WithFeatures

FORWARD = 1 / 3
"""Work of a pass without gradients as a share of a pass with gradients, whose backward half takes about twice as long."""

Weight = TypeVar("Weight", Tensor, npt.NDArray[Any])
"""A weight of a network, as torch or as numpy holds it."""

View = str
"""How an image is shown: the name of a section ``[augment.NAME]``, such as ``"weak"``, ``"strong"`` or ``"contrast"``;
``"plain"`` shows the image as it is."""


@dataclass(frozen=True)
class Views:
    """The views that a step needs.

    Args:
        labeled: Kinds of views of the labeled batch, one entry per view.
        unlabeled: Kinds of views of the unlabeled batch; empty if the method uses no unlabeled images.
        ratio: mu, the number of unlabeled examples for each labeled example.
        others: Kinds of views that the method's hooks show beside those of the steps (`Learner.show`, `Learner.batches`).
            They are named here so that a view without a section is found before the run.
    """

    labeled: tuple[View, ...] = ("weak",)
    unlabeled: tuple[View, ...] = ()
    ratio: int = 1
    others: tuple[View, ...] = ()

    @property
    def names(self) -> frozenset[View]:
        """The kinds of views that need a section: all but the plain view."""
        return frozenset({*self.labeled, *self.unlabeled, *self.others} - {PLAIN})


@dataclass(frozen=True)
class Batch:
    """One step's examples, augmented and normalized.

    Args:
        labeled: Views of the labeled batch, each (B, C, H, W); B is 0 at a client without labels.
        labels: Classes of the labeled batch, int64 (B,); or the targets that the round's `Pools` give it.
        labeled_ids: Rows of the labeled batch in the shard, int64 (B,).
        unlabeled: Views of the unlabeled batch, each (mu B, C, H, W).
        unlabeled_ids: Rows of the unlabeled batch in the shard, int64 (mu B,).
        generator: Source of the loss's own draws, such as MixUp's, on the images' device.
        probes: The labeled batch as each augmentation that learns shows it, by the name of the augmentation's slot;
            methods do not use them.
    """

    labeled: tuple[Tensor, ...]
    labels: Tensor
    labeled_ids: Tensor
    unlabeled: tuple[Tensor, ...]
    unlabeled_ids: Tensor
    generator: torch.Generator
    probes: Mapping[str, Probe] = field(default_factory=dict)


@dataclass(frozen=True)
class Pools:
    """The examples that batches are drawn from.

    Args:
        labeled: Ids of the examples of labeled batches, int64 (n_l,); an id may be there several times.
        unlabeled: Ids of the examples of unlabeled batches, int64 (n_u,).
        targets: Labels of `labeled`, in its order: classes, int64 (n_l,), or probabilities (n_l, num_classes). None:
            the labels that the client was given.
        replacement: Which pools are drawn from with replacement: neither pool, the labeled pool, or both. Without
            replacement, batches come from shuffled passes over the pool. If only the labeled pool is drawn from with
            replacement, an epoch is one pass over the unlabeled pool.
        gives_pseudo_labels: Whether the method gives pseudo-labels in this round. False, in a warm-up for example: the
            examples that a client leaves out when it sits the round out do not count in the coverage of pseudo-labels.
    """

    labeled: Tensor
    unlabeled: Tensor
    targets: Tensor | None = None
    replacement: Literal["none", "labeled", "both"] = "none"
    gives_pseudo_labels: bool = True

    def __len__(self) -> int:
        return len(self.labeled) + len(self.unlabeled)


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    Args:
        round: Round of this phase, from 1.
        num_rounds: Rounds of this phase.
        step: Local step, from 0.
        num_steps: Local steps of this round.
    """

    round: int
    num_rounds: int
    step: int
    num_steps: int

    @property
    def global_step(self) -> int:
        """Number of steps before this step, over all rounds of the phase."""
        return (self.round - 1) * self.num_steps + self.step

    @property
    def fraction(self) -> float:
        """Share of the phase that is over, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self.num_rounds * self.num_steps))

    def is_within(self, share: float) -> bool:
        """Say whether the round is one of the phase's first rounds, such as those of a warm-up.

        Args:
            share: Share of the phase's rounds, in [0, 1]; a round counts that begins before this share is over.
        """
        return (self.round - 1) / self.num_rounds < share


@dataclass(frozen=True)
class Loss:
    """The result of a method's loss for one step.

    Args:
        total: The scalar to minimize.
        pseudo_labels: Class that the method gave each unlabeled example, int64 (mu B,); None if it gave none.
        accepted: Weight in [0, 1] of each pseudo-label, shape (mu B,); given together with `pseudo_labels`.
        updates: Detached tensors, by slot and name, that replace the state's tensors after the step.
        numbers: Measurements to record: scalars by name, such as ``{"threshold": threshold}``. The record holds the mean of
            each over the steps of a round, one row for every client and round. Steps in which a number is NaN do not count.
    """

    total: Tensor
    pseudo_labels: Tensor | None = None
    accepted: Tensor | None = None
    updates: State = field(default_factory=dict)
    numbers: Mapping[str, Tensor] = field(default_factory=dict)


NO_GRADIENT = (
    "Loss.total has no gradient, so the network does not learn: compute it from network(...), without detach() and outside "
    "of torch.no_grad(); a round in which a client is to learn nothing has empty pools"
)


def check_loss(loss: Loss, batch: Batch, state: State) -> None:
    """Raise an error if the result of a method's loss is not valid.

    A loss without a gradient is valid where a method has nothing to learn from, such as at a client without labels, and
    where it only updates the state.

    Args:
        loss: The result of the method's loss.
        batch: The batch that the loss was given.
        state: The state that the loss may update.

    Raises:
        TypeError, ValueError: The loss is not valid; the message tells the author of the method what is wrong.
    """
    if not isinstance(loss, Loss):
        raise TypeError(f"a method's loss must return a Loss, not {type(loss).__name__}")
    if loss.total.dim() != 0:
        raise ValueError(f"Loss.total must be a scalar, not of shape {tuple(loss.total.shape)}")
    learned_from = batch.labels if batch.labeled else batch.unlabeled_ids
    if not loss.total.requires_grad and len(learned_from) and not loss.updates:
        raise NothingLearned(NO_GRADIENT)
    shape = batch.unlabeled_ids.shape
    for name, tensor in (("pseudo_labels", loss.pseudo_labels), ("accepted", loss.accepted)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"Loss.{name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}"
            )
    if loss.accepted is not None and not _are_shares(loss.accepted):
        raise ValueError("Loss.accepted must lie between 0 and 1")
    check_names(loss.numbers)
    for name, tensor in loss.numbers.items():
        if not isinstance(tensor, Tensor) or tensor.dim() != 0:
            raise ValueError(f"Loss.numbers[{name!r}] must be a tensor that holds one number")
    for slot, tensors in loss.updates.items():
        if slot not in state:
            raise ValueError(f"Loss.updates names slot {slot!r}; declared are: {', '.join(state)}")
        for name, tensor in tensors.items():
            before, where = state[slot].get(name), f"Loss.updates[{slot!r}][{name!r}]"
            if before is None or before.shape != tensor.shape or before.dtype != tensor.dtype:
                raise ValueError(f"{where} is not of the name, shape and type that init_slot gave")
            if tensor.requires_grad:
                raise ValueError(f"{where} carries a gradient; detach it")


def _are_shares(values: Tensor) -> bool:
    """Return whether all values lie in [0, 1]; NaN does not."""
    if not values.numel():
        return True
    least, most = values.detach().double().aminmax()
    return float(least) >= 0 and float(most) <= 1


@dataclass(frozen=True)
class Previous:
    """The network of the last phase.

    Args:
        network: The whole network, as the last phase's method made it.
        classifier: The part of it that maps images to logits.
    """

    network: nn.Module
    classifier: nn.Module


@dataclass(frozen=True)
class Fresh:
    """What a slot's first content is made from.

    Args:
        network: Network with the current global weights.
        spec: What the images have in common.
        shard: The client's examples; None at the server, which makes ``server`` and ``phase`` slots without any client's
            examples.
        previous: The classifier of the last phase's network with its final global weights, frozen and in evaluation
            mode; None in the first phase. Only the server has it, so only ``phase`` and ``server`` slots are made of it.
    """

    network: nn.Module
    spec: ImageSpec
    shard: Shard | None
    previous: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        """Device of the network, on which the content of slots lives too."""
        return next(self.network.parameters()).device


class Show(Protocol):
    """Shows examples once, in order, each in one view."""

    def __call__(
        self, view: View, ids: Tensor | None = None, *, name: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the ids (B,) and the normalized images (B, C, H, W) of some examples.

        Args:
            view: How the images are shown.
            ids: Examples to show, int64; by default the whole shard in order.
            name: Name of the pass. It has a random stream of its own, so it cannot shift the draws of the steps.
        """


class Batches(Protocol):
    """Makes further batches beside those that every step is given."""

    def __call__(self, pools: Pools, views: Views, *, name: str) -> Iterator[Batch]:
        """Yield one batch for each step of the round, with random streams of its own.

        Args:
            pools: Examples that the batches are drawn from.
            views: Views of the batches.
            name: Name of the batches' streams.
        """


@dataclass
class Learner:
    """One client's training in one round, as a method's hooks see it.

    Args:
        network: The module being trained, in training mode.
        optimizers: Optimizers by name; ``"main"`` unless the method made others.
        state: The method's state; hooks write it in place.
        shard: The client's examples.
        progress: How far the round has come; `fit` updates it.
        stream: Function that returns the generator for a purpose, derived from (seed, purpose, round, client).
        descend: Function that takes one step of the named optimizer down a scalar, clipped as the experiment says.
        gradients: Function that returns the gradients of a scalar for the named optimizer's parameters, by the
            parameters' names in the network; nothing moves.
        show: Function that shows examples once, in order.
        batches: Function that makes further batches.
        extra: Arrays that the strategy sent to this client alone, as tensors: record -> name -> tensor.
        scratch: Notes that a method's hooks leave for each other within this round.
        previous: The classifier of the last phase's network, frozen and in evaluation mode. Its own weights mean nothing:
            a method calls it with the weights of its ``phase`` slot (`fedssl.methods.earlier`). None in the first phase
            and for methods without ``phase`` slots.
    """

    network: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    state: State
    shard: Shard
    progress: Progress
    stream: Callable[[str], torch.Generator]
    descend: Callable[[Tensor, str], None]
    gradients: Callable[[Tensor, str], Tensors]
    show: Show
    batches: Batches
    extra: Mapping[str, Tensors] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)
    previous: nn.Module | None = None

    @functools.cached_property
    def received(self) -> Tensors:
        """The parameters and buffers as the client received them, by name; they must not be written to.

        Ask for them before the first step, in `Method.begin` for example, because the copy is made then.

        Raises:
            RuntimeError: The round's first step is over, and the network holds other weights.
        """
        if self.progress.step > 0:
            raise RuntimeError("ask for Learner.received before the first step of a round")
        return snapshot(self.network)


class Method(Plugin):
    """A semi-supervised method: hyper-parameters, the views that it needs, and a pure loss.

    Example:
        A new method defines `views` and `loss`:

        >>> class EntropyMinimization(Method):
        ...     def views(self):
        ...         return Views(labeled=(), unlabeled=("weak",))
        ...     def loss(self, network, batch, state, progress):
        ...         log_probs = network(batch.unlabeled[0]).log_softmax(1)
        ...         return Loss(-(log_probs.exp() * log_probs).sum(1).mean())
        >>> method = EntropyMinimization()
        >>> method.views().unlabeled, method.can_learn(num_labeled=0)
        (('weak',), True)
    """

    is_abstract: ClassVar[bool] = True
    group: ClassVar[str] = "other"
    """The sort of methods to which this one belongs, in the field's terms; `fedssl list methods` groups by it."""

    partner: ClassVar[str] = ""
    """Strategy that is the server's half of the same system; empty if the method is a system by itself. The method must
    run under other strategies too, and such a run says that it is half a system."""

    trains_classifier: ClassVar[bool] = True
    """Whether the method trains the classes' head. If not, its phases learn features only: a server that holds labels
    does not train in them, and the classifier's accuracy is chance."""

    needs_labels_at_clients: ClassVar[bool] = False
    """Whether a run may begin with the method only if some client holds labels. The server's labels reach the classifier
    alone, so another network of the method would never see a label."""

    is_elementwise: ClassVar[bool] = False
    """Whether `after_step` treats each number of the weights and of the state alike and by itself, as a moving average does.
    Then one call can do it for several small clients, whose weights are stacked. It may read `Learner.network`'s parameters,
    `Learner.state`, `Learner.progress` and `Learner.scratch`, and nothing else."""

    @abstractmethod
    def views(self) -> Views:
        """Return the views that every step needs."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return the loss of one step; write to nothing but the network's own buffers.

        The total has a gradient for the network's weights if the batch holds labeled images, or if the method has no labeled
        views. Only a loss that updates the state may have none.
        """

    @property
    def learns_from_labels(self) -> bool:
        """Whether the labels that a client was given change what it learns; by default, they do in labeled views only."""
        return bool(self.views().labeled)

    def check(self, spec: ImageSpec) -> None:
        """Raise `InputError` if the method cannot work on such images; by default it can."""

    def can_learn(self, num_labeled: int) -> bool:
        """Say whether a client with this number of labels has anything to learn from; if not, it takes no step.

        By default, a client has if it holds a label or if the method uses unlabeled images.
        """
        return num_labeled > 0 or bool(self.views().unlabeled)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step, in images that one network trains on; virtual time is computed from it.

        A pass with gradients counts 1 for each image and each network, and a pass without gradients counts `FORWARD`. By
        default, there is a pass with gradients for every view. A method whose passes are others says so here.

        Args:
            num_labeled: Images of a labeled batch, B; 0 at a client without labels.
            num_unlabeled: Images of an unlabeled batch, mu B.
        """
        views = self.views()
        return num_labeled * len(views.labeled) + num_unlabeled * len(views.unlabeled)

    def images_before_steps(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of `begin` at a client, such as a pass over the shard, in the same unit; by default 0.

        Args:
            num_labeled, num_examples: Number of the client's labeled and of all its images.
        """
        return 0.0

    def images_before_first_round(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of `begin` that a client has in its first round of a phase only, in the same unit; by default 0.

        The server knows a client's first round by the method's ``phase`` slot; without such a slot, every round has it.

        Args:
            num_labeled, num_examples: Number of the client's labeled and of all its images.
        """
        return 0.0

    def slots(self) -> tuple[Slot, ...]:
        """Return the slots of the method's state; none by default."""
        return ()

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Return a slot's first content.

        Args:
            name: Name of the slot.
            fresh: What the content is made from, such as the current global weights.
        """
        raise NotImplementedError(f"{self.kind} declares slot {name!r} but does not make it")

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Return the module that is trained and federated; `build` makes one classifier."""
        return build()

    @property
    def builds_on_previous(self) -> bool:
        """Whether the network is made by `network_after`, from the network of the last phase; by default it is not."""
        return False

    def network_after(self, build: Callable[[], Classifier], previous: Previous) -> nn.Module:
        """Return the module that is trained and federated in a phase that goes on from the last phase's network.

        This hook is called in place of `network` if `builds_on_previous`, in every phase but the first.

        Args:
            build: Makes one classifier of the phase's own model.
            previous: The last phase's network. Its weights mean nothing: `comes_from` says which of them the new network
                starts from. Its modules may become a part of the new network.
        """
        raise NotImplementedError(
            f"{self.kind} builds on the last phase's network but does not say how"
        )

    def comes_from(self, key: str) -> str | tuple[str, ...] | None:
        """Return the name of the weight in the last phase's network that a weight starts from; None: it begins anew.

        By default it is the same name. Of several names, the first that the last phase's network has is taken. A weight
        that is not there, or has another shape there, begins anew.

        Args:
            key: Name of the weight in the phase's network. Weights of the classifier have their names in the classifier
                here, in both networks, whatever module each method puts its classifier into.
        """
        return key

    def handed_on(self, weights: Mapping[str, Weight]) -> Mapping[str, Weight]:
        """Return the weights that a phase after one of this method may start from, by name; by default they are the same.

        A method whose network is not the classifier and weights beside it adds the classifier's weights, by their names in
        the classifier.

        Args:
            weights: The shared weights of the network, as tensors or arrays.
        """
        return weights

    def check_carried(self, carried: Collection[str], begun: Collection[str]) -> None:
        """Raise `InputError` if a phase after another cannot start from what it takes over; by default it can.

        Args:
            carried: Names, as `comes_from` is given them, of the weights that start from the last phase's weights.
            begun: Names of the weights that begin anew.
        """

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the part of the network that maps images to logits and has features; judges use this part."""
        return network

    def labeled_part(self, network: nn.Module) -> nn.Module:
        """Return the module that a server trains on its own labels; by default the classifier.

        It maps images to logits, as the classifier does, and may hold a part of the classifier's parameters only.
        """
        return self.classifier(network)

    def representations(self, network: nn.Module) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return what judges of features may look at: name -> function from normalized images to features (B, width).

        By default, there is one entry, ``"backbone"``: the features of the classifier.
        """
        classifier = self.classifier(network)
        if not isinstance(classifier, WithFeatures):
            raise TypeError(
                f"the classifier of {self.kind} has no features; derive its class from WithFeatures"
            )
        return {"backbone": classifier.features}

    def is_shared(self, key: str) -> bool:
        """Say whether a key of the network's state dict travels to the server."""
        return True

    def is_sent_back(self, name: str) -> bool:
        """Say whether a shared parameter comes back from the clients; if not, the server's own value of it stays.

        Buffers, such as the statistics of normalizations, always come back.
        """
        return True

    def optimizers(
        self,
        network: nn.Module,
        make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    ) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers of a round; `make` builds the experiment's optimizer over some parameters."""
        return {"main": make(network.parameters())}

    def begin(self, learner: Learner) -> None:
        """Do something before the first step of a round, such as a pass over the shard."""

    def pools(self, learner: Learner) -> Pools | None:
        """Return the examples of this round's batches, after `begin`.

        None, the default: labeled batches come from the labeled examples, unlabeled batches from all examples. Pools
        without any example: the client sits the round out. It takes no step, sends no weights, and does not count in
        the mean.
        """
        return None

    def step(self, learner: Learner, batch: Batch) -> Loss:
        """Take one step; by default, the main optimizer takes one step down the loss."""
        loss = self.loss(learner.network, batch, learner.state, learner.progress)
        if (
            learner.progress.step == 0
        ):  # a loss that is valid at a round's first step is valid at all
            check_loss(loss, batch, learner.state)
        learner.descend(loss.total, "main")
        for slot, tensors in loss.updates.items():
            learner.state[slot].update(tensors)
        return loss

    def after_step(self, learner: Learner, batch: Batch, loss: Loss) -> None:
        """Do something after every step, such as moving a teacher; `loss` is what `step` returned for `batch`."""

    def end(self, learner: Learner) -> None:
        """Do something after the last step of a round."""


class SemiSupervised(Method):
    """A method whose loss is the supervised loss plus a weighted loss on unlabeled images.

    With ``unlabeled_weight = 0`` such a method is supervised training bit for bit, as long as the network keeps no
    batch statistics: the labeled pass comes first, alone, and every draw has a stream of its own.

    By default, the views are those of FixMatch: a weak view of labeled images, a weak and a strong view of unlabeled
    images.
    """

    is_abstract: ClassVar[bool] = True

    unlabeled_weight: float = Field(1.0, ge=0, description="lambda_u, weight of the unlabeled loss")
    unlabeled_ratio: int = Field(7, ge=1, description="mu, unlabeled images for each labeled one")

    def views(self) -> Views:
        """Ask for a weak view of the labeled batch, a weak and a strong view of the unlabeled batch."""
        return Views(("weak",), ("weak", "strong"), self.unlabeled_ratio)

    def can_learn(self, num_labeled: int) -> bool:
        """Say yes to a client without labels too, unless the unlabeled loss has no weight."""
        return num_labeled > 0 or self.unlabeled_weight > 0


METHODS = Family("method", "fedssl.methods", Method, "method", default="fixmatch")
