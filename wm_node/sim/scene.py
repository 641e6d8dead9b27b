"""Geometry of the table-top scene and its MJCF text.

Frame ``table``: origin on the table top, x to the right and y upwards in the picture (away from the
camera), z up. The arm stands at the back, the camera in front. Metres everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin


@dataclass(frozen=True)
class Bounds:
    """An axis-aligned rectangle in the table plane, in metres."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def contains(self, x: float, y: float, margin: float = 0.0) -> bool:
        """Whether the point lies inside by at least ``margin`` (negative: outside by at most)."""
        return (
            self.x_min + margin <= x <= self.x_max - margin
            and self.y_min + margin <= y <= self.y_max - margin
        )

    def clearance(self, x: float, y: float) -> float:
        """Return the distance in m to the nearest side, negative outside of it."""
        return min(x - self.x_min, self.x_max - x, y - self.y_min, self.y_max - y)

    def clip(self, x: float, y: float) -> tuple[float, float]:
        """Return the nearest point of the rectangle."""
        return min(max(x, self.x_min), self.x_max), min(max(y, self.y_min), self.y_max)


TABLE_BOUNDS = Bounds(-0.28, 0.28, -0.21, 0.31)
ZONE_BOUNDS = Bounds(0.08, 0.22, 0.04, 0.16)
# The tip may leave the table by a mug's width, to reach behind a mug at an edge. It cannot pull a
# mug over the back edge, where the camera would not see it fall.
TIP_BOUNDS = Bounds(-0.33, 0.33, -0.26, 0.23)

TABLE_HEIGHT = 0.16  # of the table top above the floor
TABLE_THICKNESS = 0.025

MUG_RADIUS = 0.040
MUG_HEIGHT = 0.095
MUG_MASS = 0.25
FOOT_RADIUS = 0.004  # of the small spheres that the mug stands on
FOOT_CIRCLE = 0.034
FEET = 6

TIP_RADIUS = 0.016
TIP_HEIGHT = 0.030  # of the tip's centre, kept constant by the driver
STICK_LENGTH = 0.20  # from the wrist's axis down to the tip's centre

ARM_BASE = (0.0, 0.46)
SHOULDER_HEIGHT = 0.23
LINK_LENGTH = 0.405  # upper arm and forearm: the far corners of TIP_BOUNDS need 0.396

TABLE_COLOUR = (0.76, 0.66, 0.52)
FLOOR_COLOUR = (0.36, 0.39, 0.42)

CAMERA_POSITION = (0.0, -0.60, 0.70)
CAMERA_TARGET = (0.0, -0.075, -0.03)
CAMERA_FOVY_DEG = 40.0


def _words(numbers: tuple[float, ...]) -> str:
    return " ".join(map(str, numbers))


def _rect_outline(bounds: Bounds, width: float, z: float, rgba: str) -> str:
    cx, cy = (bounds.x_min + bounds.x_max) / 2, (bounds.y_min + bounds.y_max) / 2
    hx, hy = (bounds.x_max - bounds.x_min) / 2, (bounds.y_max - bounds.y_min) / 2
    sides = (
        (cx, bounds.y_max - width / 2, hx + 0.0005, width / 2 + 0.0005),
        (cx, bounds.y_min + width / 2, hx + 0.0005, width / 2 + 0.0005),
        (bounds.x_max - width / 2, cy, width / 2 + 0.0005, hy - width),
        (bounds.x_min + width / 2, cy, width / 2 + 0.0005, hy - width),
    )
    return "\n".join(
        f'<geom class="picture" type="box" rgba="{rgba}" pos="{x} {y} {z}" '
        f'size="{sx} {sy} 0.0005"/>'
        for x, y, sx, sy in sides
    )


def _feet() -> str:
    # A ring of spheres instead of the cylinder's flat bottom: sphere against box has a closed-form
    # contact, so the mug stands still and steps are fast and smooth.
    return "\n".join(
        f'<geom class="foot" pos="{FOOT_CIRCLE * cos(2 * pi * k / FEET):.5f} '
        f'{FOOT_CIRCLE * sin(2 * pi * k / FEET):.5f} {FOOT_RADIUS}"/>'
        for k in range(FEET)
    )


