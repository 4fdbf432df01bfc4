"""Print the SHA-256 of the models of twenty-eight settings, to show that a change of the code changes no number.

    python benchmarks/bits.py > after.txt                            # this checkout
    python benchmarks/bits.py --checkout ../before > before.txt      # another checkout, with the same environment
    diff before.txt after.txt

Every setting is a run of a few rounds by the command line, in a process of its own. All settings take five minutes.
"""

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIGITS = "experiments/digits"

SERIAL = ["--engine", "serial", "--set", "rounds=3"]

SETTINGS = {
    "labels at the server": ["experiments/labels/at_server.toml", *SERIAL],
    "labels at some clients": ["experiments/labels/some_clients.toml", *SERIAL],
    "virtual time": ["experiments/virtual_time.toml", *SERIAL],
    "virtual time, dropout": [f"{DIGITS}/fixmatch.toml", *SERIAL, "--set", "system.dropout=0.3"],
    "privacy, noise at clients": [
        *(f"{DIGITS}/fixmatch.toml", *SERIAL),
        *("--set", "privacy.clipping_norm=0.5", "--set", "privacy.noise_multiplier=0.01"),
    ],
    "privacy, noise at the server": [
        *(f"{DIGITS}/fixmatch.toml", *SERIAL, "--set", "strategy.weight=uniform"),
        *("--set", "privacy.clipping_norm=0.5", "--set", "privacy.noise_multiplier=0.01"),
        *("--set", "privacy.noise_at=server"),
    ],
    "fused": [f"{DIGITS}/fixmatch.toml", *SERIAL, "--set", "engine.fuse=4"],
    "FedAdam": [f"{DIGITS}/fixmatch.toml", *SERIAL, "--set", "strategy.kind=flwr:FedAdam"],
    "CTAugment, kept momentum": [
        *(f"{DIGITS}/fixmatch.toml", *SERIAL, "--set", "augment.strong=ctaugment"),
        *("--set", "train.keep_momentum=true", "--set", "train.ema_decay=0.9"),
    ],
    "two phases": ["experiments/phases.toml", "--engine", "serial", "--set", "phases.0.rounds=2"],
    "Ray, two workers": [f"{DIGITS}/fixmatch.toml", *SERIAL[2:], "--engine", "ray", "--workers", "2"],
    "Ray, fused": [
        *(f"{DIGITS}/fixmatch.toml", *SERIAL[2:], "--engine", "ray", "--workers", "2"),
        *("--set", "engine.fuse=4"),
    ],
    "Flower's runtime": [f"{DIGITS}/fixmatch.toml", *SERIAL[2:], "--engine", "flower", "--workers", "2"],
}  # fmt: skip
"""Arguments of `fedssl run`, by the setting's name; all files of experiments/digits and a resumed run are added."""

RESUMED = [f"{DIGITS}/temporal_ensembling.toml", *SERIAL[:2], "--set", "rounds=12"]
KILLED_AFTER = "round-000003"


def main() -> None:
    """Run every setting, and print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument(
        "--only", default="", help="run only the settings whose name contains this text"
    )
    arguments = parser.parse_args()
    files = sorted((arguments.checkout / DIGITS).glob("*.toml"))
    settings = {f.stem: [f"{DIGITS}/{f.name}", *SERIAL] for f in files} | SETTINGS
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, words) in enumerate(settings.items()):
            if arguments.only in name:
                out = Path(folder, str(number))
                finish(start(arguments.checkout, words, out))
                show(name, out)
        if arguments.only in "resumed":
            out = Path(folder, "resumed")
            words = [*RESUMED, "--set", "server.checkpoint_every=1"]
            kill_after_checkpoint(start(arguments.checkout, words, out), out)
            finish(start(arguments.checkout, [*words, "--resume"], out))
            show("resumed", out)


def start(checkout: Path, words: list[str], out: Path) -> subprocess.Popen[str]:
    """Start a run of a checkout's own code in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedssl", "run", *words, "--plain", "--out", str(out)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(run: subprocess.Popen[str]) -> None:
    """Wait for a run to end; exit with the run's output if it failed."""
    said, _ = run.communicate()
    if run.returncode:
        sys.exit(f"{' '.join(map(str, run.args))}\n{said}")  # type: ignore[arg-type]


def kill_after_checkpoint(run: subprocess.Popen[str], out: Path) -> None:
    """Kill a run as soon as it has written the checkpoint `KILLED_AFTER`."""
    while not list(out.glob(f"**/{KILLED_AFTER}")):
        if run.poll() is not None:
            sys.exit("the run that was to be killed ended first")
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def show(name: str, out: Path) -> None:
    """Print the checksum of every model in a run directory."""
    for path in sorted(out.glob("**/*.safetensors")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{digest}  {name}: {path.name}", flush=True)


if __name__ == "__main__":
    main()
