"""Proof after the fact: replay of versions, what is kept for it, exports."""
