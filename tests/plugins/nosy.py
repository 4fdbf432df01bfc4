"""fedssl's clients, which also report the modules that their process has imported."""

import sys

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedssl.clients import client_app

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    return client_app.app(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return client_app.app(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    content = RecordDict({"config": ConfigRecord({"modules": sorted(sys.modules)})})
    return Message(content=content, reply_to=message)
