"""Opens what a URL names by its scheme: ours, and those that installed packages bring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from broker.net.tls import Tls
from broker.net.urls import scheme_of
from broker.runtime.plugins import FAILURES, ExtensionPoint
from protocol.errors import ConfigError, FledgeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a configuration says about its connections, besides the URL."""

    name: str = "fledge"
    """Who connects; for lists of connections."""
    insecure: bool = False
    """Whether plain text may go to other machines than this one."""
    tls: Tls | None = None
    """The certificate files, where the URL names none; with a certificate and no user that is the login."""
    proxy: str | None = None
    """The proxy's URL; without it HTTPS_PROXY counts. NO_PROXY counts always."""


class Scheme(ABC, Generic[T]):
    """A way to reach a broker or a store, by the URLs that begin with its name; made without arguments.

    URLs may hold passwords: `broker.net.urls.split_url` takes them apart so that no error shows one.
    """

    example: ClassVar[str] = ""
    """How its URLs begin, where that is not `name://`."""

    def check(self, url: str, *, insecure: bool) -> None:
        """Object to a URL that `open` would not take, while federations and kits are made; nothing is opened.

        Credentials may be missing from it.

        Raises:
            ConfigError: the URL is wrong, or plain text would go to another machine without `insecure`.
        """

    @abstractmethod
    def open(self, url: str, connection: Connection) -> T:
        """Open what the URL names; the caller closes it.

        Raises:
            ConfigError: the URL is wrong, a file unusable, or plain text not allowed.
        """


class Schemes(Generic[T]):
    """All schemes of one kind: ours by name, and the entry points of a group."""

    def __init__(self, group: str, kind: str, builtins: Mapping[str, type[Scheme[T]]], contract: type) -> None:
        """`kind` is how errors call such a URL, `contract` the Protocol that is opened."""
        self._kind = kind
        self._builtins = builtins
        self._contract = contract
        self._point = ExtensionPoint[Scheme[T]](group, f"{kind} URL scheme", builtins)

    def open(self, url: str, connection: Connection) -> T:
        """Open what a URL names.

        Raises:
            ConfigError: the scheme is unknown, the URL wrong, a file unusable, or plain text not allowed.
        """
        name, scheme = self._named(url)
        with self._quiet(name, scheme, url, "opened"):
            opened = scheme.open(url, connection)
        if missing := [each for each in _methods(self._contract) if not callable(getattr(opened, each, None))]:
            told = f"{self._kind} URL scheme {name!r} opens a {type(opened).__name__}"
            raise ConfigError(f"{told}, which is no fledge.{self._contract.__name__}: it lacks {', '.join(missing)}")
        return opened

    def check(self, url: str, *, insecure: bool) -> None:
        """Object to a URL that `open` would not take; nothing is opened.

        Raises:
            ConfigError: the scheme is unknown, the URL wrong, or plain text not allowed.
        """
        name, scheme = self._named(url)
        with self._quiet(name, scheme, url, "checked"):
            scheme.check(url, insecure=insecure)

    @contextmanager
    def _quiet(self, name: str, scheme: Scheme[T], url: str, what: str) -> Iterator[None]:
        """Turn whatever others' code raises into an error of ours: its text may repeat the URL and a password in it."""
        try:
            yield
        except FledgeError:
            raise
        except FAILURES as error:
            if name in self._builtins:
                raise
            told = f"{self._kind} URL '{name}:…' cannot be {what}: {type(error).__name__}"
            raise ConfigError(f"{told} in {type(scheme).__module__}") from error

    def _named(self, url: str) -> tuple[str, Scheme[T]]:
        name = scheme_of(url)
        if name not in self._point.names():
            shown = [made.example or f"{known}://" for known, made in self._builtins.items()]
            shown += [f"{known}://" for known in self._point.names() if known not in self._builtins]
            # Of what is no URL nothing is shown: it may be a key that was put into the wrong place.
            told = f"unknown scheme {name!r}" if "://" in url else "unknown scheme"
            raise ConfigError(f"{self._kind} URL: {told}; known: {', '.join(shown)}")
        scheme = self._point.build(name, {})
        if not isinstance(scheme, Scheme):
            raise ConfigError(f"{self._kind} URL scheme {name!r} is no fledge.Scheme; derive it from that class")
        return name, scheme


def _methods(contract: type) -> list[str]:
    return sorted(name for name, each in vars(contract).items() if callable(each) and not name.startswith("_"))
