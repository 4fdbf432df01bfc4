"""A small convolutional network for small images."""

from collections.abc import Sequence

from pydantic import Field, model_validator
from torch import nn

from fedssl.models.base import Classifier, Model, Norm, check_groups, norm_layer


class CNN(Model):
    """Blocks of 3x3 convolution, normalization, ReLU and 2x2 pooling; then one hidden layer."""

    widths: tuple[int, ...] = Field((32, 64), min_length=1, description="channels of each block")
    hidden: int = Field(128, ge=0, description="width of the hidden layer; 0: no hidden layer")
    norm: Norm = Field("group", description="normalization after every convolution")
    groups: int = Field(8, ge=1, description="groups of group normalization")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the last layer")

    @model_validator(mode="after")
    def _check(self) -> "CNN":
        for width in self.widths:
            if width < 1:
                raise ValueError(f"widths must be positive, not {width}")
        check_groups(self.norm, self.groups, self.widths)
        return self

    def build(self, image_shape: Sequence[int], num_classes: int) -> Classifier:
        """Return the network; pooling stops when the image is down to one pixel."""
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out in self.widths:
            layers += [
                nn.Conv2d(channels, out, 3, padding=1, bias=self.norm == "none"),
                norm_layer(self.norm, out, self.groups),
                nn.ReLU(inplace=True),
            ]
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            channels = out
        layers.append(nn.Flatten())
        features = channels * height * width
        if self.hidden:
            layers += [nn.Linear(features, self.hidden), nn.ReLU(inplace=True)]
            features = self.hidden
        if self.dropout:
            layers.append(nn.Dropout(self.dropout))
        return Classifier(nn.Sequential(*layers), nn.Linear(features, num_classes), features)
