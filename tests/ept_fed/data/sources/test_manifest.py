from collections.abc import Callable
from pathlib import Path

import pytest

from ept_fed.config.data import ManifestColumns, ManifestSettings
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.sources.manifest import read_manifest
from ept_fed.data.sources.registry import open_catalog
from ept_fed.errors import InputRefusedError, Problem

Read = Callable[..., ManifestSettings]
FLAGS = ManifestColumns(label=None, labels=("a", "b"))


@pytest.fixture
def write(tmp_path: Path) -> Read:
    (tmp_path / "images").mkdir()

    def write_manifest(text: str | bytes, **settings: object) -> ManifestSettings:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "manifest.csv").write_bytes(content)
        return ManifestSettings.model_validate({"root": tmp_path} | settings)

    return write_manifest


def _refuse(settings: ManifestSettings) -> tuple[Problem, ...]:
    with pytest.raises(InputRefusedError) as caught:
        read_manifest(settings)
    return caught.value.problems


def test_rows_become_records(write: Read) -> None:
    text = "\ufeffimage,label,site,who,set\n1,b,x,p,TRAIN\n\n2, a ,y,q,Val\n3,b,y,r,test\n"
    columns = ManifestColumns(group="who", split="set")
    catalog = read_manifest(write(text, columns=columns, image_name="jpg/{image}.jpg"))
    assert catalog.classes == ("a", "b")
    assert catalog.records == (
        ImageRecord("jpg/1.jpg", (1,), "x", "x/p", "train"),
        ImageRecord("jpg/2.jpg", (0,), "y", "y/q", "validation"),
        ImageRecord("jpg/3.jpg", (1,), "y", "y/r", "test"),
    )


def test_without_groups_every_image_is_its_own_group(write: Read) -> None:
    catalog = read_manifest(write("image,label,site\n1,a,x\n2,b,x\n"))
    assert [(record.group, record.split) for record in catalog.records] == [("1", None), ("2", None)]


def test_without_a_site_column_all_images_share_one_site(write: Read) -> None:
    columns = ManifestColumns(site=None)
    catalog = read_manifest(write("image,label\n1,a\n2,b\n", columns=columns, partition={"kind": "iid", "sites": 2}))
    assert {record.site for record in catalog.records} == {"all"}


def test_given_classes_keep_their_order_and_may_be_absent(write: Read) -> None:
    catalog = read_manifest(write("image,label,site\n1,a,x\n2,b,x\n", classes=("c", "b", "a")))
    assert [record.labels for record in catalog.records] == [(2,), (1,)]


def test_multi_hot_columns_give_any_number_of_labels(write: Read) -> None:
    text = "image,a,b,site\n1,0,0,x\n2,1,1.0,x\n3,0,1,x\n"
    catalog = read_manifest(write(text, task="multi_label", columns=FLAGS))
    assert [record.labels for record in catalog.records] == [(), (0, 1), (1,)]


def test_label_columns_follow_the_order_of_classes(write: Read) -> None:
    text = "image,a,b,site\n1,1,0,x\n2,0,1,x\n"
    catalog = read_manifest(write(text, columns=FLAGS, classes=("b", "a")))
    assert [record.labels for record in catalog.records] == [(1,), (0,)]


def test_all_rows_are_read_for_any_selection_of_sites(write: Read) -> None:
    text = "image,label,site\n1,a,x\n2,b,y\n"
    assert len(read_manifest(write(text, sites=("x",))).records) == 2


@pytest.mark.parametrize(
    ("text", "settings", "field", "said"),
    [
        ("", {}, "data.columns.image", "it has: none"),
        ("image,label,site\n", {}, "data.manifest", "no rows"),
        ("picture,label,site\n1,a,x\n", {}, "data.columns.image", "it has: picture, label, site"),
        ("image;label;site\n1;a;x\n", {}, "data.columns.site", "separated by commas"),
        ("image,label,site,site\n1,a,x,x\n", {}, "data.columns.site", "twice"),
        ("image,label,site\n1,a\n2,b,x\n", {}, "data.manifest", "line(s) [2]"),
        ('image,label,site\n1,"a,x\n', {}, "data.manifest", "cannot be read"),
        (b"image,label,site\n1,\xff,x\n", {}, "data.manifest", "cannot be read"),
        ("image,label,site\n1,,x\n2,a,x\n3,b,x\n", {}, "data.columns.label", "empty"),
        ("image,label,site\n1,a,\n2,b,x\n", {}, "data.columns.site", "line(s) 2"),
        ("image,label,site\n,a,x\n2,b,x\n", {}, "data.columns.image", "empty"),
        (
            "image,label,site,who\n1,a,x,\n2,b,x,p\n",
            {"columns": ManifestColumns(group="who")},
            "data.columns.group",
            "",
        ),
        ("image,label,site\n1,a,x\n2,z,x\n3,z,x\n", {"classes": ("a", "b")}, "data.columns.label", "2 row(s)"),
        ("image,label,site\n1,a,x\n2,a,x\n", {}, "data.columns.label", "fewer than two"),
        ("image,label,site\n1,a,x\n1,b,x\n", {}, "data.columns.image", "more than once"),
        ("image,label,site\n1,a,x\n2,b,x\n", {"sites": ("x", "zz")}, "data.sites", "it has x"),
        ("image,a,b,site\n1,2,1,x\n", {"columns": FLAGS}, "data.columns.labels", "must be 0 or 1"),
        ("image,a,b,site\n1,1,1,x\n", {"columns": FLAGS}, "data.columns.labels", "exactly one 1"),
        ("image,a,b,site\n1,0,0,x\n", {"columns": FLAGS}, "data.columns.labels", "exactly one 1"),
        ("image,a,b,site\n1,0,1,x\n", {"columns": FLAGS, "classes": ("a", "c")}, "data.classes", "a, b"),
    ],
)
def test_each_defect_is_refused(
    write: Read, text: str | bytes, settings: dict[str, object], field: str, said: str
) -> None:
    problems = _refuse(write(text, **settings))
    assert any(problem.field == field and said in problem.fix for problem in problems), problems


