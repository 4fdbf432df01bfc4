"""A run's model as one file that others use without this package; checked against the run's own before it is written.

torch has deprecated TorchScript, yet it is what libtorch and torch without this package load; what says so is
silenced here and nowhere else. ONNX is written by the exporter on `torch.export` (torch 2.5): the one before, which
traced, is to be removed.
"""

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.errors import RunFailed
from fedssl.core.extras import require
from fedssl.core.files import as_safetensors
from fedssl.data.shard import ImageSpec
from fedssl.views.run import Run, classifier

METADATA = "metadata.json"
"""Name of the metadata among a TorchScript file's extra files."""

CHECKED_BATCHES = (1, 2, 7)
"""Sizes of the batches that an export is checked on; none is a file's own, which is traced with three images."""

TOLERANCE = 1e-4
"""Largest difference of a logit, in units of the largest logit: sums may be taken in another order."""

INPUT, OUTPUT = "images", "logits"

Metadata = Mapping[str, str]


class Portable(nn.Module):
    """A classifier that normalizes by itself: from float images in [0, 1], (B, C, H, W), to logits (B, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier((images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        suffix: Of its name.
        needs: Modules beyond torch, of the extra ``onnx``.
        write: From the model, images to try it with, and metadata to the file's content.
        load: From the content, and the model to compare with, to what it computes of images.
    """

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[Portable, Tensor, Metadata], bytes]
    load: Callable[[bytes, Portable], Callable[[Tensor], Tensor]]


def export(run: Run, kind: str, *, average: bool = True) -> bytes:
    """Return the content of a file that holds a run's model.

    Args:
        run: Whose.
        kind: Of `FORMATS`.
        average: The moving average of the global model; else the global model itself.

    Raises:
        InputError: There is no model yet, or a library is missing.
        RunFailed: The model cannot be written so, or what was written computes something else.
    """
    form = FORMATS[kind]
    for module in form.needs:
        require(module, "--format", f"{kind!r}", extra="onnx")
    round, models = run.weights()
    arrays = models["ema" if average else "model"]
    model = Portable(classifier(run.experiment, run.spec, arrays, round), run.spec).eval()
    example, metadata = _images(run.spec, 3), metadata_of(run, round, average=average)
    with torch.no_grad():
        try:
            content = form.write(model, example, metadata)
        except Exception as error:  # whatever a model of a user's own makes torch raise
            raise RunFailed(f"the model cannot be written as {kind}: {error}") from error
        _check(form.load(content, model), model, run.spec, kind)
    return content


def metadata_of(run: Run, round: int, *, average: bool = True) -> dict[str, str]:
    """Return what a file says of the model after a round: texts, those that are no plain text in JSON."""
    facts, experiment = run.data, run.experiment
    phase = experiment.in_phase(experiment.phase_of(round))
    return {
        "fedssl_version": run.environment["versions"]["fedssl"],
        "run": f"{experiment.name} seed {experiment.seed}",
        "run_folder": run.path.absolute().name,
        "rounds": f"{round} of {experiment.num_rounds}",
        "weights": "moving average (EMA) of the global model" if average else "global model",
        "method": phase.method.kind,
        "model": json.dumps(phase.model.to_dict()),
        "source": facts["source"],
        "class_names": json.dumps(facts["class_names"]),
        "image_shape": json.dumps(facts["shape"]),
        "mean": json.dumps(facts["mean"]),
        "std": json.dumps(facts["std"]),
    }


def _images(spec: ImageSpec, count: int) -> Tensor:
    """Return random images in [0, 1], always the same."""
    return torch.rand(count, *spec.shape, generator=rng.generator(0, "export", round=count))


def _check(
    computes: Callable[[Tensor], Tensor], model: Portable, spec: ImageSpec, kind: str
) -> None:
    """Refuse a file that does not compute what the model does."""
    for size in CHECKED_BATCHES:
        images = _images(spec, size)
        wanted = model(images)
        found = computes(images)
        allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
        same_shape = found.shape == wanted.shape
        if not same_shape or not float((found - wanted).abs().max()) <= allowed:
            raise RunFailed(
                f"what was written as {kind} computes other logits than the model, of {size} images; "
                "no file was written"
            )


def _write_safetensors(model: Portable, example: Tensor, metadata: Metadata) -> bytes:
    """Write the classifier's weights by its own names: whoever loads them normalizes by the metadata."""
    arrays = {name: tensor.numpy() for name, tensor in model.classifier.state_dict().items()}
    said = "weights of the classifier, whose input is (images in [0, 1] - mean) / std"
    return as_safetensors(arrays, {**metadata, "content": said})


def _load_safetensors(content: bytes, model: Portable) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load

    fresh = copy.deepcopy(model)
    weights = fresh.classifier.state_dict()
    fresh.classifier.load_state_dict({name: torch.zeros_like(t) for name, t in weights.items()})
    fresh.classifier.load_state_dict(load(content))
    return fresh


@contextmanager
def _no_notice() -> Iterator[None]:
    """Silence torch's notice that TorchScript is deprecated, and its guesses at what a trace may miss: we compare."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".torch\.jit\.", FutureWarning)
        warnings.filterwarnings("ignore", r".torch\.jit\.", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def _write_torchscript(model: Portable, example: Tensor, metadata: Metadata) -> bytes:
    """Trace: unlike a script, that takes any model, torchvision's and a user's own included."""
    buffer = io.BytesIO()
    with _no_notice():
        traced = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
        text = json.dumps(metadata, indent=1)
        torch.jit.save(traced, buffer, _extra_files={METADATA: text})
    return buffer.getvalue()


def _load_torchscript(content: bytes, model: Portable) -> Callable[[Tensor], Tensor]:
    with _no_notice():
        loaded: Callable[[Tensor], Tensor] = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return loaded


def _write_onnx(model: Portable, example: Tensor, metadata: Metadata) -> bytes:
    import onnx

    program: Any = torch.onnx.export(
        model, (example,), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
    )  # fmt: skip
    proto = program.model_proto
    onnx.helper.set_model_props(proto, dict(metadata))
    content: bytes = proto.SerializeToString()
    return content


def _load_onnx(content: bytes, model: Portable) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def compute(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(np.asarray(logits))

    return compute


FORMATS = {
    "safetensors": Format(".safetensors", (), _write_safetensors, _load_safetensors),
    "torchscript": Format(".pt", (), _write_torchscript, _load_torchscript),
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
}
"""What `export` can write."""