def mug_xml(name: str, inside: str = "", collides: str = "") -> str:
    """Return the MJCF text of a free mug called ``name``, its handle along its own x axis.

    ``inside`` is added to its body; ``collides`` to the attributes of its walls and handle.
    """
    body_z = (MUG_HEIGHT + 0.002) / 2
    body_half = (MUG_HEIGHT - 0.002) / 2
    handle_x = MUG_RADIUS + 0.024
    return f"""<body name="{name}">
      <freejoint name="{name}"/>
      <inertial pos="0 0 {MUG_HEIGHT * 0.45}" mass="{MUG_MASS}"
        diaginertia="{MUG_MASS * 0.0016:.7f} {MUG_MASS * 0.0016:.7f} {MUG_MASS * 0.0013:.7f}"/>
      <geom name="{name}_body" class="mug" type="cylinder" size="{MUG_RADIUS} {body_half}"
        pos="0 0 {body_z}" rgba="0.9 0.9 0.9 1" {collides}/>
      <geom name="{name}_inside" class="picture" type="cylinder" size="{MUG_RADIUS - 0.006} 0.0005"
        pos="0 0 {MUG_HEIGHT}" rgba="0.15 0.12 0.10 1"/>
      <geom name="{name}_handle_top" class="mug" type="capsule" size="0.007" {collides}
        fromto="{MUG_RADIUS - 0.002} 0 0.074 {handle_x} 0 0.070" rgba="0.9 0.9 0.9 1"/>
      <geom name="{name}_handle_side" class="mug" type="capsule" size="0.007" {collides}
        fromto="{handle_x} 0 0.070 {handle_x} 0 0.032" rgba="0.9 0.9 0.9 1"/>
      <geom name="{name}_handle_low" class="mug" type="capsule" size="0.007" {collides}
        fromto="{handle_x} 0 0.032 {MUG_RADIUS - 0.002} 0 0.026" rgba="0.9 0.9 0.9 1"/>
      {inside}
      {_feet()}
    </body>"""


@dataclass(frozen=True)
class SceneParts:
    """MJCF text that is added to the scene, behind everything else of its kind."""

    assets: str = ""
    bodies: str = ""
    files: Callable[[], dict[str, bytes]] = dict
    """Draws PNG pictures, by the names under which ``assets`` speaks of them."""


NOTHING_ADDED = SceneParts()


