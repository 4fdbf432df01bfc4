"""The facts of docs/secure-aggregation.md about Flower: if one of these tests fails, look at that page again."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
    Stage,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.primitives.asymmetric import generate_key_pairs

from fedssl.clients.client_app import app
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from tests.clients.test_fused_app import requests
from tests.helpers import small_experiment

RANGE = 2**32


def test_masks_hang_on_32_bits_of_a_secret_of_256():
    """Secrets that have nothing in common but the XOR of their words give the same mask."""
    words = np.random.default_rng(0).integers(0, 2**32, 8, dtype=np.uint32)
    folded = np.zeros(8, dtype=np.uint32)
    folded[0] = np.bitwise_xor.reduce(words)
    masks = [pseudo_rand_gen(seed.tobytes(), RANGE, [(100,)])[0] for seed in (words, folded)]
    assert (masks[0] == masks[1]).all()
    twister = np.random.RandomState(int(folded[0])).randint(0, RANGE - 1, (100,), dtype=np.int64)
    assert (masks[0] == twister).all()


def test_the_secret_of_two_neighbors_is_text_whose_bytes_leave_a_bit_free():
    (own, _), (_, other) = generate_key_pairs(), generate_key_pairs()
    secret = np.frombuffer(generate_shared_key(own, other), dtype="<u4")
    assert int(np.bitwise_xor.reduce(secret)) & 0x80808080 == 0


def test_the_workflow_takes_the_older_context_only():
    context = Context(1, 1, {}, RecordDict(), {})
    workflow = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)
    with pytest.raises(TypeError, match="Expect a LegacyContext"):
        workflow(SerialGrid(Apps(app), 3), context)


def test_the_mod_reads_the_older_replies_only():
    """Our client trains behind the mod, and the mod does not find the reply's weights."""
    (message, *_), (context, *_) = requests(small_experiment(), [3, 4])
    stage = {
        Key.STAGE: Stage.COLLECT_MASKED_VECTORS,
        Key.CIPHERTEXT_LIST: [b""],
        Key.SOURCE_LIST: [0],
    }
    message.content[RECORD_KEY_CONFIGS] = ConfigRecord(stage)
    context.state[RECORD_KEY_STATE] = ConfigRecord({"current_stage": Stage.SHARE_KEYS})
    replies: list[Message] = []

    def trained(msg: Message, ctx: Context) -> Message:
        del msg.content[RECORD_KEY_CONFIGS]
        replies.append(app(msg, ctx))
        return replies[-1]

    assert message.metadata.message_type == MessageType.TRAIN
    with pytest.raises(KeyError, match=r"fitres\.parameters"):
        secaggplus_mod(message, context, trained)
    assert set(replies[0].content) == {protocol.ARRAYS, protocol.METRICS}
