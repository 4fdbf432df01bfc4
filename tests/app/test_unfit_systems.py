"""Settings of federated systems that do not fit each other are found before anything runs."""

import pytest

from fedssl.app.simulation import check_experiment
from fedssl.core.errors import InputError
from tests.helpers import small_experiment

UNFIT = {
    "more helpers than clients listen to": (
        {"method": {"kind": "fedmatch", "num_helpers": 1}, "strategy": {"kind": "fedmatch"}},
        r"strategy\.num_helpers: is 2, but method\.num_helpers is 1",
    ),
    "sigma at a server without labels": (
        {"method": {"kind": "fedmatch", "labels": "server"}, "strategy": {"kind": "fedmatch"}},
        "gives the server no labels to train with, but clients of fedmatch leave 'sigma",
    ),
    "no proxies in the second phase": (
        {
            "rounds": None,
            "phases": [
                {"rounds": 1, "method": {"kind": "supervised"}},
                {
                    "rounds": 1,
                    "method": {"kind": "meta_pseudo_labels"},
                    "strategy": {"kind": "proxyfl"},
                },
            ],
        },
        "the network has 2 of them",
    ),
    "proxies that are sums of two halves": (
        {"method": {"kind": "fedmatch"}, "strategy": {"kind": "proxyfl"}},
        "the network has 2 of them",
    ),
    "a step so small that a quotient is not a number": (
        {"method": {"kind": "sage", "half_trust": 1e-50}},
        r"method\.half_trust",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(name):
    settings, message = UNFIT[name]
    with pytest.raises(InputError, match=message):
        check_experiment(small_experiment(**settings))
