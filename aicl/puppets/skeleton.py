"""The puppet: 18 joints in 3-D, moved by 27 joint channels through batched forward kinematics.

A motion program is an array (channels, PHASES): every channel sampled over one cycle, both ends included, so that a
full turn (0 to 360 degrees) can be written. Angles are degrees, offsets are in units of about one metre (a neutral
figure is 1.75 high). Axes before the camera: x to the figure's left, y up, z the way a figure with yaw 0 looks.
"""

import math

import torch
from torch import Tensor

PHASES = 33

ROOT = ("x", "y", "z", "yaw", "pitch", "roll")
SPINE = ("spine_bend", "spine_lean", "spine_twist", "head_nod", "head_turn")
ARM = ("arm_swing", "arm_lift", "arm_twist", "elbow")  # forward and up, sideways and up, about the upper arm, bend
LEG = ("thigh", "straddle", "leg_twist", "knee")  # forward and up, sideways, about the thigh, bend
CHANNELS = ROOT + SPINE + tuple(f"{side}_{name}" for part in (ARM, LEG) for side in ("left", "right") for name in part)
CHANNEL = {name: index for index, name in enumerate(CHANNELS)}
NEUTRAL = {
    f"{side}_{name}": angle
    for side in ("left", "right")
    for name, angle in (("arm_lift", 8.0), ("elbow", 15.0), ("straddle", 4.0))
}
PROPORTIONS = ("torso", "shoulders", "upper_arm", "forearm", "hips", "thigh", "shin", "head")

_LIMB_JOINTS = ("shoulder", "elbow", "hand", "hip", "knee", "ankle", "toe")
JOINTS = ("pelvis", "chest", "head", "nose", *(f"{side}_{name}" for name in _LIMB_JOINTS for side in "LR"))
_LIMBS = (CHANNEL["left_arm_swing"], CHANNEL["left_thigh"])  # where the eight channels of both arms, both legs begin
JOINT = {name: index for index, name in enumerate(JOINTS)}


def channel_values(programs: Tensor, phase: Tensor, amplitude: Tensor) -> Tensor:
    """Read programs (b, channels, PHASES) at `phase` (b, t), counted in cycles; any real number is allowed.

    `amplitude` (b,) scales the swing of every channel about its mean, except the root's turns and channels that make
    a full turn. Returns (b, channels, t).
    """
    position = (phase - phase.floor()) * (PHASES - 1)
    low = position.floor().clamp(max=PHASES - 2)
    weight = (position - low)[:, None]
    index = low.long()[:, None].expand(-1, programs.shape[1], -1)
    values = torch.gather(programs, 2, index) * (1 - weight) + torch.gather(programs, 2, index + 1) * weight
    mean = programs.mean(2, keepdim=True)
    rigid = (programs[:, :, -1] - programs[:, :, 0]).abs() > 300.0
    rigid[:, CHANNEL["yaw"] : CHANNEL["roll"] + 1] = True
    return torch.where(rigid[:, :, None], values, mean + (values - mean) * amplitude[:, None, None])


