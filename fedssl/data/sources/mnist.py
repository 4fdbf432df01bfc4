"""MNIST: 70,000 gray 28x28 images of handwritten digits in 10 classes.

LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE,
1998.
"""

from fedssl.data.cache import Raw
from fedssl.data.sources.torchvision_files import TorchvisionFiles, gray_block


class MNIST(TorchvisionFiles):
    """60,000 training and 10,000 test images, read from torchvision's folder layout.

    Mean and standard deviation are the commonly published values; they are not measured.
    """

    def describe_files(self) -> str:
        """Return a phrase that says which files to put where."""
        return "torchvision's four files (train-images-idx3-ubyte, ...) in ROOT/MNIST/raw"

    def read(self) -> Raw:
        """Return the images, shape (1, 28, 28); a mirrored digit is no digit, so the images must not be flipped.

        Raises:
            InputError: The files are not under `root` and `download` is false, or the files cannot be read.
        """
        train, test = self.train_and_test("MNIST", "MNIST")
        return Raw(
            class_names=tuple(str(digit) for digit in range(10)),
            train=[gray_block(train)],
            test=[gray_block(test)],
            flips=False,
            mean=(0.1307,),
            std=(0.3081,),
        )