def scene_xml(width: int, height: int, parts: SceneParts) -> str:
    """Return the MJCF text of the scene with an off-screen buffer of ``width`` x ``height``."""
    table, zone = TABLE_BOUNDS, ZONE_BOUNDS
    table_cx, table_cy = (table.x_min + table.x_max) / 2, (table.y_min + table.y_max) / 2
    table_hx, table_hy = (table.x_max - table.x_min) / 2, (table.y_max - table.y_min) / 2
    zone_cx, zone_cy = (zone.x_min + zone.x_max) / 2, (zone.y_min + zone.y_max) / 2
    zone_hx, zone_hy = (zone.x_max - zone.x_min) / 2, (zone.y_max - zone.y_min) / 2
    column_half = (TABLE_HEIGHT + SHOULDER_HEIGHT - 0.04) / 2
    leg_hz = (TABLE_HEIGHT - TABLE_THICKNESS) / 2
    legs = "\n".join(
        f'<geom class="picture" type="box" rgba="0.30 0.24 0.18 1" size="0.015 0.015 {leg_hz}" '
        f'pos="{x} {y} {-TABLE_THICKNESS - leg_hz}"/>'
        for x in (table.x_min + 0.02, table.x_max - 0.02)
        for y in (table.y_min + 0.02, table.y_max - 0.02)
    )
    return f"""
<mujoco model="wm_node tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast" cone="pyramidal" iterations="20"/>
  <size memory="2M"/>
  <visual>
    <global offwidth="{width}" offheight="{height}"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <map znear="0.05" zfar="20"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="flat" rgb1="0.55 0.62 0.68" width="16" height="96"/>
    {parts.assets}
  </asset>
  <default>
    <geom contype="0" conaffinity="0" condim="3" solref="0.006 1"/>
    <default class="picture"><geom mass="0"/></default>
    <default class="link">
      <geom type="capsule" size="0.022" rgba="0.88 0.89 0.91 1" density="600"/>
    </default>
    <default class="foot">
      <geom type="sphere" size="{FOOT_RADIUS}" mass="0" contype="2" conaffinity="1" group="3"
        priority="1"/>
    </default>
    <default class="mug">
      <geom contype="2" conaffinity="1" priority="1" condim="6" friction="0.4 0.005 0.02"/>
    </default>
    <default class="servo"><position kp="600" kv="24" forcerange="-60 60"/></default>
    <joint damping="1" armature="0.08"/>
  </default>
  <worldbody>
    <light name="lamp" pos="0.3 -0.5 1.6" dir="-0.2 0.3 -1" directional="true" castshadow="false"
      diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <camera name="front" pos="0 0 1" fovy="{CAMERA_FOVY_DEG}"/>
    <geom name="floor" type="plane" size="4 4 0.1" pos="0 0 {-TABLE_HEIGHT}"
      rgba="{_words(FLOOR_COLOUR)} 1" contype="1" conaffinity="6" priority="2" condim="6"
      friction="0.3 0.005 0.04"/>
    <geom name="table" type="box" size="{table_hx} {table_hy} {TABLE_THICKNESS / 2}"
      pos="{table_cx} {table_cy} {-TABLE_THICKNESS / 2}" rgba="{_words(TABLE_COLOUR)} 1"
      contype="1" conaffinity="6"/>
    {_rect_outline(table, 0.008, 0.0001, "0.42 0.32 0.22 1")}
    {legs}
    <geom name="zone" class="picture" type="box" pos="{zone_cx} {zone_cy} 0"
      size="{zone_hx} {zone_hy} 0.0004" rgba="0.85 0.10 0.10 1"/>

    <body name="base" pos="{ARM_BASE[0]} {ARM_BASE[1]} {-TABLE_HEIGHT}" quat="0 0 0 1">
      <geom class="picture" type="cylinder" size="0.06 {column_half}"
        pos="0 0 {column_half}" rgba="0.25 0.27 0.30 1"/>
      <body name="turret" pos="0 0 {TABLE_HEIGHT + SHOULDER_HEIGHT}" gravcomp="1">
        <joint name="base_yaw" axis="0 0 1" range="-3 3"/>
        <geom class="link" type="sphere" size="0.045"/>
        <body name="upper_arm" gravcomp="1">
          <joint name="shoulder" axis="-1 0 0" range="-2 2"/>
          <geom class="link" fromto="0 0 0 0 0 {LINK_LENGTH}"/>
          <body name="forearm" pos="0 0 {LINK_LENGTH}" gravcomp="1">
            <joint name="elbow" axis="-1 0 0" range="-2.8 2.8"/>
            <geom class="link" type="sphere" size="0.025" rgba="0.20 0.35 0.65 1"/>
            <geom class="link" size="0.013" fromto="0 0 0 0 0 {LINK_LENGTH}"/>
            <body name="hand" pos="0 0 {LINK_LENGTH}" gravcomp="1">
              <joint name="wrist" axis="-1 0 0" range="-2.8 2.8" armature="0.02"/>
              <geom class="link" type="sphere" size="0.016" rgba="0.20 0.35 0.65 1"/>
              <geom name="stick" class="link" size="0.009" fromto="0 0 0.01 0 0 {STICK_LENGTH}"
                rgba="0.12 0.12 0.14 1" contype="4" conaffinity="2"/>
              <geom name="tip" class="link" type="sphere" size="{TIP_RADIUS}"
                pos="0 0 {STICK_LENGTH}" rgba="0.90 0.05 0.70 1" contype="4" conaffinity="2"/>
            </body>
          </body>
        </body>
      </body>
    </body>

    {mug_xml("mug")}
    {parts.bodies}
  </worldbody>
  <actuator>
    <position name="base_yaw" joint="base_yaw" class="servo"/>
    <position name="shoulder" joint="shoulder" class="servo"/>
    <position name="elbow" joint="elbow" class="servo"/>
    <position name="wrist" joint="wrist" class="servo" kp="200" kv="8"/>
  </actuator>
</mujoco>
"""
