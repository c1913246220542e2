"""LSTM language model, small enough to train from scratch on a laptop."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    """LSTM from token ids [B, T] to logits [B, T, V] (Hochreiter and Schmidhuber 1997; Graves 2013, arXiv 1308.0850).

    Dropout is between the layers and before the head, in pretraining only: the policy is in evaluation mode.
    """

    def __init__(
        self, vocabulary_size: int, *, embedding: int = 64, hidden: int = 256, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        # torch warns if there is a dropout between layers but only one layer.
        between = dropout if layers > 1 else 0.0
        self.recurrent = nn.LSTM(embedding, hidden, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, vocabulary_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.advance(tokens, None)[0]

    def advance(self, tokens: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [B, T, V] of tokens [B, T] after a state, and the state after the last token.

        A state is hidden and cell state, [B, layers, hidden] each; None before the first token.
        """
        initial = None
        if state is not None:
            initial = tuple(part.transpose(0, 1).contiguous() for part in state)
        # cuDNN's LSTM has no backward pass in evaluation mode.
        with torch.backends.cudnn.flags(enabled=self.training):
            output, after = self.recurrent(self.embedding(tokens), initial)
        return self.head(self.dropout(output)), tuple(part.transpose(0, 1) for part in after)