def pose(
    programs: Tensor,
    phase: Tensor,
    *,
    amplitude: Tensor | None = None,
    proportions: Tensor | None = None,
    mirror: Tensor | None = None,
) -> Tensor:
    """Forward kinematics: joint positions (b, t, joints, 3) of programs (b, channels, PHASES) at `phase` (b, t).

    `proportions` (b, 8) multiply the lengths named by PROPORTIONS, `mirror` (b,) is -1 for a left-handed person.
    The lowest joint of each frame touches the ground (y = 0) before the program's own `y` lifts the figure.
    """
    batch = programs.shape[0]
    amplitude = programs.new_ones(batch) if amplitude is None else amplitude
    proportions = programs.new_ones(batch, len(PROPORTIONS)) if proportions is None else proportions
    values = channel_values(programs, phase, amplitude)
    radians = values * (math.pi / 180)
    angle = {name: radians[:, CHANNEL[name]] for name in ROOT + SPINE}  # each (b, t)
    length = {name: proportions[:, index, None] for index, name in enumerate(PROPORTIONS)}  # each (b, 1)

    root = _product(_about("y", angle["yaw"]), _about("x", angle["pitch"]), _about("z", angle["roll"]))
    spine = _product(
        root,
        _about("y", angle["spine_twist"]),
        _about("x", angle["spine_bend"]),
        _about("z", angle["spine_lean"]),
    )
    skull = _product(spine, _about("x", angle["head_nod"]), _about("y", angle["head_turn"]))
    pelvis = torch.zeros_like(root[..., 0])
    chest = pelvis + _along(spine, y=0.50 * length["torso"])
    joints = {
        "pelvis": pelvis,
        "chest": chest,
        "head": chest + _along(skull, y=0.23 * length["head"], z=0.02),
        "nose": chest + _along(skull, y=0.22 * length["head"], z=0.13 * length["head"]),
    }

    # Limbs, left and right at once: a leading axis of two, whose sign says where outwards is.
    sign = 1.0 - 2.0 * torch.arange(2, device=programs.device)[:, None, None]
    limbs = [radians[:, start : start + 8].unflatten(1, (2, 4)).permute(2, 1, 0, 3) for start in _LIMBS]
    (swing, lift, twist, bend), (thigh_swing, straddle, leg_twist, knee_bend) = limbs  # each (2, b, t)
    upper = _product(spine, _about("z", sign * lift), _about("x", -swing), _about("y", sign * twist))
    forearm = _product(upper, _about("x", -bend))
    thigh = _product(root, _about("z", sign * straddle), _about("x", -thigh_swing), _about("y", sign * leg_twist))
    shin = _product(thigh, _about("x", knee_bend))
    shoulder = chest + _along(spine, x=sign * 0.18 * length["shoulders"], y=-0.04)
    elbow = shoulder + _along(upper, y=-0.29 * length["upper_arm"])
    hand = elbow + _along(forearm, y=-0.27 * length["forearm"])
    hip = pelvis + _along(root, x=sign * 0.095 * length["hips"], y=-0.02)
    knee = hip + _along(thigh, y=-0.43 * length["thigh"])
    ankle = knee + _along(shin, y=-0.42 * length["shin"])
    toe = ankle + _along(shin, y=-0.02, z=0.14)
    for name, pair in zip(_LIMB_JOINTS, (shoulder, elbow, hand, hip, knee, ankle, toe)):
        joints[f"L_{name}"], joints[f"R_{name}"] = pair

    figure = torch.stack([joints[name] for name in JOINTS], 2)  # (b, t, joints, 3)
    ground = figure[..., 1].amin(2)
    offset = values[:, :3].transpose(1, 2) - torch.stack(
        [torch.zeros_like(ground), ground, torch.zeros_like(ground)], -1
    )
    figure = figure + offset[:, :, None]
    if mirror is not None:
        figure = figure * torch.stack([mirror, torch.ones_like(mirror), torch.ones_like(mirror)], -1)[:, None, None]
    return figure


def turn(points: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Points (b, t, n, 3) before a camera that goes round them by `yaw` and looks down by `pitch`, degrees (b,)."""
    camera = _product(_about("x", pitch * (math.pi / 180)), _about("y", yaw * (math.pi / 180)))  # (b, 3, 3)
    return (camera[:, None, None] * points[..., None, :]).sum(-1)


def _about(axis: str, angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about one axis, angles in radians."""
    cos, sin = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        "x": (one, zero, zero, zero, cos, -sin, zero, sin, cos),
        "y": (cos, zero, sin, zero, one, zero, -sin, zero, cos),
        "z": (cos, -sin, zero, sin, cos, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _product(first: Tensor, *others: Tensor) -> Tensor:
    """Matrix product, elementwise: a GPU's matrix units would round positions to ten bits (TF32)."""
    for other in others:
        first = (first[..., :, :, None] * other[..., None, :, :]).sum(-2)
    return first


def _along(frame: Tensor, **components: Tensor | float) -> Tensor:
    """A local vector, its components x, y, z (..., 1) or numbers (0 if not given), in the axes `frame` (..., 3, 3)."""
    terms = [
        frame[..., "xyz".index(axis)] * (value[..., None] if torch.is_tensor(value) else value)
        for axis, value in components.items()
    ]
    return sum(terms[1:], terms[0])
