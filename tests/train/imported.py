"""What the server of `supervised.py` imports before it forks. Nothing here may touch a device."""

import jax.experimental.multihost_utils  # noqa: F401
