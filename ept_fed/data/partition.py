"""Sites: virtual ones dealt from a source that has none, and the choice of those to keep."""

from collections.abc import Sequence
from dataclasses import replace

from ept_fed.data.records import ImageRecord
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.seeds import derive_seed

__all__ = ["find_unknown_sites", "keep_sites", "name_sites", "partition_iid"]


def partition_iid(records: Sequence[ImageRecord], sites: int, seed: int) -> tuple[ImageRecord, ...]:
    """Deal whole groups to virtual sites at random, so that every site sees the same mix.

    Groups are shuffled by a hash of seed and group, sorted by split and first label, and dealt like cards:
    per split and label the sites differ by one group at most. Groups of different sizes make the counts of
    images differ more. The outcome does not depend on the order of the records.

    Args:
        records: their own sites are overwritten.
        sites: how many virtual sites.
        seed: the run's seed.

    Returns:
        The records in the order given, with sites "site-1", "site-2", …; see `name_sites`.

    Raises:
        InputRefusedError: when there are more sites than groups.
    """
    firsts: dict[str, ImageRecord] = {}
    for record in sorted(records, key=lambda record: record.image):
        firsts.setdefault(record.group, record)
    if sites > len(firsts):
        fix = f"the data has {len(firsts)} groups, and every site needs one; lower it to at most {len(firsts)}"
        raise InputRefusedError([Problem("data.virtual_sites", sites, fix)])

    def place_in_pack(group: str) -> tuple[str, tuple[int, ...], int, str]:
        first = firsts[group]
        return first.split or "", first.labels[:1], derive_seed(seed, "virtual site", group), group

    names = name_sites(sites)
    dealt = {group: names[card % sites] for card, group in enumerate(sorted(firsts, key=place_in_pack))}
    return tuple(replace(record, site=dealt[record.group]) for record in records)


def name_sites(count: int) -> tuple[str, ...]:
    """Name generated sites "site-1", "site-2", …, padded with zeros so that names sort as numbers do."""
    width = len(str(count))
    return tuple(f"site-{number:0{width}d}" for number in range(1, count + 1))


def find_unknown_sites(records: Sequence[ImageRecord], wanted: Sequence[str] | None) -> list[Problem]:
    """Return a problem for each wanted site that has no record; `None` wants whatever there is."""
    known = sorted({record.site for record in records})
    fix = f"the data has no record of this site; it has {', '.join(known) or 'none'}"
    return [Problem("data.sites", site, fix) for site in wanted or () if site not in known]


def keep_sites(records: Sequence[ImageRecord], wanted: Sequence[str] | None) -> tuple[ImageRecord, ...]:
    """Keep the records of the wanted sites; `None` keeps all.

    Raises:
        InputRefusedError: naming every wanted site that has no record.
    """
    problems = find_unknown_sites(records, wanted)
    if problems:
        raise InputRefusedError(problems)
    return tuple(record for record in records if wanted is None or record.site in wanted)
