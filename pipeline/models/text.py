"""The text encoder: transformers' GPT-2, BERT or RoBERTa, from token embeddings to the joint space."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.tokenization import TextKind

# B = batch, L = tokens, E = token width, D = joint width

FUSED_GELU = "gelu_pytorch_tanh"
"""GPT-2's `gelu_new` as one operation instead of seven."""


class TextEncoder(nn.Module):
    """A transformer and its projection for the token embeddings of captions; `base` and `projection` as in msclap.

    pooled_at: "last": the last token, the only one of a causal transformer that depends on the whole caption; "first":
        the first token; "pooler": the first token after the transformer's own pooler.
    positions: maximum number of tokens of the transformer.
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
        base.config.use_cache = False  # keys and values, only for generating text
        if pooled_at == "first":
            # It stays in the state dict for complete exports; DDP must not wait for its gradient.
            base.pooler.requires_grad_(False)

    def layer_groups(self) -> list[list[nn.Module]]:
        """Return the modules by depth: token embeddings, one group per block, then the top with the projection.

        The top is the last norm of GPT-2, or the pooler of BERT and RoBERTa.
        """
        base: Any = self.base
        if self.pooled_at == "last":
            front, blocks, top = [base.wte, base.wpe], base.h, base.ln_f
        else:
            front, blocks, top = [base.embeddings], base.encoder.layer, base.pooler
        return [front, *([block] for block in blocks), [top, self.projection]]

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Return token embeddings (B, L, E), without positions."""
        return self.base.get_input_embeddings()(ids_BL)

    def forward(self, embeds_BLE: Tensor, lengths_B: Tensor) -> Tensor:
        """Return embeddings (B, D) of captions; the token embeddings after the first `lengths_B` are padding."""
        if self.pooled_at == "last":
            # No padding in the mask: with causal attention, padding after the last token cannot affect it.
            # transformers uses a mask of four dimensions as it is; without one, it computes this one for every caption.
            tokens = embeds_BLE.shape[1]
            is_seen_11LL = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=embeds_BLE.device).tril()
            states_BLE = self.base(inputs_embeds=embeds_BLE, attention_mask=is_seen_11LL).last_hidden_state
            rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
            return self.projection(states_BLE[rows_B, lengths_B - 1])
        is_token_BL = torch.arange(embeds_BLE.shape[1], device=lengths_B.device) < lengths_B[:, None]
        # With a dimension for the queries: transformers tests if a (B, L) mask is all ones, which waits for the GPU.
        output = self.base(inputs_embeds=embeds_BLE, attention_mask=is_token_BL[:, None].long())
        return self.projection(output.pooler_output if self.pooled_at == "pooler" else output.last_hidden_state[:, 0])
