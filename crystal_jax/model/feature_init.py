"""An embedding that knows, before training, which tokens are alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def feature_init(
    embedding: Float[Array, "v d"], features: Float[np.ndarray, "n f"], share: float, key: Key[Array, ""]
) -> Float[Array, "v d"]:
    """Puts a random projection of the features in place of a share of the variance of an embedding just drawn.

    Inner products survive a random projection (Johnson & Lindenstrauss, 1984), so tokens are alike as far as their
    features are. Tokens without features, whose rows are zero, stay as they are drawn.

    Args:
        embedding: Independent numbers, of one variance.
        features: Of the first n tokens, in rows of mean square 1 or of zeros; tokens after them have none.
        share: Between 0 and 1.
        key: Of the projection.
    """
    features = np.pad(features, ((0, len(embedding) - len(features)), (0, 0)))
    scale = jnp.std(embedding) * features.shape[1] ** -0.5
    projected = features @ (scale * jax.random.normal(key, (features.shape[1], embedding.shape[1])))
    known = jnp.asarray((features != 0).any(axis=1, keepdims=True))
    return jnp.where(known, share**0.5 * projected + (1 - share) ** 0.5 * embedding, embedding).astype(embedding.dtype)
