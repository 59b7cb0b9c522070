"""Inference at a hospital with a version that its worker has had in its hands: found, decrypted, and run by its bundle.

Nothing is asked of hub, broker or store: what is needed lies in the worker's state, and only the site's own keys open
it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from broker.blobs.cache import CacheReader
from broker.blobs.chunks import SupportsGet
from broker.blobs.open import open_blobs
from broker.blobs.transfer import read_blob, read_whole
from broker.net.urls import scheme_of
from deploy.keyfiles import new_folder, read_bounded, read_identity
from fledge.bootstrap import CACHE
from protocol import limits
from protocol.blob import Manifest
from protocol.envelope import ContentKey
from protocol.errors import ConfigError, Missing, StateError, Tampered
from protocol.spec import ModelSpec
from protocol.topology import model_chunk, record_key
from worker.api.weights import Weights
from worker.config import read_config, site_policy, trainer_home
from worker.data.dicom_kinds import Beside
from worker.data.sources import Admission, ImageKind
from worker.data.text import write_private_table
from worker.intake import ModelRecord, Reader, read_registry
from worker.journal.journal import Journal
from worker.pipeline.code_loader import CodeLoader
from worker.pipeline.contribute import BaseVersion, as_here
from worker.service.assembly import MODELS
from worker.storage.code_store import CodeStore
from worker.storage.kept_versions import KeptVersion, KeptVersions, chosen
from worker.storage.local_tensors import LocalTensors

if TYPE_CHECKING:
    from worker.bundles.inputs import InferenceInput

ABOUT = "fledge.json"
"""In the results: which model made them."""
_BUNDLE_TRAINER = "worker.trainers.monai_bundle:bundle_trainer"

IMAGES = "images.csv"
"""In the results: which name is which series; it says where images lie and stays private (mode 0600)."""
Progress = Callable[[str, int, int], None]
"""Takes what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """What an inference came to."""

    run: str
    version: int
    metrics: Mapping[str, float]
    """Of this version on the site's own data, if it was evaluated."""
    images: int
    own_list: bool
    """Whether the bundle found the images by its own pattern or list; else they are all those in the folder."""
    pictures: int = 0
    """Of results on their images."""
    elsewhere: Sequence[str] = ()
    """Results that the bundle saves on another grid than their image's."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Files that were not taken, by what they are."""
    dropped: Sequence[str] = ()
    """What was there twice."""
    refused: Sequence[str] = ()
    """Why images were left out that cannot be used, in a sentence for each."""


class SiteModels:
    """The versions at one site, by its `worker.toml`; a worker may be running beside."""

    def __init__(self, config: Path) -> None:
        """Raises:
        ConfigError: a file of the kit is missing or wrong.
        StateError: no worker has run here.
        """
        self.settings, base = read_config(config), config.parent
        self._state = base / self.settings.state
        self._policy = site_policy(self.settings, base)
        self._identity = read_identity(base / self.settings.keys)
        kit = read_bounded(base / self.settings.registry, limits.STORED_RECORD, "the signed registry")
        noted = Journal.registry_beside(self._state / "worker.db")
        root, federation = bytes.fromhex(self.settings.root), self.settings.federation
        known = [read_registry(raw, root, federation).registry for raw in (kit, noted) if raw is not None]
        self._reader = Reader(self._identity, federation, max(known, key=lambda registry: registry.version))
        self._kept = KeptVersions(self._state / MODELS)
        # In front of a store that is a directory of this machine there is no cache.
        local = scheme_of(self.settings.store) == "file"
        self._store: SupportsGet = open_blobs(self.settings.store) if local else CacheReader(self._state / CACHE)

    def version(self, run: str, wanted: str) -> KeptVersion:
        """A version of a run: "best", "global" or a number.

        Raises:
            ConfigError: it is not held here.
        """
        return chosen(run, self._kept.of(run), wanted)

    def opened(self, kept: KeptVersion) -> tuple[ModelRecord, ModelSpec]:
        """A version's record, opened, and its specification.

        Raises:
            Missing: something of it is gone.
            WireError: the record is no aggregator's for this site.
        """
        model = self._reader.model(kept.record)
        if (model.run, model.version) != (kept.run, kept.version):
            raise Tampered(f"what is noted as version {kept.version} of run {kept.run} is another one's record")
        record = self._reader.spec(self._spec_record(kept, model))
        if record.manifest.length > limits.SPEC:
            raise Tampered(f"a specification of {record.manifest.length} bytes; at most {limits.SPEC} are allowed")
        spec = ModelSpec.from_bytes(read_whole(self._store, record.key.reader(record.manifest), model_chunk))
        if spec.digest != model.spec or model.manifest.length != spec.model_length:
            raise Tampered(f"version {kept.version} of run {kept.run} and its specification do not fit each other")
        return model, spec

    def _spec_record(self, kept: KeptVersion, model: ModelRecord) -> bytes:
        """The specification's record as this version names it, or as a newer one does: it is the whole run's."""
        newer = [self._reader.model(each.record) for each in self._kept.of(kept.run) if each.version > kept.version]
        names = {each.says.spec_record: None for each in (model, *reversed(newer)) if each.spec == model.spec}
        for name in names:
            with suppress(Missing):
                return self._store.get(record_key(name.hex()), limits.STORED_RECORD)
        raise Missing(f"the specification of run {kept.run} is not here")

    def weights(self, kept: KeptVersion, model: ModelRecord, spec: ModelSpec, keeps: frozenset[str]) -> Weights:
        """The version as this site uses it, with its own values of the tensors that stay here."""
        return as_here(
            keeps,
            kept.run,
            BaseVersion(spec, lambda: self._blob(model.manifest, model.key)),
            self.settings.exclude,
            LocalTensors(self._state / "own", self._identity, self.settings.federation),
        )

    @contextmanager
    def bundle(self, model: ModelRecord) -> Iterator[Path]:
        """The folder of the bundle that trains the run: its code, or the site's own.

        Raises:
            ConfigError: the site trains it with something else than a bundle, or does not allow the code.
            CodeLost: the code is not here.
        """
        if model.says.bundle is None:
            root = self.settings.options_of(model.run).get("bundle_root")
            trained = trainer_home(self.settings.trainer or "")
            if trained != _BUNDLE_TRAINER or not isinstance(root, str):
                raise ConfigError(f"run {model.run} brings no bundle; say with --bundle which one to infer with")
            yield Path(root)
            return
        with tempfile.TemporaryDirectory(prefix="fledge-infer-") as scratch:
            # A copy of our own: the worker makes the folder of its code anew whenever it wants to.
            codes = CodeStore(Path(scratch))
            codes.keep(model.says.bundle, CodeStore(self._state / "code").archive(model.says.bundle))
            deployed = CodeLoader(codes, lambda: self._reader, self._policy, self.settings.options_of)
            try:
                yield deployed.folder(model.run, model.says.bundle)
            finally:
                deployed.put_away()

    def _blob(self, manifest: Manifest, key: ContentKey) -> Iterator[memoryview]:
        return read_blob(self._store, key.reader(manifest), model_chunk)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What is to be inferred, by which version of a run."""

    run: str
    version: str
    """`best` on the site's own data, `global` for the newest here, or a number."""
    images: Path
    output: Path
    """A folder that is made."""
    bundle: Path | None = None
    """Taken instead of the run's own."""
    device: str = ""
    """Empty: the site's, or else the bundle's."""
    config_file: tuple[str, ...] = ()
    """What the bundle infers by, merged in this order; empty: its `configs/inference.json`."""
    drop_duplicates: bool = False
    also: frozenset[Beside] = frozenset()
    """What is taken for images although it is left out by itself."""
    skip_refused: bool = False
    """Leave out images that cannot be used."""


