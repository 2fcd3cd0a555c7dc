"""The text encoder: transformers' GPT-2, BERT or LAION's RoBERTa, from token embeddings to the joint space."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.tokenization import TextKind

# B = batch, L = tokens, E = token width, D = joint width

FUSED_GELU = "gelu_pytorch_tanh"
"""The function that GPT-2's `gelu_new` writes out in seven tensor operations, as one."""


class TextEncoder(nn.Module):
    """A transformer and its projection, which take a caption's token embeddings; `base` and `projection` as in msclap.

    pooled_at: "last", the last token, which alone has seen all of a causal transformer's caption; "first", the first
        token, wherever the others stand; "pooler", the first token behind the transformer's own pooler.
    positions: tokens that the transformer has positions for.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        projection: nn.Module,
        *,
        kind: TextKind,
        pooled_at: Literal["last", "first", "pooler"],
        positions: int,
    ) -> None:
        super().__init__()
        self.base = base
        self.projection = projection
        self.kind = kind
        self.pooled_at = pooled_at
        self.positions = positions
        self.token_dim = int(base.config.hidden_size)
        base.config.use_cache = False  # of keys and values, for generating text
        if pooled_at == "first":
            # In the state dict, so that exports are whole; DDP must not wait for its gradient.
            base.pooler.requires_grad_(False)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Token embeddings (B, L, E), before positions are added."""
        return self.base.get_input_embeddings()(ids_BL)

    def forward(self, embeds_BLE: Tensor, lengths_B: Tensor) -> Tensor:
        """Embeddings (B, D) of captions whose first `lengths_B` token embeddings are theirs and the rest padding."""
        if self.pooled_at == "last":
            # No attention mask: attention is causal, so padding on the right of the last position cannot reach it.
            states_BLE = self.base(inputs_embeds=embeds_BLE).last_hidden_state
            rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
            return self.projection(states_BLE[rows_B, lengths_B - 1])
        is_token_BL = torch.arange(embeds_BLE.shape[1], device=lengths_B.device) < lengths_B[:, None]
        # With a dimension for the queries: of (B, L) transformers asks whether it is all ones, which waits for the GPU.
        output = self.base(inputs_embeds=embeds_BLE, attention_mask=is_token_BL[:, None].long())
        return self.projection(output.pooler_output if self.pooled_at == "pooler" else output.last_hidden_state[:, 0])
