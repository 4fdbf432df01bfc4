"""All labels at the server: clients hold unlabeled images only.

Diao et al., "SemiFL: Semi-Supervised Federated Learning for Unlabeled Clients with Alternate Training", NeurIPS 2022,
arXiv:2106.01432; Jeong et al., "Federated Semi-Supervised Learning with Inter-Client Consistency & Disjoint Learning",
ICLR 2021, arXiv:2006.12097 (the labels-at-server scenario).
"""

from typing import ClassVar

from fedssl.data.labels.base import LabelSplit


class AtServer(LabelSplit):
    """Draw the labeled examples for the server, which trains on them; the partition deals the others to clients.

    With the same seed and amounts, `at_clients` labels the same examples.
    """

    at_server: ClassVar[bool] = True
