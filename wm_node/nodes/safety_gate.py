"""``/safety_gate``: the last hop before the robot.

It depends on nothing upstream being alive, and on neither torch nor the engine. Its logic is the
pure state machine of :mod:`wm_node.safety.gate`; this module is its wiring to ROS.

What a planner must do (any command source that takes the planner's place must do the same)
-------------------------------------------------------------------------------------------
``mpc_planner/heartbeat`` (``std_msgs/Header``, QoS ``HEARTBEAT_QOS`` of ``nodes/common.py``):
    Published at 20 Hz or faster from a steady timer of the executor, never from the inference
    thread, in the active state, from ``activate`` on.

    - ``stamp``: the stamp of the last completed plan, i.e. of its command; 0 before the first.
      It must stand still while the engine hangs, even if shifted plans are being published.
    - ``frame_id``: the name of a :class:`~wm_node.safety.reasons.Reason`. ``OK``: commands are to
      be followed. Anything else (``NO_GOAL``, ``GOAL_REACHED``, ``FRAMES_STALE``, ...): the gate
      brakes and holds with that reason, and resumes by itself when it turns ``OK``.
    - ``deactivate`` publishes a last heartbeat ``PLANNER_INACTIVE`` and waits for its
      acknowledgement (``publisher.wait_for_all_acked``); then the loss of the heartbeat is no
      fault. The publisher is created in ``configure`` and lives until ``cleanup``.

    The topic's DDS liveliness (lease ``HEARTBEAT_LEASE_S``, renewed by the DDS library itself)
    tells the gate of the death of the process within the lease. Apart from that it brakes when no
    heartbeat has come for ``safety.max_heartbeat_age_s``, and when the stamp of an ``OK``
    heartbeat has not changed for ``safety.max_plan_age_s``. These three latch.

``mpc_planner/verdict`` (``PointCloud2``, ``COMMAND_QOS``), published *before* its command:
    Height 1, width = steps (or 1), ``header.stamp`` equal to the command's to the nanosecond.
    Fields: ``risk_<event>`` for each event of the profile, in 0..1 (NaN: not available, which
    counts as unverified where the profile has a threshold for it), and optionally ``uncertainty``
    and ``surprise``, each as a ratio to its calibrated threshold: above 1 is too much. The gate
    takes the worst value over the steps.

``mpc_planner/command`` (the profile's message, ``COMMAND_QOS``):
    Built by ``command_message``. ``header.stamp`` is the ROS time at which it is published (not
    that of the frame), at ``action.rate_hz`` or faster. It is followed until it is
    ``safety.max_command_age_s`` old. Sent only while the heartbeat says ``OK``.

What the gate gives
-------------------
``command`` (``action.topic``, the profile's message, ``COMMAND_QOS``): at ``rate_hz`` while active.
``safety_gate/status`` (``DiagnosticStatus``, latched): state and reason at every change, for
recorders and reports: ``message`` is ``<STATE> <REASON>``; see ``status_values``.
``/diagnostics``: the same, and at 1 Hz. ``~/stop`` and ``~/reset`` (``std_srvs/Trigger``).
"""
