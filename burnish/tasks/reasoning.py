"""The reasoning task: questions that reasoning-gym makes, each answer judged by its generator's own verifier.

reasoning-gym (Apache-2.0) makes any number of questions from a seed. Some of its verifiers evaluate the answer as Python,
which model text never is outside the sandbox, so only generators with one of these verifiers are taken:

- ``chain_sum`` and ``products`` compare the answer as a decimal number, and pay a share to a text that contains it;
- ``decimal_arithmetic`` takes any number within 0.001 of the answer, whatever the settings;
- ``spell_backward`` compares letters without case, and pays a share for each letter in its place;
- the other six have the package's common verifier: equal texts, or a share for a text that contains the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from burnish.data.splits import Example, TwoSided, asked, example
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.system.optional_packages import needed

if TYPE_CHECKING:
    from burnish.protocols import Observer

EASY: Mapping[str, Mapping[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "allow_negation": False},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "simple_equations": {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 20},
    "gcd": {"min_value": 1, "max_value": 60},
    "lcm": {"min_value": 1, "max_value": 20},
    "decimal_arithmetic": {"min_num_decimal_places": 1, "max_num_decimal_places": 1, "max_terms": 2},
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
    "letter_counting": {"min_words": 1, "max_words": 4},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 5},
}
"""The generators that are taken, and settings within reach of a small model. One-digit sums have 200 questions in all."""

PLAIN_WORDS = "Give the answer only."


class Reasoning(TwoSided):
    """Questions with one right answer, made by a generator of reasoning-gym and judged by its own verifier.

    Args:
        generator: one of ``EASY``.
        settings: of the generator, over its easy ones; for instance ``{ max_digits = 3 }``.
        size: how many questions are made; equal ones are kept once, so easy settings may give fewer.
        seed: of the generator.
        instruction: follows each question.
        chat: whether questions go through the model's chat template; else "Answer:" follows each.
        held_out_percent: share of the questions, by hash, that training never sees.

    Raises:
        InputError: an unknown generator or setting, a value that it refuses, or reasoning-gym is missing.
    """

    name = "reasoning"

    def __init__(
        self,
        *,
        generator: str = "chain_sum",
        settings: dict[str, Any] = {},  # noqa: B006 - read, never changed; a default is how an option's kind is known
        size: int = 2000,
        seed: int = 0,
        instruction: str = PLAIN_WORDS,
        chat: bool = True,
        held_out_percent: int = 10,
    ) -> None:
        super().__init__(held_out_percent)
        if generator not in EASY:
            raise InputError(
                f"generator = '{generator}'{nearest(generator, EASY)}: known: {', '.join(EASY)}; others are not taken, "
                "since some of their verifiers run the answer as code"
            )
        if size < 10:
            raise InputError(f"size = {size}: must be at least 10")
        self.generator = generator
        self.settings = {**EASY[generator], **settings}
        self.size, self.seed, self.instruction, self.chat = size, seed, instruction, chat

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[Example]:
        made = generator_of(self.generator, tuple(sorted(self.settings.items())), self.size, self.seed)
        return [self._example(dict(made[index])) for index in range(self.size)]

    def _example(self, entry: dict[str, Any]) -> Example:
        question = f"{entry['question']}\n{self.instruction}".strip()
        metadata: dict[str, object] = {"generator": self.generator, "entry": entry}
        return example(
            f"reasoning/{self.generator}",
            entry["question"],
            question if self.chat else f"{question}\nAnswer:",
            entry["answer"],
            messages=asked(question, chat=self.chat),
            texts=(),  # each question is one of its kind: a number changed is another question
            metadata=metadata,
        )


@lru_cache(maxsize=16)
def generator_of(name: str, settings: tuple[tuple[str, Any], ...] = (), size: int = 1, seed: int = 0) -> Any:
    """A data set of reasoning-gym. Raises InputError where the package is missing or refuses the settings."""
    gym = needed("reasoning_gym", "reasoning", f"the generator '{name}'")
    try:
        return gym.create_dataset(name, size=size, seed=seed, **dict(settings))
    except (TypeError, AssertionError, ValueError) as error:
        raise InputError(f"generator '{name}' refuses its settings: {' '.join(str(error).split())}") from error
