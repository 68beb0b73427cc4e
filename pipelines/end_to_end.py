"""The main job: from raw files to item IDs, evaluation and recommendations.

    python pipelines/end_to_end.py configs/movielens-100k.yaml retriever.epochs=5

`recgrit run` calls the same function.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from recgrit.config import load_config
from recgrit.errors import RecgritError
from recgrit.experiment import ExperimentConfig
from recgrit.running import run_experiment


def main(config: ExperimentConfig) -> Path:
    """Run all stages that are not up to date; returns the run folder."""
    return run_experiment(config).directory


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        print(main(load_config(ExperimentConfig, sys.argv[1], sys.argv[2:])))
    except RecgritError as error:
        sys.exit(str(error))
