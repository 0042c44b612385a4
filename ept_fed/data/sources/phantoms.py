"""The phantom source: seeded images that look medical and are generated when read, so no download is needed.

A patient has a structure (phantom_structures.py), a tissue and a tint. An image is a randomly moved view of a patient
through the scanner of a site. (u, v) is the pixel in units of half the width, on [-1, 1]²:

    view        (x, y) = R(θ) · (u, v) · z · f + t        θ, t, z per image, f the field of view
    tissue      T = Σₖ aₖ cos(wₖ·(x, y) + φₖ)             8 waves of 0.3–1.5 periods per image width, std 1
    structure   S = (structure(x, y) - mean) / std        so that no class is brighter or of higher contrast
    intensity   I = 0.5 + 0.12 T + c p S + 0.04 G         p = ±1 and c = 0.03–0.09 per patient, G speckle
    colour      J = 0.5 + tintᵣ + gainᵣ · (I - 0.5)       per patient and channel r
    scanner     K = castᵣ · gain · blur(J)^gamma + noise  per site, see `AcquisitionProfile`

K is clipped to 0–1 and stored in 8 bits. Classes differ only by structure. Polarity p, tissue, tint and scanner are
drawn independently of the class.
"""

from collections.abc import Iterable

import numpy as np
from scipy.ndimage import gaussian_filter

from ept_fed.config.data import PhantomSettings
from ept_fed.data.decoding.image_store import UnreadableImageError
from ept_fed.data.records.records import Catalog, ImageRecord
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.data.sources.simulated_scanner import AcquisitionProfile
from ept_fed.data.splits.partition import name_sites
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.seeds import numpy_generator

__all__ = ["PhantomImages", "derive_profile", "generate_phantoms"]


def derive_profile(seed: int, site: str) -> AcquisitionProfile:
    """Derive the scanner of a site; it depends only on the seed and the site's name."""
    rng = numpy_generator(seed, "phantom scanner", site)
    red, green, blue = (float(factor) for factor in rng.uniform(0.85, 1.1, 3))
    return AcquisitionProfile(
        gain=float(rng.uniform(0.8, 1.2)),
        gamma=float(rng.uniform(0.7, 1.4)),
        blur=float(rng.uniform(0.0, 0.012)),
        noise=float(rng.uniform(0.01, 0.05)),
        field_of_view=float(rng.uniform(0.85, 1.2)),
        cast=(red, green, blue),
    )


class PhantomImages:
    """An image store that draws the image of a key "site-1/rings/007/0" (site, class, patient, view) when it is read.

    No image is kept. All random numbers derive from the seed and the key, so reading twice gives the same pixels.
    """

    def __init__(self, images: Iterable[str], *, size: int, seed: int) -> None:
        self._images = frozenset(images)
        self._size = size
        self._seed = seed

    def read(self, image: str) -> np.ndarray:
        """Draw one image, (size, size, 3) uint8; see `ImageStore.read`."""
        if image not in self._images:
            raise UnreadableImageError(image, "is missing")
        site, kind, patient, view = image.split("/")
        per_patient = numpy_generator(self._seed, "phantom patient", site, kind, patient)
        per_image = numpy_generator(self._seed, "phantom image", site, kind, patient, view)
        return _draw_image(kind, self._size, per_patient, per_image, derive_profile(self._seed, site))

    def find_missing(self, images: Iterable[str]) -> list[str]:
        """Return the keys that were not generated."""
        return [image for image in images if image not in self._images]

    def mode(self, _image: str) -> str:
        """Return "array RGB"; see `ImageStore.mode`."""
        return "array RGB"


