"""CIFAR-10: 60,000 color 32x32 photographs in 10 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.
"""

from fedssl.data.cache import Raw
from fedssl.data.sources.torchvision_files import TorchvisionFiles, color_block


class CIFAR10(TorchvisionFiles):
    """50,000 training and 10,000 test images, read from torchvision's folder layout."""

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        return "the files of cifar-10-python.tar.gz (data_batch_1, ...) in ROOT/cifar-10-batches-py"

    def read(self) -> Raw:
        """Return the images, shape (3, 32, 32).

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        train, test = self.train_and_test("CIFAR10", "CIFAR-10")
        return Raw(
            class_names=tuple(train.classes),
            train=[color_block(train)],
            test=[color_block(test)],
            flips=True,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        )
