"""Initialises embeddings from features, so that tokens with similar features start with similar embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def feature_init(
    embedding: Float[Array, "v d"], features: Float[np.ndarray, "n f"], share: float, key: Key[Array, ""]
) -> Float[Array, "v d"]:
    """Returns an embedding in which a random projection of the features provides a share of the variance.

    A random projection preserves inner products (Johnson & Lindenstrauss, 1984), so embeddings are as similar as the
    features of their tokens. Tokens without features, whose rows are zero, keep their initial embedding.

    Args:
        embedding: The initial embedding: independent random numbers of one variance.
        features: Features of the first n tokens, in rows of mean square 1 or of zeros; later tokens have none.
        share: Share of the variance, between 0 and 1.
        key: Random key of the projection.
    """
    features = np.pad(features, ((0, len(embedding) - len(features)), (0, 0)))
    scale = jnp.std(embedding) * features.shape[1] ** -0.5
    projected = features @ (scale * jax.random.normal(key, (features.shape[1], embedding.shape[1])))
    known = jnp.asarray((features != 0).any(axis=1, keepdims=True))
    return jnp.where(known, share**0.5 * projected + (1 - share) ** 0.5 * embedding, embedding).astype(embedding.dtype)