def generate_phantoms(settings: PhantomSettings, seed: int) -> Catalog:
    """List `patients_per_class` patients per class and site, each with `images_per_patient` views.

    Args:
        settings: `classes` may select and order the five kinds of `STRUCTURES`; null uses all of them.
        seed: the run's seed.

    Raises:
        InputRefusedError: for unknown classes, or multi_label.
    """
    classes = settings.classes or tuple(STRUCTURES)
    problems = []
    unknown = [name for name in classes if name not in STRUCTURES]
    if unknown:
        problems.append(Problem("data.classes", unknown, f"choose from {', '.join(STRUCTURES)}"))
    if settings.task != "single_label":
        fix = "a phantom shows one kind of structure; set data.task=single_label"
        problems.append(Problem("data.task", settings.task, fix))
    if problems:
        raise InputRefusedError(problems)
    width = max(3, len(str(settings.patients_per_class - 1)))
    records = []
    for site in name_sites(settings.phantom_sites):
        for label, kind in enumerate(classes):
            for number in range(settings.patients_per_class):
                patient = f"{site}/{kind}/{number:0{width}d}"
                for view in range(settings.images_per_patient):
                    records.append(ImageRecord(f"{patient}/{view}", (label,), site, patient, None))
    store = PhantomImages((record.image for record in records), size=settings.size, seed=seed)
    return Catalog(tuple(records), tuple(classes), settings.task, store)


def _draw_image(
    kind: str,
    size: int,
    per_patient: np.random.Generator,
    per_image: np.random.Generator,
    profile: AcquisitionProfile,
) -> np.ndarray:
    structure = STRUCTURES[kind](per_patient)
    x, y = _draw_view(size, profile.field_of_view, per_image)
    tissue = _draw_tissue(x, y, per_patient)
    contrast = per_patient.choice((-1.0, 1.0)) * per_patient.uniform(0.03, 0.09) * per_image.uniform(0.85, 1.15)
    speckle = gaussian_filter(per_image.standard_normal((size, size)), size / 80)
    intensity = 0.5 + 0.12 * tissue + contrast * _standardise(structure(x, y)) + 0.04 * _standardise(speckle)

    tint, gains = per_patient.uniform(-0.12, 0.12, 3), per_patient.uniform(0.8, 1.2, 3)
    scene = 0.5 + tint + gains * (intensity[:, :, None] - 0.5)
    blurred = gaussian_filter(scene, (profile.blur * size, profile.blur * size, 0.0))
    exposed = profile.gain * np.clip(blurred, 0.0, 1.0) ** profile.gamma * np.array(profile.cast)
    noisy = exposed + profile.noise * per_image.standard_normal((size, size, 3))
    return np.round(255.0 * np.clip(noisy, 0.0, 1.0)).astype(np.uint8)


def _draw_view(size: int, field_of_view: float, per_image: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the scene coordinates x and y of every pixel, each (size, size)."""
    axis = (2.0 * np.arange(size) + 1.0) / size - 1.0
    angle, zoom = per_image.uniform(-0.25, 0.25), field_of_view * per_image.uniform(0.92, 1.08)
    shift_x, shift_y = per_image.uniform(-0.1, 0.1, 2)
    u, v = zoom * axis[None, :], zoom * axis[:, None]
    return np.cos(angle) * u - np.sin(angle) * v + shift_x, np.sin(angle) * u + np.cos(angle) * v + shift_y


def _draw_tissue(x: np.ndarray, y: np.ndarray, per_patient: np.random.Generator) -> np.ndarray:
    tissue = np.zeros_like(x)
    for _ in range(8):
        frequency, angle = np.pi * per_patient.uniform(0.3, 1.5), per_patient.uniform(0, 2 * np.pi)
        phase, amplitude = per_patient.uniform(0, 2 * np.pi), per_patient.uniform(0.5, 1.0)
        tissue += amplitude * np.cos(frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return _standardise(tissue)


def _standardise(values: np.ndarray) -> np.ndarray:
    """Shift and scale to mean 0 and std 1; a flat field (a structure outside the view) becomes 0."""
    centred: np.ndarray = values - values.mean()
    spread = float(centred.std())
    return centred / spread if spread > 1e-6 else centred
