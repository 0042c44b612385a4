"""Experiment settings: typed and immutable; an unknown key is refused.

`ept_fed.experiment_file` reads them from YAML; paths are relative to the folder the command runs in.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "LOCAL_SETTINGS",
    "AnyDataSettings",
    "AugmentationSettings",
    "DataSettings",
    "EvaluationSettings",
    "Experiment",
    "FederationSettings",
    "ImageFolderSettings",
    "ManifestColumns",
    "ManifestSettings",
    "MedMNISTSettings",
    "ModelSettings",
    "PersonalisationSettings",
    "PhantomSettings",
    "TrainingSettings",
]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every section: immutable, and an unknown key is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class AugmentationSettings(Settings):
    """Training-time augmentation of the paper (section 4.1): random resized crop and horizontal flip."""

    crop_scale: tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]] = Field(
        (0.08, 1.0), description="smallest and largest share of the image area that a crop covers"
    )
    flip: bool = Field(True, description="mirror half of the training images left to right")


class DataSettings(Settings):
    """What every source shares: classes, splits by group, and the few-shot sample."""

    root: Path = Field(Path("."), description="folder that the source's other paths start from")
    task: Literal["single_label", "multi_label"] = Field(
        "single_label", description="one class per image (cross entropy) or any number (binary cross entropy)"
    )
    classes: tuple[str, ...] | None = Field(None, description="class names in order; null takes them from the data")
    sites: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="keep only these sites; null keeps all"
    )
    virtual_sites: Count | None = Field(
        None,
        description="split a source without a site column at random into so many sites, groups kept whole",
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
    max_unreadable: Fraction = Field(
        0.0, description="largest share of missing or unreadable images that is dropped instead of refused"
    )
    augmentation: AugmentationSettings = AugmentationSettings()


class ManifestColumns(Settings):
    """Which column of the manifest holds what."""

    image: str = "image"
    label: str | None = Field("label", description="column with the class name (single label)")
    labels: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="one 0/1 column per class (multi-label or one-hot)"
    )
    site: str | None = "site"
    split: str | None = Field(None, description="column with train, validation or test; null splits by group")
    group: str | None = Field(None, description="patient or lesion; images of one group never straddle a split")
    group_scope: Literal["site", "everywhere"] = Field(
        "site",
        description="site: equal names at two sites are two groups; everywhere: they are one, and share a split",
    )


class ManifestSettings(DataSettings):
    """A CSV with one row per image, and a folder or .zip with the images."""

    source: Literal["manifest"] = "manifest"
    manifest: Path = Field(Path("manifest.csv"), description="the CSV, below root")
    images: Path = Field(Path("images"), description="a folder or a .zip with the images, below root")
    image_name: str = Field(
        "{image}", description="path inside `images`, made from the image column, e.g. 'jpg/{image}.jpg'"
    )
    columns: ManifestColumns = ManifestColumns()


class ImageFolderSettings(DataSettings):
    """Images sorted into folders named after site and class; no list to write."""

    source: Literal["folder"] = "folder"
    images: Path = Field(Path("images"), description="a folder or a .zip, below root")
    levels: Literal["class", "class/group", "site/class", "site/class/group"] = Field(
        "site/class", description="what the nested folders are called after; a group is a patient or a lesion"
    )


class MedMNISTSettings(DataSettings):
    """A MedMNIST archive: {train,val,test}_{images,labels} in one .npz."""

    source: Literal["medmnist"] = "medmnist"
    archive: Path = Field(Path("medmnist.npz"), description="the .npz, below root")


class PhantomSettings(DataSettings):
    """Generated images: no files needed; `root` is not used."""

    source: Literal["phantoms"] = "phantoms"
    size: Annotated[int, Field(ge=64, le=512)] = Field(64, description="width and height in pixels")
    phantom_sites: Annotated[int, Field(ge=1, le=64)] = Field(5, description="sites, each with its own scanner")
    patients_per_class: Count = Field(60, description="patients per class and site")
    images_per_patient: Annotated[int, Field(ge=1, le=16)] = 2


AnyDataSettings = Annotated[
    ManifestSettings | ImageFolderSettings | MedMNISTSettings | PhantomSettings, Field(discriminator="source")
]


class ModelSettings(Settings):
    """The frozen backbone and the prompts inside it."""

    backbone: str = Field("vit_small_patch14_dinov2", description="a timm name, or hf-hub:… of a timm repository")
    weights: str | None = Field(
        None, description="null for random weights, 'pretrained' for timm's own, or a .safetensors/.pth path"
    )
    image_size: Count | None = Field(None, description="pixels per side; null keeps the backbone's own size")
    prompt_length: Annotated[int, Field(ge=1, le=100_000)] = Field(
        100, description="M, prompt columns per token; starts the sink at about log M"
    )
    prompt_layers: Literal["deep", "shallow"] | tuple[int, ...] = Field(
        "deep", description="all layers, the first only, or a list of layer indices"
    )
    tokens: Annotated[int, Field(ge=0, le=200)] = Field(
        0, description="T, context tokens per prompted layer, each with a sink; T·(D+1) more numbers travel"
    )
    embedding: Literal["concat", "add", "multiply", "multiply_concat"] = Field(
        "concat", description="how prompts enter the attention logits (Fig. 5); only concat folds"
    )
    init: Literal["normal", "uniform", "zero", "kaiming"] = "normal"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class TrainingSettings(Settings):
    """What one site does in one round. These settings travel with every train request."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    prompt_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.1,
        description="on prompts, hundreds of times the paper's 6e-4: see facts on the effective rate of a sink",
    )
    token_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.003
    head_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.002
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-4
    momentum: Fraction = Field(0.9, description="used by sgd")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="over all rounds of the run, not within one")
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="passes over the training images per round")
    head_first_epochs: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="FedRep: epochs on the head alone before `epochs` on the prompts alone; 0 trains both together"
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    class_balanced: bool = Field(False, description="draw every class equally often")
    optimizer_state: Literal["keep", "reset"] = Field("keep", description="momentum across rounds at a site")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA only")
    proximal_mu: Annotated[float, Field(ge=0.0, le=1000.0)] = Field(
        0.0, description="set by federation.strategy fedprox or feddyn; leave it at 0"
    )


