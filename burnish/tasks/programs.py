"""Synthetic programming problems: families of specifications with parameters, and hidden tests.

Each family is one task with a reference solution. Its parameters give its members. Test inputs are drawn at random,
with a seed that depends on the problem alone, and answered by the solution.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WORDS = (
    "apple river stone cloud green tiger window paper silver music winter garden orange bridge candle forest doctor "
    "planet rabbit summer letter yellow market ocean pepper level radar noon eye tree moon book kayak banana see egg"
)
WORDS = _WORDS.split()
TESTS = 10
"""Hidden calls per problem; the question may show two more."""


def draw_number(rng: random.Random) -> int:
    return rng.choice([0, 1, -1]) if rng.random() < 0.15 else rng.randint(-40, 60)


def draw_sentence(rng: random.Random) -> str:
    chosen = [rng.choice(WORDS) for _ in range(rng.randint(1, 6))]
    return " ".join(each.capitalize() if rng.random() < 0.3 else each for each in chosen)


KINDS: Mapping[str, Callable[[random.Random], Any]] = {
    "x": draw_number,
    "y": draw_number,
    "n": lambda rng: rng.randint(0, 40),
    "k": lambda rng: rng.randint(0, 13),
    "word": lambda rng: rng.choice(WORDS) + rng.choice(["", "", rng.choice(WORDS)]),
    "text": draw_sentence,
    "numbers": lambda rng: [rng.randint(-20, 40) for _ in range(rng.randint(2, 8))],
    "words": lambda rng: [rng.choice(WORDS) for _ in range(rng.randint(2, 6))],
    "table": lambda rng: {rng.choice(WORDS): rng.randint(0, 30) for _ in range(rng.randint(2, 5))},
}
"""Argument name -> the function that draws its value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The specification of a function: one sentence that says what it returns, and the names of its arguments.

    Attributes:
        examples: arguments and answer of two calls that may be shown; neither is a test.
        tests: arguments and answer of the hidden calls.
    """

    family: str
    name: str
    arguments: tuple[str, ...]
    specification: str
    examples: tuple[tuple[tuple[Any, ...], Any], ...]
    tests: tuple[tuple[tuple[Any, ...], Any], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Problems that differ in their parameters.

    Attributes:
        name: the name of the family and of the function.
        arguments: names from ``KINDS``, separated by spaces.
        wordings: versions of the specification, with ``{a}`` and ``{b}`` for parameters; a member's hash chooses one.
        solve: the reference solution, called with the arguments, then the parameters.
        a, b: values of the parameters; empty if there is none.
    """

    name: str
    arguments: str
    wordings: tuple[str, ...]
    solve: Callable[..., Any]
    a: Sequence[Any] = ()
    b: Sequence[Any] = ()

    def members(self) -> Iterator[Problem]:
        for values in itertools.product(*(each for each in (self.a, self.b) if each)):
            yield self._member(values)

    def _member(self, values: tuple[Any, ...]) -> Problem:
        seed = int(hashlib.sha256(repr((self.name, values)).encode()).hexdigest()[:16], 16)
        rng = random.Random(seed)
        text = self.wordings[seed % len(self.wordings)].format(**dict(zip("ab", map(literal, values), strict=False)))
        arguments = tuple(self.arguments.split())
        calls = self._calls(rng, arguments, values)
        return Problem(self.name, self.name, arguments, text, tuple(calls[:2]), tuple(calls[2:]))

    def _calls(
        self, rng: random.Random, names: Sequence[str], values: tuple[Any, ...]
    ) -> list[tuple[tuple[Any, ...], Any]]:
        """Return different calls; at most half of them have the same answer, so that a constant does not pass."""
        calls: dict[str, tuple[tuple[Any, ...], Any]] = {}
        answers: dict[str, int] = {}
        for _ in range(2000):
            inputs = tuple(KINDS[name](rng) for name in names)
            answer = self.solve(*inputs, *values)
            if repr(inputs) not in calls and answers.get(repr(answer), 0) < (TESTS + 2) // 2:
                calls[repr(inputs)] = inputs, answer
                answers[repr(answer)] = answers.get(repr(answer), 0) + 1
            if len(calls) == TESTS + 2:
                return list(calls.values())
        raise AssertionError(f"family '{self.name}' {values}: too few calls with different answers")


