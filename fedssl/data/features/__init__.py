"""The laws by which the same scene looks different at every client, one skew a file."""

from fedssl.data.features.base import FEATURE_SKEWS, FeatureSkew

__all__ = ["FEATURE_SKEWS", "FeatureSkew"]
