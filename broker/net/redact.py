"""The one redaction: it takes logins, keys and signatures out of a text before a log, a report or a person gets it.

Two ways, because neither is enough. Whatever looks like a URL with a login or like a signature goes. And every secret
that was read from a URL is remembered, so that it goes from any text, however a library quotes it.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from urllib.parse import quote

HIDDEN = "***"
_SHORTEST = 8
"""Characters of a secret that is looked for everywhere; a shorter one would take words out of every sentence."""
_WORD = re.compile(r"[a-z]{1,16}")
"""So would one that is a word; stars in place of "password" would even tell it."""
_MOST = 1024
_EXAMPLES = ("user:password", "KEY:SECRET")
"""How our own sentences say what a login looks like."""
_ENCODED = "%3a%2f%2f"
"""`://` within another URL."""
_RUN = re.compile(r"\S+")
_SIGNED = re.compile(r"((?:credential|signature|security-token|accesskeyid)=)[^&\s\"'<>,]+", re.IGNORECASE)
_HEADER = re.compile(r"(authorization[\"']?\s*[:=]\s*[b\"']{0,2}[\w-]+\s+)[^\s,\"']+", re.IGNORECASE)


class Secrets:
    """Secrets to be kept out of texts, for use by many threads; the oldest go when there are too many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, None] = {}
        self._pattern: re.Pattern[str] | None = None

    def remember(self, *secrets: str) -> None:
        """Keep these out of every text from now on, in the spellings of URLs, JSON and Python."""
        forms = {
            form
            for secret in secrets
            for form in _spellings(secret)
            if len(form) >= _SHORTEST and not _WORD.fullmatch(form)
        }
        if forms <= self._known.keys():
            return
        with self._lock:
            known = {**self._known, **dict.fromkeys(forms)}
            self._known = dict.fromkeys(list(known)[-_MOST:])
            self._pattern = None

    def hide(self, text: str) -> str:
        """The text with stars for what is remembered."""
        if not self._known:
            return text
        with self._lock:
            if self._pattern is None:
                longest_first = sorted(self._known, key=len, reverse=True)
                self._pattern = re.compile("|".join(map(re.escape, longest_first)))
            pattern = self._pattern
        return pattern.sub(HIDDEN, text)


_SECRETS = Secrets()


def remember(*secrets: str) -> None:
    """Keep these out of every text of this process from now on."""
    _SECRETS.remember(*secrets)


def redacted(text: str) -> str:
    """The text without secrets: what stands in a URL before its last @, signatures, and whatever is remembered."""
    shown = _SECRETS.hide(text)
    if "://" in shown or "%40" in shown:
        shown = _RUN.sub(_without_login, shown)
    if "=" in shown:
        shown = _SIGNED.sub(rf"\1{HIDDEN}", shown)
    if "=" in shown or ":" in shown:
        shown = _HEADER.sub(rf"\1{HIDDEN}", shown)
    return shown


def basic_login(user: str, password: str) -> str:
    """User and password as HTTP's basic authentication sends them."""
    return base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogatepass")).decode()


def _without_login(run: re.Match[str]) -> str:
    """A run without blanks: in a login that nobody encoded, anything may stand before the last @."""
    text = run[0]
    start = text.find("://")
    while start >= 0 and text[:start].endswith("file") and text.startswith("/", start + 3):
        start = text.find("://", start + 3)  # a directory of this machine has no login, and may hold an @
    end = text.rfind("@")
    if 0 <= start < end and text[start + 3 : end] not in _EXAMPLES:
        text = f"{text[: start + 3]}{HIDDEN}{text[end:]}"
    # As a part of another URL.
    start, end = text.lower().find(_ENCODED), text.rfind("%40")
    return f"{text[: start + len(_ENCODED)]}{HIDDEN}{text[end:]}" if 0 <= start < end else text


def _spellings(secret: str) -> set[str]:
    # What no text can hold as it is stands in it by an escape.
    plain = secret.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    quoted = {quote(plain, safe=""), quote(plain), quote(secret, safe="", errors="replace")}
    told = {repr(secret)[1:-1], ascii(secret)[1:-1], repr(secret.encode("utf-8", "surrogatepass"))[2:-1]}
    # In a longer text with both kinds of quotes, Python escapes the single ones, and JSON may keep letters as they are.
    told |= {each.replace("\\'", "'").replace("'", "\\'") for each in told}
    return {secret, plain, *told, *(json.dumps(secret, ensure_ascii=strict)[1:-1] for strict in (True, False)), *quoted}
