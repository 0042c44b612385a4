"""The data section of an experiment: the settings that all sources share, and one settings class per source."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ept_fed.config.base import Count, Fraction, Settings
from ept_fed.config.partition import AnyPartition, SitesPartition

__all__ = [
    "LOCAL_DATA_FIELDS",
    "AnyDataSettings",
    "AugmentationSettings",
    "DataSettings",
    "DicomColumns",
    "DicomSettings",
    "ISIC2018Settings",
    "ImageFolderSettings",
    "ManifestColumns",
    "ManifestSettings",
    "MedFMCSettings",
    "MedMNISTSettings",
    "PhantomSettings",
    "SharedDataSettings",
]

# These settings describe the location and the format of a site's files. They differ between the sites of one run.
LOCAL_DATA_FIELDS = frozenset(
    {
        "root",
        "manifest",
        "images",
        "archive",
        "image_name",
        "columns",
        "sites",
        "lists",
        "labels",
        "patient_key",
    }
)


class AugmentationSettings(Settings):
    """Training-time augmentation of the paper (section 4.1): random resized crop and horizontal flip."""

    crop_scale: tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]] = Field(
        (0.1, 1.0), description="smallest and largest share of the image area that a crop covers"
    )
    flip: bool = Field(True, description="mirror half of the training images left to right")
    views: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="augmented views per image, drawn once, among which every epoch chooses; layers below the first "
        "prompt then run once per view; 0: every epoch augments anew",
    )


class SharedDataSettings(Settings):
    """Settings that are equal at all sites of a consortium: classes, sizes of the splits, and the few-shot sample."""

    task: Literal["single_label", "multi_label"] = Field(
        "single_label", description="one class per image (cross entropy) or any number (binary cross entropy)"
    )
    classes: tuple[str, ...] | None = Field(None, description="class names in order; null takes them from the data")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="seed of splits, K-shot samples and virtual sites; null: the run's seed"
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None,
        description="seed of splits and virtual sites only, so that runs with other seeds draw other K-shot samples "
        "but test on the same images; null: `seed`",
    )
    shots: Count | None = Field(
        None,
        description="training images per class and site (K-shot); null trains on the whole training split",
    )
    scarce_classes: Literal["refuse", "use_all"] = Field(
        "refuse",
        description="a class with fewer than `shots` images at a site: refuse to start, or use all it has",
    )
    test_fraction: Fraction = Field(0.2, description="share of the groups held out for the final report")
    validation_fraction: Fraction = Field(0.1, description="share of the groups held out for tuning and live display")
    validation_shots: Count | None = Field(10, description="validation images per class and site; null uses all")
    test_shots: Count | None = Field(
        None,
        description="test images per class and site, for quick comparisons: rare classes keep all their images, but "
        "the class proportions change, which affects all measures except sensitivities and balanced accuracy; null "
        "uses all",
    )
    augmentation: AugmentationSettings = AugmentationSettings()

    def place_by(self, seed: int) -> int:
        """Return the seed of splits and virtual sites, given the seed of the K-shot samples."""
        return seed if self.split_seed is None else self.split_seed


class DataSettings(SharedDataSettings):
    """Settings that all sources share: classes, splits by group, and the few-shot sample."""

    root: Path = Field(Path("."), description="folder; the source's other paths are relative to it")
    sites: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="keep only these sites; null keeps all"
    )
    partition: AnyPartition = Field(
        SitesPartition(), description="the source's own sites, or virtual sites that the images are divided among"
    )
    max_unreadable: Fraction = Field(
        0.0, description="maximum share of missing or unreadable images that are dropped; above it the run is refused"
    )


class ManifestColumns(Settings):
    """Names of the manifest's columns."""

    image: str = "image"
    label: str | None = Field("label", description="column with the class name (single label)")
    labels: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="one 0/1 column per class (multi-label or one-hot)"
    )
    site: str | None = "site"
    split: str | None = Field(None, description="column with train, validation or test; null splits by group")
    group: str | None = Field(
        None, description="column with the patient or lesion; all images of one group are in the same split"
    )
    group_scope: Literal["site", "everywhere"] = Field(
        "site",
        description="site: equal group names at two sites are two groups; everywhere: they are one group in one split",
    )
    subgroups: tuple[str, ...] = Field((), description="columns to keep with each image, e.g. sex, age band, scanner")


class ManifestSettings(DataSettings):
    """A CSV with one row per image, and a folder or .zip with the images."""

    source: Literal["manifest"] = "manifest"
    manifest: Path = Field(Path("manifest.csv"), description="the CSV file, below root")
    images: Path = Field(Path("images"), description="a folder or a .zip with the images, below root")
    image_name: str = Field(
        "{image}", description="path inside `images`, made from the image column, e.g. 'jpg/{image}.jpg'"
    )
    columns: ManifestColumns = ManifestColumns()


