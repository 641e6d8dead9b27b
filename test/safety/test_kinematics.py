"""Chains of a URDF, against the simulator's own arm and against hand-made cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wm_node.errors import WmError
from wm_node.profile import load_profile, urdf_file
from wm_node.safety.kinematics import load_chains
from wm_node.sim.scene import ARM_BASE, LINK_LENGTH, SHOULDER_HEIGHT, STICK_LENGTH
from wm_node.sim.tabletop import TabletopSim

ONE = """<robot name="r">
  <link name="a"/><link name="b"/><link name="c"/>
  <joint name="slide" type="prismatic">
    <parent link="a"/><child link="b"/><origin xyz="1 0 0" rpy="0 0 1.5707963267948966"/>
    <axis xyz="1 0 0"/>
  </joint>
  <joint name="turn" type="{kind}">
    <parent link="b"/><child link="c"/><origin xyz="0 0 2"/><axis xyz="{axis}"/>{more}
  </joint>
</robot>"""


def write(path: Path, kind: str = "continuous", axis: str = "0 0 1", more: str = "") -> Path:
    path.write_text(ONE.format(kind=kind, axis=axis, more=more))
    return path


def test_the_shipped_arm_is_the_simulated_one():
    profile = load_profile("tabletop")
    assert profile.safety.space is not None
    names = ["tip", "forearm", "hand"]
    chains = load_chains(
        urdf_file("tabletop", profile.safety.space), "table", names, profile.joints.names
    )
    sim, random = TabletopSim(render=False), np.random.default_rng(0)
    for _ in range(20):
        joints = random.uniform(-1.5, 1.5, 4)
        sim.data.qpos[:4] = joints
        import mujoco

        mujoco.mj_kinematics(sim.model, sim.data)
        tip = sim.data.geom("tip").xpos
        places = [chain.places(joints[None])[0] for chain in chains]
        assert places[0] == pytest.approx(tip, abs=1e-9)
        for place, body in zip(places[1:], names[1:], strict=True):
            assert place == pytest.approx(sim.data.body(body).xpos, abs=1e-9)
    assert (ARM_BASE, SHOULDER_HEIGHT) == ((0.0, 0.46), 0.23), "or tabletop.urdf must follow"
    assert (LINK_LENGTH, STICK_LENGTH) == (0.405, 0.20)


def test_joints_move_what_hangs_on_them_in_either_direction(tmp_path: Path):
    urdf = write(tmp_path / "one.urdf")
    there, back = (
        load_chains(urdf, frame, [link], ["turn", "slide"])[0]
        for frame, link in (("a", "c"), ("c", "a"))
    )
    states = np.array([[0.0, 0.0], [0.0, 0.5], [np.pi / 2, 0.0]])  # turn, slide
    assert there.places(states) == pytest.approx(
        np.array([[1, 0, 2], [1, 0.5, 2], [1, 0, 2]]), abs=1e-12
    )
    # Seen from c the way back turns with it.
    assert back.places(states) == pytest.approx(
        np.array([[0, 1, -2], [-0.5, 1, -2], [1, 0, -2]]), abs=1e-12
    )


def test_where_both_hang_on_the_same_joint_it_need_not_be_known(tmp_path: Path):
    urdf = write(tmp_path / "one.urdf")
    (chain,) = load_chains(urdf, "b", ["c"], ["turn"])
    assert chain.places(np.zeros((1, 1))) == pytest.approx(np.array([[0, 0, 2]]))
    with pytest.raises(WmError, match="'slide', which the profile's joints do not hold"):
        load_chains(urdf, "a", ["c"], ["turn"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "floating"}, "'turn' is of type 'floating'"),
        ({"axis": "0 0 2"}, "not of length 1"),
        ({"axis": "0 0"}, "not three numbers"),
        ({"axis": "0 0 nan"}, "not three numbers"),
        ({"axis": "0 0 x"}, "is not a URDF"),
        ({"more": '<mimic joint="slide"/>'}, "mimics another one"),
        ({"more": "<parent"}, "is not a URDF"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, change: dict[str, str], sentence: str):
    with pytest.raises(WmError, match=sentence):
        load_chains(write(tmp_path / "one.urdf", **change), "a", ["c"], ["turn", "slide"])


def test_files_that_are_no_urdf_are_refused(tmp_path: Path):
    urdf = tmp_path / "one.urdf"
    with pytest.raises(WmError, match="cannot read the URDF"):
        load_chains(urdf, "a", ["c"], [])
    urdf.write_text("<html/>")
    with pytest.raises(WmError, match="describes no robot"):
        load_chains(urdf, "a", ["c"], [])
    urdf.write_text('<!DOCTYPE r [<!ENTITY a "b">]><robot/>')
    with pytest.raises(WmError, match="XML entities"):
        load_chains(urdf, "a", ["c"], [])
    with pytest.raises(WmError, match="no link 'z'; it has a, b, c"):
        load_chains(write(urdf), "a", ["z"], ["turn", "slide"])
    urdf.write_text(ONE.format(kind="fixed", axis="1 0 0", more="").replace('"c"/>', '"b"/>'))
    with pytest.raises(WmError, match="two parents"):
        load_chains(urdf, "a", ["b"], ["turn", "slide"])
    urdf.write_bytes(b" " * 5_000_001)
    with pytest.raises(WmError, match="too large"):
        load_chains(urdf, "a", ["c"], [])
