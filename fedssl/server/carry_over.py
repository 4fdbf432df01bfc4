"""What a phase takes over from the last one: which weights start from which, and which begin anew."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.exchange.initial_state import initial_state
from fedssl.experiment.client_settings import ClientSettings
from fedssl.methods.base import Method, Previous
from fedssl.methods.fine_tune import HeadOnLayer
from fedssl.models.base import Classifier
from fedssl.server.initial_weights import load_initial_weights
from fedssl.training.network import classifier_names


@dataclass(frozen=True)
class CarryOver:
    """Which weights of the last phase's network the weights of a phase's network start from.

    Args:
        sources: Name in the phase's network -> name in what the last phase's method hands on (`Method.handed_on`).
        begun: Names of the weights that begin anew.
        keeps_names: Whether each weight whose name the last network has too starts from the weight of that name. If not,
            what a strategy remembers of its names belongs to other weights.
    """

    sources: Mapping[str, str]
    begun: tuple[str, ...]
    keeps_names: bool

    def numbers(self) -> dict[str, float]:
        """Return how many weights the phase takes over and how many begin anew, as numbers to record."""
        return {"weights_taken_over": len(self.sources), "weights_begun_anew": len(self.begun)}


def carry_over(settings: ClientSettings, network: nn.Module, previous: Previous) -> CarryOver:
    """Return what a phase takes over from the last phase; weights that clients do not share begin anew.

    Args:
        settings: The settings of the phase.
        network: The phase's network.
        previous: The last phase's network.

    Raises:
        InputError: The method cannot go on from what it takes over, or would lose a fine-tuned head.
    """
    assert settings.previous is not None, "a phase with a last network has a phase before it"
    method = settings.method
    own = shared_weights(network, method)
    last = shared_weights(previous.network, settings.previous.method)
    offered = settings.previous.method.handed_on(last)
    short = {
        name: key for key, name in classifier_names(method.classifier(network), network).items()
    }
    whole = classifier_names(previous.classifier, previous.network)
    sources = {}
    for name, tensor in own.items():
        source = _source(method.comes_from(short.get(name, name)), whole, offered)
        if source is not None and offered[source].shape == tensor.shape:
            sources[name] = source
    begun = tuple(name for name in own if name not in sources)
    method.check_carried(
        [short.get(name, name) for name in sources], [short.get(name, name) for name in begun]
    )
    _check_head(settings, [short.get(name, name) for name in begun], previous)
    keeps_names = all(sources.get(name) == name for name in own if name in last) and all(
        source in last for source in sources.values()
    )
    return CarryOver(sources, begun, keeps_names)


def _source(
    wanted: str | tuple[str, ...] | None, whole: Mapping[str, str], last: Mapping[str, Tensor]
) -> str | None:
    """Return the name of the weight that a weight starts from; None if the last phase's network has none of the names.

    Args:
        wanted: What `Method.comes_from` returned.
        whole: Name in the last phase's classifier -> name in its network.
        last: The weights that the last phase's method hands on.
    """
    names = (wanted,) if isinstance(wanted, str) else wanted or ()
    return next((whole.get(name, name) for name in names if whole.get(name, name) in last), None)


def _check_head(settings: ClientSettings, begun: Collection[str], previous: Previous) -> None:
    """Refuse to lose the head of a fine-tuned classifier that stands on a layer of a projection head.

    Args:
        settings: The settings of the phase.
        begun: Names of the weights that begin anew; those of the classifier are their names in it.
        previous: The last phase's network.

    Raises:
        InputError: The method would go on from the head, but its classifier of the same model has no such layer.
    """
    assert settings.previous is not None, "a phase with a last network has a phase before it"
    method, last = settings.method, previous.classifier
    if not isinstance(last, Classifier) or not isinstance(last.head, HeadOnLayer):
        return
    if settings.model != settings.previous.model:
        return
    if any(key.startswith("head.") and method.comes_from(key) is not None for key in begun):
        raise InputError(
            "method.kind",
            f"is {method.kind!r}, whose classifier would lose the head that the last phase learned: the head stands on a "
            "layer of a projection head, which only 'fine_tune' and 'distill' take over",
            "set method.start = 'backbone' in the phase with 'fine_tune'",
        )


def shared_weights(network: nn.Module, method: Method) -> dict[str, Tensor]:
    """Return the weights of a network that travel to the server, by name."""
    return {name: t for name, t in network.state_dict().items() if method.is_shared(name)}


def last_network(
    settings: ClientSettings, spec: ImageSpec, arrays: NamedArrays | None = None
) -> Previous | None:
    """Return the network of the last phase, frozen and in evaluation mode; None in the first phase.

    Args:
        settings: The settings of the phase that follows it.
        spec: What all images have in common.
        arrays: The weights that the last phase ended with. Weights that clients do not share keep their initial values;
            None: all weights do.
    """
    if settings.previous is None:
        return None
    previous = settings.previous.build(spec, settings.seed)
    if arrays is not None:
        protocol.load_network(previous.network, arrays, arrays)
    return previous


def check_network(settings: ClientSettings, spec: ImageSpec) -> nn.Module:
    """Return the network of a phase, if it can be built and can go on from what it takes over.

    Raises:
        InputError: The model or the method cannot take such images, or the phase cannot follow the last one.
    """
    network = settings.build_network(spec)
    previous = last_network(settings, spec)
    if previous is None:
        load_initial_weights(settings, network)
    else:
        carry_over(settings, network, previous)
    # The content of phase slots is made of the last phase's network, if there is one.
    classifier = None if previous is None else previous.classifier
    initial_state(settings.recipe, network, spec, "phase", classifier)
    return network
