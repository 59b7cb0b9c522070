"""Every size the wire allows, in one place; each is checked before anything of that size is allocated."""

from __future__ import annotations

from typing import Final

MESSAGE: Final = 256 * 1024
"""Bytes of one message on the broker."""
BODY: Final = 192 * 1024
"""Bytes of one inline body inside a message."""
STORED_RECORD: Final = 1024 * 1024
"""Bytes of one signed record in the store (version, specification and registry records, the head)."""
URLS: Final = 256
"""Objects one request may ask URLs for."""
HEAD: Final = 16 * 1024
"""Bytes of a head that a grant carries."""
RECIPIENTS: Final = 1500
"""Participants one message or record may be wrapped for."""
RECORD: Final = 1024 * 1024
"""Plaintext bytes of one record of a blob."""
RECORDS_PER_CHUNK: Final = 8
OVERHEAD: Final = 17
"""Ciphertext bytes a secretstream push adds."""
CHUNK: Final = RECORDS_PER_CHUNK * (RECORD + 32)
"""Ciphertext bytes of one chunk object, at most, whatever the suite."""
CHUNKS: Final = 2048
"""Chunks of one blob; 16 GiB of plaintext."""
BLOB: Final = CHUNKS * RECORDS_PER_CHUNK * RECORD
"""Plaintext bytes of one blob."""
TENSORS: Final = 20_000
"""Tensors of one model."""
TENSOR_NAME: Final = 256
"""Characters of a tensor's name."""
DIMENSIONS: Final = 8
ABSENT: Final = 8192
"""Tensors one update may leave out."""
FIELDS: Final = 256
"""Keys of one map in a message."""
PLAINS: Final = 1024
"""Elements of one list among the parameters of a filter, task or command."""
SPEC: Final = 8 * RECORD
"""Bytes of one encoded model specification."""
CONFIG: Final = 64 * 1024
"""Bytes of a run's settings."""
CODE: Final = 16 * RECORD
"""Bytes of a run's code as a zip archive."""
CODE_UNPACKED: Final = 64 * RECORD
"""Bytes of all its files."""
CODE_FILES: Final = 1000
MEASUREMENTS: Final = 256
"""Sites whose measurements a card tells."""
MERGE_MEMBERS: Final = 128
"""Updates that may enter one version."""
SEQUENCE_WINDOW: Final = 4096
"""How far below or above the highest sequence seen a site's message may lie."""
