"""What a layer's attention weights are, head by head."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from headscope.model.weights.norms import Norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerWeights:
    """One layer's attention weights, head by head; float32 or wider, copies."""

    layer: int
    """Index of the decoder layer."""
    w_q: Float[Tensor, "head d_model d_qk"]
    """Queries. What factor the family applies to q before the dot product is inside, also the gain under `qk_norm`."""
    w_k: Float[Tensor, "kv_head d_model d_qk"]
    """Keys, likewise; in the same basis as `w_q`."""
    w_v: Float[Tensor, "kv_head d_model d_v"]
    """Values."""
    w_o: Float[Tensor, "head d_v d_model"]
    """From each head's result to the output projection's output."""
    b_q: Float[Tensor, "head d_qk"]
    """Zero where the family has none, as the other biases."""
    b_k: Float[Tensor, "kv_head d_qk"]
    """Bias of the keys."""
    b_v: Float[Tensor, "kv_head d_v"]
    """Bias of the values."""
    b_o: Float[Tensor, " d_model"]
    """Bias of the output projection; it belongs to the layer."""
    scale: float
    """Factor of `q . k`, as `AttentionSpec.scale`."""
    norm: Norm | None
    """Through which the projections read the residual stream; None where they read it raw."""
    out_norm: Norm | None
    """Applied to the projection's output before it is added to the stream; None where there is none."""
    qk_norm: bool
    """Whether q and k are normalised after their projection: then `x @ w + b` has their direction alone. The norm's
    gain and centring are inside `w_q` and `w_k`; a bias that it adds afterwards is left out."""
    rotary: bool
    """Whether q or k depend on the position after the projection."""

    def kv_head(self, head: int) -> int:
        """The KV head that a query head uses: head * n_kv // n_heads."""
        return head * self.w_k.shape[0] // self.w_q.shape[0]
