"""Settings of the partition of images among sites, own or virtual; see `ept_fed.data.splits.partition`."""

from typing import Annotated, Literal

from pydantic import Field

from ept_fed.config.base import Count, Positive, Settings

__all__ = [
    "AnyPartition",
    "DirichletPartition",
    "FeatureShiftSettings",
    "IIDPartition",
    "PartitionSettings",
    "QuantityPartition",
    "ShardsPartition",
    "SitesPartition",
    "VirtualPartition",
]

Sites = Annotated[int, Field(ge=1, le=100_000)]
_SITES = "how many virtual sites"
_MIN_IMAGES = "minimum images per site; shares are redrawn, up to ten times, until every site has them"


class FeatureShiftSettings(Settings):
    """A seeded scanner per site; each number is drawn once per site, uniformly from its range."""

    gain: tuple[Positive, Positive] = Field((0.8, 1.2), description="factor on the intensity")
    gamma: tuple[Positive, Positive] = Field((0.7, 1.4), description="exponent on the intensity, before the gain")
    blur: tuple[Annotated[float, Field(ge=0.0, le=0.1)], Annotated[float, Field(ge=0.0, le=0.1)]] = Field(
        (0.0, 0.012), description="std of the point spread, in shares of the image width"
    )
    noise: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        (0.0, 0.05), description="std of the sensor noise, on the 0–1 scale"
    )
    field_of_view: tuple[Annotated[float, Field(ge=0.25, le=4.0)], Annotated[float, Field(ge=0.25, le=4.0)]] = Field(
        (0.85, 1.2),
        description="visible width, in image widths; above 1 the image is shown smaller and its border is repeated",
    )


class PartitionSettings(Settings):
    """Settings that all partitions share."""

    feature_shift: FeatureShiftSettings | None = Field(
        None, description="simulate a different scanner at every site; {} uses the defaults below"
    )


class SitesPartition(PartitionSettings):
    """The sites that the source names: a column, a folder, a phantom scanner."""

    kind: Literal["sites"] = "sites"


class VirtualPartition(PartitionSettings):
    """Base of all partitions into virtual sites; the images of all sites that the source names are merged first."""

    sites: Sites = Field(description=_SITES)


class IIDPartition(VirtualPartition):
    """Whole groups are divided at random, so that every site has the same class proportions."""

    kind: Literal["iid"] = "iid"


class DirichletPartition(VirtualPartition):
    """Label skew: each class is divided in proportions drawn from Dirichlet(alpha); Yurochkin et al. 2019."""

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        0.5, description="large: all sites have similar class proportions; small: few classes per site"
    )
    min_images: Annotated[int, Field(ge=1)] = Field(10, description=_MIN_IMAGES)
    self_balancing: bool = Field(
        False, description="give no further images to a site that already has more than the average"
    )


class ShardsPartition(VirtualPartition):
    """Label shards: images sorted by class are cut into equal shards, and each site gets a few; McMahan et al. 2017."""

    kind: Literal["shards"] = "shards"
    shards_per_site: Annotated[int, Field(ge=1, le=1000)] = Field(
        2, description="shards per site; a site has about as many classes"
    )


class QuantityPartition(VirtualPartition):
    """Quantity skew: log-normal site sizes, equal class proportions; as in LEAF and FedProx's synthetic data."""

    kind: Literal["quantity"] = "quantity"
    sigma: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        1.0, description="std of the logarithm of a site's size; 0 makes all sites equal in size"
    )
    min_images: Count = Field(10, description=_MIN_IMAGES)


AnyPartition = Annotated[
    SitesPartition | IIDPartition | DirichletPartition | ShardsPartition | QuantityPartition,
    Field(discriminator="kind"),
]
