"""f_a2t: the module that turns an audio embedding into pseudo-tokens of the text encoder, Eqs. (7) and (14)."""

from __future__ import annotations

from torch import Tensor, nn

# B = batch, D = joint width, T = pseudo-tokens of a clip, E = token width


class AudioToText(nn.Module):
    """Hidden layers of Linear(D -> D), Dropout, ReLU, then Linear(D -> T * E); the paper has one pseudo-token.

    The order of dropout and ReLU, and dropout 0.1, are those of Pic2Word's IM2TEXT module.
    """

    def __init__(
        self, embedding_dim: int, token_dim: int, hidden_layers: int = 2, dropout: float = 0.1, tokens: int = 1
    ) -> None:
        super().__init__()
        self.hidden_layers = hidden_layers
        self.dropout = dropout
        self.tokens = tokens
        hidden = [
            nn.Sequential(nn.Linear(embedding_dim, embedding_dim), nn.Dropout(dropout), nn.ReLU())
            for _ in range(hidden_layers)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(embedding_dim, tokens * token_dim))

    def forward(self, audio_BD: Tensor) -> Tensor:
        """Pseudo-tokens (B, T, E) of audio embeddings (B, D)."""
        return self.layers(audio_BD).unflatten(-1, (self.tokens, -1))
