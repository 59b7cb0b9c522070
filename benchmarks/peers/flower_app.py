"""The Flower app: FedAvg at the server, noise at the sites, no evaluation. `flower_job` builds and runs it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.peers import layers

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and write when they began and ended."""
    config = context.run_config
    sites = config["sites"]
    arrays = ArrayRecord(list(layers.initial(config["size-mb"]).values()), keep_input=False)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    while len(list(grid.get_node_ids())) < sites:  # the time until all have connected is not Flower's
        time.sleep(0.1)
    began = time.time()
    result = strategy.start(grid, arrays, num_rounds=config["versions"], timeout=7200)
    told = {"began": began, "ended": time.time(), "versions": len(result.train_metrics_clientapp)}
    Path(config["result"]).write_text(json.dumps(told))


@client.train()
def train(message: Message, context: Context) -> Message:
    """One step at a site."""
    weights = message.content["arrays"].to_numpy_ndarrays(keep_input=False)
    layers.train(weights, context.node_config["site"])
    arrays = ArrayRecord(weights, keep_input=False)
    reply = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 100})})
    return Message(content=reply, reply_to=message)
