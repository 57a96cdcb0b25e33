"""Each head's weights in any family, and the vocabulary's tables, found by tracing, never by names."""

from headscope.model.weights.assembly import LayerWeights, layer_weights
from headscope.model.weights.norms import Norm
from headscope.model.weights.vocabulary import Vocabulary, vocabulary

__all__ = ["LayerWeights", "Norm", "Vocabulary", "layer_weights", "vocabulary"]
