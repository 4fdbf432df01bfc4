"""Evaluation on workers gives the same bits as evaluation in the server's process."""

import numpy as np

from fedssl.engine.local_grid import Apps
from fedssl.engine.plan import Wish
from fedssl.engine.ray.grid import RayGrid
from fedssl.engine.remote_grid import RemoteGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.metrics.accuracy import BATCH_SIZE, Evaluation, add_evaluations
from fedssl.metrics.evaluators.classifier import OwnClassifier
from fedssl.server import evaluation
from fedssl.server.evaluation import Judging
from fedssl.training.network import build_network
from tests.helpers import federation_of, small_experiment


def test_shares_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr(evaluation, "WORTH_SHARING", 1)
    experiment = small_experiment(data={"train_size": 100})
    held_out = len(federation_of(experiment).held_out)
    assert held_out > BATCH_SIZE
    models = [
        {
            name: tensor.numpy()
            for name, tensor in build_network(
                experiment.model, experiment.method, federation_of(experiment).data.spec, seed
            )
            .state_dict()
            .items()
        }
        for seed in (0, 1)
    ]
    judging = Judging.of(experiment.to_client_json(), experiment.server.evaluator)
    here = evaluation.evaluate_models(judging, models, held_out, SerialGrid(Apps(print), 6, "cpu"))
    alone = SerialGrid(Apps(print), 6, "cpu")
    probs = evaluation.predict_models(judging, models, held_out, alone)
    grid = RayGrid(Apps(print), 6, Wish(2, 0))
    try:
        assert evaluation.evaluate_models(judging, models, held_out, grid) == here
        theirs = evaluation.predict_models(judging, models, held_out, grid)
    finally:
        grid.close()
    assert here[0] != here[1]
    labels = federation_of(experiment).held_out.labels
    for mine, theirs_of_model, found in zip(probs, theirs, here, strict=True):
        assert np.array_equal(mine, theirs_of_model)
        assert (mine.argmax(1) == labels).sum() == found.num_correct
    assert here[0].num_examples == held_out


def test_workers_with_gpus_are_always_asked(monkeypatch):
    grid = SerialGrid(Apps(print), 6, "cpu")
    assert not evaluation.are_shared(grid, 10**6)  # it is this process
    assert not evaluation.are_shared(RemoteGrid(grid), 10**6)  # its clients are other processes
    assert SerialGrid(Apps(print), 6, "cuda:0").has_gpus
    experiment = small_experiment(data={"train_size": 100})
    network = build_network(
        experiment.model, experiment.method, federation_of(experiment).data.spec, 0
    )
    models = [{name: tensor.numpy() for name, tensor in network.state_dict().items()}] * 2
    judging, asked = Judging.of(experiment.to_client_json(), OwnClassifier()), []
    here = evaluation.evaluate_models(judging, models, 360, grid)
    monkeypatch.setattr(SerialGrid, "has_gpus", True)
    monkeypatch.setattr(
        SerialGrid,
        "map",
        lambda self, f, calls, timeout: [asked.append(c) or f("cpu", *c) for c in calls],
    )
    assert evaluation.are_shared(grid, 1)
    assert evaluation.evaluate_models(judging, models, 360, grid) == here
    assert len(asked) == 2


def test_losses_add_up_exactly_in_any_order():
    parts = [Evaluation(1, 0, loss) for loss in (1e16, 1.0, -1e16, 1.0, 1e-9)]
    assert add_evaluations(parts) == add_evaluations(parts[::-1])
    assert add_evaluations(parts).loss_sum == 2.0 + 1e-9
    assert add_evaluations([]) == Evaluation(0, 0, 0.0)