def infer(config: Path, request: InferenceRequest, progress: Progress | None = None) -> Inferred:
    """Infer at the site whose `worker.toml` this is; the results appear once they are complete.

    Raises:
        ConfigError: the version, its bundle or the images are not there, or the output is.
        TrainingError: the bundle's inference failed; nothing is left in the output.
    """
    from worker.bundles.inference import BundleInference
    from worker.bundles.inputs import Reading

    images, output = request.images, request.output
    if not images.is_dir():
        raise ConfigError(f"{images} is no folder; name the one that holds the images")
    if output.resolve().is_relative_to(images.resolve()):
        raise ConfigError(f"{output} would lie among the images, and be taken for some later; choose another place")
    models = SiteModels(config)
    kept = models.version(request.run, request.version)
    options = models.settings.options_of(request.run)
    with _whole(kept), ExitStack() as stack:
        model, spec = models.opened(kept)
        root = request.bundle or stack.enter_context(models.bundle(model))
        folder = stack.enter_context(new_folder(output))
        overrides = dict(options.get("overrides") or {})
        if device := request.device or options.get("device", ""):
            overrides["device"] = f"$torch.device({device!r})"
        looking, reading = (partial(progress, what) if progress else None for what in ("looking at files", "reading"))
        terms = Admission(
            nameless=True,
            drop_duplicates=request.drop_duplicates,
            skip_refused=request.skip_refused,
            also=request.also,
            progress=looking,
        )
        inference = BundleInference(
            root,
            images=images,
            output=folder,
            overrides=overrides,
            config_file=request.config_file,
            reading=Reading(terms, reading),
        )
        weights = models.weights(kept, model, spec, inference.keeps(options.get("keep_local")))
        drawn = inference.run(weights, progress)
        _write_images(folder / IMAGES, inference.inputs.images)
        about = {"run": kept.run, "version": kept.version, "sha256": model.manifest.digest.hex()}
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Inferred(
        run=kept.run,
        version=kept.version,
        metrics=kept.metrics,
        images=inference.count,
        own_list=inference.own_list,
        pictures=len(drawn.pictures),
        elsewhere=drawn.elsewhere,
        left_out=inference.inputs.left_out,
        dropped=inference.inputs.dropped,
        refused=inference.inputs.refused,
    )


def _write_images(path: Path, images: Sequence[InferenceInput]) -> None:
    """Which result belongs to which series, where names do not say it."""
    series = [(image.name, image.source) for image in images if image.source is not None]
    rows = [(name, of.name, of.identity if of.kind is ImageKind.DICOM else "") for name, of in series]
    write_private_table(path, [("result", "image", "series"), *rows])


@contextmanager
def _whole(kept: KeptVersion) -> Iterator[None]:
    try:
        yield
    except Missing as error:
        raise StateError(
            f"version {kept.version} of run {kept.run} is no longer whole at this site; take another version, "
            "or make cache_mb in worker.toml larger and let the worker train"
        ) from error
