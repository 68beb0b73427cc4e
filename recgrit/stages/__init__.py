"""The stages of a run, one per file, and the plan of the stages that a run needs.

Each stage reads settings and the artifacts of its parent stages, and writes one artifact to disk.
`recgrit.pipeline` decides which of the planned stages have to run.
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

# The stages before the training, in the order in which they run.
BEFORE_TRAINING = (PREPARE, EMBED, TOKENIZE)


def plan_stages(config: ExperimentConfig, until: str) -> list[Stage]:
    """Return the stages of a run up to a given one, in the order in which they run.

    Stages that the model does not need are left out. For example, SASRec needs no ``tokenize``.

    Args:
        config: Settings of all stages.
        until: Name of the last stage, such as ``train`` or ``recommend``.
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
    """Return the wanted stages and all stages that they directly or indirectly depend on."""
    needed = set(wanted)
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.parents)
    return [stage for stage in stages if stage.name in needed]
