from setuptools import find_packages, setup

setup(name="wm_node", version="0.1.0", packages=find_packages(include=["wm_node", "wm_node.*"]), entry_points={"console_scripts": ["wm = wm_node.cli.main:main", "world_model = wm_node.nodes.world_model:main", "safety_gate = wm_node.nodes.safety_gate:main", "flight_recorder = wm_node.nodes.flight_recorder:main", "sim_robot = wm_node.nodes.sim_robot:main"]})
