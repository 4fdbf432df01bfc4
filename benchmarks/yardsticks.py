"""Measure the accuracy of scikit-learn's classifiers on the labels of the published tables, on one machine, in seconds.

For each seed, fedssl's own code draws the federation of an experiment file. So the labels, the images that all clients
hold together and the test images are exactly those of the runs. The classifiers see raw pixels in [0, 1], all in one
place. Both classifiers use scikit-learn's defaults. Logistic regression learns from the labeled images alone
(`max_iter` is raised until it converges). Label spreading over the graph of nearest neighbors learns from the unlabeled
images too; it depends on the number of neighbors k (7 by default), so the table shows several k. Only the default is a
fair yardstick, because nothing chose k without the test images.

    python -m benchmarks.yardsticks [--seeds 5]
    python -m benchmarks.yardsticks experiments/fashion_mnist/supervised.toml --seeds 3 --root FOLDER
"""

import argparse
import statistics
import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading

from fedssl.clients.local_data import simulated_federation
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment

NEIGHBORS = (3, 5, 7, 10)
"""The table shows label spreading for these numbers of neighbors; scikit-learn's default is 7."""

Pixels = npt.NDArray[np.float32]


def pixels(images: npt.NDArray[np.uint8]) -> Pixels:
    """Return images (N, C, H, W) as rows of pixels in [0, 1], shape (N, C H W)."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def accuracies(federation: Federation) -> Iterator[tuple[str, float]]:
    """Yield the name of each classifier and its accuracy on the held-out images, in [0, 1]."""
    train, test = pixels(federation.data.train.images), pixels(federation.held_out.images)
    labeled, truth = federation.labeled, federation.held_out.labels
    linear = LogisticRegression(max_iter=1000).fit(train[labeled], federation.given[labeled])
    yield "LogisticRegression", float(linear.score(test, truth))
    for k in NEIGHBORS:
        # scikit-learn marks an image without a label by -1, as fedssl does.
        graph = LabelSpreading(kernel="knn", n_neighbors=k).fit(train, federation.given)
        yield f"LabelSpreading, k = {k}", float(graph.score(test, truth))


def main() -> None:
    """Print the accuracy of each classifier, seed by seed, with mean and standard deviation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", default="experiments/digits/supervised.toml")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--root", help="data.root: the folder that holds the data set")
    given = parser.parse_args()
    # In a small graph, some images are out of reach of every label. They get no class, and scikit-learn warns.
    warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
    settings = [] if given.root is None else [f"data.root={given.root}"]
    experiment = Experiment.load(given.experiment, settings)
    found: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        federation = simulated_federation(experiment.with_settings(f"seed={seed}"))
        for name, accuracy in accuracies(federation):
            found.setdefault(name, []).append(100 * accuracy)
    labels, images = int(federation.labeled.sum()), len(federation.data.train)
    print(f"{experiment.name}: {labels} labels of {images:,} images, accuracy on the same", end=" ")
    print(f"{len(federation.held_out):,} {federation.held_out_name} images, %")
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = " ".join(f"{value:5.1f}" for value in values)
        print(f"{name:24} {statistics.mean(values):5.1f} ± {spread:3.1f}   by seed: {each}")


if __name__ == "__main__":
    main()
