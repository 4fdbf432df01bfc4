"""Federated averaging as a plain PyTorch loop in one process, without a framework."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders.job import Job, Stopwatch
from benchmarks.local_step import batches, train
from benchmarks.workloads import Plain, draws_of


def run(job: Job, watch: Stopwatch) -> dict[str, Tensor]:
    """Run the job, and return the final weights; one network serves all clients, and models are summed in place."""
    plain = Plain(job.experiment())
    network, clients, normalize = plain.network(), plain.clients, plain.normalize
    weights = list(network.parameters())
    model = [w.detach().clone() for w in weights]
    cohorts, generator = np.random.default_rng(plain.seed), torch.Generator()
    for number in range(1, job.rounds + 1):
        cohort = cohorts.choice(plain.num_clients, plain.sample, replace=False).tolist()
        total = sum(len(clients[k]) for k in cohort)
        sums = [torch.zeros_like(w) for w in model]
        for client in cohort:
            data = clients[client]
            with torch.no_grad():
                torch._foreach_copy_(weights, model)
            draws = draws_of(generator, number, client)
            train(network, batches(data, plain.work, normalize, draws))
            with torch.no_grad():
                torch._foreach_add_(sums, weights, alpha=len(data) / total)
        model = sums
        watch.round_ended()
    with torch.no_grad():
        torch._foreach_copy_(weights, model)
    return network.state_dict()
