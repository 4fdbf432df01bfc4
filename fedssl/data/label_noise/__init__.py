"""The laws by which some given labels are wrong, one law a file."""

from fedssl.data.label_noise.base import LABEL_NOISES, LabelNoise

__all__ = ["LABEL_NOISES", "LabelNoise"]