class ImageFolderSettings(DataSettings):
    """Images sorted into folders named after site and class; no list file is needed."""

    source: Literal["folder"] = "folder"
    images: Path = Field(Path("images"), description="a folder or a .zip, below root")
    levels: Literal["class", "class/group", "site/class", "site/class/group"] = Field(
        "site/class", description="meaning of the nested folders' names; a group is a patient or a lesion"
    )


class MedMNISTSettings(DataSettings):
    """A MedMNIST archive: {train,val,test}_{images,labels} in one .npz."""

    source: Literal["medmnist"] = "medmnist"
    archive: Path = Field(Path("medmnist.npz"), description="the .npz, below root")


class MedFMCSettings(DataSettings):
    """The lists of the MedFMC challenge: `image.png 0`, `image.png 1,0,0` or `image.png 1 0 0`."""

    source: Literal["medfmc"] = "medfmc"
    dataset: Literal["chest", "colon", "endo"] = Field(
        "colon", description="gives the class names; chest and endo are multi_label"
    )
    images: Path = Field(Path("images"), description="a folder or a .zip with the images, below root")
    lists: Path = Field(Path("."), description="folder of the lists, below root")
    sampling: Literal["exp1", "exp2", "exp3", "exp4", "exp5"] | None = Field(
        None, description="one of the five published K-shot samplings; null uses the lists named below"
    )
    sampling_shots: Literal[1, 5, 10] = Field(10, description="K of the published sampling")
    train_list: str = Field("trainval.txt", description="list of training images; a sampling replaces it")
    validation_list: str | None = Field(
        None, description="list of validation images; a sampling replaces it; null takes them from the training groups"
    )
    test_list: str | None = Field(
        "test_WithLabel.txt", description="list of test images; null splits at random by group"
    )
    overlap: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="an image that is in the training list and in the validation list, as in the published chest and "
        "endo samplings: refuse to start, or leave it out of validation",
    )
    group_pattern: str | None = Field(
        None, description="regular expression whose first capturing group is the patient in a file name"
    )


class ISIC2018Settings(DataSettings):
    """ISIC 2018, task 3, as the challenge publishes it: one-hot ground truth and folders of images."""

    source: Literal["isic2018"] = "isic2018"
    images: Path = Field(Path("."), description="folder or .zip that holds ISIC2018_Task3_…_Input, below root")
    parts: Annotated[tuple[Literal["training", "validation", "test"], ...], Field(min_length=1)] = Field(
        ("training",), description="the published parts to use; a single part is split at random by lesion"
    )
    groupings: bool = Field(
        True, description="keep all images of a lesion in one split, by the published LesionGroupings.csv"
    )


class DicomColumns(Settings):
    """Names of the label file's columns."""

    image: str = Field("SOPInstanceUID", description="column that identifies the image of a row")
    image_is: Literal["uid", "path"] = Field(
        "uid", description="content of that column: SOPInstanceUIDs, or paths below `images`"
    )
    label: str | None = Field("label", description="column with the class name (single label)")
    labels: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="one 0/1 column per class (multi-label or one-hot)"
    )
    site: str | None = Field(None, description="column with the site; null: one site, or a partition")
    split: str | None = Field(None, description="column with train, validation or test; null splits by group")


class DicomSettings(DataSettings):
    """A folder of DICOM files as a PACS exports it, and a CSV with their labels."""

    source: Literal["dicom"] = "dicom"
    images: Path = Field(Path("images"), description="folder that is searched for DICOM files, below root")
    labels: Path = Field(Path("labels.csv"), description="the CSV file, below root")
    columns: DicomColumns = DicomColumns()
    group: Literal["patient", "image"] = Field(
        "patient", description="patient: all images of one PatientID form a group; image: each image is its own group"
    )
    patient_key: Path | None = Field(
        None,
        description="file below root with the secret key of the PatientID hash; without a key, a person who guesses an "
        "identifier can check the guess against the hash",
    )


class PhantomSettings(DataSettings):
    """Generated images; no files are needed, and `root` is not used."""

    source: Literal["phantoms"] = "phantoms"
    size: Annotated[int, Field(ge=64, le=512)] = Field(64, description="width and height in pixels")
    phantom_sites: Annotated[int, Field(ge=1, le=64)] = Field(5, description="sites, each with its own scanner")
    patients_per_class: Count = Field(60, description="patients per class and site")
    images_per_patient: Annotated[int, Field(ge=1, le=16)] = 2


AnyDataSettings = Annotated[
    ManifestSettings
    | ImageFolderSettings
    | MedMNISTSettings
    | MedFMCSettings
    | ISIC2018Settings
    | DicomSettings
    | PhantomSettings,
    Field(discriminator="source"),
]
