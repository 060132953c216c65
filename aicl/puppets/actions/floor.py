"""Actions on the floor or turning over, and bends of the trunk."""

from aicl.puppets.motion import PHASE, action, cos, sin

ACTIONS = (
    action("bow", "bow", 1.0, yaw=55, spine_bend=42 - 42 * cos(), head_nod=10 - 10 * cos(), both_arm_lift=6),
    action("twist", "twist the torso", 1.3, spine_twist=62 * sin(), head_turn=-25 * sin(), both_arm_lift=86,
           both_elbow=6),
    action("side_bend", "bend sideways", 1.1, spine_lean=38 * sin(), left_arm_lift=88 - 78 * sin(),
           right_arm_lift=88 + 78 * sin(), both_straddle=10),
    action("toe_touch", "touch toes", 1.2, spine_bend=80, spine_twist=50 * sin(), both_arm_lift=88, both_elbow=4,
           both_straddle=16),
    action("spin", "spin around", 1.1, yaw=360 * PHASE, both_arm_lift=82, both_elbow=8),
    action("push_up", "do push-ups", 1.3, yaw=80, pitch=78 + 8 * cos(), head_nod=-20, both_arm_swing=80 - 6 * cos(),
           both_arm_lift=22, both_elbow=58 + 54 * cos()),
    action("sit_up", "do sit-ups", 1.1, yaw=80, pitch=-88, spine_bend=44 - 44 * cos(), both_thigh=52, both_knee=95,
           both_arm_swing=150, both_arm_lift=20, both_elbow=115),
    action("leg_raise", "do leg raises", 1.1, yaw=80, pitch=-90, both_thigh=45 - 43 * cos(), both_arm_lift=25),
    action("pedal", "pedal on the back", 1.6, yaw=80, pitch=-90, left_thigh=65 + 40 * sin(), left_knee=65 + 48 * cos(),
           right_thigh=65 - 40 * sin(), right_knee=65 - 48 * cos(), both_arm_lift=35),
    action("mountain", "do mountain climbers", 1.7, yaw=80, pitch=74, head_nod=-20, both_arm_swing=80, both_elbow=5,
           left_thigh=52 + 50 * sin(), left_knee=58 + 52 * sin(), right_thigh=52 - 50 * sin(),
           right_knee=58 - 52 * sin()),
    action("crawl", "crawl", 1.4, yaw=75, pitch=82, head_nod=-30, left_arm_swing=88 + 32 * sin(),
           right_arm_swing=88 - 32 * sin(), both_elbow=10, left_thigh=86 - 30 * sin(), right_thigh=86 + 30 * sin(),
           both_knee=88),
    action("cartwheel", "cartwheel", 1.0, roll=360 * PHASE, both_arm_lift=160, both_elbow=4, both_straddle=36),
    action("tumble", "tumble forwards", 1.1, yaw=80, pitch=360 * PHASE, spine_bend=42, both_thigh=105, both_knee=118,
           both_arm_swing=65, both_elbow=60),
)  # fmt: skip
