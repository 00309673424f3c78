"""The transformer layer of TransFusion: object queries look at each other and at the BEV map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PositionEmbedding(nn.Sequential):
    """(B, P, 2) positions in cells to (B, P, C), learned."""

    def __init__(self, channels: int):
        super().__init__(
            nn.Conv1d(2, channels, 1),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, position: Tensor) -> Tensor:
        """Embed every position."""
        return super().forward(position.transpose(-1, -2)).transpose(-1, -2)


class QueryDecoderLayer(nn.Module):
    """Self-attention, cross-attention to the map and a feed-forward net, normalised after each.

    Unlike DETR's, values carry the position embedding too (Bai et al., TransFusion, CVPR 2022).

    Args:
        channels: width C of queries and map.
        num_heads: attention heads.
        ffn_channels: hidden width of the feed-forward net.
        dropout: in training, of attention weights, of the hidden layer and of every branch.
    """

    def __init__(self, channels: int, num_heads: int, ffn_channels: int, dropout: float):
        super().__init__()
        attention = {"dropout": dropout, "batch_first": True}
        self.self_attention = nn.MultiheadAttention(channels, num_heads, **attention)
        self.cross_attention = nn.MultiheadAttention(channels, num_heads, **attention)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.query_position = PositionEmbedding(channels)
        self.map_position = PositionEmbedding(channels)
        for matrix in self.parameters():
            if matrix.ndim > 1:
                nn.init.xavier_uniform_(matrix)

    def forward(self, query: Tensor, bev: Tensor, position: Tensor, bev_position: Tensor) -> Tensor:
        """Refine the queries.

        Args:
            query: (B, Q, C).
            bev: (B, X * Y, C) features of all cells.
            position: (B, Q, 2) of the queries, in cells.
            bev_position: (1, X * Y, 2) of the cells' centres, in cells.

        Returns:
            (B, Q, C).
        """
        at_query, at_cell = self.query_position(position), self.map_position(bev_position)
        near = query + at_query
        attended = self.self_attention(near, near, near, need_weights=False)[0]
        query = self.norm1(query + self.dropout(attended))
        seen = bev + at_cell
        attended = self.cross_attention(query + at_query, seen, seen, need_weights=False)[0]
        query = self.norm2(query + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(query))))
        return self.norm3(query + self.dropout(hidden))
