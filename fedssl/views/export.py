"""Exports a run's model as one file that can be used without this package.

The content is checked before a file is written: the exported model must compute what the run's model computes.

torch has deprecated TorchScript, but libtorch, and torch without this package, load no other format. Only this module
silences the notice of deprecation. ONNX is written by the exporter based on `torch.export` (torch 2.5), because torch
will remove the earlier exporter, which traces.
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
from fedssl.core.arrays import NamedArrays, as_safetensors
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.extras import require
from fedssl.data.shard import ImageSpec
from fedssl.metrics.evaluators.base import SECTION, FeatureEvaluator, of_layer
from fedssl.models.base import Classifier
from fedssl.record.judges import judge_in
from fedssl.training.judging import learn_judge
from fedssl.views.run import Run, build_classifier, build_network_of

METADATA = "metadata.json"
"""Name of the extra file in a TorchScript file that holds the metadata."""

CHECKED_BATCHES = (1, 2, 7)
"""An export is checked on batches of these sizes (images); a file is traced with another size, three images."""

TOLERANCE = 1e-4
"""Logits may differ by this fraction of the largest logit, because sums may be taken in another order."""

INPUT, OUTPUT = "images", "logits"

Metadata = Mapping[str, str]


class OnFeatures(Classifier):
    """A classifier whose head is a judge's linear layer, on the features of the trunk."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images (B, C, H, W), shape (B, num_classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Portable(nn.Module):
    """A classifier with built-in normalization: from float images in [0, 1], (B, C, H, W), to logits (B, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, build_classifier: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.classifier = build_classifier
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of images in [0, 1]."""
        logits: Tensor = self.classifier((images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Format:
    """A file format for models.

    Args:
        suffix: Suffix of the file's name.
        needs: Modules that the format needs beyond torch; the extra ``onnx`` installs them.
        write: Function of (model, example images, metadata) that returns the content of a file.
        load: Function of (content, original model) that returns a function from images to the loaded model's logits.
    """

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[Portable, Tensor, Metadata], bytes]
    load: Callable[[bytes, Portable], Callable[[Tensor], Tensor]]


def export(run: Run, kind: str, *, average: bool = True) -> bytes:
    """Return the content of a file that holds a run's model.

    Args:
        run: The run whose model is exported.
        kind: Name of a format in `FORMATS`.
        average: Export the moving average of the global model; if false, the global model itself.

    Raises:
        InputError: There is no model yet, or a library is missing; or the model's judge is no linear layer on its trunk.
        RunFailed: The format cannot hold the model, or the exported model computes other logits.
    """
    form = FORMATS[kind]
    for module in form.needs:
        require(module, "--format", f"{kind!r}", extra="onnx")
    round, models = run.weights()
    arrays = models["ema" if average else "model"]
    model = Portable(_exported(run, arrays, round), run.spec).eval()
    example, metadata = _images(run.spec, 3), metadata_of(run, round, average=average)
    with torch.no_grad():
        try:
            content = form.write(model, example, metadata)
        except Exception as error:  # a user's own model can make torch raise anything
            raise RunFailed(f"the model cannot be written as {kind}: {error}") from error
        _check(form.load(content, model), model, run.spec, kind)
    return content


def _exported(run: Run, arrays: NamedArrays, round: int) -> nn.Module:
    """Return the classifier that is written: the model's own, or its trunk with the linear layer of its judge.

    Raises:
        InputError: The judge is no linear layer on the features of the trunk.
    """
    phase, network = build_network_of(run.experiment, run.spec, arrays, round)
    evaluator, method = phase.server.evaluator, phase.method
    if not evaluator.learns:
        return build_classifier(run.experiment, run.spec, arrays, round, lambda: run.federation)
    classifier = method.classifier(network)
    if isinstance(evaluator, FeatureEvaluator) and isinstance(classifier, Classifier):
        layer = evaluator.layers[0]
        learned = learn_judge(evaluator, method, network, run.federation)
        head = evaluator.head(of_layer(learned, layer)) if layer == "backbone" else None
        if head is not None:
            return OnFeatures(classifier.trunk, head, classifier.width).eval()
    raise InputError(
        SECTION,
        f"is {evaluator.kind!r}, and an export can hold a linear layer on the features of the backbone only",
        "judge the last phase by linear_probe with layers = ['backbone'] first; or use fedssl predict, which judges as the run did",
    )


def metadata_of(run: Run, round: int, *, average: bool = True) -> dict[str, str]:
    """Return the metadata of the model after a round: texts by name, values that are not texts as JSON."""
    facts, experiment = run.data, run.experiment
    phase = experiment.plans[experiment.phase_of(round)]
    return {
        "fedssl_version": run.environment["versions"]["fedssl"],
        "run": f"{experiment.name} seed {experiment.seed}",
        "run_folder": run.path.absolute().name,
        "rounds": f"{round} of {experiment.num_rounds}",
        "weights": "moving average (EMA) of the global model" if average else "global model",
        "method": phase.method.kind,
        "classifier": judge_in(run.judges, experiment.phase_of(round)),
        "model": json.dumps(phase.model.to_dict()),
        "source": facts["source"],
        "class_names": json.dumps(facts["class_names"]),
        "image_shape": json.dumps(facts["shape"]),
        "mean": json.dumps(facts["mean"]),
        "std": json.dumps(facts["std"]),
    }


def _images(spec: ImageSpec, count: int) -> Tensor:
    """Return random images in [0, 1]; equal arguments give equal images."""
    return torch.rand(count, *spec.shape, generator=rng.make_generator(0, "export", round=count))


def _check(
    computes: Callable[[Tensor], Tensor], model: Portable, spec: ImageSpec, kind: str
) -> None:
    """Raise `RunFailed` if a loaded file computes other logits than the model."""
    for size in CHECKED_BATCHES:
        images = _images(spec, size)
        wanted = model(images)
        found = computes(images)
        allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
        same_shape = found.shape == wanted.shape
        if not same_shape or not float((found - wanted).abs().max()) <= allowed:
            raise RunFailed(
                f"the exported {kind} file computes other logits than the model for {size} images; "
                "no file was written"
            )


def _write_safetensors(model: Portable, example: Tensor, metadata: Metadata) -> bytes:
    """Return the classifier's weights under its own names; users of the file normalize images by the metadata."""
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
    """Silence torch's notice that TorchScript is deprecated, and its warnings about traces: exports are compared."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".torch\.jit\.", FutureWarning)
        warnings.filterwarnings("ignore", r".torch\.jit\.", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def _write_torchscript(model: Portable, example: Tensor, metadata: Metadata) -> bytes:
    """Trace the model: unlike scripting, tracing works for any model, torchvision's and a user's own included."""
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
"""The formats that `export` can write, by name."""
