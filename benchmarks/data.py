"""Measure the data layer: preparing and mapping images, memory of several workers, a federation of 100,000 clients.

    python benchmarks/data.py [--hf FOLDER]

The benchmark writes its own images. With --hf it also prepares a local folder in the Hugging Face Hub's layout. Memory
is the proportional set size: a page that n processes share counts 1/n for each process (Linux only).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WARM_RUNS = 5
CLIENTS, IMAGES = 100_000, 1_000_000

PREPARE = """
import sys, time, json
from fedssl.data.sources.base import SOURCES
source = SOURCES.build(sys.argv[1])
began = time.perf_counter(); source.prepare(verify=True); print(json.dumps(time.perf_counter() - began))
"""

READ = """
import json, sys, time
import numpy as np
from fedssl.data.sources.base import SOURCES

def pss():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024

source = SOURCES.build(sys.argv[1])
before = pss()
pool = source.dataset(0).train.pool
total = sum(int(pool[i : i + 1000].sum(dtype=np.int64)) for i in range(0, len(pool), 1000))
print(json.dumps("ready"), flush=True)
sys.stdin.readline()
print(json.dumps([before, pss(), pool.nbytes / 2**20]), flush=True)
sys.stdin.readline()
"""

DRAW = """
import json, resource, sys, time
import numpy as np
from fedssl.data.federation import Deal, draw_federation
from fedssl.data.images import Dataset, Images
from fedssl.data.labels.at_clients import AtClients
from fedssl.data.partitions.dirichlet import Dirichlet
from fedssl.data.shard import ImageSpec

clients, images = map(int, sys.argv[1:])
labels = np.random.default_rng(0).integers(0, 10, images)
train = Images(np.zeros((images, 1, 1, 1), np.uint8), labels, labels >= 0)
spec = ImageSpec((1, 1, 1), 10, (0.5,), (0.5,), flips=False)
data = Dataset(train, train.take(np.arange(1000)), "test", spec, tuple("0123456789"))
deal = Deal(clients=clients, partition=Dirichlet(alpha=0.1), labels=AtClients(per_class=4000))
imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began = time.process_time()
federation = draw_federation(data, deal, 0)
sizes = federation.sizes, federation.labeled_sizes
seconds = time.process_time() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([seconds, peak, imports, int(sizes[0].min())]))
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program in a process of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def answer(process: subprocess.Popen[str]) -> object:
    """Return the next line of a process's output, read as JSON."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def go_on(process: subprocess.Popen[str]) -> None:
    """Let a process that waits for input go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def cold_and_warm(source: str) -> None:
    """Time a source in an empty cache, and then again in fresh processes with the filled cache."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FEDSSL_CACHE"] = cache
        times = [float(str(answer(python(PREPARE, source)))) for _ in range(1 + WARM_RUNS)]
    cold, warm = times[0], sorted(times[1:])[WARM_RUNS // 2]
    print(
        f"{source}: cold {cold:.2f} s, warm {warm * 1000:.1f} ms (median of {WARM_RUNS}), {cold / warm:.0f}x"
    )


def write_pngs(root: Path, count: int) -> None:
    """Write random images of ten classes as PNG files, one folder per class."""
    generator = np.random.default_rng(0)
    for i in range(count):
        folder = root / f"class_{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")


def shared_memory(source: str) -> None:
    """Print how much memory one, two and four processes take that read a whole data set at the same time."""
    for workers in (1, 2, 4):
        processes = [python(READ, source) for _ in range(workers)]
        for process in processes:
            answer(process)
        for process in processes:
            go_on(process)
        figures = [answer(process) for process in processes]
        for process in processes:
            go_on(process)
            process.wait()
        grown = sum(after - before for before, after, _ in figures)  # type: ignore[misc]
        size = figures[0][2]  # type: ignore[index]
        print(f"{workers} processes reading {size:.0f} MB: {grown:.0f} MB more in all")


def main() -> None:
    """Measure everything, and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hf", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pngs(Path(folder) / "pngs", 20_000)
        cold_and_warm(f"folder:{folder}/pngs")
        if given.hf:
            cold_and_warm(f"hf:{given.hf}")
        cache = Path(folder) / "cache"
        os.environ["FEDSSL_CACHE"] = str(cache)
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (60_000, 64, 64), np.uint8)
        np.savez(Path(folder) / "a.npz", images=images, labels=np.arange(len(images)) % 10)
        source = f"npz:{folder}/a.npz"
        answer(python(PREPARE, source))
        shared_memory(source)
    seconds, peak, imports, least = answer(python(DRAW, str(CLIENTS), str(IMAGES)))  # type: ignore[misc]
    print(
        f"{CLIENTS:,} clients, {IMAGES:,} labels, Dirichlet .1: {seconds:.2f} s of one core, "
        f"peak {peak:.0f} MB ({imports:.0f} MB before), at least {least} image each"
    )


if __name__ == "__main__":
    main()
