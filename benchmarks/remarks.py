"""Twenty runs that are made to fail in known ways and ten that go well: do their remarks say so, and only then?

    python -m benchmarks.remarks

Every run is one of experiments/digits with a few settings. A row names what was done to the run, the words that its remark must have,
and the remark.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fedssl import Experiment, Run, run

FILES = Path(__file__).parents[1] / "experiments" / "digits"

SHORT = ("rounds=60", "engine.kind=serial", "record.report=false")
WHOLE = ("seed=2", "engine.kind=serial", "record.report=false")
MISSING = "federation.labels.per_class=[5,5,5,5,5,5,5,5,0,0]"
AT_ONE = (
    "federation.partition=iid",
    "federation.labels.kind=some_clients",
    "federation.labels.labeled_clients=1",
    "federation.sample=2",
)
TWO_CLASSES = (
    "federation.partition.kind=classes",
    "federation.partition.classes=2",
    "federation.labels.per_class=all",
    "train.schedule=constant",
    "train.lr=0.05",
    "federation.sample=2",
)
NOISE = ("federation.label_noise.kind=symmetric", "federation.label_noise.rate=0.8")


class Case(NamedTuple):
    """A run that is made to fail.

    Args:
        file: Name of its file below experiments/digits.
        settings: What makes it fail.
        words: One of these must be in its remark.
    """

    file: str
    settings: tuple[str, ...]
    words: tuple[str, ...]


UNUSED = ("No pseudo-label was used", "Hardly any pseudo-label was used")  # one round may have one
FEW = ("Hardly any pseudo-label was used",)
WRONG = ("Most pseudo-labels were wrong",)
NEVER = ("No pseudo-label named the classes 8, 9",)
SELDOM = ("Clients with labels took part in",)
RISING = ("was still rising",)
APART = ("pull apart",)
NOTHING = ("learned nothing", "diverged")

FAILURES = (
    Case("fixmatch", ("method.threshold=1", "rounds=20"), UNUSED),
    Case("uda", ("method.threshold=1", "rounds=20"), UNUSED),
    Case("pseudo_label", ("method.threshold=1", "rounds=20"), UNUSED),
    Case("fixmatch", ("method.threshold=0.9999", "train.lr=0.01"), FEW),
    Case("pseudo_label", ("method.threshold=0.9999", "train.lr=0.01"), FEW),
    Case("fixmatch", (*NOISE, "method.threshold=0.3"), WRONG),
    Case("flexmatch", NOISE, WRONG),
    Case("temporal_ensembling", NOISE, WRONG),
    Case("uda", (*NOISE, "method.threshold=0.3"), WRONG),
    Case("fixmatch", (MISSING,), NEVER),
    Case("flexmatch", (MISSING,), NEVER),
    Case("mean_teacher", (MISSING,), NEVER),
    Case("fixmatch", AT_ONE, SELDOM),
    Case("mean_teacher", AT_ONE, SELDOM),
    Case("supervised", ("rounds=30", "train.lr=0.002", "train.schedule=constant"), RISING),
    Case("supervised", ("rounds=30", "train.lr=0.001", "train.schedule=constant"), RISING),
    Case("supervised", TWO_CLASSES, APART),
    Case("supervised_strong", TWO_CLASSES, APART),
    Case("supervised", ("train.lr=0.5",), NOTHING),
    Case("fixmatch", ("train.lr=0.5",), NOTHING),
)  # fmt: skip

HEALTHY = (
    "supervised",
    "supervised_strong",
    "fixmatch",
    "flexmatch",
    "freematch",
    "softmatch",
    "uda",
    "vat",
    "mean_teacher",
    "temporal_ensembling",
)


def remark_of(file: str, settings: tuple[str, ...]) -> str:
    """Run a file with settings, and return the remark of the run."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.load(FILES / f"{file}.toml", settings)
        found = run(experiment, out=Path(folder) / "run", progress=False)
        assert isinstance(found, Run)
        return str(found.summary.get("remark", ""))


def main() -> None:
    """Print a row for each run; exit with 1 if a remark is not as it should be."""
    wrong = 0
    for case in FAILURES:
        remark = remark_of(case.file, (*SHORT, *case.settings))
        is_right = any(words in remark for words in case.words)
        wrong += not is_right
        print(
            f"{'right' if is_right else 'WRONG'}: {case.file} {' '.join(case.settings)}: {remark}",
            flush=True,
        )
    for file in HEALTHY:
        remark = remark_of(file, WHOLE)
        wrong += bool(remark)
        print(f"{'WRONG' if remark else 'right'}: {file}, healthy: {remark}", flush=True)
    print(f"{len(FAILURES) + len(HEALTHY) - wrong} of {len(FAILURES) + len(HEALTHY)} right")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
