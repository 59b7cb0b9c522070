"""A component of an MMAR as the same component of a bundle: names and arguments."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import ConfigError
from worker.mmar.entries import ComponentRole, InstalledNames, LeftOut, Mapped, Note, NoteKind, Refused
from worker.mmar.names import TABLE
from worker.mmar.values import Config, flag, mapping

CUSTOM = "custom"
_NAME = re.compile(r"([A-Za-z_]\w*)(#[\w.-]+)?")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_PLACE = re.compile(r"@(dataset_dir|ckpt_dir|output_dir)((?:/[\w.-]+)+)/?")
_REFERENCE = re.compile(r"@([A-Za-z_]\w*)")
_INSTALLED = ("monai", "torch", "torchvision", "ignite", "numpy")
_CLARAS = ("medl", "ai4med", "nvmidl", "nvflare", "fed_learn", "aiaa", "dlmed")
_IDS = {
    "model": "network",
    **{name: name for name in ("network", "optimizer", "lr_scheduler", "loss", "device")},
    **{name: name for name in ("dataset_dir", "data_list", "ckpt_dir", "output_dir")},
    "evaluator": "validate#evaluator",
}
"""What a reference of Clara 4.1 (`@model`) is called in the bundle."""
_KNOWN_KEYS = frozenset({"name", "path", "args", "disabled", "rank", "ref", "log_label", "is_key_metric"})


@dataclass(frozen=True, slots=True)
class NamedComponent:
    """A component's name and what else the MMAR says of it."""

    name: str
    tag: str
    path: str
    args: Mapping[str, object]
    disabled: bool

    @property
    def called(self) -> str:
        """How the MMAR calls it."""
        return f"{self.name}{self.tag}"


