"""The votes of samples: which of a prompt's samples give equal answers, as a reward reads and compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.errors import BurnishError, ContractError, is_interrupt, one_line


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """How the answers of samples are read and compared.

    Attributes:
        name: of the reward that reads them, for messages.
        read: text -> the answer in it; None or "" if there is none.
        same: whether two answers are equal.
    """

    name: str
    read: Callable[[str], Any]
    same: Callable[[Any, Any], bool]

    def votes(self, texts: Sequence[str]) -> list[int | None]:
        """Return for each sample of a prompt the index of the first one with an equal answer; None without an answer.

        Equality need not be transitive, as with a tolerance: an answer is compared with the first of each group.
        Raises ContractError if a function of the reward raises an exception.
        """
        groups: dict[int, Any] = {}
        votes: list[int | None] = []
        try:
            for index, text in enumerate(texts):
                answer = self.read(text)
                if answer is None or (isinstance(answer, str) and not answer):
                    votes.append(None)
                    continue
                first = next((one for one, other in groups.items() if self.same(answer, other)), index)
                groups.setdefault(first, answer)
                votes.append(first)
        except BurnishError:
            raise
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise ContractError(
                f"reward '{self.name}' cannot read an answer: {type(error).__name__}: {one_line(error)}"
            ) from error
        return votes
