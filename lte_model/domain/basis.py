"""The semantic basis: a frozen map from an item's content to a vector, and the grid that its vectors lie on.

    text template → hashing → TF-IDF → SVD → centre → whiten → unit length → grid

1. `SemanticBasis.fit` learns every one of these steps from a catalogue, once.
2. `basis_id` is the hash of all that was learned. Two bases with one id give the same vectors.
3. `encode` maps items to vectors, row by row: an item's vector doesn't depend on the items beside it.

Components are multiples of 2⁻¹⁴ in [−1, 1]: as integers in grid units they add up exactly, and as float32 they are
exact too.
"""

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from lte_model.errors import LTEError

GRID = 2**14
"""Grid units in 1.0."""

MAX_EVENTS = (2**31 - 1) // GRID
"""The most events of one user whose vector sum always fits an int32: 131,071."""

LEAST_VARIANCE = 1e-12
"""Texts whose coordinates, of unit length, vary less than this are the same but for rounding."""

HASH_FEATURES = 2**16
CONTENT_COLUMNS = ("title", "description", "category", "brand")


def to_vector(vector_sum: np.ndarray, event_count: np.ndarray) -> np.ndarray:
    """The LTE itself: sums (users, dimensions) in grid units over counts (users,), as float32.

    This is the only division of the pipeline. A count of 0 gives zeros.
    """
    events = np.maximum(np.asarray(event_count, dtype=np.float64), 1)[:, None]
    return (np.asarray(vector_sum, dtype=np.float64) / (events * GRID)).astype(np.float32)


def to_grid(vectors: np.ndarray) -> np.ndarray:
    """Float vectors (items, dimensions) of a basis as int32 in grid units. Raises `LTEError` for others."""
    scaled = np.asarray(vectors, dtype=np.float64) * GRID
    units = np.rint(scaled)
    if not np.array_equal(units, scaled) or np.abs(units).max(initial=0) > GRID:
        raise LTEError("item vectors are not multiples of 2^-14 in [-1, 1]; they were not made by embed_items")
    return units.astype(np.int32)


def chosen_basis(registered: Sequence[str], wanted: str, table: str) -> str:
    """The basis `wanted` by the settings, or else the only basis `registered` in `table`.

    Raises `LTEError` if the wanted basis isn't registered, or if none is wanted and not exactly one is registered.
    """
    if wanted and wanted not in registered:
        raise LTEError(
            f"basis {wanted} is not registered in {table} (it holds {', '.join(registered)}); run jobs.fit_basis or "
            "correct basis.basis_id"
        )
    if not wanted and len(registered) != 1:
        raise LTEError(f"{len(registered)} bases are registered ({', '.join(registered)}); set basis.basis_id to one")
    return wanted or registered[0]


