"""`operator.toml`: the configuration in an operator's kit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.runtime.settings import TlsConfig
from protocol.codec import Word

OPERATOR_TOML = "operator.toml"


class OperatorConfig(BaseModel):
    """Who the operator is, where broker and store are, as in `operator.toml`; paths are relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    federation: Word
    broker: str
    store: str = ""
    """Where runs go up and models come down; empty in kits from before there was a way to do so."""
    access: Literal["credentials", "presigned"] = "presigned"
    """How an S3 store is reached: with `credentials.toml`, or by URLs that the aggregator signs."""
    root: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=["64 hexadecimal digits"])]
    """The federation root's verify key, in hex."""
    keys: Path = Path("operator.keys")
    registry: Path = Path("registry.bin")
    insecure: bool = False
    tls: TlsConfig | None = None
    proxy: str | None = None

    def __repr__(self) -> str:
        return f"OperatorConfig(federation={self.federation!r})"
