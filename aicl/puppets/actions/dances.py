"""Dances and other rhythms of the whole body."""

from aicl.puppets.motion import action, cos, positive, sin, square

ACTIONS = (
    action("cancan", "dance the cancan", 1.3, spine_bend=-6, left_thigh=92 * positive(sin()),
           right_thigh=92 * positive(-sin()), both_knee=10, both_arm_lift=82, both_elbow=5),
    action("salsa", "dance salsa", 1.6, x=0.09 * sin(), roll=11 * sin(), spine_lean=-18 * sin(), spine_twist=16 * sin(),
           left_arm_swing=40 + 30 * sin(), right_arm_swing=40 - 30 * sin(), both_arm_lift=14, both_elbow=92,
           left_knee=44 * positive(sin()), left_thigh=28 * positive(sin()),
           right_knee=44 * positive(-sin()), right_thigh=28 * positive(-sin())),
    action("chicken", "do the chicken dance", 1.8, both_arm_lift=45 + 36 * sin(), both_elbow=145,
           both_knee=30 + 28 * cos(), both_thigh=18 + 16 * cos()),
    action("robot", "imitate robots", 1.3, spine_twist=24 * square(), head_turn=25 * square(), both_arm_lift=86,
           both_elbow=90,
           left_arm_twist=88 * square(), right_arm_twist=-88 * square(), left_thigh=24 * positive(square()),
           left_knee=40 * positive(square()), right_thigh=24 * positive(-square()),
           right_knee=40 * positive(-square())),
    action("hula", "spin a hula hoop", 1.6, x=0.14 * sin(), pitch=12 * cos(), roll=16 * sin(), spine_bend=-14 * cos(),
           spine_lean=-22 * sin(), both_arm_lift=58, both_arm_twist=60, both_elbow=75, both_straddle=9),
    action("sway", "sway", 1.1, roll=11 * sin(), spine_lean=16 * sin(), both_arm_lift=14 + 12 * sin()),
    action("headbang", "bang the head", 1.8, yaw=45, spine_bend=26 + 24 * sin(), head_nod=15 + 32 * sin(),
           both_arm_lift=18, both_elbow=50, both_knee=18 + 8 * sin(), both_thigh=12),
    action("zombie", "stagger like a zombie", 1.0, yaw=20, roll=12 * sin(), head_nod=12, head_turn=16 * sin(),
           both_arm_swing=86, both_elbow=4, left_thigh=30 * positive(sin()), left_knee=34 * positive(sin()),
           right_thigh=30 * positive(-sin()), right_knee=34 * positive(-sin())),
)  # fmt: skip