class FederationSettings(Settings):
    """What is shared, how often, and how it is averaged."""

    rounds: Count = 8
    share: Literal["prompts", "prompts+head"] = Field(
        "prompts", description="prompts keeps the head at the site; prompts+head sends it too"
    )
    payload: Literal["folded", "raw"] = Field(
        "folded", description="folded: one number per layer and token; raw: all M columns, for ablations"
    )
    strategy: str = Field("fedavg", description="a name of docs/strategies.md")
    options: dict[str, float] = Field({}, description="the strategy's own numbers; see docs/strategies.md")
    averaging: Literal["mean", "log_mean_exp"] = Field(
        "mean", description="of folds: their mean, or the fold of all sites' columns together (fedavg only)"
    )
    weights: Literal["examples", "uniform", "capped"] = Field(
        "examples", description="sites count by training images, equally, or by images up to weight_cap"
    )
    weight_cap: Count | None = Field(None, description="for weights: capped")
    sites_per_round: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="share of the sites drawn for each round, or their number if above 1"
    )
    quorum: Count | None = Field(
        None, description="fewest sound replies that are averaged; null asks for half of the sites asked"
    )
    deadline: Positive = Field(3600.0, description="seconds after which a silent site is left out of the round")
    norm_bound: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = Field(
        10.0, description="refuse an update longer than so many times the round's median length; null never does"
    )
    max_examples: Count | dict[str, Count] | None = Field(
        None,
        description="most training images a site may claim: one number, or one by site; null takes its word",
    )
    patience: Count | None = Field(None, description="stop after so many rounds without a better validation AUC")
    target_auc: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="stop once the mean validation AUC over sites reaches this"
    )


class PersonalisationSettings(Settings):
    """What a site makes for itself besides the federated prompts; nothing of it travels."""

    ditto: Positive | None = Field(
        None, description="Ditto's lambda: train a second, own model each round, held near the global prompts"
    )
    fine_tune_epochs: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="after the last round, train the federated model so many epochs at the site"
    )
    interpolate: bool = Field(
        False, description="mix own and global prompts, by the share that suits the site's validation images best"
    )


class EvaluationSettings(Settings):
    """What the final table compares against, on each site's own test split."""

    baselines: tuple[Literal["local", "centralised"], ...] = ("local",)
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32


# Settings of one machine and words for people: the same run may have others elsewhere.
LOCAL_SETTINGS: dict[str, Any] = {
    "data": {"root", "manifest", "images", "archive", "image_name", "columns", "sites"},
    "model": {"weights", "device"},
    "name": True,
    "about": True,
}
# Settings that the prompts do not depend on.
_AFTERWARDS: dict[str, Any] = {"personalisation": True, "evaluation": True}


class Experiment(Settings):
    """One whole experiment; the root of a YAML file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        "experiment", description="of the run and its folder"
    )
    about: str = Field("", description="what the run shows, printed when it starts")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="every random choice derives from it")
    data: AnyDataSettings
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    personalisation: PersonalisationSettings = PersonalisationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @property
    def run_id(self) -> str:
        """Name of the run: 16 hex digits of the SHA-256 of the settings that its prompts depend on.

        Where files lie, the device and the baselines are left out: a site with another folder is in the same run, and
        moving the data changes nothing.
        """
        canonical = json.dumps(self.model_dump(mode="json", exclude=LOCAL_SETTINGS | _AFTERWARDS), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Return the resolved settings, defaults included, as YAML that `load_experiment` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
