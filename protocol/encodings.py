"""How an update's tensors are written into its payload; a name that is not here is refused (`unknown_encoding`)."""

from __future__ import annotations

from protocol.messages import Named

DENSE_F32 = Named(name="dense-f32", parameters={})
"""Every floating tensor in the specification's order, each value as a float32; the only one of this version."""
