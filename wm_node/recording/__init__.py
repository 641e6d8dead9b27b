"""Writing and repairing rosbag2 bags in MCAP: knows bytes and topics, neither ROS nor torch."""