def named(raw: object, where: str) -> NamedComponent:
    """Read what names a component.

    Raises:
        ConfigError: it has no name or path, or not one that can be a name.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f'{where} is a {type(raw).__name__}; it has to be {{"name": …, "args": {{…}}}}')
    path, name = raw.get("path", ""), raw.get("name", "")
    args = mapping(raw.get("args"), f"{where}: args")
    switch = flag(raw.get("disabled"), f"{where}: disabled")
    if path:
        if not (isinstance(path, str) and _DOTTED.fullmatch(path)):
            raise ConfigError(f"{where}: path is {path!r}; it has to be module.Class")
        return NamedComponent(path.rpartition(".")[2], "", path, args, switch)
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"{where}: name is {name!r}; it has to be the name of a class")
    return NamedComponent(found[1], found[2] or "", "", args, switch)


class Components:
    """Translates components one by one; notes and refusals gather here."""

    def __init__(self, catalogue: InstalledNames, modules: Iterable[str]) -> None:
        """`modules`: what can be imported from the MMAR's own code, by the name of the first module."""
        self._catalogue = catalogue
        self._modules = frozenset(modules)
        self.notes: dict[Note, None] = {}
        """In order, each once."""
        self.refused: list[str] = []

    def note(self, kind: NoteKind, what: str, why: str) -> None:
        """Tell something, once."""
        self.notes.setdefault(Note(kind, what, why))

    def translate(self, raw: object, role: ComponentRole, where: str, *, also: Collection[str] = ()) -> Config | None:
        """The component for the bundle; None if there is none, it is disabled, left out, or refused.

        Args:
            where: the place in the MMAR, for the reader of an error.
            also: keys beside name and arguments that the caller has read.
        """
        if raw is None:
            return None
        found = named(raw, where)
        if found.disabled:
            self.note(NoteKind.LEFT_OUT, f"{where} {found.called}", "is disabled")
            return None
        said = mapping(raw, where)
        for key in sorted(said.keys() - _KNOWN_KEYS - set(also)):
            self.note(NoteKind.LEFT_OUT, f"{where} {found.called} {key}", "means nothing in a bundle")
        if "rank" in said:
            self.note(NoteKind.LEFT_OUT, f"{where} {found.called} rank", "one process trains at each site")
        if found.path and not found.path.startswith(tuple(f"{name}." for name in _CLARAS)):
            return self._own(found, where)
        return self._registered(found, role, where)

    def _own(self, found: NamedComponent, where: str) -> Config | None:
        first = found.path.partition(".")[0]
        if first in self._modules:
            target = f"{CUSTOM}.{found.path}"
        elif first in (*_INSTALLED, CUSTOM):
            target = found.path
        else:
            self.refused.append(
                f"{where}: {found.path} is neither in the MMAR's {CUSTOM} folder nor in MONAI; put {first}.py there"
            )
            return None
        self.note(NoteKind.MAPPED, f"{where} {found.path}", target)
        return {"_target_": target, **self.values(found.args, where)}

    def _registered(self, found: NamedComponent, role: ComponentRole, where: str) -> Config | None:
        entry = TABLE[role].get(found.name)
        if entry is None and role == ComponentRole.HANDLER:  # AutoML's stand among those of a training
            entry = TABLE[ComponentRole.ANNOTATION].get(found.name)
        if entry is None:
            target = self._catalogue.find(role, found.name)
            entry = None if target is None else Mapped(target)
        if entry is None:
            near = self._catalogue.nearest(role, found.name)
            advice = f"the nearest are {', '.join(near)}" if near else "nothing of MONAI's reads like it"
            self.refused.append(f"{where}: {found.name} is unknown here; {advice}")
        elif isinstance(entry, Refused):
            self.refused.append(f"{where}: {found.name} has no equal here; use {entry.advice}")
        elif isinstance(entry, LeftOut):
            self.note(NoteKind.LEFT_OUT, f"{where} {found.called}", entry.why)
        else:
            return self._mapped(found, entry, where)
        return None

    def _mapped(self, found: NamedComponent, entry: Mapped, where: str) -> Config:
        if entry.target != found.called or entry.remark:
            remark = f" ({entry.remark})" if entry.remark else ""
            self.note(NoteKind.MAPPED, f"{where} {found.called}", entry.target + remark)
        args: Config = {}
        for name, value in found.args.items():
            if name in entry.dropped:
                if entry.dropped[name]:
                    self.note(NoteKind.LEFT_OUT, f"{where} {found.called} {name}", entry.dropped[name])
            else:
                args[entry.renamed.get(name, name)] = value
        if entry.adapt is not None:
            args = entry.adapt(args)
        args = {**entry.defaults, **args}
        if strange := self._catalogue.unknown(entry.target, args.keys()):
            self.refused.append(f"{where}: {entry.target} takes no {', '.join(strange)} today; see its documentation")
        return {"_target_": entry.target, **self.values(args, where)}

    def values(self, args: Mapping[str, object], where: str) -> Config:
        """Arguments as a bundle has them: what was a value stays a value, only what was an expression becomes one.

        Raises:
            ConfigError: a name or value would be taken for something else by MONAI.
        """
        return {name: self._value(value, f"{where} {name}") for name, value in _plain(args, where).items()}

    def _value(self, value: object, where: str) -> object:
        if isinstance(value, dict):
            return self.values(value, where)
        if isinstance(value, list):
            return [self._value(each, where) for each in value]
        if not isinstance(value, str) or not value:
            return value
        if value[0] in "$%":
            raise ConfigError(f"{where}: a bundle takes {value[:60]!r} for code; write it in another way")
        if place := _PLACE.fullmatch(value):
            if ".." in place[2].split("/"):
                raise ConfigError(f"{where}: {place[2]!r} leads out of its folder; name a file inside")
            return f"$@{place[1]} + {place[2]!r}"
        if value[0] == "@":
            return self._references(value, where)
        if value[0] == "#":
            return "$" + self._references(value[1:], where)
        return transform_of(value) if value.startswith("lambda") else value

    def _references(self, text: str, where: str) -> str:
        for name in _REFERENCE.findall(text):
            if name not in _IDS:
                raise ConfigError(f"{where}: @{name} refers to nothing here; known are @{', @'.join(sorted(_IDS))}")
        return _REFERENCE.sub(lambda found: f"@{_IDS[found[1]]}", text)


def _plain(args: Mapping[str, object], where: str) -> Mapping[str, object]:
    for name in args:
        if not isinstance(name, str) or name[:1] in ("_", "+") or "#" in name or "::" in name:
            raise ConfigError(f"{where}: a bundle takes the name {name!r} for something else; use another one")
    return args


def transform_of(text: str) -> str:
    """The expression for an output transform that Clara has as the text of a lambda.

    Picking entries out of the engine's output is `from_engine`, because today's engines hand over a list of examples.
    """
    keys = _picked(text)
    if keys is None:
        return f"${text}"
    if keys == ["loss"]:
        return "$monai.handlers.from_engine(['loss'], first=True)"
    return f"$monai.handlers.from_engine({keys!r})"


def _picked(text: str) -> Sequence[str] | None:
    """The keys in `lambda x: (x['a'], x['b'])`; None if it is anything else. It is parsed, not run."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(body, ast.Lambda) or len(body.args.args) != 1:
        return None
    parts = body.body.elts if isinstance(body.body, ast.Tuple) else [body.body]
    keys = []
    for part in parts:
        key = part.slice if isinstance(part, ast.Subscript) else None
        if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
            return None
        whole = part.value if isinstance(part, ast.Subscript) else None
        if not (isinstance(whole, ast.Name) and whole.id == body.args.args[0].arg):
            return None
        keys.append(key.value)
    return keys
