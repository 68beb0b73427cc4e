"""Train under torchrun. In the first start of the job, the second process is killed in epoch 2.

The call is ``torchrun elastic_training.py FOLDER KILL_AT``. The folder contains the data, and the
result is written to it. The second process kills itself when it computes loss number KILL_AT.
"""

import datetime
import json
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist

from recgrit import distributed
from recgrit.models.model import CatalogueInputs
from recgrit.models.trie import TrieModel
from recgrit.retrieval.model import TrieRetriever


def die_at(kill_at):
    loss, calls = TrieRetriever.loss, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(*arguments)

    TrieRetriever.loss = counted


def main():
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    distributed.join("gloo", timeout=datetime.timedelta(seconds=60))
    if life == 0 and dist.get_rank() == 1:
        die_at(kill_at)
    table, split, config = pickle.loads((folder / "job.pickle").read_bytes())
    inputs = CatalogueInputs(
        trained=split.train_item_counts() > 0,
        semantic_ids=table,
        features=None,
        words=None,
        listed=np.ones(split.num_items, dtype=bool),
        num_known=split.num_items,
    )
    found = TrieModel.fit(
        inputs, split, config, seed=0, checkpoint=folder / "state.safetensors"
    ).summary
    if dist.get_rank() == 0:
        losses = [epoch.train_loss for epoch in found.history]
        scores = [epoch.valid_ndcg_at_10 for epoch in found.history]
        result = {"life": life, "losses": losses, "scores": scores}
        (folder / "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
