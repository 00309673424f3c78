"""A config may not run code of its own choosing."""

import pytest

from bevstack.perception.safe_config import check_config


def test_a_foreign_class_is_refused_however_deep(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("model: {heads: [{class_path: os.system, init_args: {command: ls}}]}")
    with pytest.raises(ValueError, match=r"names the class os\.system.*--trust os"):
        check_config(path)
    check_config(path, trust=["os"])


def test_classes_of_the_project_and_its_libraries_pass(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text("a: {class_path: bevstack.x.Y}\nb: [{class_path: torch.nn.ReLU}]")
    check_config(path)


def test_a_name_that_only_begins_like_a_trusted_one_is_refused(tmp_path):
    path = tmp_path / "near.yaml"
    path.write_text("a: {class_path: torchevil.Payload}")
    with pytest.raises(ValueError, match="torchevil"):
        check_config(path)


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system ['ls']"])
def test_broken_or_executable_yaml_is_refused(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="not valid YAML"):
        check_config(path)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: cannot read the config"):
        check_config(tmp_path / "none.yaml")
