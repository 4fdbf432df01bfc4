"""The file of weights that `model.weights` names: a file, the one in a run's folder, or one of torchvision's."""

import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.extras import require

SETTING = "model.weights"

IN_A_RUN = "ema.safetensors"
"""A run's folder stands for this file in it: the moving average of the global model, which `fedssl predict` uses, too."""

TORCHVISION = "torchvision:"
"""Weights of torchvision begin with this; their name follows, such as ``DEFAULT``."""

AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\.")
"""Names of weights of auxiliary heads, which our classifiers do not have."""


def find_weights(weights: str, kind: str) -> Path:
    """Return the file that holds weights.

    Args:
        weights: The setting: a path, or ``torchvision:NAME``.
        kind: Kind of the model.

    Raises:
        InputError: There is no such file on this machine. Nothing is downloaded.
    """
    if weights.startswith(TORCHVISION):
        return _find_torchvision(weights.removeprefix(TORCHVISION), kind)
    path = Path(weights)
    if path.is_dir():
        path = path / IN_A_RUN
        if not path.is_file():
            problem = f"{weights} is a folder without {IN_A_RUN}"
            raise InputError(SETTING, problem, "name the folder of a finished run, or a file")
    if not path.is_file():
        raise InputError(SETTING, f"there is no file {path.absolute()}", "check the path")
    if path.suffix != ".safetensors":
        raise InputError(
            SETTING,
            f"{path} is no .safetensors file",
            "write one: safetensors.torch.save_file(model.state_dict(), PATH)",
        )
    return path


def torchvision_names(kind: str) -> dict[str, str]:
    """Return the name that each weight of a torchvision classifier has in ours, without auxiliary heads.

    Args:
        kind: Kind of the model, ``torchvision:NAME``.
    """
    from torchvision import models

    with torch.device("meta"):
        backbone = models.get_model(kind.removeprefix(TORCHVISION), weights=None)
    names = [name for name in backbone.state_dict() if not AUXILIARY.match(name)]
    if isinstance(backbone, models.SqueezeNet):
        places = (("features.", "trunk.backbone."), ("classifier.", "head.0."))
    else:
        head = [name for name, m in backbone.named_modules() if isinstance(m, nn.Linear)][-1]
        places = ((f"{head}.", "head."), ("", "trunk.backbone."))
    return {
        name: next(new + name.removeprefix(old) for old, new in places if name.startswith(old))
        for name in names
    }


def _find_torchvision(name: str, kind: str) -> Path:
    """Return the file of torchvision's weights of a name, where torch keeps what it has downloaded."""
    require("torchvision", SETTING, f"{TORCHVISION}{name}")
    from torchvision import models

    if not kind.startswith(TORCHVISION):
        problem = f"is {TORCHVISION + name!r}, but the model is {kind!r}"
        raise InputError(SETTING, problem, "set model.kind = 'torchvision:NAME'")
    known = models.get_model_weights(kind.removeprefix(TORCHVISION)).__members__
    if name not in known:
        raise InputError(SETTING, f"{kind} has no weights {name!r}", suggest_nearest(name, known))
    url = str(known[name].url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        problem = f"the weights {name} of {kind} are not on this machine, and fedssl downloads none"
        raise InputError(SETTING, problem, f"put {url} into {file.parent}")
    return file
