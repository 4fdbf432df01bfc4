"""A method that pre-trains without labels: two views of an image shall look alike behind a projection head."""

import torch.nn.functional as F
from torch import nn

from fedssl.methods import Loss, Method, Views


class Projected(nn.Module):
    """A classifier and a head of one layer on its features."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier
        self.projection = nn.Sequential(
            nn.Sequential(nn.Linear(classifier.width, 8), nn.BatchNorm1d(8), nn.ReLU())
        )

    def project(self, images):
        return self.projection(self.classifier.features(images))

    def forward(self, images):
        return self.classifier(images)


class Contrasting(Method):
    """Pull the projections of an image's two views together, and those of neighboring images apart."""

    trains_classifier = False

    def views(self):
        return Views((), ("weak", "weak"), 1)

    def network(self, build):
        return Projected(build())

    def classifier(self, network):
        return network.classifier

    def representations(self, network):
        return {"backbone": network.classifier.features, "projection": network.project}

    def loss(self, network, batch, state, progress):
        first, second = (F.normalize(network.project(view)) for view in batch.unlabeled)
        alike = (first * second).sum(1)
        other = (first * second.roll(1, 0)).sum(1)
        return Loss((other - alike).mean())
