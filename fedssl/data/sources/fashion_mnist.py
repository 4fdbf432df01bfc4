"""Fashion-MNIST: 70,000 gray 28x28 images of clothing in 10 classes.

Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
arXiv:1708.07747.
"""

from fedssl.data.cache import Raw
from fedssl.data.sources.torchvision_files import TorchvisionFiles, gray_block


class FashionMNIST(TorchvisionFiles):
    """60,000 training and 10,000 test images, read from torchvision's folder layout."""

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        return "torchvision's four files (train-images-idx3-ubyte, ...) in ROOT/FashionMNIST/raw"

    def read(self) -> Raw:
        """Return the images, shape (1, 28, 28).

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        train, test = self.train_and_test("FashionMNIST", "Fashion-MNIST")
        return Raw(
            class_names=tuple(train.classes),
            train=[gray_block(train)],
            test=[gray_block(test)],
            flips=True,
            mean=(0.2860,),
            std=(0.3530,),
        )