def literal(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


SMALL = tuple(range(2, 14))
FEW = tuple(range(2, 7))
LETTERS = tuple("aeionrt")
SIGNS = ("-", "+", "*", "#", "_")


def _vowels(text: str) -> int:
    return sum(letter in "aeiou" for letter in text.lower())


def _fizz(n: int, a: int, b: int) -> str:
    return ("Fizz" if n % a == 0 else "") + ("Buzz" if n % b == 0 else "") or str(n)


F = Family
FAMILIES: tuple[Family, ...] = (
    # Numbers
    F("add_number", "x", ("Return x plus {a}.", "Add {a} to x and return the sum."), lambda x, a: x + a, SMALL),
    F("subtract_number", "x", ("Return x minus {a}.", "Subtract {a} from x."), lambda x, a: x - a, SMALL),
    F("multiply", "x", ("Return x times {a}.", "Return x multiplied by {a}."), lambda x, a: x * a, SMALL),
    F("linear", "x", ("Return {a} times x plus {b}.", "Multiply x by {a}, then add {b}."),
      lambda x, a, b: a * x + b, FEW, (1, 3, 5, 10)),
    F("power_of", "x", ("Return x to the power of {a}.", "Raise x to the power {a}."), lambda x, a: x**a, (2, 3, 4)),
    F("remainder", "n", ("Return the remainder of n divided by {a}.",), lambda n, a: n % a, tuple(range(3, 12))),
    F("quotient", "n", ("Return the whole part of n divided by {a}.", "Divide n by {a}, rounded down."),
      lambda n, a: n // a, tuple(range(2, 9))),
    F("is_multiple", "n", ("Return True if n is a multiple of {a}, else False.", "Say whether {a} divides n."),
      lambda n, a: n % a == 0, (2, 3, 4, 5)),
    F("is_greater", "x", ("Return True if x is greater than {a}, else False.",), lambda x, a: x > a, (0, 5, 8, 10, 20)),
    F("is_between", "x", ("Return True if x is at least {a} and at most {b}, else False.",),
      lambda x, a, b: a <= x <= b, (-10, 0, 5), (15, 20, 30)),
    F("limit_to", "x", ("Return x, but at most {a}.", "Return the smaller of x and {a}."),
      lambda x, a: min(x, a), (5, 10, 20, 30)),
    F("at_least", "x", ("Return x, but at least {a}.", "Return the larger of x and {a}."),
      lambda x, a: max(x, a), (-10, 0, 5, 10)),
    F("clamp", "x", ("Return x limited to the range from {a} to {b}.",),
      lambda x, a, b: max(a, min(b, x)), (-10, 0), (20, 30, 40)),
    F("distance", "x", ("Return the absolute difference of x and {a}.",), lambda x, a: abs(x - a), (0, 3, 7, 10)),
    F("sign", "x", ("Return 1 if x is positive, -1 if it is negative and 0 if it is zero.",),
      lambda x: (x > 0) - (x < 0)),
    F("parity", "n", ("Return 'even' if n is even, else 'odd'.",), lambda n: "odd" if n % 2 else "even"),
    F("digit_sum", "n", ("Return the sum of the digits of n.",), lambda n: sum(map(int, str(n)))),
    F("factorial", "k", ("Return the factorial of k.",), math.factorial),
    F("sum_up_to", "n", ("Return the sum of the whole numbers from 1 to n.",), lambda n: n * (n + 1) // 2),
    F("sum_multiples", "n", ("Return the sum of all multiples of {a} from 1 to n.",),
      lambda n, a: sum(range(a, n + 1, a)), FEW),
    F("fizz_buzz", "n", ("Return 'FizzBuzz' if {a} and {b} divide n, 'Fizz' if only {a} does, 'Buzz' if only {b} does, "
                         "else n as a string.",), _fizz, (2, 3), (5, 7)),
    F("combine", "x y", ("Return {a} times x plus {b} times y.",), lambda x, y, a, b: a * x + b * y, FEW, (2, 3, 4)),
    F("larger", "x y", ("Return the larger of x and y.",), max),
    F("product_plus", "x y", ("Return the product of x and y, plus {a}.",), lambda x, y, a: x * y + a, (1, 2, 5, 9)),
    F("mean_of_two", "x y", ("Return the mean of x and y.",), lambda x, y: (x + y) / 2),
    # Text
    F("reverse", "word", ("Return the word backwards.",), lambda word: word[::-1]),
    F("is_palindrome", "word", ("Return True if the word reads the same backwards, else False.",),
      lambda word: word == word[::-1]),
    F("repeat", "word", ("Return the word {a} times, without spaces.",), lambda word, a: word * a, FEW),
    F("first_letters", "word", ("Return the first {a} letters of the word.",), lambda word, a: word[:a], (1, 2, 3, 4)),
    F("last_letters", "word", ("Return the last {a} letters of the word.",), lambda word, a: word[-a:], (1, 2, 3, 4)),
    F("drop_letters", "word", ("Return the word without its first {a} letters.",), lambda word, a: word[a:], (1, 2, 3)),
    F("count_letter", "word", ("Return how often the letter {a} is in the word.",),
      lambda word, a: word.count(a), LETTERS),
    F("replace_letter", "word", ("Return the word with every {a} replaced by {b}.",),
      lambda word, a, b: word.replace(a, b), LETTERS, SIGNS[:3]),
    F("remove_letter", "word", ("Return the word without the letter {a}.",),
      lambda word, a: word.replace(a, ""), LETTERS),
    F("starts_with", "word", ("Return True if the word starts with {a}, else False.",),
      lambda word, a: word.startswith(a), tuple("rsmp")),
    F("ends_with", "word", ("Return True if the word ends with {a}, else False.",),
      lambda word, a: word.endswith(a), tuple("ren")),
    F("contains", "word", ("Return True if the letter {a} is in the word, else False.",),
      lambda word, a: a in word, LETTERS),
    F("is_longer", "word", ("Return True if the word has more than {a} letters, else False.",),
      lambda word, a: len(word) > a, (4, 5, 6, 8)),
    F("surround", "word", ("Return the word with {a} before and after it.",), lambda word, a: a + word + a, SIGNS),
    F("pad", "word", ("Return the word padded on the right with {a} to {b} characters.",),
      lambda word, a, b: word.ljust(b, a), SIGNS, (12, 15)),
    F("upper", "text", ("Return the text in capital letters.",), str.upper),
    F("count_words", "text", ("Return the number of words in the text.",), lambda text: len(text.split())),
    F("count_vowels", "text", ("Return the number of vowels in the text.",), _vowels),
    F("join_words", "text", ("Return the words of the text joined by {a} instead of spaces.",),
      lambda text, a: a.join(text.split()), SIGNS),
    F("nth_word", "text",
      ("Return word number {a} of the text, counted from 1, or an empty string if there are fewer.",),
      lambda text, a: (text.split() + [""] * 9)[a - 1], (1, 2, 3)),
    F("longest_word", "text", ("Return the longest word of the text, the first one if there are several.",),
      lambda text: max(text.split(), key=len)),
    F("initials", "text", ("Return the first letters of the words of the text as one string of capitals.",),
      lambda text: "".join(each[0].upper() for each in text.split())),
    F("reverse_words", "text", ("Return the words of the text in reverse order, joined by spaces.",),
      lambda text: " ".join(text.split()[::-1])),
    F("title", "text", ("Return the text with each word capitalized.",), str.title),
    # Lists
    F("total", "numbers", ("Return the sum of the numbers.",), sum),
    F("largest", "numbers", ("Return the largest of the numbers.",), max),
    F("spread", "numbers", ("Return the largest of the numbers minus the smallest.",), lambda v: max(v) - min(v)),
    F("mean", "numbers", ("Return the mean of the numbers.",), lambda v: sum(v) / len(v)),
    F("add_to_all", "numbers", ("Return a list with {a} added to each number.",), lambda v, a: [n + a for n in v],
      SMALL),
    F("scale", "numbers", ("Return a list of the numbers, each multiplied by {a}.",), lambda v, a: [n * a for n in v],
      FEW),
    F("squares", "numbers", ("Return a list of the squares of the numbers.",), lambda v: [n * n for n in v]),
    F("keep_above", "numbers", ("Return a list of the numbers that are greater than {a}.",),
      lambda v, a: [n for n in v if n > a], (0, 5, 10, 15, 20)),
    F("count_above", "numbers", ("Return how many of the numbers are greater than {a}.",),
      lambda v, a: sum(n > a for n in v), (0, 5, 10, 20)),
    F("keep_multiples", "numbers", ("Return a list of the numbers that {a} divides.",),
      lambda v, a: [n for n in v if n % a == 0], (2, 3)),
    F("first_items", "numbers", ("Return a list of the first {a} numbers.",), lambda v, a: v[:a], (1, 2, 3)),
    F("every_nth", "numbers", ("Return a list of the numbers at the positions 0, {a} and so on, in steps of {a}.",),
      lambda v, a: v[::a], (2, 3)),
    F("first_above", "numbers", ("Return the first number that is greater than {a}, or -1 if there is none.",),
      lambda v, a: next((n for n in v if n > a), -1), (5, 10, 20)),
    F("sorted_down", "numbers", ("Return the numbers sorted from largest to smallest.",),
      lambda v: sorted(v, reverse=True)),
    F("running_sums", "numbers", ("Return the list of running sums of the numbers.",),
      lambda v: list(itertools.accumulate(v))),
    F("without", "numbers", ("Return a list of the numbers without the first {a} and the last one.",),
      lambda v, a: v[a:-1], (1, 2)),
    F("lengths", "words", ("Return a list of the lengths of the words.",), lambda v: [len(each) for each in v]),
    F("join_list", "words", ("Return the words joined by {a}.",), lambda v, a: a.join(v), SIGNS),
    F("long_words", "words", ("Return a list of the words with more than {a} letters.",),
      lambda v, a: [each for each in v if len(each) > a], (4, 5)),
    F("words_with", "words", ("Return a list of the words that contain {a}.",),
      lambda v, a: [each for each in v if a in each], LETTERS),
    F("sorted_words", "words", ("Return the words in alphabetical order.",), sorted),
    F("unique", "words", ("Return a list of the words without repetitions, in order.",),
      lambda v: list(dict.fromkeys(v))),
    F("count_each", "words", ("Return a dictionary from each word to how often it occurs.",),
      lambda v: {each: v.count(each) for each in v}),
    F("sum_values", "table", ("Return the sum of the table's values.",), lambda t: sum(t.values())),
    F("keys_above", "table", ("Return a sorted list of the keys whose value is greater than {a}.",),
      lambda t, a: sorted(key for key, value in t.items() if value > a), (5, 10, 15)),
    F("best_key", "table", ("Return the key with the largest value, the first one if there are several.",),
      lambda t: max(t, key=lambda key: t[key])),
)  # fmt: skip


def problems() -> list[Problem]:
    """Return all problems, family by family; the same ones at every call."""
    return [problem for family in FAMILIES for problem in family.members()]
