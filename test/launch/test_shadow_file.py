"""What shadow.launch.py starts, without the launch system: read with stand-ins for its modules."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from wm_node.errors import WmError
from wm_node.resources import resource


def _module(name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(values)
    return module


@pytest.fixture
def shadow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the launch file; its description is the list of what it starts."""

    def configuration(name: str) -> Any:
        return SimpleNamespace(perform=lambda context: context[name])

    for module in (
        _module("launch", LaunchContext=dict, LaunchDescription=list),
        _module("launch.actions", OpaqueFunction=lambda function: function),
        _module("launch.substitutions", LaunchConfiguration=configuration),
        _module(
            "wm_node.launching",
            arguments=list,
            in_namespace=list,
            node_process=lambda name, **more: (name, more.get("parameters") or {}),
            lifecycle_walk=tuple,
        ),
    ):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return runpy.run_path(str(resource("launch/shadow.launch.py")))


def test_the_gate_is_in_shadow_and_the_planner_gives_it_something_to_judge(shadow: dict[str, Any]):
    check, *started, walked = shadow["generate_launch_description"]()
    assert check is shadow["check_params_file"]
    parameters = dict(started)
    assert parameters["safety_gate"] == {"shadow": True}
    assert parameters["world_model"] == {}
    assert walked[-1] == "mpc_planner"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("/**/safety_gate: {ros__parameters: {shadow: false}}", True),
        ("/left: {safety_gate: {ros__parameters: {shadow: 0}}}", True),
        ("/**: {ros__parameters: {rate_hz: 50.0, shadow: false}}", True),
        ("/**/safety_gate: {ros__parameters: {shadow: true}}", False),
        ("/**/mpc_planner: {ros__parameters: {shadow: false}}", False),
        ("/**/flight_recorder: {ros__parameters: {min_free_mb: 10}}", False),
        ("", False),
    ],
)
def test_a_params_file_that_would_let_the_gate_command_is_refused(
    shadow: dict[str, Any], tmp_path: Path, text: str, refused: bool
):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    context = {"params_file": str(path)}
    if refused:
        with pytest.raises(WmError, match="sets 'shadow' to false"):
            shadow["check_params_file"](context)
    else:
        assert shadow["check_params_file"](context) == []
    assert shadow["check_params_file"]({"params_file": ""}) == []