def test_unknown_split_is_refused(write: Read) -> None:
    text = "image,label,site,split\n1,a,x,train\n2,b,x,holdout\n3,b,x,\n"
    problem, absent = _refuse(write(text, columns=ManifestColumns(split="split")))
    assert problem.value == ["holdout", ""]
    assert (absent.field, absent.value) == ("data.images", ["1", "2", "3"])


def test_a_group_name_at_two_sites_is_two_groups_unless_its_scope_is_everywhere(write: Read) -> None:
    text = "image,label,site,who\n1,a,x,p\n2,b,y,p\n"
    for scope, groups in (("site", ["x/p", "y/p"]), ("everywhere", ["p", "p"])):
        catalog = read_manifest(write(text, columns=ManifestColumns(group="who", group_scope=scope)))
        assert [record.group for record in catalog.records] == groups


def test_a_straddling_group_is_refused_with_and_without_other_problems(write: Read) -> None:
    text = "image,label,site,split,who\n1,a,x,train,p\n2,b,x,test,p\n"
    columns = ManifestColumns(split="split", group="who")
    with pytest.raises(InputRefusedError, match="more than one split") as refusal:
        open_catalog(write(text, columns=columns), seed=0)
    (problem,) = refusal.value.problems
    assert problem.value == ["x/p"]
    assert len(read_manifest(write(text, columns=columns)).records) == 2
    fields = [problem.field for problem in _refuse(write(text + "3,,x,test,q\n", columns=columns))]
    assert fields == ["data.columns.label", "data", "data.images"]


def test_subgroups_stay_with_the_image(write: Read) -> None:
    text = "image,label,site,sex,age\n1,a,x,female,40-49\n2,b,x,,50-59\n"
    catalog = read_manifest(write(text, columns=ManifestColumns(subgroups=("sex", "age"))))
    attributes = [record.attributes for record in catalog.records]
    assert attributes == [(("sex", "female"), ("age", "40-49")), (("age", "50-59"),)]
    (problem,) = _refuse(write(text, columns=ManifestColumns(subgroups=("scanner",))))
    assert problem.field == "data.columns.subgroups"


def test_classes_that_differ_in_spelling_only_are_ambiguous(write: Read) -> None:
    text = "image,label,site\n1,Nevus,x\n2,nevus,x\n3,mel,x\n"
    problem, _ = _refuse(write(text))
    assert (problem.field, problem.value) == ("data.columns.label", ["Nevus", "nevus"])
    assert "ambiguous" in problem.fix
    assert len(read_manifest(write(text, classes=("Nevus", "nevus", "mel"))).classes) == 3


def test_a_similar_column_name_is_suggested(write: Read) -> None:
    (problem,) = _refuse(write("image,Label,site\n1,a,x\n"))
    assert "did you mean 'Label'?" in problem.fix


def test_missing_files_are_reported_together(tmp_path: Path) -> None:
    problems = _refuse(ManifestSettings(root=tmp_path))
    assert [problem.field for problem in problems] == ["data.images", "data.manifest"]


def test_all_problems_are_reported_together(write: Read) -> None:
    text = "image,label,site\n1,a,\n1,b,x\n3,,x\n,z,x\n"
    fields = [problem.field for problem in _refuse(write(text, classes=("a", "b"), sites=("q",)))]
    assert sorted(fields) == [
        "data.columns.image",
        "data.columns.image",
        "data.columns.label",
        "data.columns.label",
        "data.columns.site",
        "data.images",
        "data.sites",
    ]


def test_a_thousand_bad_rows_make_one_problem(write: Read) -> None:
    text = "image,label,site\n" + "".join(f"{number},z,x\n" for number in range(1000))
    problem, _ = _refuse(write(text, classes=("a", "b")))
    assert "1000 row(s), line(s) 2, 3, 4, 5, 6, …" in problem.fix