@dataclass(frozen=True)
class SemanticBasis:
    """A fitted basis with the encoder `hashed-text`.

    `features` (features,): the hashes of the words and word pairs that it knows, ascending.
    `weights` (features,): their inverse document frequencies.
    `projection` (features, dimensions) and `offset` (dimensions,): SVD, centring and whitening in one affine map.
    """

    text_template: str
    features: np.ndarray
    weights: np.ndarray
    projection: np.ndarray
    offset: np.ndarray

    encoder = "hashed-text"

    @property
    def dimensions(self) -> int:
        """The number of components of a vector."""
        return self.projection.shape[1]

    @property
    def specification(self) -> dict[str, object]:
        """Everything beside the tensors that decides the vectors."""
        return {
            "encoder": self.encoder,
            "dimensions": self.dimensions,
            "text_template": self.text_template,
            "hash_features": HASH_FEATURES,
            "grid": GRID,
        }

    @property
    def basis_id(self) -> str:
        """16 hex digits of the SHA-256 of everything that decides a vector."""
        digest = hashlib.sha256(json.dumps(self.specification, sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def fit(cls, items: Sequence[Mapping[str, str | None]], text_template: str, dimensions: int) -> "SemanticBasis":
        """Learns a basis from the content of `items`. The same items in any order give the same basis.

        Raises `LTEError` where the template names an unknown column, the catalogue is too small for `dimensions`, or
        the texts don't differ.
        """
        counts = _hash(sorted(_texts(items, text_template)))
        document_frequency = np.bincount(counts.indices, minlength=HASH_FEATURES)
        features = np.flatnonzero(document_frequency >= 2)
        if min(counts.shape[0], len(features)) <= dimensions:
            raise LTEError(
                f"a basis of {dimensions} dimensions needs more than {dimensions} items and as many words that two "
                f"items share; there are {counts.shape[0]} items and {len(features)} such words: "
                "lower basis.dimensions or give the items more text"
            )
        counts = counts[:, features]
        tfidf = TfidfTransformer(norm="l2").fit(counts)
        with np.errstate(divide="ignore", invalid="ignore"):  # what it explains of texts that don't differ
            svd = TruncatedSVD(dimensions, random_state=0).fit(tfidf.transform(counts))
        coordinates = svd.transform(tfidf.transform(counts))
        mean = coordinates.mean(axis=0)
        variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(coordinates - mean, rowvar=False)))
        if not variances.max() > LEAST_VARIANCE:  # NaN is none either
            raise LTEError(
                f"the {len(items)} items have the same words, so that no basis can tell them apart: let "
                "basis.text_template name columns that differ, or give the items texts of their own"
            )
        whitening = directions / np.sqrt(np.maximum(variances, variances.max() * 1e-6))
        basis = cls(
            text_template=text_template,
            features=features.astype(np.int32),
            weights=tfidf.idf_.astype(np.float64),
            projection=(svd.components_.T @ whitening).astype(np.float32),
            offset=(mean @ whitening).astype(np.float64),
        )
        if broken := basis.broken:
            raise LTEError(f"a basis of {dimensions} dimensions fitted on {len(items)} items has {broken}; take fewer")
        return basis

    def encode(self, items: Sequence[Mapping[str, str | None]]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (items, dimensions) as float32 on the grid, and which items (items,) have one.

        An item without a word that the basis knows has no vector: its row is zero, and its flag is False.
        """
        counts = _hash(_texts(items, self.text_template))[:, self.features]
        known = np.diff(counts.indptr) > 0
        weighted = normalize(counts.multiply(self.weights[None, :]).tocsr(), norm="l2")
        # A sparse product sums row by row, in the order of the row's own words.
        coordinates = weighted @ self.projection.astype(np.float64) - self.offset
        units = np.rint(normalize(coordinates) * GRID)
        units[~known] = 0
        return (units / GRID).astype(np.float32), known

    @property
    def broken(self) -> str:
        """What is wrong with its tensors, in words; empty where each number is one."""
        wrong = [name for name, tensor in self._tensors().items() if not np.isfinite(tensor).all()]
        return f"{' and '.join(wrong)} with numbers that are none (NaN)" if wrong else ""

    def to_bytes(self) -> bytes:
        """The learned tensors as safetensors. `from_bytes` reads them back."""
        return save_tensors(self._tensors(), metadata={"text_template": self.text_template})

    @classmethod
    def from_bytes(cls, state: bytes, text_template: str) -> "SemanticBasis":
        """The basis whose tensors `state` holds."""
        return cls(text_template=text_template, **load_tensors(bytes(state)))

    def _tensors(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("features", "weights", "projection", "offset")}


def _texts(items: Sequence[Mapping[str, str | None]], template: str) -> list[str]:
    """The template filled with each item's content. Only plain `{column}` fields are understood."""
    pieces = list(string.Formatter().parse(template))
    unknown = [field for _, field, _, _ in pieces if field is not None and field not in CONTENT_COLUMNS]
    if unknown:
        raise LTEError(f"basis.text_template names {unknown[0]!r}; the columns are {', '.join(CONTENT_COLUMNS)}")
    return [
        "".join(text + (str(item.get(field) or "") if field is not None else "") for text, field, _, _ in pieces)
        for item in items
    ]


def _hash(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """Counts of words and word pairs, (texts, HASH_FEATURES)."""
    vectorizer = HashingVectorizer(
        n_features=HASH_FEATURES,
        alternate_sign=False,
        norm=None,
        ngram_range=(1, 2),
        token_pattern=r"(?u)\w+",  # noqa: S106 - a regular expression
        strip_accents="unicode",
    )
    return vectorizer.transform(texts).tocsr()
