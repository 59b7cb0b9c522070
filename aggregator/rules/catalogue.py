"""Published models and the channels that name one of them, such as production; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Catalogue:
    """What operators published and promoted so far."""

    def __init__(self, models: Sequence[str], channels: Mapping[str, Sequence[str]]) -> None:
        """`channels`: for each the models it has named, the present one last."""
        self._models = set(models)
        self._channels = {channel: list(named) for channel, named in channels.items()}

    def has(self, name: str) -> bool:
        """Whether a model or a channel of this name is there: they share one set of names."""
        return name in self._models or bool(self._channels.get(name))

    def is_model(self, name: str) -> bool:
        """Whether a model was published under this name."""
        return name in self._models

    def resolve(self, name: str) -> str:
        """The model that a name means, its own or a channel's; empty if there is none."""
        named = self._channels.get(name)
        return name if name in self._models else named[-1] if named else ""

    def channels(self) -> dict[str, str]:
        """What each channel names now."""
        return {channel: named[-1] for channel, named in self._channels.items() if named}

    def publish(self, name: str) -> None:
        """A model was published."""
        self._models.add(name)

    def promote(self, name: str, channel: str) -> None:
        """Let a channel name a model from now on."""
        self._channels.setdefault(channel, []).append(name)

    def before(self, channel: str) -> str | None:
        """What a channel would name after a rollback; None if it has named only one model."""
        named = self._channels.get(channel, [])
        return named[-2] if len(named) > 1 else None

    def roll_back(self, channel: str) -> str:
        """Let a channel name again what it named before; returns that."""
        self._channels[channel].pop()
        return self._channels[channel][-1]
