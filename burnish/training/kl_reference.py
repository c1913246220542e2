"""What the KL term pulls towards once it has let go of the model that training started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from burnish.protocols import Policy
from burnish.types import Completion


class Anchor:
    """A policy as it was after some step: its trained weights, put in its place for as long as a question takes.

    Args:
        weights: name -> tensor, of all that is trained; kept, not copied.
    """

    def __init__(self, policy: Policy, weights: Mapping[str, Tensor]) -> None:
        self.policy = policy
        self.weights = dict(weights)

    @classmethod
    def of(cls, policy: Policy) -> Anchor:
        """The policy as it is now."""
        return cls(policy, {name: parameter.detach().clone() for name, parameter in policy.trainable().items()})

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Log-probabilities [T] of the completions' tokens under the whole softmax at a temperature; no gradient."""
        parameters = self.policy.trainable()
        now = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.weights[name]
            return self.policy.token_logprobs(completions, temperature)
        finally:
            for name, parameter in parameters.items():
                parameter.data = now[name]
