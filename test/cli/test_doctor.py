"""wm doctor: findings on this machine, on broken set-ups, and its exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from wm_node.bundle import GOLDEN, MANIFEST, Bundle
from wm_node.cli import doctor
from wm_node.cli.main import main
from wm_node.engine import cuda_device, tensorrt_adapter
from wm_node.engine.cuda_device import CudaDevice
from wm_node.engine.tensorrt_adapter import TensorRt
from wm_node.errors import WmError
from wm_node.model.export import untrained_bundle
from wm_node.profile import load_profile
from wm_node.resources import resource


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained_bundle(load_profile("tabletop"), tmp_path_factory.mktemp("b") / "bundle", 0)


@pytest.fixture(autouse=True)
def _ros_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = str(resource("config/fastdds_large_images.xml"))
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", profile)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")


def test_a_good_set_up_passes(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "doctor.json"
    words = ["doctor", "--bundle", str(bundle.path), "--robot", "tabletop", "--json", str(file)]
    assert main(words) == 0
    data = json.loads(file.read_text())
    level = {finding["check"]: finding["level"] for finding in data["findings"]}
    assert data["counts"]["fail"] == 0
    expected = ("python", "ros", "messages", "dds profile", "profile", "bundle", "golden openvino")
    assert {level[name] for name in expected} == {"ok"}
    assert "0 failed" in capsys.readouterr().out


def test_a_damaged_bundle_fails_with_its_sentence(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "damaged"
    copy.mkdir()
    for file in bundle.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    golden = copy / GOLDEN
    content = bytearray(golden.read_bytes())
    content[len(content) // 2] ^= 1
    golden.write_bytes(content)
    assert main(["doctor", "--bundle", str(copy)]) == 1
    text = capsys.readouterr().out
    assert "golden.npz fails its sha256" in text
    assert "1 failed" in text


def test_a_bundle_of_another_robot_fails(bundle: Bundle, tmp_path: Path) -> None:
    profile = tmp_path / "other.yaml"
    text = resource("config/robots/tabletop.yaml").read_text(encoding="utf-8")
    profile.write_text(text.replace("base_yaw", "waist"), encoding="utf-8")
    found = list(doctor.check_bundle(bundle.path, load_profile(profile), []))
    assert [f.level for f in found] == ["ok", "fail"]
    assert "joint names" in found[1].text


def test_no_bundle_at_all(tmp_path: Path) -> None:
    (found,) = doctor.check_bundle(tmp_path, None, [])
    assert found.level == "fail"
    assert MANIFEST in found.text


def test_a_profile_that_is_not_valid_fails(tmp_path: Path) -> None:
    path = tmp_path / "robot.yaml"
    path.write_text("format: 1\nname: x\n")
    finding, profile = doctor.check_profile(str(path))
    assert (finding.level, profile) == ("fail", None)
    assert "missing" in finding.text


def test_the_dds_profile_is_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE"
    assert doctor.check_dds_profile().level == "ok"
    monkeypatch.delenv(variable)
    assert doctor.check_dds_profile().level == "warn"
    assert f"export {variable}=" in doctor.check_dds_profile().remedy
    small = tmp_path / "small.xml"
    small.write_text("<dds><segment_size>262144</segment_size></dds>")
    monkeypatch.setenv(variable, str(small))
    assert doctor.check_dds_profile().level == "warn"
    small.write_text("<dds><segment_size>")
    assert doctor.check_dds_profile().level == "fail"
    monkeypatch.setenv(variable, str(tmp_path / "none.xml"))
    assert doctor.check_dds_profile().level == "fail"


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "mujoco", "std_srvs", "rclpy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert doctor.check_backend("openvino").level == "warn"
    assert doctor.check_simulator().level == "warn"
    assert doctor.check_ros().level == "fail"
    finding = doctor.check_messages()
    assert finding.level == "fail"
    assert finding.text == "missing: std_srvs"
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    failed = [f for f in doctor.findings(None, None) if f.check == "engine"]
    assert [f.level for f in failed] == ["fail"]


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PYTHON", ((3, 98), (3, 99)))
    assert doctor.check_python().level == "fail"


def test_open_network_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_network().level == "ok"
    monkeypatch.delenv("ROS_DOMAIN_ID")
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
    assert doctor.check_network().level == "warn"


@pytest.mark.parametrize("edition", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_and_its_gpu_are_engine_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, edition: str
) -> None:
    for name in ("openvino", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(
        tensorrt_adapter, "find_tensorrt", lambda: TensorRt(None, edition, "10.3.0.30")
    )
    monkeypatch.setattr(
        cuda_device, "current_device", lambda remedy: CudaDevice("Orin", "sm_87", "12.6")
    )
    found = {finding.check: finding for finding in doctor.findings(None, tmp_path)}
    assert found["engine tensorrt"].level == "ok"
    assert found["engine tensorrt"].text == f"{edition} 10.3.0.30 on Orin"
    assert "engine" not in found


def test_tensorrt_without_a_gpu_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(remedy: str) -> CudaDevice:
        raise WmError(f"no NVIDIA GPU can be used here; {remedy}.")

    monkeypatch.setattr(
        tensorrt_adapter, "find_tensorrt", lambda: TensorRt(None, "tensorrt_rtx", "1.7")
    )
    monkeypatch.setattr(cuda_device, "current_device", none_here)
    finding = doctor.check_tensorrt()
    assert finding.level == "warn"
    assert "no NVIDIA GPU" in finding.text


def test_a_small_disk_is_a_warning_that_names_the_recorders_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 10**9))
    finding = doctor.check_disk()
    assert finding.level == "warn"
    assert f"stops at {doctor.recorder_min_free_mb()} MB" in finding.remedy
