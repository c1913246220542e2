"""burnish improves a language model by reinforcement learning, on your own machine, and proves that it improved.

Each public name is imported on first use, so that ``import burnish`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.api import Result as Result
    from burnish.api import evaluate as evaluate
    from burnish.api import generate as generate
    from burnish.api import load as load
    from burnish.api import train as train
    from burnish.errors import BurnishError as BurnishError
    from burnish.errors import InputError as InputError
    from burnish.model import LoadedModel as LoadedModel
    from burnish.recipe.schema import Recipe as Recipe
    from burnish.recipe.schema import load_recipe as load_recipe
    from burnish.rewards.combine import combine as combine
    from burnish.rewards.registry import reward as reward
    from burnish.scoring import score as score
    from burnish.supervised.verbs import SupervisedResult as SupervisedResult
    from burnish.supervised.verbs import prefer as prefer
    from burnish.supervised.verbs import reward_model as reward_model
    from burnish.supervised.verbs import sft as sft
    from burnish.types import Completion as Completion
    from burnish.types import Group as Group
    from burnish.types import Message as Message
    from burnish.types import Prompt as Prompt
    from burnish.types import SamplingParams as SamplingParams

__version__ = "0.1.0"

_MODULES = {
    "BurnishError": "burnish.errors",
    "Completion": "burnish.types",
    "Group": "burnish.types",
    "InputError": "burnish.errors",
    "LoadedModel": "burnish.model",
    "Message": "burnish.types",
    "Prompt": "burnish.types",
    "Recipe": "burnish.recipe.schema",
    "Result": "burnish.api",
    "SamplingParams": "burnish.types",
    "SupervisedResult": "burnish.supervised.verbs",
    "combine": "burnish.rewards.combine",
    "evaluate": "burnish.api",
    "generate": "burnish.api",
    "load": "burnish.api",
    "load_recipe": "burnish.recipe.schema",
    "prefer": "burnish.supervised.verbs",
    "reward": "burnish.rewards.registry",
    "reward_model": "burnish.supervised.verbs",
    "score": "burnish.scoring",
    "sft": "burnish.supervised.verbs",
    "train": "burnish.api",
}

__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'burnish' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
