"""The package's manifests agree with each other and with what is in the repository."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import wm_node
from wm_node.cli.main import COMMANDS, build_parser, main
from wm_node.profile import load_profile

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"wm", "world_model", "safety_gate", "flight_recorder", "sim_robot"}


def _package_xml() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def test_the_version_is_the_same_everywhere() -> None:
    assert _package_xml().findtext("version") == wm_node.__version__
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'version="{wm_node.__version__}"' in setup
    assert f"\n{wm_node.__version__} (" in (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")


def test_package_xml_is_format_3_and_ament_python() -> None:
    root = _package_xml()
    assert root.get("format") == "3"
    assert root.findtext("export/build_type") == "ament_python"
    depends = [element.text for element in root.iter() if element.tag.endswith("depend")]
    assert len(depends) == len(set(depends))
    assert (ROOT / str(root.find("license").get("file"))).is_file()  # type: ignore[union-attr]


def test_every_imported_ros_package_is_declared() -> None:
    declared = {e.text for e in _package_xml().iter() if e.tag.endswith("depend")}
    imported = set()
    for file in (ROOT / "wm_node").rglob("*.py"):
        for match in re.finditer(
            r"^\s*(?:from|import) (\w+_msgs|\w+_interfaces|std_srvs|rclpy|launch(?:_ros)?)\b",
            file.read_text(encoding="utf-8"),
            re.MULTILINE,
        ):
            imported.add(match[1])
    assert {"rclpy", "sensor_msgs"} <= imported
    assert imported <= declared


def test_every_executable_can_be_loaded() -> None:
    scripts = {e.name: e for e in entry_points(group="console_scripts") if e.name in SCRIPTS}
    assert set(scripts) == SCRIPTS
    for script in scripts.values():
        assert callable(script.load())


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (module, _) in COMMANDS.items():
        command = importlib.import_module(module)
        assert callable(command.run)
        with pytest.raises(SystemExit) as stopped:
            build_parser([name]).parse_args([name, "--help"])
        assert stopped.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "--json" in text
        assert "default: None" not in text
        assert text.count("--seed SEED") < 2 or re.search(r"--seed SEED [^-]*default: \d", text)


def test_wrong_usage_is_status_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--no-such-option"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_parameter_files_reach_their_node_in_any_namespace(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(content) == [f"/**/{path.stem}"]
    assert isinstance(content[f"/**/{path.stem}"]["ros__parameters"], dict)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config" / "robots").glob("*.yaml")), ids=lambda p: p.name
)
def test_shipped_profiles_are_valid(path: Path) -> None:
    assert load_profile(path).name == path.stem


def test_setup_ships_every_file_of_the_shared_folders() -> None:
    shipped = {"config", "launch", "bundles"}
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert shipped == set(re.findall(r'\*shipped\("(\w+)"\)', setup))
