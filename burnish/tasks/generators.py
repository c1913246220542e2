"""Generators of reasoning-gym: which ones can be used, and the questions of one.

``bench/generators.py`` tries all of them. Model text is never evaluated in this process: an answer reaches a verifier
that evaluates it as Python only if ``reaches_verifier`` finds nothing in it but arithmetic.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from typing import Any

from burnish.errors import InputError, one_line
from burnish.registry import nearest
from burnish.system.optional_packages import needed

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
"""Settings that a small model can solve. There are only 200 one-digit sums. The other generators keep their own."""

_NAMES = (
    "ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation "
    "binary_matrix bitwise_arithmetic caesar_cipher calendar_arithmetic chain_sum circuit_logic color_cube_rotation "
    "complex_arithmetic count_bits count_primes countdown course_schedule cryptarithm decimal_arithmetic "
    "decimal_chain_sum dice emoji_mystery family_relationships figlet_font fraction_simplification futoshiki "
    "game_of_life gcd graph_color group_anagrams gsm_symbolic jugs kakurasu knights_knaves largest_island lcm "
    "leg_counting letter_counting letter_jumble list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku "
    "modulo_grid n_queens needle_haystack number_filtering number_format number_sequence number_sorting "
    "palindrome_generation palindrome_partitioning path_star polynomial_equations pool_matrix power_function "
    "prime_factorization products quantum_lock rearc rectangle_count rotate_matrix rotten_oranges self_reference "
    "sentence_reordering shortest_path simple_equations simple_geometry sokoban spell_backward spiral_matrix "
    "string_insertion string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals "
    "tower_of_hanoi tsumego word_sequence_reversal word_sorting zebra_puzzles"
)
GENERATORS = _NAMES.split()
"""The generators that can be used."""

_ANSWERLESS = "its rows carry no answer, so its verdicts cannot be tried before training"
_HASHED = "its questions or answers depend on Python's hash seed, so a resumed run would train on others"
_EVALUATED = "its verifier evaluates the answer as Python code"
REFUSED: Mapping[str, str] = {
    "boxnet": _ANSWERLESS,
    "codeio": f"it runs programs of its data that write files, and {_HASHED}",
    "coin_flip": "its verifier accepts the first characters of an answer, such as 0 for 0.25",
    "composite": "it has no questions of its own; task.generators mixes generators",
    "game_of_life_halting": "its verifier accepts any text",
    "intermediate_integration": _EVALUATED,
    "isomorphic_strings": _HASHED,
    "knight_swap": _HASHED,
    "polynomial_multiplication": _HASHED,
    "propositional_logic": _ANSWERLESS,
    "puzzle24": f"{_EVALUATED}, and accepts any four numbers",
    "ransom_note": _HASHED,
    "rubiks_cube": _ANSWERLESS,
    "rush_hour": _ANSWERLESS,
    "simple_integration": _EVALUATED,
    "word_ladder": _HASHED,
}
"""Generators that cannot be used -> the reason."""

_ARITHMETIC = re.compile(r"(?:[-+/() 0-9]|\*(?!\*))+")
_REACHES: Mapping[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "countdown": lambda text, entry: _ARITHMETIC.fullmatch(text) is not None,
    # These evaluate what is not a right answer, for partial credit.
    "n_queens": lambda text, entry: text in entry["metadata"]["valid_answers"],
    # Its distance to a NaN is a NaN, of which it makes 1.
    "complex_arithmetic": lambda text, entry: "nan" not in text.lower(),
    **dict.fromkeys(("binary_matrix", "spiral_matrix", "string_insertion"), lambda text, entry: False),
}
"""Generators whose verifiers evaluate an answer as Python, or accept a wrong one -> whether it can do no harm there."""


def check_generator(name: str) -> None:
    """Raise InputError, with the reason or the nearest names, if a generator cannot be used."""
    if name in REFUSED:
        raise InputError(f"generator '{name}' of reasoning-gym cannot be used: {REFUSED[name]}")
    if name not in GENERATORS:
        known = [*GENERATORS, *REFUSED]
        raise InputError(
            f"generator = '{name}'{nearest(name, known)}: reasoning-gym has no such generator; docs/en/tasks.md lists "
            "those that can be used"
        )


def reaches_verifier(name: str, text: str, entry: Mapping[str, Any]) -> bool:
    """Return whether an answer that differs from the entry's own may be given to the generator's verifier."""
    return name not in _REACHES or _REACHES[name](text, entry)


def generate_entries(name: str, settings: Mapping[str, Any], size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` entries of a generator, each with a question, an answer and metadata.

    reasoning-gym derives question i from seed + i, so neighbouring seeds would share nearly all questions. Seeds are
    therefore spread over 32 bits by the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4).

    Raises InputError if the package is missing, refuses the settings, or fails with them.
    """
    spread = seed * 2654435769 % 2**32
    # Some generators print.
    with _own_random_state(spread), redirect_stdout(io.StringIO()):
        dataset = _create(name, {**settings, "size": size, "seed": spread})
        try:
            entries = [dict(dataset[index]) for index in range(size)]
        except Exception as error:
            raise InputError(
                f"generator '{name}' cannot make {size} questions with these settings: {type(error).__name__}: "
                f"{one_line(error)}"
            ) from error
    for entry in entries:
        if entry["answer"] is None and "possible_answer" in entry["metadata"]:  # graph_color
            entry["answer"] = json.dumps(entry["metadata"]["possible_answer"])
    return entries


@lru_cache(maxsize=128)
def get_verifier(name: str) -> Any:
    """Return a generator's ``score_answer``, with the package's settings."""
    with _own_random_state(0):
        return _create(name, {}).score_answer


def _create(name: str, settings: Mapping[str, Any]) -> Any:
    gym = needed("reasoning_gym", "reasoning", f"the generator '{name}'")
    try:
        return gym.create_dataset(name, **settings)
    except Exception as error:
        raise InputError(f"generator '{name}' refuses its settings: {one_line(error)}") from error


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Seed the global random states of Python and numpy, which some generators draw from, and restore them."""
    import numpy as np

    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
