"""Teams for tests: processes that are forks of the test's own, so they need no second to start."""

import multiprocessing
import os
import traceback

import torch

from fedssl.clients.team_group import join, meeting_file, meeting_place
from fedssl.training.team import in_team


def results_of(size, function, patience=60.0, waits_for=None):
    """Call a function on each process of a team, and return the dicts of tensors that they return, by rank.

    Args:
        size: Number of processes.
        function: Takes nothing and returns a dict of tensors.
        patience: Seconds that a process waits for another one.
        waits_for: Ranks whose answers count; None: all.
    """
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def body(place, rank):
        try:
            with in_team(join(place, rank, ["cpu"] * size, patience)):
                found = {name: tensor.numpy() for name, tensor in function().items()}
            answers.put((rank, found, None))
        except BaseException:
            answers.put((rank, None, traceback.format_exc()))
        os._exit(0)

    with meeting_file() as file:
        place = meeting_place(file)
        processes = [context.Process(target=body, args=(place, rank)) for rank in range(size)]
        try:
            for process in processes:
                process.start()
            by_rank = {}
            for _ in range(len(waits_for or processes)):
                rank, found, error = answers.get()
                assert error is None, error
                by_rank[rank] = {name: torch.from_numpy(array) for name, array in found.items()}
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [by_rank[rank] for rank in waits_for or range(size)]
