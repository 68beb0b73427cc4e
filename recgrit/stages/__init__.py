"""The stages: each a file, from settings and parent artifacts to one artifact on disk.

`recgrit.pipeline` decides which of them have to run.
"""

from __future__ import annotations

from recgrit.experiment import ExperimentConfig
from recgrit.stages.embed import EMBED
from recgrit.stages.evaluate import evaluate_stage
from recgrit.stages.prepare import PREPARE
from recgrit.stages.recommend import RECOMMEND
from recgrit.stages.stage import Stage
from recgrit.stages.tokenize import TOKENIZE
from recgrit.stages.train import baseline_stages, train_stage

# In the order they run.
BEFORE_TRAINING = (PREPARE, EMBED, TOKENIZE)


def plan_stages(config: ExperimentConfig, until: str) -> list[Stage]:
    """The stages up to one of them, in the order they run; those the model needs none of left out.

    Args:
        config: Settings of all stages.
        until: Name of the last stage.
    """
    for place, stage in enumerate(BEFORE_TRAINING, start=1):
        if stage.name == until:
            return _needed(list(BEFORE_TRAINING[:place]), {until})
    stages: list[Stage] = [*BEFORE_TRAINING, train_stage(config)]
    if until != "train":
        stages += [*baseline_stages(config), evaluate_stage(config)]
    if until == "recommend":
        stages.append(RECOMMEND)
    return _needed(stages, {stage.name for stage in stages[len(BEFORE_TRAINING) :]})


def _needed(stages: list[Stage], wanted: set[str]) -> list[Stage]:
    """The wanted stages and what they are built from."""
    needed = set(wanted)
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.parents)
    return [stage for stage in stages if stage.name in needed]
