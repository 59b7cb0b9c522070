"""Every error fledge raises, in one tree.

FledgeError
├── ConfigError           a file, option or argument is wrong; says which and what would be right
├── WireError             received bytes were refused; `reason` is the word that goes into receipts and dead letters
│   ├── Malformed         not what the specification says
│   ├── TooLarge          over a limit; refused before anything was allocated
│   ├── Untrusted         unknown or revoked key, or a signature that does not verify
│   ├── WrongContext      genuine, but meant for another federation, kind, recipient or model
│   └── Tampered          ciphertext, hash or commitment does not match what was signed
├── TransportError        the broker was not reached or did not take responsibility (retryable)
│   ├── Unroutable        no queue is bound where the message went
│   ├── NotAllowed        the broker refused this user (403)
│   │   └── LoginRefused  it did not even let them in
│   └── QueueFull         a bounded queue pushed back; the message stays in the outbox
├── StoreError            the object store was not reached or failed (retryable)
│   ├── Missing           there is no such object
│   ├── Forbidden         the store refused this identity (403)
│   └── Corrupt           the object's bytes are not what its name says
├── StateError            the local database cannot be used
│   ├── Fenced            another process has taken over (exit code 3)
│   ├── DatabaseBusy      another program keeps it to itself (retryable)
│   └── DiskFull          not enough free space; says how much is needed where
└── TrainingError         a trainer or privacy filter failed or broke its promise
    ├── Aborted           training was told to stop
    ├── OutOfMemory       it needs more memory than there is
    ├── DataError         the site's data are not what the trainer can train on
    ├── Diverged          what it came to is not finite
    ├── NothingLearned    it changed nothing of what is shared
    └── StrategyFailed    a run's strategy failed, or merged to what is not finite; its run is paused
"""

from __future__ import annotations


class FledgeError(Exception):
    """Root of the tree; `retryable` says whether trying the same thing again can help."""

    retryable = False


class ConfigError(FledgeError):
    """A file, option or argument is wrong."""


class WireError(FledgeError):
    """Received bytes were refused; `reason` is a fixed word that is safe to send to anyone."""

    reason = "malformed"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class Malformed(WireError):
    """The bytes are not what the specification says."""


class TooLarge(WireError):
    """A size is over its limit; nothing was allocated for it."""

    reason = "too_large"


class Untrusted(WireError):
    """The key is unknown or revoked, or the signature does not verify."""

    reason = "untrusted"


class WrongContext(WireError):
    """Genuine, but meant for another federation, kind, recipient or model."""

    reason = "wrong_context"


class Unauthorized(WireError):
    """Genuine, but its sender may not ask for this."""

    reason = "not_authorized"


class Tampered(WireError):
    """Ciphertext, hash or key commitment does not match what was signed."""

    reason = "tampered"


class TransportError(FledgeError):
    """The broker was not reached or did not take responsibility."""

    retryable = True


class Unroutable(TransportError):
    """No queue is bound where the message went."""


class NotAllowed(TransportError):
    """The broker refused this user."""


class LoginRefused(NotAllowed):
    """The broker did not let this user in at all, or not into this vhost."""


class QueueFull(TransportError):
    """A bounded queue pushed back."""


class StoreError(FledgeError):
    """The object store was not reached or failed."""

    retryable = True


class Missing(StoreError):
    """There is no such object."""


class Forbidden(StoreError):
    """The store refused this identity; trying again does not help before an administrator changes its rights."""

    retryable = False


class Corrupt(StoreError):
    """The object's bytes are not what its name says."""


class StateError(FledgeError):
    """The local database cannot be used."""


class Fenced(StateError):
    """Another process has taken over this database."""


class DatabaseBusy(StateError):
    """Another program keeps the database to itself."""

    retryable = True


class DiskFull(StateError):
    """Not enough free space."""


class TrainingError(FledgeError):
    """A trainer or privacy filter failed or broke its promise."""


class Aborted(TrainingError):
    """Training was told to stop."""


class OutOfMemory(TrainingError):
    """Training needs more memory than there is."""


class DataError(TrainingError):
    """The site's data are missing, empty, or not what the trainer can train on."""


class Diverged(TrainingError):
    """A loss or a trained value is not finite."""


class NothingLearned(TrainingError):
    """A training left every shared value as it was."""


class StrategyFailed(TrainingError):
    """A strategy or its staleness rule raised an error or gave values that cannot be merged."""
