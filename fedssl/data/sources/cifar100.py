"""CIFAR-100: 60,000 color 32x32 photographs in 100 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.
"""

from fedssl.data.cache import Raw
from fedssl.data.sources.torchvision_files import TorchvisionFiles, color_block


class CIFAR100(TorchvisionFiles):
    """50,000 training and 10,000 test images in the 100 fine classes, read from torchvision's folder layout."""

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        return "the files of cifar-100-python.tar.gz (train, test, meta) in ROOT/cifar-100-python"

    def read(self) -> Raw:
        """Return the images, shape (3, 32, 32); mean and standard deviation are measured on the training images.

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        train, test = self.train_and_test("CIFAR100", "CIFAR-100")
        return Raw(
            class_names=tuple(train.classes),
            train=[color_block(train)],
            test=[color_block(test)],
            flips=True,
        )
