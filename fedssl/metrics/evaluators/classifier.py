"""The evaluator of models that learn from labels: the model's own classifier."""

from torch import Tensor

from fedssl.core.slots import Tensors
from fedssl.metrics.evaluators.base import Evaluator, Subject


class OwnClassifier(Evaluator):
    """Judge the model by its own classifier, as it was trained; nothing is learned and nothing is drawn."""

    def scores(self, subject: Subject, learned: Tensors, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of the classifier."""
        return {"classifier": subject.logits(images)}
