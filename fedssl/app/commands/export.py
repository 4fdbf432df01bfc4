"""`fedssl export`: writes a run's model as one file that can be used without this package."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedssl.app.commands.arguments import (
    PluginsOption,
    RunFolder,
    Weights,
    WeightsOption,
    check_runs,
    load_run_with_model,
)
from fedssl.app.guard import guarded_reader
from fedssl.core.console import Console
from fedssl.core.processes import quick_imports


class Kind(StrEnum):
    """The formats of `fedssl.views.export`, repeated here so that --help need not import torch."""

    safetensors = "safetensors"
    torchscript = "torchscript"
    onnx = "onnx"


@guarded_reader
def export(
    run: RunFolder,
    kind: Annotated[Kind, typer.Option("--format", help="Format of the file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default NAME.SUFFIX here.")
    ] = None,
    model: WeightsOption = Weights.ema,
    plugins: PluginsOption = False,
) -> None:
    """Write a run's model for use without fedssl; the file is checked to compute the same logits.

    onnx and torchscript take float images in [0, 1], (B, C, H, W), and normalize them; safetensors holds the weights.

    Examples:
      fedssl export runs/mine/20260101-120000-seed0 --format onnx --out model.onnx
    """
    check_runs([run])
    with quick_imports():
        from fedssl.core.files import write_atomically
        from fedssl.record.run_path import check_output, unwritable_error
        from fedssl.views.export import FORMATS
        from fedssl.views.export import export as content_of

    found = load_run_with_model(run, plugins=plugins)
    path = out or Path(found.experiment.name + FORMATS[kind].suffix)
    check_output(path, FORMATS[kind].suffix)
    content = content_of(found, kind, average=model.average)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise unwritable_error(path, str(error.strerror)) from None
    said = f"{path}: {len(content):,} bytes, {model} weights, the same logits as the run's model"
    Console().tell(said)
